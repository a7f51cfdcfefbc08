"""COCO scoring: our matching and resampling against pycocotools, in one process, on the same detections.

    python benchmarks/coco_scoring.py [--images 200] [--rows 200] [--faces 24] [--samples 1000]

Makes its own run (seeded). pycocotools is timed from objects in memory, without reading files. A bootstrap by hand
evaluates once and calls its ``accumulate`` per resample; two are timed and scaled up, which the output says. All APs
are compared, and a difference ends the script with an error. Where faster-coco-eval is installed, it is timed too.
"""

import argparse
import contextlib
import importlib.util
import io
import sys
import time
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fanet_lightning.score.bootstrap import image_weights
from fanet_lightning.score.coco import (
    SETTINGS,
    CocoDetections,
    CocoGroundTruth,
    average_precision,
    evaluated,
    matched_rows,
)


def make_run(images: int, rows: int, most_faces: int = 24, seed: int = 0) -> tuple[CocoGroundTruth, CocoDetections]:
    """Faces of 8 to 200 pixels, 1 to ``most_faces`` an image; detections lie near one, as a detector's do."""
    rng = np.random.default_rng(seed)
    faces, found = {}, {}
    for i in range(images):
        low = rng.uniform(0, 900, (rng.integers(1, most_faces + 1), 2))
        boxes = np.concatenate([low, low + np.exp(rng.uniform(np.log(8), np.log(200), (len(low), 1)))], axis=1)
        near = boxes[rng.integers(0, len(boxes), rows)]
        near = near + rng.normal(0, 0.15, near.shape) * (near[:, 2:3] - near[:, :1])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        faces[f"{i:05d}"] = boxes, None
        found[f"{i:05d}"] = near, rng.random(rows)
    truth = CocoGroundTruth.from_faces(faces)
    return truth, CocoDetections.from_detections(found, truth)


def by_hand(truth: CocoGroundTruth, found: CocoDetections) -> COCOeval:
    sides: list[COCO] = []
    areas = found.boxes_xywh[:, 2] * found.boxes_xywh[:, 3]
    for own, boxes, extra in (
        (truth.image, truth.boxes_xywh, {"area": truth.areas}),
        (found.image, found.boxes_xywh, {"area": areas, "score": found.scores}),
    ):
        image = (own + 1).tolist()
        columns: dict[str, list[Any]] = {name: values.tolist() for name, values in extra.items()}
        side = COCO()
        side.dataset = {
            "images": [{"id": i} for i in range(1, len(truth.image_ids) + 1)],
            "categories": [{"id": 1, "name": "face"}],
            "annotations": [
                {"id": n + 1, "image_id": image[n], "category_id": 1, "bbox": box, "iscrowd": 0}
                | {name: values[n] for name, values in columns.items()}
                for n, box in enumerate(boxes.tolist())
            ],
        }
        side.createIndex()
        sides.append(side)
    tool = COCOeval(*sides, iouType="bbox")
    tool.params.maxDets = [1000]
    tool.evaluate()
    tool.accumulate()
    return tool


def tool_ap(precision: np.ndarray) -> dict[str, float]:
    values = {}
    for setting, (thresholds, area) in SETTINGS.items():
        own = precision[thresholds, :, :, area]
        values[setting] = float(own[own > -1].mean()) if (own > -1).any() else float("nan")
    return values


def resampled_by_hand(tool: COCOeval, drawn: np.ndarray) -> dict[str, float]:
    """``accumulate`` over the drawn images: the tool keeps one entry per area and image."""
    images, whole = len(tool.params.imgIds), tool.evalImgs
    tool.evalImgs = [whole[area * images + i] for area in range(4) for i in drawn.tolist()]
    tool.accumulate()
    tool.evalImgs = whole
    return tool_ap(tool.eval["precision"][..., 0])


def compare(found: dict[str, float], expected: dict[str, float]) -> float:
    difference = max(abs(found[setting] - expected[setting]) for setting in expected)
    if not difference < 1e-12:
        sys.exit(f"the two sides disagree by {difference}")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rows", type=int, default=200, help="detections per image")
    parser.add_argument("--faces", type=int, default=24, help="most faces in an image")
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    truth, found = make_run(options.images, options.rows, options.faces)
    print(f"{options.images:,} images, {len(truth.boxes_xywh):,} faces, {len(found.scores):,} detections")

    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        tool = by_hand(truth, found)
    slow = time.perf_counter() - start
    expected = tool_ap(tool.eval["precision"][..., 0])
    print(f"pycocotools                     {slow:8.2f} s")
    if importlib.util.find_spec("faster_coco_eval"):
        start = time.perf_counter()
        compiled = tool_ap(evaluated(truth, found, 1000, "faster_coco_eval").eval["precision"][..., 0])
        print(f"faster-coco-eval                {time.perf_counter() - start:8.2f} s")
        compare(compiled, expected)
    start = time.perf_counter()
    rows = matched_rows(evaluated(truth, found, 1000, "numpy", accumulate=False).evalImgs, found, len(truth.image_ids))
    own = {setting: float(value[0]) for setting, value in average_precision(rows).items()}
    fast = time.perf_counter() - start
    print(f"our matching and AP             {fast:8.2f} s")
    print(f"ratio: {slow / fast:.1f} x; every AP equal to {compare(own, expected):.0e}")

    start = time.perf_counter()
    drawn = [
        {setting: values[i] for setting, values in own.items()}
        for _, weights in image_weights(options.images, options.samples)
        for own in [average_precision(rows, weights)]
        for i in range(len(weights))
    ]
    ours = time.perf_counter() - start
    print(f"bootstrap, {options.samples:,} samples         {ours:8.2f} s")
    weights = next(image_weights(options.images, options.samples))[1][:2].astype(int)
    start = time.perf_counter()
    difference = 0.0
    for draw, row in enumerate(weights):
        with contextlib.redirect_stdout(io.StringIO()):
            looped = resampled_by_hand(tool, np.repeat(np.arange(options.images), row))
        difference = max(difference, compare(drawn[draw], looped))
    seconds = time.perf_counter() - start
    scaled = seconds * options.samples / len(weights)
    print(f"pycocotools accumulate per draw {scaled:8.2f} s  ({seconds:.2f} s for {len(weights)} samples, scaled)")
    print(f"ratio: {scaled / ours:.0f} x; every AP equal to {difference:.0e}")


if __name__ == "__main__":
    main()
