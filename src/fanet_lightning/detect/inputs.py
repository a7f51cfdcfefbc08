"""Inputs of detect: what source= means, and reading or downloading one image."""

import datetime
import difflib
import errno
import fnmatch
import glob
import io
import os
import re
import stat
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import requests
import urllib3.exceptions
from PIL import Image

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import IMAGE_EXTENSIONS, decoded_text
from fanet_lightning.data.images import (
    JPEG_START,
    Image8,
    UnreadableImage,
    color_profile,
    decode_image_rgb,
    heic_plug_in,
    is_heic,
)
from fanet_lightning.detect.journal import read_head

# HEIC is read where its plug-in is installed; without it, such a file is an image that cannot be read.
IMAGE_SUFFIXES = IMAGE_EXTENSIONS | {".heic", ".heif", ".hif"}
VIDEO_SUFFIXES = frozenset(
    (
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
        ".3gp", ".ogv",
    )
)  # fmt: skip
# In the folder of the results: images, written videos, lines per frame, texts, crops.
RESULT_FOLDERS = ("images", "videos", "frames", "txt", "crops")
JOURNAL_FILE = "done.jsonl"
# What can be saved.
KINDS = ("images", "json", "txt", "crops")
_LONGEST_NAME = 100
_LIST_SUFFIXES = frozenset((".txt", ".lst", ".list"))
_STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
_ADVICE = (
    "give an image, a folder, a pattern (photos/*.jpg), a list of paths (.txt), an http(s) address, a video, rtsp://… "
    "or the number of a camera"
)


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
        """The location for messages, without passwords."""
        if isinstance(self.location, int):
            return f"camera {self.location}"
        return str(self.location) if isinstance(self.location, Path) else without_passwords(self.location)

    @property
    def place(self) -> str:
        """The location as text that is the same from every working folder."""
        if isinstance(self.location, Path):
            return os.path.abspath(self.location)  # noqa: PTH100  # links are not followed: two names, two inputs
        return self.text

    @property
    def state(self) -> list[int] | None:
        """Size and time of change of a file; None of anything else."""
        try:
            status = self.location.stat() if isinstance(self.location, Path) else None
        except OSError:
            return None
        return None if status is None else [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Sources:
    """What was found: images and videos in the order given.

    ``ignored``   what was in folders besides, by extension.
    ``repeated``  how many inputs were given more than once.
    ``results``   the number of folders with results of ``detect``, which were left out.
    ``failed``    what may hold faces and cannot be looked at: sub-folders, links, pipes; by name, with the reason.
    """

    images: list[Item]
    videos: list[Item]
    ignored: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    results: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)


def without_passwords(source: str | Path) -> str:
    """Addresses, also within a text, without the name and password that those of cameras tend to hold."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", str(source))


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
        alone = re.match(r"\s|[a-z][a-z0-9+.-]*://|$", piece, re.IGNORECASE)
        after_address = parts and re.match(r"https?://\S+$", parts[-1], re.IGNORECASE)
        if after_address and not alone and not _kind(Path(piece).expanduser()) and not glob.glob(piece):  # noqa: PTH207
            parts[-1] += f",{piece}"
        else:
            parts.append(piece.strip())
    return [part for part in parts if part]


def _location(part: str) -> Path | str | int:
    part = re.sub(r"^/dev/video(?=\d{1,3}$)", "", part)
    if part.isdecimal() and len(part) < 4:
        return int(part)
    return part if "://" in part else Path(part).expanduser()


def stated_sources(parts: Sequence[str]) -> list[str]:
    """The sources by names that are the same from every working folder, in order of names, without passwords."""
    return sorted({Item(_location(part), part).place for part in parts})


def default_name(parts: Sequence[str]) -> str:
    """A folder name for the results of these sources: the first one's, and how many there are with it."""
    first = _location(parts[0])
    if isinstance(first, int):
        name = f"camera_{first}"
    elif isinstance(first, str):
        name = PurePosixPath(_name_of_url(first)).stem
    else:
        path = _fixed_part(first) if not _kind(first) and glob.has_magic(parts[0]) else first
        own = Path(os.path.realpath(path))
        name = own.name if _kind(own) == "folder" else own.stem
    name = _safe(name) or "images"
    return name if len(parts) == 1 else f"{name}_and_{len(parts) - 1}_more"


