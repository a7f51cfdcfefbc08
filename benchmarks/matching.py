"""Matching faces to anchors: this package's windowed matcher next to the usual dense one.

    python benchmarks/matching.py
    python benchmarks/matching.py --device cuda --size 640

ours   ``fanet_lightning.ops.matching.match``: all images at once, a window of cells around each face.
dense  what SSD-style training code does: per image, IoU of every face with every anchor, a maximum along both axes,
       then a Python loop over the faces that forces each one's best anchor (the last face wins a conflict).
Both run in this process on the same faces; passes alternate. The table shows the median, the fastest pass, and the
ratio of medians. "agree" is the share of anchors to which both give the same face; the rest are conflicts, which ours
resolves.
With more threads than idle cores both sides wait for the scheduler: run it on an idle machine, or with --threads 1.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, pairwise_iou
from fanet_lightning.ops.matching import match
from fanet_lightning.ops.structures import Targets

THRESHOLD = 0.35


def grid_for(size: int) -> AnchorGrid:
    return AnchorGrid(tuple((-(-size // stride), -(-size // stride)) for stride in STRIDES))


def random_faces(counts: list[int], size: int, device: str, smallest: float = 8, largest: float = 300) -> Targets:
    """Log-uniform sizes, 1.2 times as high as wide, anywhere in the image."""
    random = torch.Generator().manual_seed(0)
    total = sum(counts)
    center = torch.rand(total, 2, generator=random) * size
    width = smallest * (largest / smallest) ** torch.rand(total, 1, generator=random)
    half = torch.cat([width, 1.2 * width], dim=1) / 2
    index = torch.repeat_interleave(torch.tensor(counts))
    return Targets(torch.cat([center - half, center + half], dim=1).to(device), index.to(device))


def match_densely(anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """One image: (A, 4), (F, 4) → (A,) face number or -1."""
    iou = pairwise_iou(boxes_xyxy, anchors_xyxy)
    best_anchor = iou.max(dim=1).indices
    overlap, face = iou.max(dim=0)
    overlap.index_fill_(0, best_anchor, 2)
    for number in range(len(best_anchor)):
        face[best_anchor[number]] = number
    face[overlap <= THRESHOLD] = -1
    return face


def alternate(works: list[Callable[[], object]], device: str, repeats: int) -> list[list[float]]:
    """Seconds of every pass of each work, after one to warm up."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for index, work in enumerate(works):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times[index].append(time.perf_counter() - start)
    return times


def set_up(description: str, threads: int, repeats: int) -> tuple[str, int, int, AnchorGrid]:
    """The command line of a benchmark of anchors → device, side of the input in pixels, repeats, and its anchors.

    Sets the number of threads and prints what all figures below it are about.

    Args:
        threads, repeats: their defaults.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", type=int, default=640, help="side of the square input in pixels (%(default)s)")
    parser.add_argument("--threads", type=int, default=threads, help="of the CPU (%(default)s)")
    parser.add_argument("--repeats", type=int, default=repeats, help="measured passes (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, size = arguments.device, arguments.size
    grid = grid_for(size)
    print(f"torch {torch.__version__}, {device}, {arguments.threads} threads, {grid.count} anchors ({size} x {size})")
    return device, size, arguments.repeats, grid


def main() -> None:
    device, size, repeats, grid = set_up(str(__doc__), threads=2, repeats=7)
    anchors_xyxy = cxcywh_to_xyxy(grid.boxes_cxcywh(device))
    print(f"{'images x faces':>15}{'ours':>22}{'dense':>24}{'ratio':>8}{'agree':>10}")
    for counts in ([50], [700], [3] * 12, [50] * 12):
        targets = random_faces(counts, size, device)
        boxes = targets.boxes_xyxy.split(counts)

        def ours(targets: Targets = targets, batch_size: int = len(counts)) -> Tensor:
            return match(grid, targets, batch_size, threshold=THRESHOLD).face_index

        def dense(boxes: tuple[Tensor, ...] = boxes) -> Tensor:
            return torch.stack([match_densely(anchors_xyxy, image) for image in boxes])

        first = torch.arange(len(counts), device=device)[:, None] * counts[0]
        reference = dense()
        agree = (ours() == torch.where(reference >= 0, reference + first, -1)).double().mean().item()
        mine, theirs = alternate([ours, dense], device, repeats)
        row = [f"{statistics.median(t) * 1e3:9.1f} ms (≥ {min(t) * 1e3:.1f})" for t in (mine, theirs)]
        ratio = statistics.median(theirs) / statistics.median(mine)
        print(f"{len(counts):>9} x {counts[0]:<4}{row[0]:>22}{row[1]:>24}{ratio:7.1f}x{agree:10.3%}", flush=True)


if __name__ == "__main__":
    main()
