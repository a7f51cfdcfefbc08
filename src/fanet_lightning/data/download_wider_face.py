"""WIDER FACE on disk, from the places where it is published, in the layout that ``data=wider_face`` reads.

::

    ROOT/WIDER_train/images/<event>/<name>.jpg      WIDER_val and WIDER_test alike
    ROOT/wider_face_split/*.txt, *.mat              the annotations
    ROOT/eval_gt/*.mat                              the ground truth of the official evaluation
    ROOT/.download/                                 what is not whole yet; gone when everything is

The data set is for research (CC BY-NC-ND 4.0); its home is http://shuoyang1213.me/WIDERFACE/.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from fanet_lightning.data.archives import UnusableArchive, count_files, members_of, unpack, unpacked_bytes
from fanet_lightning.data.disk_space import check_space
from fanet_lightning.data.download import Patience, RemoteFile, fault, fetch
from fanet_lightning.data.download_progress import DownloadProgress
from fanet_lightning.data.wider_face_archives import PARTS, TEST_NAMES, Archive, local_source
from fanet_lightning.errors import InputError, first_line
from fanet_lightning.files import check_writable, without_empty_folders
from fanet_lightning.wording import counted

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
