"""What ``source=`` means: images, folders, patterns, lists, addresses, videos, streams and cameras.

Every input gets a name of its own, under which its results are stored; no two inputs share one.
"""

import datetime
import difflib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from fanet_lightning.errors import InputError
from fanet_lightning.files import decoded_text
from fanet_lightning.media.inputs import (
    IMAGE_SUFFIXES,
    RESULT_FOLDERS,
    VIDEO_SUFFIXES,
    Item,
    distinct,
    is_camera,
    name_of_url,
    named,
    safe,
)
from fanet_lightning.media.journal import head_of

LIST_SUFFIXES = frozenset((".txt", ".lst", ".list"))
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
_KINDS = (
    "an image, a folder, a pattern (photos/*.jpg), a list of paths (.txt), an http(s) address, a video, rtsp://… or "
    "the number of a camera"
)


@dataclass(frozen=True)
class Sources:
    """What was found: images and videos in the order given, and how many other files lay beside them in folders.

    ``results`` is the number of folders with results of ``detect``, which were left out.
    """

    images: list[Item]
    videos: list[Item]
    ignored: int = 0
    repeated: int = 0
    results: int = 0


def split_source(text: str) -> list[str]:
    """The single sources of ``source=…``: divided at commas, unless a file has exactly this name.

    What follows a comma in an http(s) address belongs to the address, unless it is an address itself, a path that
    exists, or comes after a space.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]") and not Path(text).exists():
        text = text[1:-1]
    if not text or Path(text).expanduser().exists():
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
    return not alone and not Path(piece).expanduser().exists() and not glob.glob(piece)  # noqa: PTH207  # any pattern


def default_name(parts: Sequence[str]) -> str:
    """A folder name for the results of these sources: the first one's, and how many there are beside it."""
    first = parts[0]
    if first.isdecimal():
        name = f"camera_{first}"
    elif "://" in first:
        name = PurePosixPath(name_of_url(first)).stem
    else:
        path = Path(first).expanduser()
        if not path.exists() and glob.has_magic(first):
            path = _fixed_part(path)
        own = path.resolve()
        name = own.name if own.is_dir() else own.stem
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
        others = [f"{finder.ignored:,} other files"] if finder.ignored else []
        if finder.results:
            others.append("results of detect are left out unless their own folder is named, e.g. photos/images")
        within = f" ({'; '.join(others)})" if others else ""
        raise InputError(f"source={','.join(parts)}: no image in it{within}; give {_KINDS}")
    items = named([*images, *videos])
    repeated = repeated_images + repeated_videos
    return Sources(items[: len(images)], items[len(images) :], finder.ignored, repeated, len(finder.results))


class _Finder:
    """Collects inputs with the names that they would like to have, and a word to tell equal names apart."""

    def __init__(self, out: Path | None) -> None:
        self.images: list[tuple[Item, str]] = []
        self.videos: list[tuple[Item, str]] = []
        self.ignored = 0
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
            if path.is_dir():
                self._add_folder(path)
            elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
                self._add_list(path)
            elif path.exists():
                self._add_file(path, path.name)
            elif glob.has_magic(text):
                self._add_pattern(str(path))
            else:
                raise InputError(f"source={text}: there is no such file or folder{_near(path)}; give {_KINDS}")

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
        if _is_video(path):
            self.videos.append((Item(path, name), path.resolve().parent.name))
        else:
            self.images.append((Item(path, name), path.resolve().parent.name))

    def _add_folder(self, folder: Path) -> None:
        label = folder.resolve().name
        for name in sorted(self._walk(folder, self._results(folder))):
            self._add_found(folder / name, name, label)

    def _add_found(self, path: Path, name: str, label: str) -> None:
        """What a folder or a pattern brings: images by their suffix, everything else is counted."""
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            self.images.append((Item(path, name), label))
        else:
            self.ignored += 1

    def _add_pattern(self, pattern: str) -> None:
        folder = _fixed_part(Path(pattern))
        found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207  # absolute ones too
        results = self._results(folder)
        files = [
            path for path in found
            if not path.is_dir() and not self._among_results(path, folder)
            and not any(path.resolve().is_relative_to(place) for place in results)
        ]  # fmt: skip
        if not files and not self.results:
            raise InputError(f"source={pattern}: no file matches; give {_KINDS}")
        for path in files:
            name = path.relative_to(folder).as_posix()
            if path.suffix.lower() in VIDEO_SUFFIXES:
                self._add_file(path, name)
            else:
                self._add_found(path, name, folder.resolve().name)

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
            place, own = next((found for found in places if found[0].exists()), places[0])
            within = not own.is_absolute() and ".." not in own.parts
            self._add_file(place, own.as_posix() if within else own.name)

    def _walk(
        self, folder: Path, leave_out: list[Path], prefix: str = "", seen: frozenset[tuple[int, int]] = frozenset()
    ) -> Iterator[str]:
        """Names of all files below a folder; hidden ones and results are not entered."""
        try:
            status = folder.stat()
            place = (status.st_dev, status.st_ino)
            if place in seen:  # a link back to a folder above
                return
            if folder.resolve() in leave_out:
                self._holds_results(folder)
                return
            with os.scandir(folder) as entries:
                listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if not prefix:
                raise InputError(
                    f"source={folder} cannot be read ({error.strerror}); change its permissions"
                ) from error
            return
        for name, is_folder in listed:
            if is_folder:
                if name in RESULT_FOLDERS and self._holds_results(folder):
                    continue
                yield from self._walk(folder / name, leave_out, f"{prefix}{name}/", seen | {place})
            else:
                yield prefix + name

    def _holds_results(self, folder: Path) -> bool:
        """Whether results of an earlier run lie in a folder; it is counted then."""
        place = folder.resolve()
        if place not in self._journals:
            self._journals[place] = head_of(place) is not None
        if self._journals[place]:
            self.results.add(place)
        return self._journals[place]

    def _among_results(self, path: Path, folder: Path) -> bool:
        """Whether a path, found below ``folder``, is a result of an earlier run."""
        within = path.relative_to(folder).parts[:-1]
        return any(
            name in RESULT_FOLDERS and self._holds_results(folder.joinpath(*within[:depth]))
            for depth, name in enumerate(within)
        )

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


def _is_video(path: Path) -> bool:
    """By the suffix; where it says nothing, whatever is no image may be one: opening it as a video will tell."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
        return suffix in VIDEO_SUFFIXES
    if not path.is_file():
        return path.exists() and not path.is_dir()  # /dev/video0, a pipe
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
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f", did you mean {path.parent / near[0]}?" if near else ""
