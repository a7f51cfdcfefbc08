"""Inputs of detect: what source= means, fetching and decoding, the journal of what is done.

What ``source=`` means: images, folders, patterns, lists, addresses, videos, streams and cameras.

Every input gets a name of its own, under which its results are stored; no two inputs share one.

What ``detect`` has done, on disk: one line per input, appended when its results are written.

A process may be killed at any byte: a last line that is not whole is dropped, and that input is done again. The first
line holds the settings that results depend on, and the sources that were stated. Results of other settings are removed
before new ones are written; where that would take other inputs' results away, the run is refused.
"""

import datetime
import difflib
import errno
import fnmatch
import glob
import io
import json
import os
import re
import stat
import threading
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import IMAGE_EXTENSIONS, content_if_any, decoded_text
from fanet_lightning.data.images import (
    JPEG_START,
    Image8,
    UnreadableImage,
    color_profile,
    decode_image_rgb,
    heic_plug_in,
    is_heic,
)

if TYPE_CHECKING:
    import requests


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


JOURNAL_FILE = "done.jsonl"
VERSION = 1
# In the first line, but nothing that results depend on.
_SOURCES = "sources"
# Longer first lines are none of detect's.
_MOST_HEAD_BYTES = 1 << 20


class Journal:
    """A context manager: inside, entries are added and stay when the process dies.

    ``entries`` what is done, by the input's name. ``refused`` which settings differ from those of the results that lie
    there: these are removed as the block is entered, because faces that shall be redacted must not stay beside the
    redacted ones. ``begins_anew`` whether anything is removed so. ``existed`` whether
    there was an earlier run.

    Args:
        out: the folder of the results.
        settings: what results depend on, as plain values.
        items: the inputs of this run; what other inputs left in the folder with the same settings stays there.
        resume: False removes whatever the journal lists, and begins anew.
        sources: as stated, of :func:`stated_sources`.

    Raises:
        InputError: the file cannot be read or written, or results of other inputs lie there that would be overwritten,
            or are of other settings, e.g. not redacted.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        items: Collection[Item],
        *,
        resume: bool = True,
        sources: Sequence[str] = (),
    ) -> None:
        self.path = out / JOURNAL_FILE
        self.entries: dict[str, dict[str, Any]] = {}
        self.refused: list[str] = []
        self.begins_anew = False
        self.existed = self.path.is_file()
        self._out, self._items, self._sources = out, items, list(sources)
        # As it comes back from a file: tuples become lists.
        self._settings = json.loads(json.dumps({"version": VERSION, **settings}))
        self._stale: list[dict[str, Any]] = []
        self._whole_bytes = 0
        self._file: int | None = None
        self._read(resume)

    def _read(self, resume: bool) -> None:
        content = content_if_any(self.path)
        if content is None:
            return
        lines = []
        for line in content.splitlines(keepends=True):
            value = _parsed(line)
            if value is None:
                break
            lines.append((value, len(line)))
        if not lines:
            return
        found = {key: value for key, value in lines[0][0].items() if key != _SOURCES}
        keys = dict.fromkeys([*found, *self._settings])
        self.refused = [key for key in keys if found.get(key) != self._settings.get(key)]
        listed = [value for value, _ in lines[1:] if isinstance(value.get("name"), str)]
        entries: dict[str, dict[str, Any]] = {}
        for entry in listed:
            entries.pop(entry["name"], None)
            if not entry.get("removed"):
                entries[entry["name"]] = entry
        if resume:
            places = {(item.name, place_of(item)) for item in self._items}
            strange = (entry for entry in entries.values() if (entry["name"], entry.get("location")) not in places)
            others = [entry for entry in strange if self._something_there(entry)]
            if self.refused:
                self._check_settings(others, redacted=bool(found.get("redact")))
            else:
                self._check_names(others)
        if self.refused or not resume:
            self._stale, self.begins_anew = listed, True
            return
        self.entries = entries
        self._whole_bytes = sum(length for _, length in lines)

    def _something_there(self, entry: Mapping[str, Any]) -> bool:
        """Whether something of an input's results is left: a file, or what only the JSON holds."""
        files = entry.get("files", ())
        return not files or any((self._out / name).is_file() for name in files)

    def _check_settings(self, others: list[dict[str, Any]], *, redacted: bool) -> None:
        """Results of other settings that belong to other inputs: neither kept beside the new ones nor removed."""
        files = [name for entry in others for name in entry.get("files", ())
                 if shows_faces(name) and (self._out / name).is_file()]  # fmt: skip
        if self._settings.get("redact") and not redacted and files:
            number = f"{len(files):,} file" + ("" if len(files) == 1 else "s")
            raise InputError(
                f"out={self._out}: holds pictures of an earlier run that are not redacted ({number}, e.g. {files[0]}); "
                "give another out, or delete it"
            )
        if others:
            raise InputError(
                f"out={self._out}: holds results of other settings ({', '.join(self.refused)}), e.g. of "
                f"{others[0]['name']}; give another out, or resume=false to remove them"
            )

    def _check_names(self, others: list[dict[str, Any]]) -> None:
        """Results of another input that has the name of one of these."""
        taken = {entry[key].casefold(): entry for key in ("stem", "name") for entry in others if entry.get(key)}
        for item in self._items:
            entry = taken.get(item.name.casefold()) or taken.get(item.stem.casefold())
            if entry is not None:
                raise InputError(
                    f"out={self._out}: the results of {item.text} would overwrite those of {entry.get('location')}; "
                    "give another out, or resume=false to remove all that lie there"
                )

    def is_whole(self, entry: Mapping[str, Any]) -> bool:
        """Whether all files of an entry lie there."""
        return all((self._out / name).is_file() for name in entry.get("files", ()))

    def is_done(self, item: Item, further: Mapping[str, Any] | None = None) -> bool:
        """Whether the results of this very input lie there: the file has not changed, and they were not removed.

        Args:
            item: the input.
            further: values that its entry must have besides.
        """
        entry = self.entries.get(item.name)
        if entry is None or entry.get("state") != state_of(item) or entry.get("location") != place_of(item):
            return False
        if any(entry.get(key) != value for key, value in (further or {}).items()):
            return False
        return self.is_whole(entry)

    def forget(self, item: Item) -> None:
        """Remove what an input, in an earlier state or of another place, left: it is about to be done again."""
        entry = self.entries.pop(item.name, None)
        if entry is not None:
            self._append({"name": item.name, "removed": True})
            remove_results(self._out, entry)

    def add(self, item: Item, entry: Mapping[str, Any]) -> None:
        """Append what an input gave; once this returns, killing the process does not lose it.

        Raises:
            InputError: the disk is full.
        """
        whole = {"name": item.name, "stem": item.stem, "location": place_of(item), "state": state_of(item), **entry}
        self._append(whole)
        self.entries[item.name] = whole

    def _append(self, value: Mapping[str, Any]) -> None:
        if self._file is None:
            raise ValueError("the journal is not open")
        # One call, so that Ctrl-C comes before it or after it.
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); free the disk and go on") from error
        if written < len(line):
            raise InputError(f"{self.path} cannot be written (the disk is full); free it and go on")

    def __enter__(self) -> Self:
        for entry in self._stale:
            remove_results(self._out, entry)
        self._stale = []
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, self._whole_bytes)
            os.lseek(self._file, self._whole_bytes, os.SEEK_SET)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); remove it") from error
        if not self._whole_bytes:
            self._append({**self._settings, _SOURCES: self._sources})
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def head_of(out: Path) -> dict[str, Any] | None:
    """The first line of the journal in a folder: settings and ``sources``; None where no results of detect lie."""
    try:
        with (out / JOURNAL_FILE).open("rb") as file:
            head = _parsed(file.readline(_MOST_HEAD_BYTES))
    except OSError:
        return None
    return head if head is not None and {"version", "save", "redact"} <= head.keys() else None


