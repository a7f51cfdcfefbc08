"""Evaluating a detector: over all images with a journal, then scored and written.

What an evaluation has found so far, on disk: one checksummed line per image, appended as it comes.

A process may be killed at any byte. Lines behind the first that is not whole are dropped, and those images are done
again. The first line is a fingerprint of everything that detections depend on; lines under another are not read.
"""

import base64
import hashlib
import json
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fanet_lightning.cli.device import device_name
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable, content_if_any
from fanet_lightning.data.datamodule import EvalDataset, in_shared_memory
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.detect.detector import open_detector
from fanet_lightning.detect.multiscale import MultiScale, PassRecord
from fanet_lightning.evaluate.outputs import Inferred
from fanet_lightning.models.pretrained import is_onnx
from fanet_lightning.ops.structures import Detections, EvalBatch

if TYPE_CHECKING:
    from fanet_lightning.detect.detector import FaceDetector


VERSION = 1


def images_sha256(records: "Sequence[ImageRecord]") -> str:
    """Over the images' ids, sizes and times of change, in their order: another list or an exchanged image shows."""
    digest = hashlib.sha256()
    for record in records:
        try:
            state = record.path.stat()
            digest.update(f"{record.image_id}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        except OSError:  # reading it will say why
            digest.update(f"{record.image_id}\0absent\n".encode())
    return digest.hexdigest()


class Journal:
    """Results of an unfinished evaluation in one file. A context manager: inside, lines are appended.

    ``done`` are the images that an earlier process left there. ``refused`` says, where there were some of another
    evaluation, which settings differ; those are overwritten.

    Args:
        path: the file; made with its first line on entry.
        fingerprint: what detections depend on, as plain values.
        image_ids: of the evaluation; lines about other images cannot be under the same fingerprint.
        resume: False overwrites what is there.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(
        self, path: Path, fingerprint: Mapping[str, Any], image_ids: Sequence[str], *, resume: bool = True
    ) -> None:
        self.path = path
        # As it comes back from a file: tuples become lists.
        self._fingerprint = json.loads(json.dumps({"version": VERSION, **fingerprint}, allow_nan=False))
        self.done: dict[str, Inferred] = {}
        self.refused: list[str] = []
        self._whole_bytes = 0
        self._file: IO[bytes] | None = None
        if resume:
            self._read(set(image_ids))

    def _read(self, image_ids: set[str]) -> None:
        content = content_if_any(self.path)
        if content is None:
            return
        position = 0
        for number, line in enumerate(content.splitlines(keepends=True)):
            value = _parse(line)
            if value is None:
                break
            if number == 0:
                self.refused = _differences(value, self._fingerprint)
                if self.refused:
                    return
            else:
                item = _from_plain(value)
                if item.image_id not in image_ids:
                    break
                self.done[item.image_id] = item
            position += len(line)
        self._whole_bytes = position

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if self._whole_bytes else "wb")
            self._file.truncate(self._whole_bytes)
            self._file.seek(self._whole_bytes)
            if not self._whole_bytes:
                self._append(self._fingerprint)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); remove it") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, item: Inferred) -> None:
        """Append an image; once this returns, killing the process does not lose it.

        Raises:
            InputError: the disk is full.
        """
        try:
            self._append(_to_plain(item))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); free the disk and go on") from error

    def _append(self, value: Any) -> None:
        if self._file is None:
            raise ValueError("the journal is not open")
        body = json.dumps(value, ensure_ascii=True, allow_nan=False).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(body), body))
        self._file.flush()

    def remove(self) -> None:
        """The evaluation has ended well."""
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> Any:
    """What a line holds; None for one that is not whole."""
    checksum, _, body = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body)


def _to_plain(item: Inferred) -> dict[str, Any]:
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
    boxes, scores = (np.frombuffer(base64.b64decode(value[name]), "<f4") for name in ("boxes_xyxy", "scores"))
    found = Detections(torch.from_numpy(boxes.reshape(-1, 4).copy()), torch.from_numpy(scores.copy()))
    return Inferred(value["image_id"], found, [PassRecord(*step) for step in value["passes"]], value["seconds"])


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]


# Worker processes hand images over in shared memory, of which containers often have 64 MB. Larger images are read by
# the process that wants them.
LARGEST_SHARED_BYTES = 16 * 2**20


def detect_records(
    detector: "FaceDetector",
    records: Sequence[ImageRecord],
    scale: TestScale | MultiScale,
    workers: int,
    journal: Journal,
) -> dict[str, Inferred]:
    """Faces of every image by image id, in the records' order; those that the journal has are not looked at again.

    Args:
        detector: boxes come out in pixels of the original image, clipped to it.
        scale: a single test scale, or several.
        workers: processes that read and resize images; 0 reads between two images.
        journal: open; what is found is added to it image by image.

    Raises:
        UnreadableImage: a file is missing or broken.
        InputError: an image does not fit into memory, see :meth:`FaceDetector.find`; or the journal's disk is full.
    """
    from rich.progress import track

    missing = [record for record in records if record.image_id not in journal.done]
    found = dict(journal.done)
    start = time.perf_counter()
    batches = track(_batches(missing, scale, workers), "detecting", len(missing), disable=not sys.stderr.isatty())
    for batch in batches:
        detections, passes = _detect(detector, batch, scale)
        now = time.perf_counter()
        item = Inferred(batch.image_ids[0], detections, passes, now - start)
        start = now
        journal.add(item)
        found[item.image_id] = item
    return {record.image_id: found[record.image_id] for record in records}


def _detect(
    detector: "FaceDetector", batch: EvalBatch, scale: TestScale | MultiScale
) -> tuple[Detections, list[PassRecord]]:
    if isinstance(scale, MultiScale):
        return scale.detect(detector, np.ascontiguousarray(batch.images[0].permute(1, 2, 0).numpy()))
    height, width = batch.size_hw[0].tolist()
    found, tiles = detector.detect_resized(batch.images, batch.scale_xy, height, width, scale.tile_pixels)
    rows, columns = batch.images.shape[-2:]
    step = PassRecord(rows / height, False, rows, columns, tiles, len(found))
    return found, [step]


class _SmallEnough(Dataset[EvalBatch]):
    """As :class:`EvalDataset`, without the pixels of images that are too large to be handed over."""

    def __init__(self, images: EvalDataset) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> EvalBatch:
        batch = self._images[index]
        if batch.images.numel() > LARGEST_SHARED_BYTES:
            batch = batch._replace(images=torch.empty(0, dtype=torch.uint8))
        return in_shared_memory(batch)  # type: ignore[no-any-return]


def _batches(records: Sequence[ImageRecord], scale: TestScale | MultiScale, workers: int) -> Iterator[EvalBatch]:
    """One image a batch, in order."""
    # Several scales start from the image as it is.
    images = EvalDataset(records, scale if isinstance(scale, TestScale) else TestScale("original"))
    if not workers or not records:
        yield from (images[index] for index in range(len(images)))
        return
    for index, batch in enumerate(DataLoader(_SmallEnough(images), batch_size=None, num_workers=workers)):
        yield batch if batch.images.numel() else images[index]


PACKAGES = ("fanet-lightning", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "opencv-python-headless")
# The loader processes of a killed evaluation hold its lock until they notice, within five seconds.
LOCK_PATIENCE_SECONDS = 15.0


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
    detector: "FaceDetector | None" = None,
) -> dict[str, float]:
    """Run a checkpoint over the validation images of ``source`` and score it by the source's benchmark.

    Writes ``predictions`` in the benchmark's own format, ``scores.json``, its curves, ``detections.*``, and
    ``scales.json``: the passes over each image. Until it has ended, what was found lies in ``unfinished.jsonl``.
    Where the model says what it was trained on, that list comes to lie beside the predictions, and a warning says how
    many of the scored images are in it.

    Args:
        checkpoint: file that ``train`` has written, or a model: see :func:`fanet_lightning.models.pretrained.locate`;
            or an ``.onnx`` file of ``export``, which onnxruntime runs.
        source: what :func:`fanet_lightning.data.sources.build_source` made.
        protocol: ``name`` and what :func:`fanet_lightning.detect.multiscale.build_protocol` reads.
        out: folder, made if need be.
        device: ``auto``, ``cpu``, ``cuda`` …
        precision: ``auto``, ``32-true`` or ``bf16-mixed``.
        workers: processes that read and resize images.
        detection: keyword arguments of :func:`fanet_lightning.ops.postprocess.detect`.
        resume: ``auto`` goes on where an evaluation with the same settings was cut off; False begins anew.
        lower_top: fraction of its height by which a box's top edge is moved down before it is written, see
            :func:`fanet_lightning.score.pascal_face.average_precision.lower_top`.
        labelled: False for images without labels: instead of scores, ``submission.zip`` for WIDER's test server.
        attributes, errors, worst: with WIDER's ground truth also :func:`report.error_gallery.report_by_attribute` and
            :func:`report.error_gallery.report_errors`.
        detector: ``checkpoint`` as :func:`opened` gives it with these options, where it is open already.

    Returns:
        AP per setting, in [0, 1]; empty without labels and for a benchmark without AP.

    Raises:
        InputError: see :mod:`detect.detector` and :mod:`data`; ``out`` is in use, or holds results of the other kind.
    """
    from fanet_lightning.cli.files import file_sha256
    from fanet_lightning.cli.provenance import code_sha256, locked, made_by
    from fanet_lightning.detect.multiscale import build_protocol, full_settings
    from fanet_lightning.evaluate import outputs as files
    from fanet_lightning.evaluate.outputs import JOURNAL_FILE
    from fanet_lightning.models.pretrained import locate, weights_file

    stated, checkpoint = str(checkpoint), locate(checkpoint)
    _check_options(resume, lower_top, out, labelled)
    if attributes or errors:
        files.check_wider(source, labelled)
    scale = build_protocol(protocol)
    detector = detector or opened(checkpoint, device, precision, detection or {})
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
    with locked(out, "run of evaluate", LOCK_PATIENCE_SECONDS):
        ids = [record.image_id for record in records]
        journal = Journal(out / JOURNAL_FILE, fingerprint, ids, resume=resume == "auto")
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
        files.draw_sheet(out, checkpoint, records, found, label)
        journal.remove()
    return ap


def opened(checkpoint: Path, device: str, precision: str, detection: Mapping[str, Any]) -> "FaceDetector":
    """The detector with the settings ``detection``, those it has already underneath.

    Raises:
        InputError: see :func:`open_detector`; or settings other than those inside an export.
    """
    from fanet_lightning.ops.postprocess import detect

    detector = open_detector(checkpoint, device, precision)
    if is_onnx(checkpoint):
        for key, value in detection.items():
            if value != detector.detection[key]:
                raise InputError(
                    f"detection.{key}={value}: inside {checkpoint} it is {detector.detection[key]}; give that, or "
                    f"export again with detection.{key}={value}"
                )
        return detector
    defaults = {name: p.default for name, p in signature(detect).parameters.items() if p.kind is p.KEYWORD_ONLY}
    detector.detection = {**defaults, **detector.detection, **detection}
    return detector


def _check_options(resume: object, lower_top: object, out: Path, labelled: bool) -> None:
    from fanet_lightning.evaluate.outputs import SUBMISSION_FILE, check_out
    from fanet_lightning.score.results import SCORES_FILE

    if resume != "auto" and resume is not False:
        raise InputError(f"resume={resume}: take auto (go on where it was cut off) or false (begin anew)")
    if isinstance(lower_top, bool) or not isinstance(lower_top, int | float) or not 0 <= lower_top < 1:
        raise InputError(f"lower_top={lower_top}: give a fraction of a box's height, at least 0 and below 1")
    check_writable(out)
    other = SUBMISSION_FILE if labelled else SCORES_FILE
    if (out / other).exists():
        raise InputError(f"out={out} holds {other} of an evaluation of another split; give another out")
    check_out(out)


def _opening(journal: "Journal", images: int, protocol: str, device: str) -> str:
    lines = [f"detecting faces in {images} images, protocol {protocol}, {device}"]
    if (journal.path.parent / "scores.json").exists() and not journal.done:
        lines.append(f"{journal.path.parent} holds a finished evaluation, which this one replaces")
    if journal.refused:
        lines.append(f"beginning anew: {journal.path} is of other settings ({', '.join(journal.refused)})")
    elif journal.done:
        lines.append(f"going on: {len(journal.done)} images are done already; resume=false begins anew")
    return "\n".join(lines)


def _how_it_went(found: "Mapping[str, Inferred]") -> dict[str, Any]:
    """``images_per_second`` over all images, those of an earlier process by the time that they took there."""
    seconds = sum(item.seconds for item in found.values())
    return {
        "tiled_images": sum(any(step.tiles > 1 for step in item.passes) for item in found.values()),
        "images_per_second": round(len(found) / max(seconds, 1e-9), 2),
    }
