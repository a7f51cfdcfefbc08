"""Decoded images in memory that all loader processes of a machine share (``cache=memory``).

Decoding takes most of a sample's time; an image that was decoded once is not decoded again. Samples stay equal to the
last bit. What does not fit is read from its file each time, as without a cache.
"""

import hashlib
import mmap
import os
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.data.images import Image8, UnreadableImage, read_image_size
from fanet_lightning.data.over_files import over_files
from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable

GIB = 2**30
# Of the free memory: the rest is for the samples on their way, the training itself and other programs.
SHARE_OF_FREE = 0.5
KINDS = ("memory", "disk")

SizesHW = npt.NDArray[np.int64]


def check_cache(
    cache: str | None, cache_gib: float | None, cache_dir: Path | str, cache_side: int | None, input_size: int
) -> None:
    """Refuse early what :class:`~fanet_lightning.data.datamodule.FaceDataModule` could not carry out.

    Raises:
        InputError: an unknown kind, a limit or a side that is not positive, copies that are smaller than the crops that
            are cut from them, a folder that cannot be written.
    """
    if cache is not None and cache not in KINDS:
        raise InputError(f"cache={cache} is unknown; take memory, disk or null")
    if cache_gib is not None and not 0 < cache_gib < float("inf"):
        raise InputError(f"cache_gib={cache_gib} must be a positive number of GiB; null: half of the free memory")
    if cache_side is not None and cache_side < 1:
        raise InputError(f"cache_side={cache_side} must be at least 1 pixel; null: twice input_size")
    if cache == "disk" and cache_side is not None and cache_side < input_size:
        # Not a warning, which nobody sees before a run of hours has ended: no crop would ever have its own pixels.
        raise InputError(
            f"cache_side={cache_side} is below input_size={input_size}: even a whole copy would be enlarged to be "
            f"shown, so detail is lost; give cache_side={input_size} or more, or null: twice input_size"
        )
    if cache == "disk":
        check_writable(Path(cache_dir), "cache_dir")


def image_sizes(paths: Sequence[Path]) -> SizesHW:
    """(N, 2) int64, (height, width) of each image from its head; (0, 0) where the file is no image."""

    def size(index: int) -> tuple[int, int]:
        try:
            return read_image_size(paths[index])
        except UnreadableImage:
            return 0, 0

    return np.array(over_files(size, len(paths)), dtype=np.int64).reshape(-1, 2)


class SharedMemory(NamedTuple):
    """Where other processes of this machine find a cache: see :meth:`MemoryCache.address`."""

    machine: str
    process: int
    descriptor: int
    limit_bytes: int
    sizes_digest: str


