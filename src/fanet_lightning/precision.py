"""Which arithmetic a run uses when it is told ``auto``."""

import torch


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
