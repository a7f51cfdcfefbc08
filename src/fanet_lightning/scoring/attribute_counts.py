"""Curves of many groups of faces at once, and their bootstrap: what a breakdown by attribute is computed from.

Rows are judged once. A group keeps the rows on its faces, a few thousand as a rule, and shares the rows on no face with
other groups. So the product of a resample's weights with the counts is taken over the entries that exist: 84 groups of
WIDER val hold a few per mille of the dense matrices (images × thresholds) that :mod:`bootstrap` multiplies.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.scoring.attribute_groups import Group
from fanet_lightning.scoring.bootstrap import image_weights
from fanet_lightning.scoring.curves import (
    POINTS,
    Curve,
    area_under_envelope,
    curve_from_histograms,
    first_bins,
    normalise_scores,
)
from fanet_lightning.scoring.ground_truth import GroundTruth
from fanet_lightning.scoring.predictions import Predictions
from fanet_lightning.scoring.wider_face import check_same_images, judge

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Rows(NamedTuple):
    """All rows of a run, judged, (R,) each.

    ``image``      index of the image.
    ``bins``       the first threshold that the row reaches, index into :data:`curves.THRESHOLDS`.
    ``heights``    of the row's box, pixels.
    ``face``       packed number of the face that the row looks at, -1: none.
    ``first``      the row is the best-scored one that looks at ``face``.
    ``background`` the row is on no face, in an image that has one: a proposal in every group it could belong to.
    """

    image: npt.NDArray[np.int64]
    bins: npt.NDArray[np.int64]
    heights: npt.NDArray[np.float64]
    face: npt.NDArray[np.int64]
    first: npt.NDArray[np.bool_]
    background: npt.NDArray[np.bool_]


class GroupCounts(NamedTuple):
    """Entries (image, threshold, rows first seen there) of one group; none is cumulated.

    ``on_faces`` (T, N) rows on a face of the group, ``hits`` (T, N) those that take it, both sparse.
    ``background`` (T, N) rows on no face that count against the group; groups may share the object.
    ``faces``      (N,) faces of the group per image.
    """

    on_faces: "csr_array"
    hits: "csr_array"
    background: "csr_array"
    faces: npt.NDArray[np.int64]


class Resampled(NamedTuple):
    """One value per resample, (B,) each; NaN where a resample has no face of the group."""

    ap: npt.NDArray[np.float64]
    normalised_ap: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    max_recall: npt.NDArray[np.float64]


def judge_rows(ground_truth: GroundTruth, predictions: Predictions) -> Rows:
    """Judge all rows, as :func:`wider_face.score` does; scores are normalised over the run.

    Raises:
        ValueError: the two are not about the same images in the same order.
    """
    check_same_images(ground_truth, predictions)
    judged = judge(ground_truth, predictions)
    return Rows(
        np.repeat(np.arange(len(predictions.image_ids)), np.diff(predictions.starts)),
        first_bins(normalise_scores(predictions.scores)),
        predictions.boxes_xywh[:, 3],
        judged.face,
        judged.first,
        judged.in_play & (judged.face < 0),
    )


def count_groups(
    groups: Sequence[Group], rows: Rows, image_of_face: npt.NDArray[np.int64], images: int
) -> list[GroupCounts]:
    """The counts of each group.

    Args:
        groups: with masks over F faces and N images.
        rows: judged once, for all groups.
        image_of_face: (F,) the image of each face.
        images: N.
    """
    looking, off = np.flatnonzero(rows.face >= 0), np.flatnonzero(rows.background)
    face, first, image, height = rows.face[looking], rows.first[looking], rows.image[off], rows.heights[off]
    backgrounds: dict[tuple[int | None, tuple[float, float] | None], csr_array] = {}
    counts = []
    for group in groups:
        key = (None if group.images is None else id(group.images), group.heights)
        if key not in backgrounds:
            kept = np.ones(len(off), np.bool_) if group.images is None else group.images[image]
            if group.heights is not None:
                kept &= (height >= group.heights[0]) & (height < group.heights[1])
            backgrounds[key] = entries(rows, off[kept], images)
        own = group.faces[face]
        counts.append(
            GroupCounts(
                on_faces=entries(rows, looking[own], images),
                hits=entries(rows, looking[own & first], images),
                background=backgrounds[key],
                faces=np.bincount(image_of_face[group.faces], minlength=images),
            )
        )
    return counts


def entries(rows: Rows, kept: npt.NDArray[np.int64], images: int) -> "csr_array":
    """(T, N) sparse float64: how many of the rows numbered ``kept`` an image first shows at a threshold."""
    from scipy.sparse import csr_array

    bins, image = rows.bins[kept], rows.image[kept]
    return csr_array((np.ones(len(bins)), (bins, image)), shape=(POINTS, images))


def curve_of(counts: GroupCounts) -> Curve:
    """The curve of a group on the images as they are."""
    on_faces, hits, background = (histogram(part) for part in (counts.on_faces, counts.hits, counts.background))
    return curve_from_histograms(on_faces + background, hits, int(counts.faces.sum()))


def histogram(part: "csr_array") -> npt.NDArray[np.int64]:
    """(T, N) entries → (T,) rows first seen at each threshold, over all images."""
    return np.asarray(part.sum(axis=1)).ravel().astype(np.int64)


def normalised_ap_of(counts: GroupCounts, all_faces: int) -> float:
    """:func:`normalised_ap` on the images as they are; NaN without a face."""
    faces = np.array([float(counts.faces.sum())])
    on_faces, hits, background = (
        np.cumsum(histogram(part).astype(np.float64))[None]
        for part in (counts.on_faces, counts.hits, counts.background)
    )
    return float(normalised_ap(on_faces, hits, background, faces, np.array([float(all_faces)]))[0])


def normalised_ap(
    on_faces: npt.NDArray[np.float64],
    hits: npt.NDArray[np.float64],
    background: npt.NDArray[np.float64],
    faces: npt.NDArray[np.float64],
    all_faces: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """AP that does not depend on how many faces the group has: (b, T) cumulated rows, (b,) faces → (b,).

    All false alarms on no face count against every group. So of two groups whose faces are found equally well the
    smaller has the lower AP. Here the rows on the group's faces weigh as if the group had ``all_faces`` faces
    (normalised precision: Hoiem et al., Diagnosing Error in Object Detectors, ECCV 2012; there with a
    constant of their own). For the group of all faces it is AP.
    """
    share = np.divide(all_faces, faces, out=np.zeros_like(faces), where=faces > 0)[:, None]
    proposed = on_faces * share + background
    precision = np.divide(hits * share, proposed, out=np.zeros_like(hits), where=proposed > 0)
    recall = np.divide(hits, faces[:, None], out=np.zeros_like(hits), where=faces[:, None] > 0)
    return np.where(faces > 0, area_under_envelope(precision, recall), np.nan)


def resample(
    counts: Sequence[GroupCounts],
    all_faces: npt.NDArray[np.int64],
    normalised: Sequence[bool],
    working_point: int | None,
    samples: int,
    seed: int,
) -> list[Resampled]:
    """Every group on resampled images, the same ones for all groups and for every run with as many images.

    Args:
        counts: of each group, over the same N images.
        all_faces: (N,) faces of all groups' universe per image, for ``normalised_ap``.
        normalised: per group, whether it has a ``normalised_ap``; NaN elsewhere.
        working_point: threshold of ``recall``, index into :data:`curves.THRESHOLDS`; None: there is none, NaN.
        samples: number of resamples B; 0 gives none.
        seed: of the draw.

    Raises:
        ValueError: ``samples`` below 0.
    """
    drawn = [Resampled(*np.full((4, samples), np.nan)) for _ in counts]
    if samples == 0:
        return drawn
    sharing: dict[int, list[int]] = {}
    for number, own in enumerate(counts):
        sharing.setdefault(id(own.background), []).append(number)
    for part, weights in image_weights(len(all_faces), samples, seed):
        # (N, b): one row per image, so that an entry adds a run of memory.
        columns = np.ascontiguousarray(weights.T, np.float64)
        of_all = all_faces @ columns
        for numbers in sharing.values():
            background = _cumulated(counts[numbers[0]].background, columns)
            for number in numbers:
                own = counts[number]
                on_faces, hits = _cumulated(own.on_faces, columns), _cumulated(own.hits, columns)
                faces = own.faces @ columns
                values = drawn[number]
                if normalised[number]:
                    values.normalised_ap[part] = normalised_ap(on_faces, hits, background, faces, of_all)
                proposed = np.add(on_faces, background, out=on_faces)
                precision = np.divide(hits, proposed, out=np.zeros_like(hits), where=proposed > 0)
                recall = np.divide(hits, faces[:, None], out=hits, where=faces[:, None] > 0)
                values.ap[part] = np.where(faces > 0, area_under_envelope(precision, recall), np.nan)
                values.max_recall[part] = np.where(faces > 0, recall[:, -1], np.nan)
                if working_point is not None:
                    values.recall[part] = np.where(faces > 0, recall[:, working_point], np.nan)
    return drawn


def _cumulated(part: "csr_array", columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(T, N) entries, (N, b) weights → (b, T) rows seen at each threshold. Whole numbers below 2**53: exact."""
    return np.cumsum(np.ascontiguousarray((part @ columns).T), axis=1)
