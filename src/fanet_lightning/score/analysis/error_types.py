"""Kinds of error, and the AP that each costs: misses, localisation, duplicates, background.

After TIDE (Bolya, Foley, Hays and Hoffman, TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020,
sections 2.2 and 2.3, and its program tidecv), with the rules of the WIDER FACE evaluation in place of COCO's. Each row
of a run is of one kind, each face that counts in one state, and what a type of error costs is the AP that is gained
when an oracle fixes the errors of this type and leaves all others:

==============  ============================================  =====================================================
type            errors                                        the oracle
==============  ============================================  =====================================================
misses          faces that no row finds or nearly finds       the face leaves the denominator of recall
localisation    rows with their best overlap in [0.1, 0.5)    the best-scored row of a face that no other row finds
                                                              becomes its hit, at its own score; the others go
duplicates      rows on a face that a better row has taken    the row goes
background      rows with less than 0.1 on any face           the row goes
==============  ============================================  =====================================================

What differs from TIDE, because the evaluation differs: overlaps count the last pixel (+1), 0.5 is inclusive, and a row
looks at the face with its largest overlap among *all* faces. So the oracle of a localisation error next to a face that
does not count takes the row away, and a row on a taken face is a duplicate even where it covers another one that is
free. AP is the one of 1,000 thresholds; scores stay normalised as in the whole run. There are no class errors and no
remainder, and no oracle can lower AP here. The gains do not add up to the lost AP: each is measured with the other
errors in place. All oracles together give AP 1.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.score.curves import POINTS, Bools, Floats, Ints, areas_of_counts, curve_from_histograms, first_bins
from fanet_lightning.score.results import number_text, print_rows, write_json
from fanet_lightning.score.wider_face.average_precision import MIN_IOU, best_of_each_face, nearest_faces
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions

# Below it a row has nothing to do with any face; TIDE, section 2.2.
BACKGROUND_IOU = 0.1


class Kind(IntEnum):
    """What a row is. ``IGNORED``: no proposal, since its face does not count or its image has none."""

    HIT = 0
    DUPLICATE = 1
    LOCALISATION = 2
    BACKGROUND = 3
    IGNORED = 4


class FaceState(IntEnum):
    """What became of a face. ``NEAR``: no row finds it, but a localisation error is about it."""

    FOUND = 0
    NEAR = 1
    MISSED = 2
    UNCOUNTED = 3


@dataclass(frozen=True, eq=False)
class SettingErrors:
    """The rows and faces of a run in one setting.

    ``kinds``   (R,) int8, a :class:`Kind` per row.
    ``states``  (F,) int8, a :class:`FaceState` per face, packed over all images.
    ``fixed``  (R,) bool, the localisation errors that the oracle turns into hits: one per near face.
    """

    kinds: npt.NDArray[np.int8]
    states: npt.NDArray[np.int8]
    fixed: Bools

    @property
    def counted_faces(self) -> int:
        return int((self.states != FaceState.UNCOUNTED).sum())

    def rows(self) -> dict[str, int]:
        """Number of rows of each kind, by its name in lower case."""
        return {kind.name.lower(): int((self.kinds == kind).sum()) for kind in Kind}

    def faces(self) -> dict[str, int]:
        """Number of faces in each state, by its name in lower case."""
        return {state.name.lower(): int((self.states == state).sum()) for state in FaceState}


@dataclass(frozen=True, eq=False)
class ErrorTypes:
    """What each row of a run is and what became of each face.

    ``bins``           (R,) int64, the first threshold that a row reaches.
    ``nearest``        (R,) int64, packed number of the face with the largest overlap, -1 where that is below 0.1.
    ``overlaps``       (R,) float64, that overlap, in [0, 1]; 0 in an image without faces.
    ``image_of_rows``  (R,) int64, ascending.
    ``image_of_faces`` (F,) int64, ascending.
    ``images``         number of images N.
    ``settings``       by name, in the order of the ground truth.
    """

    bins: Ints
    nearest: Ints
    overlaps: Floats
    image_of_rows: Ints
    image_of_faces: Ints
    images: int
    settings: Mapping[str, SettingErrors]

    @cached_property
    def lost(self) -> "dict[str, LostAP]":
        """What each type of error costs, per setting."""
        return {setting: _lost_ap(self, setting) for setting in self.settings}


def error_types(ground_truth: GroundTruth, predictions: Predictions) -> ErrorTypes:
    """Sort the rows of a run into kinds, per setting; ValueError: the two are not about the same images in order."""
    nearest, overlaps = nearest_faces(ground_truth, predictions)
    is_ignored, looks = nearest < 0, overlaps >= MIN_IOU
    nearest = np.where(overlaps >= BACKGROUND_IOU, nearest, -1)

    def best(rows: Bools) -> Ints:
        return best_of_each_face(np.flatnonzero(rows), nearest, predictions.scores)

    settings = {}
    for setting in ground_truth.counted:
        counts = ground_truth.counts(setting)
        # One more entry, so that face -1 reads a value.
        on_other = looks & ~np.append(counts, False)[nearest]
        kinds = np.select(
            [is_ignored | on_other, looks, nearest >= 0],
            [Kind.IGNORED, Kind.DUPLICATE, Kind.LOCALISATION],
            Kind.BACKGROUND,
        ).astype(np.int8)
        kinds[best(kinds == Kind.DUPLICATE)] = Kind.HIT
        states = np.where(counts, FaceState.MISSED, FaceState.UNCOUNTED).astype(np.int8)
        states[nearest[kinds == Kind.HIT]] = FaceState.FOUND
        is_lost = np.append(states == FaceState.MISSED, False)
        fixed = np.zeros(len(kinds), np.bool_)
        fixed[best((kinds == Kind.LOCALISATION) & is_lost[nearest])] = True
        states[nearest[fixed]] = FaceState.NEAR
        settings[setting] = SettingErrors(kinds, states, fixed)
    return ErrorTypes(
        bins=first_bins(predictions.scores),
        nearest=nearest,
        overlaps=overlaps,
        image_of_rows=predictions.image_of_rows,
        image_of_faces=ground_truth.image_of_faces,
        images=len(ground_truth.image_ids),
        settings=settings,
    )


_KINDS = {"localisation": Kind.LOCALISATION, "duplicates": Kind.DUPLICATE, "background": Kind.BACKGROUND}
TYPES = ("misses", *_KINDS)
# Every face that is not found leaves the denominator: one of TIDE's special errors.
_NEGATIVES = "false_negatives"

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


def _lost_ap(errors: ErrorTypes, setting: str) -> LostAP:
    own, ap = errors.settings[setting], ap_with(errors, setting, ())
    gains = {name: ap_with(errors, setting, (name,)) - ap for name in TYPES}
    # All hits at the first threshold, all else at the last: precision 1 until recall ends.
    found, faces = int((own.kinds == Kind.HIT).sum()), own.counted_faces
    false_positives = found / faces - ap if faces else float("nan")
    return LostAP(ap, gains, false_positives, ap_with(errors, setting, (_NEGATIVES,)) - ap)


def ap_with(errors: ErrorTypes, setting: str, fixed: Collection[str]) -> float:
    """AP of a setting with the errors of these types fixed, in [0, 1]; without any it is the AP of the run.

    Where the oracle of the misses leaves no face to find, nothing is lost: 1. Where none counted before, NaN.
    """
    own = errors.settings[setting]
    gone = [Kind.IGNORED, *(_KINDS[name] for name in fixed if name in _KINDS)]
    hits, proposals = own.kinds == Kind.HIT, ~np.isin(own.kinds, gone)
    if "localisation" in fixed:
        hits, proposals = hits | own.fixed, proposals | own.fixed
    left = own.counted_faces
    if not left:
        return float("nan")
    if "misses" in fixed:
        left -= int((own.states == FaceState.MISSED).sum())
    if _NEGATIVES in fixed:
        left = int(hits.sum())
    proposed, hit = (np.bincount(errors.bins[rows], minlength=POINTS) for rows in (proposals, hits))
    return curve_from_histograms(proposed, hit, left).ap if left else 1.0


def gain_per_image(errors: ErrorTypes, setting: str) -> Floats:
    """(N,) float64: the AP that a run gains when all errors of one image alone are fixed, never negative.

    The four oracles together, on this image; the other images stay as they are. NaN where no face counts.
    """
    own = errors.settings[setting]
    faces = own.counted_faces
    if not faces:
        return np.full(errors.images, np.nan)
    hits, proposals = own.kinds == Kind.HIT, own.kinds < Kind.IGNORED
    proposed, hit = (np.bincount(errors.bins[rows], minlength=POINTS).astype(np.float64) for rows in (proposals, hits))
    missed = np.bincount(errors.image_of_faces[own.states == FaceState.MISSED], minlength=errors.images)
    before = areas_of_counts(np.cumsum(hit)[None], np.cumsum(proposed)[None], np.array([faces]))
    keys = errors.image_of_rows * POINTS + errors.bins
    gains = np.empty(errors.images)
    for first in range(0, errors.images, _IMAGES_AT_ONCE):
        last = min(first + _IMAGES_AT_ONCE, errors.images)
        here = (errors.image_of_rows >= first) & (errors.image_of_rows < last)
        # A false row goes unless it becomes a hit. Rows per image and threshold, (n, 1000).
        fewer, more = (
            np.bincount(keys[here & rows] - first * POINTS, minlength=(last - first) * POINTS).reshape(-1, POINTS)
            for rows in (proposals & ~hits & ~own.fixed, own.fixed)
        )
        left = faces - missed[first:last]
        after = areas_of_counts(np.cumsum(hit + more, axis=1), np.cumsum(proposed - fewer, axis=1), left)
        gains[first:last] = np.where(left > 0, after, 1.0) - before
    # The rounding of two sums over 1,000 points.
    return np.maximum(gains, 0.0)


def write_errors(out: Path, errors: ErrorTypes) -> None:
    """Write ``errors.json`` into the folder ``out``, by rename: per setting ``ap``, ``dap`` (gains by type),
    ``special`` (gains without false positives, without false negatives), ``rows`` by kind, ``faces`` by state."""
    content: dict[str, Any] = {
        "source": SOURCE,
        "min_iou": MIN_IOU,
        "background_iou": BACKGROUND_IOU,
        "images": errors.images,
        "settings": {
            setting: {
                "ap": lost.ap,
                "dap": lost.gains,
                "special": {"false_positives": lost.false_positives, "false_negatives": lost.false_negatives},
                "rows": errors.settings[setting].rows(),
                "faces": errors.settings[setting].faces(),
            }
            for setting, lost in errors.lost.items()
        },
    }
    write_json(out / ERRORS_FILE, content)


def print_errors(lost: Mapping[str, LostAP]) -> None:
    """Setting, AP, and what each type of error costs, one line each."""
    rows = [
        [setting, number_text(own.ap, ".4f"), *(number_text(own.gains[name], "+.4f") for name in TYPES)]
        for setting, own in lost.items()
    ]
    print_rows("AP gained when the errors of one type alone are fixed", ["setting", "AP", *TYPES], rows)
