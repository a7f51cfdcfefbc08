"""Device and arithmetic of a run: `auto`, names, what this machine has."""

import torch

from fanet_lightning.errors import InputError


def resolve_precision(precision: str, accelerator: str) -> str:
    """``auto`` → ``bf16-mixed`` where the device multiplies bf16 in hardware, else ``32-true``; anything else stays.

    A CPU without such instructions emulates bf16, hundreds of times slower than float32.
    """
    if precision != "auto":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if _cpu_multiplies_bf16() else "32-true"


def _cpu_multiplies_bf16() -> bool:
    # torch has no public question for it; where the private one has gone, float32 is the safe answer.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, question, lambda: False)()) for question in questions)


def resolve_device(device: str) -> str:
    """``auto`` → ``cuda`` where there is one, else ``cpu``; anything else stays.

    Raises:
        InputError: no device's name, or a device that this machine, or this PyTorch, has not.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(str(device)).type
    except RuntimeError as error:
        raise InputError(f"device={device} is no device name; take auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={device}: no CUDA device is available; take device=cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device={device}: this machine, or this PyTorch, has no such device; take device=cpu"
        ) from error
    return device


def precision_on(precision: str, device: str) -> str:
    """``auto`` → what the device is good at (:func:`resolve_precision`).

    Raises:
        InputError: an unknown precision.
    """
    if precision not in ("auto", "32-true", "bf16-mixed"):
        raise InputError(f"precision={precision} is unknown; take auto, 32-true or bf16-mixed")
    return resolve_precision(precision, device.split(":")[0])


def device_name(device: str) -> str:
    """The device in words, for the record: the GPU's name, or the CPU's threads and architecture."""
    import platform

    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} {'thread' if threads == 1 else 'threads'}, {platform.machine()}"