class MemoryCache:
    """Up to ``limit_bytes`` of decoded images, in their order; filled by whoever decodes one first.

    Every image has its place from the start, so processes need no agreement on who writes where: two that decode the
    same image at once write the same bytes. The memory has no name and leaves nothing behind, however its processes
    end; a page is taken when it is first written. Works with forked and with spawned workers.

    Args:
        sizes_hw: (N, 2), see :func:`image_sizes`; an image of size 0 is never kept.
        limit_bytes: the largest sum of 3 · height · width over the images that are kept.
    """

    def __init__(self, sizes_hw: SizesHW, limit_bytes: int) -> None:
        self.sizes_hw = sizes_hw
        self.limit_bytes = limit_bytes
        self._open(_anonymous_file())

    @property
    def needed_bytes(self) -> int:
        """Of all images."""
        return int(3 * self.sizes_hw.prod(axis=1).sum())

    @property
    def places(self) -> int:
        """How many images fit."""
        return int(self._fits.sum())

    @property
    def kept(self) -> int:
        """How many images are in it by now."""
        return int(self._flags.sum())

    def get(self, index: int) -> Image8 | None:
        """The image (H, W, 3) as a view that cannot be written; None if it is not there (yet)."""
        if not self._flags[index]:
            return None
        self._fence()
        return self._pixels(index, writeable=False)

    def put(self, index: int, image: Image8) -> None:
        """Keep an image if it has a place. One of another size than its file's head said has none."""
        if self._fits[index] and not self._flags[index] and image.shape == (*self.sizes_hw[index], 3):
            self._pixels(index, writeable=True)[...] = image
            self._fence()
            self._flags[index] = 1

    def address(self) -> SharedMemory:
        """For other processes that this one has not started, e.g. the ranks of a distributed run."""
        return SharedMemory(_machine(), os.getpid(), self._descriptor, self.limit_bytes, self._digest())

    def use(self, address: SharedMemory) -> None:
        """Share the memory of another process's cache of the same images, in place of one's own.

        Raises:
            OSError: the other process is gone, or this system does not let processes share files in this way.
            ValueError: the other cache is of images of other sizes.
        """
        if address.sizes_digest != self._digest():
            raise ValueError(f"process {address.process} has found images of other sizes")
        descriptor = os.open(f"/proc/{address.process}/fd/{address.descriptor}", os.O_RDWR)
        os.close(self._descriptor)
        self.limit_bytes = address.limit_bytes
        self._open(descriptor)

    def _digest(self) -> str:
        return hashlib.sha256(self.sizes_hw.tobytes()).hexdigest()

    def _open(self, descriptor: int) -> None:
        nbytes = 3 * self.sizes_hw.prod(axis=1)
        # Flags first, then pixels.
        self._starts = len(nbytes) + np.cumsum(nbytes) - nbytes
        self._fits = (np.cumsum(nbytes) <= self.limit_bytes) & (nbytes > 0)
        size = max(1, len(nbytes) + int(nbytes[self._fits].sum()))
        os.ftruncate(descriptor, size)
        self._descriptor = descriptor
        self._memory = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
        self._flags = self._memory[: len(nbytes)]
        self._lock = threading.Lock()

    def _pixels(self, index: int, *, writeable: bool) -> Image8:
        height, width = self.sizes_hw[index]
        start = self._starts[index]
        pixels: Image8 = self._memory[start : start + 3 * height * width].reshape(height, width, 3)
        pixels.flags.writeable = writeable
        return pixels

    def _fence(self) -> None:
        # A flag must not be seen before the pixels that it is about. Processors other than x86 may reorder the two;
        # not across letting a lock go and taking it again.
        for _ in range(2):
            with self._lock:
                pass

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers are given the open file itself.
        return {"sizes_hw": self.sizes_hw, "limit_bytes": self.limit_bytes, "file": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.sizes_hw, self.limit_bytes = state["sizes_hw"], state["limit_bytes"]
        self._open(state["file"].detach())


def memory_cache(paths: Sequence[Path], cache_gib: float | None) -> tuple[MemoryCache, str]:
    """A cache for these images, and one line on what it needs and gets.

    Args:
        paths: of the images, in the order in which they are given places.
        cache_gib: the limit; None, or more than is free: half of the free memory.
    """
    import torch

    from fanet_lightning.memory import available_bytes

    free = available_bytes(torch.device("cpu"))
    limit = None if cache_gib is None else int(cache_gib * GIB)
    if free is not None and (limit is None or limit > free):
        limit = int(free * SHARE_OF_FREE)
    sizes = image_sizes(paths)
    needed = int(3 * sizes.prod(axis=1).sum())
    cache = MemoryCache(sizes, needed if limit is None else limit)
    readable = int((sizes.prod(axis=1) > 0).sum())
    rest = readable - cache.places
    fit = f"{cache.places:,} fit into {_gib(cache.limit_bytes)}, {rest:,} are read each time" if rest else "all fit"
    known = "" if free is None else f", {_gib(free)} are free"
    bad = f" ({len(paths) - readable:,} more are no images)" if readable < len(paths) else ""
    return cache, f"cache=memory: {readable:,} images{bad} need {_gib(needed)}{known}; {fit}"


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB"


def _anonymous_file() -> int:
    """A file without a name, in memory where the system has such files; it is gone with the last process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fanet_images")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _machine() -> str:
    """Equal for processes that see the same process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
