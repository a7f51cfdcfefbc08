"""The hierarchical loss beyond matching, forward and backward: this package's next to the usual MultiBoxLoss.

    python benchmarks/loss.py
    python benchmarks/loss.py --device cuda --faces 50

ours   ``fanet_lightning.ops.hierarchical_loss.HierarchicalLoss``: rows of the positives once per batch, top-k mining,
       gathered rows.
usual  SSD's MultiBoxLoss as it is commonly written, once per hierarchy: log-sum-exp over all anchors, two full sorts
       for the ranks, boolean masks expanded over the logits, cross-entropy and smooth-L1 on the masked rows.
Both get the same matching, which is taken once and is not timed, run in this process, and have to agree in value and
gradient. Passes alternate. The table shows the median, the fastest pass, and the ratio of medians.
"""

import argparse
import statistics
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import encode
from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss
from fanet_lightning.ops.matching import match
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput, Targets
from matching import alternate, grid_for, random_faces


def usual_loss(output: NetworkOutput, grid: AnchorGrid, targets: Targets, face_index: Tensor) -> Tensor:
    """Σ over hierarchies of (3 · cross-entropy + smooth-L1) / positives; every image has a face."""
    anchors = grid.boxes_cxcywh(face_index.device).expand(*face_index.shape, 4)
    wanted = encode(targets.boxes_xyxy[face_index.clamp(min=0)], anchors)
    total = torch.zeros((), device=face_index.device)
    for logits, offsets in output.hierarchies:
        positive = face_index >= 0
        count = positive.sum(dim=1, keepdim=True)
        mask = positive[..., None].expand_as(offsets)
        box = F.smooth_l1_loss(offsets[mask].view(-1, 4), wanted[mask].view(-1, 4), reduction="sum")
        hardness = torch.logsumexp(logits, dim=2) - logits.gather(2, positive.long()[..., None]).squeeze(2)
        hardness = hardness.masked_fill(positive, 0)
        rank = hardness.sort(dim=1, descending=True).indices.sort(dim=1).indices
        kept = positive | (rank < (3 * count).clamp(max=logits.shape[1] - 1))
        rows = logits[kept[..., None].expand_as(logits)].view(-1, 2)
        cls = F.cross_entropy(rows, positive[kept].long(), reduction="sum")
        total = total + (3 * cls + box) / count.sum()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", type=int, default=640, help="side of the square input in pixels")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--hierarchies", type=int, default=3)
    parser.add_argument("--faces", type=int, nargs="+", default=[3, 50], help="per image")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, batch = arguments.device, arguments.batch
    grid = grid_for(arguments.size)
    hierarchies = [
        HeadOutput(
            torch.randn(batch, grid.count, 2, device=device, requires_grad=True),
            torch.randn(batch, grid.count, 4, device=device, requires_grad=True),
        )
        for _ in range(arguments.hierarchies)
    ]
    output = NetworkOutput(hierarchies, list(grid.map_shapes))
    leaves = [tensor for heads in hierarchies for tensor in heads]
    print(f"torch {torch.__version__}, {device}, {arguments.threads} threads")
    print(f"{batch} images, {grid.count} anchors, {arguments.hierarchies} hierarchies; forward, backward, no matching")
    print(f"{'faces':>7}{'positives':>11}{'ours':>22}{'usual':>24}{'ratio':>8}")
    criterion = HierarchicalLoss()
    for faces in arguments.faces:
        targets = random_faces([faces] * batch, arguments.size, device)
        matches = match(grid, targets, batch)

        def ours(targets: Targets = targets) -> tuple[Tensor, ...]:
            total = criterion(output, grid, targets).total
            return (total, *torch.autograd.grad(total, leaves))

        def usual(targets: Targets = targets, face_index: Tensor = matches.face_index) -> tuple[Tensor, ...]:
            total = usual_loss(output, grid, targets, face_index)
            return (total, *torch.autograd.grad(total, leaves))

        with patch("fanet_lightning.ops.hierarchical_loss.match", return_value=matches):
            for mine, theirs in zip(ours(), usual(), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
            times = alternate([ours, usual], device, arguments.repeats)
        row = [f"{statistics.median(t) * 1e3:9.1f} ms (≥ {min(t) * 1e3:.1f})" for t in times]
        ratio = statistics.median(times[1]) / statistics.median(times[0])
        positives = int((matches.face_index >= 0).sum())
        print(f"{faces:>7}{positives:>11}{row[0]:>22}{row[1]:>24}{ratio:7.1f}x", flush=True)


if __name__ == "__main__":
    main()
