"""What an input is, and names that no two inputs share, so that no result overwrites another."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fanet_lightning.image_lists import IMAGE_EXTENSIONS

# HEIC is read where its plug-in is installed; without it, such a file is an image that cannot be read.
IMAGE_SUFFIXES = IMAGE_EXTENSIONS | {".heic", ".heif", ".hif"}
VIDEO_SUFFIXES = frozenset(
    (
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
        ".3gp", ".ogv",
    )
)  # fmt: skip
# In the folder of the results: pictures, written videos, lines per frame, texts, crops.
RESULT_FOLDERS = ("images", "videos", "frames", "txt", "crops")
# What can be saved.
KINDS = ("images", "json", "txt", "crops")
_FOLDERS_WITH_FACES = ("images", "videos", "crops")
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Item:
    """One input.

    ``location``  a file, an address, or the number of a camera.
    ``name``      relative, POSIX slashes, with its suffix: what the results call it. Unique, whatever the letter case.
    ``stem``      ``name`` without the suffix, as long as no other input has the same; files of results begin with it.
    """

    location: Path | str | int
    name: str
    stem: str = ""

    @property
    def text(self) -> str:
        """The location in words, for messages."""
        if isinstance(self.location, int):
            return f"camera {self.location}"
        return str(self.location) if isinstance(self.location, Path) else without_passwords(str(self.location))


def without_passwords(text: str) -> str:
    """Addresses in a text without the name and password that those of cameras tend to hold."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def shows_faces(name: str) -> bool:
    """Whether a file of the results, relative to their folder, is a picture or a video."""
    return PurePosixPath(name).parts[:1] in {(folder,) for folder in _FOLDERS_WITH_FACES}


def is_camera(text: str) -> bool:
    """Whether a source is the number of a camera."""
    return text.isdecimal() and len(text) < 4


def stated_sources(parts: Sequence[str]) -> list[str]:
    """The sources by names that are the same from every working folder, in order of names, without passwords."""
    return sorted({_stated(part) for part in parts})


def _stated(part: str) -> str:
    if is_camera(part):
        return f"camera {part}"
    if "://" in part:
        return without_passwords(part)
    return os.path.abspath(Path(part).expanduser())  # noqa: PTH100  # links are followed by nobody


def distinct(found: list[tuple[Item, str]]) -> tuple[list[tuple[Item, str]], int]:
    """Every location once, and how many were given again."""
    first: dict[str, tuple[Item, str]] = {}
    for item, label in found:
        # Links are followed by nobody: two names of one file are two inputs.
        key = os.path.abspath(item.location) if isinstance(item.location, Path) else str(item.location)  # noqa: PTH100
        first.setdefault(key, (item, label))
    return list(first.values()), len(found) - len(first)


def named(found: list[tuple[Item, str]]) -> list[Item]:
    """Unique names and stems. Equal ones are told apart by their folder, suffix, or a number, in this order."""
    counts = Counter(item.name.casefold() for item, _ in found)
    labelled = [
        replace(item, name=f"{label}/{item.name}") if label and counts[item.name.casefold()] > 1 else item
        for item, label in found
    ]
    names: set[str] = set()
    unique = []
    for item in labelled:
        suffix = PurePosixPath(item.name).suffix
        body = item.name.removesuffix(suffix)
        unique.append(replace(item, name=_free(body, suffix, names)))
    shared = Counter(_stem(item.name).casefold() for item in unique)
    stems: set[str] = set()
    wanted = [item.name if shared[_stem(item.name).casefold()] > 1 else _stem(item.name) for item in unique]
    return [replace(item, stem=_free(stem, "", stems)) for item, stem in zip(unique, wanted, strict=True)]


def _free(body: str, suffix: str, taken: set[str]) -> str:
    """``body + suffix``, or with a number between; it is taken from then on."""
    name, number = body + suffix, 1
    while name.casefold() in taken:
        number += 1
        name = f"{body}_{number}{suffix}"
    taken.add(name.casefold())
    return name


def _stem(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES else name


def name_of_url(url: str) -> str:
    parts = urlsplit(url)
    own = PurePosixPath(unquote(parts.path)).name
    return safe(own) or safe(parts.hostname or "") or "image"


def safe(name: str) -> str:
    """Without what some file system does not take, and not longer than all of them take."""
    cleaned = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|=]+', "_", name).strip(" .")
    suffix = PurePosixPath(cleaned).suffix[:10]
    return cleaned if len(cleaned) <= _LONGEST_NAME else cleaned[: _LONGEST_NAME - len(suffix)] + suffix
