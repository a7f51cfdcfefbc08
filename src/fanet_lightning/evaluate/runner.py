"""Evaluating a detector: over all images with a journal, then scored and written."""

import base64
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track

from fanet_lightning.cli.device import device_name
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_names_free, check_writable, file_sha256, matching_names, replaced
from fanet_lightning.cli.provenance import (
    TRAINING_IMAGES_FILE,
    TrainedOn,
    TrainingImages,
    code_sha256,
    locked,
    made_by,
    scores_entry,
    trained_on,
    write_training_images,
)
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.detect.detector import FaceDetector, open_detector
from fanet_lightning.detect.journal import Journal
from fanet_lightning.detect.protocols import PassRecord, ScaleProtocol, build_protocol, full_settings
from fanet_lightning.detect.stream import StreamSettings, found_in, in_threads, ready_bytes
from fanet_lightning.models.pretrained import locate, name_of, weights_file
from fanet_lightning.ops.draw import annotate
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.bootstrap import SAMPLES, method
from fanet_lightning.score.inputs import DetectionsByImage
from fanet_lightning.score.pascal_face.average_precision import lower_top as lowered
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

VERSION = 1
PACKAGES = ("fanet-lightning", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "opencv-python-headless")
# What decides whether images that an earlier process has done may be kept.
DEPENDS_ON = ("checkpoint_sha256", "protocol_settings", "device", "precision", "detection", "network", "packages")
JOURNAL_FILE, SCALES_FILE = "unfinished.jsonl", "scales.json"
SUBMISSION_FILE, SUBMISSION_RECORD = "submission.zip", "submission.json"
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


class Inferred(NamedTuple):
    """One image: its faces in pixels of the original image, the passes over it, and the seconds that it took."""

    image_id: str
    detections: Detections
    passes: list[PassRecord]
    seconds: float


