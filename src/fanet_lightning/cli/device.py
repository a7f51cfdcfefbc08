"""Devices: names, precision, memory free and kept, claiming GPUs."""

import ctypes
import getpass
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError, check_values, counted


def resolve_precision(precision: str, accelerator: str) -> str:
    """``auto`` → ``bf16-mixed`` where the device multiplies bf16 in hardware, else ``32-true``; anything else stays.

    A CPU without such instructions emulates bf16, hundreds of times slower than float32.
    """
    if precision != "auto" or accelerator == "mps":
        return "32-true" if precision == "auto" else precision
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if _cpu_multiplies_bf16() else "32-true"


def _cpu_multiplies_bf16() -> bool:
    # torch has no public question for it; where the private one has gone, float32 is the safe answer.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, question, lambda: False)()) for question in questions)


def resolve_device(device: str) -> str:
    """``auto`` → ``cuda`` where there is one, else ``cpu``; anything else stays.

    InputError: no device's name, or a device that this machine, or this PyTorch, has not.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=str(device)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        kinds = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        here = ", ".join(kind for kind, is_there in kinds.items() if is_there)
        raise InputError(f"device={device}: not on this machine, or not in this PyTorch; here are {here}") from error
    return device


def precision_on(precision: str, device: str) -> str:
    """``auto`` → what the device is good at (:func:`resolve_precision`); InputError: an unknown precision."""
    known = ("auto", "32-true", "bf16-mixed")
    check_values({"precision": precision}, (" or ".join(known), known.__contains__, "precision"))
    return resolve_precision(precision, device.split(":")[0])


def device_name(device: str) -> str:
    """The device in words, for the record: the GPU's name, or the CPU's threads and architecture."""
    if device.startswith("cuda") and torch.cuda.is_available():  # onnxruntime's may be there without torch's
        return torch.cuda.get_device_name(device)
    return f"cpu, {counted(torch.get_num_threads(), 'thread')}, {platform.machine()}" if device[:3] == "cpu" else device


POLL_SECONDS = 1.0


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` would name them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() and name.strip() != "-1"]
    return [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def claimed(gpus: list[str], count: int, folder: Path | None = None) -> Iterator[list[str]]:
    """Hold ``count`` of ``gpus`` that no other job on this machine holds; wait for them where they are taken.

    A GPU is held by a lock on a file in ``folder``, by default one per user and machine; it falls with its process.
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


# Of what is free: the rest is for images read ahead, workspace beyond what is counted, and other programs.
SHARE = 0.5
# Of the largest input and output of one layer: maps are kept for later, convolutions may hold rearranged copies.
# Measured on the CPU: 1.1 to 1.2 in all with VGG16, 3 with the light backbone.
COPIES = 3.0
# The side of the image that the cost is measured on: a multiple of the coarsest stride.
PROBE_SIDE = 256

# CPU and MPS allocators have no exception of their own; cuDNN and cuBLAS cannot get their workspace.
_NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|not enough memory|cannot allocate|std::bad_alloc|STATUS_ALLOC_FAILED", re.I
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def free_cached(device: torch.device) -> None:
    """Give what torch keeps for later back to the device, so that the next try finds it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def keep_activation_memory() -> bool:
    """Let this process keep up to 1 GiB of freed memory for the next pass of a network on a CPU, until it ends.

    glibc hands freed megabytes back at once, and the next pass faults them in again page by page: 5,300 page faults a
    pass for the light network at 640 × 480, a fifth of its time (``benchmarks/light_detection.py``). Whether it took
    effect: only glibc (Linux) has the switch.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h; either one alone switches glibc's own adjustment of both off.
    # 1 GiB is more than a training step of twelve 320 × 320 images frees at once.
    return all(ctypes.CDLL(None).mallopt(what, 2**30) == 1 for what in (-3, -1))


@torch.inference_mode()
def bytes_per_pixel(network: nn.Module, device: torch.device, *, autocast_bf16: bool = False) -> float:
    """Upper estimate of what detection takes per pixel: :data:`COPIES` × the largest input and output of a layer."""
    sizes = [0]

    def count(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        sizes.append(_bytes(inputs) + _bytes(output))

    # Not the leaves alone: a convolution may have its normalisation inside.
    handles = [module.register_forward_hook(count) for module in network.modules()]
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast_bf16):
            network(torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE, dtype=torch.uint8, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return COPIES * max(sizes) / PROBE_SIDE**2


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(_bytes(item) for item in value)
    return 0


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on a device, also within a container's limit; None where nothing tells it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = [amount for amount in (_system_bytes(), _container_bytes()) if amount is not None]
    return min(found, default=None)


def _system_bytes() -> int | None:
    with suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        if match := re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE):
            return int(match[1]) * 1024
    with suppress(ValueError, OSError, AttributeError):  # no Linux: half of all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _container_bytes() -> int | None:
    """What the control group (version 2) of this container leaves; reclaimable file cache counts as free."""
    root = Path("/sys/fs/cgroup")
    try:
        most, now = (int((root / name).read_text()) for name in ("memory.max", "memory.current"))
        match = re.search(r"^inactive_file (\d+)", (root / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such files, or "max"
        return None
    return max(0, most - now + (int(match[1]) if match else 0))
