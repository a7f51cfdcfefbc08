"""Counts per image of WIDER's curves, and the bootstrap over images.

A curve is made of sums over images, so counts per image are enough to rebuild it for any multiset of images: a resample
is a vector of weights, and all resamples together are one product of weights (B, N) and counts (N, 1000).

The unit that is drawn is the image, with all its faces and rows: the faces of one image are not independent (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13). The intervals are percentile intervals, 95 %.
They say how a number would vary with other images of the same kind, and nothing about training with another seed. A
resample in which no face counts has no AP: its sample is NaN and the interval is taken over the others; where no face
counts at all, value, low and high are NaN.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.files import replaced
from fanet_lightning.score.curves import POINTS, Curve, Floats, Ints, areas_of_counts, curve_from_histograms
from fanet_lightning.score.inputs import reading
from fanet_lightning.score.wider_face.average_precision import judge_settings
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions

PER_IMAGE_FILE = "per_image.npz"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Rows of each image first seen at each threshold, in one setting; only entries with a row are kept.

    ``image_ids``  "event/name", N of them, none twice.
    ``starts``     (N + 1,) int64: the entries of image i are ``starts[i]`` … ``starts[i + 1]``.
    ``bins``       (E,) int64, index into :data:`fanet_lightning.score.curves.THRESHOLDS`, ascending in an image.
    ``proposals``  (E,) int64, rows first seen there that count in precision; not cumulated.
    ``hits``       (E,) int64, those among them that take a face; not cumulated.
    ``faces``      (N,) int64, faces of the image that count.
    """

    image_ids: tuple[str, ...]
    starts: Ints
    bins: Ints
    proposals: Ints
    hits: Ints
    faces: Ints


def count_images(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, ImageCounts]:
    """Counts per setting of ``ground_truth``, from the same judging as :func:`wider_face.average_precision.score`.

    Scores are normalised over all rows of ``predictions``, and that stays: a curve rebuilt from some of the images
    keeps the thresholds of the whole run, so that an interval does not depend on the two extreme scores.
    """
    bins, settings = judge_settings(ground_truth, predictions)
    images = len(ground_truth.image_ids)
    # Image and threshold in one number; which pairs occur at all is the same for every setting.
    pairs, place = np.unique(predictions.image_of_rows * POINTS + bins, return_inverse=True)
    counts = {}
    for setting, rows in settings.items():
        proposals, hits = (np.bincount(place[each], minlength=len(pairs)) for each in rows)
        kept = proposals > 0
        faces = np.bincount(ground_truth.image_of_faces[ground_truth.counts(setting)], minlength=images)
        starts = np.searchsorted(pairs[kept], np.arange(images + 1) * POINTS)
        counts[setting] = ImageCounts(
            ground_truth.image_ids, starts, pairs[kept] % POINTS, proposals[kept], hits[kept], faces
        )
    return counts


def curve_from_counts(counts: ImageCounts, weights: npt.NDArray[np.integer] | None = None) -> Curve:
    """The curve of a multiset of images.

    ``weights`` (N,) are whole numbers ≥ 0, how often each image is in; None takes each once and gives the curve of
    :func:`wider_face.average_precision.score` to the last bit.
    """
    weights = np.ones(len(counts.faces), np.int64) if weights is None else weights.astype(np.int64)
    repeats = np.repeat(weights, np.diff(counts.starts))
    proposals, hits = (
        np.bincount(counts.bins, part * repeats, minlength=POINTS) for part in (counts.proposals, counts.hits)
    )
    return curve_from_histograms(proposals, hits, int(counts.faces @ weights))


