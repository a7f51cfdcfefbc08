"""Profiles of a training (``profile=true``): Lightning's table of actions, torch's table of operators, a trace."""

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.profilers import SimpleProfiler
from torch.profiler import profile, record_function

# The first steps choose algorithms, fill caches and allocate: they are not what a long run consists of.
WARM_UP_STEPS, WATCHED_STEPS = 3, 3


class StepProfiler(SimpleProfiler):
    """Writes ``fit-steps.txt``: calls and seconds of every action of Lightning's loop and of the parts of a step.

    ``torch.profiler`` watches three steps, fewer where an epoch ends sooner: ``operators.txt`` and, for
    ui.perfetto.dev, ``trace.json``. On CUDA the seconds are those in which the CPU launches or waits; the operators
    have the device's own. Of several ranks the first one is watched.

    Args:
        folder: where the files go, ``out/profile``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "steps")
        # Kineto tells standard error that it starts, stops and finds no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self._folder, self._steps = folder, 0
        self._watching: profile | None = None
        self._ranges: dict[str, Any] = {}

    def start(self, action_name: str) -> None:
        if action_name == "run_training_batch" and self.local_rank == 0:
            self._steps += 1
            if self._steps == WARM_UP_STEPS + 1:
                self._watching = profile(acc_events=True)
                self._watching.start()
            elif self._steps == WARM_UP_STEPS + WATCHED_STEPS + 1:
                self._end()
        super().start(action_name)
        if self._watching is not None:
            self._ranges[action_name] = record_function(action_name)
            self._ranges[action_name].__enter__()

    def stop(self, action_name: str) -> None:
        if action_name in self._ranges:
            self._ranges.pop(action_name).__exit__(None, None, None)
        super().stop(action_name)
        if action_name == "run_training_epoch":
            self._end()

    def _end(self) -> None:
        if self._watching is None:
            return
        for name in reversed(self._ranges.copy()):
            self._ranges.pop(name).__exit__(None, None, None)
        watched, self._watching = self._watching, None
        watched.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        watched.export_chrome_trace(str(self._folder / "trace.json"))
        averages = watched.key_averages()
        on_device = any(event.self_device_time_total for event in averages)
        table = averages.table(sort_by=f"self_{'device' if on_device else 'cpu'}_time_total", row_limit=40)
        (self._folder / "operators.txt").write_text(table, encoding="utf-8")
        print(f"profile: {self._folder}", flush=True)
