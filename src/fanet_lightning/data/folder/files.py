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
        self._stems: dict[str, list[str]] = {}
        self._folded: dict[str, list[str]] = {}
        self._folded_stems: dict[str, list[str]] = {}
        for name in self.names:
            stem = without_extension(name)
            self._stems.setdefault(stem, []).append(name)
            self._folded.setdefault(name.casefold(), []).append(name)
            self._folded_stems.setdefault(stem.casefold(), []).append(name)

    def find(self, written: str) -> Found:
        """The file that a label file means by ``written``.

        First the very name; else the only one that differs in the letter case, or in the extension (also left out).
        """
        name = self.relative(written)
        if name is None:
            return Found(None, f"leaves the folder {self.folder}; write names relative to it")
        if name in self._exact or (not has_image_extension(name) and (self.folder / name).is_file()):
            return Found(name)
        return self._only(self._folded.get(name.casefold()) or self._of_stem(without_extension(name)))

    def find_stem(self, written: str) -> Found:
        """The image file that is called ``written`` but for its extension, if need be in other letter case."""
        return self._only(self._of_stem(written))

    def _of_stem(self, stem: str) -> list[str]:
        return self._stems.get(stem) or self._folded_stems.get(stem.casefold(), [])

    def _only(self, candidates: list[str]) -> Found:
        if len(candidates) > 1:
            return Found(None, f"may be {candidates[0]} or {candidates[1]}; write which, or rename one of them")
        return Found(candidates[0] if candidates else None)

    def relative(self, written: str) -> str | None:
        """``written`` relative to the folder with POSIX slashes, or None where it leads out of it."""
        path = PurePosixPath(written.replace("\\", "/"))
        if path.is_absolute():
            folder = self.folder.resolve().as_posix()
            path = path.relative_to(folder) if path.is_relative_to(folder) else path
        outside = path.is_absolute() or ".." in path.parts or not path.parts
        return None if outside else path.as_posix()


def label_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Files below a folder by their relative name without ``suffix``, which may be in any letter case; sorted.

    Of two that differ in its letter case alone, the second keeps it in its name, so that it is not lost.
    """
    found: dict[str, Path] = {}
    names = [name for name in walk_files(folder) if name.lower().endswith(suffix)]
    for name in sorted(names, key=lambda name: (not name.endswith(suffix), name)):
        stem = name[: -len(suffix)]
        found[name if stem in found else stem] = folder / name
    return dict(sorted(found.items()))


def matching(root: Path, pattern: str) -> Iterator[Path]:
    """What a glob pattern finds under ``root``, its suffix in any letter case, without hidden files and folders and
    without the record that a conversion leaves there."""
    stem, dot, suffix = pattern.rpartition(".")
    pattern = stem + dot + "".join(f"[{letter.lower()}{letter.upper()}]" for letter in suffix) if dot else pattern
    for path in root.glob(pattern):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.name != CONVERSION_RECORD:
            yield path
