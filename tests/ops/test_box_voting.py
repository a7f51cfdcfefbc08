"""Box voting, against hand-worked cases and one box at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.ops.boxes import paired_iou
from fanet_lightning.ops.postprocess import box_vote
from fanet_lightning.ops.structures import Detections

A = [0.0, 0.0, 10.0, 10.0]


def vote(*rows: tuple[list[float], float], **options: float | bool) -> list[tuple[list[float], float]]:
    """Boxes and scores, in and out."""
    boxes_xyxy = torch.tensor([box for box, _ in rows]).reshape(-1, 4)
    found = box_vote(boxes_xyxy, torch.tensor([score for _, score in rows]), **options)  # type: ignore[arg-type]
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert found.boxes_xyxy.shape == (len(found.scores), 4)
    return [
        (pytest.approx(box), pytest.approx(score))
        for box, score in zip(found.boxes_xyxy.tolist(), found.scores.tolist(), strict=True)
    ]


def slow_vote(boxes_xyxy: torch.Tensor, scores: torch.Tensor, iou: float, keep: int, keep_singles: bool) -> Detections:
    """The definition, one box at a time."""
    boxes, left = boxes_xyxy.double(), list(range(len(scores)))
    merged: list[tuple[list[float], float]] = []
    while left:
        leader = max(left, key=lambda i: (scores[i].item(), -i))
        group = [i for i in left if i == leader or paired_iou(boxes[leader], boxes[i]).item() >= iou]
        left = [i for i in left if i not in group]
        if len(group) == 1 and not keep_singles:
            continue
        total = sum(scores[i].item() for i in group)
        box = [sum(scores[i].item() * boxes[i, k].item() for i in group) / total for k in range(4)]
        merged.append((box, scores[leader].item()))
    merged = merged[:keep]
    return Detections(torch.tensor([b for b, _ in merged]).reshape(-1, 4), torch.tensor([s for _, s in merged]))


def test_a_group_is_its_mean_weighted_by_score_with_its_best_score() -> None:
    # IoU 100 / 200; the lower edge is (0.9 · 10 + 0.3 · 20) / 1.2.
    assert vote((A, 0.9), ([0, 0, 10, 20], 0.3)) == [([0, 0, 10, 12.5], 0.9)]
    assert vote(([0, 0, 10, 20], 0.3), (A, 0.9)) == [([0, 0, 10, 12.5], 0.9)]


@pytest.mark.filterwarnings("error")
def test_boxes_without_area_and_scores_of_zero() -> None:
    point = [5.0, 5, 5, 5]
    assert vote((point, 0.5), (point, 0.4), (A, 0.3)) == [(point, 0.5), (point, 0.4), (A, 0.3)]
    assert vote((A, 0.0), ([0, 0, 10, 20], 0.0)) == [([0, 0, 10, 15], 0.0)]


def clustered(count: int, spread: float, ties: bool, whole: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of very different sizes, several around each of a few places; ``whole`` puts them on a coarse grid."""
    random = torch.Generator().manual_seed(seed)
    places = torch.rand(max(1, count // 4), 2, generator=random) * spread
    sides = 4 * 100 ** torch.rand(max(1, count // 4), 1, generator=random)
    pick = torch.randint(len(places), (count,), generator=random)
    center = places[pick] + torch.randn(count, 2, generator=random) * sides[pick] / 4
    half = sides[pick] / 2 * torch.exp(torch.randn(count, 2, generator=random) / 3)
    boxes_xyxy = torch.cat([center - half, center + half], dim=1)
    scores = torch.rand(count, generator=random).clamp(min=0.01)
    if ties:
        scores = (scores * 4).ceil() / 4
    return ((boxes_xyxy / 8).round() * 8 if whole else boxes_xyxy), scores


@settings(max_examples=100)
@given(
    st.integers(0, 60), st.sampled_from([10.0, 100.0, 2000.0]), st.booleans(), st.booleans(), st.integers(0, 10_000),
    st.sampled_from([0.05, 0.3, 0.5, 0.75, 1.0]), st.sampled_from([3, 750]), st.booleans(),
)  # fmt: skip
def test_equals_one_box_at_a_time(
    count: int, spread: float, ties: bool, whole: bool, seed: int, iou: float, keep: int, keep_singles: bool
) -> None:
    boxes_xyxy, scores = clustered(count, spread, ties, whole, seed)
    found = box_vote(boxes_xyxy, scores, iou=iou, keep=keep, keep_singles=keep_singles)
    expected = slow_vote(boxes_xyxy, scores, iou, keep, keep_singles)
    assert torch.equal(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, rtol=1e-6, atol=1e-4)
    assert (found.scores.diff() <= 0).all()