def default_out(wanted: Path, sources: Sequence[str]) -> Path:
    """``wanted``, or with a number where it holds results of other sources: ``photos_2`` next to those of other photos.

    Args:
        wanted: a folder that need not exist.
        sources: of :func:`stated_sources`.
    """
    out, number = wanted, 1
    while (head := _results_head(out)) is not None and head.get("sources", sources) != list(sources):
        number += 1
        out = wanted.with_name(f"{wanted.name}_{number}")
    return out


def _results_head(folder: Path) -> dict[str, Any] | None:
    """Settings and sources of the results in a folder; None where there are none of detect."""
    head = read_head(folder / JOURNAL_FILE)
    return head if head is not None and {"version", "save", "redact"} <= head.keys() else None


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
    images, videos = finder.images, finder.videos
    if not images and not videos:
        others = [f"{finder.ignored.total():,} other files"] if finder.ignored else []
        others += [next(iter(finder.failed.values()))] if finder.failed else []
        if finder.results:
            others.append("results of detect are left out unless their own folder is named, e.g. photos/images")
        within = f" ({'; '.join(others)})" if others else ""
        raise InputError(f"source={','.join(parts)}: no image in it{within}; {_ADVICE}")
    items = _named([*images.values(), *videos.values()])
    return Sources(
        items[: len(images)], items[len(images) :], finder.ignored, finder.repeated, len(finder.results), finder.failed
    )


def _named(found: list[tuple[Item, str]]) -> list[Item]:
    """Unique names and stems. Equal ones are told apart by their folder, suffix, or a number, in this order."""
    counts = Counter(item.name.casefold() for item, _ in found)
    names: set[str] = set()
    unique = []
    for item, label in found:
        name = f"{label}/{item.name}" if label and counts[item.name.casefold()] > 1 else item.name
        suffix = PurePosixPath(name).suffix
        unique.append(replace(item, name=_free(name.removesuffix(suffix), suffix, names)))
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


def _name_of_url(url: str) -> str:
    parts = urlsplit(url)
    return _safe(PurePosixPath(unquote(parts.path)).name) or _safe(parts.hostname or "") or "image"


def _safe(name: str) -> str:
    """Without what some file system does not take, and not longer than all of them take."""
    cleaned = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|=]+', "_", name).strip(" .")
    suffix = PurePosixPath(cleaned).suffix[:10]
    return cleaned if len(cleaned) <= _LONGEST_NAME else cleaned[: _LONGEST_NAME - len(suffix)] + suffix


