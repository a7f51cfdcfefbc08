"""WIDER FACE average precision by the rules of the official evaluation tool.

The tool walks 1,000 thresholds per image and setting. None of that is needed. Which face a row looks at depends
neither on the setting nor on the threshold, and the row that takes a face is the best-scored one looking at it.
So each row is judged once, and the curve is a cumulative histogram.
"""

from typing import NamedTuple

import numpy as np

from fanet_lightning.score.curves import POINTS, Bools, Curve, Floats, Ints, curve_from_histograms, first_bins
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions

# The tool's overlap that makes a hit, inclusive.
MIN_IOU = 0.5


class Judged(NamedTuple):
    """What each row of a run found, (R,) each.

    ``face``    packed number (over all images) of the face with the largest overlap, -1 where that is below 0.5.
    ``first``   this row is the best-scored one that looks at ``face``; on equal scores the earlier row.
    ``in_play`` the row's image has a face at all; the tool skips the others.
    """

    face: Ints
    first: Bools
    in_play: Bools


def score(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, Curve]:
    """One curve per setting of ``ground_truth``; ValueError: the two are not about the same images in the same order.

    Scores are normalised over all rows of ``predictions``, so select the images of both before.
    """
    bins, settings = judge_settings(ground_truth, predictions)
    faces = ground_truth.faces_per_setting
    curves = {}
    for setting, rows in settings.items():
        proposals, hits = (np.bincount(bins[each], minlength=POINTS) for each in rows)
        curves[setting] = curve_from_histograms(proposals, hits, faces[setting])
    return curves


def judge_settings(ground_truth: GroundTruth, predictions: Predictions) -> tuple[Ints, dict[str, tuple[Bools, Bools]]]:
    """The first threshold that each row reaches, (R,), and per setting the rows that count in precision (they are on a
    face that counts, or on none) and those among them that take a face, (R,) each."""
    judged = judge(ground_truth, predictions)
    looks = judged.face >= 0
    settings = {}
    for setting in ground_truth.counted:
        # One more entry, so that face -1 reads a value; it is masked out by `looks`.
        on_counted = looks & np.append(ground_truth.counts(setting), False)[judged.face]
        settings[setting] = judged.in_play & (on_counted | ~looks), on_counted & judged.first
    return first_bins(predictions.scores), settings


def judge(ground_truth: GroundTruth, predictions: Predictions) -> Judged:
    nearest, overlaps = nearest_faces(ground_truth, predictions)
    face = np.where(overlaps >= MIN_IOU, nearest, -1)
    first = np.zeros(len(face), np.bool_)
    first[best_of_each_face(np.flatnonzero(face >= 0), face, predictions.scores)] = True
    return Judged(face, first, nearest >= 0)


def nearest_faces(ground_truth: GroundTruth, predictions: Predictions) -> tuple[Ints, Floats]:
    """(R,) packed number of the face with the largest overlap, and that overlap; -1 and 0 in an image without faces.
    ValueError: the two are not about the same images in the same order."""
    if ground_truth.image_ids != predictions.image_ids:
        raise ValueError(
            f"ground truth of {len(ground_truth.image_ids)} images and predictions of {len(predictions.image_ids)}: "
            "both must name the same images in the same order"
        )
    nearest, overlaps = np.full(len(predictions.scores), -1, np.int64), np.zeros(len(predictions.scores))
    starts = predictions.starts.tolist()
    first_face = 0
    for i, faces_xywh in enumerate(ground_truth.boxes_xywh):
        rows = slice(starts[i], starts[i + 1])
        if len(faces_xywh) and rows.stop > rows.start:
            best, overlaps[rows] = best_face(predictions.boxes_xywh[rows], faces_xywh)
            nearest[rows] = best + first_face
        first_face += len(faces_xywh)
    return nearest, overlaps


def best_of_each_face(rows: Ints, face: Ints, scores: Floats) -> Ints:
    """Those of ``rows`` that are the best-scored one of their face; the earlier of equals."""
    # lexsort is stable: equal scores stay in file order.
    ordered = rows[np.lexsort((-scores[rows], face[rows]))]
    best: Ints = ordered[np.diff(face[ordered], prepend=-1) != 0]
    return best


def best_face(rows_xywh: Floats, faces_xywh: Floats) -> tuple[Ints, Floats]:
    """(D, 4), (F, 4) → index of the face with the largest overlap (the first of equals) and that overlap, (D,) each.

    Overlaps count the last pixel, the +1 of the tool, and are evaluated in its order of operations.
    """
    row_low, face_low = rows_xywh[:, :2].T, faces_xywh[:, :2].T
    row_high, face_high = row_low + rows_xywh[:, 2:].T, face_low + faces_xywh[:, 2:].T
    row_area = np.prod(row_high - row_low + 1, axis=0)
    face_area = np.prod(face_high - face_low + 1, axis=0)
    # A face of negative size overlaps nothing, but its union with a small row could be 0, and 0 / 0 wins argmax.
    face_area = np.where(face_area > 0, face_area, 1.0)
    width, height = (
        np.minimum(row_high[axis, :, None], face_high[axis]) - np.maximum(row_low[axis, :, None], face_low[axis]) + 1
        for axis in (0, 1)
    )
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    overlaps = intersection / (row_area[:, None] + face_area - intersection)
    best = overlaps.argmax(axis=1)
    return best, overlaps[np.arange(len(best)), best]
