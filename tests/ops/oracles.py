"""Matching, ATSS, SimOTA and the losses once more, as their rules say: plain Python, one face and one anchor at a time.

Where rounding could decide (an IoU at the threshold, a sum of IoUs at a whole number), the case is no test of the rule;
the oracles of ATSS and SimOTA also say whether that happened. Geometry and costs of the assignments are float32 on both
sides, so that equal numbers are equal.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.assigners import assign_atss, assign_simota
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, decode, paired_iou, pairwise_iou
from fanet_lightning.ops.matching import match
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput, Targets

MARGIN = 1e-4


def anchors_per_map(grid: AnchorGrid) -> list[range]:
    return [range(s, s + h * w) for s, (h, w) in zip(grid.starts, grid.map_shapes, strict=True)]


Claims = Callable[[int, int], Iterable[tuple[float, int]]]


def assigned(grid: AnchorGrid, targets: Targets, batch_size: int, claims_of: Claims) -> tuple[list[list[int]], int]:
    """claims_of: image, face → (cost, anchor) of all that the face wants; the lowest cost, then the lowest face, wins.

    → face number per image and anchor, -1 for none, and the number of faces without an anchor.
    """
    result = []
    for image in range(batch_size):
        claims: dict[int, list[tuple[float, int]]] = {}
        for face, of in enumerate(targets.image_index.tolist()):
            for cost, anchor in claims_of(image, face) if of == image else ():
                claims.setdefault(anchor, []).append((cost, face))
        result.append([min(claims[anchor])[1] if anchor in claims else -1 for anchor in range(grid.count)])
    matched = {face for image in result for face in image}
    return result, sum(face not in matched for face in range(len(targets.boxes_xyxy)))


def atss_slowly(grid: AnchorGrid, targets: Targets, batch_size: int, k: int) -> tuple[list[list[int]], int, bool]:
    """As :func:`assigned`, and whether rounding could decide."""
    priors, close = grid.boxes_cxcywh(), False
    iou = pairwise_iou(targets.boxes_xyxy, cxcywh_to_xyxy(priors)).tolist()
    middle = (targets.boxes_xyxy[:, :2] + targets.boxes_xyxy[:, 2:]) / 2
    distance = (priors[None, :, :2] - middle[:, None]).square().sum(dim=2).tolist()
    centers, boxes = priors[:, :2].tolist(), targets.boxes_xyxy.tolist()

    def claims_of(_: int, face: int) -> Iterator[tuple[float, int]]:
        nonlocal close
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
                    yield -overlap, anchor

    return *assigned(grid, targets, batch_size, claims_of), close


def simota_slowly(grid: AnchorGrid, targets: Targets, heads: HeadOutput) -> tuple[list[list[int]], int, bool]:
    """As :func:`atss_slowly`."""
    priors, close = grid.boxes_cxcywh(), False
    strides = [stride for stride, numbers in zip(grid.strides, anchors_per_map(grid), strict=True) for _ in numbers]

    def claims_of(image: int, face: int) -> Iterator[tuple[float, int]]:
        nonlocal close
        logits, box = heads.logits[image].float(), targets.boxes_xyxy[face]
        x, y = ((box[:2] + box[2:]) / 2).tolist()
        near = [
            anchor
            for anchor, (cx, cy) in enumerate(priors[:, :2].tolist())
            if abs(cx - x) < 1.5 * strides[anchor] and abs(cy - y) < 1.5 * strides[anchor]
        ]
        overlap = paired_iou(decode(heads.offsets[image].float(), priors), box[None])
        classification = torch.nn.functional.softplus(logits[:, 0] - logits[:, 1])
        cost = (classification - 3 * (overlap + 1e-8).log()).clamp(min=0).tolist()
        best = sorted((overlap[anchor].item() for anchor in near), reverse=True)[:10]
        close |= abs(sum(best) - round(sum(best))) < MARGIN and sum(best) > 0.5
        taken = max(1, math.floor(sum(best)))
        return ((cost[anchor], anchor) for anchor in sorted(near, key=lambda a: (cost[a], a))[:taken])

    return *assigned(grid, targets, len(heads.logits), claims_of), close


def nearest(center: float, cells: int, stride: int, side: int) -> list[int]:
    """The ``side`` cells along an axis whose centers are nearest; of two at the same distance the later one."""
    return sorted(range(cells), key=lambda i: (abs((i + 0.5) * stride - center), -i))[:side]


def seen_anchors(grid: AnchorGrid, box: list[float], side: int) -> list[int]:
    """Numbers of the anchors that a face may have, ascending."""
    seen = []
    for (height, width), stride, start in zip(grid.map_shapes, grid.strides, grid.starts, strict=True):
        columns = nearest((box[0] + box[2]) / 2, width, stride, side)
        rows = nearest((box[1] + box[3]) / 2, height, stride, side)
        seen += [start + y * width + x for y in rows for x in columns]
    return sorted(seen)


def match_slowly(
    grid: AnchorGrid, targets: Targets, batch_size: int, side: int, threshold: float, rounds: int, second_stage: bool
) -> tuple[list[list[int]], int]:
    """→ face number per image and anchor, -1 for none, and the number of faces without an anchor."""
    dense = pairwise_iou(targets.boxes_xyxy, cxcywh_to_xyxy(grid.boxes_cxcywh()))
    # Compared as tensors: in double precision 0.35 is another number.
    above, above_second = (dense > threshold).tolist(), (dense > 0.1).tolist()
    iou = dense.tolist()
    images = targets.image_index.tolist()
    seen = [seen_anchors(grid, box, side) for box in targets.boxes_xyxy.tolist()]

    def grant(wishes: dict[int, list[int]], owner: dict[int, int]) -> None:
        """wishes: anchor → the faces that want it."""
        for anchor, rivals in wishes.items():
            if rivals:
                owner[anchor] = min(rivals, key=lambda face: (-iou[face][anchor], face))

    def first_choices(faces: list[int], forced: dict[int, int]) -> dict[int, list[int]]:
        wishes: dict[int, list[int]] = {}
        for face in faces:
            free = [anchor for anchor in seen[face] if anchor not in forced and iou[face][anchor] > 0]
            if free:
                wishes.setdefault(max(free, key=lambda anchor: (iou[face][anchor], -anchor)), []).append(face)
        return wishes

    result, unmatched = [], 0
    for image in range(batch_size):
        faces = [face for face, of in enumerate(images) if of == image]
        owner: dict[int, int] = {}
        forced: dict[int, int] = {}
        grant({anchor: [face for face in faces if above[face][anchor]] for anchor in range(grid.count)}, owner)
        grant(first_choices(faces, forced), forced)
        owner.update(forced)
        for _ in range(rounds):
            grant(first_choices([face for face in faces if face not in owner.values()], forced), forced)
            owner.update(forced)
        if second_stage:
            wishes: dict[int, list[int]] = {}
            for face in faces:
                if list(owner.values()).count(face) < 6:
                    free = [a for a in seen[face] if a not in owner and above_second[face][a]]
                    for anchor in sorted(free, key=lambda a: (-iou[face][a], a))[:6]:
                        wishes.setdefault(anchor, []).append(face)
            grant(wishes, owner)
        result.append([owner.get(anchor, -1) for anchor in range(grid.count)])
        unmatched += sum(face not in owner.values() for face in faces)
    return result, unmatched


def slow_focal(margins: list[float], positive: list[bool], alpha: float, gamma: float) -> float:
    """Lin et al. 2017, eq. 5, one anchor at a time."""
    total = 0.0
    for margin, face in zip(margins, positive, strict=True):
        p = 1 / (1 + math.exp(-margin))
        p_t, alpha_t = (p, alpha) if face else (1 - p, 1 - alpha)
        total -= alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return total


def slow_quality_focal(margins: list[float], quality: list[float], beta: float) -> float:
    """Li et al. 2020, eq. 3, one anchor at a time."""
    total = 0.0
    for margin, y in zip(margins, quality, strict=True):
        p = 1 / (1 + math.exp(-margin))
        total -= abs(y - p) ** beta * ((1 - y) * math.log(1 - p) + y * math.log(p))
    return total


def slow_iou_loss(kind: str, first: list[float], second: list[float]) -> float:
    """The papers' definitions for one pair of boxes that are not empty, in double precision."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = first, second
    common = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    hull_width, hull_height = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    iou = common / union
    if kind == "giou":
        hull = hull_width * hull_height
        return 1 - (iou - (hull - union) / hull)
    apart = ((ax1 + ax2) / 2 - (bx1 + bx2) / 2) ** 2 + ((ay1 + ay2) / 2 - (by1 + by2) / 2) ** 2
    loss = 1 - iou + apart / (hull_width**2 + hull_height**2)
    if kind == "ciou":
        v = 4 / math.pi**2 * (math.atan((bx2 - bx1) / (by2 - by1)) - math.atan((ax2 - ax1) / (ay2 - ay1))) ** 2
        loss += v * v / (1 - iou + v) if v else 0
    return loss


