"""The image files under a folder, and the one that a name in a label file means."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fanet_lightning.data.inventory import LabelProblem

# What data/images.py decodes, by the extensions in use.
IMAGE_EXTENSIONS = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
        ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".mpo", ".avif",
    )
)  # fmt: skip


def has_image_extension(name: str) -> bool:
    """Whether a name ends like an image file, in any letter case."""
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


def without_extension(name: str) -> str:
    """The name without an image's extension; other dots stay: ``a.b`` is ``a.b``, ``a.b.JPG`` is ``a.b``."""
    return name[: -len(PurePosixPath(name).suffix)] if has_image_extension(name) else name


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
        self.names = sorted(name for name in _walk(folder) if has_image_extension(name))
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


def header_size_wh(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is shown (the EXIF orientation applied), from its header.

    Raises:
        OSError: no image, or one that nobody can read.
    """
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                return (height, width) if _turned(image) else (width, height)
    except OSError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        raise OSError(str(error)) from error


def _turned(image: object) -> bool:
    try:
        value = image.getexif().get(0x0112, 1)  # type: ignore[attr-defined]
    except Exception:  # a broken EXIF block is no reason to refuse the size; data/images.py does the same
        return False
    return isinstance(value, int) and 5 <= value <= 8


def _walk(folder: Path, prefix: str = "", seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
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
            yield from _walk(folder / name, f"{prefix}{name}/", seen | {place})
        else:
            yield prefix + name
