"""What a validation costs beyond inference: ours against the algorithm of the usual Python evaluators, in one process.

    python benchmarks/validation_scoring.py [--images 320] [--detections 750] [--reference-images N]

Ours is what the module does at the end of a validation epoch: detections from tensors, packing, scoring. The reference
is handed the packed rows and keeps the usual structure: per setting and image an overlap matrix, a Python loop over the
rows, a Python loop over 1,000 thresholds. It sees --reference-images images and its time is scaled up, which the output
says.
"""

import argparse
import sys
import time

import numpy as np
import torch

from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.bootstrap import count_images
from fanet_lightning.score.curves import Curve
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from wider_scoring import reference, timed

ASKED_SECONDS = 1.0


def make_validation(images: int, detections: int, seed: int = 0) -> tuple[GroundTruth, dict[str, Detections]]:
    """12 faces an image, some crowds of hundreds, and as many detections an image as the network keeps at most."""
    rng = np.random.default_rng(seed)
    ids, all_faces, found = [], [], {}
    counted: dict[str, list[np.ndarray]] = {"easy": [], "medium": [], "hard": []}
    for i in range(images):
        faces_here = min(1 + int(rng.pareto(1.0) * 3), 709)
        side = np.minimum(3 + rng.pareto(1.2, (faces_here, 1)) * 12, 500)
        corner = rng.uniform(0, 1000, (faces_here, 2))
        faces = np.concatenate([corner, side, side * 1.3], axis=1).round()
        near = np.repeat(faces, rng.integers(0, 3, faces_here), axis=0)[:detections]
        near = near + rng.normal(0, 0.12, near.shape) * near[:, 2:3]
        stray = detections - len(near)
        far = np.concatenate([rng.uniform(0, 1000, (stray, 2)), rng.uniform(4, 60, (stray, 2))], axis=1)
        rows = np.abs(np.concatenate([near, far]))
        scores = np.concatenate([rng.beta(4, 2, len(near)), 0.3 * rng.beta(1, 6, stray)])
        boxes_xyxy = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1)
        ids.append(f"{i % 61}--Event/{i % 61}_Event_{i}")
        all_faces.append(faces)
        for setting, smallest in (("easy", 50), ("medium", 25), ("hard", 8)):
            counted[setting].append(faces[:, 2] >= smallest)
        found[ids[-1]] = Detections(torch.tensor(boxes_xyxy).float(), torch.tensor(scores).float())
    return GroundTruth(tuple(ids), all_faces, counted), found


def packed(ground_truth: GroundTruth, detections: dict[str, Detections]) -> Predictions:
    """As ``FaceDetectionModule.on_validation_epoch_end``."""
    found = {
        image_id: (item.boxes_xyxy.double().numpy(), item.scores.double().numpy())
        for image_id, item in detections.items()
    }
    return Predictions.from_detections(found, ground_truth.image_ids)


def ours(ground_truth: GroundTruth, detections: dict[str, Detections]) -> dict[str, Curve]:
    return score(ground_truth, packed(ground_truth, detections))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--detections", type=int, default=750)
    parser.add_argument("--reference-images", type=int, default=32, help="0: all (minutes)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    ground_truth, detections = make_validation(options.images, options.detections)
    predictions = packed(ground_truth, detections)
    rows = len(predictions.scores)
    faces = sum(map(len, ground_truth.boxes_xywh))
    print(f"{options.images:,} images, {faces:,} faces, {rows:,} detections, {len(ground_truth.counted)} settings")
    seconds = timed(lambda: ours(ground_truth, detections), options.repeats)
    packing = timed(lambda: packed(ground_truth, detections), options.repeats)
    counting = timed(lambda: count_images(ground_truth, predictions), options.repeats)
    print(f"scoring beyond inference {seconds:8.3f} s  (asked: {ASKED_SECONDS:g} s)")
    print(f"  tensors to packed rows {packing:8.3f} s")
    print(f"  score                  {seconds - packing:8.3f} s")
    print(f"  counts per image       {counting:8.3f} s  (in place of score, where intervals are wanted)")

    step = 1 if options.reference_images <= 0 else max(1, options.images // options.reference_images)
    part = ground_truth.select(ground_truth.image_ids[::step])
    part_detections = {image_id: detections[image_id] for image_id in part.image_ids}
    part_predictions = packed(part, part_detections)
    start = time.perf_counter()
    expected = reference(part, part_predictions)
    reference_seconds = time.perf_counter() - start
    found = ours(part, part_detections)
    difference = max(abs(found[setting].ap - ap) for setting, ap in expected.items())
    if not difference < 1e-9:
        sys.exit(f"the two sides disagree by {difference}: {expected}")
    same = timed(lambda: ours(part, part_detections), options.repeats)
    share = len(part_predictions.scores) / rows
    how = "measured" if step == 1 else f"{reference_seconds:.2f} s on {len(part.image_ids)} images, scaled"
    print(f"reference algorithm      {reference_seconds / share:8.2f} s  ({how})")
    ratio = reference_seconds / same
    print(f"ratio on the same {len(part.image_ids)} images: {ratio:.0f} x; AP equal to {difference:.0e}")


if __name__ == "__main__":
    main()
