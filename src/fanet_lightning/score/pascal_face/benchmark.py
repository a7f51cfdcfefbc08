"""PASCAL face and AFW as benchmarks: AP by the rules of face-eval (:mod:`average_precision`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import replaced
from fanet_lightning.score.inputs import DetectionsByImage, check_complete, layout_warning, missing_line
from fanet_lightning.score.pascal_face.average_precision import (
    MIN_DETECTION_PX,
    PASSES,
    PascalFaceResult,
    evaluate_detections,
    resampled_ap,
)
from fanet_lightning.score.pascal_face.files import read_detections, write_detections
from fanet_lightning.score.pascal_face.ground_truth import (
    AFW,
    MIN_FACE_PX,
    OVERLAP,
    PASCAL_FACE,
    PascalFaceDetections,
    PascalFaceGroundTruth,
    Release,
    read_annotations,
)
from fanet_lightning.score.results import Samples, Scores

CURVE_FILE = "pr_curve.txt"
CURVES_FILE = "pr_curves.npz"


@dataclass(frozen=True, eq=False, kw_only=True)
class PascalFaceScores(Scores):
    """``result``: what became of each detection."""

    result: PascalFaceResult

    def resampled(self, samples: int, seed: int) -> Samples:
        return {"ap": {"all": resampled_ap(self.result, samples, seed)}}

    def write_curves(self, folder: Path) -> list[Path]:
        """Write the curve, one point per detection, best score first.

        ``pr_curve.txt``  recall, precision and score a line. Face-eval draws its curves and writes none, so there is no
                          official format.
        ``pr_curves.npz`` ``all_recall``, ``all_precision``, ``all_thresholds``, (D,) float64.
        """
        points = np.column_stack([self.result.recall, self.result.precision, self.result.scores])
        with replaced(folder / CURVE_FILE) as path:
            path.write_text("%.6f %.6f %.9g\n" * len(points) % tuple(points.ravel().tolist()), encoding="utf-8")
        with replaced(folder / CURVES_FILE) as path:
            np.savez_compressed(path, all_recall=points[:, 0], all_precision=points[:, 1], all_thresholds=points[:, 2])
        return [folder / CURVE_FILE, folder / CURVES_FILE]


class PascalFaceBenchmark:
    """PASCAL face: 851 images, 1,341 faces that count by the corrected labels and 1,331 by the original ones.

    Args:
        labels: "corrected" (Mathias et al.; what papers since 2014 report on) or "original".
        alignment: fit position and size of all boxes to the labels, as the protocol does. Without it the number does
            not compare with published ones.

    Raises:
        InputError: other labels.
    """

    name: str = "pascal_face"
    title: ClassVar[str] = "PASCAL face"
    releases: ClassVar[Mapping[str, Release]] = PASCAL_FACE

    def __init__(self, labels: str = "corrected", alignment: bool = True) -> None:
        if labels not in list(self.releases):
            raise InputError(f"benchmark.labels={labels} is not known; choose {' or '.join(self.releases)}")
        self.release = self.releases[labels]
        self.alignment = alignment

    def read_ground_truth(self, path: Path, images: Path | None = None) -> PascalFaceGroundTruth:
        """The official file under any name, or the folder that holds it under its own; images come sorted.

        Raises:
            InputError: see :func:`fanet_lightning.score.pascal_face.ground_truth.read_annotations`.
        """
        return read_annotations(path, self.release, images)

    def score(
        self, ground_truth: PascalFaceGroundTruth, predictions: Path, *, strict: bool = False
    ) -> PascalFaceScores:
        """Score a file of detections, or the folder that holds one.

        Raises:
            InputError: see :func:`fanet_lightning.score.pascal_face.files.read_detections`; with ``strict`` an image
                without a detection.
        """
        detections = read_detections(predictions, ground_truth)
        missing = detections.missing
        if strict:
            check_complete(predictions, missing, len(ground_truth.image_ids))
        order = np.argsort(detections.image_index, kind="stable")
        starts = np.searchsorted(detections.image_index[order], np.arange(1, len(detections.image_ids)))
        boxes_xyxy, values = (np.split(own[order], starts) for own in (detections.boxes_xyxy, detections.scores))
        doubt = layout_warning(boxes_xyxy, values, ground_truth.boxes_xyxy, "x1 y1 x2 y2")
        line = missing_line(missing, len(ground_truth.image_ids))
        result = evaluate_detections(ground_truth, detections, alignment=self.alignment)
        return self._scores(ground_truth, result, (*ground_truth.warnings, *filter(None, (line, doubt))))

    def score_detections(self, ground_truth: PascalFaceGroundTruth, detections: DetectionsByImage) -> PascalFaceScores:
        """Score arrays, ``image_id → (boxes_xyxy (D, 4), scores (D,))``. An image that is not there has no detection.

        Raises:
            ValueError: detections that are not finite, have a negative side, or are about other images.
        """
        packed = PascalFaceDetections.from_detections(detections, ground_truth.image_ids)
        result = evaluate_detections(ground_truth, packed, alignment=self.alignment)
        return self._scores(ground_truth, result, ground_truth.warnings)

    def write_predictions(
        self, folder: Path, ground_truth: PascalFaceGroundTruth, detections: DetectionsByImage
    ) -> None:
        """Write ``detections.txt``; images without a detection leave no trace in it, such is the format.

        Raises:
            InputError: ``folder`` holds something else, or cannot be written.
            ValueError: detections that are not finite, have a negative side, or are about other images.
        """
        write_detections(folder, detections, ground_truth.image_ids)

    def _scores(
        self, ground_truth: PascalFaceGroundTruth, result: PascalFaceResult, warnings: tuple[str, ...]
    ) -> PascalFaceScores:
        deviations = [f"{ground_truth.labels} labels"] if ground_truth.labels != "corrected" else []
        deviations += [] if self.alignment else ["not aligned"]
        return PascalFaceScores(
            benchmark=self.name,
            title=f"{self.title} ({', '.join(deviations)})" if deviations else self.title,
            image_ids=ground_truth.image_ids,
            images_of_benchmark=len(ground_truth.known_ids.union(ground_truth.image_ids)),
            faces={"all": result.faces},
            values={"ap": {"all": result.ap}},
            rules={
                "labels": ground_truth.labels,
                "alignment": self.alignment,
                "passes": PASSES if self.alignment else 1,
                "transform": result.alignment._asdict() if result.alignment else None,
                "min_face_px": MIN_FACE_PX,
                "min_detection_px": MIN_DETECTION_PX,
                "overlap": OVERLAP,
            },
            warnings=warnings,
            result=result,
        )


class AfwBenchmark(PascalFaceBenchmark):
    """AFW: 205 images, 473 faces that count by the corrected labels and 468 by the original ones. The same rules."""

    name = "afw"
    title = "AFW"
    releases = AFW
