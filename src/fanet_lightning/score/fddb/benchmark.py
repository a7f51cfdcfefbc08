"""FDDB as a benchmark: detection files → discrete and continuous true-positive rate at 1,000, 2,000 and all false
positives.

Detections are one file per fold, ``fold-01-out.txt`` … ``fold-10-out.txt``, or joined in one file. A block per image
has its name, the number of rows, and rows ``x y w h score`` for rectangles or ``major minor angle cx cy score`` for
ellipses; the number of columns tells which. The official program wants the images in the order of its list; here any
order will do, since blocks are found by name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment

from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder
from fanet_lightning.score.curves import Floats
from fanet_lightning.score.fddb import regions
from fanet_lightning.score.fddb.ground_truth import (
    FOLDS,
    RECTANGLE,
    FddbGroundTruth,
    read_blocks,
    read_fddb_ground_truth,
)
from fanet_lightning.score.fddb.roc import (
    DISCRETE_IOU,
    FddbCounts,
    match_image,
    merge_images,
    resampled_rates,
    roc_from_counts,
)
from fanet_lightning.score.inputs import (
    DetectionsByImage,
    ImageNames,
    as_xywh,
    check_choice,
    missing_warning,
    packed_detections,
)
from fanet_lightning.score.results import Samples, Scores

Ellipses = Literal["as_given", "inscribed", "cross_fitted"]
_Place = Path | str | None

LIMITS = (1000, 2000)
MEASURES = ("discrete", "continuous")
# Setting → most false positives; the rate at the end of the curve has them all.
SETTINGS: Mapping[str, float] = {**{str(limit): limit for limit in LIMITS}, "max": float("inf")}

_NO_DETECTIONS = re.compile(r"(Disc|Cont)ROC\.txt$|ellipseList", re.IGNORECASE)
_WRITTEN = re.compile(r"fold-\d\d-out\.txt")


@dataclass(frozen=True, eq=False)
class FddbPredictions:
    """The detections of N images.

    ``image_ids`` in the order of the ground truth.
    ``rows``      N arrays (D_i, 4) ``x y w h`` or, all of them, (D_i, 5) ``major minor angle cx cy``; pixels, radians.
                  A row with a negative side, which published results have, overlaps nothing.
    ``scores``    N arrays (D_i,), any scale, any order.
    ``missing``   images without a block; they count as images without a detection.
    """

    image_ids: tuple[str, ...]
    rows: tuple[Floats, ...]
    scores: tuple[Floats, ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def from_detections(cls, detections: DetectionsByImage, image_ids: Iterable[str]) -> Self:
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))``; an image that is not there has no detection.
        ValueError: as :func:`fanet_lightning.score.inputs.packed_detections`."""
        ids = tuple(image_ids)
        starts, boxes_xyxy, scores = packed_detections(detections, ids)
        rows, values = (tuple(np.split(part, starts[1:-1])[: len(ids)]) for part in (as_xywh(boxes_xyxy), scores))
        return cls(ids, rows, values, tuple(image_id for image_id in ids if image_id not in detections))

    @property
    def are_ellipses(self) -> bool:
        return any(own.shape[1] == 5 for own in self.rows)


def read_fddb_predictions(source: Path, ground_truth: FddbGroundTruth) -> FddbPredictions:
    """Read the detections of the ground truth's images from one file or all ``.txt`` of a folder.

    Curves (``…ROC.txt``) and ellipse lists are left aside. Blocks of images outside a selection are skipped.
    """
    files = [source]
    if source.is_dir():
        files = [path for path in sorted(source.iterdir()) if path.suffix.lower() == ".txt"]
        files = [path for path in files if not path.name.startswith(".") and not _NO_DETECTIONS.search(path.name)]
        if not files:
            raise InputError(f"{source}: there are no detections, fold-01-out.txt … fold-10-out.txt or in one file")
    known = ImageNames(ground_truth.known_ids)
    found: dict[str, Floats] = {}
    columns = 0
    for path in files:
        for block in read_blocks(path):
            meant = known.find(block.name)
            wrong = None
            if len(meant) != 1:
                wrong = f"the ground truth does not have '{block.name}'; remove it"
            elif meant[0] in found:
                wrong = f"'{meant[0]}' has a block already; keep one"
            elif len(block.rows) and columns not in (0, block.rows.shape[1]):
                wrong = f"some rows have {columns} numbers, these not; take one kind for all"
            if wrong:
                raise InputError(f"{path}:{block.line}: {wrong}")
            found[meant[0]] = block.rows
            columns = block.rows.shape[1] if len(block.rows) else columns
    ids = ground_truth.image_ids
    rows = [found.get(image_id, np.zeros(0)).reshape(-1, columns or len(RECTANGLE)) for image_id in ids]
    missing = tuple(image_id for image_id in ids if image_id not in found)
    return FddbPredictions(ids, tuple(own[:, :-1] for own in rows), tuple(own[:, -1] for own in rows), missing)


