"""Evaluating a detector: over all images with a journal, then scored and written."""

import base64
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from fanet_lightning.cli.device import device_name
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable, file_sha256
from fanet_lightning.cli.provenance import code_sha256, locked, made_by
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.detect.detector import FaceDetector, open_detector
from fanet_lightning.detect.journal import Journal
from fanet_lightning.detect.multiscale import MultiScale, PassRecord, build_protocol, full_settings
from fanet_lightning.detect.stream import Prepared, StreamSettings, in_image, in_threads, network_input, ready_bytes
from fanet_lightning.evaluate import outputs as files
from fanet_lightning.evaluate.outputs import JOURNAL_FILE, SUBMISSION_FILE, Inferred, check_out
from fanet_lightning.models.pretrained import locate, weights_file
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.results import SCORES_FILE

VERSION = 1


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
    scale: TestScale | MultiScale,
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
    settings = StreamSettings(scale, 0.0, "rgb")
    start = time.perf_counter()
    read = in_threads(
        missing,
        lambda record: settings.prepare(record.path),
        threads=max(1, workers),
        most=max(1, 2 * workers),
        size=ready_bytes,
    )
    for record, reading in track(read, "detecting", len(missing), disable=not sys.stderr.isatty()):
        detections, passes = _detect(detector, reading.result(), scale)
        now = time.perf_counter()
        found[record.image_id] = item = Inferred(record.image_id, detections, passes, now - start)
        start = now
        journal.append(to_plain(item))
    return {record.image_id: found[record.image_id] for record in records}


def _detect(
    detector: FaceDetector, image: Prepared, scale: TestScale | MultiScale
) -> tuple[Detections, list[PassRecord]]:
    if isinstance(scale, MultiScale):
        return scale.detect(detector.backend, image.pixels)
    found, tiles = detector.backend.find(network_input([image]), scale.tile_pixels)
    rows, columns = image.pixels.shape[:2]
    step = PassRecord(rows / image.height, False, rows, columns, tiles, len(found))
    return in_image(found, torch.from_numpy(image.scale_xy), image.height, image.width), [step]


PACKAGES = ("fanet-lightning", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "opencv-python-headless")


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
        protocol: ``name`` and what :func:`fanet_lightning.detect.multiscale.build_protocol` reads.
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
    if attributes or errors:
        files.check_wider(source, labelled)
    scale = build_protocol(protocol)
    detector = detector or open_detector(checkpoint, device, precision, detection)
    device = detector.runs_on
    records = source.val()
    origin = {
        **made_by(sys.argv, checkpoint=stated, packages=PACKAGES),
        "checkpoint_sha256": file_sha256(weights_file(checkpoint)), "protocol_settings": full_settings(protocol),
        "data": source.name, "device": device_name(device), "precision": detector.precision,
        "detection": detector.detection, "lower_top": lower_top, "network": detector.network_options,
    }  # fmt: skip
    depends_on = (
        "checkpoint_sha256", "protocol_settings", "device", "precision", "detection", "network", "packages",
    )  # fmt: skip
    fingerprint = {**{key: origin[key] for key in depends_on}, "code": code_sha256(), "images": images_sha256(records)}
    label = f"{source.name}, {len(records)} images, protocol {protocol['name']}"
    with locked(out, "run of evaluate"):
        settings = {"version": VERSION, **fingerprint}
        journal = Journal(out / JOURNAL_FILE, settings, resume=resume == "auto", checksums=True)
        print(_opening(journal, len(records), protocol["name"], device_name(device)), flush=True)
        with journal:
            found = detect_records(detector, records, scale, workers, journal)
        origin |= _how_it_went(found)
        files.write_passes(out, found)
        predictions = {image_id: files.boxes_to_write(item.detections, lower_top) for image_id, item in found.items()}
        ap: dict[str, float] = {}
        if labelled:
            scores = files.score_and_write(
                out, source, predictions, label, protocol["name"], origin, detector.training_images
            )
            ap = dict(scores.values.get("ap", {}))
            files.report_more(out, source, records, label, origin, attributes=attributes, errors=errors, worst=worst)
        else:
            files.write_unscored(out, source, predictions, protocol["name"], origin)
        files.draw_grid(out, checkpoint, records, found, label)
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
    check_out(out)


def _opening(journal: Journal, images: int, protocol: str, device: str) -> str:
    lines = [f"detecting faces in {images} images, protocol {protocol}, {device}"]
    done = len(journal.lines) if journal.resumed else 0
    if (journal.path.parent / "scores.json").exists() and not done:
        lines.append(f"{journal.path.parent} holds a finished evaluation, which this one replaces")
    if journal.refused:
        lines.append(f"starting over: {journal.path} is of other settings ({', '.join(journal.refused)})")
    elif done:
        lines.append(f"resuming: {done} images are done already; resume=false starts over")
    return "\n".join(lines)


def _how_it_went(found: Mapping[str, Inferred]) -> dict[str, Any]:
    """``images_per_second`` over all images, those of an earlier process by the time that they took there."""
    seconds = sum(item.seconds for item in found.values())
    return {
        "tiled_images": sum(any(step.tiles > 1 for step in item.passes) for item in found.values()),
        "images_per_second": round(len(found) / max(seconds, 1e-9), 2),
    }
