"""Hierarchical loss (FANet §3.4, eq. 4 and 5) with hard negative mining (§3.5; SSD §2.2), and named alternatives.

Each hierarchy's heads are judged by SSD's multibox loss against one and the same matching:

    HL = Σ_i ω_i · L_i,    L_i = 1/N · (λ · classification + box_weight · box)

The paper has the cross-entropy over the positives and the mined negatives, smooth-L1 (β = 1) over the positives' four
offsets, box_weight = 1, and the matching of :mod:`fanet_lightning.ops.matching`. The rest are options of ours.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError, as_given
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.assigners import assign_atss, assign_simota
from fanet_lightning.ops.boxes import decode, encode, paired_iou
from fanet_lightning.ops.losses import BOX_LOSSES, focal_loss, iou_loss, quality_focal_loss
from fanet_lightning.ops.matching import Matches, match
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput, Targets

CHOICES = {
    "normalise_by": ("positives", "positives_and_negatives"),
    "assignment": ("iou", "atss", "simota"),
    "classification": ("cross_entropy", "focal", "quality_focal"),
    "box": BOX_LOSSES,
}
# The least and the most of each number; of the weights, of each.
LIMITS = {
    **dict.fromkeys(("lambda_cls", "negatives_per_positive", "min_negatives", "box_weight", "box_beta"), (0, 1e6)),
    "weights": (0, 1e6), "focal_gamma": (0, 100), "focal_alpha": (0, 1), "threshold": (0.01, 0.99),
}  # fmt: skip


class LossParts(NamedTuple):
    """``total``: 0-dim, with gradient, HL of eq. 4.

    ``parts``: detached 0-dim terms "h1/cls", "h1/box" … "hm/box", over N but without the weights; hierarchies are
    counted as they were handed in, the last is the detector. ``total`` = Σ ω_i · (λ · cls_i + box_weight · box_i).
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
        assignment: "iou", the paper's rule; "atss" or "simota" (:mod:`fanet_lightning.ops.assigners`), which read
            no ``threshold`` and refuse ``second_stage``; or what is called as
            :func:`fanet_lightning.ops.assigners.assign_simota` is.
        classification: "cross_entropy" with mining; or over all anchors, with N = positives: "focal", "quality_focal"
            (:mod:`fanet_lightning.ops.losses`), which want a network with a ``face_prior`` and λ around 1.
        focal_alpha: weight of the positives in the focal loss, 1 - α that of the others (Lin et al. 2017: 0.25).
        focal_gamma: γ of the focal loss, β of the quality focal loss (2 in both papers).
        box: "smooth_l1" on the offsets; "giou", "diou" or "ciou" on the decoded boxes.
        box_weight: on the box loss; 2 is usual for the IoU losses (Li et al. 2020, "Generalized Focal Loss").
        box_beta: where smooth-L1 turns from quadratic to linear, in offsets (SSD: 1).

    N is summed over the ranks of an initialized process group, so every rank must call, also with no faces. Once
    averaged over ranks, as DDP does, the gradients are those of the whole batch.
    A value that makes no sense is an InputError that names its key.
    """

    def __init__(
        self, weights: Sequence[float] | None = None, lambda_cls: float = 3.0, normalise_by: str = "positives",
        negatives_per_positive: float = 3.0, min_negatives: int = 16, threshold: float = 0.35,
        second_stage: bool = False,
        assignment: str | Callable[[AnchorGrid, Targets, HeadOutput], Matches] = "iou",
        classification: str = "cross_entropy", focal_alpha: float = 0.25, focal_gamma: float = 2.0,
        box: str = "smooth_l1", box_weight: float = 1.0, box_beta: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weights = None if weights is None else list(weights)
        self.lambda_cls = lambda_cls
        self.normalise_by = normalise_by
        self.negatives_per_positive = negatives_per_positive
        self.min_negatives = min_negatives
        self.threshold = threshold
        self.second_stage = second_stage
        self.assignment = assignment
        self.classification = classification
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box = box
        self.box_weight = box_weight
        self.box_beta = box_beta
        wrong = {}
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices and not (name == "assignment" and callable(assignment)):
                wrong[name] = f"choose {' or '.join(choices)}"
        for name, (low, high) in LIMITS.items():
            numbers = (weights or ()) if name == "weights" else (getattr(self, name),)
            if not all(isinstance(number, int | float) and low <= number <= high for number in numbers):
                wrong[name] = f"give numbers in {low:g} … {high:g}"
        if assignment != "iou" and second_stage:
            wrong["second_stage"] = f"not with loss.assignment={assignment}"
        if classification != "cross_entropy" and normalise_by != "positives":
            wrong["normalise_by"] = f"mines, which loss.classification={classification} does not"
        if classification == "quality_focal" and "focal_gamma" not in wrong and focal_gamma < 1:
            wrong["focal_gamma"] = "at least 1 with loss.classification=quality_focal"
        for name, advice in wrong.items():
            raise InputError(f"loss.{name}={as_given(getattr(self, name))}: {advice}")

    def forward(self, output: NetworkOutput, grid: AnchorGrid, targets: Targets) -> LossParts:
        """Heads of m hierarchies, the anchors they refer to, the batch's faces → the loss and its parts.

        Matches once; waits for an accelerator at three reads of how many rows there are, next to one another.
        ValueError: the number of ``weights`` is not m.
        """
        hierarchies, anchors, device = output.hierarchies, grid.count, targets.boxes_xyxy.device
        weights = [1.0] * len(hierarchies) if self.weights is None else self.weights
        mining = self.classification == "cross_entropy"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            face_index, unmatched_faces = self._assign(grid, targets, hierarchies[-1])
            positive = face_index >= 0
            positives = positive.sum(dim=1)
            counted = positives.sum()
            if mining:
                most = (positives * float(self.negatives_per_positive)).floor().long()
                quota = torch.where(positives > 0, most, self.min_negatives).minimum(anchors - positives)
                margins = torch.stack([_margin(heads.logits) for heads in hierarchies])
                negative_rows = hardest_negatives(margins, positive, quota)
                if self.normalise_by != "positives":
                    counted = (positives + quota).sum()
            ranks = 1
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                ranks = torch.distributed.get_world_size()
                torch.distributed.all_reduce(counted)
            share = ranks / counted.clamp(min=1)
            rows = positive.flatten().nonzero().squeeze(1)
            faces_xyxy = targets.boxes_xyxy.float()[face_index.flatten()[rows]]
            anchors_cxcywh = grid.boxes_cxcywh(device)[rows % anchors]
            wanted = encode(faces_xyxy, anchors_cxcywh)

        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        with torch.autocast(device.type, enabled=False):
            for index, (heads, weight) in enumerate(zip(hierarchies, weights, strict=True)):
                # Sums; with no row they are 0, and the heads stay in the graph.
                offsets = heads.offsets.flatten(0, 1).index_select(0, rows).float()
                if mining:  # -log softmax: softplus(-margin) for a face, softplus(margin) for background
                    mined = _margin(heads.logits.flatten(0, 1).index_select(0, torch.cat([rows, negative_rows[index]])))
                    cls = F.softplus(-mined[: len(rows)]).sum() + F.softplus(mined[len(rows) :]).sum()
                elif self.classification == "focal":
                    cls = focal_loss(_margin(heads.logits), positive, self.focal_alpha, self.focal_gamma)
                else:
                    quality = torch.zeros(positive.numel(), device=device)
                    quality[rows] = paired_iou(decode(offsets.detach(), anchors_cxcywh), faces_xyxy).clamp(max=1)
                    cls = quality_focal_loss(_margin(heads.logits), quality.view_as(positive), self.focal_gamma)
                if self.box == "smooth_l1":
                    box = F.smooth_l1_loss(offsets, wanted, reduction="sum", beta=self.box_beta)
                else:
                    box = iou_loss(self.box, decode(offsets, anchors_cxcywh), faces_xyxy).sum()
                cls, box = cls * share, box * share
                total = total + weight * (self.lambda_cls * cls + self.box_weight * box)
                parts[f"h{index + 1}/cls"], parts[f"h{index + 1}/box"] = cls.detach(), box.detach()
        return LossParts(total, parts, positives.sum(), unmatched_faces)

    def _assign(self, grid: AnchorGrid, targets: Targets, heads: HeadOutput) -> Matches:
        if self.assignment == "iou":
            return match(grid, targets, len(heads.logits), threshold=self.threshold, second_stage=self.second_stage)
        if self.assignment == "atss":
            return assign_atss(grid, targets, len(heads.logits))
        return (self.assignment if callable(self.assignment) else assign_simota)(grid, targets, heads)


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


def _margin(logits: Tensor) -> Tensor:
    """Face logit minus background logit, (…, 2) → (…) float32: softmax over two classes is a sigmoid of it."""
    logits = logits.float()
    return logits[..., 1] - logits[..., 0]
