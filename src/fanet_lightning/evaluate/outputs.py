"""What an evaluation leaves behind: predictions, scores or a submission, passes over images, a grid of detections."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_names_free, matching_names, replaced
from fanet_lightning.cli.provenance import (
    TRAINING_IMAGES_FILE,
    TrainedOn,
    TrainingImages,
    scores_entry,
    trained_on,
    write_training_images,
)
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.detect.multiscale import PassRecord
from fanet_lightning.models.pretrained import name_of
from fanet_lightning.ops.draw import annotate
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.bootstrap import SAMPLES, method
from fanet_lightning.score.inputs import DetectionsByImage
from fanet_lightning.score.pascal_face.average_precision import lower_top
from fanet_lightning.score.results import (
    SCORE_PATTERNS,
    SCORES_FILE,
    Scores,
    intervals_of,
    is_scores,
    print_scores,
    write_scores,
)
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.predictions import write_submission

JOURNAL_FILE = "unfinished.jsonl"


class Inferred(NamedTuple):
    """One image: its faces in pixels of the original image, the passes over it, and the seconds that it took."""

    image_id: str
    detections: Detections
    passes: list[PassRecord]
    seconds: float


SCALES_FILE, SUBMISSION_FILE, SUBMISSION_RECORD = "scales.json", "submission.zip", "submission.json"
# All that an evaluation may write, of any benchmark, with its journal.
_PATTERNS = (
    "predictions", SCALES_FILE, TRAINING_IMAGES_FILE, "submission.*", "detections.pdf", "detections.png",
    *SCORE_PATTERNS,
)  # fmt: skip
GRID_IMAGES = 12
# Boxes below it are left out of the grid, not out of the predictions: they would cover the image.
GRID_THRESHOLD = 0.3
# Pixels of the longer side. More does not show in a grid, and twelve of a hundred megapixels would fill the memory.
GRID_SIDE = 2048


def check_out(out: Path) -> None:
    """Refuse, before any work, a folder in which an evaluation would write over what is not of an evaluation.

    Raises:
        InputError: names the first file in the way.
    """

    if (out / JOURNAL_FILE).is_file() or (out / SUBMISSION_RECORD).is_file() or is_scores(out / SCORES_FILE):
        return
    check_names_free(out, matching_names(out, _PATTERNS), "an evaluation")


def boxes_to_write(found: Detections, lower: float) -> tuple[Any, Any]:
    """Boxes (D, 4) and scores (D,) as arrays; ``lower``: see
    :func:`fanet_lightning.score.pascal_face.average_precision.lower_top`."""
    boxes_xyxy: Any
    boxes_xyxy, scores = found.numpy()
    if lower:
        boxes_xyxy = lower_top(boxes_xyxy, lower)
    return boxes_xyxy, scores


def score_and_write(
    out: Path,
    source: Any,
    detections: DetectionsByImage,
    label: str,
    protocol: str,
    origin: Mapping[str, Any],
    training_images: Sequence[TrainingImages] | None = None,
) -> Scores:
    """Write the predictions, score what was written, write and print the scores.

    So ``score`` on the same files gives the same number to the last digit. It is told what the model was trained on by
    a list next to the predictions.
    """
    benchmark, ground_truth = source.benchmark(), source.ground_truth()
    benchmark.write_predictions(out / "predictions", ground_truth, detections)
    scores: Scores = benchmark.score(ground_truth, out / "predictions")
    intervals = intervals_of(scores, scores.resampled(SAMPLES, 0))
    found = _compare_with_training(out, source, scores.image_ids, training_images)
    write_scores(
        out,
        scores,
        intervals,
        protocol=protocol,
        made_by=origin,
        intervals_method=method(),
        further=scores_entry(found),
    )
    print_scores(scores, intervals, label)
    lacking: Callable[[], str | None] | None = getattr(source, "lacking_ground_truth", None)
    if lacking is not None and (reason := lacking()) is not None:
        print(f"note: {reason}", file=sys.stderr)
    return scores


def _compare_with_training(
    out: Path, source: Any, image_ids: Sequence[str], training_images: Sequence[TrainingImages] | None
) -> TrainedOn | None:
    """Say how many of the images were trained on, and put the list next to the predictions; None: it is not known."""
    path = out / TRAINING_IMAGES_FILE
    if training_images is None:
        path.unlink(missing_ok=True)  # an earlier evaluation's, of another model
        print("the checkpoint does not name its training images, so nothing tells whether it is scored on them",
              file=sys.stderr)  # fmt: skip
        return None
    scored = (source.name, getattr(source, "val_split", None))
    write_training_images(path, training_images, scored)
    found = trained_on(training_images, image_ids, *scored)
    if found.warning:
        print(f"warning: {found.warning}", file=sys.stderr)
    return found


def check_wider(source: Any, labelled: bool) -> None:
    """Refuse what is only known of WIDER FACE, before any work.

    Raises:
        InputError: another benchmark, or no labels.
    """
    if not labelled or not isinstance(source.benchmark(), WiderFaceBenchmark):
        reason = "images without labels" if not labelled else f"data={source.name}"
        raise InputError(f"attributes=true and errors=true need WIDER FACE's labels, not {reason}; leave them out")


def report_more(
    out: Path,
    source: Any,
    records: Sequence[ImageRecord],
    label: str,
    origin: Mapping[str, Any],
    *,
    attributes: bool,
    errors: bool,
    worst: int,
) -> None:
    """What was asked for beyond the scores; see :mod:`fanet_lightning.report.error_gallery`."""
    from fanet_lightning.report.error_gallery import report_by_attribute, report_errors

    truth, predictions = source.ground_truth(), out / "predictions"
    if attributes:
        report_by_attribute(truth, predictions, out, title=label, made_by=origin)
    if errors:
        # The folder of the events: the image's path without its id.
        images = records[0].path.parents[records[0].image_id.count("/")]
        missing = report_errors(truth, predictions, out, title=label, pictures=images, worst=worst)
        if missing:
            print(f"warning: {missing}", file=sys.stderr)


def write_unscored(
    out: Path, source: Any, detections: DetectionsByImage, protocol: str, origin: Mapping[str, Any]
) -> None:
    """Predictions without labels: the archive for the test server, and how it came about."""
    source.benchmark().write_predictions(out / "predictions", source.ground_truth(), detections)
    archive = out / SUBMISSION_FILE
    packed = write_submission(archive, out / "predictions", list(detections))
    record = {"protocol": protocol, "images": len(packed.image_ids), "boxes": len(packed.scores), "made_by": origin}
    with replaced(out / SUBMISSION_RECORD) as path:
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"no labels, so no scores: {archive} holds {len(packed.scores):,} boxes of {len(packed.image_ids):,} images as "
        "event/name.txt, the layout that WIDER FACE's test server takes; it was read back and is whole"
    )


def write_passes(out: Path, found: Mapping[str, Inferred]) -> None:
    """``scales.json``, a line per image: the passes that the network made over it."""
    lines = [
        f"{json.dumps(key)}: {json.dumps([step._asdict() for step in item.passes])}" for key, item in found.items()
    ]
    with replaced(out / SCALES_FILE) as path:
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def draw_grid(
    out: Path, checkpoint: Path, records: Sequence[ImageRecord], found: Mapping[str, Inferred], label: str
) -> None:
    """Draw the curves, where there are some, and a grid of detections."""
    # matplotlib, which only the end of an evaluation needs
    from fanet_lightning.report.figures import detection_grid, save_figure
    from fanet_lightning.report.plot import CURVE_FILES, plot_scores

    if any((out / name).is_file() for name in CURVE_FILES):
        plot_scores([out], out, names=[name_of(checkpoint)])
    # Evenly spread over the list, so that the grid is the same for every run on the same images.
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, min(GRID_IMAGES, len(records))).round().astype(int)]
    small = TestScale("original", max_long=GRID_SIDE)
    drawn, titles = [], []
    for record in chosen:
        boxes_xyxy, scores = found[record.image_id].detections.above(GRID_THRESHOLD).numpy()
        image, scale_xy = small(read_image_rgb(record.path))
        scale = np.tile(scale_xy, 2)
        drawn.append(annotate(image, boxes_xyxy * scale, scores, faces_xyxy=record.boxes_xyxy * scale, bar=False))
        titles.append(
            f"{record.image_id.split('/')[-1][-40:]}: {len(scores)} found, {len(record.boxes_xyxy)} annotated"
        )
    caption = f"{label}: detections with confidence ≥ {GRID_THRESHOLD}, annotated faces in white"
    save_figure(detection_grid(drawn, titles, caption), out / "detections")
