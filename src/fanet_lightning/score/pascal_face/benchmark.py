"""PASCAL face and AFW as benchmarks: AP by the rules of face-eval (:mod:`average_precision`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder
from fanet_lightning.score.inputs import DetectionsByImage, check_choice, missing_warning, number_rows, reading
from fanet_lightning.score.pascal_face.average_precision import (
    MIN_DETECTION_PX,
    PASSES,
    PascalFaceResult,
    evaluate_detections,
    resampled_ap,
)
from fanet_lightning.score.pascal_face.ground_truth import (
    AFW,
    MIN_FACE_PX,
    OVERLAP,
    PASCAL_FACE,
    PascalFaceDetections,
    PascalFaceGroundTruth,
    Release,
    image_key,
    read_annotations,
)
from fanet_lightning.score.results import Samples, Scores
from fanet_lightning.score.wider_face.benchmark import CURVES_FILE, write_curves

DETECTIONS_FILE = "detections.txt"


def read_detections(source: Path, ground_truth: PascalFaceGroundTruth) -> PascalFaceDetections:
    """Read a ``.txt`` of lines ``name score x1 y1 x2 y2``, or a folder that holds one.

    A file without rows is a run without detections. Rows of images that the ground truth knows but has not selected
    are skipped. Face-eval counts detections of unknown images as false positives; they are an error here, since all
    they have told so far is that the wrong files were given.
    """
    files = [path for path in source.glob("*.txt") if path.name[0] != "."] if source.is_dir() else [source]
    if len(files) != 1:
        raise InputError(f"predictions: {source} is not one file of detections; give a .txt, or its folder")
    with reading(files[0], "give a .txt in UTF-8"):
        text = files[0].read_text(encoding="utf-8-sig")
    lines = [(number, line.split()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]

    def place(row: int) -> str:
        return f"{files[0]}:{lines[row][0]}"

    values = number_rows(
        [" ".join(words[1:]) or "-" for _, words in lines],
        [5],
        place,
        "after the name score x1 y1 x2 y2, x2 not below x1 nor y2 below y1",
        lambda values: (values[:, 3:] < values[:, 1:3]).any(axis=1),
    )
    places = dict.fromkeys(ground_truth.known_ids, -1) | {own: i for i, own in enumerate(ground_truth.image_ids)}
    keys = [image_key(words[0]) for _, words in lines]
    unknown = [i for i, key in enumerate(keys) if key not in places]
    if unknown:
        raise InputError(
            f"{place(unknown[0])}: image '{keys[unknown[0]][:80]}' is not in the ground truth, nor are the images of "
            f"{len(unknown) - 1} other rows; remove them or give the ground truth they belong to"
        )
    index = np.array([places[key] for key in keys], np.int64)
    values = values[index >= 0]
    return PascalFaceDetections(ground_truth.image_ids, index[index >= 0], values[:, 1:], values[:, 0])


CURVE_FILE = "pr_curve.txt"


@dataclass(frozen=True, eq=False, kw_only=True)
class PascalFaceScores(Scores):
    """``result``: what became of each detection."""

    result: PascalFaceResult

    def resampled(self, samples: int, seed: int) -> Samples:
        return {"ap": {"all": resampled_ap(self.result, samples, seed)}}

    def write_curves(self, folder: Path) -> list[Path]:
        """``pr_curve.txt``, a line of recall, precision and score per detection, best score first; the same as setting
        ``all`` in ``pr_curves.npz``."""
        curve = self.result.curve
        with replaced(folder / CURVE_FILE) as path:
            np.savetxt(path, np.column_stack([curve.recall, curve.precision, curve.thresholds]), "%.6f %.6f %.9g")
        write_curves(folder / CURVES_FILE, {"all": curve})
        return [folder / CURVE_FILE, folder / CURVES_FILE]


class PascalFaceBenchmark:
    """PASCAL face: 851 images, 1,341 faces that count by the corrected labels and 1,331 by the original ones.

    Args:
        labels: "corrected" (Mathias et al.; what papers since 2014 report on) or "original".
        alignment: fit position and size of all boxes to the labels, as the protocol does. Without it the number does
            not compare with published ones.
    """

    name: str = "pascal_face"
    title: ClassVar[str] = "PASCAL face"
    releases: ClassVar[Mapping[str, Release]] = PASCAL_FACE

    def __init__(self, labels: str = "corrected", alignment: bool = True) -> None:
        check_choice("benchmark.labels", labels, self.releases)
        self.release = self.releases[labels]
        self.alignment = alignment

    def read_ground_truth(self, path: Path, images: Path | None = None) -> PascalFaceGroundTruth:
        """The official file under any name, or the folder that holds it under its own; images come sorted."""
        return read_annotations(path, self.release, images)

    def score(
        self, ground_truth: PascalFaceGroundTruth, predictions: Path, *, strict: bool = False
    ) -> PascalFaceScores:
        """Score a file of detections, or the folder that holds one."""
        detections = read_detections(predictions, ground_truth)
        warnings = missing_warning(detections.missing, len(ground_truth.image_ids), predictions if strict else None)
        return self._scores(ground_truth, detections, warnings)

    def score_detections(self, ground_truth: PascalFaceGroundTruth, detections: DetectionsByImage) -> PascalFaceScores:
        """Score arrays, ``image_id → (boxes_xyxy (D, 4), scores (D,))``. An image that is not there has no detection.
        ValueError: as :func:`fanet_lightning.score.inputs.packed_detections`."""
        return self._scores(ground_truth, PascalFaceDetections.from_detections(detections, ground_truth.image_ids))

    def write_predictions(
        self, folder: Path, ground_truth: PascalFaceGroundTruth, detections: DetectionsByImage
    ) -> None:
        """Write ``detections.txt``, best score first; images without a detection leave no trace in it.

        Scores get nine digits, which float32 survives, boxes three decimals. Among equal scores the order of the images
        decides, then that of the rows; so reading the file gives the same order again.
        """
        check_replaceable(folder, "predictions", lambda entry: entry.name == DETECTIONS_FILE)
        packed = PascalFaceDetections.from_detections(detections, ground_truth.image_ids)
        order = np.argsort(-packed.scores, kind="stable")
        names = [packed.image_ids[i] for i in packed.image_index[order]]
        rows = np.column_stack([packed.scores, packed.boxes_xyxy])[order].tolist()
        form = "{} {:.9g} {:.3f} {:.3f} {:.3f} {:.3f}\n"
        lines = [form.format(name, *row) for name, row in zip(names, rows, strict=True)]
        with replaced_folder(folder) as temporary:
            (temporary / DETECTIONS_FILE).write_text("".join(lines), encoding="utf-8")

    def _scores(
        self, ground_truth: PascalFaceGroundTruth, detections: PascalFaceDetections, warnings: tuple[str, ...] = ()
    ) -> PascalFaceScores:
        result = evaluate_detections(ground_truth, detections, alignment=self.alignment)
        deviations = [f"{ground_truth.labels} labels"] if ground_truth.labels != "corrected" else []
        deviations += [] if self.alignment else ["not aligned"]
        return PascalFaceScores(
            benchmark=self.name,
            title=f"{self.title} ({', '.join(deviations)})" if deviations else self.title,
            image_ids=ground_truth.image_ids,
            images_of_benchmark=len(ground_truth.known_ids),
            faces={"all": result.curve.faces},
            values={"ap": {"all": result.curve.ap}},
            rules={
                "labels": ground_truth.labels,
                "alignment": self.alignment,
                "passes": PASSES if self.alignment else 1,
                "transform": result.alignment._asdict() if result.alignment else None,
                "min_face_px": MIN_FACE_PX,
                "min_detection_px": MIN_DETECTION_PX,
                "overlap": OVERLAP,
            },
            warnings=(*ground_truth.warnings, *warnings),
            result=result,
        )


class AfwBenchmark(PascalFaceBenchmark):
    """AFW by the same rules: 205 images, 473 faces that count by the corrected labels, the only ones that are read."""

    name = "afw"
    title = "AFW"
    releases = AFW
