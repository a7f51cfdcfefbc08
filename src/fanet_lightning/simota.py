"""Which anchor learns which face, by SimOTA (Ge et al. 2021, "YOLOX", §2.1): the predictions decide.

The rule
========
*Candidates.* On each map, the anchors whose centre is less than 1.5 strides from the face's centre on both axes: up to
3 × 3, the centre prior of YOLOX's program as it is today.

*Cost* of a face and a candidate: the cross-entropy of calling the anchor a face, plus 3 · (-log IoU) of the predicted
box and the face (IoU + 1e-8, as there).

*Dynamic k.* A face takes as many anchors as its 10 largest IoUs with predicted boxes add up to, rounded down, at least
1: those of lowest cost, of equal costs the lower number. An anchor that several faces take goes to the lowest cost, at
equal cost to the lower face number. A face that loses all is counted.

Two points are simpler than in YOLOX's program: there, candidates of one face also count, at a penalty of 1e6, for all
others of the image, and a disputed anchor may fall to a face that had not taken it.

Which predictions
=================
With several hierarchies the last one decides for all of them. It is the detector; it has the strongest features, so
its costs say most about what can be learnt; and all hierarchies keep one and the same targets and N, as in eq. 4 of the
paper. YOLOv7 (Wang et al. 2022, §4.2, "lead head guided label assigner") assigns its auxiliary heads so too.
"""

import math

import torch
import torch.nn.functional as F

from fanet_lightning.anchors import AnchorGrid
from fanet_lightning.boxes import decode, paired_iou
from fanet_lightning.matching import (
    Matches,
    first_columns,
    in_window,
    order_of,
    strides_in_window,
    strongest_claims,
    window,
)
from fanet_lightning.structures import HeadOutput, Targets

CENTRE_RADIUS = 1.5  # strides
IOU_WEIGHT = 3.0
LARGEST_IOUS = 10
IOU_FLOOR = 1e-8

# A window of so many cells holds all centres that are less than the radius away.
_SIDE = math.ceil(2 * CENTRE_RADIUS)
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
    reach = CENTRE_RADIUS * strides_in_window(grid, _SIDE, device)
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
