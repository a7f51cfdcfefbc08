"""A few warm training steps under ``torch.profiler``: every operator, as a trace and as totals."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

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