def default_out(wanted: Path, sources: Sequence[str]) -> Path:
    """``wanted``, or with a number where results of other sources lie: ``photos_2`` beside those of other photos.

    Args:
        wanted: a folder that need not exist.
        sources: of :func:`stated_sources`.
    """
    out, number = wanted, 1
    while (head := head_of(out)) is not None and head.get(_SOURCES, sources) != list(sources):
        number += 1
        out = wanted.with_name(f"{wanted.name}_{number}")
    return out


def remove_results(out: Path, entry: Mapping[str, Any]) -> None:
    """Remove the files that an entry calls its own, as far as they lie within ``out``."""
    root = out.resolve()
    for name in entry.get("files", ()):
        path = out / str(name)
        if path.parent.resolve().is_relative_to(root) and path.is_file():
            path.unlink(missing_ok=True)


def place_of(item: Item) -> str:
    """The input's location as text that is the same from every working folder."""
    return os.path.abspath(item.location) if isinstance(item.location, Path) else item.text  # noqa: PTH100  # no links


def state_of(item: Item) -> list[int] | None:
    """Size and time of change of a file; None of anything else."""
    if not isinstance(item.location, Path):
        return None
    try:
        status = item.location.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


LIST_SUFFIXES = frozenset((".txt", ".lst", ".list"))
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
_KINDS = (
    "an image, a folder, a pattern (photos/*.jpg), a list of paths (.txt), an http(s) address, a video, rtsp://… or "
    "the number of a camera"
)


