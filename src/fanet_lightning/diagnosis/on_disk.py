"""Which files are there, by their exact names: some file systems say yes to any letter case."""

import os
from pathlib import Path


class Listing:
    """Looks files up in listings of their folders, each read once: fast on network drives too."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, str]] = {}
        self._folded: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path | None:
        """The file at ``path``, else the only one whose name differs in letter case alone, else None.

        The folders above may differ in letter case as well.
        """
        folder = self._folder(path.parent)
        if folder is None:
            return None
        names = self._read(folder)
        if path.name in names:
            return folder / path.name
        candidates = self._folded[folder].get(path.name.casefold(), [])
        return folder / candidates[0] if len(candidates) == 1 else None

    def _folder(self, folder: Path) -> Path | None:
        if folder in self._names or folder == folder.parent:
            return folder
        above = self._folder(folder.parent)
        if above is None:
            return None
        names = self._read(above)
        # A folder that cannot be listed may still be entered.
        if folder.name in names or folder.name == ".." or not names:
            return above / folder.name
        candidates = self._folded[above].get(folder.name.casefold(), [])
        return above / candidates[0] if len(candidates) == 1 else None

    def _read(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            try:
                with os.scandir(folder) as entries:
                    names = [entry.name for entry in entries]
            except OSError:
                names = []
            self._names[folder] = {name: name for name in names}
            self._folded[folder] = {}
            for name in names:
                self._folded[folder].setdefault(name.casefold(), []).append(name)
        return self._names[folder]
