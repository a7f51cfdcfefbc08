"""Downloads: one file over HTTP with resume and SHA-256, and WIDER FACE's archives unpacked.

WIDER FACE is put on disk in the layout that ``data=wider_face`` reads::

    ROOT/WIDER_train/images/<event>/<name>.jpg      WIDER_val and WIDER_test alike
    ROOT/wider_face_split/*.txt, *.mat              the annotations
    ROOT/eval_gt/*.mat                              the ground truth of the official evaluation
    ROOT/.download/                                 what is not complete yet

The data set is for research (CC BY-NC-ND 4.0); its home is http://shuoyang1213.me/WIDERFACE/.

While it is fetched, a file is ``NAME.part``; it gets its name when its size and SHA-256 are right. What a server says
about ranges and lengths only saves work: the checksum decides.
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
from http import HTTPStatus
from pathlib import Path, PurePosixPath

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fanet_lightning.cli.errors import InputError, counted, first_line, size_text
from fanet_lightning.cli.files import check_writable, walk_files, without_empty_folders

# Statuses that may pass (RFC 9110, RFC 6585); 520 … 524 are those of a common cache in front of hosts.
_PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
_BREAKS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_CHUNK_BYTES = 1 << 16
LONGEST_WAIT_S = 120.0


def check_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse to begin what does not fit.

    Args:
        folder: where it goes; it need not exist yet.
        purpose: what takes the room, for the message.

    Raises:
        InputError: fewer than ``needed_bytes`` are free.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(
            f"{purpose} takes {size_text(needed_bytes)}, {existing} has {size_text(free)} free; "
            "make room, choose another --root or fewer --parts"
        )


class DownloadProgress:
    """Lines and bars on stderr; without a terminal, a line at every tenth."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line; above the bar while there is one."""
        self.console.print(text)

    @contextmanager
    def bar(self, title: str, *, files: bool = False) -> Iterator[Callable[[int, int | None], None]]:
        """A function that takes how much is done and the total (None: unknown), in bytes or in files."""
        amount = (MofNCompleteColumn(),) if files else (DownloadColumn(), TransferSpeedColumn())
        columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            task, last = bar.add_task(title, total=None), -1

            def update(done: int, total: int | None) -> None:
                nonlocal last
                if last < 0:  # what an earlier run has fetched is no speed of this one
                    bar.reset(task, total=total, completed=done)
                bar.update(task, total=total, completed=done)
                tenths = done * 10 // total if total else 0
                if total and tenths != last and not self.console.is_terminal:
                    self.say(f"{title}: {tenths * 10} %")
                last = tenths

            yield update


