"""Where results come from: run.json and its lock, made_by, lists of training images. No torch.

A score on images that a model has seen says nothing about other images: every checkpoint names its training images,
and :mod:`evaluate` and :mod:`score` say how many of them they are scoring.
"""

import datetime
import hashlib
import io
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
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Self
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from fanet_lightning.cli.errors import InputError, as_given
from fanet_lightning.cli.files import lines_of, replaced

PACKAGES = ("fanet-lightning", "numpy", "scipy")
RECORD_FILE, LOG_FILE = "run.json", "train.log"
LOCK_FILE, HOLDER_FILE = ".lock", ".lock.holder"
VERSION = 1


class InUse(InputError):
    """Another process holds a folder."""


# ``stopped``: by ``stop_after``, before the end of its schedule, to be resumed. ``interrupted`` is never written; it is
# what :func:`state_now` makes of a run that was killed.
State = Literal["running", "interrupted", "stopped", "finished", "failed"]

# Settings that say where and how a run is carried out, not what it trains. Two starts that differ in these alone are
# the same run. ``cache_dir`` and ``trainer.enable_progress_bar`` are of earlier versions.
CIRCUMSTANCES = frozenset({
    "out", "sweep", "group", "name", "resume", "overwrite", "workers", "threads", "logger", "callbacks", "profile",
    "stop_after", "seeds", "checkpoint_every", "evaluate_at_end", "also_protocols", "final_protocols", "compile",
    "channels_last", "data.root", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.log_every_n_steps", "trainer.enable_progress_bar", "cache_dir", "cache_gib",
})  # fmt: skip

# Callbacks that change it all the same: their settings are compared where both runs have recorded theirs.
TRAINING_CALLBACKS = ("callbacks.ema", "callbacks.swa", "callbacks.lr_finder", "callbacks.few_images")

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
    ``images_per_second``. ``train`` holds ``epoch`` (epochs done), ``epochs``, ``steps``, ``seconds`` (wall time over
    all starts), ``starts``, ``images_per_second``, ``wait_share`` (of the last epoch: seconds spent waiting for samples
    ÷ seconds), ``unreadable_images``, ``skipped_steps``, ``device``, ``cpu`` (model and the instructions that PyTorch
    uses) and, on a CPU, ``threads``. ``data`` is :meth:`fanet_lightning.data.datamodule.FaceDataModule.digest`.
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
        """Write ``folder/run.json`` by rename."""
        with replaced(folder / RECORD_FILE) as path:
            path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def is_complete(self, protocols: set[str]) -> bool:
        """Trained to its end, and scored under all of ``protocols``."""
        return self.state == "finished" and protocols <= set(self.scores)


def read_record(folder: Path) -> RunRecord | None:
    """The record of the run in ``folder``, if one has begun; InputError: it is damaged or of another version."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("version") != VERSION:
            raise ValueError(f"version {content.get('version')}, this package reads {VERSION}")
        known = {f.name for f in fields(RunRecord)}
        return RunRecord(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
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
    circumstances = tuple(f"{key}." for key in CIRCUMSTANCES)
    keys = [key for key in dict.fromkeys([*a, *b]) if not f"{key}.".startswith(circumstances)]
    if "callbacks" in first and "callbacks" in second:
        own = [key for key in dict.fromkeys([*a, *b]) if ".".join(key.split(".")[:2]) in TRAINING_CALLBACKS]
        keys += [key for key in own if not key.endswith("._target_")]  # classes have had other places
    return [(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)]


def refuse_other_settings(what: str, before: Mapping[str, Any], now: Mapping[str, Any], remedy: str) -> None:
    """InputError where settings of a run, here ``what``, change what is trained; it names the first of them."""
    for key, old, new in differing_settings(before, now):
        raise InputError(f"{what} with {key}={as_given(old)}, this one has {key}={as_given(new)}; {remedy}")


def as_today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested settings of an earlier version, with what that version did without and today's classes."""
    copy: dict[str, Any] = deepcopy(dict(settings))
    for key, value in LATER_SETTINGS.items():
        group, _, name = key.rpartition(".")
        ((copy.get(group) or {}) if group else copy).setdefault(name, value)
    for node in copy.values():
        if isinstance(node, dict) and "_target_" in node:
            node["_target_"] = RENAMED_TARGETS.get(node["_target_"], node["_target_"])
    return copy


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted key → value."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            value = RENAMED_TARGETS.get(value, value) if key == "_target_" else value
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


