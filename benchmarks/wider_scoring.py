"""WIDER FACE scoring: ours against the algorithm of the usual Python evaluators, in one process.

    python benchmarks/wider_scoring.py [--predictions DIR_OR_ZIP --ground-truth DIR] [--reference-images N]

Without files it makes its own run of 3,226 images with about 650,000 rows (seeded). The reference keeps the usual
structure: per setting and image an overlap matrix, a Python loop over the rows, a Python loop over 1,000 thresholds.
With --reference-images the reference sees only that many images and its time is scaled up, which the output says.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, read_ground_truth, write_ground_truth
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions, write_predictions

IMAGES = 3226


def reference(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, float]:
    """Setting → AP, structured as the evaluators in use are."""
    low, high = min(1.0, predictions.scores.min()), max(0.0, predictions.scores.max())
    normalised = (predictions.scores - low) / (high - low)
    thresholds = [1 - (t + 1) / 1000 for t in range(1000)]
    result = {}
    for setting, masks in ground_truth.counted.items():
        pooled = np.zeros((1000, 2))
        total = 0
        for i, (faces, counts) in enumerate(zip(ground_truth.boxes_xywh, masks, strict=True)):
            rows = slice(*predictions.starts[i : i + 2].tolist())
            total += int(counts.sum())
            if len(faces) == 0 or rows.stop == rows.start:
                continue
            order = np.argsort(-normalised[rows], kind="stable")
            boxes, scores = predictions.boxes_xywh[rows][order], normalised[rows][order]
            overlaps = overlap_matrix(boxes, faces)
            taken = np.zeros(len(faces))
            proposal = np.ones(len(boxes))
            recalled = np.zeros(len(boxes))
            for h in range(len(boxes)):
                best = overlaps[h].argmax()
                if overlaps[h, best] >= 0.5:
                    if not counts[best]:
                        taken[best] = -1
                        proposal[h] = -1
                    elif taken[best] == 0:
                        taken[best] = 1
                recalled[h] = len(np.where(taken == 1)[0])
            for t, threshold in enumerate(thresholds):
                reached = np.where(scores >= threshold)[0]
                if len(reached):
                    last = reached[-1]
                    pooled[t, 0] += len(np.where(proposal[: last + 1] == 1)[0])
                    pooled[t, 1] += recalled[last]
        precision = np.divide(pooled[:, 1], pooled[:, 0], out=np.zeros(1000), where=pooled[:, 0] > 0)
        recall = np.concatenate([[0.0], pooled[:, 1] / total, [1.0]])
        envelope = np.concatenate([[0.0], precision, [0.0]])
        for k in range(len(envelope) - 1, 0, -1):
            envelope[k - 1] = max(envelope[k - 1], envelope[k])
        steps = np.where(recall[1:] != recall[:-1])[0]
        result[setting] = float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))
    return result


def overlap_matrix(boxes: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(D, 4), (F, 4) xywh → (D, F), with the +1 of the tool."""
    low = np.maximum(boxes[:, None, :2], faces[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (faces[:, :2] + faces[:, 2:])[None])
    sides = np.clip(high - low + 1, 0, None)
    shared = sides[..., 0] * sides[..., 1]
    areas = np.prod(boxes[:, 2:] + 1, axis=1)[:, None] + np.prod(faces[:, 2:] + 1, axis=1)[None]
    return np.where(shared > 0, shared / np.where(shared > 0, areas - shared, 1), 0)


def make_run(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """A run of the size of WIDER val: 12 faces an image, some crowds of 700, about 200 rows an image."""
    rng = np.random.default_rng(seed)
    ids, all_faces, detections = [], [], {}
    counted: dict[str, list[np.ndarray]] = {"easy": [], "medium": [], "hard": []}
    for i in range(IMAGES):
        image_id = f"{i % 61}--Event/{i % 61}_Event_{i}"
        faces_here = min(1 + int(rng.pareto(1.0) * 3), 709)
        side = np.minimum(3 + rng.pareto(1.2, (faces_here, 1)) * 12, 500)
        faces = np.concatenate(
            [rng.uniform(0, 1000, (faces_here, 1)), rng.uniform(0, 700, (faces_here, 1)), side, side * 1.3], axis=1
        ).round()
        near = np.repeat(faces, rng.integers(0, 3, faces_here), axis=0)
        near = near + rng.normal(0, 0.12, near.shape) * near[:, 2:3]
        stray = max(int(rng.normal(185, 40)), 0)
        far = np.concatenate([rng.uniform(0, 1000, (stray, 2)), rng.uniform(4, 60, (stray, 2))], axis=1)
        rows = np.concatenate([near, far])
        rows[:, 2:] = np.abs(rows[:, 2:])
        scores = np.concatenate([rng.beta(4, 2, len(near)), 0.3 * rng.beta(1, 6, stray)])
        ids.append(image_id)
        all_faces.append(faces)
        for setting, smallest in (("easy", 50), ("medium", 25), ("hard", 8)):
            counted[setting].append(faces[:, 2] >= smallest)
        detections[image_id] = (np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1), scores)
    write_ground_truth(folder / "ground_truth", GroundTruth(tuple(ids), all_faces, counted))
    write_predictions(folder / "predictions", detections)
    return folder / "predictions", folder / "ground_truth"


def timed(work: Callable[[], object], repeats: int) -> float:
    """Best wall-clock of ``repeats``, seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def add_source(parser: argparse.ArgumentParser) -> None:
    """The two options for files of one's own; without them a made-up run is measured."""
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--ground-truth", type=Path)


def source_of(parser: argparse.ArgumentParser, options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Predictions and ground truth: those given, or a run made up in ``folder``."""
    if (options.predictions is None) != (options.ground_truth is None):
        parser.error("give both --predictions and --ground-truth, or neither")
    return make_run(folder) if options.predictions is None else (options.predictions, options.ground_truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--reference-images", type=int, default=300, help="0: all (a minute or more)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source = source_of(parser, options, Path(temporary))
        measure(*source, options.reference_images, options.repeats)


def measure(source: Path, ground_truth_source: Path, reference_images: int, repeats: int) -> None:
    command = [
        sys.executable,
        "-m",
        "fanet_lightning.score",
        f"predictions={source}",
        f"ground_truth={ground_truth_source}",
        "bootstrap=0",
    ]
    whole_command = timed(lambda: subprocess.run(command, check=True, capture_output=True), repeats)
    truth_time = timed(lambda: read_ground_truth(ground_truth_source), repeats)
    whole = read_ground_truth(ground_truth_source)
    read_time = timed(lambda: read_predictions(source, whole.image_ids), repeats)
    predictions = read_predictions(source, whole.image_ids)
    score_time = timed(lambda: score(whole, predictions), repeats)
    images, rows = len(whole.image_ids), len(predictions.scores)
    print(f"{images:,} images, {sum(map(len, whole.boxes_xywh)):,} faces, {rows:,} rows, {len(whole.counted)} settings")
    print(f"whole command          {whole_command:8.2f} s  (imports, reading, scoring, table)")
    print(f"  read ground truth    {truth_time:8.2f} s")
    print(f"  read predictions     {read_time:8.2f} s")
    print(f"  score                {score_time:8.2f} s")

    # Every n-th image, so that the subset holds its share of every event.
    step = 1 if reference_images <= 0 else max(1, images // reference_images)
    ids = whole.image_ids[::step]
    part = whole.select(ids)
    part_predictions = read_predictions(source, ids, known_ids=whole.image_ids)
    start = time.perf_counter()
    expected = reference(part, part_predictions)
    reference_time = time.perf_counter() - start
    ours = score(part, part_predictions)
    difference = max(abs(ours[setting].ap - ap) for setting, ap in expected.items())
    if not difference < 1e-9:
        sys.exit(f"the two sides disagree by {difference}: {expected}")
    ours_time = timed(lambda: score(part, part_predictions), repeats)
    share = len(part_predictions.scores) / rows
    scaled = (
        "measured" if step == 1 else f"{reference_time:.2f} s on {len(ids)} images, {share:.1%} of the rows, scaled"
    )
    print(f"reference algorithm    {reference_time / share:8.2f} s  ({scaled})")
    print(f"ratio on the same {len(ids):,} images: {reference_time / ours_time:.0f} x; AP equal to {difference:.0e}")


if __name__ == "__main__":
    main()
