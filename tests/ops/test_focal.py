"""Focal and quality focal loss, against numbers worked out by hand, scalar loops and torchvision."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.ops.losses import focal_loss, quality_focal_loss


def slow_focal(margins: list[float], positive: list[bool], alpha: float, gamma: float) -> float:
    """Lin et al. 2017, eq. 5, one anchor at a time."""
    total = 0.0
    for margin, face in zip(margins, positive, strict=True):
        p = 1 / (1 + math.exp(-margin))
        p_t, alpha_t = (p, alpha) if face else (1 - p, 1 - alpha)
        total -= alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return total


def slow_quality_focal(margins: list[float], quality: list[float], beta: float) -> float:
    """Li et al. 2020, eq. 3, one anchor at a time."""
    total = 0.0
    for margin, y in zip(margins, quality, strict=True):
        p = 1 / (1 + math.exp(-margin))
        total -= abs(y - p) ** beta * ((1 - y) * math.log(1 - p) + y * math.log(p))
    return total


def test_focal_by_hand() -> None:
    """Margin log 3: p = 3/4. A face: 1/4 · 1/16 · log 4/3; background: 3/4 · 9/16 · log 4."""
    margin = torch.tensor([math.log(3.0)])
    assert focal_loss(margin, torch.tensor([True])).item() == pytest.approx(math.log(4 / 3) / 64)
    assert focal_loss(margin, torch.tensor([False])).item() == pytest.approx(27 / 64 * math.log(4))


def test_quality_focal_by_hand() -> None:
    """p = 3/4, IoU 1/2: (1/4)² · (-½ log ¼ - ½ log ¾). IoU equal to the score costs nothing and pulls nowhere."""
    margin = torch.tensor([math.log(3.0)], requires_grad=True)
    found = quality_focal_loss(margin, torch.tensor([0.5]))
    assert found.item() == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 32)
    at_rest = quality_focal_loss(margin, torch.tensor([0.75]))
    assert at_rest.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(at_rest, margin)[0].item() == pytest.approx(0, abs=1e-6)
    # Too low a quality pushes the score down, too high a one up.
    assert torch.autograd.grad(found, margin)[0].item() > 0
    assert torch.autograd.grad(quality_focal_loss(margin, torch.tensor([1.0])), margin)[0].item() < 0


def test_gamma_of_zero_is_the_weighted_cross_entropy() -> None:
    margins, positive = torch.tensor([0.0, 1.0]), torch.tensor([True, False])
    expected = 0.3 * math.log(2) + 0.7 * math.log1p(math.e)
    assert focal_loss(margins, positive, alpha=0.3, gamma=0).item() == pytest.approx(expected)


@settings(deadline=None, max_examples=300)
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


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.floats(-15, 15), st.floats(0, 1)), min_size=1, max_size=20),
    st.sampled_from([1.0, 2.0, 3.0]),
)
def test_quality_focal_equals_plain_loops(anchors: list[tuple[float, float]], beta: float) -> None:
    margins, quality = (torch.tensor(column, dtype=torch.float64) for column in zip(*anchors, strict=True))
    found = quality_focal_loss(margins, quality, beta)
    assert found.item() == pytest.approx(slow_quality_focal(margins.tolist(), quality.tolist(), beta), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_extreme_margins_stay_finite(gamma: float) -> None:
    margins = torch.tensor([-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30])
    for positive in (torch.zeros(7, dtype=torch.bool), torch.ones(7, dtype=torch.bool)):
        leaf = margins.clone().requires_grad_()
        loss = focal_loss(leaf, positive, gamma=gamma)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.isfinite() and gradient.isfinite().all()
    for quality in (0.0, 0.5, 1.0):
        leaf = margins.clone().requires_grad_()
        loss = quality_focal_loss(leaf, torch.full((7,), quality), max(gamma, 1.0))
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.isfinite() and gradient.isfinite().all()


def test_nothing_is_nothing() -> None:
    empty = torch.empty(0, 26)
    assert focal_loss(empty, empty.bool()).item() == 0
    assert quality_focal_loss(empty, empty).item() == 0
