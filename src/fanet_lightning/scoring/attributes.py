"""AP and recall by height, blur, occlusion, pose, expression, illumination and event, with intervals over images.

Which faces and rows count in a group is in :mod:`attribute_groups`. How to read the numbers:

* ``ap`` of groups of different size does not compare: all false alarms stand against the few hits of a small group.
  ``normalised_ap`` (:func:`attribute_counts.normalised_ap`) and the recalls do compare. It is not defined by height and
  by event, where the false alarms are a group's own.
* ``recall`` is read at one threshold for all groups: the lowest at which all faces of the setting together have a
  precision of at least 0.9. It is what a detector set to that precision finds of each group. In the resamples the
  threshold stays.
* ``max_recall`` takes every row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fanet_lightning.scoring.attribute_counts import count_groups, curve_of, judge_rows, normalised_ap_of, resample
from fanet_lightning.scoring.attribute_groups import Group, attribute_groups, image_of_face, left_out
from fanet_lightning.scoring.bootstrap import SAMPLES, Interval, interval_of
from fanet_lightning.scoring.curves import THRESHOLDS
from fanet_lightning.scoring.ground_truth import GroundTruth
from fanet_lightning.scoring.predictions import Predictions

__all__ = ["MEASURES", "AttributeScores", "Group", "GroupScore", "attribute_groups", "score_attributes"]

MEASURES = ("ap", "normalised_ap", "recall", "max_recall")
AT_PRECISION = 0.9


@dataclass(frozen=True, eq=False)
class GroupScore:
    """What a run is worth on a group. Numbers in [0, 1], NaN where there is none: no face, or no such number.

    ``attribute``, ``value``  of the group; ``faces`` it has, in ``images`` of the images.
    ``ap`` … ``max_recall``   as the module says. In a difference they are this run minus the other.
    """

    attribute: str
    value: str
    faces: int
    images: int
    ap: Interval
    normalised_ap: Interval
    recall: Interval
    max_recall: Interval

    def measure(self, name: str) -> Interval:
        """One of :data:`MEASURES` by name."""
        return {
            "ap": self.ap,
            "normalised_ap": self.normalised_ap,
            "recall": self.recall,
            "max_recall": self.max_recall,
        }[name]


@dataclass(frozen=True, eq=False)
class AttributeScores:
    """All groups of a run; the first, "all", is the setting itself.

    ``within``          the setting whose faces are broken down.
    ``images``          how many were scored.
    ``at_precision``    the precision that ``recall`` is read at, and ``score_threshold`` the score of the predictions
                        there; NaN where no threshold has that precision.
    ``groups``          in the order of :func:`attribute_groups.attribute_groups`.
    ``left_out``        one line per attribute that the ground truth cannot tell.
    ``samples``         resamples behind the intervals, drawn with ``seed``.
    ``against``         the other run on the same groups; None without one.
    ``differences``     per group this run minus the other, paired over images; empty without one.
    """

    within: str
    images: int
    at_precision: float
    score_threshold: float
    groups: tuple[GroupScore, ...]
    left_out: tuple[str, ...]
    samples: int
    seed: int
    against: "AttributeScores | None" = None
    differences: tuple[GroupScore, ...] = ()


def score_attributes(
    ground_truth: GroundTruth,
    predictions: Predictions,
    samples: int = SAMPLES,
    seed: int = 0,
    *,
    within: str = "hard",
    at_precision: float = AT_PRECISION,
    against: Predictions | None = None,
) -> AttributeScores:
    """Score every group of :func:`attribute_groups.attribute_groups`, with 95 % intervals over images.

    Args:
        ground_truth: of the images; scores are normalised over all rows of a run, so select the images of both before.
        predictions: of the same images, in the same order.
        samples: resamples; 0: no intervals. Number of images and ``seed`` fix the images of each resample, here as in
            :mod:`bootstrap`.
        seed: of the draw.
        within: a setting of ``ground_truth``, or "valid": every face that has a width and a height and is not flagged
            invalid.
        at_precision: in (0, 1], where ``recall`` is read; each run has a threshold of its own.
        against: another run on the same images, for paired differences.

    Raises:
        InputError: no such setting.
        ValueError: predictions of other images, no image, ``samples`` below 0, ``at_precision`` outside (0, 1].
    """
    if samples < 0:
        raise ValueError(f"{samples} samples, need 0 or more")
    if not 0 < at_precision <= 1:
        raise ValueError(f"at_precision={at_precision}, need a precision in (0, 1]")
    groups = attribute_groups(ground_truth, within)
    runs = []
    for run in [predictions] if against is None else [predictions, against]:
        scores, threshold = _score_run(groups, ground_truth, run, samples, seed, at_precision)
        images, absent = len(ground_truth.image_ids), left_out(ground_truth, within)
        runs.append(AttributeScores(within, images, at_precision, threshold, scores, absent, samples, seed))
    if against is None:
        return runs[0]
    ours, theirs = runs
    differences = tuple(_difference(a, b) for a, b in zip(ours.groups, theirs.groups, strict=True))
    return replace(ours, against=theirs, differences=differences)


def _score_run(
    groups: Sequence[Group],
    ground_truth: GroundTruth,
    predictions: Predictions,
    samples: int,
    seed: int,
    at_precision: float,
) -> tuple[tuple[GroupScore, ...], float]:
    rows = judge_rows(ground_truth, predictions)
    counts = count_groups(groups, rows, image_of_face(ground_truth), len(ground_truth.image_ids))
    curves = [curve_of(own) for own in counts]
    reached = np.flatnonzero(curves[0].precision >= at_precision)
    point = int(reached[-1]) if len(reached) else None
    # By height and by event the false alarms are the group's own, so there is no share to put right.
    normalised = [group.images is None and group.heights is None for group in groups]
    drawn = resample(counts, counts[0].faces, normalised, point, samples, seed)
    scores, nan = [], float("nan")
    for group, own, curve, has_normalised, resampled in zip(groups, counts, curves, normalised, drawn, strict=True):
        scores.append(
            GroupScore(
                group.attribute,
                group.value,
                curve.faces,
                int(np.count_nonzero(own.faces)),
                interval_of(curve.ap, resampled.ap),
                interval_of(normalised_ap_of(own, curves[0].faces) if has_normalised else nan, resampled.normalised_ap),
                interval_of(float(curve.recall[point]) if point is not None and curve.faces else nan, resampled.recall),
                interval_of(float(curve.recall[-1]) if curve.faces else nan, resampled.max_recall),
            )
        )
    return tuple(scores), nan if point is None else _score_at(predictions, point)


def _score_at(predictions: Predictions, point: int) -> float:
    """The normalised threshold as a score of the predictions; see :func:`curves.normalise_scores`."""
    low = min(1.0, float(predictions.scores.min(initial=1.0)))
    high = max(0.0, float(predictions.scores.max(initial=0.0)))
    return low + float(THRESHOLDS[point]) * (high - low)


def _difference(ours: GroupScore, theirs: GroupScore) -> GroupScore:
    pairs = [(ours.measure(name), theirs.measure(name)) for name in MEASURES]
    return GroupScore(
        ours.attribute,
        ours.value,
        ours.faces,
        ours.images,
        *(interval_of(a.value - b.value, a.samples - b.samples) for a, b in pairs),
    )
