"""Zip archives from elsewhere, unpacked so that nothing leaves the folder and nothing is left half-done.

A folder that is not there yet appears whole, by one rename. A folder that is there is completed file by file, each by
rename: what is missing, and what is the mere beginning of its file. What has other content (somebody's resized images)
or is not in the archive is left alone.
"""

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fanet_lightning.errors import InputError, first_line

# Text of numbers packs to a third, JPEG not at all. Past this it is an archive made to fill the disk.
MOST_EXPANSION = 20
MOST_MEMBERS = 200_000
# What a file takes beyond its bytes: the rest of its last block.
BLOCK_BYTES = 4096
_CHUNK_BYTES = 1 << 20


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
        while chunk := content.read(_CHUNK_BYTES):
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
            while chunk := member.read(_CHUNK_BYTES):
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
