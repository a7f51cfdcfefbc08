"""WIDER FACE as a benchmark: ground truth and prediction files → AP per setting, curves, counts per image."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import replaced
from fanet_lightning.score.bootstrap import (
    PER_IMAGE_FILE,
    ImageCounts,
    count_images,
    curve_from_counts,
    resampled_ap,
    write_counts,
)
from fanet_lightning.score.curves import Curve, average_precision
from fanet_lightning.score.inputs import DetectionsByImage, missing_warning, read_selection, reading
from fanet_lightning.score.results import Samples, Scores
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, read_ground_truth
from fanet_lightning.score.wider_face.predictions import read_predictions, write_predictions

CURVES_FILE = "pr_curves.npz"
_ARRAYS = ("precision", "recall", "thresholds")


@dataclass(frozen=True, eq=False, kw_only=True)
class WiderFaceScores(Scores):
    """``counts`` of the images per setting."""

    counts: Mapping[str, ImageCounts]

    def resampled(self, samples: int, seed: int) -> Samples:
        return {"ap": resampled_ap(self.counts, samples, seed)}

    def write_curves(self, folder: Path) -> list[Path]:
        curves, counts = folder / CURVES_FILE, folder / PER_IMAGE_FILE
        write_curves(curves, {setting: curve_from_counts(own) for setting, own in self.counts.items()})
        write_counts(counts, self.counts)
        return [curves, counts]


@dataclass(frozen=True)
class WiderFaceBenchmark:
    """The official evaluation (:mod:`average_precision`); any data with ground truth of that form can be scored by it.

    ``name`` and ``title`` say which data it is, on the command line and for people.
    """

    name: str = "wider_face"
    title: str = "WIDER FACE"

    def read_ground_truth(self, path: Path, images: Path | None = None) -> GroundTruth:
        """The folder of the official ``.mat`` files, all images or those of a list. They come sorted, as ``evaluate``
        has them: resamples are drawn by place, and the order of a list or file must not move an interval."""
        whole = read_ground_truth(path)
        return whole.select(sorted(whole.image_ids if images is None else read_selection(images, whole.image_ids)))

    def score(self, ground_truth: GroundTruth, predictions: Path, *, strict: bool = False) -> Scores:
        """AP per setting of a folder or ``.zip`` in the official text layout.

        On a selection of images everything, the normalisation of the scores too, is computed over these alone.
        """
        read = read_predictions(predictions, ground_truth.image_ids, known_ids=ground_truth.known_ids)
        warnings = missing_warning(read.missing, len(read.image_ids), predictions if strict else None)
        counts = count_images(ground_truth, read)
        return scores_from_counts(self.name, self.title, counts, len(ground_truth.known_ids), warnings)

    def write_predictions(self, folder: Path, ground_truth: GroundTruth, detections: DetectionsByImage) -> None:
        write_predictions(folder, detections)


def scores_from_counts(
    name: str, title: str, counts: Mapping[str, ImageCounts], images_of_benchmark: int, warnings: tuple[str, ...] = ()
) -> WiderFaceScores:
    """What :func:`fanet_lightning.score.bootstrap.count_images` counted, as a benchmark's scores."""
    curves = {setting: curve_from_counts(own) for setting, own in counts.items()}
    return WiderFaceScores(
        benchmark=name,
        title=title,
        image_ids=next(iter(counts.values())).image_ids,
        images_of_benchmark=images_of_benchmark,
        faces={setting: curve.faces for setting, curve in curves.items()},
        values={"ap": {setting: curve.ap for setting, curve in curves.items()}},
        warnings=warnings,
        counts=counts,
    )


def write_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Float64 arrays ``<setting>_precision``, ``<setting>_recall``, ``<setting>_thresholds``; appears by rename."""
    arrays: dict[str, Any] = {
        f"{setting}_{name}": getattr(curve, name) for setting, curve in curves.items() for name in _ARRAYS
    }
    with replaced(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_curves(path: Path) -> dict[str, Curve]:
    """Curves per setting as :func:`write_curves` left them; the number of faces, which is not in the file, is 0.
    InputError: the file is missing, damaged, or holds no curves."""
    curves = {}
    with reading(path, "score the predictions again"), np.load(path, allow_pickle=False) as arrays:
        for setting in [name.removesuffix("_recall") for name in arrays.files if name.endswith("_recall")]:
            precision, recall, thresholds = (np.asarray(arrays[f"{setting}_{name}"], np.float64) for name in _ARRAYS)
            curves[setting] = Curve(precision, recall, thresholds, average_precision(precision, recall), 0)
    if not curves:
        raise InputError(f"{path} holds no curves; give the {CURVES_FILE} of an evaluation")
    return curves
