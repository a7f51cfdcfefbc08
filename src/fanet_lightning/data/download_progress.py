"""Progress of a download: bars on a terminal, a line for every tenth elsewhere (a log, a job's output)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fanet_lightning.data.disk_space import size_text


class DownloadProgress:
    """Lines and bars on stderr, so that stdout is left for the result."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line; above the bar while there is one."""
        self.console.print(text)

    @contextmanager
    def bar(self, title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
        """A function that takes how much is done and the total; ``unit`` is ``bytes`` or ``files``."""
        if self.console.is_terminal:
            with self._rich_bar(title, unit) as update:
                yield update
        else:
            yield self._tenths(title, unit)

    @contextmanager
    def _rich_bar(self, title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(), console=self.console
        )
        with bar:
            task = bar.add_task(title, total=None)
            begun = False

            def update(done: int, total: int | None) -> None:
                nonlocal begun
                if not begun:
                    # Bytes from an earlier run are no speed of this one.
                    bar.reset(task, total=total, completed=done)
                    begun = True
                bar.update(task, total=total, completed=done)

            yield update

    def _tenths(self, title: str, unit: str) -> Callable[[int, int | None], None]:
        last = -1

        def update(done: int, total: int | None) -> None:
            nonlocal last
            if not total or done * 10 // total == last:
                return
            last = done * 10 // total
            amount = f"{size_text(done)} of {size_text(total)}" if unit == "bytes" else f"{done:,} of {total:,} {unit}"
            self.say(f"{title}: {last * 10} %, {amount}")

        return update
