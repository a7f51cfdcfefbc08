"""Large images: how many pixels fit into memory, tiles, heads joined over tiles.

A tile is a core with a margin around it. The cores cover the image without overlap, and an anchor belongs to the tile
whose core it is in. Tiles and cores start at multiples of the coarsest stride, so that pooling falls on the same pixels
as in the whole image, anchors are at the same places, and none is on an edge.

The margin is what the network sees around an anchor. S3FD's and FANet's heads depend on pixels at most 410 from the
center of their anchor (conv7_2's do, which look 48 pixels further left and up than right and down), those of a dilated
fc6 on 570; upsampling to a map of odd side shifts what a shallow anchor sees by up to half a cell of the deeper map.
Rounded up to a multiple of 128: 640.

What is joined are the heads, not the boxes: each anchor of the image is taken from the one tile that it belongs to, and
score floor, top-k, NMS and the number of faces kept then see all of them together, numbered as in the whole. So seams
leave no trace. Boxes, their order and their number equal the whole image's; what differs is rounding, since
convolutions of another size add in another order (about 1e-6 of a score).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fanet_lightning.cli.device import SHARE, available_bytes, bytes_per_pixel, is_out_of_memory
from fanet_lightning.data.transforms import AUTO, MARGIN, SMALLEST_TILE_PIXELS, STRIDE, TilePixels
from fanet_lightning.models.blocks import Upsample
from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from fanet_lightning.ops.postprocess import detect
from fanet_lightning.ops.structures import Detections, HeadOutput, NetworkOutput


class Tile(NamedTuple):
    """Part of an image (pixels, half-open), and the part of it whose anchors are its own."""

    x1: int
    y1: int
    x2: int
    y2: int
    core_xyxy: tuple[int, int, int, int]

    @property
    def pixels(self) -> int:
        return (self.x2 - self.x1) * (self.y2 - self.y1)


def tiles(height: int, width: int, tile_pixels: int | None) -> list[Tile]:
    """Tiles of at most ``tile_pixels`` (:data:`SMALLEST_TILE_PIXELS` or more), row by row; None: a single one."""
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
    last = (math.ceil((length - 2 * MARGIN) / core) - 1) * core
    return [
        (
            start,
            length if start == last else start + side,
            start + MARGIN if start else 0,
            length if start == last else start + MARGIN + core,
        )
        for start in range(0, last + 1, core)
    ]


class Candidates(NamedTuple):
    """Anchors of an image that could become faces, N of them, ascending by number.

    ``logits`` (N, 2), ``offsets`` (N, 4), ``anchors_cxcywh`` (N, 4) in pixels of the image, all float32; ``number``
    (N,) int64, the anchor's index in the image's :class:`AnchorGrid`.
    """

    logits: Tensor
    offsets: Tensor
    anchors_cxcywh: Tensor
    number: Tensor


def find_in_tiles(
    run: Callable[[Tensor, list[Upsample]], NetworkOutput],
    images: Tensor,
    parts: Sequence[Tile],
    detection: Mapping[str, Any],
) -> Detections:
    """Faces of one image, as :func:`fanet_lightning.ops.postprocess.detect` finds them in the whole.

    Args:
        run: the network on a tile (1, 3, h, w) uint8, which it brings to its device itself, with :func:`upsampling`.
        images: (1, 3, H, W) uint8, the image. It stays where it is; no copy of the whole is made.
        parts: what :func:`tiles` gave for H and W.
        detection: all four settings of ``detect``.
    """
    height, width = images.shape[-2:]
    whole = AnchorGrid(map_shapes(height, width))
    found = []
    for tile in parts:
        output = run(images[:, :, tile.y1 : tile.y2, tile.x1 : tile.x2], upsampling(tile, height, width))
        found.append(_best(own_anchors(output, tile, whole), detection))
    logits, offsets, anchors_cxcywh, number = map(torch.cat, zip(*found, strict=True))
    # The numbers of the whole decide between equal scores.
    order = number.argsort()
    joined = NetworkOutput([HeadOutput(logits[order][None], offsets[order][None])], [])
    # All that `detect` asks of a grid.
    grid: Any = SimpleNamespace(count=len(order), boxes_cxcywh=lambda device: anchors_cxcywh[order].to(device))
    return detect(joined, grid, **detection)[0]


def map_shapes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Height and width of each detection map of an image: pooling rounds up."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)


def own_anchors(output: NetworkOutput, tile: Tile, whole: AnchorGrid) -> Candidates:
    """The anchors of a tile's core, out of what the network said of the tile; ValueError: its maps are not a tile's."""
    logits, offsets = output.hierarchies[-1]
    shapes = map_shapes(tile.y2 - tile.y1, tile.x2 - tile.x1)
    if tuple(map(tuple, output.map_shapes)) != shapes or logits.shape[:2] != (1, AnchorGrid(shapes).count):
        raise ValueError(f"maps {output.map_shapes} with {logits.shape[1]} anchors, a tile has {shapes}")
    x1, y1, x2, y2 = tile.core_xyxy
    found = []
    start = 0
    for (rows, cells), (_, whole_cells), whole_start, stride, size in zip(
        shapes, whole.map_shapes, whole.starts, whole.strides, whole.sizes, strict=True
    ):
        # A side of the image may cut the last cell: rounded up. All other sides are multiples of the stride.
        row = torch.arange(y1 // stride, -(-y2 // stride), device=logits.device)
        cell = torch.arange(x1 // stride, -(-x2 // stride), device=logits.device)
        own = (start + (row - tile.y1 // stride)[:, None] * cells + (cell - tile.x1 // stride)).flatten()
        center_y, center_x = torch.meshgrid((row + 0.5) * stride, (cell + 0.5) * stride, indexing="ij")
        side = torch.full_like(center_x, float(size))
        anchors_cxcywh = torch.stack([center_x, center_y, side, side], dim=-1).reshape(-1, 4)
        number = (whole_start + row[:, None] * whole_cells + cell).flatten()
        found.append(Candidates(logits[0, own], offsets[0, own], anchors_cxcywh, number))
        start += rows * cells
    return Candidates(*map(torch.cat, zip(*found, strict=True)))


def _best(candidates: Candidates, detection: Mapping[str, Any]) -> Candidates:
    """Without those that `detect` would drop in any company: below the floor, or behind ``top_k`` others."""
    scores = torch.sigmoid(candidates.logits[:, 1].float() - candidates.logits[:, 0].float())
    passed = (scores >= detection["score_floor"]).nonzero().squeeze(1)
    chosen = passed[scores[passed].argsort(descending=True, stable=True)[: int(detection["top_k"])]].sort().values
    return Candidates(*(column[chosen] for column in candidates))


def upsampling(tile: Tile, height: int, width: int) -> list[Upsample]:
    """What brings map i + 1 of a tile to the size of map i, so that it is that part of the whole image's map.

    A map of odd side is upsampled to 2 n - 1 cells, not 2 n, so a whole image's upsampling runs slowly out of step with
    2×, by up to half a deep cell at its far end. A tile alone would begin in step again.
    """
    whole = map_shapes(height, width)
    return [partial(_upsampled, tile, whole, shallow) for shallow in range(len(whole) - 1)]


def _upsampled(tile: Tile, whole: Sequence[tuple[int, int]], shallow: int, deep: Tensor, like: Tensor) -> Tensor:
    dtype = deep.dtype
    deep = deep.to(torch.promote_types(dtype, torch.float32))
    for axis, start in ((0, tile.y1), (1, tile.x1)):
        # In torch's own precision, so that both round alike.
        ratio = torch.tensor(whole[shallow + 1][axis], dtype=deep.dtype) / whole[shallow][axis]
        first, cells = start // STRIDES[shallow + 1], deep.shape[axis - 2]
        cell = start // STRIDES[shallow] + torch.arange(like.shape[axis - 2], dtype=deep.dtype)
        # align_corners=False: cell centers at halves; what is before the first one repeats it.
        source = ((cell + 0.5) * ratio - 0.5).clamp(min=0)
        low = source.floor()
        share = (source - low).to(deep.device).reshape((-1, 1) if axis == 0 else (-1,))
        # The tile's last cell repeats too: at the image's end as in the whole, elsewhere deep in the margin.
        before, after = (
            deep.index_select(axis - 2, (index - first).long().clamp(0, cells - 1).to(deep.device))
            for index in (low, low + 1)
        )
        deep = before + (after - before) * share
    return deep.to(dtype)


class PixelLimit:
    """The limit of one network on one device, measured on the network the first time that it matters.

    ``refused``: pixels of a tile that has run out of memory, which is not tried again. ``together``: what several
    images may have in all, once they have run out of memory; a single one of more may fit.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, autocast_bf16: bool = False) -> None:
        self._network, self._device, self._autocast_bf16 = network, device, autocast_bf16
        self._bytes_per_pixel: float | None = None
        self.refused: int | None = None
        self.together: int | None = None

    def of_tile(self, tile_pixels: TilePixels) -> int | None:
        """The pixels of a tile; None: the whole image, whatever its size."""
        if tile_pixels is None:
            return None
        limits = [tile_pixels] if isinstance(tile_pixels, int) else []
        if self.refused is not None:
            limits.append(self.refused // 2)
        elif tile_pixels == AUTO:
            limits.extend(self._pixels_in_memory())
        return max(SMALLEST_TILE_PIXELS, min(limits)) if limits else None

    def images_together(self, height: int, width: int, tile_pixels: TilePixels) -> int | None:
        """How many images of one size fit, at least 1; None: any number."""
        # An image that must stay whole still need not share memory with others.
        limits = [self.of_tile(AUTO if tile_pixels is None else tile_pixels), self.together]
        return min((max(1, limit // (height * width)) for limit in limits if limit is not None), default=None)

    def _pixels_in_memory(self) -> list[int]:
        """One number, or none where the memory is not known."""
        available = available_bytes(self._device)
        if available is None:
            return []
        if self._bytes_per_pixel is None:
            try:
                self._bytes_per_pixel = bytes_per_pixel(self._network, self._device, autocast_bf16=self._autocast_bf16)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return []  # the image itself will say so
        return [int(available * SHARE / self._bytes_per_pixel)] if self._bytes_per_pixel else []
