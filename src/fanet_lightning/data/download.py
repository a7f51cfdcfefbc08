"""Downloads: WIDER FACE, resumable transfer with checksums, zip archives.

WIDER FACE on disk, from the places where it is published, in the layout that ``data=wider_face`` reads.

::

    ROOT/WIDER_train/images/<event>/<name>.jpg      WIDER_val and WIDER_test alike
    ROOT/wider_face_split/*.txt, *.mat              the annotations
    ROOT/eval_gt/*.mat                              the ground truth of the official evaluation
    ROOT/.download/                                 what is not whole yet; gone when everything is

The data set is for research (CC BY-NC-ND 4.0); its home is http://shuoyang1213.me/WIDERFACE/.

One file over HTTP: resumed where it broke off, retried, held to its size and checksum, whole or not at all.

While it is on its way a file is ``NAME.part``, beside ``NAME.part.json`` with the validators that its beginning came
with. It gets its name when size and SHA-256 are right. Whatever a server says about ranges, lengths and versions is
taken as a hint: the checksum decides.

One HTTP request for one file, and everything that a server may get wrong in its answer.

Whatever a server says about ranges, lengths and versions is taken as a hint that saves work; the checksum of the whole
file decides (:mod:`fanet_lightning.data.download`).

Zip archives from elsewhere, unpacked so that nothing leaves the folder and nothing is left half-done.

A folder that is not there yet appears whole, by one rename. A folder that is there is completed file by file, each by
rename: what is missing, and what is the mere beginning of its file. What has other content (somebody's resized images)
or is not in the archive is left alone.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from fanet_lightning.cli.errors import InputError, counted, first_line
from fanet_lightning.cli.files import check_writable, replaced, without_empty_folders

if TYPE_CHECKING:
    import requests


HUB = "https://huggingface.co"
_HUB_FILES = f"{HUB}/datasets/CUHK-CSE/wider_face/resolve/main/data"
_HOME = "http://shuoyang1213.me/WIDERFACE/support"
# Of the annotations, what the test images alone are read by: a folder or archive without it is whole for all else.
TEST_NAMES = "wider_face_test_filelist.txt"


@dataclass(frozen=True)
class Archive:
    """A part of the data set.

    ``inner``          the folder in the archive that is taken.
    ``folder``         where it goes, under the root.
    ``unpacked_bytes`` about what it takes on disk; only to see beforehand whether there is room.
    ``images``         how many ``.jpg`` it has, 0 for a part of labels.
    ``files``          the files that a part of labels must have.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    size_bytes: int
    inner: str
    folder: str
    unpacked_bytes: int
    images: int = 0
    files: tuple[str, ...] = ()

    def addresses(self, source: str | None) -> tuple[str, ...]:
        """Where to ask, in order: under ``source``, else the official addresses.

        ``HF_ENDPOINT`` replaces the hub's address, as for the hub's own tools.
        """
        if source is not None:
            return (f"{source.rstrip('/')}/{self.name}",)
        endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        return tuple(f"{endpoint}{url[len(HUB) :]}" if url.startswith(f"{HUB}/") else url for url in self.urls)


def _images(split: str, sha256: str, size_bytes: int, images: int) -> Archive:
    name = f"WIDER_{split}"
    # JPEGs do not pack; 2 kB a file are what the last blocks waste.
    return Archive(
        name=f"{name}.zip",
        urls=(f"{_HUB_FILES}/{name}.zip",),
        sha256=sha256,
        size_bytes=size_bytes,
        inner=name,
        folder=name,
        unpacked_bytes=size_bytes * 101 // 100 + 2048 * images,
        images=images,
    )


# Checksums and sizes of the first four: the LFS pointers of the hub's repository, the official mirror (commit
# ba0019b). The MD5 of wider_face_split.zip is torchvision's 0e3767bcf0e326556d407bf5bff5d27c. The numbers of images are
# those of the annotations.
PARTS: dict[str, Archive] = {
    "train": _images(
        "train", "e23b76129c825cafae8be944f65310b2e1ba1c76885afe732f179c41e5ed6d59", 1_465_602_149, 12_880
    ),
    "val": _images("val", "f9efbd09f28c5d2d884be8c0eaef3967158c866a593fc36ab0413e4b2a58a17a", 362_752_168, 3_226),
    "test": _images("test", "3b0313e11ea292ec58894b47ac4c0503b230e12540330845d70a7798241f88d3", 1_844_140_520, 16_097),
    "annotations": Archive(
        name="wider_face_split.zip",
        urls=(f"{_HUB_FILES}/wider_face_split.zip", f"{_HOME}/bbx_annotation/wider_face_split.zip"),
        sha256="c7561e4f5e7a118c249e0a5c5c902b0de90bbf120d7da9fa28d99041f68a8a5c",
        size_bytes=3_591_642,
        inner="wider_face_split",
        folder="wider_face_split",
        unpacked_bytes=9_200_000,
        files=("wider_face_train_bbx_gt.txt", "wider_face_val_bbx_gt.txt", TEST_NAMES),
    ),
    "ground_truth": Archive(
        name="eval_tools.zip",
        urls=(f"{_HOME}/eval_script/eval_tools.zip",),
        sha256="1cf49c8243fa8a1632efe7f6aa09fd7a3994ac838c9008bdbc9dd1d547bb234a",
        size_bytes=8_447_003,
        inner="eval_tools/ground_truth",
        folder="eval_gt",
        unpacked_bytes=1_700_000,
        files=("wider_face_val.mat", "wider_easy_val.mat", "wider_medium_val.mat", "wider_hard_val.mat"),
    ),
}