@dataclass(frozen=True)
class Sources:
    """What was found: images and videos in the order given.

    ``ignored``  what was in folders besides, by extension.
    ``results``  the number of folders with results of ``detect``, which were left out.
    ``failed``   what may hold faces and cannot be looked at: sub-folders, links, pipes; by name, with the reason.
    """

    images: list[Item]
    videos: list[Item]
    ignored: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    results: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)


def split_source(text: str) -> list[str]:
    """The single sources of ``source=…``: divided at commas, unless a file has exactly this name.

    What follows a comma in an http(s) address belongs to the address, unless it is an address itself, a path that
    exists, or comes after a space.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]") and not _kind(Path(text)):
        text = text[1:-1]
    if not text or _kind(Path(text).expanduser()):
        return [text] if text else []
    parts: list[str] = []
    for piece in text.split(","):
        if parts and re.match(r"https?://\S+$", parts[-1], re.IGNORECASE) and _continues(piece):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece.strip())
    return [part for part in parts if part]


def _continues(piece: str) -> bool:
    """Whether a piece behind a comma can only be more of the address before it."""
    alone = re.match(r"\s|[a-z][a-z0-9+.-]*://", piece, re.IGNORECASE) or not piece
    return not alone and not _kind(Path(piece).expanduser()) and not glob.glob(piece)  # noqa: PTH207  # any pattern


def default_name(parts: Sequence[str]) -> str:
    """A folder name for the results of these sources: the first one's, and how many there are beside it."""
    first = parts[0]
    if first.isdecimal():
        name = f"camera_{first}"
    elif "://" in first:
        name = PurePosixPath(name_of_url(first)).stem
    else:
        path = Path(first).expanduser()
        if not _kind(path) and glob.has_magic(first):
            path = _fixed_part(path)
        own = Path(os.path.realpath(path))
        name = own.name if _kind(own) == "folder" else own.stem
    name = safe(name) or "images"
    return name if len(parts) == 1 else f"{name}_and_{len(parts) - 1}_more"


def find_sources(parts: Sequence[str], out: Path | None = None) -> Sources:
    """All inputs that the sources stand for.

    Args:
        parts: of :func:`split_source`.
        out: the folder of the results: what was written there earlier is no input of a folder or pattern around it.

    Raises:
        InputError: a source that does not exist or is of no known kind, a list that cannot be read, or nothing found.
    """
    finder = _Finder(None if out is None else out.resolve())
    for part in parts:
        finder.add(part)
    images, repeated_images = distinct(finder.images)
    videos, repeated_videos = distinct(finder.videos)
    if not images and not videos:
        others = [f"{finder.ignored.total():,} other files"] if finder.ignored else []
        others += [next(iter(finder.failed.values()))] if finder.failed else []
        if finder.results:
            others.append("results of detect are left out unless their own folder is named, e.g. photos/images")
        within = f" ({'; '.join(others)})" if others else ""
        raise InputError(f"source={','.join(parts)}: no image in it{within}; give {_KINDS}")
    items = named([*images, *videos])
    repeated = repeated_images + repeated_videos
    return Sources(
        items[: len(images)], items[len(images) :], finder.ignored, repeated, len(finder.results), finder.failed
    )


