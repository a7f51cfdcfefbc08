"""What each type of error costs: AP that oracles give back (TIDE, see :mod:`error_types`), ``errors.json``, a table."""

import json
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.files import replaced
from fanet_lightning.score.analysis.error_types import BACKGROUND_IOU, ErrorTypes, FaceState, Kind
from fanet_lightning.score.curves import POINTS, area_under_envelope, curve_from_histograms
from fanet_lightning.score.results import defined, print_rows, writing
from fanet_lightning.score.wider_face.average_precision import MIN_IOU

TYPES = ("misses", "localisation", "duplicates", "background")

_IMAGES_AT_ONCE = 512
ERRORS_FILE = "errors.json"
SOURCE = "TIDE (Bolya et al., ECCV 2020) under the rules of the WIDER FACE evaluation"


@dataclass(frozen=True)
class LostAP:
    """What the errors of one setting cost, AP in [0, 1]; all NaN where no face counts.

    ``ap``               of the run as it is.
    ``gains``            type of :data:`TYPES` → AP with its errors fixed, minus ``ap``; never negative.
    ``false_positives``  gain if every row without a hit came after all hits (TIDE's special error).
    ``false_negatives``  gain if every face that is not found left the denominator (likewise).
    """

    ap: float
    gains: Mapping[str, float]
    false_positives: float
    false_negatives: float


def lost_ap(errors: ErrorTypes) -> dict[str, LostAP]:
    """What each type of error costs, per setting."""
    lost = {}
    for setting, own in errors.settings.items():
        ap = ap_with(errors, setting, ())
        hits = own.kinds == Kind.HIT
        # All hits at the first threshold, all else at the last: precision 1 until recall ends.
        found = int(hits.sum())
        faces = own.counted_faces
        lost[setting] = LostAP(
            ap=ap,
            gains={name: ap_with(errors, setting, (name,)) - ap for name in TYPES},
            false_positives=found / faces - ap if faces else float("nan"),
            false_negatives=_ap(errors.bins, own.kinds < Kind.IGNORED, hits, found, faces) - ap,
        )
    return lost


def ap_with(errors: ErrorTypes, setting: str, fixed: Collection[str]) -> float:
    """AP of a setting with the errors of these types fixed, in [0, 1]; without any it is the AP of the run.

    Where the oracle of the misses leaves no face to find, nothing is lost: 1. Where none counted before, NaN.
    """
    own = errors.settings[setting]
    hits = own.kinds == Kind.HIT
    proposals = own.kinds < Kind.IGNORED
    for name, kind in (
        ("localisation", Kind.LOCALISATION),
        ("duplicates", Kind.DUPLICATE),
        ("background", Kind.BACKGROUND),
    ):
        if name in fixed:
            proposals &= own.kinds != kind
    if "localisation" in fixed:
        hits, proposals = hits | own.fixed, proposals | own.fixed
    faces = own.counted_faces
    left = faces - int((own.states == FaceState.MISSED).sum()) if "misses" in fixed else faces
    return _ap(errors.bins, proposals, hits, left, faces)


def gain_per_image(errors: ErrorTypes, setting: str) -> npt.NDArray[np.float64]:
    """(N,) float64: the AP that a run gains when all errors of one image alone are fixed, never negative.

    The four oracles together, on this image; the other images stay as they are. NaN where no face counts.
    """
    own = errors.settings[setting]
    faces = own.counted_faces
    if not faces:
        return np.full(errors.images, np.nan)
    hits = own.kinds == Kind.HIT
    proposals = own.kinds < Kind.IGNORED
    proposed, hit = (np.bincount(errors.bins[rows], minlength=POINTS).astype(np.float64) for rows in (proposals, hits))
    missed = np.bincount(errors.image_of_faces[own.states == FaceState.MISSED], minlength=errors.images)
    before = area_under_envelope(*_precision_recall(np.cumsum(proposed)[None], np.cumsum(hit)[None], np.array([faces])))
    # A false row goes unless it becomes a hit.
    gone = np.flatnonzero(proposals & ~hits & ~own.fixed)
    gained = np.flatnonzero(own.fixed)
    gains = np.empty(errors.images)
    for first in range(0, errors.images, _IMAGES_AT_ONCE):
        last = min(first + _IMAGES_AT_ONCE, errors.images)
        fewer, more = (
            _per_image_and_bin(errors.image_of_rows[rows], errors.bins[rows], first, last) for rows in (gone, gained)
        )
        precision, recall = _precision_recall(
            np.cumsum(proposed - fewer, axis=1), np.cumsum(hit + more, axis=1), faces - missed[first:last]
        )
        after = area_under_envelope(precision, recall)
        gains[first:last] = np.where(faces > missed[first:last], after, 1.0) - before
    # The rounding of two sums over 1,000 points.
    return np.maximum(gains, 0.0)


