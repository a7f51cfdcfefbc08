"""What the page knows: numbers of the run, and the faces and rows of the pictures that it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.error_pages.pictures import Copy
from fanet_lightning.scoring.curves import POINTS, THRESHOLDS
from fanet_lightning.scoring.error_types import ErrorTypes, FaceState, Kind
from fanet_lightning.scoring.ground_truth import ATTRIBUTE_VALUES, GroundTruth
from fanet_lightning.scoring.lost_ap import LostAP
from fanet_lightning.scoring.predictions import Predictions

# Of one picture the best-scored; below them are thousands of rows that no threshold in use keeps.
MAX_ROWS = 2000


def run_content(errors: ErrorTypes, scores: npt.NDArray[np.float64], setting: str, lost: LostAP) -> dict[str, Any]:
    """Numbers of the whole run: AP, what each type of error costs, counts at 1,000 thresholds, where to start.

    ``thresholds`` are in the scale of the rows' scores, descending; ``proposals`` and ``hits`` count the rows that
    reach them. ``start`` is the threshold of the best F1.
    """
    own = errors.settings[setting]
    # The scale of the normalisation, undone; see curves.normalise_scores.
    low, high = min(1.0, float(scores.min(initial=1.0))), max(0.0, float(scores.max(initial=0.0)))
    thresholds = THRESHOLDS * (high - low) + low if high > low else np.full(POINTS, low)
    proposals, hits = (
        np.cumsum(np.bincount(errors.bins[rows], minlength=POINTS))
        for rows in (own.kinds < Kind.IGNORED, own.kinds == Kind.HIT)
    )
    faces = own.counted_faces
    f1 = 2 * hits / np.maximum(proposals + faces, 1)
    return {
        "setting": setting,
        "ap": _defined(lost.ap),
        "dap": {name: _defined(gain) for name, gain in lost.gains.items()},
        "rows": own.rows(),
        "faces": faces,
        "states": own.faces(),
        "images": errors.images,
        "thresholds": _digits(thresholds),
        "proposals": proposals.tolist(),
        "hits": hits.tolist(),
        "start": _digits(thresholds[[int(f1.argmax())]])[0],
    }


def image_contents(
    ground_truth: GroundTruth,
    predictions: Predictions,
    errors: ErrorTypes,
    setting: str,
    shown: Sequence[int],
    gains: npt.NDArray[np.float64],
    copies: Mapping[int, Copy],
) -> list[dict[str, Any]]:
    """One entry per picture of ``shown``, in that order.

    ``faces`` are lists x, y, w, h, counts (0 or 1), score of the row that finds it, best score of a localisation error
    about it (both null where there is none), then a label per attribute. ``rows`` are lists x, y, w, h, score, kind,
    number of the nearest face in this list or -1, overlap; by descending score.
    """
    own = errors.settings[setting]
    total = len(errors.image_of_faces)
    found_at, near_at = np.full((2, total), -np.inf)
    for scores, kind in ((found_at, Kind.HIT), (near_at, Kind.LOCALISATION)):
        rows = own.kinds == kind
        np.maximum.at(scores, errors.nearest[rows], predictions.scores[rows])
    first_faces = np.searchsorted(errors.image_of_faces, np.arange(errors.images + 1))
    contents = []
    for number, i in enumerate(shown):
        rows = np.arange(*predictions.starts[i : i + 2].tolist())
        rows = rows[np.argsort(-predictions.scores[rows], kind="stable")]
        kept = rows[:MAX_ROWS]
        first, last = first_faces[i : i + 2].tolist()
        boxes = ground_truth.boxes_xywh[i]
        nearest = np.where(errors.nearest[kept] >= 0, errors.nearest[kept] - first, -1)
        copy = copies[i]
        extent = np.concatenate([boxes, predictions.boxes_xywh[kept]]).reshape(-1, 4)
        contents.append(
            {
                "id": ground_truth.image_ids[i],
                "gain": _defined(float(gains[i])),
                "size": list(copy.size or _extent(extent)),
                "file": f"{number + 1:04d}.jpg" if copy.size else None,
                "reason": copy.reason,
                "outside": copy.size is not None and _outside(boxes, copy.size),
                "rows_left_out": len(rows) - len(kept),
                "faces": [
                    [*box, int(state != FaceState.UNCOUNTED), *at]
                    for box, state, *at in zip(
                        _tenths(boxes),
                        own.states[first:last].tolist(),
                        _digits(found_at[first:last]),
                        _digits(near_at[first:last]),
                        *(labels[i].tolist() for labels in ground_truth.attributes.values()),
                        strict=True,
                    )
                ],
                "rows": [
                    [*box, *rest]
                    for box, *rest in zip(
                        _tenths(predictions.boxes_xywh[kept]),
                        _digits(predictions.scores[kept]),
                        own.kinds[kept].tolist(),
                        nearest.tolist(),
                        np.round(errors.overlaps[kept], 3).tolist(),
                        strict=True,
                    )
                ],
            }
        )
    return contents


def attribute_names(ground_truth: GroundTruth) -> list[tuple[str, list[str]]]:
    """Attributes that the faces have labels of, with the names of the labels, in the order of the faces' lists."""
    return [(name, list(ATTRIBUTE_VALUES[name])) for name in ground_truth.attributes]


def _extent(boxes_xywh: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Width and height of a blank sheet that holds the boxes with a margin."""
    if not len(boxes_xywh):
        return 640, 480
    width, height = np.ceil((boxes_xywh[:, :2] + np.maximum(boxes_xywh[:, 2:], 0)).max(axis=0) * 1.02)
    return max(int(width), 32), max(int(height), 32)


def _outside(boxes_xywh: npt.NDArray[np.float64], size: tuple[int, int]) -> bool:
    """A face begins right of or below the picture, so the boxes are of a picture of another size."""
    return bool((boxes_xywh[:, :2] >= np.array(size)).any())


def _tenths(boxes: npt.NDArray[np.float64]) -> list[list[float]]:
    return [[int(side) if side == int(side) else side for side in box] for box in np.round(boxes, 1).tolist()]


def _digits(values: npt.NDArray[np.float64]) -> list[float | None]:
    """Six significant digits; null where there is no value."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None