@dataclass(frozen=True, eq=False, kw_only=True)
class FddbScores(Scores):
    """``counts`` of the images."""

    counts: FddbCounts

    def resampled(self, samples: int, seed: int) -> Samples:
        rates = resampled_rates(self.counts, LIMITS, samples, seed)
        return {measure: dict(zip(SETTINGS, own, strict=True)) for measure, own in zip(MEASURES, rates, strict=True)}

    def write_curves(self, folder: Path) -> list[Path]:
        """``DiscROC.txt``, lines ``rate false_positives threshold``, and ``ContROC.txt`` without the threshold: lowest
        threshold first, six significant digits, as the official program."""
        roc = roc_from_counts(self.counts)
        discrete, continuous = roc.curves
        columns = {
            "DiscROC.txt": np.column_stack([*discrete, roc.thresholds]),
            "ContROC.txt": np.column_stack(continuous),
        }
        for name, values in columns.items():
            with replaced(folder / name) as temporary:
                np.savetxt(temporary, values, "%g")
        return [folder / name for name in columns]


class FddbBenchmark:
    """FDDB by the rules of its official program, all folds pooled; see :mod:`roc`.

    Args:
        ellipses: what happens to detections before they are scored, stored with the numbers.
            ``as_given``      nothing: what the benchmark defines.
            ``inscribed``     each rectangle becomes the ellipse within it.
            ``cross_fitted``  each rectangle becomes an ellipse by a linear fit to the annotations of the other folds
                              (:mod:`regions`), as S3FD does with a fit of its own. Resamples keep the fit.
        image_sizes, images_root: where the images' sizes are from, see
            :func:`~fanet_lightning.score.fddb.ground_truth.read_fddb_ground_truth`.
    """

    name = "fddb"

    def __init__(self, ellipses: Ellipses = "as_given", image_sizes: _Place = None, images_root: _Place = None) -> None:
        check_choice("benchmark.ellipses", ellipses, get_args(Ellipses))
        self.ellipses = ellipses
        self.image_sizes = None if image_sizes is None else Path(str(image_sizes))
        self.images_root = None if images_root is None else Path(str(images_root))

    def read_ground_truth(self, path: Path, images: Path | None = None) -> FddbGroundTruth:
        return read_fddb_ground_truth(path, images, self.image_sizes, self.images_root)

    def score(self, ground_truth: FddbGroundTruth, predictions: Path, *, strict: bool = False) -> FddbScores:
        """Score a folder of fold files, or one joined file, of rectangles or ellipses."""
        truth = ground_truth.in_official_order()
        found = read_fddb_predictions(predictions, truth)
        missing_warning(found.missing, len(found.image_ids), predictions if strict else None)
        return self.score_predictions(truth, found)

    def score_predictions(self, ground_truth: FddbGroundTruth, predictions: FddbPredictions) -> FddbScores:
        """The same for predictions in memory; ValueError: predictions of other images, or in another order.
        InputError: ellipses that are to become ellipses; too few matches for the fit."""
        if predictions.image_ids != ground_truth.image_ids:
            raise ValueError("the predictions are not of the ground truth's images in their order")
        as_scored, fits = self._as_scored(ground_truth, predictions)
        overlaps = image_ious(ground_truth, as_scored)
        images = [match_image(iou, scores) for iou, scores in zip(overlaps, as_scored.scores, strict=True)]
        counts = merge_images(images, ground_truth.faces)
        roc = roc_from_counts(counts)
        rates = {setting: roc.at(limit) for setting, limit in SETTINGS.items()}
        folds = np.unique(ground_truth.folds).tolist()
        given = "ellipses" if predictions.are_ellipses else "rectangles"
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
            warnings=self._warnings(predictions, len(folds)),
            counts=counts,
        )

    def write_predictions(self, folder: Path, ground_truth: FddbGroundTruth, detections: DetectionsByImage) -> None:
        """One file per fold, its images in the official order, best score first: coordinates with four decimals, scores
        with six. An image that ``detections`` lacks gets no block; the official program wants all images."""
        ordered = ground_truth.in_official_order()
        packed = FddbPredictions.from_detections(detections, ordered.image_ids)
        check_replaceable(folder, "predictions", lambda entry: _WRITTEN.fullmatch(entry.name) is not None)
        texts: dict[int, str] = {}
        for image, (image_id, fold) in enumerate(zip(ordered.image_ids, ordered.folds.tolist(), strict=True)):
            if image_id in detections:
                rows = np.column_stack([packed.rows[image], packed.scores[image]])
                rows = rows[np.argsort(-rows[:, -1], kind="stable")]
                body = "%.4f %.4f %.4f %.4f %.6f\n" * len(rows) % tuple(rows.ravel().tolist())
                texts[fold] = f"{texts.get(fold, '')}{image_id}\n{len(rows)}\n{body}"
        with replaced_folder(folder) as temporary:
            for fold, text in texts.items():
                (temporary / f"fold-{fold:02d}-out.txt").write_text(text, encoding="utf-8")

    def _as_scored(
        self, truth: FddbGroundTruth, predictions: FddbPredictions
    ) -> tuple[FddbPredictions, dict[int, regions.EllipseFit]]:
        if self.ellipses == "as_given":
            return predictions, {}
        if predictions.are_ellipses:
            raise InputError(f"the detections are ellipses already; leave benchmark.ellipses={self.ellipses} out")
        if self.ellipses == "inscribed":
            return replace(predictions, rows=tuple(map(regions.inscribed_ellipses, predictions.rows))), {}
        fits = fit_without_fold(truth, predictions)
        folds = zip(truth.folds.tolist(), predictions.rows, strict=True)
        return replace(predictions, rows=tuple(regions.apply_fit(fits[fold], own) for fold, own in folds)), fits

    def _warnings(self, predictions: FddbPredictions, folds: int) -> tuple[str, ...]:
        lines = list(missing_warning(predictions.missing, len(predictions.image_ids)))
        negative = sum(int(regions.has_negative_side(own).sum()) for own in predictions.rows)
        if negative:
            lines.append(
                f"{counted(negative, 'detection')} with a negative width or height: counted as false positives"
            )
        if folds < FOLDS:
            lines.append(f"{folds} of {FOLDS} folds: the numbers do not compare with published ones")
        if self.ellipses != "as_given":
            lines.append(f"ellipses={self.ellipses}: the rectangles were turned into ellipses; say so with the numbers")
        return tuple(lines)


