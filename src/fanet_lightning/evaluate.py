"""Score a checkpoint: ``python -m fanet_lightning.evaluate checkpoint=FILE data=wider_face protocol=short640``."""

import json
import sys
import time
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning import cli
from fanet_lightning.config import plain
from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable, replaced

if TYPE_CHECKING:
    from fanet_lightning.data.records import ImageRecord
    from fanet_lightning.data.resize import TestScale
    from fanet_lightning.detector import FaceDetector
    from fanet_lightning.multiscale import MultiScale, PassRecord
    from fanet_lightning.scoring.benchmark import DetectionsByImage, Scores
    from fanet_lightning.structures import Detections

USAGE = (
    "python -m fanet_lightning.evaluate checkpoint=FILE [data=wider_face data.root=DIR] [protocol=short640] [out=DIR]"
)
SCALES_FILE = "scales.json"
SHEET_IMAGES = 12
# Boxes below it are left out of the sheet, not out of the predictions: they would cover the picture.
SHEET_THRESHOLD = 0.3
PACKAGES = ("fanet-lightning", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "opencv-python-headless")


def evaluate(
    checkpoint: Path,
    source: Any,
    protocol: Mapping[str, Any],
    out: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 1,
    detection: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Run a checkpoint over the validation images of ``source`` and score it.

    Writes ``predictions/`` in the official text layout, ``scores.json``, ``pr_curves.*`` and ``detections.*``; with a
    multi-scale protocol ``scales.json`` as well, the passes over each image.

    Args:
        checkpoint: file that ``train`` has written.
        source: what :func:`fanet_lightning.data.sources.build_source` made.
        protocol: ``name`` and what :func:`fanet_lightning.multiscale.build_protocol` reads.
        out: folder, made if need be.
        device: ``auto``, ``cpu``, ``cuda`` …
        precision: ``auto``, ``32-true`` or ``bf16-mixed``.
        workers: processes that read and resize images.
        detection: keyword arguments of :func:`fanet_lightning.postprocess.detect`.

    Returns:
        AP per setting, in [0, 1].

    Raises:
        InputError: see :mod:`detector` and :mod:`data`.
    """
    from fanet_lightning.detector import FaceDetector
    from fanet_lightning.multiscale import build_protocol, full_settings
    from fanet_lightning.postprocess import detect
    from fanet_lightning.scoring.results import made_by

    device = _resolve_device(device)
    check_writable(out)
    scale = build_protocol(protocol)
    detector = FaceDetector.from_checkpoint(checkpoint, device=device, precision=_precision(precision, device))
    defaults = {name: p.default for name, p in signature(detect).parameters.items() if p.kind is p.KEYWORD_ONLY}
    detector.detection = {**defaults, **detector.detection, **(detection or {})}
    records = source.val()
    print(f"detecting faces in {len(records)} images, protocol {protocol['name']}, {device_name(device)}", flush=True)
    start = time.perf_counter()
    found, passes = detect_records(detector, records, scale, workers)
    seconds = time.perf_counter() - start
    predictions = {image_id: (item.boxes_xyxy.numpy(), item.scores.numpy()) for image_id, item in found.items()}
    label = f"{source.name}, {len(records)} images, protocol {protocol['name']}"
    tiled = {"tiled_images": sum(any(step.tiles > 1 for step in steps) for steps in passes.values())} if passes else {}
    _write_passes(out / SCALES_FILE, passes)
    origin = {
        **made_by(sys.argv, checkpoint=str(checkpoint), packages=PACKAGES),
        "protocol_settings": full_settings(protocol), **tiled, "data": source.name, "device": device_name(device),
        "precision": detector.precision, "detection": detector.detection,
        "images_per_second": round(len(records) / max(seconds, 1e-9), 2),
    }  # fmt: skip
    scores = _score_and_write(out, source, predictions, label, protocol["name"], origin)
    _draw(out, checkpoint, records, found, label)
    return dict(scores.values.get("ap", {}))


def _score_and_write(
    out: Path,
    source: Any,
    detections: "DetectionsByImage",
    label: str,
    protocol: str,
    origin: Mapping[str, Any],
) -> "Scores":
    """Write the predictions, score what was written, write and print the scores.

    So ``score`` on the same files gives the same number to the last digit.
    """
    from fanet_lightning.scoring.bootstrap import SAMPLES, method
    from fanet_lightning.scoring.results import intervals_of, print_scores, write_scores

    benchmark, ground_truth = source.benchmark(), source.ground_truth()
    benchmark.write_predictions(out / "predictions", ground_truth, detections)
    scores: Scores = benchmark.score(ground_truth, out / "predictions")
    intervals = intervals_of(scores, scores.resampled(SAMPLES, 0))
    write_scores(out, scores, intervals, protocol=protocol, made_by=origin, intervals_method=method())
    print_scores(scores, intervals, label)
    return scores


def detect_records(
    detector: "FaceDetector", records: "list[ImageRecord]", scale: "TestScale | MultiScale", workers: int
) -> "tuple[dict[str, Detections], dict[str, list[PassRecord]]]":
    """Detections of every image by image id, boxes in pixels of the original image; reading overlaps with inference.

    Second, the passes over each image; with a single scale there are none.
    """
    import numpy as np
    from rich.progress import track
    from torch.utils.data import DataLoader

    from fanet_lightning.data.dataset import EvalDataset
    from fanet_lightning.data.resize import TestScale

    # Several scales start from the image as it is.
    read_at = scale if isinstance(scale, TestScale) else TestScale("original")
    loader = DataLoader(EvalDataset(records, read_at), batch_size=None, num_workers=workers)
    found, passes = {}, {}
    for batch in track(loader, "detecting", total=len(records), disable=not sys.stderr.isatty()):
        image_id = batch.image_ids[0]
        if isinstance(scale, TestScale):
            height, width = batch.size_hw[0].tolist()
            found[image_id] = detector.detect_resized(batch.images, batch.scale_xy, height, width)
        else:
            image_rgb = np.ascontiguousarray(batch.images[0].permute(1, 2, 0).numpy())
            found[image_id], passes[image_id] = scale.detect(detector, image_rgb)
    return found, passes


def _write_passes(path: Path, passes: "dict[str, list[PassRecord]]") -> None:
    """One line per image. Without passes, what an earlier evaluation left there goes."""
    if not passes:
        path.unlink(missing_ok=True)
        return
    lines = [f"{json.dumps(key)}: {json.dumps([step._asdict() for step in steps])}" for key, steps in passes.items()]
    with replaced(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _draw(
    out: Path,
    checkpoint: Path,
    records: "list[ImageRecord]",
    found: "dict[str, Detections]",
    label: str,
) -> None:
    import numpy as np

    from fanet_lightning.data.images import read_image_rgb
    from fanet_lightning.plots import detection_sheet, draw_detections, precision_recall_figure, save_figure
    from fanet_lightning.scoring.wider_face_benchmark import CURVES_FILE, read_curves

    name = checkpoint.resolve().parent.parent.name or checkpoint.stem
    if (out / CURVES_FILE).is_file():
        save_figure(precision_recall_figure({name: read_curves(out / CURVES_FILE)}, label), out / "pr_curves")
    # Evenly spread over the list, so that the sheet is the same for every run on the same images.
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, min(SHEET_IMAGES, len(records))).round().astype(int)]
    drawn, titles = [], []
    for record in chosen:
        item = found[record.image_id]
        shown = item.scores.numpy() >= SHEET_THRESHOLD
        boxes_xyxy, scores = item.boxes_xyxy.numpy()[shown], item.scores.numpy()[shown]
        drawn.append(draw_detections(read_image_rgb(record.path), boxes_xyxy, scores, record.boxes_xyxy))
        titles.append(
            f"{record.image_id.split('/')[-1][-40:]}: {len(scores)} found, {len(record.boxes_xyxy)} annotated"
        )
    caption = f"{label}: detections with confidence ≥ {SHEET_THRESHOLD}, annotated faces in white"
    save_figure(detection_sheet(drawn, titles, caption), out / "detections")


def _resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"device={device} is no device name; take auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={device}: no CUDA device is available; take device=cpu")
    return device


def _precision(precision: str, device: str) -> str:
    from fanet_lightning.precision import resolve_precision

    if precision not in ("auto", "32-true", "bf16-mixed"):
        raise InputError(f"precision={precision} is unknown; take auto, 32-true or bf16-mixed")
    return resolve_precision(precision, device.split(":")[0])


def device_name(device: str) -> str:
    """The device in words, for the record: the GPU's name, or the CPU's threads and architecture."""
    import platform

    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} {'thread' if threads == 1 else 'threads'}, {platform.machine()}"


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("evaluate", argv, USAGE, required=["checkpoint"])
    if config is None:
        return 0
    options = plain(config)
    from fanet_lightning.data.sources import build_source
    from fanet_lightning.detector import read_checkpoint

    checkpoint = Path(options["checkpoint"])
    read_checkpoint(checkpoint)
    source = build_source(**options["data"])
    source.check(train=False)
    run = checkpoint.resolve().parent.parent.name or checkpoint.stem
    default = Path("outputs/evaluate") / f"{options['data']['name']}_{options['protocol']['name']}" / run
    out = Path(options["out"]) if options["out"] else default
    evaluate(
        checkpoint, source, options["protocol"], out, device=options["device"], precision=options["precision"],
        workers=options["workers"], detection=options["detection"],
    )  # fmt: skip
    print(f"predictions, scores.json, pr_curves and detections lie in {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
