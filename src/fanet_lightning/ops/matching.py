"""Which anchor learns which face (FANet §3.3; S3FD §3.2 for the second stage).

The rule
========
*Candidates.* A face sees, on each map, the K × K cells nearest to its center, as far as the map has them. K follows
from the threshold t. IoU never exceeds the IoU of the two projections on an axis, so IoU > t needs a center offset
below (1/t - 1)/2 × size, and a window of more than (1/t - 1) × size / stride cells holds every such anchor (8 cells for
t = 0.35). IoU does not grow with the offset, so the window holds an anchor of the largest IoU as well. Nothing outside
the candidates is ever matched.

*Rule (i).* Each face takes its best anchor: the largest overlap, which must be above 0, at equal overlap the lowest
anchor number. Where several faces take the same one, the larger overlap keeps it, at equal overlap the lower face
number. Such an anchor is *forced*: it belongs to that face for good.

*Rule (ii).* Every anchor that is not forced goes to the face with which it overlaps most, if by more than t; at equal
overlap to the lower face number.

*Rounds* (ours; the paper is silent). Up to ``rounds`` times, every face that has no anchor takes its best candidate
among those not forced, again with overlap above 0 and the same ties; the winners' anchors are forced, even where
rule (ii) had given them away. A face that so loses its last anchor takes part in the next round. Faces that still have
none are counted.

*Second stage* (S3FD, optional). Every face with fewer than 6 anchors asks for the 6 candidates that overlap it most, by
more than 0.1, among those that no one has (ties: lowest anchor number). An anchor asked for by several goes to the
larger overlap, then to the lower face number; the others get nothing in its place.

How
===
One int64 per anchor says who has it: a bit for "forced", the overlap's float32 pattern (which orders as the overlap
does) and the face's rank. Each step is then one ``scatter_reduce(amax)``, whose result does not depend on the order of
execution.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import area
from fanet_lightning.ops.structures import Targets

# S3FD §3.2: its second stage lowers the threshold to 0.1; 6 anchors per face is about the average of its first stage.
SECOND_STAGE_IOU = 0.1
SECOND_STAGE_ANCHORS = 6

_FORCED = 1 << 62
_RANK_BITS = 32
_RANK_MASK = (1 << _RANK_BITS) - 1


class Matches(NamedTuple):
    """``face_index`` (B, A) int64: number of the packed face that the anchor learns, -1 for background.

    ``unmatched_faces``: 0-dim int64 tensor, faces that were left without any anchor.
    """

    face_index: Tensor
    unmatched_faces: Tensor


@torch.no_grad()
def match(
    grid: AnchorGrid, targets: Targets, batch_size: int, *, threshold: float = 0.35, rounds: int = 8,
    second_stage: bool = False,
) -> Matches:  # fmt: skip
    """Match the packed faces of ``batch_size`` images to the anchors of ``grid``; the rule is at the top of this file.

    Runs on the faces' device and never waits for an accelerator. ``threshold`` in (0, 1), ``rounds`` at least 0.
    """
    device = targets.boxes_xyxy.device
    anchor, iou = window(grid, targets.boxes_xyxy, window_side(grid, threshold))
    slot = anchor.add_(targets.image_index[:, None] * grid.count)
    rank = _ranks(targets)
    owner = torch.zeros(batch_size * grid.count, dtype=torch.int64, device=device)

    _claim_above(owner, slot, iou, rank, threshold)
    best = _force_best(owner, slot, iou, rank)
    # Who won in rule (i) is provided for. Where reading back costs nothing, the rounds look at the others alone.
    losers: Tensor | slice = slice(None)
    if _reads_are_free(device):
        losers = ((owner[best] & _RANK_MASK) != rank).nonzero().squeeze(1)
    lost_slot, lost_iou, lost_rank = slot[losers], iou[losers], rank[losers]
    for _ in range(rounds):
        held = owner[lost_slot]
        needy = ~_owns(held, lost_rank).any(dim=1)
        if _reads_are_free(device) and not bool(needy.any()):
            break
        _force_best(owner, lost_slot, lost_iou.masked_fill(held >= _FORCED, 0), lost_rank, needy)

    if second_stage:
        _second_stage(owner, slot, iou, rank)
    return _matches(owner, lost_slot, lost_rank, len(rank), batch_size, grid)


def window_side(grid: AnchorGrid, threshold: float) -> int:
    """K: how many cells along an axis a face sees on each map, strictly more than (1/t - 1) × size / stride."""
    ratio = max(size / stride for size, stride in zip(grid.sizes, grid.strides, strict=True))
    return math.floor((1 / threshold - 1) * ratio) + 1


def window(grid: AnchorGrid, boxes_xyxy: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(F, 4) boxes and K = ``side`` → anchor numbers (F, L·K·K) int64 and IoUs (F, L·K·K) float32.

    The K × K cells of each map that are nearest to the box's center, map by map and row by row. Numbers ascend within a
    row, but for the cells that a map smaller than K lacks (:func:`in_window`): they repeat others with IoU 0. Overlaps
    per column and per row of a window are several times cheaper than :func:`paired_iou`, and equal to the last bit.
    """
    layout = _layout(grid, boxes_xyxy.device)
    boxes = boxes_xyxy.float()
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    start = ((low + high) / 2 / layout.strides - (side - 1) / 2).floor().long()
    start = torch.minimum(start, layout.cells_xy - side).clamp_(min=0)
    cell = start[..., None] + torch.arange(side, device=boxes.device)  # (F, L, 2, K)
    center = (cell + 0.5) * layout.strides[..., None]
    half = layout.sizes[..., None] / 2
    overlap = torch.minimum(high[..., None], center + half) - torch.maximum(low[..., None], center - half)
    overlap = overlap.clamp_(min=0).masked_fill_(cell >= layout.cells_xy[..., None], 0)
    cell = torch.minimum(cell, layout.cells_xy[..., None] - 1)

    rows = cell[:, :, 1] * layout.cells_xy[:, 0, None] + layout.starts
    anchor = rows[..., None] + cell[:, :, 0, None]
    intersection = overlap[:, :, 1, :, None] * overlap[:, :, 0, None]
    union = (area(boxes)[:, None] + layout.sizes[:, 0].square())[..., None, None] - intersection
    # The comparison is false for NaN, so a broken box overlaps nothing.
    iou = torch.where(intersection > 0, intersection / union.clamp_(min=1e-12), 0)
    return anchor.flatten(1), iou.flatten(1)


