"""Profiles: seconds of the parts of a step, operators, tables (``profile=true``).

Where the time of a training step and of a validation goes (``profile=true``).

Lightning names everything that its loop does and tells a profiler when it starts and stops; ``module.py`` adds four
names for what happens inside a step. :class:`StepProfiler` shares out the wall time between these borders, so that the
parts of a step add up to the step. :class:`StepTrace` lets ``torch.profiler`` watch a few steps more closely; those
are left out of the table, because being watched slows them down.
"""

import csv
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.profilers import Profiler

from fanet_lightning.cli.files import replaced

WATCHED_STEPS = 3


@dataclass(frozen=True)
class OperatorTime:
    """One operator over the watched steps: calls, and microseconds without what it calls in turn."""

    name: str
    calls: int
    self_cpu_us: float
    self_device_us: float


class StepTrace:
    """Watches ``WATCHED_STEPS`` steps in a row once, fewer where an epoch ends sooner; one step goes before as warm-up.

    ``steps`` is the number of steps watched in the end, 0 before that.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._profiler: Any = None
        self._done: Any = None
        self._ranges: list[tuple[str, Any]] = []

    def step(self, wanted: bool) -> bool:
        """A step begins; ``wanted``: watching may begin here. Returns whether this step is slowed down by it."""
        if self._profiler is not None:
            self._profiler.step()
            if self._done is not None:
                self.stop()
        elif wanted and self._done is None:
            self._begin()
        return self._profiler is not None

    def _begin(self) -> None:
        # Kineto tells standard error that it starts, stops and finds no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        import torch
        from torch.profiler import ProfilerActivity, profile, schedule

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=WATCHED_STEPS, repeat=1),
            on_trace_ready=self._ready,
        )
        self._profiler.start()

    def _ready(self, profiler: Any) -> None:
        self._done = profiler
        self.steps = sum(event.count for event in profiler.key_averages() if event.key.startswith("ProfilerStep"))

    def stop(self) -> None:
        """The steps are interrupted: what was watched so far is kept, a warm-up alone is not."""
        if self._profiler is None:
            return
        for name, _ in reversed(self._ranges.copy()):
            self.leave(name)
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        if self._done is not None and self.steps == 0:
            self._done = None

    def enter(self, name: str) -> None:
        """A range to be seen in the trace."""
        if self._profiler is not None:
            from torch.profiler import record_function

            seen: Any = record_function(name)
            seen.__enter__()
            self._ranges.append((name, seen))

    def leave(self, name: str) -> None:
        """The end of the innermost range, if it has this name; one that was entered unwatched is not there."""
        if self._ranges and self._ranges[-1][0] == name:
            self._ranges.pop()[1].__exit__(None, None, None)

    def operators(self) -> list[OperatorTime]:
        """Without the ranges."""
        if self._done is None:
            return []
        return [
            OperatorTime(event.key, event.count, event.self_cpu_time_total, event.self_device_time_total)
            for event in self._done.key_averages()
            if not event.is_user_annotation
        ]

    def export(self, path: "Path") -> None:
        """Write the trace in Chrome's format (ui.perfetto.dev opens it)."""
        self._done.export_chrome_trace(str(path))


# The first steps choose algorithms, fill caches and allocate: they are not what a long run consists of.
WARM_UP_STEPS = 3

# What `module.py` marks.
NETWORK, LOSS, LOGGING = "network", "matching and loss", "logging and callbacks"
DECODING, GATHERING, SCORING = "decoding and NMS", "gathering", "scoring"
# What Lightning's own names stand for.
DATA, TRANSFER, BACKWARD, CLIPPING = "waiting for data", "transfer to the device", "backward", "clipping"
OPTIMISER, AVERAGING, SAVING, REST = "optimiser and schedule", "averaged weights", "saving checkpoints", "the rest"

STEP_PARTS = (
    DATA, TRANSFER, NETWORK, LOSS, BACKWARD, CLIPPING, OPTIMISER, AVERAGING, LOGGING, SAVING, REST,
)  # fmt: skip
VALIDATION_PARTS = (DATA, TRANSFER, NETWORK, DECODING, GATHERING, SCORING, AVERAGING, LOGGING, SAVING, REST)
MARKED = frozenset({NETWORK, LOSS, LOGGING, DECODING, GATHERING, SCORING})


@dataclass(frozen=True)
class Spent:
    """Wall time of one training step or one validation: ``seconds`` in all, and of each part."""

    seconds: float
    parts: dict[str, float]


