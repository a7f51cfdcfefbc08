"""Inputs of detect: what source= means, and reading or downloading one image."""

import datetime
import glob
import io
import os
import re
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

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import IMAGE_EXTENSIONS, lines_of
from fanet_lightning.data.images import (
    JPEG_START,
    Image8,
    UnreadableImage,
    color_profile,
    decode_image_rgb,
    heic_plug_in,
    is_heic,
    read_image_frame,
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
        return f"camera {self.location}" if isinstance(self.location, int) else without_passwords(self.location)

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

    ``ignored``  what was in folders besides, by extension.
    ``failed``   sub-folders that cannot be looked at, by name, with the reason.
    """

    images: list[Item]
    videos: list[Item]
    ignored: Mapping[str, int] = field(default_factory=dict)
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
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if _exists(text):
        return [text]
    parts: list[str] = []
    for piece in text.split(","):
        within = parts and re.match(r"https?://\S+$", parts[-1], re.IGNORECASE) and re.match(r"\S", piece)
        if within and "://" not in piece and not _exists(piece) and not glob.glob(piece):  # noqa: PTH207
            parts[-1] += f",{piece}"
        else:
            parts.append(piece.strip())
    return [part for part in parts if part]


def _exists(text: str) -> bool:
    return bool(text) and os.path.exists(Path(text).expanduser())  # noqa: PTH110  # no error in a locked folder


def _location(part: str) -> Path | str | int:
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
        own = Path(os.path.realpath(first if _exists(parts[0]) else _fixed_part(first)))
        name = own.name if own.is_dir() else own.stem
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
    # By place: the input with the name that it would like to have, a word to tell equal names apart, what it is.
    found: dict[str, tuple[Item, str, bool]] = {}
    ignored: Counter[str] = Counter()
    failed: dict[str, str] = {}
    for part in parts:
        location = _location(part)
        is_folder = isinstance(location, Path) and _exists(part) and location.is_dir()
        if isinstance(location, Path) and (is_folder or (glob.has_magic(part) and not _exists(part))):
            folder = location if is_folder else _fixed_part(location)
            label = Path(os.path.realpath(folder)).name
            names = _walk(folder, out, failed) if is_folder else _matches(folder, location, out)
            for name in sorted(names):
                suffix = PurePosixPath(name).suffix.lower()
                if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                    item = Item(folder / name, name)
                    found.setdefault(item.place, (item, label, suffix in VIDEO_SUFFIXES))
                else:
                    ignored[suffix or "no extension"] += 1
        else:
            for item, label, is_video in _stated(part, location):
                place = item.place if isinstance(item.location, Path) else str(item.location)
                found.setdefault(place, (item, label, is_video))
    if not found:
        others = [f"{ignored.total():,} other files"] if ignored else []
        others += list(failed.values())[:1]
        within = f" ({'; '.join(others)})" if others else ""
        raise InputError(f"source={','.join(parts)}: no image in it{within}; {_ADVICE}")
    inputs = sorted(found.values(), key=lambda entry: entry[2])  # images first
    items = _named([(item, label) for item, label, _ in inputs])
    count = sum(not is_video for *_, is_video in inputs)
    return Sources(items[:count], items[count:], ignored, failed)


def _stated(text: str, location: Path | str | int) -> Iterator[tuple[Item, str, bool]]:
    """What a source that is neither a folder nor a pattern stands for: see :func:`find_sources`."""
    now = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
    if isinstance(location, int):
        yield Item(location, f"camera_{location}_{now}"), "", True
    elif isinstance(location, str):
        scheme, name = urlsplit(location).scheme.lower(), _name_of_url(location)
        if scheme in _STREAM_SCHEMES:
            yield Item(location, f"{name}_{now}"), "", True
        elif scheme in ("http", "https"):
            is_video = PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES | {".m3u8"}
            yield Item(location, name), urlsplit(location).hostname or "", is_video
        else:
            raise InputError(f"source={location}: {scheme}:// is not read; give http(s)://…, rtsp://… or a path")
    elif not _exists(text):
        raise InputError(f"source={text}: there is no such file or folder; {_ADVICE}")
    elif location.suffix.lower() in _LIST_SUFFIXES:
        yield from _listed(location)
    else:
        yield _of_file(location, location.name)


def _of_file(path: Path, name: str) -> tuple[Item, str, bool]:
    """By the suffix; where it says nothing, whatever is no image may be a video: opening it as one will tell."""
    is_video = path.suffix.lower() in VIDEO_SUFFIXES
    if not is_video and path.suffix.lower() not in IMAGE_SUFFIXES:
        try:
            read_image_frame(path)
        except UnreadableImage:
            is_video = True
    return Item(path, name), Path(os.path.realpath(path.parent)).name, is_video


def _listed(path: Path) -> Iterator[tuple[Item, str, bool]]:
    lines = lines_of(path, f"the list source={path}", "give one path or address a line")
    for entry in (line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")):
        if "://" in entry:
            yield from _stated(entry, entry)
            continue
        # As in lists of labels: relative to the list or to the working folder, slashes of Windows. One that is not
        # there is told with the others that cannot be read.
        own = Path(entry if _exists(entry) else entry.replace("\\", "/")).expanduser()
        near = path.parent / own
        within = not own.is_absolute() and ".." not in own.parts
        yield _of_file(near if _exists(str(near)) or not _exists(str(own)) else own,
                       own.as_posix() if within else own.name)  # fmt: skip


def _walk(folder: Path, out: Path | None, failed: dict[str, str]) -> Iterator[str]:
    """Names of all files below a folder, also behind links; hidden ones and results are left out."""

    def fail(error: OSError) -> None:
        failed[os.path.relpath(error.filename, folder)] = f"{error.filename} cannot be read ({error.strerror})"

    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        here, kept = Path(root), []
        for name in sorted(folders):
            place = os.path.realpath(here / name)
            if not name.startswith(".") and place not in seen and not _is_results(here / name, out):
                kept.append(name)
                seen.add(place)  # once, however many links lead there
        folders[:] = kept
        yield from ((here / name).relative_to(folder).as_posix() for name in names if not name.startswith("."))


def _matches(folder: Path, pattern: Path, out: Path | None) -> Iterator[str]:
    """Names of the files in a folder that match a pattern, as in a shell; results are left out."""
    wanted = str(Path(*pattern.parts[len(folder.parts) :]))
    found = glob.glob(wanted, root_dir=folder, recursive=True)  # noqa: PTH207  # without hidden ones
    if not found:
        raise InputError(f"source={pattern}: no file matches; {_ADVICE}")
    for name in found:
        parents = [folder / parent for parent in PurePosixPath(name).parents if parent.name]
        if not (folder / name).is_dir() and not any(_is_results(parent, out) for parent in parents):
            yield name


def _is_results(folder: Path, out: Path | None) -> bool:
    """Whether a run of detect has written a folder, or this one will, into ``out``."""
    if folder.name not in RESULT_FOLDERS and not folder.is_symlink():
        return False
    folder = folder.resolve()
    is_own = out is not None and folder.parent == out.resolve()
    return folder.name in RESULT_FOLDERS and (is_own or _results_head(folder.parent) is not None)


def _named(found: Sequence[tuple[Item, str]]) -> list[Item]:
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


def _fixed_part(pattern: Path) -> Path:
    """The folder that contains everything which matches."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _name_of_url(url: str) -> str:
    parts = urlsplit(url)
    return _safe(PurePosixPath(unquote(parts.path)).name) or _safe(parts.hostname or "") or "image"


def _safe(name: str) -> str:
    """Without what some file system does not take, and not longer than all of them take."""
    cleaned = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|=]+', "_", name).strip(" .")
    suffix = PurePosixPath(cleaned).suffix[:10]
    return cleaned if len(cleaned) <= _LONGEST_NAME else cleaned[: _LONGEST_NAME - len(suffix)] + suffix


