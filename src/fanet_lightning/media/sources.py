"""What ``source=`` means: images, folders, patterns, lists, addresses, videos, streams and cameras.

Every input gets a name of its own, under which its results are stored; no two inputs share one.
"""

import datetime
import difflib
import errno
import fnmatch
import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
