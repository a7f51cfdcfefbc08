"""Focal, quality focal and IoU losses, against numbers by hand, scalar loops and torchvision."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fanet_lightning.ops.losses import IOU_LOSSES, focal_loss, iou_loss, quality_focal_loss
from tests.ops.oracles import slow_focal, slow_iou_loss, slow_quality_focal

TORCHVISION = {
    "giou": torchvision.ops.generalized_box_iou_loss,
    "diou": torchvision.ops.distance_box_iou_loss,
    "ciou": torchvision.ops.complete_box_iou_loss,
}


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.floats(-15, 15), st.booleans()), min_size=1, max_size=20),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
)
def test_focal_equals_plain_loops_and_torchvision(
    anchors: list[tuple[float, bool]], alpha: float, gamma: float
) -> None:
    margins = torch.tensor([margin for margin, _ in anchors], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([face for _, face in anchors])
    found = focal_loss(margins, positive, alpha, gamma)
    assert found.item() == pytest.approx(slow_focal(margins.tolist(), positive.tolist(), alpha, gamma), rel=1e-5)
    theirs = torchvision.ops.sigmoid_focal_loss(margins, positive.double(), alpha, gamma, reduction="sum")
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-9)
    mine, other = (torch.autograd.grad(loss, margins)[0] for loss in (found, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.floats(-15, 15), st.floats(0, 1)), min_size=1, max_size=20), st.sampled_from([1.0, 2.0, 3.0])
)
def test_quality_focal_equals_plain_loops(anchors: list[tuple[float, float]], beta: float) -> None:
    margins, quality = (torch.tensor(column, dtype=torch.float64) for column in zip(*anchors, strict=True))
    found = quality_focal_loss(margins, quality, beta)
    assert found.item() == pytest.approx(slow_quality_focal(margins.tolist(), quality.tolist(), beta), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_extreme_margins_stay_finite(gamma: float) -> None:
    for value in (0.0, 0.5, 1.0):
        leaf = torch.tensor([-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30], requires_grad=True)
        losses = [quality_focal_loss(leaf, torch.full((7,), value), max(gamma, 1.0))]
        if value != 0.5:
            losses.append(focal_loss(leaf, torch.full((7,), bool(value)), gamma=gamma))
        for loss in losses:
            assert loss.isfinite() and torch.autograd.grad(loss, leaf)[0].isfinite().all()


def random_boxes(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    low = 60 * torch.rand(count, 2, generator=random) - 10
    return torch.cat([low, low + 1 + 40 * torch.rand(count, 2, generator=random)], dim=1)


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_equals_the_definition_and_torchvision_with_gradients(kind: str) -> None:
    first, second = random_boxes(500, 1).requires_grad_(), random_boxes(500, 2)
    found = iou_loss(kind, first, second)
    slow = [slow_iou_loss(kind, a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(slow, abs=2e-6)
    theirs = TORCHVISION[kind](first, second, reduction="none")
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)
    mine, other = (torch.autograd.grad(loss.sum(), first)[0] for loss in (found, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


coordinate = st.sampled_from([-1e6, -5.0, 0.0, 1e-6, 0.5, 3.0, 5.0, 640.0, 1e6]) | st.floats(-20, 660, width=32)
side = st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 16.0, 5e5]) | st.floats(0, 700, width=32)
any_box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(max_examples=400)
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


def test_an_unknown_kind_of_iou_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='siou'"):
        iou_loss("siou", torch.zeros(1, 4), torch.ones(1, 4))
