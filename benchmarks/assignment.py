"""ATSS and SimOTA around each face next to the usual dense ones, and what each option of the loss costs.

    python benchmarks/assignment.py
    python benchmarks/assignment.py --device cuda

ours   ``fanet_lightning.ops.assigners``: all images at once, windows of cells around the faces.
dense  as training code commonly has them: per image, every face against every anchor. ATSS sorts all distances per map;
       SimOTA compares all predicted boxes with all faces among the anchors near any face, takes k in a Python loop over
       the faces (YOLOX), and lets a pair outside of a face's own center region cost 1e6 more.
Both run in this process on the same faces; passes alternate. The table shows the median, the fastest pass, and the
ratio of medians. "agree" is the share of positives (of either side) to which both give the same face; SimOTA's rules
differ where faces are crowded, see ``assign_simota``.

The second table is the whole loss, forward and backward, with three hierarchies; its ratio is to the paper's loss.
"""

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.assigners import (
    CANDIDATES_PER_MAP,
    CENTER_RADIUS,
    IOU_FLOOR,
    IOU_WEIGHT,
    LARGEST_IOUS,
    assign_atss,
    assign_simota,
)
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, decode, pairwise_iou
from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput
from matching import alternate, random_faces, set_up

COUNTS = ([50] * 12, [700])
OPTIONS = {
    "the paper's": {},
    "atss": {"assignment": "atss"},
    "simota": {"assignment": "simota"},
    "focal": {"classification": "focal"},
    "quality_focal": {"classification": "quality_focal"},
    "giou": {"box": "giou"},
    "ciou": {"box": "ciou"},
    "simota, quality_focal, ciou": {"assignment": "simota", "classification": "quality_focal", "box": "ciou"},
}


def atss_densely(grid: AnchorGrid, boxes_xyxy: Tensor) -> Tensor:
    """One image: (F, 4) → (A,) face number or -1."""
    priors = grid.boxes_cxcywh(boxes_xyxy.device)
    iou = pairwise_iou(boxes_xyxy, cxcywh_to_xyxy(priors))
    middle = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    distance = (priors[None, :, :2] - middle[:, None]).square().sum(dim=2).sqrt()
    chosen = []
    for start, (height, width) in zip(grid.starts, grid.map_shapes, strict=True):
        count = height * width
        part = distance[:, start : start + count]
        chosen.append(part.topk(min(CANDIDATES_PER_MAP, count), dim=1, largest=False).indices + start)
    candidates = torch.cat(chosen, dim=1)
    overlap = iou.gather(1, candidates)
    threshold = overlap.mean(dim=1, keepdim=True) + overlap.std(dim=1, keepdim=True)
    at = priors[candidates, :2]
    inside = ((at > boxes_xyxy[:, None, :2]) & (at < boxes_xyxy[:, None, 2:])).all(dim=2)
    kept = torch.full_like(iou, -1)
    kept.scatter_(1, candidates, torch.where((overlap >= threshold) & inside, overlap, -1))
    best, face = kept.max(dim=0)
    return torch.where(best > 0, face, -1)


def simota_densely(grid: AnchorGrid, strides: Tensor, boxes_xyxy: Tensor, logits: Tensor, offsets: Tensor) -> Tensor:
    """One image: (F, 4), (A, 2), (A, 4) → (A,) face number or -1."""
    priors = grid.boxes_cxcywh(boxes_xyxy.device)
    middle = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    away = (priors[None, :, :2] - middle[:, None]).abs().amax(dim=2)
    near = away < CENTER_RADIUS * strides
    considered = near.any(dim=0).nonzero().squeeze(1)
    near = near[:, considered]
    iou = pairwise_iou(boxes_xyxy, decode(offsets[considered], priors[considered]))
    margin = logits[considered, 1] - logits[considered, 0]
    cost = F.softplus(-margin) - IOU_WEIGHT * (iou + IOU_FLOOR).log() + 1e6 * ~near
    counts = iou.topk(min(LARGEST_IOUS, iou.shape[1]), dim=1).values.sum(dim=1).int().clamp(min=1).tolist()
    taken = torch.zeros_like(near)
    for face, count in enumerate(counts):
        taken[face, cost[face].topk(count, largest=False).indices] = True
    disputed = taken.sum(dim=0) > 1
    winner = cost[:, disputed].argmin(dim=0)
    taken[:, disputed] = False
    taken[winner, disputed.nonzero().squeeze(1)] = True
    result = torch.full((grid.count,), -1, device=boxes_xyxy.device)
    result[considered] = torch.where(taken.any(dim=0), taken.int().argmax(dim=0), -1)
    return result