class _Finder:
    """Collects inputs with the names that they would like to have, and a word to tell equal names apart."""

    def __init__(self, out: Path | None) -> None:
        self.images: list[tuple[Item, str]] = []
        self.videos: list[tuple[Item, str]] = []
        self.ignored: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.results: set[Path] = set()
        self._out = out
        self._journals: dict[Path, bool] = {}
        self._now = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")

    def add(self, text: str) -> None:
        text = re.sub(r"^/dev/video(?=\d{1,3}$)", "", text)
        if is_camera(text):
            self.videos.append((Item(int(text), f"camera_{text}_{self._now}"), ""))
        elif "://" in text:
            self._add_url(text)
        else:
            path = Path(text).expanduser()
            kind = _kind(path)
            if kind == "folder":
                self._add_folder(path)
            elif path.suffix.lower() in LIST_SUFFIXES and kind == "file":
                self._add_list(path)
            elif kind:
                self._add_file(path, path.name)
            elif glob.has_magic(text):
                self._add_pattern(path)
            else:
                raise InputError(f"source={text}: {_why_not(path)}{_near(path)}; give {_KINDS}")

    def _add_url(self, url: str) -> None:
        scheme = urlsplit(url).scheme.lower()
        name = name_of_url(url)
        suffix = PurePosixPath(name).suffix.lower()
        if scheme in ("http", "https"):
            is_video = suffix in VIDEO_SUFFIXES or suffix == ".m3u8"
            (self.videos if is_video else self.images).append((Item(url, name), urlsplit(url).hostname or ""))
        elif scheme in STREAM_SCHEMES:
            self.videos.append((Item(url, f"{name}_{self._now}"), ""))
        else:
            raise InputError(f"source={url}: {scheme}:// is not read; give http(s)://…, rtsp://… or a path")

    def _add_file(self, path: Path, name: str) -> None:
        label = Path(os.path.realpath(path.parent)).name
        (self.videos if _is_video(path) else self.images).append((Item(path, name), label))

    def _add_folder(self, folder: Path) -> None:
        label = folder.resolve().name
        for name in sorted(self._walk(folder, self._results(folder))):
            self._add_found(folder / name, name, label)

    def _add_found(self, path: Path, name: str, label: str) -> None:
        """What a folder or a pattern brings: images and videos by their suffix, the rest is counted."""
        kind, suffix = _kind(path), path.suffix.lower()
        if not kind or (kind != "file" and suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES):
            self._fail(path, name, _why_not(path) if not kind else "neither a file nor a folder")
        elif suffix in VIDEO_SUFFIXES:
            self.videos.append((Item(path, name), label))
        elif suffix in IMAGE_SUFFIXES:
            self.images.append((Item(path, name), label))
        else:
            self.ignored[suffix or "no extension"] += 1

    def _fail(self, path: Path, name: str, reason: str) -> None:
        """Take note of what may hold faces and cannot be looked at."""
        key = name if name not in self.failed else str(path)
        self.failed[key] = f"{path}: {reason}; mend it or leave it out"

    def _add_pattern(self, pattern: Path) -> None:
        folder = _fixed_part(pattern)
        wanted = pattern.parts[len(folder.parts) :]
        before = len(self.failed) + len(self.results)
        found = sorted(self._walk(folder, self._results(folder), wanted)) if _kind(folder) == "folder" else []
        if not found and before == len(self.failed) + len(self.results):
            raise InputError(f"source={pattern}: no file matches; give {_KINDS}")
        for name in found:
            self._add_found(folder / name, name, Path(os.path.realpath(folder)).name)

    def _add_list(self, path: Path) -> None:
        try:
            lines = decoded_text(path.read_bytes()).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise InputError(
                f"source={path}: the list cannot be read ({reason}); give one path or address a line"
            ) from error
        entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not entries:
            raise InputError(f"source={path}: the list is empty; write one path or address a line")
        for entry in entries:
            if "://" in entry:
                self._add_url(entry)
                continue
            # As in lists of labels (image_lists.py): relative to the list or to the working folder, slashes of Windows.
            written = [Path(text).expanduser() for text in dict.fromkeys((entry, entry.replace("\\", "/")))]
            places = [(base / own, own) for own in written for base in (path.parent, Path())]
            # One that is not there is told with the others that cannot be read.
            place, own = next((found for found in places if os.path.exists(found[0])), places[0])  # noqa: PTH110, no error in a locked folder
            within = not own.is_absolute() and ".." not in own.parts
            self._add_file(place, own.as_posix() if within else own.name)

    def _walk(
        self,
        folder: Path,
        leave_out: list[Path],
        wanted: Sequence[str] | None = None,
        within: tuple[str, ...] = (),
        seen: frozenset[tuple[int, int]] = frozenset(),
    ) -> Iterator[str]:
        """Names of all files below a folder, or of those that a pattern means; hidden ones and results are left out.

        Args:
            folder, leave_out: where; folders that are not entered.
            wanted: the parts of the pattern, from the folder where the walk begins.
            within, seen: the parts of ``folder`` from there, and the folders above it.
        """
        name = "/".join(within)
        try:
            status = folder.stat()
            place = (status.st_dev, status.st_ino)
            if place in seen:
                self._fail(folder, name, "a link back to a folder above it")
                return
            if folder.resolve() in leave_out:
                self._holds_results(folder)
                return
            with os.scandir(folder) as entries:
                listed = [(entry.name, _is_folder(entry)) for entry in entries]
        except OSError as error:
            if not within:
                raise InputError(
                    f"source={folder} cannot be read ({error.strerror}); change its permissions"
                ) from error
            self._fail(folder, name, f"the folder cannot be read ({error.strerror})")
            return
        for entry, is_folder in listed:
            path, own = folder / entry, (*within, entry)
            if wanted is None and entry.startswith("."):
                self._ignore_hidden(path, is_folder)
            elif not is_folder:
                if wanted is None or _matches(own, wanted):
                    yield "/".join(own)
            elif entry in RESULT_FOLDERS and self._holds_results(folder):
                continue
            elif wanted is None or _matches(own, wanted, or_holds=True):
                yield from self._walk(path, leave_out, wanted, own, seen | {place})
            elif _matches(own, wanted):
                self.ignored["folder not entered"] += 1

    def _ignore_hidden(self, path: Path, is_folder: bool) -> None:
        """Count what may hold faces; a file that a Mac adds to another one (``._a.jpg``) does not."""
        if is_folder:
            self.ignored["hidden folder"] += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not path.name.startswith("._"):
            self.ignored[f"hidden {path.suffix.lower()}"] += 1

    def _holds_results(self, folder: Path) -> bool:
        """Whether results of an earlier run lie in a folder; it is counted then."""
        place = folder.resolve()
        if place not in self._journals:
            self._journals[place] = head_of(place) is not None
        if self._journals[place]:
            self.results.add(place)
        return self._journals[place]

    def _results(self, folder: Path) -> list[Path]:
        """Where results lie that a search of ``folder`` must not take for inputs."""
        if self._out is None:
            return []
        start = folder.resolve()
        if not start.is_relative_to(self._out):
            return [self._out]
        # A folder among the results is searched where it is named itself.
        places = [self._out / name for name in RESULT_FOLDERS]
        return [] if any(start.is_relative_to(place) for place in places) else places