_COUNTS = ("size_bytes", "unpacked_bytes", "images")
_LISTS = ("urls", "files")


def local_source(source: str | None) -> Path | None:
    """The folder that ``--source`` names, or None where it is an address, or nothing.

    Raises:
        InputError: neither an http address nor a folder.
    """
    if source is None or source.startswith(("http://", "https://")):
        return None
    folder = Path(source.removeprefix("file://"))
    if not folder.is_dir():
        raise InputError(f"--source={source}: neither an http(s) address nor a folder; give one that has the archives")
    return folder


def read_manifest(path: Path) -> dict[str, Archive]:
    """The official archives, with what a JSON file says otherwise: ``{"val": {"size_bytes": …, "sha256": …}, …}``.

    The keys are those of :class:`Archive`; what is left out stays as it is.

    Raises:
        InputError: no such file, no JSON, an unknown part or key, or a value of another type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--manifest={path}: {error.strerror or error}; give a JSON file") from error
    except ValueError as error:
        raise InputError(f"--manifest={path}: not JSON ({error}); mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"--manifest={path}: holds no object of parts; write {{'val': {{…}}}}")
    archives = dict(PARTS)
    keys = [field.name for field in fields(Archive)]
    for part, entry in content.items():
        if part not in PARTS:
            raise InputError(f"--manifest={path}: unknown part {part!r}; take {', '.join(PARTS)}")
        if not isinstance(entry, dict):
            raise InputError(f"--manifest={path}: {part} is {entry!r}, not an object of {', '.join(keys)}")
        checked = {key: _checked(path, part, key, value, keys) for key, value in entry.items()}
        if "size_bytes" in checked and "unpacked_bytes" not in checked:
            # Of another archive the official number says nothing.
            images = checked.get("images", PARTS[part].images)
            checked["unpacked_bytes"] = checked["size_bytes"] * 101 // 100 + 2048 * images
        archives[part] = replace(PARTS[part], **checked)
    return archives


def _checked(path: Path, part: str, key: str, value: object, keys: list[str]) -> Any:
    where = f"--manifest={path}: {part}.{key}"
    if key not in keys:
        raise InputError(f"{where} is unknown; take {', '.join(keys)}")
    if key in _COUNTS:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{where}={value!r} is not a whole number of 0 or more")
        return value
    if key in _LISTS:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{where}={value!r} is not a list of strings")
        return tuple(value)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}={value!r} is not a string")
    if key == "sha256" and (len(value) != 64 or not set(value.lower()) <= set("0123456789abcdef")):
        raise InputError(f"{where}={value!r} is not a SHA-256 of 64 hexadecimal digits")
    outside = value.startswith("/") or ".." in value.split("/") or "\\" in value
    if (key in ("inner", "folder") and outside) or (key == "name" and Path(value).name != value):
        raise InputError(f"{where}={value!r} leads out of the folder")
    return value


# Text of numbers packs to a third, JPEG not at all. Past this it is an archive made to fill the disk.
MOST_EXPANSION = 20
MOST_MEMBERS = 200_000
# What a file takes beyond its bytes: the rest of its last block.
BLOCK_BYTES = 4096
_COPY_BYTES = 1 << 20


class UnusableArchive(InputError):
    """The archive itself is at fault, not the disk or the folder: nobody can unpack it.

    ``fault``  what is wrong with it.
    ``remedy`` what to do once it is gone.
    """

    def __init__(self, archive: Path, fault: str, remedy: str) -> None:
        super().__init__(f"{archive}: {fault}; delete it and {remedy}")
        self.fault, self.remedy = fault, remedy


@dataclass(frozen=True)
class Member:
    """A file in an archive and where it goes, relative to the folder that it is unpacked to."""

    info: zipfile.ZipInfo
    path: PurePosixPath


@dataclass(frozen=True)
class Unpacked:
    """What unpacking did: how many files it wrote, and those that were there with other content and were left."""

    written: int
    different: list[PurePosixPath]


def members_of(archive: Path, inner: str) -> list[Member]:
    """The files under the folder ``inner`` of an archive, once every name in it was found harmless.

    What macOS adds (``__MACOSX``, ``._name``, ``.DS_Store``) is left out.

    Raises:
        UnusableArchive: no zip; a name that is absolute, has a drive letter, a backslash or ``..`` in it; a
            symbolic link, device, encrypted or doubled member; more content than the bytes of the archive can hold.
        InputError: the file cannot be read.
    """
    with _opened(archive) as content:
        infos = content.infolist()
    if len(infos) > MOST_MEMBERS:
        raise _hostile(archive, f"it has {len(infos):,} members")
    found: dict[PurePosixPath, Member] = {}
    for info in infos:
        path = _harmless(archive, info)
        if info.is_dir() or not path.is_relative_to(inner) or _is_macos(path):
            continue
        path = path.relative_to(inner)
        if not path.parts:
            raise _hostile(archive, f"{info.filename!r} is a file where a folder belongs")
        if path in found:
            raise _hostile(archive, f"{info.filename!r} is in it twice")
        found[path] = Member(info, path)
    for path in found:
        if any(parent in found for parent in path.parents):
            raise _hostile(archive, f"{str(path)!r} is in a folder that is also a file")
    members = list(found.values())
    packed, unpacked = (sum(getattr(m.info, key) for m in members) for key in ("compress_size", "file_size"))
    size = archive.stat().st_size
    if packed > size or unpacked > MOST_EXPANSION * size:
        raise _hostile(archive, f"{size:,} bytes claim to hold {unpacked:,}")
    return members


def unpacked_bytes(members: list[Member]) -> int:
    """What the members take on disk, whole blocks counted."""
    return sum(-(-member.info.file_size // BLOCK_BYTES) * BLOCK_BYTES for member in members)


def unpack(
    archive: Path,
    members: list[Member],
    target: Path,
    workspace: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Unpacked:
    """Unpack into ``target``, new or begun by an earlier try.

    Args:
        members: from :func:`members_of`.
        workspace: folder on the same file system for what is not whole yet; what an earlier try left of this target
            in it is removed.
        progress: takes the files done and their number.

    Raises:
        UnusableArchive: a damaged member; a new ``target`` is then not there.
        InputError: the disk takes no more, or a file is in the way; as above.
    """
    fresh = not target.exists()
    if not fresh and not target.is_dir():
        raise InputError(f"{target} is a file where a folder belongs; move it away")
    staging = workspace / f"{target.name}.unpacking"
    written, different = 0, []
    try:
        _remove(staging)
        folder = staging if fresh else target
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(archive) as content:
            for number, member in enumerate(members, start=1):
                path = folder / member.path
                if not fresh and path.is_file() and not _is_beginning(path, content, member.info, archive):
                    if not _equals(path, member.info):
                        different.append(member.path)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(content, member.info, path, archive)
                    written += 1
                progress(number, len(members))
        if fresh:
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        place = error.filename or target
        raise InputError(f"{place}: cannot be written ({reason}); make room, or choose another --root") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Unpacked(written, different)


def _harmless(archive: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    # orig_filename is the name before zipfile cut it at a NUL and turned separators; both have to be harmless.
    name = info.orig_filename
    path = PurePosixPath(info.filename)
    if "\\" in name or any(ord(letter) < 32 for letter in name):
        raise _hostile(archive, f"the name {name!r} has a backslash or a control character in it")
    if path.is_absolute() or ":" in name or ".." in path.parts or not path.parts:
        raise _hostile(archive, f"the name {name!r} leads out of the folder")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _hostile(archive, f"{name!r} is a symbolic link or a device")
    if info.flag_bits & 1:
        raise _hostile(archive, f"{name!r} is encrypted")
    return path


def _is_macos(path: PurePosixPath) -> bool:
    return path.parts[0] == "__MACOSX" or path.name.startswith("._") or path.name == ".DS_Store"


def _hostile(archive: Path, what: str) -> UnusableArchive:
    return UnusableArchive(archive, f"not unpacked, {what}", "fetch it from a source that you trust")


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        content = zipfile.ZipFile(archive)
    # Damaged directories make zipfile raise more than its own error.
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UnusableArchive(archive, f"not a readable zip ({first_line(error)})", "fetch it again") from error
    # This may be the disk's or the system's fault.
    except OSError as error:
        raise InputError(
            f"{archive}: not a readable zip ({first_line(error)}); delete it and fetch it again"
        ) from error
    with content:
        yield content


def _equals(path: Path, info: zipfile.ZipInfo) -> bool:
    if path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open("rb") as content:
        while chunk := content.read(_COPY_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc == info.CRC


def _is_beginning(path: Path, content: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> bool:
    """Whether a file was cut off while it was written; room that was reserved for it holds zeros."""
    if path.stat().st_size > info.file_size or _equals(path, info):
        return False
    begun = path.read_bytes().rstrip(b"\0")
    done = 0
    for chunk in _chunks(content, info, archive):
        piece = begun[done : done + len(chunk)]
        if not chunk.startswith(piece):
            return False
        done += len(chunk)
    return True


def _write(content: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, archive: Path) -> None:
    """One file, by rename; a kill leaves at most ``.NAME.part``, which the next try takes up again."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as out:
            for chunk in _chunks(content, info, archive):
                out.write(chunk)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _chunks(content: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    """The content of a member; zipfile gives no more bytes than the directory states, and checks the CRC-32."""
    try:
        with content.open(info) as member:
            while chunk := member.read(_COPY_BYTES):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        fault = f"{info.filename!r} in it is damaged ({first_line(error)})"
        raise UnusableArchive(archive, fault, "fetch it again") from error


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def count_files(folder: Path, suffix: str = "") -> int:
    """Files below ``folder`` that end in ``suffix``, in any letter case; empty and hidden ones do not count."""
    count = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    count += count_files(Path(entry.path), suffix)
                elif entry.name.lower().endswith(suffix):
                    count += entry.is_file() and entry.stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return count


def check_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse to begin what does not fit.

    Args:
        folder: where it goes; it need not be there yet.
        purpose: what takes the room, for the message.

    Raises:
        InputError: fewer than ``needed_bytes`` are free.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(
            f"{purpose} takes {size_text(needed_bytes)}, {existing} has {size_text(free)} free; "
            "make room, choose another --root or fewer --parts"
        )


def size_text(size_bytes: float) -> str:
    """1.47 GB, with decimal prefixes as the pages that offer the files have them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


# Statuses that may be others in a moment (RFC 9110, RFC 6585); 520 … 524 are those of a common cache in front of hosts.
_PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
_CHUNK_BYTES = 1 << 16
# What is no page is read no further than this to find out.
_BEGINNING_BYTES = 512
_MARKUP = "answers a page of markup instead of the file (a proxy's or a login page)"
LONGEST_WAIT_S = 120.0

Say = Callable[[str], None]
"""Takes one line for the person who waits."""
Progress = Callable[[int, int | None], None]
"""Takes the bytes done and their total, None where nobody knows it."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class RemoteFile:
    """A file and where it lies.

    ``urls``        tried in this order.
    ``sha256``      hexadecimal, whole or its first digits (torchvision has eight of them in a file's name).
    ``size_bytes``  None where nobody knows it before.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    size_bytes: int | None = None


class Refused(Exception):
    """This address will not give the file, however often it is asked."""


class BrokenOff(Exception):
    """It may go on in a moment; ``wait_s`` as the server asks for it, else None."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Unresolved(BrokenOff):
    """The host's name has no address: without a network it stays so, and a resolver's hiccup is short."""


def transfer(
    session: "requests.Session", url: str, file: RemoteFile, part: Path, timeout_s: float, say: Say, progress: Progress
) -> bool:
    """One request; appends to ``part`` what it brings.

    Returns:
        Once the last byte is there: whether all of it came with this request, so that nothing was joined.

    Raises:
        BrokenOff: another request may bring more.
        Refused: none will.
        InputError: the disk takes no more.
    """
    import requests

    if file.size_bytes is not None and size_on_disk(part) >= file.size_bytes:
        if size_on_disk(part) == file.size_bytes:
            return False
        discard(part)
    offset = size_on_disk(part)
    known = _validators(part, url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "fanet-lightning"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if strong := known.get("etag") or known.get("last_modified"):
            headers["If-Range"] = strong
    try:
        with session.get(url, headers=headers, stream=True, timeout=(10, timeout_s)) as response:
            start, total, validators = _understand(response, url, file, part, offset, known)
            if offset and not start:
                say(f"{file.name}: the server begins anew, it has another version or cannot go on")
            _receive(response, file, part, start, total, validators, progress)
            return start == 0
    except requests.RequestException as error:
        raise _classified(error, timeout_s) from error


def _understand(
    response: "requests.Response", url: str, file: RemoteFile, part: Path, offset: int, known: dict[str, str]
) -> tuple[int, int | None, dict[str, str]]:
    """Where the body begins in the file, the file's size, and the validators that came with it.

    Nothing on disk is touched, unless the part is of no use any more.
    """
    status = response.status_code
    if status in _PASSING:
        raise BrokenOff(f"answers {_status(status)}", _retry_after_s(response.headers.get("Retry-After")))
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
        discard(part)
        raise BrokenOff("has no bytes after those at hand", 0)
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise Refused(f"answers {_status(status)}")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise Refused(_MARKUP)
    start, total = 0, _whole(response.headers.get("Content-Length"))
    if response.headers.get("Content-Encoding", "identity") != "identity":
        total = None
    etag = response.headers.get("ETag")
    if status == HTTPStatus.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        start, total = (int(span[1]), _whole(span[3])) if span else (-1, None)
        if start != offset or (known.get("etag") and etag and etag != known["etag"]):
            discard(part)
            raise BrokenOff("answers another range or version than was asked for", 0)
    if None not in (file.size_bytes, total) and total != file.size_bytes:
        # A page has another size as well, but that is not what is wrong with it.
        if not start and _is_markup(_beginning(response)):
            raise Refused(_MARKUP)
        raise Refused(f"announces {total:,} bytes, {file.name} has {file.size_bytes:,}: it is another file")
    validators = {"url": url}
    # Only a strong validator may join two answers (RFC 9110, 13.1.5).
    if etag and not etag.startswith("W/"):
        validators["etag"] = etag
    elif "Last-Modified" in response.headers:
        validators["last_modified"] = response.headers["Last-Modified"]
    return start, file.size_bytes if file.size_bytes is not None else total, validators


def _receive(
    response: "requests.Response",
    file: RemoteFile,
    part: Path,
    start: int,
    total: int | None,
    validators: dict[str, str],
    progress: Progress,
) -> None:
    done = start
    if total is not None:
        check_space(part.parent, total - max(start, size_on_disk(part)), f"{file.name} of {size_text(total)} still")
    # The old content goes when the first new byte is there, not before.
    out = on_disk(part, lambda: part.open("r+b" if part.exists() else "wb"))
    try:
        progress(done, total)
        for chunk in response.iter_content(_CHUNK_BYTES):
            if not done and _is_markup(chunk):
                raise Refused(_MARKUP)
            if total is not None and done + len(chunk) > total:
                raise Refused(f"sends more than the {total:,} bytes of {file.name}: it is another file")
            if done == start:
                on_disk(part, lambda: _write_json(sidecar(part), validators))
                out.seek(start)
                out.truncate()
            on_disk(part, lambda piece=chunk: out.write(piece))  # type: ignore[misc]
            done += len(chunk)
            progress(done, total)
    finally:
        # Closing writes what is buffered, so it can fail as a write does.
        on_disk(part, out.close)
    if total is not None and done < total:
        raise BrokenOff(f"breaks off after {size_text(done)} of {size_text(total)}")


def _beginning(response: "requests.Response") -> bytes:
    """The first bytes of an answer that is not used any further; none where it breaks off."""
    import requests

    with suppress(requests.RequestException):
        return next(response.iter_content(_BEGINNING_BYTES), b"")
    return b""


def _is_markup(content: bytes) -> bool:
    return content.lstrip()[:1] == b"<"


def _classified(error: "requests.RequestException", timeout_s: float) -> Exception:
    """A passing interruption or a refusal, with a reason that a person can read."""
    import requests

    chain = _chain(error)
    names = " ".join(type(link).__name__ for link in chain)
    for name, reason in (
        ("ProxyError", "cannot be reached: the proxy does not connect"),
        ("NameResolutionError", "cannot be reached: its name is not resolved (no network?)"),
        ("ConnectionRefusedError", "cannot be reached: the connection is refused"),
        ("Timeout", f"is silent for {timeout_s:.3g} s"),
        ("IncompleteRead", "breaks off"),
        ("ConnectionResetError", "breaks off"),
        ("RemoteDisconnected", "breaks off without an answer"),
        ("NewConnectionError", "cannot be reached (no network?)"),
    ):
        if name in names and not isinstance(error, requests.exceptions.SSLError):
            return (Unresolved if "NameResolutionError" in names else BrokenOff)(reason)
    if isinstance(error, requests.exceptions.SSLError):
        return Refused(f"has a certificate that is not trusted ({first_line(chain[-1])})")
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return Refused("redirects in a circle")
    if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return BrokenOff(f"breaks off ({first_line(chain[-1])})")
    return Refused(f"cannot be asked ({first_line(error)})")


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised for: as a cause, as an argument, or as urllib3's ``reason``."""
    links: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop(0)
        if isinstance(link, BaseException) and link not in links:
            links.append(link)
            waiting += [getattr(link, "reason", None), link.__cause__, link.__context__, *link.args]
    return links


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that ``Retry-After`` asks for, as a number or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    seconds = float(header) if header.strip().isdigit() else None
    if seconds is None:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = max(0.0, (date - datetime.now(UTC)).total_seconds())
    if seconds > LONGEST_WAIT_S:
        raise Refused(f"asks to come back in {seconds:.0f} s; run again then")
    return seconds


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


def size_on_disk(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def sidecar(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _validators(part: Path, url: str) -> dict[str, str]:
    """What the beginning of ``part`` came with, if it came from ``url``; elsewhere other validators hold."""
    try:
        content = json.loads(sidecar(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
    return content if sound and content.get("url") == url else {}


def _write_json(path: Path, content: dict[str, str]) -> None:
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    sidecar(part).unlink(missing_ok=True)


def on_disk(path: Path, action: Callable[[], _T]) -> _T:
    """The action's result; what the file system refuses becomes one line."""
    try:
        return action()
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or first_line(error)
    return InputError(f"{path}: cannot be written ({reason}); make room, or choose another --root")


# A resolver may hiccup; without a network it knows no name, however often it is asked.
UNRESOLVED_RETRIES = 1


@dataclass(frozen=True)
class Patience:
    """How long to try: attempts without progress after the first, the first wait (it doubles), a silent connection.

    A name that has not been resolved yet is asked for ``UNRESOLVED_RETRIES`` more times at most.
    """

    retries: int = 5
    first_wait_s: float = 1.0
    timeout_s: float = 30.0


def add_patience(parser: argparse.ArgumentParser) -> None:
    """The options of a command line from which :func:`patience_of` makes a :class:`Patience`."""
    known = Patience()
    for name, kind, default, text in (
        ("--retries", int, known.retries, "attempts without progress after the first"),
        ("--wait", float, known.first_wait_s, "seconds before the first of them; doubles"),
        ("--timeout", float, known.timeout_s, "seconds of silence to bear"),
    ):
        parser.add_argument(name, type=kind, default=default, help=f"{text} (%(default)s)")


def patience_of(options: argparse.Namespace) -> Patience:
    """What the command line says.

    Raises:
        InputError: a number below 0, or no time at all.
    """
    for name, least in (("retries", 0), ("wait", 0), ("timeout", 0.001)):
        value = getattr(options, name)
        if not least <= value <= 1e6:
            raise InputError(f"--{name}={value} is out of range; give {least} to a million")
    return Patience(options.retries, options.wait, options.timeout)


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    patience: Patience = Patience(),
    say: Say = print,
    progress: Progress = lambda done, total: None,
    by_hand: str = "",
) -> Path:
    """``folder/name``, fetched unless it is there already.

    Args:
        folder: is made where it is missing.
        by_hand: what else can be done where no address gives it, for the message: ``fetch it by hand and …``.

    Returns:
        The path of a file whose size and checksum are those of ``file``.

    Raises:
        InputError: no address gave the file, another process is fetching it, or the disk took no more of it. What has
            arrived is kept where it can be gone on with; where nothing has, no file is left.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.is_file() and fault(target, file) is None:
        return target
    on_disk(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
    lock = FileLock(folder / f"{file.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{target}: another process is fetching it; wait for it, or stop it") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        return _fetch(file, target, part, patience, say, progress, by_hand)
    finally:
        if not size_on_disk(part):
            discard(part)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _fetch(
    file: RemoteFile, target: Path, part: Path, patience: Patience, say: Say, progress: Progress, by_hand: str
) -> Path:
    refused: dict[str, str] = {}
    for url in file.urls:
        try:
            _fetch_from(url, file, part, patience, say, progress)
        except Refused as refusal:
            # What is the same for several addresses (no network) is said once.
            reason = str(refusal)
            refused[reason] = f"{refused[reason]}, likewise {url}" if reason in refused else f"{url} {reason}"
            if url != file.urls[-1]:
                say(f"{file.name}: {url} {reason}; asking the next address")
            continue
        on_disk(target, lambda: part.replace(target))
        sidecar(part).unlink(missing_ok=True)
        return target
    raise InputError(
        f"cannot fetch {file.name}: {'; '.join(refused.values()) or 'no address is known'}; "
        "look at the address and the network and run again, or give another --source" + (by_hand and f", or {by_hand}")
    )


def fault(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a file on disk: its size or its checksum; None where it is as it should be."""
    size = path.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        return f"has {size:,} bytes, not {file.size_bytes:,}"
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if not found.startswith(file.sha256.lower()):
        return f"has the SHA-256 {found[:16]}…, not {file.sha256[:16]}…"
    return None


def _fetch_from(url: str, file: RemoteFile, part: Path, patience: Patience, say: Say, progress: Progress) -> None:
    """Bring ``part`` to the whole file, checked, or raise ``Refused``."""
    import requests

    failures, furthest, wrong_wholes, wrong_joins = 0, size_on_disk(part), 0, 0
    resolved = False
    with requests.Session() as session:
        while True:
            try:
                in_one_piece = transfer(session, url, file, part, patience.timeout_s, say, progress)
                resolved = True
            except BrokenOff as interruption:
                # A network that goes away in the middle of a transfer may come back, one that was not there does not.
                resolved = resolved or not isinstance(interruption, Unresolved)
                retries = patience.retries if resolved else min(patience.retries, UNRESOLVED_RETRIES)
                grown = size_on_disk(part) > furthest
                furthest = max(furthest, size_on_disk(part))
                failures = 1 if grown else failures + 1
                if failures > retries:
                    tried = "once" if failures == 1 else f"{failures} times"
                    kept = f"; {size_text(size_on_disk(part))} are kept" if size_on_disk(part) else ""
                    raise Refused(f"{interruption}, tried {tried}{kept}") from interruption
                doubled = patience.first_wait_s * 2 ** (failures - 1)
                wait_s = min(doubled if interruption.wait_s is None else interruption.wait_s, LONGEST_WAIT_S)
                say(f"{file.name}: {interruption}; again in {wait_s:.3g} s")
                time.sleep(wait_s)
                continue
            reason = fault(part, file)
            if reason is None:
                return
            discard(part)
            furthest = 0
            # A part of one version and the rest of another is an accident. The same fault in one piece, twice, is none.
            wrong_wholes, wrong_joins = wrong_wholes + in_one_piece, wrong_joins + (not in_one_piece)
            if wrong_wholes > 1 or wrong_joins > max(patience.retries, 1):
                raise Refused(f"gives a file that {reason}")
            say(f"{file.name}: what arrived {reason}; once more from the beginning")


class DownloadProgress:
    """Lines and bars on stderr, so that stdout is left for the result."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line; above the bar while there is one."""
        self.console.print(text)

    @contextmanager
    def bar(self, title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
        """A function that takes how much is done and the total; ``unit`` is ``bytes`` or ``files``."""
        if self.console.is_terminal:
            with self._rich_bar(title, unit) as update:
                yield update
        else:
            yield self._tenths(title, unit)

    @contextmanager
    def _rich_bar(self, title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(), console=self.console
        )
        with bar:
            task = bar.add_task(title, total=None)
            begun = False

            def update(done: int, total: int | None) -> None:
                nonlocal begun
                if not begun:
                    # Bytes from an earlier run are no speed of this one.
                    bar.reset(task, total=total, completed=done)
                    begun = True
                bar.update(task, total=total, completed=done)

            yield update

    def _tenths(self, title: str, unit: str) -> Callable[[int, int | None], None]:
        last = -1

        def update(done: int, total: int | None) -> None:
            nonlocal last
            if not total or done * 10 // total == last:
                return
            last = done * 10 // total
            amount = f"{size_text(done)} of {size_text(total)}" if unit == "bytes" else f"{done:,} of {total:,} {unit}"
            self.say(f"{title}: {last * 10} %, {amount}")

        return update


WORKSPACE = ".download"


@dataclass(frozen=True)
class State:
    """What of a part is on disk: the files that count, and how many there should be."""

    found: int
    wanted: int

    @property
    def complete(self) -> bool:
        return self.found >= self.wanted


def state_of(archive: Archive, root: Path) -> State:
    """How much of a part is in ``root``: images by number, files of labels by name; empty files do not count."""
    folder = root / archive.folder
    if archive.images:
        return State(count_files(folder, ".jpg"), archive.images)
    whole = [name for name in archive.files if (folder / name).is_file() and (folder / name).stat().st_size]
    return State(len(whole), len(archive.files))


def download_wider_face(
    root: Path,
    parts: Sequence[str] = tuple(PARTS),
    *,
    archives: dict[str, Archive] | None = None,
    source: str | None = None,
    keep_archives: bool = False,
    patience: Patience | None = None,
    report: DownloadProgress | None = None,
) -> dict[str, str]:
    """Fetch, check and unpack what is missing; what is there is left alone.

    Args:
        parts: of ``train``, ``val``, ``test``, ``annotations``, ``ground_truth``.
        archives: other archives than the official ones, by part.
        source: the address of a folder that has all archives side by side, or such a folder on disk, in place of the
            official addresses.
        keep_archives: leave the archives in ``root``.

    Returns:
        A line per part: what is there now.

    Raises:
        InputError: no network, no space, no permission, another download at work, or an archive that is not the
            official one. Whatever had arrived stays, and the next call goes on from it. Where nothing had, no folder
            is left that was not there before.
    """
    table = {part: (archives or PARTS)[part] for part in parts}
    if "annotations" in table and "test" not in table:
        labels = table["annotations"]
        table["annotations"] = replace(labels, files=tuple(name for name in labels.files if name != TEST_NAMES))
    try:
        return _download(table, root, source, keep_archives, patience or Patience(), report or DownloadProgress())
    except OSError as error:
        # What has no better words of its own: a folder that may not be read, a disk that fails.
        reason = error.strerror or first_line(error)
        raise InputError(f"{error.filename or root}: {reason}; mend it, or choose another --root") from error


def _download(
    table: dict[str, Archive], root: Path, source: str | None, keep: bool, patience: Patience, report: DownloadProgress
) -> dict[str, str]:
    if all(state_of(archive, root).complete for archive in table.values()):
        return {part: f"{_summary(archive, root)}, complete; nothing to do" for part, archive in table.items()}
    check_writable(root, "--root")
    with without_empty_folders(root), _locked(root):
        lines, missing = {}, {}
        for part, archive in table.items():
            if state_of(archive, root).complete:
                lines[part] = f"{_summary(archive, root)}, complete already"
            else:
                missing[part] = archive
                if (root / archive.folder).exists() and not (root / archive.folder).is_dir():
                    raise InputError(f"{root / archive.folder} is a file where a folder belongs; move it away")
        _check_room(list(missing.values()), root, source, keep)
        for part, archive in missing.items():
            lines[part] = _complete(archive, root, source, keep, patience, report)
    return {part: lines[part] for part in table}


def _complete(
    archive: Archive, root: Path, source: str | None, keep: bool, patience: Patience, report: DownloadProgress
) -> str:
    before = state_of(archive, root)
    if before.found:
        report.say(
            f"{root / archive.folder}: {before.found:,} of {before.wanted:,} {_unit(archive)} are there; "
            "the rest is fetched"
        )
    path = _obtain(archive, root, source, patience, report)
    with _removed_if_unusable(path, root):
        members = members_of(path, archive.inner)
    held = sum(member.path.name.lower().endswith(".jpg") for member in members)
    lacking = set(archive.files) - {str(member.path) for member in members}
    if held < archive.images or lacking:
        what = f"{held:,} images of {archive.images:,}" if archive.images else f"no {', '.join(sorted(lacking))}"
        raise InputError(f"{path}: holds {what} under {archive.inner}; it is another archive, give another --source")
    check_space(root, unpacked_bytes(members) - _present_bytes(archive, before), f"unpacking {archive.name}")
    with report.bar(f"unpacking {archive.name}", "files") as progress, _removed_if_unusable(path, root):
        done = unpack(path, members, root / archive.folder, root / WORKSPACE, progress)
    after = state_of(archive, root)
    if not after.complete:
        raise InputError(
            f"{root / archive.folder}: {after.found:,} of {after.wanted:,} {_unit(archive)} after unpacking; run again"
        )
    if path.parent == root / WORKSPACE:
        if keep:
            path.replace(root / archive.name)
        else:
            path.unlink()
    line = f"{_summary(archive, root)}, "
    line += f"completed by {counted(done.written, 'file')}" if before.found else "unpacked"
    if done.different:
        line += f"; left alone, with other content than the archive's: {counted(len(done.different), 'file')}, "
        line += f"the first is {done.different[0]}"
    return line


@contextmanager
def _removed_if_unusable(path: Path, root: Path) -> Iterator[None]:
    """An archive that was fetched and cannot be unpacked goes, as one does that arrives damaged; others are somebody's.

    Raises:
        InputError: what is wrong with it.
    """
    try:
        yield
    except UnusableArchive as error:
        if path.parent != root / WORKSPACE:
            raise
        path.unlink()
        raise InputError(f"{path}: {error.fault}; it has been removed, {error.remedy}") from error


def _obtain(archive: Archive, root: Path, source: str | None, patience: Patience, report: DownloadProgress) -> Path:
    """The archive, checked: from the folder ``source``, from ``root`` if somebody has put it there, or fetched."""
    folder = local_source(source)
    remote = RemoteFile(archive.name, archive.addresses(source), archive.sha256, archive.size_bytes)
    for place in [folder] if folder is not None else [root]:
        path = place / archive.name
        if path.is_file():
            reason = fault(path, remote)
            if reason is not None:
                raise InputError(f"{path}: {reason}; delete it or move it away, and run again to have it fetched")
            report.say(f"{archive.name}: taken from {place}")
            return path
    if folder is not None:
        raise InputError(f"--source={folder}: there is no {archive.name} in it; put it there, or give another --source")
    with report.bar(archive.name, "bytes") as progress:
        by_hand = f"fetch the archives by hand and put them, packed as they are, into {root}"
        return fetch(remote, root / WORKSPACE, patience=patience, say=report.say, progress=progress, by_hand=by_hand)


def _check_room(missing: Sequence[Archive], root: Path, source: str | None, keep: bool) -> None:
    """Room for the fullest moment: an archive beside what is unpacked by then. The archive itself goes afterwards."""
    unpacked = kept = most = 0
    for archive in missing:
        at_hand = local_source(source) is not None or (root / archive.name).is_file()
        begun = [root / WORKSPACE / name for name in (archive.name, f"{archive.name}.part")]
        arrived = sum(path.stat().st_size for path in begun if path.is_file())
        to_fetch = 0 if at_hand else max(archive.size_bytes - arrived, 0)
        unpacked += max(archive.unpacked_bytes - _present_bytes(archive, state_of(archive, root)), 0)
        most = max(most, kept + to_fetch + unpacked)
        kept += to_fetch if keep else -min(arrived, archive.size_bytes)
    names = ", ".join(archive.name for archive in missing)
    check_space(root, most, f"fetching and unpacking {names}")


def _present_bytes(archive: Archive, state: State) -> int:
    """Of a part that is there in part: about what its files take already."""
    return archive.unpacked_bytes * min(state.found, state.wanted) // state.wanted


def _summary(archive: Archive, root: Path) -> str:
    folder = root / archive.folder
    if archive.images:
        return f"{folder}: {counted(state_of(archive, root).found, 'image')}"
    # All that is there, as unpacking counts it, and not only the files that are needed.
    return f"{folder}: {counted(count_files(folder), 'file')}"


def _unit(archive: Archive) -> str:
    """What :class:`State` counts."""
    return "images" if archive.images else "needed files"


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One download at a time in a folder. The lock falls with the process; the workspace goes when it is empty."""
    workspace = root / WORKSPACE
    workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workspace / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{root}: another download is at work there; wait for it, or stop it") from error
    try:
        yield
    finally:
        # While the lock is held: whoever comes next finds this one's work gone or has a lock file of its own.
        with suppress(OSError):
            if [path.name for path in workspace.iterdir()] == ["lock"]:
                (workspace / "lock").unlink()
                workspace.rmdir()
        lock.release()