@dataclass(frozen=True)
class RemoteFile:
    """A file and its addresses.

    ``urls``        tried in this order.
    ``sha256``      hexadecimal, all of it or its first digits (torchvision has eight of them in a file's name).
    ``size_bytes``  None where it is not known beforehand.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class Patience:
    """Attempts without progress after the first, seconds before the first of them (they double), read timeout."""

    retries: int = 5
    first_wait_s: float = 1.0
    timeout_s: float = 30.0


def add_patience(parser: argparse.ArgumentParser) -> None:
    """The options of a command line from which :func:`patience_of` makes a :class:`Patience`."""
    for name, kind, default, text in (
        ("--retries", int, Patience.retries, "attempts without progress after the first"),
        ("--wait", _seconds, Patience.first_wait_s, "seconds before the first of them; doubles"),
        ("--timeout", _seconds, Patience.timeout_s, "read timeout in seconds"),
    ):
        parser.add_argument(name, type=kind, default=default, help=f"{text} (%(default)s)")


def _seconds(text: str) -> float:
    if not 0 < float(text) < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return float(text)


def patience_of(options: argparse.Namespace) -> Patience:
    """What the command line says."""
    return Patience(options.retries, options.wait, options.timeout)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One download at a time; the lock ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{path.parent}: another download is running there; wait for it, or stop it") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


class _Refused(Exception):
    """Permanent error: do not retry."""


class _BrokenOff(Exception):
    """May pass: retry, after ``wait_s`` where the server asks for it."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    patience: Patience = Patience(),
    say: Callable[[str], None] = print,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    by_hand: str = "",
) -> Path:
    """``folder/name``, fetched unless it is there already.

    Args:
        folder: is made where it is missing.
        say: takes a line for the person who waits.
        progress: takes the bytes done and their total (None: unknown).
        by_hand: what else can be done where no address gives it, for the message: ``fetch it by hand and …``.

    Returns:
        The path of a file whose size and checksum are those of ``file``.

    Raises:
        InputError: no address gave the file, another process is fetching it, or the disk took no more of it. What has
            arrived is kept and resumed by the next call; where nothing has, no file is left.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.is_file() and fault(target, file) is None:
        return target
    refused: dict[str, list[str]] = {}
    try:
        with _locked(folder / f"{file.name}.lock"):
            try:
                for url in file.urls:
                    try:
                        _fetch_from(url, file, part, patience, say, progress)
                    except _Refused as refusal:
                        refused.setdefault(str(refusal), []).append(url)
                        if url != file.urls[-1]:
                            say(f"{file.name}: {url} {refusal}; asking the next address")
                    else:
                        part.replace(target)
                        return target
            finally:
                if not _size(part):
                    part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or first_line(error)
        place = error.filename or part
        raise InputError(f"{place}: cannot be written ({reason}); make room, or choose another --root") from error
    # What is the same for several addresses (no network) is said once.
    reasons = "; ".join(", likewise ".join([f"{urls[0]} {reason}", *urls[1:]]) for reason, urls in refused.items())
    raise InputError(
        f"cannot fetch {file.name}: {reasons or 'no address is known'}; "
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


def _fetch_from(
    url: str,
    file: RemoteFile,
    part: Path,
    patience: Patience,
    say: Callable[[str], None],
    progress: Callable[[int, int | None], None],
) -> None:
    """Bring ``part`` to the complete file, checked."""
    failures, furthest, wrong = 0, _size(part), {True: 0, False: 0}
    while True:
        try:
            in_one_piece = _request(url, file, part, patience.timeout_s, progress)
        except _BrokenOff as interruption:
            failures = 1 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures > patience.retries:
                kept = f"; {size_text(_size(part))} are kept" if _size(part) else ""
                raise _Refused(f"{interruption}, tried {counted(failures, 'time')}{kept}") from interruption
            doubled = patience.first_wait_s * 2 ** (failures - 1)
            wait_s = min(doubled if interruption.wait_s is None else interruption.wait_s, LONGEST_WAIT_S)
            say(f"{file.name}: {interruption}; again in {wait_s:.3g} s")
            time.sleep(wait_s)
            continue
        reason = fault(part, file)
        if reason is None:
            return
        part.unlink()
        furthest = 0
        # Two versions joined is an accident; the same fault twice in one piece is not.
        wrong[in_one_piece] += 1
        if wrong[True] > 1 or wrong[False] > max(patience.retries, 1):
            raise _Refused(f"gives a file that {reason}")
        say(f"{file.name}: what arrived {reason}; once more from the beginning")


def _request(
    url: str, file: RemoteFile, part: Path, timeout_s: float, progress: Callable[[int, int | None], None]
) -> bool:
    """One request; appends to ``part`` what it brings. Returns whether all of the file came with it."""
    offset = _size(part)
    if file.size_bytes is not None and offset >= file.size_bytes:
        return False  # the checksum decides what it is worth
    headers = {"Accept-Encoding": "identity", "User-Agent": "fanet-lightning"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(10, timeout_s)) as response:
            start, total = _understand(response, file, part, offset)
            _receive(response, part, start, total, progress)
            return start == 0
    except requests.RequestException as error:
        if isinstance(error, requests.exceptions.SSLError) or not isinstance(error, _BREAKS):
            raise _Refused(f"cannot be asked ({first_line(error)})") from error
        cause = getattr(error.args[0], "reason", error.args[0]) if error.args else error
        raise _BrokenOff(f"breaks off or cannot be reached ({first_line(cause)})") from error


def _understand(response: requests.Response, file: RemoteFile, part: Path, offset: int) -> tuple[int, int | None]:
    """Where the answer begins in the file, and the file's size (None: unknown)."""
    status = response.status_code
    name = f"{status} {response.reason}"
    if status in _PASSING:
        retry_after = response.headers.get("Retry-After", "").strip()
        wait_s = float(retry_after) if retry_after.isdigit() else None
        if wait_s is not None and wait_s > LONGEST_WAIT_S:
            raise _Refused(f"answers {name}, and to come back in {wait_s:.0f} s; run again then")
        raise _BrokenOff(f"answers {name}", wait_s)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
        part.unlink()
        raise _BrokenOff("has no bytes after those at hand", 0)
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise _Refused(f"answers {name}")
    start, length = 0, response.headers.get("Content-Length", "")
    if status == HTTPStatus.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if span is None or int(span[1]) != offset:
            part.unlink(missing_ok=True)
            raise _BrokenOff("answers another range than was asked for", 0)
        start, length = offset, span[2]
    total = int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None
    if None not in (total, file.size_bytes) and total != file.size_bytes:
        raise _Refused(f"announces {total:,} bytes, {file.name} has {file.size_bytes:,}: another file, or a login page")
    total = total if file.size_bytes is None else file.size_bytes
    if total is not None:
        check_space(part.parent, total - max(start, offset), f"{file.name} of {size_text(total)}")
    return start, total


