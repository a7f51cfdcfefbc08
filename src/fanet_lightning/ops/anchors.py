"""The anchors: one square per cell and map (S3FD §3.1, FANet §3.3), from the real shapes of the maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

# FANet §3.3: six detection maps, their strides and anchor sides in pixels of the input.
STRIDES = (4, 8, 16, 32, 64, 128)
SIZES = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class AnchorGrid:
    """The anchors of one input size, hashable, so that boxes are computed once per shape and device.

    ``map_shapes`` (height, width) in cells of each map, ``strides`` and ``sizes`` in pixels of the input.
    Anchors are numbered map by map, row by row; the center of cell i is at (i + 0.5) × stride, nothing is clipped.
    """

    map_shapes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...] = STRIDES
    sizes: tuple[int, ...] = SIZES

    @property
    def count(self) -> int:
        """A, the number of anchors: 34,125 at 640 × 640."""
        return sum(height * width for height, width in self.map_shapes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of each map's first anchor, L entries."""
        return tuple(accumulate((height * width for height, width in self.map_shapes[:-1]), initial=0))

    def boxes_cxcywh(self, device: torch.device | str = "cpu") -> Tensor:
        """(A, 4) float32: center x, center y, width, height, pixels of the input. Cached: do not write into it."""
        return _boxes_cxcywh(self, torch.device(device))


@lru_cache(maxsize=32)
def _boxes_cxcywh(grid: AnchorGrid, device: torch.device) -> Tensor:
    # Filled under inference_mode it would hold tensors that autograd refuses later.
    with torch.inference_mode(False):
        return boxes_of_maps(grid.map_shapes, grid.strides, grid.sizes, device)


def boxes_of_maps(
    map_shapes: Sequence[tuple[int, int]], strides: Sequence[int], sizes: Sequence[int], device: torch.device
) -> Tensor:
    """As :meth:`AnchorGrid.boxes_cxcywh`, computed again; the shapes may be those that an exported graph computes."""
    maps = []
    for (height, width), stride, size in zip(map_shapes, strides, sizes, strict=True):
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) * stride
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) * stride
        cy, cx = torch.meshgrid(y, x, indexing="ij")
        side = torch.full_like(cx, float(size))
        maps.append(torch.stack([cx, cy, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(maps)
