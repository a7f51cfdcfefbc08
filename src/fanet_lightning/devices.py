"""Which accelerators a job of a sweep may take, when several jobs run side by side."""

import getpass
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fanet_lightning.errors import InputError

POLL_SECONDS = 1.0


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
