"""FDDB's scores: matching, ROC curves and their resamples (V. Jain, E. Learned-Miller: FDDB, UM-CS-2010-009).

For every distinct score of an image, detections and faces are assigned again, one to one, so that the sum of IoU is
largest (section 5.2 of the report). A match counts 1 in the discrete score where its IoU is above 0.5, and its IoU,
whatever that is, in the continuous one. False positives are the detections without a discrete match, in both curves.
Counts are pooled over all images: nothing is averaged over folds.

The assignment here is optimal, as the report defines it. The official program's own routine can stop before it is:
over the detectors tried, the discrete curve differs by at most 3 faces (0.00058) on any line, usually by 0 or 1, the
continuous one by at most 0.00035. Where two assignments have exactly the same sum, either may be taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from fanet_lightning.score.bootstrap import image_weights
from fanet_lightning.score.curves import Floats, Ints, RocCurve

DISCRETE_IOU = 0.5
# The official program's threshold for the line of an image without detections.
NO_DETECTION = float(np.finfo(np.float64).max)

# Bounds what is in memory at a time; the results do not depend on it.
_STEPS_AT_ONCE = 4096


def match_image(iou: Floats, scores: Floats) -> Floats:
    """Match F faces and D detections of one image at each of its T distinct scores.

    ``iou`` is (F, D), from :mod:`regions`; ``scores`` (D,) in any order, equal ones enter together. Returns (T, 4),
    what the image adds when all detections from a score up are counted: the score, descending; matches with IoU > 0.5,
    which may fall from one score to the next; IoU summed over all matches; detections without a match above 0.5.
    """
    # Lists: an image has a handful of detections, and a call of numpy costs more than all their arithmetic.
    values, touches_face = scores.tolist(), np.any(iou > 0, axis=0).tolist()
    order = np.argsort(-scores, kind="stable").tolist()
    entered: list[int] = []
    hits, total, assigned = 0, 0.0, 0
    rows: list[tuple[float, int, float, int]] = []
    for place, detection in enumerate(order, start=1):
        # Detections that overlap no face change nothing.
        entered += [detection] if touches_face[detection] else []
        if place < len(order) and values[order[place]] == values[detection]:
            continue
        if len(entered) > assigned:
            part = iou[:, entered]
            matched = part[linear_sum_assignment(part, maximize=True)]
            hits, total, assigned = int(np.count_nonzero(matched > DISCRETE_IOU)), float(matched.sum()), len(entered)
        rows.append((values[detection], hits, total, place - hits))
    return np.array(rows, np.float64).reshape(-1, 4)


@dataclass(frozen=True, eq=False)
class FddbCounts:
    """What N images add, as E steps by descending score.

    ``faces`` (N,) int64, annotated faces per image.
    ``image`` (E,) int64, the image that a step belongs to.
    ``score`` (E,) float64, descending.
    ``added`` (3, E) float64, what the step adds to discrete matches, continuous ones and false positives: an added
              detection may also take away.
    """

    faces: Ints
    image: Ints
    score: Floats
    added: Floats

    @property
    def line_ends(self) -> Ints:
        """Indices of the last step of each distinct score: only there the curve has a point."""
        return np.flatnonzero(np.diff(self.score, append=np.nan) != 0)


def merge_images(images: Sequence[Floats], faces: npt.ArrayLike) -> FddbCounts:
    """What :func:`match_image` says of N images, and their annotated faces (N,), as the steps of one curve."""
    steps = [np.diff(own[:, 1:], axis=0, prepend=0) for own in images]
    score = np.concatenate([np.zeros(0), *(own[:, 0] for own in images)])
    order = np.argsort(-score, kind="stable")
    image = np.repeat(np.arange(len(images)), [len(own) for own in images])
    added = np.concatenate([np.zeros((0, 3)), *steps])[order].T.copy()
    return FddbCounts(np.asarray(faces, np.int64), image[order], score[order], added)


@dataclass(frozen=True, eq=False)
class Roc:
    """Both curves, one point per distinct score of all images, as in the official files: by ascending threshold.

    ``thresholds``      (T,) float64, ascending: the first point has all detections. Where an image has no detection,
                        the last one is the official program's line without any, at :data:`NO_DETECTION`.
    ``tp_discrete``     (T,) int64, matches with IoU > 0.5.
    ``tp_continuous``   (T,) float64, IoU summed over all matches.
    ``false_positives`` (T,) int64.
    ``faces``           N, all annotated faces.
    """

    thresholds: Floats
    tp_discrete: Ints
    tp_continuous: Floats
    false_positives: Ints
    faces: int

    @property
    def curves(self) -> tuple[RocCurve, RocCurve]:
        """Discrete and continuous; the rates are 0 without a face, as the official program prints them."""
        discrete, continuous = (own / max(self.faces, 1) for own in (self.tp_discrete, self.tp_continuous))
        return RocCurve(discrete, self.false_positives), RocCurve(continuous, self.false_positives)

    def at(self, false_positives: float) -> tuple[float, float]:
        """Discrete and continuous rate with no more than so many false positives (:meth:`RocCurve.at`); NaN without a
        face."""
        discrete, continuous = self.curves
        return (discrete.at(false_positives), continuous.at(false_positives)) if self.faces else (math.nan, math.nan)


def roc_from_counts(counts: FddbCounts) -> Roc:
    """The curves of all images as they are."""
    ends = counts.line_ends[::-1]
    points = np.vstack([counts.score, np.cumsum(counts.added, axis=1)])[:, ends]
    if len(np.unique(counts.image)) < len(counts.faces):
        points = np.column_stack([points, (NO_DETECTION, 0, 0, 0)])
    thresholds, tp_discrete, tp_continuous, false_positives = points
    hits, wrong = (np.rint(own).astype(np.int64) for own in (tp_discrete, false_positives))
    return Roc(thresholds, hits, tp_continuous, wrong, int(counts.faces.sum()))


def resampled_rates(counts: FddbCounts, limits: Sequence[int], samples: int, seed: int = 0) -> Floats:
    """Discrete and continuous rates of resampled images, as :meth:`Roc.at` gives them for the images as they are.

    Each resample is scored as the collection that it is: an image that is drawn twice adds its faces, matches and
    false positives twice. The limits of false positives stay what they are. Returns (2, L + 1, B): discrete and
    continuous, at each of the ``limits`` and at the end of the curve; NaN where a resample has no face.
    """
    images = len(counts.faces)
    whole = np.stack([np.bincount(counts.image, own, minlength=images) for own in counts.added[:2]], axis=1)
    # What false positives lose from each step on, if each image were there once: 0 or less.
    falls = np.cumsum(np.append(np.minimum(counts.added[2], 0), 0)[::-1])[::-1]
    is_end = np.zeros(len(counts.score), np.bool_)
    is_end[counts.line_ends] = True
    rates = np.zeros((2, len(limits) + 1, samples))
    for part, drawn in image_weights(images, samples, seed):
        weights = drawn.astype(np.float64)
        rates[:, -1, part] = (weights @ whole).T
        before = np.zeros((3, len(weights), 1))
        for first in range(0, len(counts.score), _STEPS_AT_ONCE):
            own = slice(first, min(first + _STEPS_AT_ONCE, len(counts.score)))
            curve = np.cumsum(weights[:, counts.image[own]] * counts.added[:, None, own], axis=2) + before
            before = curve[:, :, -1:]
            lines = curve[:, :, is_end[own]]
            for place, limit in enumerate(limits):
                allowed = lines[2] <= limit
                hit = np.flatnonzero(allowed.any(axis=1))
                if len(hit):
                    last = allowed.shape[1] - 1 - np.argmax(allowed[hit, ::-1], axis=1)
                    rates[:, place, part.start + hit] = lines[:2, hit, last]
            # All that is left could not bring any resample back below the largest limit.
            if before[2].min() + weights.max() * falls[own.stop] > max(limits):
                break
        faces = weights @ counts.faces
        with np.errstate(invalid="ignore"):
            rates[:, :, part] = np.where(faces > 0, rates[:, :, part] / faces, np.nan)
    return rates
