"""The precision-recall curve of the WIDER FACE evaluation and the area under it; ROC curves."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

POINTS = 1000

# 1 - (i + 1) / 1000, evaluated in this order, so that a score on a threshold falls on the official side of it.
THRESHOLDS: Floats = 1.0 - np.arange(1, POINTS + 1, dtype=np.float64) / POINTS
THRESHOLDS.flags.writeable = False


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall at descending thresholds, (T,) each, in [0, 1]; WIDER's are 1,000 of the normalised score.

    ``ap`` is the area under the monotone envelope, ``faces`` the number of faces that count. Where nothing has been
    proposed yet precision is 0. Without any face that counts recall is 0 and ``ap`` is NaN.
    """

    precision: Floats
    recall: Floats
    thresholds: Floats
    ap: float
    faces: int


class RocCurve(NamedTuple):
    """``true_positive_rate`` (T,) in [0, 1] and ``false_positives`` (T,), in the order of FDDB's official files: by
    ascending threshold, so the first point has most false positives."""

    true_positive_rate: Floats
    false_positives: Floats | Ints

    def at(self, false_positives: float) -> float:
        """Rate of the first point with no more than so many false positives, not interpolated; 0 where there is none:
        nothing is found within the limit."""
        within = np.flatnonzero(self.false_positives <= false_positives)
        return float(self.true_positive_rate[within[0]]) if len(within) else 0.0


def score_range(scores: Floats) -> tuple[float, float]:
    """Least and greatest of (R,) scores; as in the official tool the least starts at 1 and the greatest at 0."""
    return min(1.0, float(scores.min(initial=1.0))), max(0.0, float(scores.max(initial=0.0)))


def first_bins(scores: Floats) -> Ints:
    """(R,) scores of the whole run → the first threshold at or below each, normalised; an index into THRESHOLDS.

    Normalised is (s - min) / (max - min), in [0, 1], of :func:`score_range`. If that divides by zero (every score is
    the same number in [0, 1], where the tool breaks) each score becomes 1, so that all rows are taken at once.
    """
    low, high = score_range(scores)
    normalised = np.ones_like(scores) if high == low else (scores - low) / (high - low)
    # Ascending copy: the number of thresholds at or below a score, counted from the end, is its first bin.
    return POINTS - np.searchsorted(THRESHOLDS[::-1], normalised, side="right")


def curve_from_histograms(
    proposals: npt.NDArray[Any], hits: npt.NDArray[Any], faces: int, thresholds: Floats = THRESHOLDS
) -> Curve:
    """Rows first seen at each threshold, (T,) each and pooled over images → the curve of one setting.

    A row is seen from its first threshold on; every hit is a proposal.
    """
    proposed, hit = np.cumsum(proposals), np.cumsum(hits)
    precision = np.divide(hit, proposed, out=np.zeros(len(hit)), where=proposed > 0)
    recall = hit / faces if faces else np.zeros(len(hit))
    return Curve(precision, recall, thresholds, average_precision(precision, recall) if faces else float("nan"), faces)


def average_precision(precision: Floats, recall: Floats) -> float:
    """Area under the monotone envelope over all points (VOC 2010), from recall 0 to 1; ``recall`` must not fall."""
    return float(area_under_envelope(precision, recall))


def areas_of_counts(hits: Floats, proposals: Floats, faces: npt.NDArray[Any]) -> Floats:
    """AP of many curves at once: hits and proposals so far, (b, T) each, and faces (b,) → (b,), NaN without a face."""
    precision = np.divide(hits, proposals, out=np.zeros_like(hits), where=proposals > 0)
    recall = np.divide(hits, faces[:, None], out=np.zeros_like(hits), where=faces[:, None] > 0)
    return np.where(faces > 0, area_under_envelope(precision, recall), np.nan)


def area_under_envelope(precision: Floats, recall: Floats) -> Floats:
    """:func:`average_precision` of many curves at once: (…, T) → (…)."""
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    area: Floats = np.sum(np.diff(recall, prepend=0.0, axis=-1) * envelope, axis=-1)
    return area
