"""The image files under a folder, and the one that a name in a label file means."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fanet_lightning.data.inventory import LabelProblem
from fanet_lightning.image_lists import has_image_extension, without_extension


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
        self._stems: dict[str, list[str]] = {}
        self._folded: dict[str, list[str]] = {}
        self._folded_stems: dict[str, list[str]] = {}
        for name in self.names:
            self._stems.setdefault(without_extension(name), []).append(name)
            self._folded.setdefault(name.casefold(), []).append(name)
            self._folded_stems.setdefault(without_extension(name).casefold(), []).append(name)

    def find(self, written: str) -> Found:
        """The file that a label file means by ``written``.

        First the very name; else the only one that differs in the letter case, or in the extension (also left out).
        """
        name = self.relative(written)
        if name is None:
            return Found(None, f"leaves the folder {self.folder}; write names relative to it")
        if name in self._exact:
            return Found(name)
        if not has_image_extension(name) and (self.folder / name).is_file():
            return Found(name)
        folded = self._folded.get(name.casefold())
        return _only(folded) if folded else self._of_stem(without_extension(name))

    def find_stem(self, written: str) -> Found:
        """The image file that is called ``written`` but for its extension, if need be in other letter case."""
        name = self.relative(written)
        if name is None:
            return Found(None, f"leaves the folder {self.folder}; write names relative to it")
        return self._of_stem(name)

    def _of_stem(self, stem: str) -> Found:
        candidates = self._stems.get(stem) or self._folded_stems.get(stem.casefold())
        return _only(candidates) if candidates else Found(None)

    def relative(self, written: str) -> str | None:
        """``written`` relative to the folder with POSIX slashes, or None where it leads out of it."""
        path = PurePosixPath(written.replace("\\", "/"))
        if path.is_absolute():
            try:
                path = path.relative_to(PurePosixPath(self.folder.resolve().as_posix()))
            except ValueError:
                return None
        if ".." in path.parts or not path.parts:
            return None
        return path.as_posix()


def _only(candidates: list[str]) -> Found:
    if len(candidates) == 1:
        return Found(candidates[0])
    return Found(None, f"may be {candidates[0]} or {candidates[1]}; write which is meant, or rename one of them")


def label_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Files below a folder by their relative name without ``suffix``, which may be in any letter case; sorted.

    Of two that differ in its letter case alone, the second keeps it in its name, so that none is lost.
    """
    found: dict[str, Path] = {}
    names = [name for name in walk_files(folder) if name.lower().endswith(suffix)]
    for name in sorted(names, key=lambda name: (not name.endswith(suffix), name)):
        stem = name[: -len(suffix)]
        found[name if stem in found else stem] = folder / name
    return dict(sorted(found.items()))


def twice(folder: Path, names: list[str], label_path: Path) -> list[LabelProblem]:
    """Files that differ by their extension alone: they would share an image id."""
    first: dict[str, str] = {}
    problems = []
    for name in names:
        other = first.setdefault(without_extension(name), name)
        if other != name:
            reason = f"differs from {other} by the extension alone; rename one of them in {folder}"
            problems.append(LabelProblem(label_path, None, name, reason))
    return problems


def walk_files(folder: Path, prefix: str = "", seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Names of all files below a folder, relative, POSIX slashes; hidden files and folders are left out."""
    try:
        status = folder.stat()
        place = (status.st_dev, status.st_ino)
        if place in seen:  # a link back to a folder above
            return
        with os.scandir(folder) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return
    for name, is_folder in listed:
        if is_folder:
            yield from walk_files(folder / name, f"{prefix}{name}/", seen | {place})
        else:
            yield prefix + name
