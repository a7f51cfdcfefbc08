"""Grids, faces and heads that the tests of this room share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput, Targets

# Anchors of 16 on a 4 x 4 map of stride 4; centers 2, 6, 10, 14.
ONE_MAP = AnchorGrid(((4, 4),), strides=(4,), sizes=(16,))
ON_AN_ANCHOR = (-2.0, -2.0, 14.0, 14.0)  # anchor (1, 1): number 5


def grid_for(height: int, width: int) -> AnchorGrid:
    return AnchorGrid(tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES))


def faces_in(*images: Sequence[Sequence[float]]) -> Targets:
    """One list of boxes per image."""
    boxes = [list(map(float, box)) for image in images for box in image]
    index = [number for number, image in enumerate(images) for _ in image]
    return Targets(torch.tensor(boxes).reshape(-1, 4), torch.tensor(index, dtype=torch.int64))


def random_faces(
    counts: Sequence[int],
    extent: float,
    seed: int,
    smallest: float = 3,
    largest: float = 90,
    whole_pixels: bool = False,
) -> Targets:
    """Log-uniform sizes, aspect ratios up to 1 : 3, centers inside and a little outside of a square input."""
    random = torch.Generator().manual_seed(seed)
    count = sum(counts)
    center = (torch.rand(count, 2, generator=random) * 1.3 - 0.15) * extent
    size = smallest * (largest / smallest) ** torch.rand(count, 1, generator=random)
    stretch = 3 ** (torch.rand(count, 1, generator=random) - 0.5)
    half = size / 2 * torch.cat([stretch, 1 / stretch], dim=1)
    low, high = center - half, center + half
    if whole_pixels:
        low = low.round()
        high = torch.maximum(high.round(), low + 2)
    return Targets(torch.cat([low, high], dim=1), torch.repeat_interleave(torch.tensor(counts, dtype=torch.int64)))


def random_heads(
    hierarchies: int, batch_size: int, anchors: int, seed: int = 0, dtype: torch.dtype = torch.float32,
    spread: float = 3.0,
) -> NetworkOutput:  # fmt: skip
    random = torch.Generator().manual_seed(seed)

    def leaf(channels: int) -> Tensor:
        values = spread * torch.randn(batch_size, anchors, channels, generator=random)
        return values.to(dtype).requires_grad_()

    return NetworkOutput([HeadOutput(leaf(2), leaf(4)) for _ in range(hierarchies)], [])


def leaves(output: NetworkOutput) -> list[Tensor]:
    return [tensor for heads in output.hierarchies for tensor in heads]
