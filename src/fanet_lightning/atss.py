"""Which anchor learns which face, by ATSS (Zhang et al. 2020, "Bridging the Gap…", §3.3 and algorithm 1).

The rule
========
*Candidates.* On each map, the k anchors whose centres are nearest to the face's centre (all of a smaller map); of two
at the same distance the lower number.

*Threshold.* Mean plus standard deviation (over n - 1, as the authors' program) of the candidates' IoUs with the face.

*Positives.* Candidates that overlap the face by that threshold or more, and whose centre lies inside it, borders
excluded. An anchor that several faces want goes to the larger overlap, at equal overlap to the lower face number.

There is no rule (i): a face none of whose candidates has its centre inside, or that loses them all, gets no anchor, and
is counted. A face of 4 pixels or more always has a centre of the stride-4 map inside.

How
===
A cell among the k nearest of its map is so in its own row and column too, so the (k + 1)² cells around the face hold
all candidates, however far outside of the map the face's centre lies; the 1 is for two cells at the same distance.
Nothing is dense in anchors × faces.
"""

import torch

from fanet_lightning.anchors import AnchorGrid
from fanet_lightning.matching import Matches, first_columns, in_window, order_of, strongest_claims, window
from fanet_lightning.structures import Targets

# Zhang et al. 2020, table 6: 9 is their choice, from 7 to 17 it hardly matters.
CANDIDATES_PER_MAP = 9


@torch.no_grad()
def assign_atss(grid: AnchorGrid, targets: Targets, batch_size: int, *, k: int = CANDIDATES_PER_MAP) -> Matches:
    """Assign the packed faces of ``batch_size`` images by ATSS; the rule is at the top of this file.

    Runs on the faces' device and never waits for an accelerator. ``k`` at least 1; anything else is a ValueError.
    """
    if k < 1:
        raise ValueError(f"k={k}: at least 1")
    boxes = targets.boxes_xyxy.float()
    faces, maps, device = boxes.shape[0], len(grid.map_shapes), boxes.device
    side = k + 1
    anchor, iou = window(grid, boxes, side)
    centre = grid.boxes_cxcywh(device)[:, :2]
    offset = centre[anchor] - ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
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
    at = centre[anchor]
    inside = ((at > boxes[:, None, :2]) & (at < boxes[:, None, 2:])).all(dim=2)
    wanted = candidate & (iou >= mean + variance.sqrt()) & inside & (iou > 0)
    return strongest_claims(grid, targets, batch_size, anchor, order_of(iou), wanted)
