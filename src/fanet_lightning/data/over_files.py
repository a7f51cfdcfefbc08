"""The same work on many files, by threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def over_files(work: Callable[[int], T], count: int) -> list[T]:
    """``[work(0), …, work(count - 1)]`` by threads: reading files and OpenCV let other threads run."""
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(work, range(count)))
