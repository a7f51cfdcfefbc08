"""Box arithmetic: pure functions on tensors, continuous coordinates, no +1 anywhere."""

import torch
from torch import Tensor

# SSD's variances: offsets of the center are divided by 0.1, of the logarithmic size by 0.2.
VARIANCES = (0.1, 0.2)


def area(boxes_xyxy: Tensor) -> Tensor:
    """(…, 4) → (…), square pixels; negative sides count as zero."""
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """(…, 4) corner boxes → (…, 4) center x, center y, width, height."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(…, 4) center boxes → (…, 4) corner boxes. Inverse of :func:`xyxy_to_cxcywh`."""
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def paired_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """IoU of boxes that broadcast against each other, (…, 4) and (…, 4) → (…). Empty boxes give 0."""
    low = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(first_xyxy) + area(second_xyxy) - intersection
    return torch.where(intersection > 0, intersection / union.clamp(min=1e-12), torch.zeros_like(union))


def pairwise_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """(N, 4), (M, 4) → (N, M)."""
    return paired_iou(first_xyxy[:, None], second_xyxy[None])


def encode(boxes_xyxy: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Offsets that a head must predict, (…, 4) (SSD §2.2): center shift over anchor size, logarithm of the size ratio.

    Sides are clamped to a thousandth of a pixel before the logarithm, so a degenerate box cannot give -inf.
    """
    boxes = xyxy_to_cxcywh(boxes_xyxy)
    center = (boxes[..., :2] - anchors_cxcywh[..., :2]) / (anchors_cxcywh[..., 2:] * VARIANCES[0])
    size = torch.log(boxes[..., 2:].clamp(min=1e-3) / anchors_cxcywh[..., 2:]) / VARIANCES[1]
    return torch.cat([center, size], dim=-1)


def decode(offsets: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Inverse of :func:`encode`: (…, 4) offsets → (…, 4) ``xyxy`` boxes.

    The logarithmic size is capped at a factor of 1,000, so an untrained head cannot overflow to inf.
    """
    center = anchors_cxcywh[..., :2] + offsets[..., :2] * VARIANCES[0] * anchors_cxcywh[..., 2:]
    size = anchors_cxcywh[..., 2:] * torch.exp((offsets[..., 2:] * VARIANCES[1]).clamp(max=6.907755))
    return cxcywh_to_xyxy(torch.cat([center, size], dim=-1))


def clip(boxes_xyxy: Tensor, height: float, width: float) -> Tensor:
    """Boxes cut to the image, (…, 4); a box outside becomes an empty one on the border."""
    x = boxes_xyxy[..., 0::2].clamp(0, width)
    y = boxes_xyxy[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)
