"""Evaluating a detector: over all images with a journal, then scored and written."""

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import get_object
from rich.progress import track

from fanet_lightning.cli.device import device_name
from fanet_lightning.cli.errors import InputError, check_values, counted
from fanet_lightning.cli.files import check_names_free, check_writable, file_sha256, replaced
from fanet_lightning.cli.provenance import (
    TRAINING_IMAGES_FILE,
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
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.journal import Journal
from fanet_lightning.detect.protocols import PassRecord, ScaleProtocol, build_protocol, full_settings
from fanet_lightning.detect.stream import StreamSettings, found_in, in_threads, ready_bytes
from fanet_lightning.models.pretrained import is_export, name_of, weights_file
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
    write_json,
    write_scores,
)
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.predictions import write_submission

PACKAGES = ("fanet-lightning", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "opencv-python-headless",
            "pillow", "timm", "onnxruntime", "openvino")  # fmt: skip
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

    detections: Detections
    passes: list[PassRecord]
    seconds: float


def images_sha256(records: Sequence[ImageRecord]) -> str:
    """Over the images' ids, sizes and times of change, in their order: another list or an exchanged image shows."""
    digest = hashlib.sha256()
    for record in records:
        # What is missing, reading it will say.
        state = record.path.stat() if record.path.exists() else None
        digest.update(f"{record.image_id}\0{state and (state.st_size, state.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _code(*nodes: Mapping[str, Any] | None) -> str:
    """Over the package's modules and those of a network's or protocol's ``_target_`` outside the package."""
    targets = [str((node or {}).get("_target_") or __name__) for node in nodes]
    digest = hashlib.sha256(code_sha256().encode())
    for found in (get_object(target) for target in targets if not target.startswith("fanet_lightning.")):
        module = inspect.getmodule(found.func if isinstance(found, partial) else found)
        if file := getattr(module, "__file__", None):
            digest.update(b"\0" + Path(file).read_bytes())
    return digest.hexdigest()


def to_plain(image_id: str, item: Inferred) -> dict[str, Any]:
    """A line of the journal: float32 comes back from JSON equal to the last bit."""
    boxes, scores = item.detections.boxes_xyxy.tolist(), item.detections.scores.tolist()
    passes = [list(step) for step in item.passes]
    return {"image_id": image_id, "boxes_xyxy": boxes, "scores": scores, "passes": passes, "seconds": item.seconds}


def done_before(journal: Journal) -> dict[str, Inferred]:
    """The images that an earlier process left in a journal with the same settings."""
    found = {}
    for line in journal.lines if journal.resumed else ():
        detections = Detections(torch.tensor(line["boxes_xyxy"]).reshape(-1, 4), torch.tensor(line["scores"]))
        found[line["image_id"]] = Inferred(detections, [PassRecord(*step) for step in line["passes"]], line["seconds"])
    return found


def detect_records(
    detector: FaceDetector, records: Sequence[ImageRecord], scale: ScaleProtocol, workers: int, journal: Journal
) -> dict[str, Inferred]:
    """Faces of every image by image id, in the records' order; those that the journal has are not looked at again.

    Boxes are in pixels of the original image, clipped to it. ``workers``: threads that read and resize images.
    InputError: a file is missing or broken, or does not fit into memory. OSError: the journal's disk is full.
    """
    found = done_before(journal)
    missing = [record for record in records if record.image_id not in found]
    prepare, threads, most = StreamSettings(scale, 0.0).prepare, max(1, workers), max(1, 2 * workers)
    start = time.perf_counter()
    read = in_threads(missing, lambda record: prepare(record.path), threads=threads, most=most, size=ready_bytes)
    for record, reading in track(read, "detecting", len(missing), disable=not sys.stderr.isatty()):
        [(detections, passes)] = found_in(scale, detector.backend, [reading.result()])
        start, seconds = (now := time.perf_counter()), now - start
        found[record.image_id] = item = Inferred(detections, passes, seconds)
        journal.append(to_plain(record.image_id, item))
    return {record.image_id: found[record.image_id] for record in records}


def evaluate(
    detector: FaceDetector,
    source: Any,
    protocol: Mapping[str, Any],
    out: Path,
    *,
    workers: int = 1,
    resume: str | bool = "auto",
    lower_top: float = 0.0,
    labelled: bool = True,
    attributes: bool = False,
    errors: bool = False,
    worst: int = 200,
) -> dict[str, float]:
    """Run a detector over the validation images of ``source`` and score it by the source's benchmark.

    Writes ``predictions`` in the benchmark's own format, ``scores.json``, its curves, ``detections.*``,
    ``scales.json`` (the passes over each image) and the list of the model's training images. Until it has ended, what
    was found is in ``unfinished.jsonl``.

    Args:
        detector: of a file, as :func:`fanet_lightning.detect.detector.open_detector` gives it.
        source: what :func:`fanet_lightning.data.sources.build_source` made.
        protocol: ``name`` and what :func:`fanet_lightning.detect.protocols.build_protocol` reads.
        out: folder, made if need be; InputError: it is in use, or holds results of the other kind.
        workers: threads that read and resize images.
        resume: ``auto`` resumes where an evaluation with the same settings was cut off; False starts over.
        lower_top: fraction of its height by which a box's top edge is moved down before it is written.
        labelled: False for images without labels: instead of scores, ``submission.zip`` for WIDER's test server.
        attributes, errors, worst: what of :mod:`fanet_lightning.report.error_gallery` is written, for WIDER FACE alone.

    Returns AP per setting, in [0, 1]; empty without labels and for a benchmark without AP.
    """
    checkpoint = detector.source
    assert checkpoint is not None
    check_values(
        {"resume": resume, "lower_top": lower_top},
        ("auto (resume where it was cut off) or false (start over)", ("auto", False).__contains__, "resume"),
        ("a fraction of a box's height, at least 0 and below 1", lambda fraction: 0 <= fraction < 1, "lower_top"),
    )
    _check_out(out, labelled)
    if (attributes or errors) and not (labelled and isinstance(source.benchmark(), WiderFaceBenchmark)):
        raise InputError(f"attributes=true and errors=true need WIDER FACE's labels, not data={source.name}")
    scale = build_protocol(protocol)
    records = source.val()
    origin = {
        **made_by(sys.argv, checkpoint=str(checkpoint), packages=PACKAGES),
        "checkpoint_sha256": file_sha256(weights_file(checkpoint)), "protocol_settings": full_settings(protocol),
        "data": source.name, "split": getattr(source, "val_split", None), "device": device_name(detector.runs_on),
        "precision": detector.precision, "detection": detector.detection, "lower_top": lower_top,
        "network": detector.network_options,
    }  # fmt: skip
    # An export brings its graph along, whatever module it was made from.
    code = _code(None if is_export(checkpoint) else detector.network_options, protocol)
    settings = {**{key: origin[key] for key in DEPENDS_ON}, "code": code}
    images = f"{counted(len(records), 'image')}, protocol {protocol['name']}"
    with locked(out, "run of evaluate"):
        settings["images"] = images_sha256(records)
        journal = Journal(out / JOURNAL_FILE, settings, resume=resume == "auto", checksums=True)
        print(f"detecting faces in {images}, {origin['device']}", flush=True)
        if journal.refused:
            print(f"starting over: {journal.path} is of other settings ({', '.join(journal.refused)})", flush=True)
        elif journal.resumed:
            done = counted(len(journal.lines), "image")
            print(f"resuming: {done} done already; resume=false starts over", flush=True)
        with journal:
            found = detect_records(detector, records, scale, workers, journal)
        # Images of an earlier process by the time that they took there.
        seconds = sum(item.seconds for item in found.values())
        origin["tiled_images"] = sum(any(step.tiles > 1 for step in item.passes) for item in found.values())
        origin["images_per_second"] = round(len(found) / max(seconds, 1e-9), 2)
        passes = {key: [step._asdict() for step in item.passes] for key, item in found.items()}
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(steps)}" for key, steps in passes.items())
        with replaced(out / SCALES_FILE) as path:
            path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        predictions: dict[str, tuple[Any, Any]] = {key: item.detections.numpy() for key, item in found.items()}
        if lower_top:
            predictions = {key: (lowered(boxes, lower_top), scores) for key, (boxes, scores) in predictions.items()}
        ap, label = dict[str, float](), f"{source.name}, {images}"
        if labelled:
            ap, label = _score(out, source, predictions, origin, detector)
        else:
            _pack_unscored(out, source, predictions, origin)
        # matplotlib, which only the end of an evaluation needs
        from fanet_lightning.report.error_gallery import report_by_attribute, report_errors

        if attributes:
            report_by_attribute(source.ground_truth(), out / "predictions", out, title=label, made_by=origin)
        if errors:
            # The folder of the events: the image's path without its id.
            pictures = records[0].path.parents[records[0].image_id.count("/")]
            report_errors(source.ground_truth(), out / "predictions", out, title=label, pictures=pictures, worst=worst)
        _draw(out, checkpoint, records, predictions, label, labelled)
        journal.path.unlink()
    return ap


