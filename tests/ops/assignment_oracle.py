"""ATSS and SimOTA once more, as their rules say: dense, plain Python, one face and one anchor at a time.

Where rounding could decide (an IoU at the threshold, a sum of IoUs at a whole number), the case is no test of the rule;
each oracle also says whether that happened. Geometry and costs are float32 on both sides, so that equal numbers are
equal.
"""

import math
import statistics

import torch

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, decode, paired_iou, pairwise_iou
from fanet_lightning.ops.structures import HeadOutput, Targets

MARGIN = 1e-4


def anchors_per_map(grid: AnchorGrid) -> list[range]:
    return [range(s, s + h * w) for s, (h, w) in zip(grid.starts, grid.map_shapes, strict=True)]


def settle(claims: dict[int, list[tuple[float, int]]], anchors: int) -> list[int]:
    """claims: anchor → (cost, face) of all that want it; the lowest cost, then the lowest face."""
    return [min(claims[anchor])[1] if anchor in claims else -1 for anchor in range(anchors)]


def atss_slowly(grid: AnchorGrid, targets: Targets, batch_size: int, k: int) -> tuple[list[list[int]], int, bool]:
    """→ face number per image and anchor, faces without an anchor, whether rounding could decide."""
    priors = grid.boxes_cxcywh()
    iou = pairwise_iou(targets.boxes_xyxy, cxcywh_to_xyxy(priors))
    middle = (targets.boxes_xyxy[:, :2] + targets.boxes_xyxy[:, 2:]) / 2
    distance = (priors[None, :, :2] - middle[:, None]).square().sum(dim=2).tolist()
    iou, centers, boxes = iou.tolist(), priors[:, :2].tolist(), targets.boxes_xyxy.tolist()
    result, close = [], False
    for image in range(batch_size):
        claims: dict[int, list[tuple[float, int]]] = {}
        for face, of in enumerate(targets.image_index.tolist()):
            if of != image:
                continue
            candidates = [
                anchor
                for numbers in anchors_per_map(grid)
                for anchor in sorted(numbers, key=lambda a: (distance[face][a], a))[:k]
            ]
            overlaps = [iou[face][anchor] for anchor in candidates]
            threshold = statistics.mean(overlaps) + (statistics.stdev(overlaps) if len(overlaps) > 1 else 0)
            x1, y1, x2, y2 = boxes[face]
            for anchor, overlap in zip(candidates, overlaps, strict=True):
                x, y = centers[anchor]
                if overlap > 0 and x1 < x < x2 and y1 < y < y2:
                    close |= abs(overlap - threshold) < 1e-5
                    if overlap >= threshold:
                        claims.setdefault(anchor, []).append((-overlap, face))
        result.append(settle(claims, grid.count))
    return result, unmatched(result, targets), close


def simota_slowly(grid: AnchorGrid, targets: Targets, heads: HeadOutput) -> tuple[list[list[int]], int, bool]:
    """As :func:`atss_slowly`."""
    priors, result, close = grid.boxes_cxcywh(), [], False
    strides = [stride for stride, numbers in zip(grid.strides, anchors_per_map(grid), strict=True) for _ in numbers]
    for image, (logits, offsets) in enumerate(zip(heads.logits.float(), heads.offsets.float(), strict=True)):
        predicted = decode(offsets, priors)
        classification = torch.nn.functional.softplus(logits[:, 0] - logits[:, 1])
        claims: dict[int, list[tuple[float, int]]] = {}
        for face, of in enumerate(targets.image_index.tolist()):
            if of != image:
                continue
            box = targets.boxes_xyxy[face]
            middle = ((box[:2] + box[2:]) / 2).tolist()
            near = [
                anchor
                for anchor, (x, y) in enumerate(priors[:, :2].tolist())
                if abs(x - middle[0]) < 1.5 * strides[anchor] and abs(y - middle[1]) < 1.5 * strides[anchor]
            ]
            overlap = paired_iou(predicted, box[None])
            cost = (classification - 3 * (overlap + 1e-8).log()).clamp(min=0).tolist()
            best = sorted((overlap[anchor].item() for anchor in near), reverse=True)[:10]
            close |= abs(sum(best) - round(sum(best))) < MARGIN and sum(best) > 0.5
            order = sorted(near, key=lambda a: (cost[a], a))
            taken = max(1, math.floor(sum(best)))
            for anchor in order[:taken]:
                claims.setdefault(anchor, []).append((cost[anchor], face))
        result.append(settle(claims, grid.count))
    return result, unmatched(result, targets), close


def unmatched(result: list[list[int]], targets: Targets) -> int:
    matched = {face for image in result for face in image}
    return sum(face not in matched for face in range(len(targets.boxes_xyxy)))
