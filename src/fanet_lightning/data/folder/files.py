"""Image and label files of a folder: one listing, found in any letter case or extension."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fanet_lightning.cli.files import has_image_extension, walk_files, without_extension

# What `convert` writes with the labels that it makes: no labels.
CONVERSION_RECORD = "converted.json"


@dataclass(frozen=True)
class Found:
    """``name`` of the file relative to the folder, None if there is none, and then ``reason``."""

    name: str | None
    reason: str = ""


class ImageFiles:
    """One listing of a folder with all its sub-folders: fast on network drives, where a stat per image is not.

    ``names``  image files, relative, POSIX slashes, sorted. Hidden files and folders are not among them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(name for name in walk_files(folder) if has_image_extension(name))
        self._exact = set(self.names)
        self._alike: dict[str, list[str]] = {}
        for name in self.names:
            self._alike.setdefault(without_extension(name).casefold(), []).append(name)

    def find(self, written: str) -> Found:
        """The file that a label file means by ``written``.

        First the very name; else the only one that differs in the letter case, or in the extension (also left out).
        """
        name = relative(written)
        if name is None:
            return Found(None, f"leaves the folder {self.folder}; write names relative to it")
        if name in self._exact:
            return Found(name)
        alike = self._alike.get(without_extension(name).casefold(), [])
        alike = [other for other in alike if other.casefold() == name.casefold()] or alike
        if len(alike) > 1:
            return Found(None, f"may be {alike[0]} or {alike[1]}; write which, or rename one of them")
        return Found(alike[0] if alike else None)


def relative(written: str) -> str | None:
    """A name of a label file with POSIX slashes, or None where it leads out of its folder."""
    path = PurePosixPath(written.replace("\\", "/"))
    return None if path.is_absolute() or ".." in path.parts or not path.parts else path.as_posix()


def label_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Files below a folder by their relative name without ``suffix``, which may be in any letter case; sorted."""
    names = sorted(name for name in walk_files(folder) if name.lower().endswith(suffix))
    return {name[: -len(suffix)]: folder / name for name in names}


def matching(root: Path, pattern: str) -> Iterator[Path]:
    """What a glob pattern finds under ``root``, sorted, its suffix in any letter case, without hidden files and the
    record that a conversion leaves there."""
    stem, dot, suffix = pattern.rpartition(".")
    any_case = "".join(f"[{letter.lower()}{letter.upper()}]" for letter in suffix)
    for path in sorted(root.glob(stem + dot + any_case)):
        if not any(part.startswith(".") for part in path.relative_to(root).parts) and path.name != CONVERSION_RECORD:
            yield path
