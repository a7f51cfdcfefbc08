"""Does a device agree with the CPU? Outputs, matches, losses and gradients, in float32 and bfloat16.

python benchmarks/device_parity.py --device cuda [--width 1.0 --size 640 --batch 4]

Prints the largest differences and leaves with 1 when float32 differs by more than rounding explains.
"""

import argparse
import sys

import torch

from fanet_lightning.models.fanet import build_network
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss
from fanet_lightning.ops.matching import match
from fanet_lightning.ops.structures import Targets

# Sums over ten thousand products in another order: what float32 gradients differ by between two correct libraries.
OUTPUT_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-3, 1e-3, 2e-2


def faces(batch: int, size: int, per_image: int, seed: int) -> Targets:
    """Random square-ish faces of 8 … size / 2 pixels, logarithmically spread; the last image has none."""
    generator = torch.Generator().manual_seed(seed)
    count = max(batch - 1, 1) * per_image
    side = torch.exp(torch.rand(count, generator=generator) * torch.log(torch.tensor(size / 16))) * 8
    height = side * (0.8 + 0.6 * torch.rand(count, generator=generator))
    corner = torch.rand(count, 2, generator=generator) * (size - torch.stack([side, height], 1)).clamp(min=0)
    boxes_xyxy = torch.cat([corner, corner + torch.stack([side, height], 1)], 1)
    return Targets(boxes_xyxy, torch.arange(count) // per_image)


def step(device: str, dtype: torch.dtype, images: torch.Tensor, targets: Targets, options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """One forward and backward pass from the same weights, brought back: logits, offsets, matches, loss, gradients."""
    torch.manual_seed(0)
    network = build_network(level=3, context=True, hl=True, width=options.width, batch_norm=options.batch_norm)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    targets = Targets(*(value.to(device) for value in targets))
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        output = network(images)
    grid = AnchorGrid(tuple((rows, columns) for rows, columns in output.map_shapes))
    parts = HierarchicalLoss()(output, grid, targets)
    parts.total.backward()
    matches = match(grid, targets, len(images)).face_index
    gradients = {name: p.grad.float().cpu() for name, p in network.named_parameters() if p.grad is not None}
    last = output.hierarchies[-1]
    return last.logits.float().cpu(), last.offsets.float().cpu(), matches.cpu(), float(parts.total.detach()), gradients


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--faces", type=int, default=20)
    parser.add_argument("--batch-norm", action="store_true")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(
        0, 256, (options.batch, 3, options.size, options.size), generator=generator, dtype=torch.uint8
    )
    targets = faces(options.batch, options.size, options.faces, seed=2)
    reference = step("cpu", torch.float32, images, targets, options)
    failed = False
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        found = step(options.device, dtype, images, targets, options)
        scale = max(float(g.norm()) for g in reference[4].values())
        output = max(float((a - b).abs().max()) for a, b in zip(found[:2], reference[:2], strict=True))
        gradient = max(float((found[4][k] - g).norm()) / scale for k, g in reference[4].items())
        loss = abs(found[3] - reference[3]) / abs(reference[3])
        matches = int((found[2] != reference[2]).sum())
        print(
            f"{options.device} {name}: outputs differ by {output:.2e}, loss by {loss:.2e} (relative), gradients by "
            f"{gradient:.2e} of the largest norm, {matches} of {reference[2].numel()} matches differ"
        )
        if dtype == torch.float32:
            failed = matches > 0 or output > OUTPUT_TOLERANCE or loss > LOSS_TOLERANCE or gradient > GRADIENT_TOLERANCE
    print("float32 disagrees with the CPU" if failed else "float32 agrees with the CPU")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
