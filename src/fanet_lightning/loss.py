"""Hierarchical loss (FANet §3.4, eq. 4 and 5) with hard negative mining (§3.5; SSD §2.2).

Each hierarchy's heads are judged by SSD's multibox loss against one and the same matching:

    HL = Σ_i ω_i · L_i,    L_i = 1/N · (λ · Σ cross-entropy + Σ smooth-L1)

The cross-entropy runs over the positives and the mined negatives, smooth-L1 (β = 1) over the positives' four offsets.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.anchors import AnchorGrid
from fanet_lightning.boxes import encode
from fanet_lightning.errors import InputError
from fanet_lightning.matching import match
from fanet_lightning.structures import HeadOutput, NetworkOutput, Targets

NORMALISERS = ("positives", "positives_and_negatives")


class LossParts(NamedTuple):
    """``total``: 0-dim, with gradient, HL of eq. 4.

    ``parts``: detached 0-dim terms "h1/cls", "h1/box" … "hm/box", over N but without λ and ω; hierarchies are counted
    as they were handed in, the last is the detector. ``total`` = Σ ω_i · (λ · cls_i + box_i).
    With several ranks the mean over ranks of ``total`` and of each part is that of the whole batch.
    ``positives``, ``unmatched_faces``: 0-dim int64, of this rank's images.
    """

    total: Tensor
    parts: dict[str, Tensor]
    positives: Tensor
    unmatched_faces: Tensor


class HierarchicalLoss(nn.Module):
    """FANet's loss on the heads of m hierarchies, in float32 whatever the precision of the network.

    Args:
        weights: ω, one per hierarchy; None: all 1, as in the paper.
        lambda_cls: λ of eq. 5, on the classification (§3.5: 3).
        normalise_by: N of eq. 5: "positives", or "positives_and_negatives" (the mined ones). At least 1.
        negatives_per_positive: mined per image, at most (§3.5: 3).
        min_negatives: hardest negatives kept of an image without positives (ours; the paper's rule gives 0).
        threshold: matching rule (ii), §3.3.
        second_stage: S3FD's compensation for faces with few anchors.

    N is summed over the ranks of an initialised process group, so every rank must call, also with no faces. Once
    averaged over ranks, as DDP does, the gradients are those of the whole batch.

    A value that makes no sense is an InputError that names its key.
    """

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        lambda_cls: float = 3.0,
        normalise_by: str = "positives",
        negatives_per_positive: float = 3.0,
        min_negatives: int = 16,
        threshold: float = 0.35,
        second_stage: bool = False,
    ) -> None:
        super().__init__()
        if normalise_by not in NORMALISERS:
            raise InputError(f"loss.normalise_by={normalise_by}: choose {' or '.join(NORMALISERS)}")
        if not 0 < threshold < 1:
            raise InputError(f"loss.threshold={threshold}: give an IoU between 0 and 1, both excluded")
        for name, value in (
            ("lambda_cls", lambda_cls),
            ("negatives_per_positive", negatives_per_positive),
            ("min_negatives", min_negatives),
            *(("weights", weight) for weight in weights or ()),
        ):
            if not 0 <= value < math.inf:
                raise InputError(f"loss.{name}={value}: give a finite number that is not negative")
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)
        self.lambda_cls = lambda_cls
        self.normalise_by = normalise_by
        self.negatives_per_positive = negatives_per_positive
        self.min_negatives = min_negatives
        self.threshold = threshold
        self.second_stage = second_stage

    def forward(self, output: NetworkOutput, grid: AnchorGrid, targets: Targets) -> LossParts:
        """Heads of m hierarchies, the anchors they refer to, the batch's faces → the loss and its parts.

        Matches once; waits for an accelerator in one place, to read how many rows there are. InputError: the number of
        ``weights`` is not m. ValueError: no hierarchy, or heads and grid differ in the number of anchors.
        """
        hierarchies = output.hierarchies
        weights = self._checked_weights(hierarchies, grid)
        batch_size, anchors = hierarchies[0].logits.shape[:2]
        with torch.no_grad(), torch.autocast(targets.boxes_xyxy.device.type, enabled=False):
            face_index, unmatched_faces = match(
                grid, targets, batch_size, threshold=self.threshold, second_stage=self.second_stage
            )
            positive = face_index >= 0
            positives = positive.sum(dim=1)
            quota = self._quota(positives, anchors)
            counted = positives.sum() if self.normalise_by == "positives" else (positives + quota).sum()
            share = _ranks() / _sum_over_ranks(counted).clamp(min=1)
            negative_rows = hardest_negatives(_margins(hierarchies), positive, quota)
            rows = positive.flatten().nonzero().squeeze(1)
            offsets = encode(
                targets.boxes_xyxy.float()[face_index.flatten()[rows]],
                grid.boxes_cxcywh(positive.device)[rows % anchors],
            )

        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=positive.device)
        with torch.autocast(positive.device.type, enabled=False):
            for index, (heads, weight) in enumerate(zip(hierarchies, weights, strict=True)):
                cls, box = _multibox(heads, rows, negative_rows[index], offsets)
                cls, box = cls * share, box * share
                total = total + weight * (self.lambda_cls * cls + box)
                parts[f"h{index + 1}/cls"], parts[f"h{index + 1}/box"] = cls.detach(), box.detach()
        return LossParts(total, parts, positives.sum(), unmatched_faces)

    def _checked_weights(self, hierarchies: list[HeadOutput], grid: AnchorGrid) -> tuple[float, ...]:
        if not hierarchies:
            raise ValueError("no hierarchy with heads to judge")
        for heads in hierarchies:
            if heads.logits.shape[1] != grid.count or heads.offsets.shape[1] != grid.count:
                raise ValueError(
                    f"heads for {heads.logits.shape[1]} and {heads.offsets.shape[1]} anchors, a grid of {grid.count}"
                )
        weights = (1.0,) * len(hierarchies) if self.weights is None else self.weights
        if len(weights) != len(hierarchies):
            raise InputError(
                f"loss.weights={list(weights)}: {len(weights)} weights for {len(hierarchies)} hierarchies with heads; "
                "give one per hierarchy, or null for 1 each"
            )
        return weights

    def _quota(self, positives: Tensor, anchors: int) -> Tensor:
        """How many negatives each image may keep, (B,) → (B,) int64."""
        wanted = torch.where(
            positives > 0, (positives * float(self.negatives_per_positive)).floor().long(), self.min_negatives
        )
        return torch.minimum(wanted, anchors - positives)

    def extra_repr(self) -> str:
        return (
            f"weights={self.weights}, lambda_cls={self.lambda_cls}, normalise_by={self.normalise_by}, "
            f"negatives_per_positive={self.negatives_per_positive}, min_negatives={self.min_negatives}, "
            f"threshold={self.threshold}, second_stage={self.second_stage}"
        )


def hardest_negatives(margins: Tensor, positive: Tensor, quota: Tensor) -> Tensor:
    """The anchors that look most like faces and are none (SSD §2.2), per hierarchy and image.

    ``margins`` (m, B, A): face logit minus background logit, which orders as the cross-entropy of a negative does.
    ``positive`` (B, A) bool; ``quota`` (B,) int64, at most the negatives of the image.
    Returns (m, Σ quota) rows, each image · A + anchor. Which of equal margins is taken at the cut is open; the sum of
    losses is not. A NaN counts as the hardest, so that it shows in the loss.
    """
    batch_size, anchors = positive.shape
    most = int(quota.max()) if batch_size else 0
    found = margins.masked_fill(positive, -math.inf).topk(most, dim=2).indices
    found += torch.arange(batch_size, device=margins.device)[:, None] * anchors
    kept = (torch.arange(most, device=margins.device) < quota[:, None]).flatten().nonzero().squeeze(1)
    return found.flatten(1).index_select(1, kept)


def _margins(hierarchies: list[HeadOutput]) -> Tensor:
    """(m, B, A) float32, detached."""
    return torch.stack([_margin(heads.logits.detach()) for heads in hierarchies])


def _margin(logits: Tensor) -> Tensor:
    """Face logit minus background logit, (…, 2) → (…) float32: softmax over two classes is a sigmoid of it."""
    logits = logits.float()
    return logits[..., 1] - logits[..., 0]


def _multibox(heads: HeadOutput, positives: Tensor, negatives: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of cross-entropy and smooth-L1 over the rows; with no row they are 0, and the heads stay in the graph."""
    margins = _margin(heads.logits.flatten(0, 1).index_select(0, torch.cat([positives, negatives])))
    # -log softmax: softplus(-margin) for a face, softplus(margin) for background.
    cls = F.softplus(-margins[: len(positives)]).sum() + F.softplus(margins[len(positives) :]).sum()
    predicted = heads.offsets.flatten(0, 1).index_select(0, positives).float()
    return cls, F.smooth_l1_loss(predicted, offsets, reduction="sum", beta=1.0)


def _ranks() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def _sum_over_ranks(count: Tensor) -> Tensor:
    if _ranks() > 1:
        count = count.clone()
        torch.distributed.all_reduce(count)
    return count