def in_window(grid: AnchorGrid, side: int, device: torch.device) -> Tensor:
    """(L·K·K,) bool: which places of a :func:`window` are cells of their own; the same for every box."""
    has = torch.arange(side, device=device) < _layout(grid, device).cells_xy[..., None]  # (L, 2, K)
    return (has[:, 1, :, None] & has[:, 0, None]).flatten()


def strides_in_window(grid: AnchorGrid, side: int, device: torch.device) -> Tensor:
    """(L·K·K,) float32: the stride of the map that each place of a :func:`window` is on."""
    return _layout(grid, device).strides.expand(-1, side * side).flatten()


def first_columns(cost: Tensor, count: int) -> Tensor:
    """The ``count`` columns of lowest cost along the last axis, in that order; of equal costs the lower column first.

    ``cost`` float32, not negative, at most inf; NaN counts as more. Top-k alone would leave the order of ties open.
    """
    columns = cost.shape[-1]
    keys = (order_of(cost) << _RANK_BITS) | torch.arange(columns, device=cost.device)
    return keys.topk(min(count, columns), dim=-1, largest=False).indices


def strongest_claims(
    grid: AnchorGrid, targets: Targets, batch_size: int, anchor: Tensor, strength: Tensor, wanted: Tensor
) -> Matches:
    """Give each anchor to the face that claims it most strongly, at equal strength to the lower face number.

    Row f of ``anchor`` (F, C) int64, ``strength`` (F, C) int64 in 0 … 2³¹ - 1 (:func:`order_of`) and ``wanted`` (F, C)
    bool are the claims of face f; they count where ``wanted``. A face that loses all of its own is counted.
    """
    rank = _ranks(targets)
    slot = anchor + targets.image_index[:, None] * grid.count
    owner = torch.zeros(batch_size * grid.count, dtype=torch.int64, device=anchor.device)
    keys = ((strength << _RANK_BITS) | rank[:, None]) * wanted
    owner.scatter_reduce_(0, slot.flatten(), keys.flatten(), "amax")
    return _matches(owner, slot, rank, len(rank), batch_size, grid)