class _Finder:
    """Collects inputs by place, with the names that they would like to have, and a word to tell equal names apart."""

    def __init__(self, out: Path | None) -> None:
        self.images: dict[str, tuple[Item, str]] = {}
        self.videos: dict[str, tuple[Item, str]] = {}
        self.repeated = 0
        self.ignored: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.results: set[Path] = set()
        self._out = out
        self._now = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")

    def add(self, text: str) -> None:
        location = _location(text)
        if isinstance(location, int):
            self._take(Item(location, f"camera_{location}_{self._now}"), "", is_video=True)
        elif isinstance(location, str):
            self._add_url(location)
        elif (kind := _kind(location)) == "folder":
            self._add_all(location, None)
        elif location.suffix.lower() in _LIST_SUFFIXES and kind == "file":
            self._add_list(location)
        elif kind:
            self._add_file(location, location.name)
        elif glob.has_magic(text):
            folder = _fixed_part(location)
            before = len(self.failed) + len(self.results)
            found = self._add_all(folder, location.parts[len(folder.parts) :]) if _kind(folder) == "folder" else 0
            if not found and before == len(self.failed) + len(self.results):
                raise InputError(f"source={text}: no file matches; {_ADVICE}")
        else:
            around = location.parent
            names = [path.name for path in around.glob("*") if path.name != location.name]
            near = difflib.get_close_matches(location.name, names, n=1)
            hint = f", did you mean {around / near[0]}?" if near else ""
            raise InputError(f"source={text}: {_why_not(location)}{hint}; {_ADVICE}")

    def _take(self, item: Item, label: str, *, is_video: bool) -> None:
        items = self.videos if is_video else self.images
        key = str(item.location) if isinstance(item.location, str) else item.place
        self.repeated += key in items
        items.setdefault(key, (item, label))

    def _add_url(self, url: str) -> None:
        scheme, name = urlsplit(url).scheme.lower(), _name_of_url(url)
        if scheme in ("http", "https"):
            is_video = PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES | {".m3u8"}
            self._take(Item(url, name), urlsplit(url).hostname or "", is_video=is_video)
        elif scheme in _STREAM_SCHEMES:
            self._take(Item(url, f"{name}_{self._now}"), "", is_video=True)
        else:
            raise InputError(f"source={url}: {scheme}:// is not read; give http(s)://…, rtsp://… or a path")

    def _add_file(self, path: Path, name: str) -> None:
        self._take(Item(path, name), Path(os.path.realpath(path.parent)).name, is_video=_is_video(path))

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
            # As in lists of labels: relative to the list or to the working folder, slashes of Windows.
            written = [Path(text).expanduser() for text in dict.fromkeys((entry, entry.replace("\\", "/")))]
            places = [(base / own, own) for own in written for base in (path.parent, Path())]
            # One that is not there is told with the others that cannot be read.
            place, own = next((found for found in places if os.path.exists(found[0])), places[0])  # noqa: PTH110, no error in a locked folder
            within = not own.is_absolute() and ".." not in own.parts
            self._add_file(place, own.as_posix() if within else own.name)

    def _add_all(self, folder: Path, wanted: Sequence[str] | None) -> int:
        """What is in a folder or matches a pattern in it: images and videos by their suffix, the rest is counted."""
        label = Path(os.path.realpath(folder)).name
        names = sorted(self._walk(folder, wanted))
        for name in names:
            path = folder / name
            kind, suffix = _kind(path), path.suffix.lower()
            if not kind or (kind != "file" and suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES):
                self._fail(path, name, "neither a file nor a folder" if kind else _why_not(path))
            elif suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                self._take(Item(path, name), label, is_video=suffix in VIDEO_SUFFIXES)
            else:
                self.ignored[suffix or "no extension"] += 1
        return len(names)

    def _fail(self, path: Path, name: str, reason: str) -> None:
        """Take note of what may hold faces and cannot be looked at."""
        self.failed[name if name not in self.failed else str(path)] = f"{path}: {reason}; fix it or leave it out"

    def _walk(
        self,
        folder: Path,
        wanted: Sequence[str] | None,
        within: tuple[str, ...] = (),
        seen: frozenset[tuple[int, int]] = frozenset(),
    ) -> Iterator[str]:
        """Names of all files below a folder, or of those that match a pattern; hidden ones and results are left out.

        ``within``: the parts of ``folder`` from where the walk began; ``seen``: the folders above it.
        """
        try:
            status = folder.stat()
            place = (status.st_dev, status.st_ino)
            if place in seen:
                self._fail(folder, "/".join(within), "a link back to a folder above it")
                return
            listed = list(folder.iterdir())
        except OSError as error:
            if not within:
                raise InputError(
                    f"source={folder} cannot be read ({error.strerror}); change its permissions"
                ) from error
            self._fail(folder, "/".join(within), f"the folder cannot be read ({error.strerror})")
            return
        for path in listed:
            own, is_folder = (*within, path.name), _kind(path) == "folder"
            if wanted is None and path.name.startswith("."):
                # Counted where it may hold faces; a file that a Mac adds to another one (``._a.jpg``) does not.
                if is_folder:
                    self.ignored["hidden folder"] += 1
                elif path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not path.name.startswith("._"):
                    self.ignored[f"hidden {path.suffix.lower()}"] += 1
            elif not is_folder:
                if wanted is None or _matches(own, wanted):
                    yield "/".join(own)
            elif self._is_results(path.resolve()):
                continue
            elif wanted is None or _matches(own, wanted, or_holds=True):
                yield from self._walk(path, wanted, own, seen | {place})
            elif _matches(own, wanted):
                self.ignored["folder not entered"] += 1

    def _is_results(self, folder: Path) -> bool:
        """Whether a run of detect has written a folder, or this one will; the folder that holds it is counted then."""
        around = folder.parent
        if folder.name not in RESULT_FOLDERS or (around != self._out and _results_head(around) is None):
            return False
        self.results.add(around)
        return True


def _fixed_part(pattern: Path) -> Path:
    """The folder that contains everything which matches."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _matches(parts: Sequence[str], wanted: Sequence[str], *, or_holds: bool = False) -> bool:
    """Whether a path matches a pattern, part by part as in a shell; ``or_holds``: or something below it may.

    ``**`` stands for any number of folders. Hidden names match parts that begin with a dot alone.
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
    try:
        with Image.open(path):
            return False
    except Exception:  # Pillow's plugins raise almost anything
        return True


