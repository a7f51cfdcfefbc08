"""Anchors, against numbers worked out by hand (FANet §3.3)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.ops.anchors import SIZES, STRIDES, AnchorGrid
from tests.ops.helpers import grid_for


def test_the_training_size() -> None:
    grid = grid_for(640, 640)
    assert grid.count == 160**2 + 80**2 + 40**2 + 20**2 + 10**2 + 5**2 == 34_125
    assert grid.starts == (0, 25_600, 32_000, 33_600, 34_000, 34_100)
    anchors = grid.boxes_cxcywh()
    assert anchors.shape == (34_125, 4) and anchors.dtype == torch.float32
    by_hand = {
        0: [2, 2, 16, 16],
        1: [6, 2, 16, 16],  # along the row first
        160: [2, 6, 16, 16],
        25_599: [638, 638, 16, 16],
        25_600: [4, 4, 32, 32],
        32_000: [8, 8, 64, 64],
        33_600: [16, 16, 128, 128],
        34_000: [32, 32, 256, 256],
        34_100: [64, 64, 512, 512],
        34_124: [576, 576, 512, 512],  # reaches beyond the image: never clipped
    }
    assert {index: anchors[index].tolist() for index in by_hand} == by_hand
    assert grid.boxes_cxcywh("cpu") is anchors and grid_for(640, 640).boxes_cxcywh() is anchors
    assert grid_for(333, 501).map_shapes == ((84, 126), (42, 63), (21, 32), (11, 16), (6, 8), (3, 4))
    with pytest.raises(ValueError, match="zip"):
        AnchorGrid(((4, 4), (2, 2))).boxes_cxcywh()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=6, max_size=6))
def test_equals_plain_loops(shapes: list[tuple[int, int]]) -> None:
    grid = AnchorGrid(tuple(shapes))
    expected = [
        [(x + 0.5) * stride, (y + 0.5) * stride, size, size]
        for (height, width), stride, size in zip(shapes, STRIDES, SIZES, strict=True)
        for y in range(height)
        for x in range(width)
    ]
    assert grid.boxes_cxcywh().tolist() == expected
    assert grid.count == len(expected)
    for start, stride, size in zip(grid.starts, STRIDES, SIZES, strict=True):
        assert expected[start] == [stride / 2, stride / 2, size, size]
