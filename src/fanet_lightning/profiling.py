"""Where the time of a training step and of a validation goes (``profile=true``).

Lightning names everything that its loop does and tells a profiler when it starts and stops; ``module.py`` adds four
names for what happens inside a step. :class:`StepProfiler` shares out the wall time between these borders, so that the
parts of a step add up to the step. :class:`StepTrace` lets ``torch.profiler`` watch a few steps more closely; those
are left out of the table, because being watched slows them down.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.profilers import Profiler

from fanet_lightning.profile_trace import StepTrace

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
        from fanet_lightning.profile_tables import headline, write_profile

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
