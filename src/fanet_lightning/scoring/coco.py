"""COCO's average precision of any multiset of images, from rows that were matched once.

Rules of pycocotools' ``COCOeval``: the rows of all images are sorted by score, equal scores in the order of the images;
precision is read from its monotone envelope at 101 recalls and averaged over them, over the ten thresholds 0.50 … 0.95
and over categories that have a face. The numbers of :mod:`fanet_lightning.scoring.coco_benchmark` come from that tool
unless asked for otherwise; what is here is equal to them and says how they vary over images.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.scoring.coco_arrays import CocoGroundTruth
from fanet_lightning.scoring.coco_matching import MatchedRows, in_ranges

# As pycocotools evaluates them.
RECALLS: npt.NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
# Setting → thresholds and area that its AP is the mean over.
SETTINGS: Mapping[str, tuple[slice, int]] = {
    "all": (slice(None), 0),
    "50": (slice(0, 1), 0),
    "75": (slice(5, 6), 0),
    "small": (slice(None), 1),
    "medium": (slice(None), 2),
    "large": (slice(None), 3),
}

# Bounds of what is in memory at a time; the results do not depend on them.
_NUMBERS_AT_ONCE = 4_000_000
_CURVES_AT_ONCE = 500


def average_precision(
    categories: list[MatchedRows], weights: npt.NDArray[np.floating] | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Setting (:data:`SETTINGS`) → AP of multisets of images, (b,) in [0, 1]; NaN where no face counts.

    Equal to pycocotools on a set with every image copied that often, the copies under new ids beside each other. Rows
    of equal score *within* one image are the exception: here all copies of the first come before the second.

    Args:
        categories: of :func:`fanet_lightning.scoring.coco_matching.match`.
        weights: (b, N) whole numbers ≥ 0, how often each image is in; None takes each once, and b is 1.

    Raises:
        ValueError: no category, or weights of another shape.
    """
    if not categories:
        raise ValueError("no category to average over")
    images = categories[0].faces.shape[1]
    if weights is None:
        weights = np.ones((1, images))
    if weights.ndim != 2 or weights.shape[1] != images:
        raise ValueError(f"weights {weights.shape} for {images} images, need (b, {images})")
    parts = [weights[first : first + _CURVES_AT_ONCE] for first in range(0, len(weights), _CURVES_AT_ONCE)]
    # (K, b, T, A)
    cells = np.stack([np.concatenate([_curves(own, part).mean(axis=-1) for part in parts]) for own in categories])
    return {
        name: _mean_over_categories(cells[..., thresholds, area].mean(axis=-1))
        for name, (thresholds, area) in SETTINGS.items()
    }


def precision_at_recalls(categories: list[MatchedRows]) -> npt.NDArray[np.float64]:
    """Precision of the envelope, (T, R, K, A): thresholds, :data:`RECALLS`, categories, areas; -1 without a face.

    What pycocotools calls ``eval["precision"]``.

    Raises:
        ValueError: no category.
    """
    if not categories:
        raise ValueError("no category to average over")
    whole = np.ones((1, categories[0].faces.shape[1]))
    # (K, T, A, R)
    curves = np.stack([_curves(own, whole)[0] for own in categories])
    return np.where(np.isnan(curves), -1.0, curves).transpose(1, 3, 0, 2)


def faces_per_setting(ground_truth: CocoGroundTruth) -> dict[str, int]:
    """Setting → faces that count, over all categories."""
    counted = (in_ranges(ground_truth.areas) & ~ground_truth.crowd).sum(axis=1)
    return {name: int(counted[area]) for name, (_, area) in SETTINGS.items()}


def _mean_over_categories(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K, b) → (b,), categories without a face left out."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    means: npt.NDArray[np.float64] = np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)
    return means


class _Cell(NamedTuple):
    """Where the rows of one threshold and area stand, whatever the weights; H hits, C changed rows.

    ``hits``           (H,) images of the hits, best score first.
    ``inside_before``  (H,) rows whose own area is in the range, up to each hit, the hit included.
    ``changed``        (C,) images of matched rows that count although their area is outside, or do not although inside.
    ``sign``           (C,) +1 and -1.
    ``changed_before`` (H,) changed rows up to each hit, the hit included.
    """

    hits: npt.NDArray[np.int64]
    inside_before: npt.NDArray[np.int64]
    changed: npt.NDArray[np.int64]
    sign: npt.NDArray[np.float64]
    changed_before: npt.NDArray[np.int64]


def _curves(rows: MatchedRows, weights: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(b, N) weights → precision of one category, (b, T, A, R); NaN where no face counts.

    A recall is first reached at a hit, and the envelope there is a maximum over hits: between hits precision falls.
    So precision is computed at hits alone. How many rows count by then hardly depends on the threshold: it is the
    number of rows in the area, more or less the few matched rows that the threshold decides about.
    """
    thresholds, areas, _ = rows.hits.shape
    result = np.full((len(weights), thresholds, areas, len(RECALLS)), np.nan)
    step = max(1, _NUMBERS_AT_ONCE // max(1, len(rows.image), rows.faces.shape[1]))
    for area in range(areas):
        inside = np.flatnonzero(rows.in_area[area])
        cells = [_cell(rows, threshold, area, inside) for threshold in range(thresholds)]
        for first in range(0, len(weights), step):
            block = weights[first : first + step].astype(np.float64)
            faces = block @ rows.faces[area]
            proposed_inside = _cumulated(block, rows.image[inside])
            for threshold, cell in enumerate(cells):
                proposed = proposed_inside[:, cell.inside_before]
                if len(cell.changed):
                    proposed += _cumulated(block, cell.changed, cell.sign)[:, cell.changed_before]
                hit = _cumulated(block, cell.hits)[:, 1:]
                result[first : first + step, threshold, area] = _at_recalls(hit, proposed, faces)
    return result


def _cell(rows: MatchedRows, threshold: int, area: int, inside: npt.NDArray[np.int64]) -> _Cell:
    hits = np.flatnonzero(rows.hits[threshold, area])
    changed = np.flatnonzero(rows.ignored[threshold, area] == rows.in_area[area])
    return _Cell(
        rows.image[hits],
        np.searchsorted(inside, hits, side="right"),
        rows.image[changed],
        np.where(rows.in_area[area, changed], -1.0, 1.0),
        np.searchsorted(changed, hits, side="right"),
    )


def _cumulated(
    weights: npt.NDArray[np.float64], image: npt.NDArray[np.int64], sign: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """(b, N), (R,) → (b, R + 1): sum of the rows' weights before each row, and of all."""
    sums = np.zeros((len(weights), len(image) + 1))
    own = np.take(weights, image, axis=1)
    if sign is not None:
        own *= sign
    np.cumsum(own, axis=1, out=sums[:, 1:])
    return sums


def _at_recalls(
    hit: npt.NDArray[np.float64], proposed: npt.NDArray[np.float64], faces: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Hits and proposals at each hit, (b, H); faces (b,) → precision at :data:`RECALLS`, (b, R), NaN without a face."""
    # The tool's guard against 0 / 0, kept because it moves the last bits.
    precision = hit / (proposed + np.spacing(1))
    envelope = np.zeros((len(hit), hit.shape[1] + 1))
    envelope[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.full((len(hit), len(RECALLS)), np.nan)
    for i in np.flatnonzero(faces > 0).tolist():
        result[i] = envelope[i, np.searchsorted(hit[i] / faces[i], RECALLS, side="left")]
    return result