def slow_loss(
    output: NetworkOutput, grid: AnchorGrid, targets: Targets, weights: list[float] | None = None, *,
    assignment: str = "iou", classification: str = "cross_entropy", box: str = "smooth_l1", box_weight: float = 1,
    beta: float = 1, ratio: float = 3, min_negatives: int = 16, count_negatives: bool = False,
) -> Tensor:  # fmt: skip
    """Eq. 4 and 5, one anchor at a time, in double precision, given who learns what; λ = 3, mining by a full sort.

    Cross-entropy and smooth-L1 have gradients.
    """
    batch_size = len(output.hierarchies[0].logits)
    assigned = {
        "iou": lambda: match(grid, targets, batch_size),
        "atss": lambda: assign_atss(grid, targets, batch_size),
        "simota": lambda: assign_simota(grid, targets, output.hierarchies[-1]),
    }[assignment]().face_index.tolist()
    total = torch.zeros((), dtype=torch.float64)
    for weight, (logits, offsets) in zip(weights or [1.0] * len(output.hierarchies), output.hierarchies, strict=True):
        loss, counted = torch.zeros((), dtype=torch.float64), 0
        cost, margins = -logits.double().log_softmax(dim=2), logits.double().diff(dim=2).squeeze(2).tolist()
        for image, faces in enumerate(assigned):
            rows = [anchor for anchor, face in enumerate(faces) if face >= 0]
            wanted = targets.boxes_xyxy[[faces[anchor] for anchor in rows]]
            priors = grid.boxes_cxcywh()[rows]
            predicted = decode(offsets[image, rows].float(), priors)
            counted += len(rows)
            if classification == "focal":
                loss = loss + 3 * slow_focal(margins[image], [face >= 0 for face in faces], 0.25, 2)
            elif classification == "quality_focal":
                quality = dict(zip(rows, paired_iou(predicted, wanted).tolist(), strict=True))
                every = [quality.get(anchor, 0.0) for anchor in range(grid.count)]
                loss = loss + 3 * slow_quality_focal(margins[image], every, 2)
            else:
                negatives = [cost[image, anchor, 0] for anchor, face in enumerate(faces) if face < 0]
                kept = math.floor(ratio * len(rows)) if rows else min_negatives
                mined = sorted(negatives, key=lambda value: -value.item())[:kept]
                counted += len(mined) if count_negatives else 0
                loss = loss + 3 * sum([*mined, *(cost[image, anchor, 1] for anchor in rows)])
            for anchor, face_box, anchor_box, found in zip(
                rows, wanted.tolist(), priors.tolist(), predicted.tolist(), strict=True
            ):
                if box != "smooth_l1":
                    loss = loss + box_weight * slow_iou_loss(box, found, face_box)
                    continue
                (x1, y1, x2, y2), (cx, cy, width, height) = face_box, anchor_box
                aims = (
                    ((x1 + x2) / 2 - cx) / width / 0.1, ((y1 + y2) / 2 - cy) / height / 0.1,
                    math.log((x2 - x1) / width) / 0.2, math.log((y2 - y1) / height) / 0.2,
                )  # fmt: skip
                for said, aim in zip(offsets[image, anchor].double(), aims, strict=True):
                    error = (said - aim).abs()
                    loss = loss + box_weight * (error - beta / 2 if error.item() >= beta else error**2 / (2 * beta))
        total = total + weight * loss / max(counted, 1)
    return total
