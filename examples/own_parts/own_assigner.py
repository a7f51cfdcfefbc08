"""An assigner: which anchor learns which face."""

import torch

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.matching import Matches, order_of, strongest_claims
from fanet_lightning.ops.structures import HeadOutput, Targets


class Nearest:
    """The ``count`` nearest anchors of the map whose anchors are closest to the face in size."""

    def __init__(self, count: int = 4) -> None:
        self.count = count

    @torch.no_grad()
    def __call__(self, grid: AnchorGrid, targets: Targets, heads: HeadOutput) -> Matches:
        """``heads``: what the detector says, for assigners that go by it."""
        faces = targets.boxes_xyxy.float()
        anchors = grid.boxes_cxcywh(faces.device)
        sizes = torch.tensor(grid.sizes, dtype=torch.float32, device=faces.device)
        sides = (faces[:, 2:] - faces[:, :2]).prod(dim=1).sqrt()
        fitting = sizes[(sides[:, None].log2() - sizes.log2()).abs().argmin(dim=1)]
        distance = torch.cdist((faces[:, :2] + faces[:, 2:]) / 2, anchors[:, :2])
        distance[anchors[:, 2] != fitting[:, None]] = torch.inf
        nearest = distance.topk(self.count, dim=1, largest=False)
        # An anchor that several faces want goes to the nearest one.
        nearness = order_of(1 / (1 + nearest.values))
        wanted = nearest.values < torch.inf
        return strongest_claims(grid, targets, len(heads.logits), nearest.indices, nearness, wanted)
