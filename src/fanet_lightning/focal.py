"""Classification losses over all anchors, instead of mining: focal loss and quality focal loss.

Both take the margin, face logit minus background logit: the softmax of two classes is its sigmoid. They and their
gradients stay finite however large the margin is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(margins: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """-α_t (1 - p_t)^γ log p_t (Lin et al. 2017, eq. 5), summed.

    ``margins`` (…) float32, ``positive`` (…) bool; α weighs the positives, 1 - α the others. Returns a 0-dim tensor.
    """
    signed = torch.where(positive, margins, -margins)
    weight = torch.where(positive, alpha, 1 - alpha)
    # 1 - p_t = sigmoid(-signed) = exp(-softplus(signed)).
    return (weight * torch.exp(-gamma * F.softplus(signed)) * F.softplus(-signed)).sum()


def quality_focal_loss(margins: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """|y - p|^β · cross-entropy(p, y) (Li et al. 2020, "Generalized Focal Loss", eq. 3), summed.

    ``margins`` (…) float32; ``quality`` (…) float32 in [0, 1], without gradient: the IoU of the predicted box and the
    face for positives, 0 for the others. β at least 1. Returns a 0-dim tensor.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(margins, quality, reduction="none")
    return ((quality - margins.sigmoid()).abs().pow(beta) * cross_entropy).sum()