def _receive(
    response: requests.Response, part: Path, start: int, total: int | None, progress: Callable[[int, int | None], None]
) -> None:
    done = start
    progress(done, total)
    with part.open("r+b" if part.exists() else "wb") as out:
        for chunk in response.iter_content(_CHUNK_BYTES):
            if not done and chunk.lstrip()[:1] == b"<":
                raise _Refused("answers a page instead of the file (a proxy's or a login page)")
            if total is not None and done + len(chunk) > total:
                raise _Refused(f"sends more than the announced {total:,} bytes: it is another file")
            if done == start:  # the old content goes when the first new byte is there, not before
                out.seek(start)
                out.truncate()
            out.write(chunk)
            done += len(chunk)
            progress(done, total)
    if total is not None and done < total:
        raise _BrokenOff(f"breaks off after {size_text(done)} of {size_text(total)}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


# Text of numbers packs to a third, JPEG not at all. Past this it is an archive made to fill the disk.
MOST_EXPANSION = 20


class UnusableArchive(InputError):
    """The archive itself is at fault, not the disk or the folder."""


def unpack(
    archive: Path, inner: str, target: Path, workspace: Path, progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, list[str]]:
    """Unpack the folder ``inner`` of a zip archive into ``target``.

    A new ``target`` appears complete, by one rename. To a folder that is there the missing and empty files are added;
    no other file of it is touched. What macOS adds (``__MACOSX``, ``._name``, ``.DS_Store``) is left out.

    Args:
        workspace: folder on the same file system for what is not complete yet.
        progress: takes the files done and their number.

    Returns:
        How many files were written, and the names of those that were left although their sizes differ.

    Raises:
        UnusableArchive: no zip, a damaged member, or a hostile one: a name that leads out of the folder, a link, more
            content than the archive's bytes can hold. A new ``target`` is then not there.
        OSError: the disk takes no more, or a file is in the way; as above.
    """
    staging = workspace / f"{target.name}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    written, different = 0, []
    fresh = not target.exists()
    try:
        with zipfile.ZipFile(archive) as content:
            members = _members(archive, content, inner)
            for number, (path, info) in enumerate(members.items(), start=1):
                present = _size(target / path)
                if present:
                    different += [str(path)] if present != info.file_size else []
                else:
                    out = staging / path
                    out.parent.mkdir(parents=True, exist_ok=True)
                    with content.open(info) as packed, out.open("wb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
                    if not fresh:
                        (target / path).parent.mkdir(parents=True, exist_ok=True)
                        out.replace(target / path)
                    written += 1
                progress(number, len(members))
        if fresh:
            staging.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.replace(target)
    except InputError:
        raise
    # Damaged directories make zipfile raise more than its own error.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnusableArchive(f"{archive}: no readable zip ({first_line(error)})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return written, different


def _members(archive: Path, content: zipfile.ZipFile, inner: str) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files under ``inner`` by their name relative to it, once every name in the archive was found harmless."""
    found = {}
    for info in content.infolist():
        path, name = PurePosixPath(info.filename), info.orig_filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        outside = path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00-\x1f]", name)
        if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnusableArchive(f"{archive}: {name!r} leads out of the folder, or is a link or a device")
        macos = path.parts[:1] == ("__MACOSX",) or path.name.startswith("._") or path.name == ".DS_Store"
        if not info.is_dir() and path.is_relative_to(inner) and not macos:
            found[path.relative_to(inner)] = info
    size, unpacked = archive.stat().st_size, sum(info.file_size for info in found.values())
    if unpacked > MOST_EXPANSION * size or sum(info.compress_size for info in found.values()) > size:
        raise UnusableArchive(f"{archive}: {size:,} bytes claim to hold {unpacked:,}")
    return found


def count_files(folder: Path, suffix: str = "") -> int:
    """Files below ``folder`` that end in ``suffix``, in any letter case; empty and hidden ones do not count."""
    return sum(name.lower().endswith(suffix) and _size(folder / name) > 0 for name in walk_files(folder))


HUB = "https://huggingface.co"
_HUB_FILES = f"{HUB}/datasets/CUHK-CSE/wider_face/resolve/main/data"
_HOME = "http://shuoyang1213.me/WIDERFACE/support"
# Of the annotations, only the test images need it: a folder or archive without it is complete for all else.
TEST_NAMES = "wider_face_test_filelist.txt"
WORKSPACE = ".download"


@dataclass(frozen=True)
class Archive:
    """A part of the data set.

    ``inner``   the folder in the archive that is taken.
    ``folder``  where it goes, under the root.
    ``images``  how many ``.jpg`` it has, 0 for a part of labels.
    ``files``   the files that a part of labels must have.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    size_bytes: int
    inner: str
    folder: str
    images: int = 0
    files: tuple[str, ...] = ()

    def addresses(self, source: str | None) -> tuple[str, ...]:
        """Where to ask, in order: under ``source``, else the official addresses (``HF_ENDPOINT`` for the hub's)."""
        if source is not None:
            return (f"{source.rstrip('/')}/{self.name}",)
        endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        return tuple(endpoint + url.removeprefix(HUB) if url.startswith(f"{HUB}/") else url for url in self.urls)

    @property
    def unpacked_bytes(self) -> int:
        """About what it takes on disk: text packs to a third, JPEG not at all, and last blocks waste 2 kB a file."""
        return self.size_bytes + 2048 * self.images if self.images else 3 * self.size_bytes

    def state(self, root: Path) -> tuple[int, int]:
        """How many of its images or needed files are in ``root``, and how many there should be."""
        folder = root / self.folder
        if self.images:
            return count_files(folder, ".jpg"), self.images
        return sum(_size(folder / name) > 0 for name in self.files), len(self.files)

    def complete(self, root: Path) -> bool:
        found, wanted = self.state(root)
        return found >= wanted

    def summary(self, root: Path) -> str:
        folder = root / self.folder
        noun, suffix = ("image", ".jpg") if self.images else ("file", "")
        return f"{folder}: {counted(count_files(folder, suffix), noun)}"


def _images(split: str, sha256: str, size_bytes: int, images: int) -> Archive:
    name = f"WIDER_{split}"
    return Archive(f"{name}.zip", (f"{_HUB_FILES}/{name}.zip",), sha256, size_bytes, name, name, images)


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
        files=("wider_face_train_bbx_gt.txt", "wider_face_val_bbx_gt.txt", TEST_NAMES),
    ),
    "ground_truth": Archive(
        name="eval_tools.zip",
        urls=(f"{_HOME}/eval_script/eval_tools.zip",),
        sha256="1cf49c8243fa8a1632efe7f6aa09fd7a3994ac838c9008bdbc9dd1d547bb234a",
        size_bytes=8_447_003,
        inner="eval_tools/ground_truth",
        folder="eval_gt",
        files=("wider_face_val.mat", "wider_easy_val.mat", "wider_medium_val.mat", "wider_hard_val.mat"),
    ),
}


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
    archives, keys = dict(PARTS), [field.name for field in fields(Archive)]
    try:
        for part, entry in json.loads(path.read_text(encoding="utf-8")).items():
            for key, value in entry.items():
                value = tuple(value) if isinstance(value, list) else value
                if key not in keys or type(value) is not type(getattr(archives[part], key)):
                    raise ValueError(f"{part}.{key}={value!r} is not understood; take {keys}")
                archives[part] = replace(archives[part], **{key: value})  # type: ignore[arg-type]
            if len(archives[part].sha256) != 64:
                raise ValueError(f"{part}.sha256 has not 64 digits")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = (
            f"{getattr(error, 'strerror', None) or first_line(error)}; give a JSON file of {{part: {{key: value}}}}"
        )
        raise InputError(f"--manifest={path}: {reason}") from error
    return archives


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
            official one. Whatever had arrived stays and is resumed by the next call. Where nothing had, no folder is
            left that was not there before.
    """
    table = {part: (archives or PARTS)[part] for part in parts}
    if "annotations" in table and "test" not in table:
        labels = table["annotations"]
        table["annotations"] = replace(labels, files=tuple(name for name in labels.files if name != TEST_NAMES))
    missing = {part: archive for part, archive in table.items() if not archive.complete(root)}
    done = {part: f"{own.summary(root)}, complete; nothing to do" for part, own in table.items() if part not in missing}
    if not missing:
        return done
    patience, report, workspace = patience or Patience(), report or DownloadProgress(), root / WORKSPACE
    check_writable(root, "--root")
    try:
        with without_empty_folders(root):
            try:
                with _locked(workspace / "lock"):
                    _check_room(list(missing.values()), root, source, keep_archives)
                    for part, archive in missing.items():
                        done[part] = _complete(archive, root, source, keep_archives, patience, report)
            finally:
                with suppress(OSError):  # it is not empty
                    workspace.rmdir()
    except OSError as error:
        reason = error.strerror or first_line(error)
        place = error.filename or root
        raise InputError(f"{place}: {reason}; make room, move it away, or choose another --root") from error
    return {part: done[part] for part in table}


def _complete(
    archive: Archive, root: Path, source: str | None, keep: bool, patience: Patience, report: DownloadProgress
) -> str:
    workspace = root / WORKSPACE
    found, wanted = archive.state(root)
    if found:
        report.say(f"{root / archive.folder}: {found:,} of {wanted:,} needed files are there; the rest is fetched")
    path = _obtain(archive, root, source, patience, report)
    try:
        with report.bar(f"unpacking {archive.name}", files=True) as progress:
            written, different = unpack(path, archive.inner, root / archive.folder, workspace, progress)
    except UnusableArchive as error:
        if path.parent != workspace:  # a person's own archive is not ours to remove
            raise InputError(f"{error}; delete it and fetch it from a source that you trust") from error
        path.unlink()
        raise InputError(f"{error}; it has been removed, fetch it from a source that you trust") from error
    if not archive.complete(root):
        found, wanted = archive.state(root)
        raise InputError(
            f"{root / archive.folder}: {found:,} of {wanted:,} needed files after unpacking {path}; it is another "
            "archive, give another --source"
        )
    if path.parent == workspace:
        if keep:
            path.replace(root / archive.name)
        else:
            path.unlink()
    line = f"{archive.summary(root)}, {counted(written, 'file')} unpacked"
    if different:
        line += f"; left alone, of another size than the archive's: {counted(len(different), 'file')}, "
        line += f"the first is {different[0]}"
    return line


def _obtain(archive: Archive, root: Path, source: str | None, patience: Patience, report: DownloadProgress) -> Path:
    """The archive, checked: from the folder ``source``, from ``root`` if a person has put it there, or fetched."""
    folder = local_source(source)
    remote = RemoteFile(archive.name, archive.addresses(source), archive.sha256, archive.size_bytes)
    path = (folder or root) / archive.name
    if path.is_file():
        reason = fault(path, remote)
        if reason is not None:
            raise InputError(f"{path}: {reason}; delete it or move it away, and run again to have it fetched")
        report.say(f"{archive.name}: taken from {path.parent}")
        return path
    if folder is not None:
        raise InputError(f"--source={folder}: there is no {archive.name} in it; put it there, or give another --source")
    with report.bar(archive.name) as progress:
        by_hand = f"fetch the archives by hand and put them, packed as they are, into {root}"
        return fetch(remote, root / WORKSPACE, patience=patience, say=report.say, progress=progress, by_hand=by_hand)


def _check_room(missing: Sequence[Archive], root: Path, source: str | None, keep: bool) -> None:
    """Room for what is unpacked and for the largest archive; kept archives stay, all of them."""
    to_fetch, unpacked = [0], 0
    for archive in missing:
        places = [root / WORKSPACE / f"{archive.name}.part", root / WORKSPACE / archive.name, root / archive.name]
        if local_source(source) is None:
            to_fetch.append(max(archive.size_bytes - max(map(_size, places)), 0))
        found, wanted = archive.state(root)
        unpacked += archive.unpacked_bytes * (wanted - found) // wanted
    names = ", ".join(archive.name for archive in missing)
    check_space(root, unpacked + (sum if keep else max)(to_fetch), f"fetching and unpacking {names}")
