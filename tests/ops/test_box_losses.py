"""IoU losses on boxes, against numbers worked out by hand, a scalar oracle and torchvision."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fanet_lightning.ops.boxes import decode
from fanet_lightning.ops.losses import IOU_LOSSES, iou_loss

TORCHVISION = {
    "giou": torchvision.ops.generalized_box_iou_loss,
    "diou": torchvision.ops.distance_box_iou_loss,
    "ciou": torchvision.ops.complete_box_iou_loss,
}


def slow_loss(kind: str, first: list[float], second: list[float]) -> float:
    """The papers' definitions for one pair of boxes that are not empty, in double precision."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = first, second
    common = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    hull_width, hull_height = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    iou = common / union
    if kind == "giou":
        hull = hull_width * hull_height
        return 1 - (iou - (hull - union) / hull)
    apart = ((ax1 + ax2) / 2 - (bx1 + bx2) / 2) ** 2 + ((ay1 + ay2) / 2 - (by1 + by2) / 2) ** 2
    loss = 1 - iou + apart / (hull_width**2 + hull_height**2)
    if kind == "ciou":
        v = 4 / math.pi**2 * (math.atan((bx2 - bx1) / (by2 - by1)) - math.atan((ax2 - ax1) / (ay2 - ay1))) ** 2
        loss += v * v / (1 - iou + v) if v else 0
    return loss


def random_boxes(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    low = 60 * torch.rand(count, 2, generator=random) - 10
    return torch.cat([low, low + 1 + 40 * torch.rand(count, 2, generator=random)], dim=1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Squares of 2, one to the right of the other by 1: IoU 2 / 6; hull 3 x 2; centres 1 apart, diagonal² 13.
        ("giou", 1 - 1 / 3),
        ("diou", 1 - 1 / 3 + 1 / 13),
        ("ciou", 1 - 1 / 3 + 1 / 13),
    ],
)
def test_overlapping_squares_by_hand(kind: str, expected: float) -> None:
    found = iou_loss(kind, torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 2]))
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "expected"), [("giou", 1 + 2 / 6), ("diou", 1 + 16 / 40), ("ciou", 1 + 16 / 40)])
def test_boxes_apart_by_hand(kind: str, expected: float) -> None:
    """Squares of 2 with a gap of 2: hull 6 x 2, of which 4 are nobody's; centres 4 apart, diagonal² 40."""
    found = iou_loss(kind, torch.tensor([0.0, 0, 2, 2]), torch.tensor([4.0, 0, 6, 2]))
    assert found.item() == pytest.approx(expected)


def test_the_aspect_ratio_counts_in_ciou_alone() -> None:
    """A square of 2 in the middle of 4 x 2: IoU 1/2, no distance; v = 4/π² (atan 2 - atan 1)² = 0.04196.

    Its weight is v / (1/2 + v) = 0.07743, so CIoU adds 0.003249.
    """
    square, wide = torch.tensor([1.0, 0, 3, 2]), torch.tensor([0.0, 0, 4, 2])
    assert iou_loss("diou", square, wide).item() == pytest.approx(0.5)
    assert iou_loss("ciou", square, wide).item() == pytest.approx(0.503249, abs=1e-6)


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_equals_the_definition_and_torchvision_with_gradients(kind: str) -> None:
    first, second = random_boxes(500, 1).requires_grad_(), random_boxes(500, 2)
    found = iou_loss(kind, first, second)
    slow = [slow_loss(kind, a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(slow, abs=2e-6)
    theirs = TORCHVISION[kind](first, second, reduction="none")
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)
    mine, other = (torch.autograd.grad(loss.sum(), first)[0] for loss in (found, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_nothing_for_equal_boxes_and_gradient_that_pulls_boxes_apart_together(kind: str) -> None:
    boxes = random_boxes(50, 3)
    torch.testing.assert_close(iou_loss(kind, boxes, boxes), torch.zeros(50), rtol=0, atol=1e-6)
    apart = torch.tensor([0.0, 0, 2, 2], requires_grad=True)
    iou_loss(kind, apart, torch.tensor([10.0, 0, 12, 2])).backward()
    assert apart.grad is not None
    assert apart.grad[0] + apart.grad[2] < 0  # to the right


coordinate = st.sampled_from([-1e6, -5.0, 0.0, 1e-6, 0.5, 3.0, 5.0, 640.0, 1e6]) | st.floats(-20, 660, width=32)
side = st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 16.0, 5e5]) | st.floats(0, 700, width=32)
any_box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(IOU_LOSSES), any_box, any_box)
def test_any_boxes_give_a_bounded_loss_and_a_finite_gradient(
    kind: str, first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    """Empty ones, too, and two empty ones in the same place."""
    predicted = torch.tensor(first, requires_grad=True)
    loss = iou_loss(kind, predicted, torch.tensor(second))
    loss.backward()
    assert -1e-3 <= loss.item() <= (3 if kind == "ciou" else 2) + 1e-3
    assert predicted.grad is not None and predicted.grad.isfinite().all()


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(IOU_LOSSES),
    st.lists(st.sampled_from([0.0, 1.0, -30.0, 1e4, -1e4, 1e8, -1e8]) | st.floats(-50, 50), min_size=4, max_size=4),
    any_box,
)
def test_any_offsets_of_a_head_give_a_finite_gradient(kind: str, said: list[float], face: tuple[float, ...]) -> None:
    offsets = torch.tensor(said, requires_grad=True)
    loss = iou_loss(kind, decode(offsets, torch.tensor([320.0, 320, 16, 16])), torch.tensor(face))
    loss.backward()
    assert loss.isfinite()
    assert offsets.grad is not None and offsets.grad.isfinite().all()


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_no_boxes(kind: str) -> None:
    assert iou_loss(kind, torch.empty(0, 4), torch.empty(0, 4)).shape == (0,)


def test_another_kind() -> None:
    with pytest.raises(ValueError, match="kind='iou'"):
        iou_loss("iou", torch.empty(0, 4), torch.empty(0, 4))
