"""Where results come from: run.json and its lock, made_by, lists of training images. No torch.

``run.json`` is what a sweep asks before it starts a variant, and what a report is made of. A score on images that a
model has seen says nothing about other images: every checkpoint names its training images, and :mod:`evaluate` and
:mod:`score` say how many of them they are scoring.
"""

import datetime
import hashlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import lines_of, replaced

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
    "out", "sweep", "group", "name", "resume", "overwrite", "workers", "threads", "logger", "callbacks", "profile",
    "stop_after", "seeds", "checkpoint_every", "evaluate_at_end", "also_protocols", "final_protocols", "compile",
    "channels_last", "data.root", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.log_every_n_steps", "trainer.enable_progress_bar", "cache_dir", "cache_gib",
})  # fmt: skip

# Settings that runs of earlier versions do not have, and what those runs did: they are resumed as what they were.
LATER_SETTINGS: dict[str, Any] = {
    "init": None, "init_part": "all", "cache": None, "cache_side": None, "model.face_prior": None,
    "loss.assignment": "iou", "loss.classification": "cross_entropy", "loss.focal_alpha": 0.25, "loss.focal_gamma": 2.0,
    "loss.box": "smooth_l1", "loss.box_weight": 1.0, "loss.box_beta": 1.0, "augment.extra": [],
    "optim.backbone_factor": 1.0, "freeze_until": None, "freeze_epochs": None,
}  # fmt: skip

# `_target_` of earlier versions, and where the same class is now.
RENAMED_TARGETS = {
    "fanet_lightning.data.augment.TrainAugment": "fanet_lightning.data.transforms.TrainAugment",
}


@dataclass
class RunRecord:
    """The contents of ``run.json``.

    ``scores`` maps a protocol's name to ``folder`` (within the run's), ``ap`` per setting, ``images`` and
    ``images_per_second``. ``train`` holds ``epoch`` (epochs done), ``epochs``, ``steps``, ``seconds`` (wall time of
    training over all starts), ``starts``, ``images_per_second``, ``wait_share`` (of the last epoch: seconds spent
    waiting for samples ÷ seconds), ``unreadable_images`` (their ids), ``skipped_steps``, ``device`` and, on a CPU,
    ``threads``. ``cpu`` is its model and the instructions that PyTorch uses; ``data`` the digest of
    :meth:`fanet_lightning.data.datamodule.FaceDataModule.digest`.
    """

    name: str
    seed: int
    settings: dict[str, Any]
    state: State = "running"
    error: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
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
        # Images kept in memory change no sample; copies on disk (earlier versions) were another data set.
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
        elif key == "_target_":
            found[f"{prefix}{key}"] = RENAMED_TARGETS.get(value, value)
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
            with suppress(OSError):  # a full disk is said where it matters, and printing continues
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
    """What a terminal shows of a line in the end: without control sequences, and without what was overwritten."""
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", line).rstrip("\r").rsplit("\r", 1)[-1]


