"""The rules of the FDDB evaluation, one after the other, in plain Python: slow, and nothing to get wrong."""

import math
from collections.abc import Sequence
from itertools import permutations

import cv2
import numpy as np

# Thresholds ascending: (threshold, discrete TP, continuous TP, false positives).
Line = tuple[float, int, float, int]


def nearest(value: float) -> int:
    return round(float(np.float32(value)))


def rectangle_mask(row: Sequence[float], width: int, height: int) -> np.ndarray:
    x, y, w, h = row
    xs, ys = sorted((nearest(x), nearest(x + w))), sorted((nearest(y), nearest(y + h)))
    mask = np.zeros((height, width), np.uint8)
    mask[max(ys[0], 0) : max(ys[1] + 1, 0), max(xs[0], 0) : max(xs[1] + 1, 0)] = 1
    return mask


def ellipse_mask(row: Sequence[float], width: int, height: int) -> np.ndarray:
    major, minor, angle, x, y = row
    mask = np.zeros((height, width), np.uint8)
    degrees = 180 - ((math.pi - angle) * 180 / math.pi)
    cv2.ellipse(mask, (nearest(x), nearest(y)), (int(major), int(minor)), degrees, 0, 360, 1, -1)
    return mask


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def assignments(iou: np.ndarray) -> list[tuple[float, int]]:
    """Sum of IoU and matches above 0.5 of every one-to-one assignment of the smaller side."""
    if iou.shape[0] > iou.shape[1]:
        iou = iou.T
    faces, detections = iou.shape
    return [
        (
            math.fsum(iou[face, chosen[face]] for face in range(faces)),
            sum(bool(iou[face, chosen[face]] > 0.5) for face in range(faces)),
        )
        for chosen in permutations(range(detections), faces)
    ]


def match_image(iou: np.ndarray, scores: Sequence[float]) -> list[tuple[Line, set[int]]]:
    """Lines of one image, ascending, each with every discrete TP that an assignment of the best sum has."""
    lines = []
    for threshold in sorted(set(scores)):
        valid = [k for k, score in enumerate(scores) if score >= threshold]
        part = iou[:, valid]
        part = part[part.sum(axis=1) > 0][:, part.sum(axis=0) > 0]
        found = assignments(part)
        best = max(total for total, _ in found)
        discrete = {hits for total, hits in found if total >= best - 1e-12}
        lines.append(((threshold, max(discrete), best, len(valid) - max(discrete)), discrete))
    return lines


def merge(images: Sequence[Sequence[Line]]) -> list[Line]:
    """Per image its lines, ascending → the lines of all images, ascending."""
    largest = 1.7976931348623157e308
    images = [own if own else [(largest, 0, 0.0, 0)] for own in images]
    merged = []
    for threshold in sorted({line[0] for own in images for line in own}):
        discrete, continuous, false_positives = 0, 0.0, 0
        for own in images:
            reached = [line for line in own if line[0] >= threshold]
            if reached:
                discrete += reached[0][1]
                continuous += reached[0][2]
                false_positives += reached[0][3]
        merged.append((threshold, discrete, continuous, false_positives))
    return merged


def rate_at(lines: Sequence[Line], faces: int, limit: float) -> tuple[float, float]:
    if not faces:
        return math.nan, math.nan
    for _, discrete, continuous, false_positives in lines:
        if false_positives <= limit:
            return discrete / faces, continuous / faces
    return 0.0, 0.0