def images_sha256(records: Sequence[ImageRecord]) -> str:
    """Over the images' ids, sizes and times of change, in their order: another list or an exchanged image shows."""
    digest = hashlib.sha256()
    for record in records:
        try:
            state = record.path.stat()
            digest.update(f"{record.image_id}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        except OSError:  # reading it will say why
            digest.update(f"{record.image_id}\0absent\n".encode())
    return digest.hexdigest()


def to_plain(item: Inferred) -> dict[str, Any]:
    """A line of the journal."""
    found = dict(zip(("boxes_xyxy", "scores"), item.detections.numpy(), strict=True))
    return {
        "image_id": item.image_id,
        # The bytes themselves: what comes back is equal to the last bit.
        **{
            name: base64.b64encode(np.ascontiguousarray(value, "<f4").tobytes()).decode("ascii")
            for name, value in found.items()
        },
        "passes": [list(step) for step in item.passes],
        "seconds": item.seconds,
    }


def _from_plain(value: Mapping[str, Any]) -> Inferred:
    """What :func:`to_plain` was given, equal to the last bit."""
    boxes, scores = (np.frombuffer(base64.b64decode(value[name]), "<f4") for name in ("boxes_xyxy", "scores"))
    found = Detections(torch.from_numpy(boxes.reshape(-1, 4).copy()), torch.from_numpy(scores.copy()))
    return Inferred(value["image_id"], found, [PassRecord(*step) for step in value["passes"]], value["seconds"])


def done_before(journal: Journal) -> dict[str, Inferred]:
    """The images that an earlier process left in a journal with the same settings."""
    return {item.image_id: item for item in map(_from_plain, journal.lines if journal.resumed else ())}


def detect_records(
    detector: FaceDetector,
    records: Sequence[ImageRecord],
    scale: ScaleProtocol,
    workers: int,
    journal: Journal,
) -> dict[str, Inferred]:
    """Faces of every image by image id, in the records' order; those that the journal has are not looked at again.

    Args:
        detector: boxes come out in pixels of the original image, clipped to it.
        scale: a single test scale, or several.
        workers: threads that read and resize images; 0 reads between two images.
        journal: open; what is found is added to it image by image.

    Raises:
        UnreadableImage: a file is missing or broken.
        InputError: an image does not fit into memory, or the journal's disk is full.
    """
    found = done_before(journal)
    missing = [record for record in records if record.image_id not in found]
    settings = StreamSettings(scale, 0.0)
    start = time.perf_counter()
    read = in_threads(
        missing,
        lambda record: settings.prepare(record.path),
        threads=max(1, workers),
        most=max(1, 2 * workers),
        size=ready_bytes,
    )
    for record, reading in track(read, "detecting", len(missing), disable=not sys.stderr.isatty()):
        detections, passes = found_in(scale, detector.backend, reading.result())
        now = time.perf_counter()
        found[record.image_id] = item = Inferred(record.image_id, detections, passes, now - start)
        start = now
        journal.append(to_plain(item))
    return {record.image_id: found[record.image_id] for record in records}


def evaluate(
    checkpoint: Path | str,
    source: Any,
    protocol: Mapping[str, Any],
    out: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 1,
    detection: Mapping[str, Any] | None = None,
    resume: str | bool = "auto",
    lower_top: float = 0.0,
    labelled: bool = True,
    attributes: bool = False,
    errors: bool = False,
    worst: int = 200,
    detector: FaceDetector | None = None,
) -> dict[str, float]:
    """Run a checkpoint over the validation images of ``source`` and score it by the source's benchmark.

    Writes ``predictions`` in the benchmark's own format, ``scores.json``, its curves, ``detections.*``, and
    ``scales.json``: the passes over each image. Until it has ended, what was found is in ``unfinished.jsonl``.
    Where the model says what it was trained on, that list is written next to the predictions, and a warning says how
    many of the scored images are in it.

    Args:
        checkpoint: file that ``train`` has written, or a model: see :func:`fanet_lightning.models.pretrained.locate`;
            or an ``.onnx`` file of ``export``, which onnxruntime runs.
        source: what :func:`fanet_lightning.data.sources.build_source` made.
        protocol: ``name`` and what :func:`fanet_lightning.detect.protocols.build_protocol` reads.
        out: folder, made if need be.
        device: ``auto``, ``cpu``, ``cuda`` …
        precision: ``auto``, ``32-true`` or ``bf16-mixed``.
        workers: threads that read and resize images.
        detection: keyword arguments of :func:`fanet_lightning.ops.postprocess.detect`.
        resume: ``auto`` resumes where an evaluation with the same settings was cut off; False starts over.
        lower_top: fraction of its height by which a box's top edge is moved down before it is written, see
            :func:`fanet_lightning.score.pascal_face.average_precision.lower_top`.
        labelled: False for images without labels: instead of scores, ``submission.zip`` for WIDER's test server.
        attributes, errors, worst: with WIDER's ground truth also :func:`report.error_gallery.report_by_attribute` and
            :func:`report.error_gallery.report_errors`.
        detector: ``checkpoint`` as :func:`open_detector` gives it with these options, where it is open already.

    Returns:
        AP per setting, in [0, 1]; empty without labels and for a benchmark without AP.

    Raises:
        InputError: see :mod:`detect.detector` and :mod:`data`; ``out`` is in use, or holds results of the other kind.
    """
    stated, checkpoint = str(checkpoint), locate(checkpoint)
    _check_options(resume, lower_top, out, labelled)
    if (attributes or errors) and not (labelled and isinstance(source.benchmark(), WiderFaceBenchmark)):
        raise InputError(f"attributes=true and errors=true need WIDER FACE's labels, not data={source.name}")
    scale = build_protocol(protocol)
    detector = detector or open_detector(checkpoint, device, precision, detection)
    device = device_name(detector.runs_on)
    records = source.val()
    origin = {
        **made_by(sys.argv, checkpoint=stated, packages=PACKAGES),
        "checkpoint_sha256": file_sha256(weights_file(checkpoint)), "protocol_settings": full_settings(protocol),
        "data": source.name, "device": device, "precision": detector.precision,
        "detection": detector.detection, "lower_top": lower_top, "network": detector.network_options,
    }  # fmt: skip
    fingerprint = {**{key: origin[key] for key in DEPENDS_ON}, "code": code_sha256(), "images": images_sha256(records)}
    label = f"{source.name}, {len(records)} images, protocol {protocol['name']}"
    with locked(out, "run of evaluate"):
        settings = {"version": VERSION, **fingerprint}
        journal = Journal(out / JOURNAL_FILE, settings, resume=resume == "auto", checksums=True)
        print(_opening(journal, len(records), protocol["name"], device), flush=True)
        with journal:
            found = detect_records(detector, records, scale, workers, journal)
        # Images of an earlier process by the time that they took there.
        seconds = sum(item.seconds for item in found.values())
        origin["tiled_images"] = sum(any(step.tiles > 1 for step in item.passes) for item in found.values())
        origin["images_per_second"] = round(len(found) / max(seconds, 1e-9), 2)
        write_passes(out, found)
        boxes_xyxy: Any
        predictions: dict[str, tuple[Any, Any]] = {}
        for image_id, item in found.items():
            boxes_xyxy, scores = item.detections.numpy()
            predictions[image_id] = (lowered(boxes_xyxy, lower_top) if lower_top else boxes_xyxy, scores)
        ap: dict[str, float] = {}
        if labelled:
            scored = score_and_write(
                out, source, predictions, label, protocol["name"], origin, detector.training_images
            )
            ap = dict(scored.values.get("ap", {}))
            report_more(out, source, records, label, origin, attributes=attributes, errors=errors, worst=worst)
        else:
            write_unscored(out, source, predictions, protocol["name"], origin)
        draw_grid(out, checkpoint, records, found, label)
        journal.path.unlink()
    return ap


def _check_options(resume: object, lower_top: object, out: Path, labelled: bool) -> None:
    if resume != "auto" and resume is not False:
        raise InputError(f"resume={resume}: take auto (resume where it was cut off) or false (start over)")
    if isinstance(lower_top, bool) or not isinstance(lower_top, int | float) or not 0 <= lower_top < 1:
        raise InputError(f"lower_top={lower_top}: give a fraction of a box's height, at least 0 and below 1")
    check_writable(out)
    other = SUBMISSION_FILE if labelled else SCORES_FILE
    if (out / other).exists():
        raise InputError(f"out={out} holds {other} of an evaluation of another split; give another out")
    signs = (out / JOURNAL_FILE, out / SUBMISSION_RECORD)
    if not any(sign.is_file() for sign in signs) and not is_scores(out / SCORES_FILE):
        check_names_free(out, matching_names(out, _PATTERNS), "an evaluation")


def _opening(journal: Journal, images: int, protocol: str, device: str) -> str:
    lines = [f"detecting faces in {images} images, protocol {protocol}, {device}"]
    done = len(journal.lines) if journal.resumed else 0
    if (journal.path.parent / SCORES_FILE).exists() and not done:
        lines.append(f"{journal.path.parent} holds a finished evaluation, which this one replaces")
    if journal.refused:
        lines.append(f"starting over: {journal.path} is of other settings ({', '.join(journal.refused)})")
    elif done:
        lines.append(f"resuming: {done} images are done already; resume=false starts over")
    return "\n".join(lines)


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
        out, scores, intervals, protocol=protocol, made_by=origin, intervals_method=method(),
        further=scores_entry(found),
    )  # fmt: skip
    print_scores(scores, intervals, label)
    lacking = getattr(source, "lacking_ground_truth", lambda: None)
    if (reason := lacking()) is not None:
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
        f"no labels, so no scores: {archive} holds {len(packed.scores):,} boxes of {len(packed.image_ids):,} images "
        "in the layout that WIDER FACE's test server takes"
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
        drawn.append(annotate(image, boxes_xyxy * scale, scores, faces_xyxy=record.boxes_xyxy * scale))
        found_and_annotated = f"{len(scores)} found, {len(record.boxes_xyxy)} annotated"
        titles.append(f"{record.image_id.split('/')[-1]}\n{found_and_annotated}")
    caption = f"{label}: detections with confidence ≥ {GRID_THRESHOLD}, annotated faces in white"
    save_figure(detection_grid(drawn, titles, caption), out / "detections")