def write_counts(path: Path, counts: Mapping[str, ImageCounts]) -> None:
    """Write the counts of all settings into one compressed ``.npz``; it appears by rename."""
    settings = list(counts)
    image_ids = counts[settings[0]].image_ids
    # The settings have most pairs in common of image and threshold: one list of pairs, then columns of small numbers.
    images = np.arange(len(image_ids))
    keys = {setting: np.repeat(images, np.diff(own.starts)) * POINTS + own.bins for setting, own in counts.items()}
    pairs = np.unique(np.concatenate(list(keys.values())))
    arrays: dict[str, Any] = {
        "version": np.array(_VERSION),
        "image_ids": _as_bytes(image_ids),
        "settings": _as_bytes(settings),
        "entries": _small(np.bincount(pairs // POINTS, minlength=len(image_ids))),
        # Low and high byte apart: a stream of equal bytes compresses, a stream of pairs hardly does.
        "bins_low": (pairs % POINTS % 256).astype(np.uint8),
        "bins_high": (pairs % POINTS // 256).astype(np.uint8),
    }
    for number, (setting, own) in enumerate(counts.items()):
        place = np.searchsorted(pairs, keys[setting])
        for name, values in (("proposals", own.proposals), ("hits", own.hits)):
            column = np.zeros(len(pairs), np.int64)
            column[place] = values
            arrays[f"{name}_{number}"] = _small(column)
        arrays[f"faces_{number}"] = _small(own.faces)
    with replaced(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_counts(path: Path) -> dict[str, ImageCounts]:
    """Counts per setting, as :func:`write_counts` left them; InputError: the file is missing, damaged, or another."""
    counts = {}
    with reading(path, "score the predictions again, which writes it again"):
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if arrays["version"].tolist() != _VERSION:
            raise ValueError(f"version {arrays['version']} of the file, this release reads {_VERSION}")
        image_ids = _as_texts(arrays["image_ids"])
        bins = arrays["bins_high"].astype(np.int64) * 256 + arrays["bins_low"]
        images_of_pairs = np.repeat(np.arange(len(image_ids)), arrays["entries"].astype(np.int64))
        for number, setting in enumerate(_as_texts(arrays["settings"])):
            proposals, hits, faces = (
                arrays[f"{name}_{number}"].astype(np.int64) for name in ("proposals", "hits", "faces")
            )
            kept = proposals > 0
            starts = np.searchsorted(images_of_pairs[kept], np.arange(len(image_ids) + 1))
            counts[setting] = ImageCounts(image_ids, starts, bins[kept], proposals[kept], hits[kept], faces)
    return counts


def _small(values: Ints) -> npt.NDArray[Any]:
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _as_bytes(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("\n".join(texts).encode(), np.uint8)


def _as_texts(values: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    text = values.astype(np.uint8).tobytes().decode()
    return tuple(text.split("\n")) if text else ()


SAMPLES = 1000
CONFIDENCE = 0.95

# Bounds of what is in memory at a time; the results do not depend on them.
_SAMPLES_AT_ONCE = 250
_IMAGES_AT_ONCE = 4096
_NUMBERS_AT_ONCE = 8_000_000


class Interval(NamedTuple):
    """``value`` on the images as they are, and the 2.5 % and 97.5 % points of ``samples``, (B,) float64.

    The value is not the middle of the interval, and in a skewed case may even be outside.
    """

    value: float
    low: float
    high: float
    samples: Floats


def method(samples: int = SAMPLES) -> str:
    """How an interval came about, in words."""
    return f"bootstrap over images, {samples} samples, {CONFIDENCE:.0%} percentile interval, seed 0"


def bootstrap_ap(counts: Mapping[str, ImageCounts], samples: int = SAMPLES, seed: int = 0) -> dict[str, Interval]:
    """Interval of AP per setting of ``counts``; all settings see the same resampled images.

    The same ``seed`` and number of images mean the same ``samples`` (1 or more) resamples in every function here.
    """
    drawn = resampled_ap(counts, samples, seed)
    return {setting: interval_of(curve_from_counts(own).ap, drawn[setting]) for setting, own in counts.items()}


def bootstrap_difference(
    counts_a: Mapping[str, ImageCounts], counts_b: Mapping[str, ImageCounts], samples: int = SAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Paired interval of AP(a) - AP(b) per setting: both runs see the same resampled images.

    What makes an image hard for both cancels, so the interval is far narrower than the two intervals suggest.
    ValueError: runs that differ in settings, in images or their order, or in the faces that count.
    """
    if list(counts_a) != list(counts_b) or any(
        own.image_ids != counts_b[setting].image_ids or not np.array_equal(own.faces, counts_b[setting].faces)
        for setting, own in counts_a.items()
    ):
        raise ValueError("the runs differ in settings, in images or their order, or in the faces that count")
    of_a, of_b = (bootstrap_ap(counts, samples, seed) for counts in (counts_a, counts_b))
    return {
        setting: interval_of(own.value - of_b[setting].value, own.samples - of_b[setting].samples)
        for setting, own in of_a.items()
    }


def resampled_ap(counts: Mapping[str, ImageCounts], samples: int, seed: int) -> dict[str, Floats]:
    """Per setting the AP of each resample, (B,) float64; the same resampled images for all of them."""
    images = len(next(iter(counts.values())).image_ids)
    drawn = {setting: np.empty(samples) for setting in counts}
    for part, weights in image_weights(images, samples, seed):
        for setting, own in counts.items():
            drawn[setting][part] = _weighted_ap(weights, own)
    return drawn


def image_weights(
    images: int, samples: int = SAMPLES, seed: int = 0, numbers: int = 1
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """The resamples, some at a time: which of them, and how often each image is in each, (b, N) whole numbers.

    The same number of images and seed mean the same resamples, whatever is computed from them. ``numbers`` that are
    held per resample bound how many come at a time.
    """
    rng = np.random.default_rng(seed)
    step = max(1, min(_SAMPLES_AT_ONCE, _NUMBERS_AT_ONCE // max(images, numbers)))
    for first in range(0, samples, step):
        part = slice(first, min(first + step, samples))
        drawn = [np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(part.stop - first)]
        yield part, np.stack(drawn).astype(np.float32)


def _weighted_ap(weights: npt.NDArray[np.float32], counts: ImageCounts) -> Floats:
    """(b, N) weights → (b,) AP."""
    images = len(counts.image_ids)
    # Whole numbers below 2**24 are exact in float32, which halves the time; the weights of a resample sum to N.
    exact = int(counts.proposals.max(initial=0)) * images < 2**24
    dtype = np.float32 if exact else np.float64
    proposed, hit = np.zeros((2, len(weights), POINTS))
    for first in range(0, images, _IMAGES_AT_ONCE):
        last = min(first + _IMAGES_AT_ONCE, images)
        block = weights[:, first:last].astype(dtype, copy=False)
        entries = slice(*counts.starts[[first, last]].tolist())
        places = np.repeat(np.arange(last - first), np.diff(counts.starts[first : last + 1])), counts.bins[entries]
        for total, column in ((proposed, counts.proposals), (hit, counts.hits)):
            dense: npt.NDArray[Any] = np.zeros((last - first, POINTS), dtype)
            dense[places] = column[entries]
            total += block @ dense
    faces = weights.astype(np.float64) @ counts.faces
    return areas_of_counts(np.cumsum(hit, axis=1), np.cumsum(proposed, axis=1), faces)


def interval_of(value: float, samples: Floats) -> Interval:
    """The percentile interval of (B,) resampled values; resamples without a value (NaN) are left out."""
    defined = samples[~np.isnan(samples)]
    if not len(defined) or np.isnan(value):
        return Interval(value, float("nan"), float("nan"), samples)
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [outside, 1 - outside])
    return Interval(value, float(low), float(high), samples)
