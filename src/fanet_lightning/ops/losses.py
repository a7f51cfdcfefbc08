"""Classification losses over all anchors, instead of mining (focal, quality focal), and IoU losses of boxes.

The two focal losses take the margin, face logit minus background logit: the softmax of two classes is its sigmoid. They
and their gradients stay finite however large the margin is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fanet_lightning.cli.errors import check
from fanet_lightning.ops.boxes import area


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


# GIoU: Rezatofighi et al. 2019, "Generalized Intersection over Union", eq. 3 and algorithm 1.
# DIoU, CIoU: Zheng et al. 2020, "Distance-IoU Loss", eq. 7 and 10.
IOU_LOSSES = ("giou", "diou", "ciou")
BOX_LOSSES = ("smooth_l1", *IOU_LOSSES)

# Square pixels, far below any box that can be learnt; keeps empty boxes from dividing by 0.
_EPSILON = 1e-7
# Pixels; the aspect ratio of a thinner box has no useful gradient.
_THINNEST = 1e-3


def iou_loss(kind: str, predicted_xyxy: Tensor, faces_xyxy: Tensor) -> Tensor:
    """1 - GIoU, DIoU or CIoU of paired boxes, (…, 4), (…, 4) → (…).

    0 for equal boxes, at most 2 (``ciou``: 3). The gradient goes to ``predicted_xyxy`` (and to ``faces_xyxy`` where
    that asks for one) and is finite for every pair of finite boxes with x2 ≥ x1 and y2 ≥ y1, empty ones included.
    InputError: another ``kind``.
    """
    check(kind in IOU_LOSSES, f"kind={kind!r}: one of {', '.join(IOU_LOSSES)}")
    low, high = predicted_xyxy[..., :2], predicted_xyxy[..., 2:]
    face_low, face_high = faces_xyxy[..., :2], faces_xyxy[..., 2:]
    common = (torch.minimum(high, face_high) - torch.maximum(low, face_low)).clamp(min=0)
    hull = torch.maximum(high, face_high) - torch.minimum(low, face_low)
    intersection = common[..., 0] * common[..., 1]
    union = area(predicted_xyxy) + area(faces_xyxy) - intersection
    iou = intersection / union.clamp(min=_EPSILON)
    if kind == "giou":
        hull_area = hull[..., 0] * hull[..., 1]
        return 1 - iou + (hull_area - union) / hull_area.clamp(min=_EPSILON)
    apart = (low + high - face_low - face_high) / 2
    distance = apart.square().sum(dim=-1) / hull.square().sum(dim=-1).clamp(min=_EPSILON)
    if kind == "diou":
        return 1 - iou + distance
    # Angles whose tangents are width over height.
    width, height = (high - low).clamp(min=_THINNEST).unbind(dim=-1)
    face_width, face_height = (face_high - face_low).clamp(min=_THINNEST).unbind(dim=-1)
    difference = torch.atan(width / height) - torch.atan(face_width / face_height)
    aspect = difference.square() * (4 / math.pi**2)
    with torch.no_grad():
        # Eq. 11; the weight is a constant in the gradient, as in the authors' program.
        trade_off = aspect / (1 - iou + aspect).clamp(min=_EPSILON)
    return 1 - iou + distance + trade_off * aspect
