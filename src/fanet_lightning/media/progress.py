"""How far ``detect`` is: a bar with images per second on a terminal, a line now and then elsewhere. All on stderr."""

import time
from types import TracebackType
from typing import Any, Self

# Without a terminal: a line at every tenth of the work, or after so many seconds where its length is not known.
_LINE_SECONDS = 10.0


class Progress:
    """A context manager; ``say`` writes a line, above the bar while there is one.

    Args:
        total: how many there are to do; None where nobody knows.
        unit: ``images`` or ``frames``.
        quiet: no bar and no progress lines, e.g. for a single image; ``say`` still speaks.
    """

    def __init__(self, total: int | None, unit: str, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, emoji=False)
        self.done = 0
        self._total, self._unit, self._quiet = total, unit, quiet
        self._bar: Any = None
        self._task: Any = None
        self._start = self._last_line = time.perf_counter()
        self._tenth = 0

    def __enter__(self) -> Self:
        self._start = self._last_line = time.perf_counter()
        if self.console.is_terminal and not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("detecting"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        self.console.print(text)

    def set_total(self, total: int) -> None:
        """How many there are, known only now."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, speed=self.speed())
        elif not self._quiet:
            self._line()

    def speed(self) -> str:
        """``12.3 images/s`` since the block was entered."""
        return f"{self.done / max(time.perf_counter() - self._start, 1e-9):.1f} {self._unit}/s"

    def _line(self) -> None:
        if self._total:
            tenth = self.done * 10 // self._total
            if tenth > self._tenth:
                self._tenth = tenth
                self.say(f"{tenth * 10:3} %, {self.done:,} of {self._total:,} {self._unit}, {self.speed()}")
        elif time.perf_counter() - self._last_line > _LINE_SECONDS:
            self._last_line = time.perf_counter()
            self.say(f"{self.done:,} {self._unit}, {self.speed()}")