_SILENT_SECONDS = 20.0


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
        with requests.get(url, headers=headers, stream=True, timeout=min(_SILENT_SECONDS, seconds)) as response:
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
        reason = type(error).__name__  # ConnectTimeout, SSLError, TooManyRedirects …
        raise InputError(f"{shown} cannot be fetched ({reason}); look at the address and the network") from error
    return bytes(content)


@dataclass(frozen=True)
class Limits:
    """Of a download: bytes, and seconds for all of it."""

    max_download_bytes: int = 50_000_000
    download_seconds: float = 60.0


class Loaded(NamedTuple):
    """``image_rgb`` (H, W, 3) uint8, upright.

    ``note``: what is not obvious, e.g. that it is the first frame of an animation. ``profile``: of the pixels' colors,
    ICC; empty for sRGB.
    """

    image_rgb: Image8
    note: str
    profile: bytes = b""


def load(item: Item, limits: Limits) -> Loaded:
    """Read or download an image and decode it. Called in threads of their own.

    Raises:
        InputError: it cannot be read, downloaded or decoded.
    """
    if not isinstance(item.location, Path):
        content = fetch_bytes(str(item.location), limits.max_download_bytes, limits.download_seconds)
    else:
        try:
            if item.location.is_fifo():  # reading it would wait for somebody to write
                raise UnreadableImage(item.location, "not a file")
            content = item.location.read_bytes()
        except OSError as error:
            raise UnreadableImage(item.location, error.strerror or type(error).__name__) from error
    note, _, profile = glance(content)
    return Loaded(decode_image_rgb(content, item.text), note, profile)


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
