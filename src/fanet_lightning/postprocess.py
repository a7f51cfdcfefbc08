"""From the heads of the last hierarchy to faces (FANet §3.3, eq. 3): probability, floor, top-k, decoding, NMS."""

import torch
from torch import Tensor
from torchvision.ops import nms

from fanet_lightning.anchors import AnchorGrid
from fanet_lightning.boxes import decode
from fanet_lightning.structures import Detections, NetworkOutput


@torch.no_grad()
def detect(
    output: NetworkOutput,
    grid: AnchorGrid,
    *,
    score_floor: float = 0.01,
    top_k: int = 5000,
    nms_iou: float = 0.3,
    keep: int = 750,
) -> list[Detections]:
    """The faces of each image, B entries. Boxes in pixels of the network's input, not clipped to it.

    A score is the softmax probability of a face. Anchors with a score below ``score_floor`` are dropped, of the others
    the ``top_k`` best go to NMS (a box falls where its IoU with a better one that stands exceeds ``nms_iou``), and at
    most ``keep`` come out. The defaults are S3FD's. At equal scores the lower anchor number comes first. Scores and
    boxes that are not finite never come out. All in float32. ValueError: no hierarchy, heads and grid differ in the
    number of anchors, or ``top_k`` or ``keep`` is negative.
    """
    if not output.hierarchies:
        raise ValueError("no hierarchy with heads to detect with")
    if top_k < 0 or keep < 0:
        raise ValueError(f"top_k={top_k}, keep={keep}: must not be negative")
    logits, offsets = output.hierarchies[-1]
    if logits.shape[1] != grid.count:
        raise ValueError(f"heads for {logits.shape[1]} anchors, a grid of {grid.count}")
    anchors_cxcywh = grid.boxes_cxcywh(logits.device)
    logits = logits.float()
    # Softmax over two classes is the sigmoid of their difference.
    scores = torch.sigmoid(logits[..., 1] - logits[..., 0])
    return [
        _detect_one(image_scores, image_offsets, anchors_cxcywh, score_floor, top_k, nms_iou, keep)
        for image_scores, image_offsets in zip(scores, offsets, strict=True)
    ]


def _detect_one(
    scores: Tensor, offsets: Tensor, anchors_cxcywh: Tensor, score_floor: float, top_k: int, nms_iou: float, keep: int
) -> Detections:
    """(A,), (A, 4), (A, 4) → the faces of one image."""
    passed = (scores >= score_floor).nonzero().squeeze(1)
    order = scores[passed].argsort(descending=True, stable=True)[:top_k]
    best = passed[order]
    boxes_xyxy = decode(offsets[best].float(), anchors_cxcywh[best])
    finite = boxes_xyxy.isfinite().all(dim=1)
    best, boxes_xyxy = best[finite], boxes_xyxy[finite]
    kept = nms(boxes_xyxy, scores[best], nms_iou)[:keep]
    return Detections(boxes_xyxy[kept], scores[best[kept]])