def marked(module: LightningModule, part: str) -> AbstractContextManager[Any]:
    """A range for the profiler of the module's trainer: Lightning's empty one while nothing is profiled."""
    trainer: Any = module._trainer
    return nullcontext() if trainer is None else trainer.profiler.profile(part)


def part_of(action: str, surrounding: str, averaging: frozenset[str] = frozenset()) -> str:
    """The part that a range belongs to.

    Args:
        action: the range's name, from Lightning (``[Strategy]SingleDeviceStrategy.backward``) or :func:`marked`.
        surrounding: the part that the range lies in; what has no part of its own belongs to it.
        averaging: state keys of the callbacks that average weights.
    """
    if action in MARKED:
        return action
    if action == "save_checkpoint":
        return SAVING
    owner, _, hook = action.rpartition(".")
    if owner.startswith("[Callback]"):
        return AVERAGING if owner.removeprefix("[Callback]") in averaging else LOGGING
    if hook in ("train_dataloader_next", "val_next"):
        return DATA
    if hook in ("on_before_batch_transfer", "batch_to_device"):
        return TRANSFER
    if hook == "configure_gradient_clipping":
        return CLIPPING
    if hook in ("optimizer_step", "optimizer_zero_grad", "lr_scheduler_step"):
        return OPTIMISER
    if owner.startswith("[Strategy]") and hook == "backward":
        return BACKWARD
    if hook in ("training_step", "validation_step"):
        return REST  # beside the marked ranges: autocast, the wrapper of a distributed module
    if owner.startswith("[LightningModule]") and hook.startswith("on_") and surrounding != TRANSFER:
        return LOGGING
    return surrounding


