"""Confidence intervals on average precision, and on differences between runs, by resampling images.

The unit that is drawn is the image, with all its faces and rows: the faces of one image are not independent (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13). The intervals are percentile intervals, 95 %.
They say how a number would vary with other images of the same kind. They say nothing about training the same model
again with another seed.

A curve is made of sums over images, so a resample is a vector of weights, and all resamples together are one product of
weights (B, N) and counts (N, 1000).

A resample in which no face counts has no AP. Its sample is NaN and the interval is taken over the others; where no face
counts at all, value, low and high are NaN.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.scoring.curves import POINTS, area_under_envelope
from fanet_lightning.scoring.per_image import ImageCounts, curve_from_counts

SAMPLES = 1000
CONFIDENCE = 0.95

# Bounds of what is in memory at a time; the results do not depend on them.
_SAMPLES_AT_ONCE = 250
_IMAGES_AT_ONCE = 4096
_WEIGHTS_AT_ONCE = 8_000_000


class Interval(NamedTuple):
    """``value`` on the images as they are, and the 2.5 % and 97.5 % points of ``samples``, (B,) float64.

    The value is not the middle of the interval, and in a skewed case may even lie outside.
    """

    value: float
    low: float
    high: float
    samples: npt.NDArray[np.float64]


def method(samples: int = SAMPLES, seed: int = 0) -> str:
    """How an interval came about, in words, to stand beside it."""
    return f"bootstrap over images, {samples} samples, {CONFIDENCE:.0%} percentile interval, seed {seed}"


def bootstrap_ap(counts: Mapping[str, ImageCounts], samples: int = SAMPLES, seed: int = 0) -> dict[str, Interval]:
    """Interval of AP per setting. All settings see the same resampled images.

    Args:
        counts: setting → counts, from :func:`per_image.count_images` or :func:`per_image.read_counts`.
        samples: number of resamples B.
        seed: of the draw. The same seed and number of images mean the same resampled images in every function here.

    Raises:
        ValueError: ``samples`` below 1, no image, or settings that are not about the same images.
    """
    drawn = resampled_ap([counts], samples, seed)[0]
    return {setting: interval_of(curve_from_counts(own).ap, drawn[setting]) for setting, own in counts.items()}


def bootstrap_difference(
    counts_a: Mapping[str, ImageCounts], counts_b: Mapping[str, ImageCounts], samples: int = SAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Paired interval of AP(a) - AP(b) per setting: both runs see the same resampled images.

    What makes an image hard for both cancels, so the interval is far narrower than the two intervals suggest.

    Raises:
        ValueError: as :func:`bootstrap_mean_difference`.
    """
    return bootstrap_mean_difference([counts_a], [counts_b], samples, seed)


