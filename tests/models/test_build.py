"""What the networks cost, and the names of their weights: pinned."""

from typing import Any

import pytest
import torch
from torch import nn

from fanet_lightning.models.fanet import build_network, flops, inference_parameters


def _meta(**values: Any) -> Any:
    """Full-width networks without memory: the counts need shapes alone."""
    with torch.device("meta"):
        return build_network(**values)


# Sums of layers, by hand (the paper gives +11 % for two levels, §4.2, which pins the 3×3 smooth layer): of detection,
# and of training, which adds heads and batch normalization. Heads of level 1: 9 × 256 × 8 + 8 on conv3_3,
# 9 × C × 6 + 6 for C = 512, 512, 1024, 512, 256 → 170,534. Of level 2, conv4_3 and conv5_3 now of 256 channels:
# 170,534 - 2 × 9 × 256 × 6 → 142,886. Batch normalization: two numbers for each channel of 4,224 in VGG16, 1024 + 1024
# of fc6 and fc7, 256 + 512 + 128 + 256 of the extras.
COUNTS = [
    ({"level": 1}, 22_459_110, 0),
    ({"level": 1, "batch_norm": True}, 22_459_110, 2 * (4_224 + 2_048 + 1_152)),
    ({"level": 2, "context": False}, 24_816_966, 170_534),
    ({"level": 2}, 25_604_166, 170_534),
    ({"context": False}, 26_292_614, 170_534 + 142_886),
    ({"context": False, "own_blocks": True}, 27_055_014, 170_534 + 142_886),
    ({}, 27_604_614, 170_534 + 142_886),
    ({"hl": False}, 27_604_614, 0),
    ({"own_blocks": True}, 28_629_414, 170_534 + 142_886),
    ({"fc6": "dilated"}, 27_604_614, 170_534 + 142_886),
    ({"name": "s3fd_fpn"}, 25_341_158, 0),
    ({"name": "s3fd_fpn", "fpn_maps": 6}, 26_704_614, 0),
]


@pytest.mark.parametrize(("values", "detection", "training_alone"), COUNTS)
def test_parameters(values: dict[str, Any], detection: int, training_alone: int) -> None:
    network = _meta(**values)
    assert inference_parameters(network) == detection
    assert sum(p.numel() for p in network.parameters()) == detection + training_alone


@pytest.mark.parametrize("values", [{}, {"own_blocks": True, "batch_norm": True}, {"name": "s3fd_fpn"}])
def test_flops_equal_a_count_at_every_layer(values: dict[str, Any]) -> None:
    network = build_network(width=0.05, **values)
    total = 0

    def count(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        total += 2 * layer.weight.numel() * out.shape[-2] * out.shape[-1]

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 75, 110, dtype=torch.uint8))
    for handle in handles:
        handle.remove()
    before = {key: x.clone() for key, x in network.state_dict().items()}
    assert flops(network.train(), 75, 110) == total
    assert network.training
    assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items())


def test_flops_of_s3fd() -> None:
    """257 GFLOP at 640 × 640."""
    assert flops(_meta(level=1), 640, 640) == pytest.approx(257.1e9, rel=1e-3)
