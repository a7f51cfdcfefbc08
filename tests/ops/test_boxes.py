"""Box arithmetic, against numbers worked out by hand and against plain Python."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.ops import boxes

coordinate = st.integers(-400, 400).map(lambda quarters: quarters / 4)
side = st.integers(1, 400).map(lambda quarters: quarters / 4)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def test_area_corners_and_centers() -> None:
    """No + 1."""
    assert boxes.area(torch.tensor([[0.0, 0, 10, 4], [-2, -3, 1, 1], [5, 5, 3, 9]])).tolist() == [40, 12, 0]
    corners = torch.tensor([[2.0, 4, 8, 20], [-1, -1, 0, 2]])
    centers = torch.tensor([[5.0, 12, 6, 16], [-0.5, 0.5, 1, 3]])
    assert torch.equal(boxes.xyxy_to_cxcywh(corners), centers)
    assert torch.equal(boxes.cxcywh_to_xyxy(centers), corners)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((5, 5, 15, 15), 25 / 175), ((2, 2, 4, 4), 4 / 100), ((10, 0, 20, 10), 0.0),  # they touch
        ((5, 5, 5, 5), 0.0), ((8, 8, 2, 2), 0.0),  # empty; inside out: must not gain from two negative sides
    ],
)  # fmt: skip
def test_iou_by_hand(second: tuple[float, ...], expected: float) -> None:
    first, other = torch.tensor([0.0, 0, 10, 10]), torch.tensor(second, dtype=torch.float32)
    assert boxes.paired_iou(first, other).item() == pytest.approx(expected, abs=1e-7)
    assert boxes.paired_iou(other, first).item() == pytest.approx(expected, abs=1e-7)


@settings(max_examples=50)
@given(st.lists(box, max_size=6), st.lists(box, max_size=6))
def test_pairwise_iou_equals_torchvision(first: list[tuple[float, ...]], second: list[tuple[float, ...]]) -> None:
    ours, theirs = torch.tensor(first).reshape(-1, 4), torch.tensor(second).reshape(-1, 4)
    torch.testing.assert_close(boxes.pairwise_iou(ours, theirs), torchvision.ops.box_iou(ours, theirs))


def test_encode_by_hand() -> None:
    """A face 16 wide and 64 high, centerd 4 right of and 8 above the center of an anchor of 32."""
    anchor = torch.tensor([[100.0, 100, 32, 32]])
    face = torch.tensor([[96.0, 60, 112, 124]])
    expected = [4 / 32 / 0.1, -8 / 32 / 0.1, math.log(0.5) / 0.2, math.log(2) / 0.2]
    torch.testing.assert_close(boxes.encode(face, anchor), torch.tensor([expected]))
    torch.testing.assert_close(boxes.decode(torch.tensor([expected]), anchor), face)


@settings(max_examples=100)
@given(box, st.sampled_from([16.0, 64.0, 512.0]), coordinate, coordinate)
def test_decode_inverts_encode(face: tuple[float, ...], size: float, x: float, y: float) -> None:
    anchor, target = torch.tensor([[x, y, size, size]]), torch.tensor([face])
    torch.testing.assert_close(boxes.decode(boxes.encode(target, anchor), anchor), target, rtol=1e-4, atol=1e-3)


def test_degenerate_boxes_and_wild_offsets_stay_finite() -> None:
    anchor = torch.tensor([[8.0, 8, 16, 16]])
    assert boxes.encode(torch.tensor([[8.0, 8, 8, 8], [9, 9, 7, 7]]), anchor).isfinite().all()
    wild = boxes.decode(torch.tensor([[0.0, 0, 1e6, 1e6]]), anchor)
    sides = wild[0, 2:] - wild[0, :2]
    torch.testing.assert_close(sides, torch.full((2,), 16_000.0), rtol=1e-3, atol=0)


def test_clip() -> None:
    found = boxes.clip(torch.tensor([[-5.0, -5, 5, 5], [90, 40, 130, 70], [200, 200, 300, 300]]), height=50, width=100)
    assert found.tolist() == [[0, 0, 5, 5], [90, 40, 100, 50], [100, 50, 100, 50]]
