"""COCO as a benchmark: any annotation file in its format, scored by the reference tool itself.

The numbers are those of ``COCOeval`` in pycocotools, or of the compiled one in faster-coco-eval where that is
installed, read from ``eval["precision"]``. Two things differ from a plain call. At least 1,000 detections per image are
looked at unless asked for less: the default of 100 cuts faces off, so that 400 perfect detections in an image score
0.257. And ``summarize`` is not called: with other caps it prints -1.

A third backend, ``numpy``, is the matching of :mod:`fanet_lightning.scoring.coco_matching`, made for resampling: the
same numbers, many times faster on images with many faces. It is taken where it is asked for.
"""

import contextlib
import importlib.util
import io
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError, first_line
from fanet_lightning.files import replaced
from fanet_lightning.scoring.benchmark import DetectionsByImage, Samples, Scores
from fanet_lightning.scoring.bootstrap import image_weights
from fanet_lightning.scoring.coco import (
    RECALLS,
    SETTINGS,
    average_precision,
    faces_per_setting,
    precision_at_recalls,
)
from fanet_lightning.scoring.coco_arrays import CocoDetections, CocoGroundTruth
from fanet_lightning.scoring.coco_files import read_ground_truth, read_results, write_results
from fanet_lightning.scoring.coco_matching import AREAS, IOU_THRESHOLDS, MAX_DETECTIONS, match
from fanet_lightning.scoring.curves import Curve

# Name → distribution that it comes with.
TOOLS = {"pycocotools": "pycocotools", "faster_coco_eval": "faster-coco-eval"}
BACKENDS = {**TOOLS, "numpy": "fanet-lightning"}
CURVES_FILE = "pr_curves.npz"

# The tool and our own matching follow the same rules; sums of floats may differ in their last bits.
_TOLERANCE = 1e-9


class CocoBenchmark:
    """Average precision of boxes by COCO's rules.

    Values, under ``ap``: ``all`` (mean over IoU 0.50 … 0.95), ``50``, ``75``, ``small``, ``medium``, ``large`` (by the
    annotation's area: below 32², to 96², above); in [0, 1], NaN where no face counts. Faces with ``iscrowd`` count
    neither way. With several categories each number is the mean over those that have a face.

    Args:
        category: name of the only category that is scored; None takes all of the annotation file.
        max_detections: rows looked at per image and category, the best ones, 1 or more.
        backend: ``pycocotools``, ``faster_coco_eval``, ``numpy``, or ``auto``: the second where it is installed, else
            the first.

    Raises:
        InputError: ``max_detections`` below 1, an unknown backend, or one that is not installed.
    """

    name = "coco"

    def __init__(
        self, category: str | None = None, max_detections: int = MAX_DETECTIONS, backend: str = "auto"
    ) -> None:
        if isinstance(max_detections, bool) or not isinstance(max_detections, int) or max_detections < 1:
            raise InputError(f"benchmark.max_detections={max_detections} is no number of detections; give 1 or more")
        if backend not in ("auto", *BACKENDS):
            raise InputError(f"benchmark.backend={backend} is not known; choose one of auto, {', '.join(BACKENDS)}")
        if backend == "auto":
            backend = "faster_coco_eval" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"
        if importlib.util.find_spec(backend) is None:
            raise InputError(
                f"benchmark.backend={backend} is not installed; pip install {BACKENDS[backend]}, or take auto"
            )
        self.category = category
        self.max_detections = max_detections
        self.backend = backend

    def read_ground_truth(self, path: Path, images: Path | None = None) -> CocoGroundTruth:
        """Read an annotation file (:func:`fanet_lightning.scoring.coco_files.read_ground_truth`).

        Raises:
            InputError: as there.
        """
        return read_ground_truth(path, images, self.category)

    def score(self, ground_truth: CocoGroundTruth, predictions: Path, *, strict: bool = False) -> Scores:
        """Score a results file, or a folder that holds ``predictions.json``.

        Raises:
            InputError: see :func:`fanet_lightning.scoring.coco_files.read_results`.
        """
        return self.score_detections(ground_truth, read_results(predictions, ground_truth, strict=strict))

    def score_detections(self, ground_truth: CocoGroundTruth, detections: CocoDetections) -> Scores:
        """Score arrays.

        Raises:
            ValueError: the two are not about the same number of images.
        """
        rows = cache(lambda: match(ground_truth, detections, self.max_detections))
        if self.backend == "numpy":
            precision = precision_at_recalls(rows())
        else:
            precision = reference_precision(ground_truth, detections, self.max_detections, self.backend)
        values = {setting: _mean(precision[part[0], :, :, part[1]]) for setting, part in SETTINGS.items()}
        warnings = tuple(filter(None, (detections.missing_line(), *detections.warnings)))
        return Scores(
            benchmark=self.name,
            title="COCO",
            image_ids=ground_truth.image_ids,
            images_of_benchmark=len(ground_truth.file_images),
            faces=faces_per_setting(ground_truth),
            values={"ap": values},
            resampled=_resampling(rows, values, len(ground_truth.image_ids)),
            write_curves=lambda folder: _write_curves(folder, precision, ground_truth.categories),
            rules={
                "category": self.category,
                "categories": list(ground_truth.categories),
                "max_detections": self.max_detections,
                "backend": f"{BACKENDS[self.backend]} {version(BACKENDS[self.backend])}",
            },
            warnings=warnings,
        )

    def write_predictions(self, folder: Path, ground_truth: CocoGroundTruth, detections: DetectionsByImage) -> None:
        """Write ``predictions.json`` (:func:`fanet_lightning.scoring.coco_files.write_results`).

        Raises:
            InputError: as there.
        """
        write_results(folder, ground_truth, detections)


