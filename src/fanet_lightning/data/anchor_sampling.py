"""Data-anchor-sampling (PyramidBox, Tang et al. 2018, §3.3): crops that give every anchor scale its faces."""

import random
from collections.abc import Sequence

from fanet_lightning.anchors import SIZES
from fanet_lightning.data.crops import Window
from fanet_lightning.data.records import Boxes


def target_range(face: float, anchor_sizes: Sequence[int]) -> list[tuple[float, float]]:
    """The intervals, one per anchor scale that may be chosen, from which the face's new size is drawn, in pixels.

    ``face`` is the face's size, the root of its area. Its own scale is the nearest anchor size; every smaller one and
    the next larger one may be chosen, and the new size lies within a factor of two of it.
    """
    nearest = min(range(len(anchor_sizes)), key=lambda i: abs(anchor_sizes[i] - face))
    choices = anchor_sizes[: min(len(anchor_sizes), nearest + 2)]
    return [(size / 2, size * 2.0) for size in choices]


def anchor_sampling_window(
    rng: random.Random,
    height: int,
    width: int,
    boxes_xyxy: Boxes,
    size: int,
    anchor_sizes: Sequence[int] = SIZES,
) -> Window:
    """A window in which one randomly chosen face has a randomly chosen anchor's size after resizing to ``size``.

    The window holds the whole face, or lies around its centre where the face is larger. It stays within the image
    where the image is large enough and covers it where it is not (ours: the paper leaves the position open).

    Args:
        boxes_xyxy: (F, 4), F ≥ 1, inside the image.
        size: side of the output, pixels.

    Raises:
        ValueError: no faces.
    """
    if len(boxes_xyxy) == 0:
        raise ValueError("data-anchor-sampling needs at least one face, got 0")
    x1, y1, x2, y2 = boxes_xyxy[rng.randrange(len(boxes_xyxy))].tolist()
    face = float(((x2 - x1) * (y2 - y1)) ** 0.5)
    low, high = rng.choice(target_range(face, anchor_sizes))
    side = max(1, round(size * face / rng.uniform(low, high)))
    return Window(_start(rng, x1, x2, side, width), _start(rng, y1, y2, side, height), side)


def _start(rng: random.Random, low: float, high: float, side: int, length: int) -> int:
    """First pixel of a window of ``side`` on an axis of ``length``, for a face from ``low`` to ``high``."""
    centre = (low + high) / 2
    if side >= high - low:
        first, last = high - side, low
    else:
        first, last = max(low, centre - side), min(high - side, centre)
    within = (0, length - side) if side <= length else (length - side, 0)
    # Rounded to the nearest pixel and not inwards: a window as narrow as its face must still exist.
    start = round(rng.uniform(max(first, within[0]), min(last, within[1])))
    return min(max(start, within[0]), within[1])
