"""The benchmarks as ``torchmetrics.Metric`` classes: fed batch by batch, gathered over ranks, any detector.

Each holds detections, and where no ground truth was given the faces, of the images that it was shown, on the CPU. Only
``compute`` scores, with the functions of :mod:`fanet_lightning.scoring`, so its numbers are those of
``python -m fanet_lightning.score``. Gathering is that of torchmetrics: lists of tensors, joined before they travel, and
ranks may have different numbers of images or none.

An image that was shown twice counts once: samplers fill up the last batch of a rank with images that another has. The
first showing stays, in the order of ranks. Values do not depend on the number of ranks.

    metric = WiderFaceAP(ground_truth)
    for batch in loader:
        metric.update(batch.image_ids, boxes_xyxy, scores)   # one tensor per image
    metric.compute()                                         # {"easy": …, "medium": …, "hard": …}
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fanet_lightning.detection_metric import DetectionMetric, Faces, Found
from fanet_lightning.scoring.coco_arrays import CocoDetections, CocoGroundTruth
from fanet_lightning.scoring.coco_benchmark import CocoBenchmark
from fanet_lightning.scoring.coco_matching import MAX_DETECTIONS
from fanet_lightning.scoring.fddb_benchmark import Ellipses, FddbBenchmark
from fanet_lightning.scoring.fddb_files import FddbPredictions
from fanet_lightning.scoring.fddb_ground_truth import FddbGroundTruth
from fanet_lightning.scoring.ground_truth import GroundTruth
from fanet_lightning.scoring.pascal_face_benchmark import PascalFaceBenchmark
from fanet_lightning.scoring.pascal_face_sets import PascalFaceGroundTruth
from fanet_lightning.scoring.predictions import Predictions
from fanet_lightning.scoring.wider_face import score

__all__ = ["CocoAP", "FddbRoc", "PascalFaceAP", "WiderFaceAP"]


class WiderFaceAP(DetectionMetric[GroundTruth]):
    """Average precision by the official WIDER FACE evaluation (:mod:`fanet_lightning.scoring.wider_face`).

    Args:
        ground_truth: the official one (:func:`fanet_lightning.scoring.ground_truth.read_ground_truth`), with one value
            per setting: ``easy``, ``medium``, ``hard``. None: ``update`` gets the faces, and the one setting is
            ``all``.
        options: of ``torchmetrics.Metric``.

    Scores are normalised over all images, as the official tool does: a value over some of the images is not a part of
    the value over all.
    """

    def __init__(self, ground_truth: GroundTruth | None = None, **options: Any) -> None:
        super().__init__(ground_truth, **options)

    def _from_faces(self, faces: Faces) -> GroundTruth:
        boxes_xywh = [np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]) for boxes, _ in faces.values()]
        return GroundTruth(tuple(faces), boxes_xywh, {"all": [~ignored for _, ignored in faces.values()]})

    def _values(self, ground_truth: GroundTruth, found: Found) -> Mapping[str, float]:
        curves = score(ground_truth, Predictions.from_detections(found, ground_truth.image_ids))
        return {setting: curve.ap for setting, curve in curves.items()}


class CocoAP(DetectionMetric[CocoGroundTruth]):
    """COCO's average precision of one category (:mod:`fanet_lightning.scoring.coco_benchmark`).

    Values: ``all`` (IoU 0.50 … 0.95), ``50``, ``75``, ``small``, ``medium``, ``large``. Ignored faces are crowds.

    Args:
        ground_truth: of one category (:meth:`CocoBenchmark.read_ground_truth`). None: ``update`` gets the faces.
        max_detections: rows looked at per image.
        backend: ``auto``, ``pycocotools``, ``faster_coco_eval`` or ``numpy``, the fastest, with the same numbers.
        options: of ``torchmetrics.Metric``.

    Raises:
        ValueError: ground truth of several categories.
        InputError: see :class:`CocoBenchmark`.
    """

    def __init__(
        self,
        ground_truth: CocoGroundTruth | None = None,
        max_detections: int = MAX_DETECTIONS,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(ground_truth, **options)
        if ground_truth is not None and len(ground_truth.categories) != 1:
            raise ValueError(f"ground truth of {len(ground_truth.categories)} categories, need one")
        self.benchmark = CocoBenchmark(max_detections=max_detections, backend=backend)

    def _from_faces(self, faces: Faces) -> CocoGroundTruth:
        return CocoGroundTruth.from_faces(faces)

    def _values(self, ground_truth: CocoGroundTruth, found: Found) -> Mapping[str, float]:
        detections = CocoDetections.from_detections(found, ground_truth)
        return self.benchmark.score_detections(ground_truth, detections).values["ap"]


class PascalFaceAP(DetectionMetric[PascalFaceGroundTruth]):
    """Average precision by face-eval, for PASCAL face and AFW (:mod:`fanet_lightning.scoring.pascal_face`).

    The one value is ``all``. Faces with a side below 30 pixels count neither way, as ignored ones.

    Args:
        ground_truth: from :class:`PascalFaceBenchmark` or :class:`AfwBenchmark`. None: ``update`` gets the faces.
        alignment: fit position and size of all boxes to the labels first, as the protocol does; over the images of a
            batch or a sample the fit is another than over all.
        options: of ``torchmetrics.Metric``.
    """

    def __init__(
        self, ground_truth: PascalFaceGroundTruth | None = None, alignment: bool = True, **options: Any
    ) -> None:
        super().__init__(ground_truth, **options)
        self.benchmark = PascalFaceBenchmark(alignment=alignment)

    def _from_faces(self, faces: Faces) -> PascalFaceGroundTruth:
        boxes, ignored = zip(*faces.values(), strict=True) if faces else ((), ())
        return PascalFaceGroundTruth(tuple(faces), boxes, ignored, tuple(faces))

    def _values(self, ground_truth: PascalFaceGroundTruth, found: Found) -> Mapping[str, float]:
        return self.benchmark.score_detections(ground_truth, found).values["ap"]


class FddbRoc(DetectionMetric[FddbGroundTruth]):
    """FDDB's true-positive rates (:mod:`fanet_lightning.scoring.fddb_benchmark`), rectangles as detections.

    Values: ``discrete_1000``, ``discrete_2000``, ``discrete_max`` and ``continuous_…``, the rate at so many false
    positives.

    Args:
        ground_truth: ellipses and image sizes, from :meth:`FddbBenchmark.read_ground_truth`.
        ellipses: what becomes of the rectangles, see :class:`FddbBenchmark`.
        options: of ``torchmetrics.Metric``.
    """

    def __init__(self, ground_truth: FddbGroundTruth, ellipses: Ellipses = "as_given", **options: Any) -> None:
        super().__init__(ground_truth, **options)
        self.benchmark = FddbBenchmark(ellipses=ellipses)

    def _from_faces(self, faces: Faces) -> FddbGroundTruth:
        raise ValueError("FDDB needs a ground truth: its faces are ellipses")

    def _values(self, ground_truth: FddbGroundTruth, found: Found) -> Mapping[str, float]:
        predictions = FddbPredictions.from_detections(found, ground_truth.image_ids)
        scores = self.benchmark.score_predictions(ground_truth, predictions)
        return {f"{measure}_{key}": value for measure, own in scores.values.items() for key, value in own.items()}