def reference_precision(
    ground_truth: CocoGroundTruth, detections: CocoDetections, max_detections: int, backend: str
) -> npt.NDArray[np.float64]:
    """``eval["precision"]`` of the tool, (T, R, K, A): thresholds, recalls, categories, areas; -1 without a face.

    Images, faces and rows are numbered anew, in their order: the order decides between equal scores, and pycocotools
    takes a face that is number 0 for missed.

    Raises:
        ValueError: detections of another number of images, or an unknown backend.
    """
    images = len(ground_truth.image_ids)
    if len(detections.starts) != images + 1:
        raise ValueError(f"ground truth of {images} images, detections of {len(detections.starts) - 1}")
    if backend not in TOOLS:
        raise ValueError(f"backend '{backend}' is none of {', '.join(TOOLS)}")
    # Neither package has types, and only one of them need be installed.
    coco: Any
    evaluation: Any
    if backend == "pycocotools":
        coco = importlib.import_module("pycocotools.coco").COCO
        evaluation = importlib.import_module("pycocotools.cocoeval").COCOeval
    else:
        module = importlib.import_module("faster_coco_eval")
        coco, evaluation = module.COCO, module.COCOeval_faster
    shared = {
        "images": [{"id": i} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(ground_truth.categories, start=1)],
    }
    # pycocotools tells its progress by print.
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for entries in (_faces_as_entries(ground_truth), _rows_as_entries(detections)):
            side = coco()
            side.dataset = {**shared, "annotations": entries}
            side.createIndex()
            sides.append(side)
        tool = evaluation(*sides, iouType="bbox")
        tool.params.iouThrs = IOU_THRESHOLDS.copy()
        tool.params.recThrs = RECALLS.copy()
        tool.params.areaRng = [list(limits) for limits in AREAS.values()]
        tool.params.areaRngLbl = list(AREAS)
        tool.params.maxDets = [max_detections]
        tool.evaluate()
        tool.accumulate()
    precision: npt.NDArray[np.float64] = np.asarray(tool.eval["precision"], np.float64)[..., 0]
    return precision


def _faces_as_entries(ground_truth: CocoGroundTruth) -> list[dict[str, Any]]:
    image = np.repeat(np.arange(1, len(ground_truth.image_ids) + 1), np.diff(ground_truth.starts))
    columns = zip(
        image.tolist(),
        (ground_truth.category + 1).tolist(),
        ground_truth.boxes_xywh.tolist(),
        ground_truth.areas.tolist(),
        ground_truth.crowd.astype(int).tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": i, "category_id": k, "bbox": box, "area": area, "iscrowd": crowd}
        for number, (i, k, box, area, crowd) in enumerate(columns, start=1)
    ]


def _rows_as_entries(detections: CocoDetections) -> list[dict[str, Any]]:
    image = np.repeat(np.arange(1, len(detections.starts)), np.diff(detections.starts))
    columns = zip(
        image.tolist(),
        (detections.category + 1).tolist(),
        detections.boxes_xywh.tolist(),
        (detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3]).tolist(),
        detections.scores.tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": i, "category_id": k, "bbox": box, "area": area, "score": score, "iscrowd": 0}
        for number, (i, k, box, area, score) in enumerate(columns, start=1)
    ]


def _mean(precision: npt.NDArray[np.float64]) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if len(defined) else float("nan")


def _resampling(rows: Callable[[], Any], values: dict[str, float], images: int) -> Callable[[int, int], Samples]:
    def resampled(samples: int, seed: int) -> Samples:
        matched = rows()
        own = average_precision(matched)
        for setting, value in values.items():
            if not np.isclose(own[setting][0], value, rtol=0, atol=_TOLERANCE, equal_nan=True):
                raise RuntimeError(f"AP {setting} is {own[setting][0]!r} here and {value!r} in the reference tool")
        drawn = {setting: np.empty(samples) for setting in SETTINGS}
        for part, weights in image_weights(images, samples, seed):
            for setting, found in average_precision(matched, weights).items():
                drawn[setting][part] = found
        return {"ap": drawn}

    return resampled


def _write_curves(folder: Path, precision: npt.NDArray[np.float64], categories: tuple[str, ...]) -> list[Path]:
    """``precision`` (T, R, K, A), NaN where no face counts, and what its axes are."""
    path = folder / CURVES_FILE
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            precision=np.where(precision > -1, precision, np.nan),
            iou_thresholds=IOU_THRESHOLDS,
            recall=RECALLS,
            categories=np.array(categories, np.str_),
            areas=np.array(list(AREAS), np.str_),
        )
    return [path]


def read_coco_curves(path: Path) -> dict[str, Curve]:
    """Curves at IoU 0.50 and 0.75 over all sizes, the mean over categories, from what ``score`` has written.

    ``thresholds`` is empty (the tool reads precision at 101 recalls, not at scores) and ``faces`` 0: not in the file.

    Raises:
        InputError: the file is missing, damaged, or holds no such curves.
    """
    curves = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            precision, recall = arrays["precision"], arrays["recall"]
            area = arrays["areas"].tolist().index("all")
            for iou in (0.5, 0.75):
                place = int(np.abs(arrays["iou_thresholds"] - iou).argmin())
                own = precision[place, :, :, area]
                counted = ~np.isnan(own).all(axis=0)
                mean = own[:, counted].mean(axis=1) if counted.any() else np.zeros(len(recall))
                ap = float(mean.mean()) if counted.any() else float("nan")
                curves[f"IoU {iou:.2f}"] = Curve(mean, recall, np.zeros(0), ap, 0)
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged archive
        raise InputError(f"{path} cannot be read ({first_line(error)}); score the predictions again") from error
    return curves