class TerminalLog:
    """While entered, what the process prints (stdout, stderr) is also kept, and from :meth:`begin` on in a file.

    A progress bar draws over its own line, and only what is left of that line at its end is kept.
    """

    current: "TerminalLog | None" = None

    def __enter__(self) -> Self:
        TerminalLog.current, self._kept, self._rest = self, io.StringIO(), ""
        self._file: IO[str] = self._kept
        self._streams: tuple[Any, Any] = (sys.stdout, sys.stderr)
        copies: list[Any] = [_Copied(stream, self) for stream in self._streams]
        sys.stdout, sys.stderr = copies
        return self

    def begin(self, path: Path) -> None:
        """Append to ``path`` the command, what was printed so far and all that follows."""
        self._file = path.open("a", encoding="utf-8", errors="replace", buffering=1)
        self._file.write(f"$ {shlex.join(sys.argv)}\n{self._kept.getvalue()}")

    def add(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > 10_000:
            self._rest = _as_it_stands(self._rest)
        with suppress(OSError, ValueError):  # a full disk is said where it matters, and printing continues
            self._file.writelines(f"{_as_it_stands(line)}\n" for line in lines)

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self.add("\n")
        sys.stdout, sys.stderr = self._streams
        TerminalLog.current = None
        self._file.close()


class _Copied:
    """A text stream that hands what is written to a log as well."""

    def __init__(self, stream: Any, log: TerminalLog) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        count: int = self._stream.write(text)
        self._log.add(text)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _as_it_stands(line: str) -> str:
    """What a terminal shows of a line in the end: without control sequences, and without what was overwritten."""
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", line).rstrip("\r").rsplit("\r", 1)[-1]


@contextmanager
def locked(folder: Path, what: str = "run", patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold ``folder``, made if need be, for this process; the lock falls with the process, however that ends.

    ``patience_seconds``: wait so long for another process to let go. InUse: one holds it for a run, sweep … (``what``);
    names its process id and machine.
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
    with suppress(OSError):  # held (filelock's Timeout is one), or a folder that may only be read
        if record.state == "running":
            with FileLock(folder / LOCK_FILE, timeout=0):
                return "interrupted"
    return record.state


def is_first_process() -> bool:
    """Whether this is rank zero, as told by the environment: asked before a process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


TRAINING_IMAGES_FILE = "training_images.txt"
# Name of the folder that `evaluate` writes predictions into; the list is next to it.
PREDICTIONS_FOLDER = "predictions"
# Key in a checkpoint of `train`.
CHECKPOINT_KEY = "training_images"
_HEADING = re.compile(r"#\s*(trained on|scored):\s*data=(\S+)\s+split=(\S+)(?:\s+images=(\d+))?\s*$")
_UNKNOWN = "?"
# Name of a data set and of its part; None where unknown.
Split = tuple[str | None, str | None]


@dataclass(frozen=True)
class TrainingImages:
    """Images of one part of one data set, each None where unknown; ``.jpg`` at an id's end does not count."""

    data: str | None
    split: str | None
    image_ids: tuple[str, ...]


@dataclass(frozen=True)
class TrainedOn:
    """How many of the scored images were trained on, and which comes first."""

    count: int
    images: int
    first: str | None = None

    @property
    def warning(self) -> str | None:
        """One line for the person at the command line; None where no scored image was trained on."""
        verb = "was" if self.count == 1 else "were"
        seen = f"{self.count:,} of {self.images:,} scored images {verb} trained on"
        about = f"these numbers say nothing about unseen images (the first is {self.first})"
        return f"{seen}; {about}" if self.count else None


def trained_on(
    parts: Iterable[TrainingImages], image_ids: Iterable[str], data: str | None = None, split: str | None = None
) -> TrainedOn:
    """How many of ``image_ids``, each given once, are among the training images.

    Images are the same by their id, unless both are known to be of different splits of one data set; ``data`` and
    ``split`` are those of ``image_ids``. A line of a list of no known data set may also be a path that ends with folder
    and name of an id.
    """
    seen = set()
    for part in parts:
        if data is None or part.data != data or None in (part.split, split) or part.split == split:
            for image_id in part.image_ids:
                seen.add(_bare(image_id))
                if part.data is None:
                    folders = PurePosixPath(_bare(image_id).replace("\\", "/")).parts
                    seen |= {"/".join(folders[start:]) for start in range(max(1, len(folders) - 1))}
    scored = [_bare(image_id) for image_id in image_ids]
    among = [image_id for image_id in scored if image_id in seen]
    return TrainedOn(len(among), len(scored), among[0] if among else None)


def merged(parts: Iterable[TrainingImages]) -> list[TrainingImages]:
    """The same images, each data set and split once and each id once, as it is named first."""
    found: dict[Split, dict[str, str]] = {}
    for part in parts:
        names = found.setdefault((part.data, part.split), {})
        for image_id in part.image_ids:
            names.setdefault(_bare(image_id), image_id)
    return [TrainingImages(data, split, tuple(names.values())) for (data, split), names in found.items()]


def to_plain(parts: Iterable[TrainingImages]) -> list[dict[str, Any]]:
    """Plain containers for a checkpoint: ``[{"data": …, "split": …, "ids": […]}, …]``."""
    return [{"data": part.data, "split": part.split, "ids": list(part.image_ids)} for part in parts]


def images_of(checkpoint: Mapping[str, Any]) -> list[TrainingImages] | None:
    """The training images that a checkpoint names, if it does."""
    value = checkpoint.get(CHECKPOINT_KEY)
    return value and [TrainingImages(part["data"], part["split"], tuple(part["ids"])) for part in value]


def write_training_images(path: Path, parts: Iterable[TrainingImages], scored: Split | None = None) -> None:
    """Write the list by rename: one image id a line, under a heading per part; also a list for ``images=``.

    ``scored``: (data, split) of the images that the predictions next to the list are about.
    """
    lines = [] if scored is None else [f"# scored: {_named(*scored)}"]
    for part in parts:
        lines += [f"# trained on: {_named(part.data, part.split)} images={len(part.image_ids)}", *part.image_ids]
    with replaced(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def read_training_images(path: Path) -> tuple[list[TrainingImages], Split]:
    """The training images, and (data, split) of what was scored where ``evaluate`` wrote the list.

    Of any other list of images no data set is known. InputError: no text, fewer images than a heading says, no image.
    """
    lines = iter(lines_of(path, f"the list of training images {path}", "give a text file with one image a line"))
    scored: Split = (None, None)
    parts, foreign, problem = list[TrainingImages](), list[str](), ""
    for line in lines:
        heading = _HEADING.match(line)
        if heading is None:
            foreign.append("" if line[:1] == "#" else line.partition(" #")[0].strip())
            continue
        data, split = (None if text == _UNKNOWN else unquote(text) for text in heading.group(2, 3))
        if heading[1] == "scored":
            scored = (data, split)
            continue
        parts.append(TrainingImages(data, split, tuple(islice(lines, int(heading[4] or 0)))))
        if len(parts[-1].image_ids) < int(heading[4] or 0):
            problem = f"has fewer images than '{line}' says; the list is damaged, write it again"
    parts = [part for part in [TrainingImages(None, None, tuple(filter(None, foreign))), *parts] if part.image_ids]
    if problem or not parts:
        raise InputError(f"the list of training images {path} {problem or 'names no image; write one image a line'}")
    return parts, scored


def list_beside(predictions: Path) -> Path | None:
    """The list that ``evaluate`` has written next to these predictions; None for predictions of another origin."""
    places = (own for own in (predictions.absolute(), predictions.absolute().parent) if own.name == PREDICTIONS_FOLDER)
    return next(filter(Path.is_file, (own.with_name(TRAINING_IMAGES_FILE) for own in places)), None)


def scores_entry(found: TrainedOn | None) -> dict[str, Any]:
    """What ``scores.json`` says: ``trained_on_images`` with ``count`` and ``share``, null where it is not known."""
    share = found and {"count": found.count, "share": found.count / found.images if found.images else 0.0}
    return {"trained_on_images": share}


def _bare(image_id: str) -> str:
    return image_id.removesuffix(".jpg")


def _named(*names: str | None) -> str:
    return "data={} split={}".format(*(quote(name) if name else _UNKNOWN for name in names))


@cache
def code_sha256() -> str:
    """Over every module of the package, so that a changed working copy shows, whatever its version says."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def made_by(
    command: Sequence[str], *, checkpoint: str | None = None, packages: Sequence[str] = PACKAGES
) -> dict[str, Any]:
    """Where a number comes from: the command line, versions (null when not installed), commit, checkpoint."""
    versions: dict[str, str | None] = dict.fromkeys(packages)
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "command": list(command), "packages": versions, "python": platform.python_version(),
        "git_commit": git_commit(), "checkpoint": checkpoint,
    }  # fmt: skip


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, ``-dirty`` after local changes; None for an installed one."""
    root = Path(__file__).resolve().parents[3]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.TimeoutExpired):
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    return None
