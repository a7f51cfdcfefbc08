"""What a process may take of a machine that it shares: accelerators, where jobs run side by side, and CPU threads."""

import getpass
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fanet_lightning.errors import InputError

POLL_SECONDS = 1.0
# How long the load is watched before threads are chosen. The averages of the system remember what ended a minute ago.
SAMPLE_SECONDS = 0.5


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` would name them."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() and name.strip() != "-1"]
    return [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def claimed(gpus: list[str], count: int, folder: Path | None = None) -> Iterator[list[str]]:
    """Hold ``count`` of ``gpus`` that no other job on this machine holds; wait for them where they are taken.

    A GPU is held by a lock on a file, which falls with the process that holds it, however it ends.

    Args:
        gpus: names to choose from.
        count: how many.
        folder: where the lock files lie; by default one per user and machine, so that several sweeps share the GPUs.

    Raises:
        InputError: fewer than ``count`` exist.
    """
    if count > len(gpus):
        raise InputError(f"trainer.devices={count}: this machine has {len(gpus)} CUDA devices; ask for fewer")
    folder = folder or Path(tempfile.gettempdir()) / f"fanet_lightning_devices_{getpass.getuser()}"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for gpu in gpus:
                try:
                    held.enter_context(FileLock(folder / f"{gpu.replace('/', '_')}.lock", timeout=0))
                    taken.append(gpu)
                except Timeout:
                    continue
                if len(taken) == count:
                    yield taken
                    return
        # All or none: a job that sat on half of what it needs could wait for another that does the same.
        time.sleep(POLL_SECONDS)


def usable_cores() -> int:
    """CPU cores that this process may use: those it may run on, fewer where its container has a quota, at least 1."""
    return max(1, int(min(len(_own_cores()), _quota())))


def free_cores() -> tuple[int, str]:
    """How many of :func:`usable_cores` no other program keeps busy now, at least 1; in words, too: ``2 cores, 1 busy``.

    This process should be idle meanwhile (:data:`SAMPLE_SECONDS`): what it does itself counts as well.
    """
    cores, own = usable_cores(), _own_cores()
    before = _busy_seconds(own)
    time.sleep(SAMPLE_SECONDS)
    busy = round((_busy_seconds(own) - before) / SAMPLE_SECONDS)
    return max(1, min(cores, len(own) - busy)), f"{cores} {'core' if cores == 1 else 'cores'}, {busy or 'none'} busy"


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that the control group of this container gets, version 2 and 1."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = (int(word) for name in names for word in (root / name).read_text().split())
        except (OSError, ValueError):  # no such version, or "max"
            continue
        if quota > 0:
            return quota / period
    return math.inf


def _busy_seconds(cores: set[int], stat: Path = Path("/proc/stat")) -> float:
    """What all programs together have had of these cores since the machine started; 0 where no Linux tells it."""
    try:
        rows = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0.0
    # user, nice, system, idle, iowait, irq, softirq, steal; what follows is part of user.
    names = {f"cpu{core}" for core in cores}
    ticks = [[int(word) for word in row[1:9]] for row in rows if row and row[0] in names]
    return sum(sum(row) - row[3] - row[4] for row in ticks) / os.sysconf("SC_CLK_TCK")