def bootstrap_mean_difference(
    runs_a: Sequence[Mapping[str, ImageCounts]],
    runs_b: Sequence[Mapping[str, ImageCounts]],
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Paired interval of mean AP(a) - mean AP(b) per setting, the runs of a side being seeds of one model.

    All runs see the same resampled images, and each resample takes the mean of a side. So the interval speaks of the
    images alone: these trained networks, other images. The spread over seeds is a second uncertainty beside it.

    Raises:
        ValueError: a side without a run, ``samples`` below 1, no image, or runs that differ in settings, in images or
            their order, or in the faces that count.
    """
    if not runs_a or not runs_b:
        raise ValueError(f"{len(runs_a)} runs against {len(runs_b)}, need at least one on either side")
    runs = [*runs_a, *runs_b]
    drawn = resampled_ap(runs, samples, seed)
    sides = slice(None, len(runs_a)), slice(len(runs_a), None)
    intervals = {}
    for setting in runs[0]:
        values = np.array([curve_from_counts(run[setting]).ap for run in runs])
        all_samples = np.stack([run[setting] for run in drawn])
        value, difference = (
            part[sides[0]].mean(axis=0) - part[sides[1]].mean(axis=0) for part in (values, all_samples)
        )
        intervals[setting] = interval_of(float(value), difference)
    return intervals


def resampled_ap(
    runs: Sequence[Mapping[str, ImageCounts]], samples: int = SAMPLES, seed: int = 0
) -> list[dict[str, npt.NDArray[np.float64]]]:
    """Per run and setting the AP of each resample, (B,) float64; the same resampled images for all of them.

    Raises:
        ValueError: as :func:`bootstrap_mean_difference`.
    """
    _check(runs, samples)
    images = len(next(iter(runs[0].values())).image_ids)
    drawn = [{setting: np.empty(samples) for setting in run} for run in runs]
    for part, weights in image_weights(images, samples, seed):
        for run, run_drawn in zip(runs, drawn, strict=True):
            for setting, counts in run.items():
                run_drawn[setting][part] = _weighted_ap(weights, counts)
    return drawn


def image_weights(
    images: int, samples: int = SAMPLES, seed: int = 0
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """The resamples, some at a time: which of them, and how often each image is in each, (b, N) whole numbers.

    The same number of images and seed mean the same resamples, whatever is computed from them.

    Raises:
        ValueError: ``samples`` or ``images`` below 1.
    """
    if samples < 1 or images < 1:
        raise ValueError(f"{samples} samples of {images} images, need at least 1 of 1")
    rng = np.random.default_rng(seed)
    step = max(1, min(_SAMPLES_AT_ONCE, _WEIGHTS_AT_ONCE // images))
    for first in range(0, samples, step):
        part = slice(first, min(first + step, samples))
        drawn = [np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(part.stop - first)]
        yield part, np.stack(drawn).astype(np.float32)


def _weighted_ap(weights: npt.NDArray[np.float32], counts: ImageCounts) -> npt.NDArray[np.float64]:
    """(b, N) weights → (b,) AP."""
    images = len(counts.image_ids)
    # Whole numbers below 2**24 are exact in float32, which halves the time; the weights of a resample sum to N.
    exact = int(counts.proposals.max(initial=0)) * images < 2**24
    dtype = np.float32 if exact else np.float64
    proposed, hit = np.zeros((2, len(weights), POINTS))
    for first in range(0, images, _IMAGES_AT_ONCE):
        last = min(first + _IMAGES_AT_ONCE, images)
        block = weights[:, first:last].astype(dtype, copy=False)
        proposals, hits = counts.dense(first, last, dtype)
        proposed += block @ proposals
        hit += block @ hits
    faces = weights.astype(np.float64) @ counts.faces
    np.cumsum(proposed, axis=1, out=proposed)
    np.cumsum(hit, axis=1, out=hit)
    precision = np.divide(hit, proposed, out=np.zeros_like(hit), where=proposed > 0)
    recall = np.divide(hit, faces[:, None], out=hit, where=faces[:, None] > 0)
    return np.where(faces > 0, area_under_envelope(precision, recall), np.nan)


def interval_of(value: float, samples: npt.NDArray[np.float64]) -> Interval:
    """The percentile interval of (B,) resampled values; resamples without a value (NaN) are left out."""
    defined = samples[~np.isnan(samples)]
    if not len(defined) or np.isnan(value):
        return Interval(value, float("nan"), float("nan"), samples)
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [outside, 1 - outside])
    return Interval(value, float(low), float(high), samples)


def _check(runs: Sequence[Mapping[str, ImageCounts]], samples: int) -> None:
    if samples < 1:
        raise ValueError(f"{samples} samples, need at least 1")
    if not runs:
        raise ValueError("no run to resample")
    settings = list(runs[0])
    if not settings:
        raise ValueError("no setting to resample")
    reference = runs[0][settings[0]]
    if not reference.image_ids:
        raise ValueError("no image to resample")
    for run in runs:
        if list(run) != settings:
            raise ValueError(f"settings {settings} and {list(run)}: the runs were scored by different rules")
        for setting, counts in run.items():
            if counts.image_ids != reference.image_ids:
                raise ValueError(
                    f"the runs are about different images: {_difference(reference.image_ids, counts.image_ids)}"
                )
            if not np.array_equal(counts.faces, runs[0][setting].faces):
                raise ValueError(f"setting {setting}: the runs were scored against different faces")


def _difference(ids_a: Iterable[str], ids_b: Iterable[str]) -> str:
    a, b = list(ids_a), list(ids_b)
    for only in (set(a) - set(b), set(b) - set(a)):
        if only:
            return f"'{min(only)}' is in one of them alone"
    return "the same ones in another order"
