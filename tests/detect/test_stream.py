"""The one loop that reads ahead of the network and writes behind it."""

import threading
import time
from collections.abc import Iterator

import pytest

from fanet_lightning.detect import stream
from fanet_lightning.detect.stream import in_threads


class Watched:
    """Numbers that say how many were taken before they were given back."""

    given = behind = 0

    def items(self, count: int) -> Iterator[int]:
        for number in range(count):
            self.behind = max(self.behind, number + 1 - self.given)
            yield number


@pytest.mark.parametrize(("threads", "most"), [(1, 1), (1, 4), (3, 2), (4, 8)])
def test_items_come_in_order_and_few_at_a_time(threads: int, most: int) -> None:
    watched = Watched()

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        if number == 7:
            raise ValueError("seven")
        return 10 * number

    for number, future in in_threads(watched.items(40), work, threads=threads, most=most, name="loop"):
        assert number == watched.given and future.done()
        watched.given += 1
        assert future.exception() is not None if number == 7 else future.result() == 10 * number
    assert watched.given == 40 and watched.behind <= most
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loop")]


def test_no_more_bytes_wait_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "READ_AHEAD_BYTES", 100)
    watched = Watched()

    for _ in in_threads(watched.items(20), str, threads=2, most=50, size=lambda *_: 30):
        watched.given += 1
    assert watched.given == 20 and watched.behind == 4


@pytest.mark.parametrize("finish", [True, False])
def test_what_was_begun_comes_out_on_ctrl_c(finish: bool) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        for number, future in in_threads(items(), lambda number: number, threads=2, most=4, finish=finish):
            found.append((number, future.result()))
    assert found == [(number, number) for number in range(5 if finish else 2)]
