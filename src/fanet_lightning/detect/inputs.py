"""Inputs of detect: what source= means, and reading or downloading one image."""

import contextlib
import datetime
import glob
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
import urllib3.exceptions

from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.files import IMAGE_EXTENSIONS, lines_of
from fanet_lightning.data.images import Image8, UnreadableImage, decode_image_rgb, file_bytes, glance, read_image_frame

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
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
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
    is_video: bool = False

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
    """What was found: images and videos in the order given; sub-folders that cannot be looked at, with the reason."""

    images: list[Item]
    videos: list[Item]
    failed: Mapping[str, str] = field(default_factory=dict)


def without_passwords(source: str | Path) -> str:
    """Addresses, also within a text, without the name and password that those of cameras tend to hold."""
    return re.sub(r"(?<=://)[^/\s]+@", "***@", str(source))


def split_source(text: str) -> list[str]:
    """The single sources of ``source=…``: divided at commas, unless a file has exactly this name.

    With an address among them, which may have commas itself, at commas before a space or another address.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):  # as Hydra writes lists
        text = text[1:-1]
    if _exists(text):
        return [text]
    parts = re.split(r",\s+|,(?=[a-z]+://)" if "://" in text else ",", text)
    return [part.strip() for part in parts if part.strip()]


def _exists(text: str) -> bool:
    return bool(text) and os.path.exists(Path(text).expanduser())  # noqa: PTH110  # no error in a locked folder


def _location(part: str) -> Path | str | int:
    if part.isdecimal() and len(part) < 4 and not _exists(part):
        return int(part)
    return part if "://" in part else Path(part).expanduser()


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


def find_sources(parts: Sequence[str]) -> Sources:
    """All inputs that the sources stand for.

    ``parts``: of :func:`split_source`. What detect has written is no input of a folder or pattern around it.
    InputError: a source that does not exist or is of no known kind, a list that cannot be read, or nothing found.
    """
    found: dict[str, Item] = {}  # by place
    failed: dict[str, str] = {}
    items: Iterable[Item]
    for part in parts:
        location = _location(part)
        is_folder = isinstance(location, Path) and _exists(part) and location.is_dir()
        if isinstance(location, Path) and (is_folder or (glob.has_magic(part) and not _exists(part))):
            folder = location if is_folder else _fixed_part(location)
            names = _walk(folder, failed, folder) if is_folder else _matches(folder, location, failed)
            wanted = (name for name in sorted(names) if _suffix(name) in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
            items = (Item(folder / name, name, is_video=_suffix(name) in VIDEO_SUFFIXES) for name in wanted)
        else:
            items = _stated(part, location)
        for item in items:
            found.setdefault(item.place if isinstance(item.location, Path) else str(item.location), item)
    check(found, f"source={','.join(parts)}: no image in it{', '.join(['', *failed.values()])}; {_ADVICE}")
    named = _named(sorted(found.values(), key=lambda item: item.is_video))  # images first
    return Sources([x for x in named if not x.is_video], [x for x in named if x.is_video], failed)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _stated(text: str, location: Path | str | int) -> Iterator[Item]:
    """What a source that is neither a folder nor a pattern stands for: see :func:`find_sources`."""
    now = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
    if isinstance(location, int):
        yield Item(location, f"camera_{location}_{now}", is_video=True)
    elif isinstance(location, str):
        try:
            scheme, name = urlsplit(location).scheme.lower(), _name_of_url(location)
        except ValueError as error:
            raise InputError(f"source={without_passwords(location)}: {error}; look at the address") from error
        if scheme in STREAM_SCHEMES:
            yield Item(location, f"{name}_{now}", is_video=True)
        elif scheme in ("http", "https"):
            yield Item(location, name, is_video=_suffix(name) in VIDEO_SUFFIXES)
        else:
            shown = without_passwords(location)
            raise InputError(f"source={shown}: {scheme}:// is not read; give http(s)://…, rtsp://… or a path")
    elif not _exists(text):
        raise InputError(f"source={text}: there is no such file or folder; {_ADVICE}")
    elif location.suffix.lower() in _LIST_SUFFIXES:
        for line in lines_of(location, f"the list source={location}", "give one path or address a line"):
            entry = line.strip()
            if "://" in entry:
                yield from _stated(entry, entry)
            elif entry and not entry.startswith("#"):
                # Relative to the list or to the working folder. One that is not there is told with the others that
                # cannot be read.
                own = Path(entry if _exists(entry) else entry.replace("\\", "/")).expanduser()
                near = location.parent / own
                within = not own.is_absolute() and ".." not in own.parts
                yield _of_file(near if _exists(str(near)) or not _exists(str(own)) else own,
                               own.as_posix() if within else own.name)  # fmt: skip
    else:
        yield _of_file(location, location.name)


def _of_file(path: Path, name: str) -> Item:
    """By the suffix; where it says nothing, whatever is no image may be a video: opening it as one will tell."""
    is_video = _suffix(path.name) in VIDEO_SUFFIXES
    if not is_video and _suffix(path.name) not in IMAGE_SUFFIXES:
        try:
            read_image_frame(path)
        except UnreadableImage:
            is_video = True
    return Item(path, name, is_video=is_video)


def _walk(folder: Path, failed: dict[str, str], base: Path) -> Iterator[str]:
    """Names in ``base`` of all files below a folder, also behind links; hidden ones and results are left out."""

    def fail(error: OSError) -> None:
        failed[os.path.relpath(error.filename, base)] = f"{error.filename} cannot be read ({error.strerror})"

    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        here, kept = Path(root), []
        for name in sorted(folders):
            place = os.path.realpath(here / name)
            if not name.startswith(".") and place not in seen and not _is_results(here / name):
                kept.append(name)
                seen.add(place)  # once, however many links lead there
        folders[:] = kept
        yield from ((here / name).relative_to(base).as_posix() for name in names if not name.startswith("."))


def _matches(folder: Path, pattern: Path, failed: dict[str, str]) -> Iterator[str]:
    """Names of the files in a folder that match a pattern, and of those in matching folders; results are left out."""
    wanted = str(Path(*pattern.parts[len(folder.parts) :]))
    found = glob.glob(wanted, root_dir=folder, recursive=True)  # noqa: PTH207  # without hidden ones
    check(found, f"source={pattern}: no file matches; {_ADVICE}")
    for name in found:
        parents = [folder / parent for parent in (PurePosixPath(name), *PurePosixPath(name).parents) if parent.name]
        if not any(map(_is_results, parents)):
            yield from _walk(folder / name, failed, folder) if (folder / name).is_dir() else (name,)


def _is_results(folder: Path) -> bool:
    """Whether a run of detect has written a folder."""
    folder = folder.resolve()
    return folder.name in RESULT_FOLDERS and has_journal(folder.parent)


def has_journal(out: Path) -> bool:
    """Whether a folder has the journal of a run of detect, not another program's file of its name."""
    with contextlib.suppress(OSError), (out / JOURNAL_FILE).open("rb") as journal:
        first = journal.readline(10_000)
        return not first or b'"redact"' in first  # the settings; nothing yet: a run that was killed as it began
    return False


