"""Cutting a picture that is too large for memory into tiles that give the boxes of the whole.

A tile is a core with a margin around it, and a face belongs to the tile whose core its centre lies in; the cores leave
nothing out and do not overlap, so each face is found once. Tiles start at multiples of the coarsest stride, so that
pooling falls on the same pixels as in the whole picture and anchors stand at the same places.

The margin is what the network sees around a face. S3FD's and FANet's heads depend on pixels at most 410 from the centre
of their anchor (conv7_2's do, which look 48 pixels further left and up than right and down), those of a dilated fc6 on
570. The coarsest anchors stand 128 apart, so one is within 64 pixels of a face's centre: 634, rounded up to a multiple
of 128. What is left over is bilinear upsampling in a whole picture whose sides are no multiples of 128, where it is a
trifle off 2×.
"""

import math
from typing import NamedTuple

from fanet_lightning.anchors import STRIDES

STRIDE = STRIDES[-1]
MARGIN = 640
SMALLEST_TILE_PIXELS = (2 * MARGIN + STRIDE) ** 2


class Tile(NamedTuple):
    """Pixels ``x1`` … ``x2 - 1``, ``y1`` … ``y2 - 1`` of a picture, and the box of the centres that belong to it.

    ``core_xyxy`` is half-open and reaches to infinity on the picture's own sides: a box's centre may lie outside.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    core_xyxy: tuple[float, float, float, float]


def tiles(height: int, width: int, tile_pixels: int | None) -> list[Tile]:
    """Tiles of at most ``tile_pixels`` pixels, row by row; a single one without a limit or where the whole fits.

    Raises:
        ValueError: ``tile_pixels`` below :data:`SMALLEST_TILE_PIXELS`.
    """
    if tile_pixels is None:
        return [Tile(0, 0, width, height, (-math.inf, -math.inf, math.inf, math.inf))]
    if tile_pixels < SMALLEST_TILE_PIXELS:
        raise ValueError(f"tile_pixels={tile_pixels}: must be at least {SMALLEST_TILE_PIXELS}")
    if height * width <= tile_pixels:
        return tiles(height, width, None)
    square = math.isqrt(tile_pixels) // STRIDE * STRIDE
    # Along a narrow strip tiles may be longer.
    long_side = tile_pixels // min(square, height, width) // STRIDE * STRIDE
    rows = _spans(height, square if height > square and width > square else long_side)
    columns = _spans(width, square if height > square and width > square else long_side)
    return [
        Tile(x1, y1, x2, y2, (core_x1, core_y1, core_x2, core_y2))
        for y1, y2, core_y1, core_y2 in rows
        for x1, x2, core_x1, core_x2 in columns
    ]


def _spans(length: int, side: int) -> list[tuple[int, int, float, float]]:
    """Start, end, start and end of the core, of tiles along one axis."""
    if length <= side:
        return [(0, length, -math.inf, math.inf)]
    core = side - 2 * MARGIN
    count = math.ceil((length - 2 * MARGIN) / core)
    starts = [i * core for i in range(count)]
    return [
        (
            start,
            min(start + side, length),
            start + MARGIN if start else -math.inf,
            start + MARGIN + core if start < starts[-1] else math.inf,
        )
        for start in starts
    ]
