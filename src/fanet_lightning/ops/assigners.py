"""Assigners other than the paper's: ATSS and SimOTA. Which anchor learns which face.

ATSS (Zhang et al. 2020, "Bridging the Gap…", §3.3 and algorithm 1)
===================================================================
*Candidates.* On each map, the k anchors whose centers are nearest to the face's center (all of a smaller map); of two
at the same distance the lower number.

*Threshold.* Mean plus standard deviation (over n - 1, as the authors' program) of the candidates' IoUs with the face.

*Positives.* Candidates that overlap the face by that threshold or more, and whose center lies inside it, borders
excluded. An anchor that several faces want goes to the larger overlap, at equal overlap to the lower face number.

There is no rule (i): a face none of whose candidates has its center inside, or that loses them all, gets no anchor, and
is counted. A face of 4 pixels or more always has a center of the stride-4 map inside.

A cell among the k nearest of its map is so in its own row and column too, so the (k + 1)² cells around the face hold
all candidates, however far outside of the map the face's center lies; the 1 is for two cells at the same distance.

SimOTA (Ge et al. 2021, "YOLOX", §2.1): the predictions decide
==============================================================
*Candidates.* On each map, the anchors whose center is less than 1.5 strides from the face's center on both axes: up to
3 × 3, the center prior of YOLOX's program as it is today.

*Cost* of a face and a candidate: the cross-entropy of calling the anchor a face, plus 3 · (-log IoU) of the predicted
box and the face (IoU + 1e-8, as there).

*Dynamic k.* A face takes as many anchors as its 10 largest IoUs with predicted boxes add up to, rounded down, at least
1: those of lowest cost, of equal costs the lower number. An anchor that several faces take goes to the lowest cost, at
equal cost to the lower face number. A face that loses all is counted.

Two points are simpler than in YOLOX's program: there, candidates of one face also count, at a penalty of 1e6, for all
others of the image, and a disputed anchor may fall to a face that had not taken it.

With several hierarchies the last one, the detector, decides for all of them, so that all keep the same targets and N,
as in eq. 4 of the paper; YOLOv7 (Wang et al. 2022, §4.2) assigns its auxiliary heads so too.
"""

import math

import torch
import torch.nn.functional as F

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import decode, paired_iou
from fanet_lightning.ops.matching import (
    Matches,
    first_columns,
    in_window,
    order_of,
    strides_in_window,
    strongest_claims,
    window,
)
from fanet_lightning.ops.structures import HeadOutput, Targets

# Zhang et al. 2020, table 6: 9 is their choice, from 7 to 17 it hardly matters.
CANDIDATES_PER_MAP = 9


@torch.no_grad()
def assign_atss(grid: AnchorGrid, targets: Targets, batch_size: int, *, k: int = CANDIDATES_PER_MAP) -> Matches:
    """Assign the packed faces of ``batch_size`` images by ATSS; the rule is at the top of this file.

    Runs on the faces' device and never waits for an accelerator. ``k`` at least 1.
    """
    boxes = targets.boxes_xyxy.float()
    faces, maps, device = boxes.shape[0], len(grid.map_shapes), boxes.device
    side = k + 1
    anchor, iou = window(grid, boxes, side)
    center = grid.boxes_cxcywh(device)[:, :2]
    offset = center[anchor] - ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
    distance = offset.square().sum(dim=2).masked_fill_(~in_window(grid, side, device), torch.inf)
    column = first_columns(distance.view(faces, maps, side * side), k)
    column += torch.arange(maps, device=device)[:, None] * (side * side)
    column = column.flatten(1)
    # Places that a small map cannot fill were moved to the end; they are no candidates.
    candidate = distance.gather(1, column) < torch.inf
    anchor, iou = anchor.gather(1, column), iou.gather(1, column)

    count = candidate.sum(dim=1, keepdim=True)
    mean = (iou * candidate).sum(dim=1, keepdim=True) / count
    variance = ((iou - mean).square() * candidate).sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    at = center[anchor]
    inside = ((at > boxes[:, None, :2]) & (at < boxes[:, None, 2:])).all(dim=2)
    wanted = candidate & (iou >= mean + variance.sqrt()) & inside & (iou > 0)
    return strongest_claims(grid, targets, batch_size, anchor, order_of(iou), wanted)


CENTER_RADIUS = 1.5  # strides
IOU_WEIGHT = 3.0
LARGEST_IOUS = 10
IOU_FLOOR = 1e-8

# A window of so many cells holds all centers that are less than the radius away.
_SIDE = math.ceil(2 * CENTER_RADIUS)
# Above every bit pattern of a cost, so that the lowest cost is the strongest claim.
_MOST = (1 << 31) - 1


@torch.no_grad()
def assign_simota(grid: AnchorGrid, targets: Targets, heads: HeadOutput) -> Matches:
    """Assign the packed faces of a batch by SimOTA; the rule is at the top of this file.

    ``heads``: what the deciding hierarchy says, of any floating type; it is read as float32 and only at candidates.
    Runs on the faces' device and never waits for an accelerator.
    """
    boxes, device = targets.boxes_xyxy.float(), targets.boxes_xyxy.device
    batch_size = heads.logits.shape[0]
    anchor, _ = window(grid, boxes, _SIDE)
    priors = grid.boxes_cxcywh(device)[anchor]
    reach = CENTER_RADIUS * strides_in_window(grid, _SIDE, device)
    offset = priors[..., :2] - ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
    candidate = (offset.abs() < reach[:, None]).all(dim=2) & in_window(grid, _SIDE, device)

    rows = anchor + targets.image_index[:, None] * grid.count
    logits = heads.logits.flatten(0, 1)[rows].float()
    predicted_xyxy = decode(heads.offsets.flatten(0, 1)[rows].float(), priors)
    iou = paired_iou(predicted_xyxy, boxes[:, None]) * candidate
    cost = F.softplus(logits[..., 0] - logits[..., 1]) - IOU_WEIGHT * (iou + IOU_FLOOR).log()
    # What rounding leaves below 0 would break the order of the bit patterns.
    cost = torch.where(candidate & (cost < torch.inf), cost.clamp(min=0), torch.inf)

    taken = iou.topk(min(LARGEST_IOUS, iou.shape[1]), dim=1).values.sum(dim=1).int().clamp(min=1)
    column = first_columns(cost, LARGEST_IOUS)
    cost, anchor = cost.gather(1, column), anchor.gather(1, column)
    wanted = (torch.arange(column.shape[1], device=device) < taken[:, None]) & (cost < torch.inf)
    return strongest_claims(grid, targets, batch_size, anchor, _MOST - order_of(cost), wanted)