MOST_REDIRECTS = 5
_SILENT_SECONDS = 20.0
_REASONS = (
    (requests.exceptions.TooManyRedirects, f"redirects more than {MOST_REDIRECTS} times"),
    (requests.exceptions.SSLError, "has a certificate that is not trusted"),
    ((requests.exceptions.Timeout, urllib3.exceptions.TimeoutError), "does not answer in time"),
    (urllib3.exceptions.ProtocolError, "breaks off"),
)


def fetch_bytes(url: str, max_bytes: int, seconds: float) -> bytes:
    """Download what is at an ``http(s)://`` address.

    Args:
        url: the address; its password is left out of messages.
        max_bytes: more are refused, whether they are announced or just keep coming.
        seconds: for everything, from the first redirect to the last byte.

    Raises:
        InputError: no answer, an error page, HTML in place of an image, too many bytes or redirects, or too slow.
    """
    shown, end = without_passwords(url), time.monotonic() + seconds
    headers = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "fanet-lightning"}
    content = bytearray()
    try:
        with requests.Session() as session:
            session.max_redirects = MOST_REDIRECTS
            timeout = min(_SILENT_SECONDS, seconds)
            response = session.get(url, headers=headers, stream=True, timeout=timeout)
            if response.status_code != HTTPStatus.OK:
                raise InputError(f"{shown} answers {response.status_code} {response.reason}; look at the address")
            if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
                raise InputError(f"{shown} is an HTML page, not an image; give the address of the image itself")
            # A read of many bytes would wait for all of them, and a server that drips hold it beyond every deadline.
            while piece := response.raw.read1(1 << 16):
                content += piece
                if len(content) > max_bytes:
                    raise InputError(f"{shown} has more than max_download_mb={max_bytes / 1e6:g}; raise it")
                if time.monotonic() > end:
                    raise InputError(f"{shown} is not here after download_seconds={seconds:g}; raise it")
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = next((text for kinds, text in _REASONS if isinstance(error, kinds)), None)
        # urllib3 ends its chain of causes with what the system says.
        reason = reason or f"cannot be reached ({first_line(error).rpartition(': ')[2].rstrip(chr(39) + ')')})"
        raise InputError(f"{shown} {reason}; look at the address and the network") from error
    return bytes(content)


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


def load(item: Item, limits: Limits) -> Loaded:
    """Read or download an image and, unless it is very large, decode it. Called in threads of their own.

    Raises:
        InputError: it cannot be read, downloaded or decoded.
    """
    if not isinstance(item.location, Path):
        content = fetch_bytes(str(item.location), limits.max_download_bytes, limits.download_seconds)
    else:
        try:
            if (size := item.location.stat().st_size) > LARGEST_FILE_BYTES:
                raise UnreadableImage(item.location, f"{size:,} bytes are more than any image that is decoded here")
            content = item.location.read_bytes()
        except OSError as error:
            raise UnreadableImage(item.location, error.strerror or type(error).__name__) from error
    note, pixels, profile = glance(content)
    if pixels > MOST_PIXELS_AHEAD:
        return Loaded(None, content, note, profile)
    return Loaded(decode_image_rgb(content, item.text), b"", note, profile)


def decoded(loaded: Loaded, item: Item) -> Image8:
    """The pixels, (H, W, 3) uint8.

    Raises:
        InputError: a large image that cannot be decoded.
    """
    return decode_image_rgb(loaded.content, item.text) if loaded.image_rgb is None else loaded.image_rgb


def glance(content: bytes) -> tuple[str, int, bytes]:
    """A note, the number of pixels and the color profile, from the file's head; nothing of a damaged one."""
    if is_heic(content):
        heic_plug_in()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                # A camera's preview in a JPEG is no animation.
                frames = 1 if content[:3] == JPEG_START else int(getattr(image, "n_frames", 1))
                kind = "page" if image.format == "TIFF" else "frame"
                note = f"the first of {frames} {kind}s" if frames > 1 else ""
                return note, image.size[0] * image.size[1], color_profile(image)
    except Exception:  # Pillow's plugins raise almost anything on damaged files; decoding says what is wrong
        return "", 0, b""
