"""The learning rate over a run, as a pure function of the step."""

import math
from collections.abc import Sequence
from typing import Literal

from fanet_lightning.errors import InputError

ScheduleKind = Literal["step", "cosine", "constant"]

# Paper §3.5: 4e-3 for 80 of 120 epochs, then 4e-4 for 20 and 4e-5 for 20.
PAPER_MILESTONES = (80 / 120, 100 / 120)
# Paper §3.5: "a total batch size of 12"; learning rates are meant for it and scaled linearly.
REFERENCE_BATCH_SIZE = 12


def effective_lr(lr: float, batch_size: int) -> float:
    """``lr`` is stated for a total batch of 12; another batch size scales it linearly."""
    return lr * batch_size / REFERENCE_BATCH_SIZE


def lr_factor(
    step: int,
    total_steps: int,
    *,
    kind: ScheduleKind = "step",
    warmup_steps: int = 0,
    milestones: Sequence[float] = PAPER_MILESTONES,
    gamma: float = 0.1,
    final: float = 0.0,
) -> float:
    """What the learning rate is multiplied with at optimiser step ``step`` (0-based).

    Warm-up rises linearly from 1 / ``warmup_steps`` to 1 and overlays the schedule. ``step`` multiplies by ``gamma`` at
    each milestone (fractions of the run); ``cosine`` falls from 1 to ``final`` after the warm-up.

    Raises:
        InputError: an unknown ``kind``.
    """
    progress = step / max(total_steps, 1)
    if kind == "step":
        factor = gamma ** sum(progress >= milestone for milestone in milestones)
    elif kind == "cosine":
        after_warmup = min(max(step - warmup_steps, 0) / max(total_steps - warmup_steps, 1), 1.0)
        factor = final + (1 - final) * (1 + math.cos(math.pi * after_warmup)) / 2
    elif kind == "constant":
        factor = 1.0
    else:
        raise InputError(f"optim.schedule={kind} is unknown; take step, cosine or constant")
    warmup = min((step + 1) / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    return factor * warmup
