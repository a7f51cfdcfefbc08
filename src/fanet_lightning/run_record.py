"""``run.json``: what a run is, how far it got and what it reached; and the lock that keeps two runs apart.

The record is what a sweep asks before it starts a cell, and what a report is made of.
"""

import datetime
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal

from filelock import FileLock, Timeout

from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced

RECORD_FILE, LOG_FILE = "run.json", "train.log"
LOCK_FILE, HOLDER_FILE = ".lock", ".lock.holder"
VERSION = 1


class InUse(InputError):
    """Another process holds a folder."""


# ``stopped``: by ``stop_after``, before the end of its schedule, to be resumed. ``interrupted`` is never written; it is
# what :func:`state_now` makes of a run that was killed.
State = Literal["running", "interrupted", "stopped", "finished", "failed"]

# Settings that say where and how a run is carried out, not what it trains. Two starts that differ in these alone are
# the same run.
CIRCUMSTANCES = frozenset({
    "out", "sweep", "group", "name", "resume", "overwrite", "workers", "threads", "logger", "profile", "stop_after",
    "seeds", "checkpoint_every", "evaluate_at_end", "also_protocols", "final_protocols", "compile", "channels_last",
    "data.root", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.log_every_n_steps", "trainer.enable_progress_bar", "cache_dir", "cache_gib",
})  # fmt: skip

# Settings that runs of earlier versions do not have, and what those runs did: they are resumed as what they were.
LATER_SETTINGS = {
    "init": None, "init_part": "all", "cache": None, "cache_side": None, "model.face_prior": None,
    "loss.assignment": "iou", "loss.classification": "cross_entropy", "loss.focal_alpha": 0.25, "loss.focal_gamma": 2.0,
    "loss.box": "smooth_l1", "loss.box_weight": 1.0, "loss.box_beta": 1.0,
}  # fmt: skip


@dataclass
class RunRecord:
    """The contents of ``run.json``.

    ``scores`` maps a protocol's name to ``folder`` (within the run's), ``ap`` per setting, ``images`` and
    ``images_per_second``. ``train`` holds ``epoch`` (epochs done), ``epochs``, ``steps``, ``seconds`` (wall time of
    training over all starts), ``starts``, ``images_per_second``, ``wait_share`` (of the last epoch: seconds spent
    waiting for samples ÷ seconds), ``unreadable_images`` (their ids), ``skipped_steps``, ``device`` and, on a CPU,
    ``threads``.
    """

    name: str
    seed: int
    settings: dict[str, Any]
    state: State = "running"
    error: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    ended: str | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    wandb: dict[str, Any] | None = None
    made_by: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def write(self, folder: Path) -> None:
        """Write ``folder/run.json`` by rename.

        Raises:
            InputError: the folder cannot be written.
        """
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        try:
            with replaced(folder / RECORD_FILE) as path:
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{folder / RECORD_FILE} cannot be written ({error.strerror}); free the disk") from error

    def is_complete(self, protocols: set[str]) -> bool:
        """Trained to its end, and scored under all of ``protocols``."""
        return self.state == "finished" and protocols <= set(self.scores)


def read_record(folder: Path) -> RunRecord | None:
    """The record of the run in ``folder``; None where no run has begun.

    Raises:
        InputError: ``run.json`` is damaged or of another version.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("version") != VERSION:
            raise InputError(f"{path}: version {content.get('version')}, this package reads {VERSION}")
        known = {f.name for f in fields(RunRecord)}
        return RunRecord(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no run record ({error}); remove the file, or take another folder") from error


def now() -> str:
    """Local time in ISO format, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def differing_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, first value, second value) of every setting that changes what is trained."""
    a, b = (LATER_SETTINGS | flat(given) for given in (first, second))
    for settings in (a, b):
        # Images kept in memory change no sample; copies on disk are another data set, and only they have a side.
        if settings["cache"] != "disk":
            settings["cache"] = settings["cache_side"] = None
        if settings["init"] is not None or settings.get("weights") not in (None, "none"):
            settings["model.normaliser"] = None  # whatever was configured, it came with the weights
    keys = [key for key in dict.fromkeys([*a, *b]) if not _is_circumstance(key)]
    return [(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)]


def _is_circumstance(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[: i + 1]) in CIRCUMSTANCES for i in range(len(parts)))


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted key → value."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


class TerminalLog:
    """While entered, what the process prints (stdout, stderr) is also kept, and from :meth:`begin` on in a file.

    A progress bar draws over its own line, and only what is left of that line at its end is kept.
    """

    current: "TerminalLog | None" = None

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._file: IO[str] | None = None

    def __enter__(self) -> "TerminalLog":
        TerminalLog.current = self
        self._streams: tuple[Any, Any] = (sys.stdout, sys.stderr)
        copies: list[Any] = [_Copied(stream, self) for stream in self._streams]
        sys.stdout, sys.stderr = copies
        return self

    def begin(self, path: Path) -> None:
        """Append to ``path`` the command, what was printed so far and all that follows."""
        self._file = path.open("a", encoding="utf-8", errors="replace")
        print(f"$ {shlex.join(sys.argv)}", *self._lines, sep="\n", file=self._file, flush=True)

    def add(self, line: str) -> None:
        if self._file is None:
            self._lines.append(line)
        elif not self._file.closed:
            with suppress(OSError):  # a full disk is said where it matters, and printing goes on
                print(line, file=self._file, flush=True)

    def __exit__(self, *_: object) -> None:
        for copy in (sys.stdout, sys.stderr):
            if isinstance(copy, _Copied):
                copy.end()
        sys.stdout, sys.stderr = self._streams
        TerminalLog.current = None
        if self._file is not None:
            self._file.close()


class _Copied:
    """A text stream that hands its finished lines to a log as well."""

    def __init__(self, stream: Any, log: TerminalLog) -> None:
        self._stream, self._log, self._rest = stream, log, ""

    def write(self, text: str) -> int:
        count: int = self._stream.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._log.add(_as_it_stands(line))
        if len(self._rest) > 10_000:
            self._rest = _as_it_stands(self._rest)
        return count

    def end(self) -> None:
        if self._rest:
            self._log.add(_as_it_stands(self._rest))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _as_it_stands(line: str) -> str:
    """What a terminal shows of a line in the end: without control sequences, and without what was drawn over."""
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", line).rstrip("\r").rsplit("\r", 1)[-1]


@contextmanager
def locked(folder: Path, what: str = "run", patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for this process; the lock falls with the process, however that ends.

    Args:
        folder: made if need be.
        what: ``run``, ``cell`` or ``sweep``, for the message.
        patience_seconds: wait so long for another process to let go.

    Raises:
        InUse: another process holds it; names its process id and machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK_FILE), folder / HOLDER_FILE
    try:
        lock.acquire(timeout=patience_seconds)
    except Timeout as error:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise InUse(f"{folder} is in use by a {what} ({who}); wait for it, stop it, or give another folder") from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def state_now(folder: Path, record: RunRecord) -> State:
    """The record's state; ``interrupted`` where it says ``running`` and no process holds the folder."""
    if record.state != "running":
        return record.state
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return "interrupted"
    except Timeout:
        return "running"
    except OSError:  # a folder that may only be read
        return "running"


def is_first_process() -> bool:
    """Whether this is rank zero, as told by the environment: asked before a process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
