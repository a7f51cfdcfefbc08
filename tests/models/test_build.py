"""What the networks cost, and the names of their weights: pinned."""

from typing import Any

import pytest
import torch

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


def test_flops_of_s3fd() -> None:
    """257 GFLOP at 640 × 640; the mode stays."""
    network = _meta(level=1)
    assert flops(network, 640, 640) == pytest.approx(257.1e9, rel=1e-3) and network.training
