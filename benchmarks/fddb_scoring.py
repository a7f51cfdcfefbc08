"""FDDB scoring: ours against the official program's way of working, in one process.

    python benchmarks/fddb_scoring.py [--predictions DIR --ground-truth DIR] [--detections 15000] [--reference-images N]

Without files it makes its own set of 2,845 images with 5,171 faces and about 15,000 detections (seeded). The reference
works as the official program does: a mask of the whole image for each region, and at each distinct score the whole
matching anew. It sees only the first N images and its time is scaled up, which the output says; on those images both
sides must agree.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from fanet_lightning.score.fddb.benchmark import LIMITS, FddbBenchmark, count_fddb, image_iou
from fanet_lightning.score.fddb.files import FddbPredictions, read_fddb_predictions, write_fddb_detections
from fanet_lightning.score.fddb.ground_truth import FddbGroundTruth
from fanet_lightning.score.fddb.regions import ellipse_mask, to_pixels
from fanet_lightning.score.fddb.roc import roc_from_counts

IMAGES, FACES = 2845, 5171


def made_ground_truth(rng: np.random.Generator) -> FddbGroundTruth:
    """As many images and faces as FDDB has, of about its sizes."""
    counts = 1 + np.bincount(rng.integers(0, IMAGES, FACES - IMAGES), minlength=IMAGES)
    sizes_wh = rng.integers(270, 451, (IMAGES, 2))
    ellipses = []
    for count, size_wh in zip(counts.tolist(), sizes_wh, strict=True):
        major = rng.uniform(20, 110, count)
        rows = [major, major * rng.uniform(0.6, 0.8, count), rng.normal(np.pi / 2, 0.2, count)]
        ellipses.append(np.column_stack([*rows, rng.uniform(0, 1, (count, 2)) * size_wh]))
    ids = tuple(f"2002/07/01/big/img_{number}" for number in range(IMAGES))
    return FddbGroundTruth(ids, np.arange(IMAGES) * 10 // IMAGES + 1, ellipses, sizes_wh)


def made_rows(rng: np.random.Generator, truth: FddbGroundTruth, detections: int) -> dict[str, np.ndarray]:
    """Rectangles ``x y w h score``: near a face most of them, several for one face, the rest anywhere."""
    rows = {}
    per_image = np.bincount(rng.integers(0, IMAGES, detections), minlength=IMAGES)
    for image_id, faces, count in zip(truth.image_ids, truth.ellipses, per_image.tolist(), strict=True):
        major, minor, _, x, y = faces[rng.integers(0, len(faces), count)].T
        spread = rng.choice([0.1, 0.3, 2], (count, 1), p=[0.5, 0.3, 0.2]) * major[:, None]
        boxes = np.column_stack([x - minor, y - major, 2 * minor, 2 * major]) + rng.normal(0, 1, (count, 4)) * spread
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 4)
        rows[image_id] = np.column_stack([boxes, rng.random(count)])
    return rows


def rectangle_mask(row: np.ndarray, width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    corners = to_pixels([row[0], row[1], row[0] + row[2], row[1] + row[3]]).tolist()
    cv2.rectangle(mask, tuple(corners[:2]), tuple(corners[2:]), 1, -1)
    return mask


def reference(truth: FddbGroundTruth, predictions: FddbPredictions, images: int) -> tuple[int, float]:
    """Discrete and continuous true positives at the lowest threshold, after all thresholds have been worked through."""
    discrete, continuous = 0, 0.0
    for image in range(images):
        width, height = truth.sizes_wh[image].tolist()
        faces = [ellipse_mask(row, width, height) for row in truth.ellipses[image]]
        mask = ellipse_mask if predictions.are_ellipses else rectangle_mask
        masks = [mask(row, width, height) for row in predictions.rows[image]]
        hits, total = 0, 0.0
        for threshold in np.unique(predictions.scores[image]):
            valid = np.flatnonzero(predictions.scores[image] >= threshold)
            iou = np.zeros((len(faces), len(valid)))
            for i, face in enumerate(faces):
                for j, detection in enumerate(valid):
                    shared = int(np.count_nonzero(face & masks[detection]))
                    iou[i, j] = shared / int(np.count_nonzero(face | masks[detection]))
            matched = iou[linear_sum_assignment(iou, maximize=True)]
            if threshold == predictions.scores[image].min():
                hits, total = int((matched > 0.5).sum()), float(matched.sum())
        discrete += hits
        continuous += total
    return discrete, continuous


def timed(label: str, start: float, note: str = "") -> float:
    seconds = time.perf_counter() - start
    print(f"{label:<44}{seconds:8.2f} s  {note}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--ground-truth", type=Path)
    parser.add_argument("--detections", type=int, default=15000, help="of the made set")
    parser.add_argument("--reference-images", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.ground_truth and arguments.predictions:
            truth, folder = FddbBenchmark().read_ground_truth(arguments.ground_truth), arguments.predictions
        else:
            rng = np.random.default_rng(0)
            truth = made_ground_truth(rng)
            folder = Path(temporary) / "run"
            rows = made_rows(rng, truth, arguments.detections)
            found = {
                image_id: (np.column_stack([own[:, :2], own[:, :2] + own[:, 2:4]]), own[:, 4])
                for image_id, own in rows.items()
            }
            write_fddb_detections(folder, truth, found)
        start = time.perf_counter()
        predictions = read_fddb_predictions(folder, truth)
        number = sum(len(scores) for scores in predictions.scores)
        reading = timed("reading", start, f"{len(truth.image_ids):,} images, {number:,} detections")
        start = time.perf_counter()
        counts = count_fddb(truth, predictions)
        roc = roc_from_counts(counts)
        ours = timed("regions, overlaps, matching, curves", start, f"{len(roc.thresholds):,} points")
        print(f"{'together':<44}{reading + ours:8.2f} s")
        scores = FddbBenchmark().score_predictions(truth, predictions)
        start = time.perf_counter()
        scores.resampled(1000, 0)
        timed("1,000 resamples, six numbers", start, f"at {LIMITS[0]:,}, {LIMITS[1]:,} and all false positives")
        images = min(arguments.reference_images, len(truth.image_ids))
        start = time.perf_counter()
        discrete, continuous = reference(truth, predictions, images)
        seconds = (time.perf_counter() - start) * len(truth.image_ids) / images
        print(f"{'reference, scaled up':<44}{seconds:8.2f} s  from {images:,} images")
        part = truth.select(truth.image_ids[:images])
        own = FddbPredictions(
            part.image_ids, predictions.rows[:images], predictions.scores[:images], predictions.are_ellipses
        )
        end = roc_from_counts(count_fddb(part, own))
        agree = end.tp_discrete[0] == discrete and abs(end.tp_continuous[0] - continuous) < 1e-9
        print(f"ratio {seconds / ours:.1f}, the numbers agree: {agree}")
        shared = sum(
            bool(((image_iou(truth, predictions, image) > 0).sum(axis=0) > 1).any())
            for image in range(len(truth.image_ids))
        )
        print(f"images with a detection that overlaps several faces: {shared:,}")
        print(json.dumps(scores.values))


if __name__ == "__main__":
    main()
