"""CPU cores: how many this process may use, how many are free; without torch."""

import math
import os
import time
from pathlib import Path

from fanet_lightning.cli.errors import counted

# How long the load is watched before threads are chosen. The averages of the system remember what ended a minute ago.
SAMPLE_SECONDS = 0.5


def usable_cores() -> int:
    """CPU cores that this process may use: those it may run on, fewer where its container has a quota, at least 1."""
    return max(1, int(min(len(_own_cores()), _quota())))


def free_cores() -> tuple[int, str]:
    """How many of :func:`usable_cores` no other program keeps busy, at least 1; and in words: ``2 cores, 1 busy``."""
    cores, own = usable_cores(), _own_cores()
    before = _busy_seconds(own)
    time.sleep(SAMPLE_SECONDS)
    busy = round((_busy_seconds(own) - before) / SAMPLE_SECONDS)
    return max(1, min(cores, len(own) - busy)), f"{counted(cores, 'core')}, {busy or 'none'} busy"


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that the control group (version 2) of this container gets."""
    try:
        quota, period = map(int, (root / "cpu.max").read_text().split())
        return quota / period
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf


def _busy_seconds(cores: set[int]) -> float:
    """What all programs together have had of these cores since the machine started; 0 where no Linux tells it."""
    try:
        rows = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0.0
    # user, nice, system, idle, iowait, irq, softirq, steal; what follows is part of user.
    names = {f"cpu{core}" for core in cores}
    ticks = [[int(word) for word in row[1:9]] for row in rows if row and row[0] in names]
    return sum(sum(row) - row[3] - row[4] for row in ticks) / os.sysconf("SC_CLK_TCK")