def _fixed_part(pattern: Path) -> Path:
    """The folder that everything which matches lies in."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _matches(parts: Sequence[str], wanted: Sequence[str], *, or_holds: bool = False) -> bool:
    """Whether a pattern means a path, part by part as a shell does; ``or_holds``: or something below it.

    ``**`` stands for any number of folders. Hidden names are meant by parts that begin with a dot alone.
    """
    if not parts:
        return bool(wanted) if or_holds else all(part == "**" for part in wanted)
    if not wanted:
        return False
    hidden = parts[0].startswith(".")
    if wanted[0] == "**":
        after = _matches(parts, wanted[1:], or_holds=or_holds)
        return after or (not hidden and _matches(parts[1:], wanted, or_holds=or_holds))
    fits = fnmatch.fnmatch(parts[0], wanted[0]) and (not hidden or wanted[0].startswith("."))
    return fits and _matches(parts[1:], wanted[1:], or_holds=or_holds)


def _kind(path: Path) -> str:
    """``folder``, ``file`` or ``other`` (a device, a pipe); "" where nothing is, or nothing that can be looked at."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Links are followed; one that leads nowhere is none."""
    return _kind(Path(entry.path)) == "folder" if entry.is_symlink() else entry.is_dir(follow_symlinks=False)


def _why_not(path: Path) -> str:
    """Why there is nothing to look at."""
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"it cannot be read ({error.strerror})"
        if path.is_symlink():
            return f"a link to {os.readlink(path)}, which is not there"  # noqa: PTH115  # as it is written
    except ValueError:
        pass
    return "there is no such file or folder"


