"""PASCAL face and AFW: matching, global alignment and average precision by the rules of face-eval, and its resamples.

Face-eval is the program of Mathias, Benenson, Pedersoli and Van Gool, Face detection without bells and whistles, ECCV
2014. Boxes are taken as they are given, without a shift between 0-based and 1-based pixels: the alignment takes care of
half a pixel.

In a resample the detections keep the boxes, the places in the ranking and the faces that the run over all images gave
them: an interval says how AP varies with the images, and not with the alignment that is fitted to them. Where an image
is drawn more than once, the copies of a detection are together in its place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.score.bootstrap import SAMPLES, image_weights
from fanet_lightning.score.curves import Bools, Curve, Floats, Ints, areas_of_counts, curve_from_histograms
from fanet_lightning.score.pascal_face.ground_truth import (
    MIN_FACE_PX,
    OVERLAP,
    PascalFaceDetections,
    PascalFaceGroundTruth,
)

# Detections must be wider or higher than this; face-eval's minpix.
MIN_DETECTION_PX = int(math.sqrt(0.5 * MIN_FACE_PX * MIN_FACE_PX))
# Face-eval's --nit.
PASSES = 5


class Alignment(NamedTuple):
    """Moves the centre by (tx × width, ty × height), then scales width and height by sx and sy."""

    tx: float = 0.0
    ty: float = 0.0
    sx: float = 1.0
    sy: float = 1.0


@dataclass(frozen=True, eq=False)
class PascalFaceResult:
    """What became of each detection that passed the size filter, D of them, best score first.

    ``curve``           of D points, its thresholds the scores.
    ``faces_per_image`` (N,) int64, faces that count.
    ``image_index``     (D,) int64.
    ``boxes_xyxy``      (D, 4) float64, as they were matched in the last pass.
    ``hit``             (D,) bool, true positives.
    ``false_positive``  (D,) bool; a detection on an ignored face is neither.
    ``alignment``       what face-eval prints: tx and ty summed, sx and sy multiplied over the transforms of all passes,
                        that of the last pass included, which nothing was moved by. None without alignment.
    """

    curve: Curve
    faces_per_image: Ints
    image_index: Ints
    boxes_xyxy: Floats
    hit: Bools
    false_positive: Bools
    alignment: Alignment | None


def evaluate_detections(
    ground_truth: PascalFaceGroundTruth, detections: PascalFaceDetections, *, alignment: bool = True
) -> PascalFaceResult:
    """Match, align, match again, and score the last of five passes.

    1. Detections neither wider nor higher than 21 px go. The others are taken by descending score; equal scores keep
       their order.
    2. Each looks at the face of its image that it overlaps most, ignored and taken ones included; among equals at the
       last. Above the threshold (strictly) a free face that counts makes it a hit, an ignored one makes it neither, a
       taken one makes it a false positive, as does an overlap that is too small.
    3. With ``alignment`` all detections are moved and scaled by what the hits are off on average, and matched again:
       five passes, four alignments. The labels of the test set fit four numbers per detector; that belongs to the
       protocol and is worth from one to twenty points of AP.

    A pass without a hit has nothing to learn from, so its transform changes nothing.
    """
    if detections.image_ids != ground_truth.image_ids:
        raise ValueError("the detections are of other images than the ground truth, or in another order")
    counted = np.concatenate([np.empty(0, np.bool_), *ground_truth.counted])
    faces_xyxy = np.concatenate([np.empty((0, 4)), *ground_truth.boxes_xyxy])

    given = detections.boxes_xyxy
    kept = np.flatnonzero((given[:, 2:] - given[:, :2] > MIN_DETECTION_PX).any(axis=1))
    rows = kept[np.argsort(-detections.scores[kept], kind="stable")]
    boxes, image_index = given[rows], detections.image_index[rows]
    step = total = Alignment()
    for number in range(PASSES if alignment else 1):
        if number:
            boxes = aligned(boxes, step)
        best, face = best_faces(boxes, image_index, ground_truth.boxes_xyxy)
        hit, false_positive = _outcomes(best > OVERLAP, face, counted)
        step = _offset(boxes[hit], faces_xyxy[face[hit]])
        total = Alignment(total.tx + step.tx, total.ty + step.ty, total.sx * step.sx, total.sy * step.sy)

    faces_per_image = np.array([int(own.sum()) for own in ground_truth.counted], np.int64)
    faces, scores = int(faces_per_image.sum()), detections.scores[rows]
    curve = curve_from_histograms(hit | false_positive, hit, faces, scores)
    moved = total if alignment else None
    return PascalFaceResult(curve, faces_per_image, image_index, boxes, hit, false_positive, moved)


def aligned(boxes_xyxy: Floats, alignment: Alignment) -> Floats:
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / 2
    centre = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2 + alignment[:2] * half * 2
    return np.concatenate([centre - half * alignment[2:], centre + half * alignment[2:]], axis=1)


def lower_top(boxes_xyxy: Floats, fraction: float = 0.2) -> Floats:
    """(D, 4) boxes with y1 moved down by ``fraction`` in [0, 1) of the height, in a new array.

    S3FD's scripts for PASCAL face and AFW do so before they write detections, since boxes learnt on WIDER FACE reach
    higher than theirs: a step of the detector, not of the benchmark. (The scripts add 1 to the height, for their boxes
    include the last pixel; here the height is y2 - y1.)
    """
    lowered = np.array(boxes_xyxy, np.float64).reshape(-1, 4)
    lowered[:, 1] += fraction * (lowered[:, 3] - lowered[:, 1])
    return lowered


def best_faces(boxes_xyxy: Floats, image_index: Ints, faces_xyxy: Sequence[Floats]) -> tuple[Floats, Ints]:
    """(D,) largest overlap with a face of the own image, and that face, packed over all images, the last among equals;
    0 and -1 without any face. Overlap is IoU, each side with +1; 0 unless the interiors meet in both directions."""
    best, found = np.zeros(len(boxes_xyxy)), np.full(len(boxes_xyxy), -1)
    rows_of_images = np.split(np.argsort(image_index, kind="stable"), np.cumsum(np.bincount(image_index)))
    next_face = 0
    for rows, faces in zip(rows_of_images, faces_xyxy, strict=False):
        next_face += len(faces)
        if len(rows) and len(faces):
            own = boxes_xyxy[rows][:, None]
            meet = ((own[..., 2:] > faces[:, :2]) & (faces[:, 2:] > own[..., :2])).all(axis=-1)
            sides = np.minimum(own[..., 2:], faces[:, 2:]) - np.maximum(own[..., :2], faces[:, :2]) + 1
            intersection = np.where(meet, np.prod(sides, axis=-1), 0.0)
            areas, face_areas = (np.prod(np.abs(each[..., 2:] - each[..., :2]) + 1, axis=-1) for each in (own, faces))
            overlaps = (intersection / (areas + face_areas - intersection))[:, ::-1]
            best[rows], found[rows] = overlaps.max(axis=1), next_face - 1 - overlaps.argmax(axis=1)
    return best, found


def _outcomes(overlaps: Bools, face: Ints, counted: Bools) -> tuple[Bools, Bools]:
    """Which detections, best score first, are hits, and which are false positives."""
    found = np.flatnonzero(overlaps)
    on_counted = found[counted[face[found]]]
    _, first = np.unique(face[on_counted], return_index=True)
    hit = np.zeros(len(overlaps), np.bool_)
    hit[on_counted[first]] = True
    false_positive = ~hit
    false_positive[found[~counted[face[found]]]] = False
    return hit, false_positive


def _offset(boxes_xyxy: Floats, faces_xyxy: Floats) -> Alignment:
    """What hits (K, 4) are off their faces (K, 4) on average; nothing without hits. No side of a hit is 0: it overlaps
    a face of 30 px or more."""
    if not len(boxes_xyxy):
        return Alignment()
    sides, face_sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], faces_xyxy[:, 2:] - faces_xyxy[:, :2]
    shift = ((faces_xyxy[:, 2:] + faces_xyxy[:, :2]) / 2 - (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2) / sides
    # One column at a time: over both, numpy adds in another order.
    (tx, ty), (sx, sy) = ([float(np.mean(column)) for column in part.T.copy()] for part in (shift, face_sides / sides))
    return Alignment(tx, ty, sx, sy)


def resampled_ap(result: PascalFaceResult, samples: int = SAMPLES, seed: int = 0) -> Floats:
    """(B,) AP per resample; NaN where no face of it counts."""
    drawn = np.empty(samples)
    for part, weights in image_weights(len(result.faces_per_image), samples, seed, len(result.hit)):
        drawn[part] = weighted_ap(result, weights)
    return drawn


def weighted_ap(result: PascalFaceResult, weights: npt.ArrayLike) -> Floats:
    """AP with image i taken ``weights[:, i]`` times: (B, N) whole numbers ≥ 0 → (B,), NaN where no face counts."""
    rows = np.flatnonzero(result.hit | result.false_positive)
    # Those after the last hit change nothing.
    rows = rows[: np.flatnonzero(np.append(True, result.hit[rows]))[-1]]
    times = np.asarray(weights, np.float64)
    taken = np.take(times, result.image_index[rows], axis=1)
    found, proposed = np.cumsum(taken * result.hit[rows], axis=1), np.cumsum(taken, axis=1)
    return areas_of_counts(found, proposed, times @ result.faces_per_image)