def _check_out(out: Path, labelled: bool) -> None:
    check_writable(out)
    other = SUBMISSION_FILE if labelled else SCORES_FILE
    if (out / other).exists():
        raise InputError(f"out={out} holds {other} of an evaluation of another split; give another out")
    signs = (out / JOURNAL_FILE, out / SUBMISSION_RECORD)
    if not any(sign.is_file() for sign in signs) and not is_scores(out / SCORES_FILE):
        check_names_free(out, _PATTERNS, "an evaluation")


def _score(
    out: Path, source: Any, detections: DetectionsByImage, origin: Mapping[str, Any], detector: FaceDetector
) -> tuple[dict[str, float], str]:
    """Write the predictions and score what was written, so that ``score`` on these files gives the same to the last
    digit; it learns what the model was trained on by a list next to the predictions. AP, and in words what it is of."""
    benchmark, ground_truth = source.benchmark(), source.ground_truth()
    benchmark.write_predictions(out / "predictions", ground_truth, detections)
    scores: Scores = benchmark.score(ground_truth, out / "predictions")
    intervals = intervals_of(scores, scores.resampled(SAMPLES, 0))
    found, listed = None, out / TRAINING_IMAGES_FILE
    if detector.training_images is None:
        listed.unlink(missing_ok=True)  # an earlier evaluation's, of another model
        print("the checkpoint does not name its training images", file=sys.stderr)
    else:
        scored = (source.name, getattr(source, "val_split", None))
        write_training_images(listed, detector.training_images, scored)
        found = trained_on(detector.training_images, scores.image_ids, *scored)
        if found.warning:
            print(f"warning: {found.warning}", file=sys.stderr)
    write_scores(
        out, scores, intervals, protocol=origin["protocol_settings"]["name"], made_by=origin, intervals_method=method(),
        further=scores_entry(found),
    )  # fmt: skip
    split = "" if origin["split"] in (None, "val") else f", split {origin['split']}"
    label = f"{scores.headline}{split}, protocol {origin['protocol_settings']['name']}"
    print_scores(scores, intervals, label)
    if (reason := getattr(source, "lacking_ground_truth", lambda: None)()) is not None:
        print(f"note: {reason}", file=sys.stderr)
    return dict(scores.values.get("ap", {})), label