class StepProfiler(Profiler):
    """Writes ``steps.md``, ``steps.csv``, ``trace.json`` and ``operators.md`` when training ends.

    A step lasts from the moment its batch is asked for to the moment the next one is, or to the validation or the end
    of the epoch. On CUDA every border waits for the device, so that time is charged to the part that caused it; such
    a run is slower than one that is not profiled. Of several ranks the first one measures and writes.

    Args:
        folder: where the files go, ``out/profile``.
        clock: seconds; for tests.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.steps: list[Spent] = []
        self.validations: list[Spent] = []
        self.trace = StepTrace()
        self._folder, self._clock = folder, clock
        self._measures = True
        self._synchronise: Callable[[], None] | None = None
        self._averaging: frozenset[str] = frozenset()
        self._ranks = 1
        self._open: list[tuple[str, str]] = []
        self._spent: dict[str, float] = defaultdict(float)
        self._phase: str | None = None
        self._outside = REST
        self._began = self._mark = self._first = clock()
        self._started = 0
        self._has_batch = self._watched = False
        self._train_seconds = 0.0

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        module: LightningModule | None = getattr(self, "_lightning_module", None)
        if module is not None:
            self._look_at(module.trainer)
        self._first = self._clock()

    def _look_at(self, trainer: Any) -> None:
        import torch

        self._measures = trainer.is_global_zero
        self._ranks = trainer.world_size
        self._averaging = frozenset(c.state_key for c in trainer.callbacks if isinstance(c, WeightAveraging))
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self._synchronise = lambda: torch.cuda.synchronize(device)

    def start(self, action_name: str) -> None:
        if not self._measures:
            return
        now = self._now()
        if action_name.endswith(".train_dataloader_next"):
            self._end_phase(now)
            now = self._begin_step()
        elif self._phase != "validation" and ".on_validation_" in action_name:
            self._end_phase(now)
            self.trace.stop()
            now = self._begin("validation")
        elif action_name == "run_training_batch":
            self._has_batch = True
        self._charge(now)
        surrounding = self._open[-1][1] if self._open else self._outside
        if action_name != "run_training_epoch":
            self._open.append((action_name, part_of(action_name, surrounding, self._averaging)))
        self.trace.enter(action_name)

    def stop(self, action_name: str) -> None:
        if not self._measures:
            return
        now = self._now()
        self.trace.leave(action_name)
        self._charge(now)
        if action_name == "run_training_epoch":
            self._end_phase(now)
            self.trace.stop()
            return
        while any(name == action_name for name, _ in self._open):  # an exception may have left inner ranges open
            if self._open.pop()[0] == action_name:
                break
        owner, _, hook = action_name.rpartition(".")
        if owner.startswith("[LightningModule]") and hook == "on_train_batch_end":
            self._outside = LOGGING  # what Lightning does from here to the next batch: metrics to the loggers
        elif owner.startswith("[Strategy]") and hook == "on_validation_end":
            self._end_phase(now)

    def _now(self) -> float:
        if self._synchronise is not None:
            self._synchronise()
        return self._clock()

    def _charge(self, now: float) -> None:
        self._spent[self._open[-1][1] if self._open else self._outside] += now - self._mark
        self._mark = now

    def _begin_step(self) -> float:
        self._watched = self.trace.step(wanted=self._started >= WARM_UP_STEPS)
        self._has_batch = False
        self._started += 1
        return self._begin("step")

    def _begin(self, phase: str) -> float:
        """What the trace has to write lies between two steps and belongs to neither."""
        self._phase, self._outside = phase, REST
        self._spent = defaultdict(float)
        self._began = self._mark = self._now()
        return self._began

    def _end_phase(self, now: float) -> None:
        if self._phase is None:
            return
        self._charge(now)
        spent = Spent(now - self._began, dict(self._spent))
        if self._phase == "validation":
            self.validations.append(spent)
        elif self._has_batch:
            self._train_seconds += spent.seconds
            if self._started > WARM_UP_STEPS and not self._watched:
                self.steps.append(spent)
        self._phase = None

    def describe(self) -> None:
        """Write the files and print the largest parts; a disk that is full costs the profile, not the run."""

        if not self._measures:
            return
        self._end_phase(self._now())
        self.trace.stop()
        fit_seconds = self._clock() - self._first
        try:
            write_profile(
                self._folder, self.steps, self.validations, self.trace, fit_seconds=fit_seconds,
                train_seconds=self._train_seconds, started=self._started, ranks=self._ranks,
            )  # fmt: skip
        except OSError as error:
            print(f"warning: no profile in {self._folder}: {error.strerror or error}", file=sys.stderr, flush=True)
            return
        print(headline(self.steps, self._folder), flush=True)


def build_profiler(out: Path) -> StepProfiler:
    """The profiler of a run: ``Trainer(profiler=…)``, on every rank.

    Args:
        out: the run's folder; the files go to ``out/profile``.
    """
    return StepProfiler(out / "profile")


TOP = 20


@dataclass(frozen=True)
class Row:
    """One part: milliseconds (median and 90th percentile over steps), and its share of all their time, 0 … 1."""

    part: str
    median_ms: float
    p90_ms: float
    share: float


def rows_of(spent: Sequence[Spent], parts: Sequence[str]) -> list[Row]:
    """One row per part, and the whole as the last row. Shares add up to 1; medians need not add up."""
    total = sum(item.seconds for item in spent)
    rows = []
    for part in parts:
        seconds = np.asarray([item.parts.get(part, 0.0) for item in spent])
        rows.append(_row(part, seconds, total))
    return [*rows, _row("all", np.asarray([item.seconds for item in spent]), total)]


def _row(name: str, seconds: np.ndarray, total: float) -> Row:
    median, p90 = (float(np.percentile(seconds, q)) * 1e3 for q in (50, 90))
    return Row(name, median, p90, float(seconds.sum()) / total)


def headline(steps: Sequence[Spent], folder: Path) -> str:
    """The largest parts of a step in one line."""
    if not steps:
        return f"profile: no step was measured, the first {WARM_UP_STEPS} and the watched ones are left out; {folder}"
    *rows, whole = rows_of(steps, STEP_PARTS)
    largest = sorted(rows, key=lambda row: -row.share)[:3]
    words = ", ".join(f"{row.part} {row.share:.0%}" for row in largest)
    return f"profile: {whole.median_ms:.1f} ms a step: {words}; {folder / 'steps.md'}"


def write_profile(
    folder: Path,
    steps: Sequence[Spent],
    validations: Sequence[Spent],
    trace: StepTrace,
    *,
    fit_seconds: float,
    train_seconds: float,
    started: int,
    ranks: int,
) -> None:
    """Write ``steps.md``, ``steps.csv`` and, where steps were watched, ``trace.json`` and ``operators.md``.

    Args:
        folder: made if need be; what an earlier start wrote is replaced.
        steps: the measured ones.
        validations: all.
        trace: of the watched steps.
        fit_seconds: from the start of training to its end.
        train_seconds: of all steps, the ones left out too.
        started: steps in all.
        ranks: processes that trained together.
    """
    text = steps_markdown(
        steps, validations, watched=trace.steps, fit_seconds=fit_seconds, train_seconds=train_seconds,
        started=started, ranks=ranks,
    )  # fmt: skip
    _write_text(folder / "steps.md", text)
    _write(folder / "steps.csv", lambda path: _write_csv(path, steps, validations))
    if trace.steps:
        _write(folder / "trace.json", trace.export)
        _write_text(folder / "operators.md", operators_markdown(trace.operators(), trace.steps))


def steps_markdown(
    steps: Sequence[Spent],
    validations: Sequence[Spent],
    *,
    watched: int,
    fit_seconds: float,
    train_seconds: float,
    started: int,
    ranks: int,
) -> str:
    """The page of both tables; see :func:`write_profile`."""
    lines = ["# Where the time goes", "", "## A training step", ""]
    if steps:
        lines += [
            f"{len(steps)} steps of {started}. Left out: the first {WARM_UP_STEPS}, and those that torch.profiler "
            f"watched ({watched}, and one before them). Shares are of the wall time of the measured steps.",
            "",
            *_table(rows_of(steps, STEP_PARTS), "step"),
        ]
        if ranks > 1:
            lines += [
                "",
                f"Of {ranks} ranks the first. Backward includes the averaging of gradients over ranks, the loss that "
                "of the number of positives, the rest the module's wrapper; each waits for the slower rank.",
            ]
    else:
        lines.append(f"No step was measured: there were {started}, too few to leave the first ones out.")
    if validations:
        lines += ["", "## A validation", "", f"{len(validations)} of them.", ""]
        lines += _table(rows_of(validations, VALIDATION_PARTS), "validation")
    spent = {"training steps": train_seconds, "validations": sum(item.seconds for item in validations)}
    spent["start, ends of epochs, checkpoints"] = fit_seconds - sum(spent.values())
    lines += ["", "## The training", "", "| what | seconds | share |", "|---|---:|---:|"]
    lines += [f"| {what} | {seconds:.1f} | {seconds / fit_seconds:.1%} |" for what, seconds in spent.items()]
    lines += [
        "",
        "On CUDA every border between parts waits for the device, so this training was slower than one that is not "
        "profiled; on a CPU the borders cost microseconds.",
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row], unit: str) -> list[str]:
    *parts, whole = rows
    lines = [f"| part | ms per {unit}, median | 90th percentile | share |", "|---|---:|---:|---:|"]
    for row in parts:
        lines.append(f"| {row.part} | {row.median_ms:.2f} | {row.p90_ms:.2f} | {row.share:.1%} |")
    return [*lines, f"| **all** | **{whole.median_ms:.2f}** | **{whole.p90_ms:.2f}** | **{whole.share:.1%}** |"]


def operators_markdown(operators: Sequence[OperatorTime], steps: int) -> str:
    """The operators with the largest self time, on the CPU and, where one was used, on the device."""
    lines = [f"# Operators of {steps} training steps", ""]
    sides: list[tuple[str, Callable[[OperatorTime], float]]] = [
        ("CPU", lambda operator: operator.self_cpu_us),
        ("device", lambda operator: operator.self_device_us),
    ]
    for side, of in sides:
        total = sum(of(operator) for operator in operators)
        if not total:
            continue
        lines += [f"## {side}: {total / steps / 1e3:.2f} ms a step", ""]
        lines += ["| operator | calls a step | self ms a step | share |", "|---|---:|---:|---:|"]
        for operator in sorted(operators, key=of, reverse=True)[:TOP]:
            calls, milliseconds, share = operator.calls / steps, of(operator) / steps / 1e3, of(operator) / total
            lines.append(f"| `{operator.name}` | {calls:.1f} | {milliseconds:.2f} | {share:.1%} |")
        lines.append("")
    return "\n".join(lines)


def _write_csv(path: Path, steps: Sequence[Spent], validations: Sequence[Spent]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["of", "part", "median_ms", "p90_ms", "share", "count"])
        for what, spent, parts in (
            ("training step", steps, STEP_PARTS),
            ("validation", validations, VALIDATION_PARTS),
        ):
            for row in rows_of(spent, parts) if spent else []:
                values = [f"{value:.6g}" for value in (row.median_ms, row.p90_ms, row.share)]
                writer.writerow([what, row.part, *values, len(spent)])


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    with replaced(path) as temporary:
        write(temporary)