def _is_video(path: Path) -> bool:
    """By the suffix; where it says nothing, whatever is no image may be one: opening it as a video will tell."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
        return suffix in VIDEO_SUFFIXES
    if (kind := _kind(path)) != "file":
        return kind == "other"  # /dev/video0, a pipe
    if not path.stat().st_size:
        return False
    from PIL import Image

    try:
        with Image.open(path):
            return False
    except Exception:  # Pillow's plugins raise almost anything
        return True


def _near(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.name != path.name]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f", did you mean {path.parent / near[0]}?" if near else ""


MOST_REDIRECTS = 5
_CONNECT_SECONDS, _SILENT_SECONDS = 10.0, 20.0
_CHUNK_BYTES = 1 << 16


def fetch_bytes(url: str, max_bytes: int, seconds: float, stop: threading.Event | None = None) -> bytes:
    """What lies at an address.

    Args:
        url: ``http://`` or ``https://``.
        max_bytes: more are not taken, whether they are announced or just keep coming.
        seconds: for everything, from the first redirect to the last byte.
        stop: once it is set, the next piece is the last.

    Raises:
        InputError: no answer, an error page, HTML in place of an image, too many bytes or redirects, or too slow.
    """
    import http.client

    import requests
    import urllib3.exceptions

    # What reading the raw body raises beside requests' own.
    broken = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
    end = time.monotonic() + seconds
    shown = without_passwords(url)
    with requests.Session() as session:
        session.max_redirects = MOST_REDIRECTS
        try:
            timeout = (min(_CONNECT_SECONDS, seconds), min(_SILENT_SECONDS, seconds))
            headers = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "fanet-lightning"}
            with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                _check_answer(response, shown, max_bytes)
                return _received(response, shown, max_bytes, end, seconds, stop)
        except broken as error:
            raise InputError(f"{shown} {_reason(error)}; look at the address and the network") from error


def _check_answer(response: "requests.Response", url: str, max_bytes: int) -> None:
    status = response.status_code
    if status != HTTPStatus.OK:
        try:
            text = f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            text = str(status)
        raise InputError(f"{url} answers {text}; look at the address")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise InputError(f"{url} is an HTML page, not an image; give the address of the image itself")
    announced = response.headers.get("Content-Length", "")
    if announced.strip().isdecimal() and int(announced) > max_bytes:
        megabytes = f"{int(announced) / 1e6:,.0f}"
        raise InputError(f"{url} has {megabytes} MB, more than max_download_mb={max_bytes / 1e6:g}; raise it")


def _received(
    response: "requests.Response", url: str, max_bytes: int, end: float, seconds: float, stop: threading.Event | None
) -> bytes:
    content = bytearray()
    # A read of many bytes waits for all of them, and a server that drips would hold it beyond every deadline.
    raw: Any = response.raw
    piece_of = getattr(raw, "read1", None) or (lambda amount: raw.read(min(amount, 256)))
    while piece := piece_of(_CHUNK_BYTES):
        content += piece
        if len(content) > max_bytes:
            raise InputError(f"{url} has more than max_download_mb={max_bytes / 1e6:g}; raise it")
        if time.monotonic() > end:
            raise InputError(f"{url} is not here after download_seconds={seconds:g}; raise it")
        if stop is not None and stop.is_set():
            raise InputError(f"{url} was given up")
    announced = response.headers.get("Content-Length", "")
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    if announced.strip().isdecimal() and not encoded and len(content) < int(announced):
        raise InputError(f"{url} breaks off after {len(content):,} of {int(announced):,} bytes; try again")
    if content[:512].lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise InputError(f"{url} is an HTML page, not an image; give the address of the image itself")
    return bytes(content)


def _reason(error: BaseException) -> str:
    import requests

    text = repr(error)
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return f"redirects more than {MOST_REDIRECTS} times"
    if isinstance(error, requests.exceptions.SSLError):
        return "has a certificate that is not trusted"
    if "timed out" in text or isinstance(error, requests.exceptions.Timeout):
        return "does not answer in time"
    if "NameResolution" in text or "Name or service" in text or "getaddrinfo" in text:
        return "cannot be reached: its name is not resolved"
    if "refused" in text:
        return "cannot be reached: the connection is refused"
    if "IncompleteRead" in text or "reset" in text or "aborted" in text or "RemoteDisconnected" in text:
        return "breaks off"
    return f"cannot be fetched ({first_line(error)})"


# Larger images are decoded at their turn, not ahead of it, so that few of them are in memory at a time.
MOST_PIXELS_AHEAD = 2**24
# What the largest image that is decoded takes as an uncompressed file, twice over.
LARGEST_FILE_BYTES = 2**31


@dataclass(frozen=True)
class Limits:
    """Of a download: bytes, and seconds for all of it."""

    max_download_bytes: int = 50_000_000
    download_seconds: float = 60.0


class Loaded(NamedTuple):
    """``image_rgb`` (H, W, 3) uint8, upright; None for a large one, which :func:`decoded` makes of ``content``.

    ``note``: what is not obvious, e.g. that it is the first frame of an animation. ``profile``: of the pixels' colors,
    ICC; empty for sRGB.
    """

    image_rgb: Image8 | None
    content: bytes
    note: str
    profile: bytes = b""


def load(item: Item, limits: Limits, stop: threading.Event | None = None) -> Loaded:
    """Read or fetch an image and, unless it is very large, decode it. Called in threads of their own.

    Args:
        item: an image.
        limits: of downloads.
        stop: once it is set, nobody waits for a download any more.

    Raises:
        InputError: it cannot be read, fetched or decoded.
    """
    content = _content(item, limits, stop)
    note, pixels, profile = _glance(content)
    if pixels > MOST_PIXELS_AHEAD:
        return Loaded(None, content, note, profile)
    return Loaded(decode_image_rgb(content, item.text), b"", note, profile)


def decoded(loaded: Loaded, item: Item) -> Image8:
    """The pixels, (H, W, 3) uint8.

    Raises:
        InputError: a large image that cannot be decoded.
    """
    return decode_image_rgb(loaded.content, item.text) if loaded.image_rgb is None else loaded.image_rgb


def _content(item: Item, limits: Limits, stop: threading.Event | None) -> bytes:
    if not isinstance(item.location, Path):
        return fetch_bytes(str(item.location), limits.max_download_bytes, limits.download_seconds, stop)
    try:
        if item.location.is_dir():
            raise UnreadableImage(item.location, "it is a folder")
        size = item.location.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise UnreadableImage(item.location, f"{size:,} bytes are more than any image that is decoded here")
        return item.location.read_bytes()
    except OSError as error:
        raise UnreadableImage(item.location, error.strerror or type(error).__name__) from error


def _glance(content: bytes) -> tuple[str, int, bytes]:
    """A note, the number of pixels and the color profile, from the file's head; nothing where decoding will say what
    is wrong."""
    from PIL import Image

    if is_heic(content):
        heic_plug_in()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                pixels = image.size[0] * image.size[1]
                profile = color_profile(image)
                if content[:3] == JPEG_START:
                    return "", pixels, profile  # a camera's preview pictures are no animation
                frames = int(getattr(image, "n_frames", 1))
                kind = "page" if image.format == "TIFF" else "frame"
                return (f"the first of {frames} {kind}s" if frames > 1 else ""), pixels, profile
    except Exception:  # Pillow's plugins raise almost anything on damaged files
        return "", 0, b""
