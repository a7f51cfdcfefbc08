"""Where the lost AP of a run went: misses, localisation, duplicates, background.

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
looks at the face with its largest overlap among *all* faces. So a row next to a face that does not count is a
localisation error as well; set right, it would be no proposal, so its oracle takes it away. A row on a taken face is a
duplicate even where it covers another face that is free. AP is the one of 1,000 thresholds; scores stay normalised as
in the whole run. There is one class, so TIDE's two types of class errors do not occur, nor a remainder. No oracle can
lower AP here, so nothing is cut off at 0.

The gains do not add up to the lost AP: each is measured with the other errors in place. All oracles together give AP 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from fanet_lightning.score.curves import first_bins, normalise_scores
from fanet_lightning.score.wider_face.average_precision import MIN_IOU, best_face, check_same_images
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
    fixed: npt.NDArray[np.bool_]

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

    bins: npt.NDArray[np.int64]
    nearest: npt.NDArray[np.int64]
    overlaps: npt.NDArray[np.float64]
    image_of_rows: npt.NDArray[np.int64]
    image_of_faces: npt.NDArray[np.int64]
    images: int
    settings: Mapping[str, SettingErrors]


def error_types(ground_truth: GroundTruth, predictions: Predictions) -> ErrorTypes:
    """Sort the rows of a run into kinds, per setting of ``ground_truth``.

    Raises:
        ValueError: the two are not about the same images in the same order.
    """
    check_same_images(ground_truth, predictions)
    images = len(ground_truth.image_ids)
    faces_per_image = np.array([len(boxes) for boxes in ground_truth.boxes_xywh], np.int64)
    image_of_rows = np.repeat(np.arange(images), np.diff(predictions.starts))
    nearest, overlaps = _nearest_faces(ground_truth, predictions)
    settings = {}
    for setting, masks in ground_truth.counted.items():
        counts = np.concatenate([np.zeros(0, np.bool_), *masks])
        settings[setting] = _sorted_by_kind(
            counts, nearest, overlaps, predictions.scores, faces_per_image[image_of_rows] > 0
        )
    return ErrorTypes(
        bins=first_bins(normalise_scores(predictions.scores)),
        nearest=nearest,
        overlaps=overlaps,
        image_of_rows=image_of_rows,
        image_of_faces=np.repeat(np.arange(images), faces_per_image),
        images=images,
        settings=settings,
    )


def _nearest_faces(
    ground_truth: GroundTruth, predictions: Predictions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    nearest = np.full(len(predictions.scores), -1, np.int64)
    overlaps = np.zeros(len(predictions.scores))
    starts = predictions.starts.tolist()
    first_face = 0
    for i, faces_xywh in enumerate(ground_truth.boxes_xywh):
        rows = slice(starts[i], starts[i + 1])
        if len(faces_xywh) and rows.stop > rows.start:
            best, overlap = best_face(predictions.boxes_xywh[rows], faces_xywh)
            nearest[rows] = np.where(overlap >= BACKGROUND_IOU, best + first_face, -1)
            overlaps[rows] = overlap
        first_face += len(faces_xywh)
    return nearest, overlaps


def _sorted_by_kind(
    counts: npt.NDArray[np.bool_],
    nearest: npt.NDArray[np.int64],
    overlaps: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    in_play: npt.NDArray[np.bool_],
) -> SettingErrors:
    # One more entry, so that face -1 reads a value.
    on_counted = np.append(counts, False)[nearest]
    looks = overlaps >= MIN_IOU
    kinds = np.full(len(scores), Kind.BACKGROUND, np.int8)
    kinds[nearest >= 0] = Kind.LOCALISATION
    kinds[looks] = Kind.IGNORED
    kinds[looks & on_counted] = Kind.DUPLICATE
    kinds[~in_play] = Kind.IGNORED
    kinds[_best_of_each_face(np.flatnonzero(kinds == Kind.DUPLICATE), nearest, scores)] = Kind.HIT
    states = np.where(counts, FaceState.MISSED, FaceState.UNCOUNTED).astype(np.int8)
    states[nearest[kinds == Kind.HIT]] = FaceState.FOUND
    is_lost = np.append(states == FaceState.MISSED, False)
    near = np.flatnonzero((kinds == Kind.LOCALISATION) & is_lost[nearest])
    fixed = np.zeros(len(scores), np.bool_)
    fixed[_best_of_each_face(near, nearest, scores)] = True
    states[nearest[fixed]] = FaceState.NEAR
    return SettingErrors(kinds, states, fixed)


def _best_of_each_face(
    rows: npt.NDArray[np.int64], nearest: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Those of ``rows`` that are the best-scored one of their face; the earlier of equals."""
    ordered = rows[np.lexsort((-scores[rows], nearest[rows]))]
    best: npt.NDArray[np.int64] = ordered[np.diff(nearest[ordered], prepend=-1) != 0]
    return best