def _pack_unscored(out: Path, source: Any, detections: DetectionsByImage, origin: Mapping[str, Any]) -> None:
    """Predictions without labels: the archive for the test server, and how it came about."""
    source.benchmark().write_predictions(out / "predictions", source.ground_truth(), detections)
    packed = write_submission(out / SUBMISSION_FILE, out / "predictions", list(detections))
    record = {
        "protocol": origin["protocol_settings"]["name"], "images": len(packed.image_ids), "boxes": len(packed.scores),
        "made_by": origin,
    }  # fmt: skip
    write_json(out / SUBMISSION_RECORD, record)
    print(
        f"no labels, so no scores: {out / SUBMISSION_FILE} holds {len(packed.scores):,} boxes of "
        f"{counted(len(packed.image_ids), 'image')} in the layout that WIDER FACE's test server takes"
    )


def _draw(
    out: Path, checkpoint: Path, records: Sequence[ImageRecord], detections: DetectionsByImage, label: str,
    labelled: bool,
) -> None:  # fmt: skip
    """Draw the curves, where there are some, and a grid of detections."""
    from fanet_lightning.report.figures import detection_grid, save_figure
    from fanet_lightning.report.plot import CURVE_FILES, plot_scores

    if any((out / name).is_file() for name in CURVE_FILES):
        plot_scores([out], out, names=[name_of(checkpoint)])
    small, drawn, titles = TestScale("original", max_long=GRID_SIDE), [], []
    # Evenly spread over the list, so that the grid is the same for every run on the same images.
    for i in np.linspace(0, len(records) - 1, min(GRID_IMAGES, len(records))).round().astype(int):
        record = records[i]
        boxes_xyxy, scores = map(np.asarray, detections[record.image_id])
        boxes_xyxy, scores = boxes_xyxy[scores >= GRID_THRESHOLD], scores[scores >= GRID_THRESHOLD]
        image, scale_xy = small(read_image_rgb(record.path))
        scale = np.tile(scale_xy, 2)
        drawn.append(annotate(image, boxes_xyxy * scale, scores, faces_xyxy=record.boxes_xyxy * scale))
        annotated = f", {len(record.boxes_xyxy)} annotated" if labelled else ""
        titles.append(f"{record.image_id.split('/')[-1]}\n{len(scores)} found{annotated}")
    caption = f"{label}: detections with confidence ≥ {GRID_THRESHOLD}{', annotated faces in white' * labelled}"
    save_figure(detection_grid(drawn, titles, caption), out / "detections")
