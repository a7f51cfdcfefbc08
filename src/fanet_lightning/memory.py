"""How many pixels a network can take at once: what a pixel costs, and how much memory there is."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Of what is free: the rest is for images read ahead, workspace beyond what is counted, and other programs.
SHARE = 0.5
# Of the largest input and output of one layer: besides both there are the maps that are kept for later, and a
# convolution may hold rearranged copies. Measured on the CPU: 1.1 to 1.2 in all with a VGG trunk, 3 with a light one.
COPIES = 3.0
# The side of the picture that the cost is measured on: a multiple of the coarsest stride.
PROBE_SIDE = 256

# CPU and MPS allocators have no exception of their own.
_CPU_MESSAGES = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cannot allocate|std::bad_alloc", re.IGNORECASE
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # cuDNN and cuBLAS that cannot get their workspace.
    text = str(error)
    return isinstance(error, RuntimeError) and bool(
        _CPU_MESSAGES.search(text) or "CUDNN_STATUS_ALLOC_FAILED" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )


def free_cached(device: torch.device) -> None:
    """Give what torch keeps for later back to the device, so that the next try finds it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.inference_mode()
def bytes_per_pixel(network: nn.Module, device: torch.device, *, autocast_bf16: bool = False) -> float:
    """Upper estimate of the memory that detection takes per pixel of the network's input.

    :data:`COPIES` times the largest input and output that any layer has at a time, counted on one small picture.
    """
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


def _system_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        match = None
    if match:
        return int(match[1]) * 1024
    try:  # no Linux: half of all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return None


def _container_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group of this container leaves, version 2 and 1; reclaimable file cache counts as free."""
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
            match = re.search(rf"^{cache} (\d+)", (root / stat).read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such version, or "max"
            continue
        return max(0, most - now + (int(match[1]) if match else 0))
    return None