def row(times: list[list[float]]) -> str:
    cells = [f"{statistics.median(t) * 1e3:9.1f} ms (≥ {min(t) * 1e3:.1f})" for t in times]
    return f"{cells[0]:>24}{cells[1]:>26}{statistics.median(times[1]) / statistics.median(times[0]):8.1f}x"


def main() -> None:
    device, _, repeats, grid = set_up(str(__doc__), threads=1, repeats=5)
    print(f"{'':8}{'images x faces':>15}{'ours':>24}{'dense':>26}{'ratio':>9}{'agree':>9}")
    for counts in COUNTS:
        compare(grid, counts, device, repeats)
    costs(grid, [50] * 12, device, repeats)


def random_heads(grid: AnchorGrid, images: int, device: str) -> HeadOutput:
    random = torch.Generator().manual_seed(0)
    logits, offsets = (torch.randn(images, grid.count, channels, generator=random) for channels in (2, 4))
    return HeadOutput(logits.to(device).requires_grad_(), (0.5 * offsets).to(device).requires_grad_())


def compare(grid: AnchorGrid, counts: list[int], device: str, repeats: int) -> None:
    targets = random_faces(counts, grid.map_shapes[0][0] * grid.strides[0], device)
    heads = HeadOutput(*(tensor.detach() for tensor in random_heads(grid, len(counts), device)))
    boxes = targets.boxes_xyxy.split(counts)
    cells = torch.tensor([height * width for height, width in grid.map_shapes])
    strides = torch.tensor(grid.strides).repeat_interleave(cells).to(device)
    first = torch.tensor([0, *counts[:-1]], device=device).cumsum(0)[:, None]

    def dense_simota() -> Tensor:
        return torch.stack([simota_densely(grid, strides, *one) for one in zip(boxes, *heads, strict=True)])

    works = {
        "ATSS": (
            lambda: assign_atss(grid, targets, len(counts)).face_index,
            lambda: torch.stack([atss_densely(grid, image) for image in boxes]),
        ),
        "SimOTA": (lambda: assign_simota(grid, targets, heads).face_index, dense_simota),
    }
    for name, (ours, dense) in works.items():
        mine, theirs = ours(), dense()
        theirs = torch.where(theirs >= 0, theirs + first, -1)
        positive = (mine >= 0) | (theirs >= 0)
        agree = (mine == theirs)[positive].double().mean().item()
        times = alternate([ours, dense], device, repeats)
        print(f"{name:8}{len(counts):>9} x {counts[0]:<4}{row(times)}{agree:9.2%}", flush=True)


def costs(grid: AnchorGrid, counts: list[int], device: str, repeats: int) -> None:
    targets = random_faces(counts, grid.map_shapes[0][0] * grid.strides[0], device)
    hierarchies = [random_heads(grid, len(counts), device) for _ in range(3)]
    output = NetworkOutput(hierarchies, list(grid.map_shapes))
    leaves = [tensor for heads in hierarchies for tensor in heads]

    def work(criterion: HierarchicalLoss) -> object:
        return torch.autograd.grad(criterion(output, grid, targets).total, leaves)

    criteria = [HierarchicalLoss(**options) for options in OPTIONS.values()]  # type: ignore[arg-type]
    times = alternate([lambda criterion=criterion: work(criterion) for criterion in criteria], device, repeats)
    print(f"\nthe loss, {len(counts)} images x {counts[0]} faces, 3 hierarchies, forward and backward")
    paper = statistics.median(times[0])
    for name, passes in zip(OPTIONS, times, strict=True):
        median = statistics.median(passes)
        print(f"{name:30}{median * 1e3:9.1f} ms (≥ {min(passes) * 1e3:.1f}){median / paper:8.2f}x", flush=True)


if __name__ == "__main__":
    main()
