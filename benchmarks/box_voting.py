"""Box voting: this package's next to the usual loop.

    python benchmarks/box_voting.py
    python benchmarks/box_voting.py --detections 20000

ours   ``fanet_lightning.ops.postprocess.box_vote``: each leader looks only at the boxes that it can reach along x, and
       the means of all groups are taken at once.
loop   what S3FD's test script and its descendants do: the best box against all that are left, the areas computed and
       the array copied anew each time, the results stacked one by one. Singles are kept and boxes are continuous here,
       so that both sides do the same work.
Both run in this process on the same detections, in turn. The table shows the median, the fastest pass and the ratio of
medians. "differ" is the largest difference of a coordinate or score, in pixels; both return the same number of boxes or
the program stops.
"""

import argparse
import statistics
import time

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.ops.postprocess import box_vote


def drawn_detections(count: int, faces: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """(count, 5) box and score: scattered around ``faces`` faces, 8 … 300 pixels large, of an image 1024 wide."""
    random = np.random.default_rng(seed)
    side = 8 * (300 / 8) ** (random.random(faces) ** 2)
    centre = random.random((faces, 2)) * (1024, 768)
    pick = random.integers(0, faces, count)
    jitter = random.normal(size=(count, 4)) * side[pick, None] * 0.12
    half = side[pick, None] / 2
    boxes = np.concatenate([centre[pick] - half, centre[pick] + half], axis=1) + jitter
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    return np.column_stack([boxes, random.random(count) * 0.98 + 0.01]).astype(np.float32).astype(np.float64)


def vote_in_a_loop(rows: npt.NDArray[np.float64], iou: float, keep: int) -> npt.NDArray[np.float64]:
    """(D, 5) → (D', 5)."""
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    result = np.zeros((0, 5))
    while len(rows):
        area = (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])
        width = np.maximum(0, np.minimum(rows[0, 2], rows[:, 2]) - np.maximum(rows[0, 0], rows[:, 0]))
        height = np.maximum(0, np.minimum(rows[0, 3], rows[:, 3]) - np.maximum(rows[0, 1], rows[:, 1]))
        overlap = width * height / (area[0] + area - width * height)
        members = np.where(overlap >= iou)[0]
        group = rows[members]
        rows = np.delete(rows, members, axis=0)
        box = (group[:, :4] * group[:, 4:]).sum(axis=0) / group[:, 4].sum()
        result = np.vstack([result, np.append(box, group[:, 4].max())])
    return result[:keep]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, nargs="+", default=[600, 6600, 20000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--keep", type=int, default=750, help="boxes that come out; the protocol's 750")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"numpy {np.__version__}, one thread; IoU 0.3, {arguments.keep} kept, median of {arguments.repeats}")
    print(f"{'detections':>10}{'faces':>7}{'merged':>8}{'ours':>24}{'loop':>24}{'ratio':>8}{'differ':>10}")
    for count in arguments.detections:
        for faces in (count // 60, count // 8, count // 2):
            rows = drawn_detections(count, faces)
            boxes_xyxy, scores = torch.from_numpy(rows[:, :4]).float(), torch.from_numpy(rows[:, 4]).float()
            times: tuple[list[float], list[float]] = ([], [])
            for repeat in range(arguments.repeats + 1):
                start = time.perf_counter()
                ours = box_vote(boxes_xyxy, scores, iou=0.3, keep=arguments.keep)
                middle = time.perf_counter()
                loop = vote_in_a_loop(rows, 0.3, arguments.keep)
                end = time.perf_counter()
                if repeat:
                    times[0].append(middle - start)
                    times[1].append(end - middle)
            if len(ours.scores) != len(loop):
                raise SystemExit(f"{len(ours.scores)} boxes, the loop gives {len(loop)}")
            differ = np.abs(np.column_stack([ours.boxes_xyxy.numpy(), ours.scores.numpy()]) - loop).max()
            cells = [f"{statistics.median(t) * 1e3:9.1f} ms (≥ {min(t) * 1e3:.1f})" for t in times]
            ratio = statistics.median(times[1]) / statistics.median(times[0])
            row = f"{count:>10}{faces:>7}{len(loop):>8}{cells[0]:>24}{cells[1]:>24}{ratio:7.1f}x{differ:>10.1e}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
