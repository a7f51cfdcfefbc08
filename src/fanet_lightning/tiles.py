"""Cutting a picture that is too large for memory into tiles that give the anchors of the whole.

A tile is a core with a margin around it. The cores cover the picture without overlap, and an anchor belongs to the tile
whose core it stands in. Tiles and cores start at multiples of the coarsest stride, so that pooling falls on the same
pixels as in the whole picture, anchors stand at the same places, and none stands on an edge.

The margin is what the network sees around an anchor. S3FD's and FANet's heads depend on pixels at most 410 from the
centre of their anchor (conv7_2's do, which look 48 pixels further left and up than right and down), those of a dilated
fc6 on 570; upsampling to a map of odd side shifts what a shallow anchor sees by up to half a cell of the deeper map.
Rounded up to a multiple of 128: 640.
"""

import math
from typing import Literal, NamedTuple

from fanet_lightning.anchors import STRIDES
from fanet_lightning.errors import InputError

STRIDE = STRIDES[-1]
MARGIN = 640
SMALLEST_TILE_PIXELS = (2 * MARGIN + STRIDE) ** 2

# ``auto``: as many as fit into memory. A number: at most so many. None: the whole picture, whatever comes.
TilePixels = int | Literal["auto"] | None
AUTO: Literal["auto"] = "auto"


class Tile(NamedTuple):
    """Pixels ``x1`` … ``x2 - 1``, ``y1`` … ``y2 - 1`` of a picture, and the part whose anchors belong to it.

    ``core_xyxy`` is half-open. Its sides are multiples of :data:`STRIDE`, or sides of the picture.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    core_xyxy: tuple[int, int, int, int]

    @property
    def pixels(self) -> int:
        return (self.x2 - self.x1) * (self.y2 - self.y1)


def tiles(height: int, width: int, tile_pixels: int | None) -> list[Tile]:
    """Tiles of at most ``tile_pixels`` pixels, row by row; a single one without a limit or where the whole fits.

    Raises:
        ValueError: ``tile_pixels`` below :data:`SMALLEST_TILE_PIXELS`.
    """
    if tile_pixels is not None and tile_pixels < SMALLEST_TILE_PIXELS:
        raise ValueError(f"tile_pixels={tile_pixels}: must be at least {SMALLEST_TILE_PIXELS}")
    if tile_pixels is None or height * width <= tile_pixels:
        return [Tile(0, 0, width, height, (0, 0, width, height))]
    side = math.isqrt(tile_pixels) // STRIDE * STRIDE
    if height <= side or width <= side:  # along a narrow strip tiles may be longer
        side = tile_pixels // min(height, width) // STRIDE * STRIDE
    return [
        Tile(x1, y1, x2, y2, (core_x1, core_y1, core_x2, core_y2))
        for y1, y2, core_y1, core_y2 in _spans(height, side)
        for x1, x2, core_x1, core_x2 in _spans(width, side)
    ]


def _spans(length: int, side: int) -> list[tuple[int, int, int, int]]:
    """Start, end, start and end of the core, of tiles along one axis."""
    if length <= side:
        return [(0, length, 0, length)]
    core = side - 2 * MARGIN
    count = math.ceil((length - 2 * MARGIN) / core)
    spans = []
    for start in range(0, count * core, core):
        last = start == (count - 1) * core
        spans.append(
            (
                start,
                length if last else start + side,
                start + MARGIN if start else 0,
                length if last else start + MARGIN + core,
            )
        )
    return spans


def check_tile_pixels(value: object) -> None:
    """
    Raises:
        InputError: neither ``auto``, nor null, nor a whole number of at least :data:`SMALLEST_TILE_PIXELS`.
    """
    if value is None or value == AUTO:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < SMALLEST_TILE_PIXELS:
        raise InputError(
            f"protocol.tile_pixels={value}; give auto, a number of at least {SMALLEST_TILE_PIXELS}, or null for no "
            "tiles"
        )
