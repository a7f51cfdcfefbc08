"""FDDB as a benchmark: discrete and continuous true-positive rate at 1,000, 2,000 and all false positives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.score.fddb.files import FddbPredictions, read_fddb_predictions, write_fddb_detections, write_roc
from fanet_lightning.score.fddb.ground_truth import FOLDS, FddbGroundTruth, read_fddb_ground_truth
from fanet_lightning.score.fddb.regions import (
    EllipseFit,
    apply_fit,
    bounding_boxes,
    fit_without_fold,
    inscribed_ellipses,
    iou_with_ellipses,
    iou_with_rectangles,
)
from fanet_lightning.score.fddb.roc import (
    DISCRETE_IOU,
    FddbCounts,
    Roc,
    match_image,
    merge_images,
    resampled_rates,
    roc_from_counts,
)
from fanet_lightning.score.inputs import DetectionsByImage, as_xyxy, layout_warning, missing_line
from fanet_lightning.score.results import Samples, Scores

Floats = npt.NDArray[np.float64]
Ellipses = Literal["as_given", "inscribed", "cross_fitted"]

LIMITS = (1000, 2000)
MEASURES = ("discrete", "continuous")
# The rate at the end of the curve, all false positives allowed.
END = "max"
# Setting → most false positives.
SETTINGS: Mapping[str, float] = {**{str(limit): limit for limit in LIMITS}, END: float("inf")}


@dataclass(frozen=True, eq=False, kw_only=True)
class FddbScores(Scores):
    """``counts`` of the images and their curves."""

    counts: FddbCounts
    roc: Roc

    def resampled(self, samples: int, seed: int) -> Samples:
        within, end = resampled_rates(self.counts, LIMITS, samples, seed)
        return {
            measure: {setting: own[place] for setting, own in zip(SETTINGS, [*within, end], strict=True)}
            for place, measure in enumerate(MEASURES)
        }

    def write_curves(self, folder: Path) -> list[Path]:
        return write_roc(self.roc, folder)


class FddbBenchmark:
    """FDDB by the rules of its official program, all folds pooled; see :mod:`roc`.

    Args:
        ellipses: what happens to detections before they are scored, stored with the numbers.
            ``as_given``      nothing: what the benchmark defines.
            ``inscribed``     each rectangle becomes the ellipse within it.
            ``cross_fitted``  each rectangle becomes an ellipse by a linear fit to the annotations of the other folds
                              (:mod:`regions`), as S3FD does with a fit of its own. Resamples keep the fit.
        image_sizes: JSON file with the images' width and height; see
            :func:`~fanet_lightning.score.fddb.ground_truth.read_fddb_ground_truth` for where else they come from.
        images_root: ``originalPics`` or the folder that holds it, for the sizes.

    Raises:
        InputError: an unknown ``ellipses``.
    """

    name = "fddb"

    def __init__(
        self,
        ellipses: Ellipses = "as_given",
        image_sizes: Path | str | None = None,
        images_root: Path | str | None = None,
    ) -> None:
        if ellipses not in get_args(Ellipses):
            raise InputError(
                f"benchmark.ellipses={ellipses} is not known; choose one of {', '.join(get_args(Ellipses))}"
            )
        self.ellipses = ellipses
        self.image_sizes = None if image_sizes is None else Path(str(image_sizes))
        self.images_root = None if images_root is None else Path(str(images_root))

    def read_ground_truth(self, path: Path, images: Path | None = None) -> FddbGroundTruth:
        """The folds that are in ``path``; ``images`` is a list that restricts everything.

        Raises:
            InputError: see :func:`~fanet_lightning.score.fddb.ground_truth.read_fddb_ground_truth`.
        """
        return read_fddb_ground_truth(
            path, images=images, image_sizes=self.image_sizes, images_root=self.images_root
        ).in_official_order()

    def score(self, ground_truth: FddbGroundTruth, predictions: Path, *, strict: bool = False) -> FddbScores:
        """Score a folder of fold files, or one joined file, of rectangles or ellipses.

        Raises:
            InputError: see :func:`~fanet_lightning.score.fddb.files.read_fddb_predictions`; ellipses that are to become
                ellipses; too few matches for the fit.
        """
        truth = ground_truth.in_official_order()
        found = read_fddb_predictions(predictions, truth, strict=strict)
        try:
            return self.score_predictions(truth, found)
        except ValueError as error:
            raise InputError(f"{predictions}: {error}") from error

    def score_predictions(self, ground_truth: FddbGroundTruth, predictions: FddbPredictions) -> FddbScores:
        """The same for predictions in memory.

        Raises:
            ValueError: predictions of other images, or in another order; ellipses that are to become ellipses; too few
                matches for the fit.
        """
        if predictions.image_ids != ground_truth.image_ids:
            raise ValueError("the predictions are not of the ground truth's images in their order")
        given = "ellipses" if predictions.are_ellipses else "rectangles"
        as_scored, fits = self._as_scored(ground_truth, predictions)
        counts = count_fddb(ground_truth, as_scored)
        roc = roc_from_counts(counts)
        rates = {setting: roc.at(limit) for setting, limit in SETTINGS.items()}
        folds = np.unique(ground_truth.folds).tolist()
        rules: dict[str, Any] = {"detections": given, "ellipses": self.ellipses, "folds": folds, "pooled": True}
        if fits:
            rules["pairs_of_fit"] = {str(fold): fit.pairs for fold, fit in fits.items()}
        return FddbScores(
            benchmark=self.name,
            title="FDDB",
            image_ids=ground_truth.image_ids,
            images_of_benchmark=len(ground_truth.known_ids),
            faces={"all": roc.faces},
            values={
                measure: {setting: rate[place] for setting, rate in rates.items()}
                for place, measure in enumerate(MEASURES)
            },
            rules=rules,
            warnings=tuple(filter(None, self._warnings(ground_truth, predictions, folds))),
            counts=counts,
            roc=roc,
        )

    def write_predictions(self, folder: Path, ground_truth: FddbGroundTruth, detections: DetectionsByImage) -> None:
        """One file per fold in the official layout; an image that ``detections`` lacks gets no block.

        Raises:
            InputError: ``folder`` holds something else, or cannot be written.
            ValueError: a detection that is not finite, has a negative side, or is of an image that is not there.
        """
        write_fddb_detections(folder, ground_truth, detections)

    def _as_scored(
        self, truth: FddbGroundTruth, predictions: FddbPredictions
    ) -> tuple[FddbPredictions, dict[int, EllipseFit]]:
        if self.ellipses == "as_given":
            return predictions, {}
        if predictions.are_ellipses:
            raise ValueError(f"these are ellipses already; leave ellipses={self.ellipses} out")
        fits: dict[int, EllipseFit] = {}
        if self.ellipses == "inscribed":
            rows = tuple(inscribed_ellipses(own) for own in predictions.rows)
        else:
            fits = _fits(truth, predictions)
            folds = truth.folds.tolist()
            rows = tuple(apply_fit(fits[fold], own) for fold, own in zip(folds, predictions.rows, strict=True))
        return FddbPredictions(predictions.image_ids, rows, predictions.scores, True, predictions.missing), fits

    def _warnings(self, truth: FddbGroundTruth, predictions: FddbPredictions, folds: list[int]) -> Iterator[str | None]:
        yield missing_line(predictions.missing, len(predictions.image_ids))
        negative = sum(int(predictions.has_negative_side(i).sum()) for i in range(len(predictions.rows)))
        if negative:
            yield f"{counted(negative, 'detection')} with a negative width or height: taken as false alarms"
        to_boxes = bounding_boxes if predictions.are_ellipses else as_xyxy
        boxes_xyxy = [to_boxes(own) for own in predictions.rows]
        yield layout_warning(boxes_xyxy, predictions.scores, [bounding_boxes(own) for own in truth.ellipses])
        scores = np.concatenate([np.zeros(0), *predictions.scores])
        if len(scores) > 1 and (scores == scores[0]).all():
            yield f"all {len(scores)} scores are {scores[0]:g}: the curve is a single point"
        if len(folds) < FOLDS:
            yield f"{len(folds)} of {FOLDS} folds: the numbers do not compare with published ones"
        if self.ellipses != "as_given":
            yield f"ellipses={self.ellipses}: the rectangles were turned into ellipses; say so with the numbers"


def count_fddb(ground_truth: FddbGroundTruth, predictions: FddbPredictions) -> FddbCounts:
    """Match all images and merge them; the same images in the same order.

    Raises:
        ValueError: numbers of images that differ.
    """
    images = [
        match_image(image_iou(ground_truth, predictions, image), predictions.scores[image])
        for image in range(len(ground_truth.image_ids))
    ]
    return merge_images(images, ground_truth.faces)


def image_iou(ground_truth: FddbGroundTruth, predictions: FddbPredictions, image: int) -> Floats:
    """IoU of the faces and the detections of one image, (F, D); 0 for detections with a negative side."""
    overlaps = iou_with_ellipses if predictions.are_ellipses else iou_with_rectangles
    width, height = ground_truth.sizes_wh[image].tolist()
    rows, negative = predictions.rows[image], predictions.has_negative_side(image)
    iou = np.zeros((len(ground_truth.ellipses[image]), len(rows)))
    iou[:, ~negative] = overlaps(ground_truth.ellipses[image], rows[~negative], width, height)
    return iou


def _fits(truth: FddbGroundTruth, predictions: FddbPredictions) -> dict[int, EllipseFit]:
    """Fits on the pairs that the discrete score counts when all detections are in."""
    rows, ellipses = [], []
    for image in range(len(truth.image_ids)):
        iou = image_iou(truth, predictions, image)
        faces, detections = linear_sum_assignment(iou, maximize=True)
        counted = iou[faces, detections] > DISCRETE_IOU
        has_area = (predictions.rows[image][detections, 2:] > 0).all(axis=1)
        rows.append(predictions.rows[image][detections[counted & has_area]])
        ellipses.append(truth.ellipses[image][faces[counted & has_area]])
    try:
        return fit_without_fold(rows, ellipses, truth.folds)
    except ValueError as error:
        raise ValueError(f"ellipses=cross_fitted: {error}; take ellipses=as_given") from error