def order_of(values: Tensor) -> Tensor:
    """float32 that are not negative → int64 below 2³¹ in the same order: their bit patterns. NaN is above inf."""
    return values.contiguous().view(torch.int32).long()


class _Layout(NamedTuple):
    strides: Tensor  # (L, 1) float32, as sizes
    sizes: Tensor
    cells_xy: Tensor  # (L, 2) int64
    starts: Tensor  # (L, 1) int64


@lru_cache(maxsize=32)
def _layout(grid: AnchorGrid, device: torch.device) -> _Layout:
    # Cached, because copying to an accelerator waits for it. The cache outlives an inference mode it was filled in.
    with torch.inference_mode(False):
        return _Layout(
            torch.tensor(grid.strides, dtype=torch.float32, device=device)[:, None],
            torch.tensor(grid.sizes, dtype=torch.float32, device=device)[:, None],
            torch.tensor([(width, height) for height, width in grid.map_shapes], device=device),
            torch.tensor(grid.starts, device=device)[:, None],
        )


def _reads_are_free(device: torch.device) -> bool:
    return device.type == "cpu"  # on an accelerator it would wait for all queued work


def _keys(iou: Tensor, rank: Tensor) -> Tensor:
    return (order_of(iou) << _RANK_BITS) | rank


def _ranks(targets: Targets) -> Tensor:
    """F … 1: high for low face numbers, so that amax breaks ties; 0 stands for no one."""
    return torch.arange(len(targets.boxes_xyxy), 0, -1, device=targets.boxes_xyxy.device)


def _owns(held: Tensor, rank: Tensor) -> Tensor:
    return (held & _RANK_MASK) == rank[:, None]


def _matches(owner: Tensor, slot: Tensor, rank: Tensor, faces: int, batch_size: int, grid: AnchorGrid) -> Matches:
    """What ``owner`` says; the rows of ``slot`` and ``rank`` are the faces that may be without an anchor."""
    unmatched = (~_owns(owner[slot], rank).any(dim=1)).sum()
    face_index = torch.where(owner > 0, faces - (owner & _RANK_MASK), -1)
    return Matches(face_index.view(batch_size, grid.count), unmatched)


def _claim_above(owner: Tensor, slot: Tensor, iou: Tensor, rank: Tensor, threshold: float) -> None:
    """Rule (ii): the keys of all candidates above the threshold compete for their anchors."""
    above = iou > threshold
    if _reads_are_free(owner.device):
        face, column = above.nonzero(as_tuple=True)
        slot, keys = slot[face, column], _keys(iou[face, column], rank[face])
    else:
        slot, keys = slot.flatten(), (_keys(iou, rank[:, None]) * above).flatten()
    owner.scatter_reduce_(0, slot, keys, "amax")


def _force_best(owner: Tensor, slot: Tensor, iou: Tensor, rank: Tensor, who: Tensor | None = None) -> Tensor:
    """Each face, or those of ``who``, takes its candidate of largest overlap, if above 0; the candidates' slots."""
    overlap, column = iou.max(dim=1)
    best = slot.gather(1, column[:, None]).squeeze(1)
    wanted = overlap > 0 if who is None else (overlap > 0) & who
    owner.scatter_reduce_(0, best, (_keys(overlap, rank) | _FORCED) * wanted, "amax")
    return best


def _second_stage(owner: Tensor, slot: Tensor, iou: Tensor, rank: Tensor) -> None:
    held = owner[slot]
    # The repeated cells of small maps, which have IoU 0, must not count twice.
    has = (_owns(held, rank) & (iou > 0)).sum(dim=1, keepdim=True)
    wanted = (has < SECOND_STAGE_ANCHORS) & (held == 0) & (iou > SECOND_STAGE_IOU)
    columns = iou.shape[1]
    # Low columns first among equal overlaps; top-k alone would leave it open.
    order = _keys(iou, torch.arange(columns - 1, -1, -1, device=iou.device)) * wanted
    top, column = order.topk(min(SECOND_STAGE_ANCHORS, columns), dim=1)
    keys = _keys(iou.gather(1, column), rank[:, None]) * (top > 0)
    owner.scatter_reduce_(0, slot.gather(1, column).flatten(), keys.flatten(), "amax")
