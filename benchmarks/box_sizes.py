"""Where a detector's boxes are wrong, by their size: WIDER FACE's val images, or a list of them.

    python benchmarks/box_sizes.py PREDICTIONS GROUND_TRUTH [--images LIST] [--score 0.3] [--shift-x -0.5]

Per height in pixels: boxes above the score that overlap an annotated face by at least 0.5, and those that do not; of
the faces that count as hard, the medians of the shift in x (shares of the width) and of the logarithms of width and
height, box over face, for the best box of each face that overlaps it by 0.3. With --shift-x also hard AP of all boxes
moved.
"""

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fanet_lightning.score.analysis.error_types import error_types
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.predictions import read_predictions

HEIGHTS = (0, 10, 13, 16, 32, 64, 128, 256, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("ground_truth", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--score", type=float, default=0.3)
    parser.add_argument("--shift-x", type=float)
    options = parser.parse_args()
    truth = WiderFaceBenchmark().read_ground_truth(options.ground_truth, options.images)
    found = read_predictions(options.predictions, truth.image_ids, known_ids=truth.whole_ids)
    errors = error_types(truth, found)
    faces = np.concatenate(truth.boxes_xywh)
    hard = np.concatenate(truth.counted["hard"])
    shown = found.scores >= options.score

    # The best box of every face comes last and stays.
    rows = np.flatnonzero(shown & (errors.overlaps >= 0.3))
    rows = rows[np.argsort(errors.overlaps[rows], kind="stable")]
    best = np.full(len(faces), -1)
    best[errors.nearest[rows]] = rows
    known = np.flatnonzero(hard & (best >= 0))
    boxes, own = found.boxes_xywh[best[known]], faces[known]
    shift = (boxes[:, 0] + boxes[:, 2] / 2 - own[:, 0] - own[:, 2] / 2) / own[:, 2]
    logs = np.log(boxes[:, 2:] / own[:, 2:])

    print(f"{'height':>12}  right  wrong  faces  shift x  log width  log height")
    for low, high in pairwise(HEIGHTS):
        of_size = shown & (found.boxes_xywh[:, 3] >= low) & (found.boxes_xywh[:, 3] < high)
        right = int((errors.overlaps[of_size] >= 0.5).sum())
        chosen = (own[:, 3] >= low) & (own[:, 3] < high)
        medians = [float(np.median(x[chosen])) if chosen.any() else np.nan for x in (shift, logs[:, 0], logs[:, 1])]
        text = "  ".join(f"{value:+9.3f}" for value in medians)
        print(f"{low:5}–{high:<6}  {right:5}  {int(of_size.sum()) - right:5}  {int(chosen.sum()):5}  {text}")
    if options.shift_x is not None:
        moved = replace(found, boxes_xywh=found.boxes_xywh + np.array([options.shift_x, 0, 0, 0]))
        before, after = (score(truth, run)["hard"].ap for run in (found, moved))
        print(
            f"hard AP {before:.6f}, all boxes moved by {options.shift_x:+} pixels {after:.6f} ({after - before:+.6f})"
        )


if __name__ == "__main__":
    main()