def image_ious(ground_truth: FddbGroundTruth, predictions: FddbPredictions) -> Iterator[Floats]:
    """IoU of the faces and the detections of each image, (F, D)."""
    for faces, rows, size in zip(ground_truth.ellipses, predictions.rows, ground_truth.sizes_wh.tolist(), strict=True):
        yield regions.iou(faces, rows, *size)


def fit_without_fold(truth: FddbGroundTruth, predictions: FddbPredictions) -> dict[int, regions.EllipseFit]:
    """Fold → the fit on the pairs of all other folds that the discrete score counts when all detections are in."""
    pairs = []
    for iou, faces, rows in zip(image_ious(truth, predictions), truth.ellipses, predictions.rows, strict=True):
        matched = linear_sum_assignment(iou, maximize=True)
        own = np.column_stack([rows[matched[1]], faces[matched[0]]])
        pairs.append(own[(iou[matched] > DISCRETE_IOU) & (own[:, 2:4] > 0).all(axis=1)])
    whole, folds = np.concatenate([np.zeros((0, 9)), *pairs]), np.repeat(truth.folds, [len(own) for own in pairs])
    return {
        fold: regions.fit_ellipses(*np.split(whole[folds != fold], [4], axis=1))
        for fold in np.unique(truth.folds).tolist()
    }
