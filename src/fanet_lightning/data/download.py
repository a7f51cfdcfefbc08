"""One file over HTTP: resumed where it broke off, retried, held to its size and checksum, whole or not at all.

While it is on its way a file is ``NAME.part``, beside ``NAME.part.json`` with the validators that its beginning came
with. It gets its name when size and SHA-256 are right. Whatever a server says about ranges, lengths and versions is
taken as a hint: the checksum decides.
"""

import argparse
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fanet_lightning.data.disk_space import size_text
from fanet_lightning.data.transfer import (
    LONGEST_WAIT_S,
    BrokenOff,
    Progress,
    Refused,
    RemoteFile,
    Say,
    Unresolved,
    discard,
    on_disk,
    sidecar,
    size_on_disk,
    transfer,
    unwritable,
)
from fanet_lightning.errors import InputError

__all__ = ["Patience", "Progress", "RemoteFile", "Say", "add_patience", "fault", "fetch", "patience_of"]

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