def _ap(
    bins: npt.NDArray[np.int64],
    proposals: npt.NDArray[np.bool_],
    hits: npt.NDArray[np.bool_],
    faces: int,
    faces_before: int,
) -> float:
    if not faces_before:
        return float("nan")
    if not faces:
        return 1.0
    return curve_from_histograms(
        np.bincount(bins[proposals], minlength=POINTS), np.bincount(bins[hits], minlength=POINTS), faces
    ).ap


def _per_image_and_bin(
    image_of_rows: npt.NDArray[np.int64], bins: npt.NDArray[np.int64], first: int, last: int
) -> npt.NDArray[np.float64]:
    """Number of rows per image ``first`` … ``last`` (excluded) and threshold, (n, 1000)."""
    rows = slice(*np.searchsorted(image_of_rows, [first, last]).tolist())
    keys = (image_of_rows[rows] - first) * POINTS + bins[rows]
    return np.bincount(keys, minlength=(last - first) * POINTS).reshape(-1, POINTS).astype(np.float64)


def _precision_recall(
    proposed: npt.NDArray[np.float64], hit: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Cumulated counts (n, 1000) and faces (n,) → precision and recall, (n, 1000) each."""
    precision = np.divide(hit, proposed, out=np.zeros_like(hit), where=proposed > 0)
    recall = np.divide(hit, faces[:, None], out=np.zeros_like(hit), where=faces[:, None] > 0)
    return precision, recall


def write_errors(out: Path, errors: ErrorTypes) -> dict[str, Any]:
    """Write ``errors.json`` into the folder ``out``, by rename; numbers that are not defined are null.

    Per setting: ``ap``; ``dap``, the AP that is gained when the errors of a type are fixed; ``special``, when all
    false positives came last and when all faces that are not found left the denominator; ``rows`` of each kind;
    ``faces`` in each state. See :mod:`error_types`.

    Returns:
        What the file holds.

    Raises:
        InputError: ``out`` cannot be written.
    """
    content = {
        "source": SOURCE,
        "min_iou": MIN_IOU,
        "background_iou": BACKGROUND_IOU,
        "images": errors.images,
        "settings": {
            setting: {
                "ap": defined(lost.ap),
                "dap": {name: defined(gain) for name, gain in lost.gains.items()},
                "special": {
                    "false_positives": defined(lost.false_positives),
                    "false_negatives": defined(lost.false_negatives),
                },
                "rows": errors.settings[setting].rows(),
                "faces": errors.settings[setting].faces(),
            }
            for setting, lost in lost_ap(errors).items()
        },
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with writing(out), replaced(out / ERRORS_FILE) as path:
        path.write_text(text, encoding="utf-8")
    return content


def print_errors(lost: Mapping[str, LostAP], file: TextIO | None = None) -> None:
    """Setting, AP, and what each type of error costs, one line each."""
    rows = [[setting, _text(own.ap), *(_text(own.gains[name], "+") for name in TYPES)] for setting, own in lost.items()]
    title = "AP gained when the errors of one type alone are fixed"
    print_rows(title, ["setting", "AP", *TYPES], rows, file or sys.stdout)


def _text(value: float, sign: str = "") -> str:
    return "no face" if math.isnan(value) else f"{value:{sign}.4f}"