def _named(found: Sequence[Item]) -> list[Item]:
    """Unique names and stems: equal ones are told apart by a number, stems by the suffix before."""
    names: set[str] = set()
    stems: set[str] = set()
    suffixes = [PurePosixPath(item.name).suffix for item in found]
    unique = [_free(x.name.removesuffix(suffix), suffix, names) for x, suffix in zip(found, suffixes, strict=True)]
    shared = Counter(_stem(name).casefold() for name in unique)
    # Frames of a video are written as images of a folder with its stem.
    frames = {str(path.parent).casefold() for path in map(PurePosixPath, unique) if path.name.startswith("frame_")}
    wanted = [
        name if shared[own := _stem(name).casefold()] > 1 or (item.is_video and own in frames) else _stem(name)
        for item, name in zip(found, unique, strict=True)
    ]
    # A name without a suffix of ours gets one where it is written.
    pairs = zip(found, unique, strict=True)
    added = ("" if _stem(name) != name else ".mp4" if item.is_video else ".jpg" for item, name in pairs)
    return [replace(item, name=name, stem=_free(stem, "", stems, more))
            for item, name, stem, more in zip(found, unique, wanted, added, strict=True)]  # fmt: skip


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if _suffix(name) in IMAGE_SUFFIXES | VIDEO_SUFFIXES else name


def _free(body: str, suffix: str, taken: set[str], added: str = "") -> str:
    """``body + suffix``, or with a number between; it is taken from then on, and with ``added`` behind it as well."""
    name, number = body + suffix, 1
    while taken & (own := {name.casefold(), f"{name}{added}".casefold()}):
        number += 1
        name = f"{body}_{number}{suffix}"
    taken |= own
    return name


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
    """Download what is at an ``http(s)://`` address: at most so many bytes, in so many seconds for everything.

    Raises:
        InputError: no answer, an error page, HTML in place of an image, too many bytes or redirects, or too slow.
    """
    shown, end = without_passwords(url), time.monotonic() + seconds
    headers = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "fanet-lightning"}
    content = bytearray()
    reason = ""
    try:
        with requests.get(url, headers=headers, stream=True, timeout=min(_SILENT_SECONDS, seconds)) as response:
            kind = response.headers.get("Content-Type", "").lower()
            if response.status_code != HTTPStatus.OK:
                reason = f"answers {response.status_code} {response.reason}; look at the address"
            elif kind.startswith(("text/html", "application/xhtml")):
                reason = "is an HTML page, not an image; give the address of the image itself"
            # A read of many bytes would wait for all of them, and a server that drips hold it beyond every deadline.
            while not reason and (piece := response.raw.read1(1 << 16)):
                content += piece
                if len(content) > max_bytes:
                    reason = f"has more than max_download_mb={max_bytes / 1e6:g}; raise it"
                elif time.monotonic() > end:
                    reason = f"is not here after download_seconds={seconds:g}; raise it"
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:  # ConnectTimeout, SSLError …
        reason = f"cannot be fetched ({type(error).__name__}); look at the address and the network"
    check(not reason, f"{shown} {reason}")
    return bytes(content)


def load(item: Item, max_bytes: int, seconds: float) -> tuple[Image8, bytes]:
    """Read or download (:func:`fetch_bytes`) an image: pixels, upright, and their ICC profile, empty for sRGB."""
    location = item.location
    content = file_bytes(location) if isinstance(location, Path) else fetch_bytes(str(location), max_bytes, seconds)
    return decode_image_rgb(content, item.text), glance(content)[1]