@contextmanager
def locked(folder: Path, what: str = "run", patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for this process; the lock falls with the process, however that ends.

    Args:
        folder: made if need be.
        what: ``run``, ``variant`` or ``sweep``, for the message.
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


TRAINING_IMAGES_FILE = "training_images.txt"
# Name of the folder that `evaluate` writes predictions into; the list is next to it.
PREDICTIONS_FOLDER = "predictions"
# Key in a checkpoint of `train`.
CHECKPOINT_KEY = "training_images"
# Key in scores.json.
SCORES_KEY = "trained_on_images"
_HEADING = re.compile(r"#\s*(trained on|scored):\s*data=(\S+)\s+split=(\S+)(?:\s+images=(\d+))?\s*$")
_UNKNOWN = "?"


@dataclass(frozen=True)
class TrainingImages:
    """Images of one part of one data set.

    ``data``      its name as on the command line, None where it is not known.
    ``split``     the part as the data set names it, None where unknown.
    ``image_ids`` as in ``ImageRecord``; ``.jpg`` at the end does not count, as in every list of images.
    """

    data: str | None
    split: str | None
    image_ids: tuple[str, ...]


class Listed(NamedTuple):
    """What a file holds: the training images, and (data, split) of what was scored where ``evaluate`` wrote it."""

    parts: list[TrainingImages]
    scored: tuple[str | None, str | None]


@dataclass(frozen=True)
class TrainedOn:
    """How many of the scored images were trained on, and which comes first."""

    count: int
    images: int
    first: str | None = None

    @property
    def share(self) -> float:
        return self.count / self.images if self.images else 0.0

    @property
    def warning(self) -> str | None:
        """One line for the person at the command line; None where no scored image was trained on."""
        if not self.count:
            return None
        verb = "was" if self.count == 1 else "were"
        return (
            f"{self.count:,} of {self.images:,} scored images {verb} trained on; these numbers say nothing about "
            f"unseen images{f' (the first is {self.first})' if self.first else ''}"
        )


def trained_on(
    parts: Iterable[TrainingImages], image_ids: Iterable[str], data: str | None = None, split: str | None = None
) -> TrainedOn:
    """How many of ``image_ids`` are among the training images.

    Images are the same by their id. Two data sets that share images (a copy in another format, say) are so recognised;
    numbered images of two splits of one data set are not mistaken for each other where both splits are known.

    Args:
        parts: the training images.
        image_ids: the scored images, each once.
        data, split: what the scored images are of; None where unknown.
    """
    seen = {
        name
        for part in parts
        if not (data is not None and part.data == data and None not in (part.split, split) and part.split != split)
        for image_id in part.image_ids
        for name in ([_bare(image_id)] if part.data is not None else _names_meant(image_id))
    }
    scored = [_bare(image_id) for image_id in image_ids]
    among = [image_id for image_id in scored if image_id in seen]
    return TrainedOn(len(among), len(scored), among[0] if among else None)


def merged(parts: Iterable[TrainingImages]) -> list[TrainingImages]:
    """The same images, each data set and split once and each id once, in the order of their first appearance.

    ``a`` and ``a.jpg`` are one image, as in :func:`trained_on`, and keep the name that comes first.
    """
    found: dict[tuple[str | None, str | None], dict[str, str]] = {}
    for part in parts:
        names = found.setdefault((part.data, part.split), {})
        for image_id in part.image_ids:
            names.setdefault(_bare(image_id), image_id)
    return [TrainingImages(data, split, tuple(names.values())) for (data, split), names in found.items()]


def to_plain(parts: Iterable[TrainingImages]) -> list[dict[str, Any]]:
    """Plain containers for a checkpoint: ``[{"data": …, "split": …, "ids": […]}, …]``."""
    return [{"data": part.data, "split": part.split, "ids": list(part.image_ids)} for part in parts]


def from_plain(value: Any, where: Path) -> list[TrainingImages]:
    """The inverse of :func:`to_plain`.

    Raises:
        InputError: ``value`` is no such thing; names ``where``.
    """
    try:
        return [TrainingImages(part["data"], part["split"], tuple(part["ids"])) for part in value]
    except (TypeError, KeyError) as error:
        raise InputError(f"{where}: {CHECKPOINT_KEY} is not a list of images; take another checkpoint") from error


def images_of(checkpoint: Mapping[str, Any], where: Path) -> list[TrainingImages] | None:
    """The training images that a checkpoint names; None for an older one, which names none.

    Raises:
        InputError: see :func:`from_plain`.
    """
    value = checkpoint.get(CHECKPOINT_KEY)
    return None if value is None else from_plain(value, where)


def write_training_images(
    path: Path, parts: Iterable[TrainingImages], scored: tuple[str | None, str | None] | None = None
) -> None:
    """Write the list by rename: one image id a line, under a heading per part; also a list for ``images=``.

    Args:
        path: the file.
        parts: the training images.
        scored: (data, split) of the images that the predictions next to the list are about.
    """
    lines = [f"# scored: {_named(*scored)}"] if scored is not None else []
    for part in parts:
        lines.append(f"# trained on: {_named(part.data, part.split)} images={len(part.image_ids)}")
        lines += part.image_ids
    with replaced(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def read_training_images(path: Path) -> Listed:
    """A list of :func:`write_training_images`, or any other list of images, of which then no data set is known.

    Raises:
        InputError: no such file, not text, a heading that counts other images than follow it, no image at all.
    """
    lines = lines_of(path, f"the list of training images {path}", "give a text file with one image a line")
    scored: tuple[str | None, str | None] = (None, None)
    sections: list[tuple[str | None, str | None, int | None, list[str]]] = [(None, None, None, [])]
    for line in lines:
        heading = _HEADING.match(line)
        if heading and heading[1] == "scored":
            scored = (_known(heading[2]), _known(heading[3]))
        elif heading:
            sections.append((_known(heading[2]), _known(heading[3]), int(heading[4]) if heading[4] else None, []))
        elif sections[-1][2] is None and (image_id := "" if line[:1] == "#" else line.partition(" #")[0].strip()):
            sections[-1][3].append(image_id)  # a list of somebody else
        elif sections[-1][2] is not None:
            sections[-1][3].append(line)
    for data, split, stated, ids in sections:
        if stated not in (None, len(ids)):
            raise InputError(
                f"{path}: {len(ids):,} images of {data} {split}, the heading says {stated:,}; the list is damaged, "
                "write it again"
            )
    parts = [TrainingImages(data, split, tuple(ids)) for data, split, _, ids in sections if ids]
    if not parts:
        raise InputError(f"the list of training images {path} names no image; write one image a line")
    return Listed(parts, scored)


def list_beside(predictions: Path) -> Path | None:
    """The list that ``evaluate`` has written next to these predictions; None for predictions of another origin."""
    for folder in (predictions.absolute(), predictions.absolute().parent):
        if folder.name == PREDICTIONS_FOLDER:
            path = folder.with_name(TRAINING_IMAGES_FILE)
            return path if path.is_file() else None
    return None


def trained_on_by_list(path: Path, image_ids: Sequence[str], data: str | None = None) -> TrainedOn:
    """:func:`trained_on` with a list on disk; ``data``: what is scored, where the list does not say so.

    Raises:
        InputError: see :func:`read_training_images`.
    """
    listed = read_training_images(path)
    scored_data, scored_split = listed.scored
    return trained_on(listed.parts, image_ids, scored_data or data, scored_split)


def scores_entry(found: TrainedOn | None) -> dict[str, Any]:
    """What ``scores.json`` says: ``trained_on_images`` with ``count`` and ``share``, null where it is not known."""
    return {SCORES_KEY: None if found is None else {"count": found.count, "share": found.share}}


def _names_meant(written: str) -> list[str]:
    """The ids that a line of a list of no known data set may mean: itself, and as a path in folders of any name.

    Names without a folder are no ends of paths: different images have them (``train/0001.jpg``, ``val/0001.jpg``).
    """
    parts = PurePosixPath(_bare(written).replace("\\", "/")).parts
    return [_bare(written), *("/".join(parts[start:]) for start in range(max(1, len(parts) - 1)))]


def _bare(image_id: str) -> str:
    return image_id.removesuffix(".jpg")


def _named(data: str | None, split: str | None) -> str:
    texts = (quote(text) if text else _UNKNOWN for text in (data, split))
    return "data={} split={}".format(*texts)


def _known(text: str) -> str | None:
    return None if text == _UNKNOWN else unquote(text)


@cache
def code_sha256() -> str:
    """Over every module of the package, so that a changed working copy shows, whatever its version says."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def made_by(
    command: Sequence[str],
    *,
    checkpoint: str | None = None,
    packages: Sequence[str] = ("fanet-lightning", "numpy", "scipy"),
) -> dict[str, Any]:
    """Where a number comes from: the command line, versions (null when not installed), commit, checkpoint."""
    return {
        "command": list(command),
        "packages": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "checkpoint": checkpoint,
    }


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, ``-dirty`` after local changes; None for an installed one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
