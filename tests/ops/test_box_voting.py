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


def test_an_overlap_equal_to_the_threshold_merges() -> None:
    """IoU 30 / 100 and 29 / 100, without the script's + 1 (which would give 44 / 121 and 42.9 / 121, both above)."""
    assert vote((A, 0.6), ([0, 0, 10, 3], 0.6)) == [([0, 0, 10, 6.5], 0.6)]
    assert vote((A, 0.6), ([0, 0, 10, 2.9], 0.5)) == [(A, 0.6), ([0, 0, 10, 2.9], 0.5)]


def test_only_the_leader_takes_others_and_at_equal_scores_the_first_leads() -> None:
    """The middle box overlaps both neighbours by 6 / 14, they each other by 2 / 18: the best is not the middle one."""
    left, middle, right = A, [4.0, 0, 14, 10], [8.0, 0, 18, 10]
    assert vote((left, 0.8), (middle, 0.4), (right, 0.6)) == [([4 / 3, 0, 10 + 4 / 3, 10], 0.8), (right, 0.6)]
    # With the middle one as leader all three are one face.
    assert vote((left, 0.4), (middle, 0.8), (right, 0.4)) == [(middle, 0.8)]
    assert vote((left, 0.5), (middle, 0.5), (right, 0.5)) == [([2, 0, 12, 10], 0.5), (right, 0.5)]
    assert vote((right, 0.5), (middle, 0.5), (left, 0.5)) == [([6, 0, 16, 10], 0.5), (left, 0.5)]


def test_what_nothing_agrees_with_stays_unless_told_otherwise() -> None:
    rows = ((A, 0.4), ([50.0, 0, 60, 10], 0.9), ([50.0, 0, 60, 10], 0.8))
    assert vote(*rows) == [([50, 0, 60, 10], 0.9), (A, 0.4)]
    assert vote(*rows, keep_singles=False) == [([50, 0, 60, 10], 0.9)]
    # The script fails here.
    assert vote((A, 0.4), keep_singles=False) == []
    assert vote() == [] and vote(keep_singles=False) == []


@pytest.mark.filterwarnings("error")
def test_boxes_without_area_and_scores_of_zero() -> None:
    point = [5.0, 5, 5, 5]
    assert vote((point, 0.5), (point, 0.4), (A, 0.3)) == [(point, 0.5), (point, 0.4), (A, 0.3)]
    assert vote((A, 0.0), ([0, 0, 10, 20], 0.0)) == [([0, 0, 10, 15], 0.0)]
    for boxes, scores, options in (((3, 4), (2,), {}), ((2, 4), (2,), {"iou": 0.0})):
        with pytest.raises(ValueError, match=r"scores|iou"):
            box_vote(torch.zeros(boxes), torch.zeros(scores), **options)  # type: ignore[arg-type]


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


@settings(deadline=None, max_examples=100)
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
