"""Matching, against hand-worked cases and against the rule in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.ops import matching
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, pairwise_iou
from fanet_lightning.ops.matching import match, window, window_side
from fanet_lightning.ops.structures import Targets
from tests.ops.helpers import ONE_MAP, faces_in, grid_for, random_faces
from tests.ops.oracles import match_slowly


def assert_follows_the_rule(
    grid: AnchorGrid, targets: Targets, batch_size: int, threshold: float = 0.35, rounds: int = 8, second: bool = False
) -> None:
    found = match(grid, targets, batch_size, threshold=threshold, rounds=rounds, second_stage=second)
    expected, unmatched = match_slowly(
        grid, targets, batch_size, window_side(grid, threshold), threshold, rounds, second
    )
    assert found.face_index.tolist() == expected
    assert found.unmatched_faces.item() == unmatched


@pytest.fixture(params=["reads are free", "as on an accelerator"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through the code: the one that reads sizes back, and the one that never does."""
    if request.param == "as on an accelerator":
        monkeypatch.setattr(matching, "_reads_are_free", lambda device: False)


def test_a_face_robbed_of_its_last_anchor_takes_part_again(either_way: None) -> None:
    """Anchors from -5.5, -0.5 and 4.5 on; overlaps with them in x, over the union:

    face 0: 1, 11/21, 6/26; face 1: 15/17, 12/20, 7/25; face 2: 15/16, 10/21, 5/26.
    All want the first, face 0 keeps it. Rule (ii) gives the second to face 1. Face 2 has none and takes it in round 1.
    Face 1 takes the third in round 2.
    """
    grid = AnchorGrid(((1, 3),), strides=(5,), sizes=(16,))
    faces = faces_in([(-5.5, -5.5, 10.5, 10.5), (-4.5, -5.5, 11.5, 10.5), (-5.5, -5.5, 9.5, 10.5)])
    results = [match(grid, faces, 1, rounds=rounds) for rounds in (0, 1, 2, 8)]
    assert [found.face_index[0].tolist() for found in results] == [[0, 1, -1], [0, 2, -1], [0, 2, 1], [0, 2, 1]]
    assert [found.unmatched_faces.item() for found in results] == [1, 1, 0, 0]


def test_second_stage_by_hand(either_way: None) -> None:
    """A face of 8 x 8 in the corner of the map.

    IoU 64 / 256 = 0.25 with the four anchors that hold it, from -6 to 10 and from -2 to 14: nothing for rule (ii).
    Then from 2 to 18: 6 · 8 / (320 - 48) = 0.176, on both axes 36 / (320 - 36) = 0.127.
    From 6 to 22: 2 · 8 / (320 - 16) = 0.053.
    """
    face = (0, 0, 8, 8)
    without = match(ONE_MAP, faces_in([face]), 1).face_index.view(4, 4)
    assert without.tolist() == [[0, -1, -1, -1]] + [[-1] * 4] * 3
    found = match(ONE_MAP, faces_in([face]), 1, second_stage=True).face_index.view(4, 4)
    # One forced, six more: three at 0.25, then the first three of the four at 0.176: (0, 2), (1, 2), (2, 0).
    assert found.tolist() == [[0, 0, 0, -1], [0, 0, 0, -1], [0, -1, -1, -1], [-1, -1, -1, -1]]


@pytest.mark.parametrize(
    "box", [(1000, 1000, 1010, 1010), (math.nan, 0, 10, 10), (-math.inf, 0, math.inf, 10), (5, 5, 5, 5)]
)
def test_faces_that_overlap_nothing_are_counted(box: tuple[float, ...], either_way: None) -> None:
    ordinary = (-2, -2, 14, 14)
    found = match(ONE_MAP, faces_in([box, ordinary]), 1, second_stage=True)
    alone = match(ONE_MAP, faces_in([ordinary]), 1, second_stage=True)
    assert found.unmatched_faces.item() == 1
    assert torch.equal(found.face_index == 1, alone.face_index == 0)
    assert not (found.face_index == 0).any()


@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.5, 0.7])
@pytest.mark.parametrize(
    "grid",
    [grid_for(400, 260), AnchorGrid(((40, 31), (9, 14)), (5, 12), (16, 50)), AnchorGrid(((30, 30),), (8,), (7,))],
)
def test_window_holds_every_anchor_above_the_threshold_and_a_best_one(grid: AnchorGrid, threshold: float) -> None:
    random = torch.Generator().manual_seed(1)
    anchors_xyxy = cxcywh_to_xyxy(grid.boxes_cxcywh())
    near = anchors_xyxy[torch.randint(grid.count, (300,), generator=random)]
    near = near + (near[:, 2:] - near[:, :2]).repeat(1, 2) * (torch.rand(300, 4, generator=random) - 0.5) / 2
    boxes = torch.cat([near, random_faces([300], 400, 1, 2, 700).boxes_xyxy])
    dense = pairwise_iou(boxes, anchors_xyxy)
    anchor, iou = window(grid, boxes, window_side(grid, threshold))
    assert torch.equal(iou.max(dim=1).values, dense.max(dim=1).values)
    seen = torch.zeros(dense.shape, dtype=torch.bool).scatter_(1, anchor, True)
    assert (dense > threshold).any() and not (dense > threshold)[~seen].any()


quarter = st.integers(-100, 500).map(lambda quarters: quarters / 4)
length = st.one_of(st.integers(1, 60), st.integers(1, 1200)).map(lambda quarters: quarters / 4)
box = st.tuples(quarter, quarter, length, length).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
on_an_anchor = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(
    lambda cell: (4 * cell[0] - 6, 4 * cell[1] - 6, 4 * cell[0] + 10, 4 * cell[1] + 10)
)
crowd = st.lists(st.one_of(box, on_an_anchor), max_size=9)


@settings(max_examples=40)
@given(
    st.lists(crowd, min_size=1, max_size=3), st.integers(1, 100), st.integers(1, 100),
    st.sampled_from([0.2, 0.35, 0.5]), st.integers(0, 4), st.booleans(),
)  # fmt: skip
def test_any_faces_on_any_grid(
    images: list[list[tuple[float, ...]]], height: int, width: int, threshold: float, rounds: int, second: bool
) -> None:
    assert_follows_the_rule(grid_for(height, width), faces_in(*images), len(images), threshold, rounds, second)


@settings(max_examples=60)
@given(
    st.lists(st.lists(on_an_anchor, max_size=14), min_size=1, max_size=2),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 8),
    st.booleans(),
)
def test_more_faces_than_anchors(
    images: list[list[tuple[float, ...]]], shape: tuple[int, int], rounds: int, second: bool
) -> None:
    grid = AnchorGrid((shape, (1, 1)), strides=(4, 8), sizes=(16, 32))
    assert_follows_the_rule(grid, faces_in(*images), len(images), 0.35, rounds, second)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(("smallest", "largest"), [(1, 6), (12, 40), (2, 900)])
def test_crowds_with_real_numbers(smallest: float, largest: float, second: bool, either_way: None) -> None:
    targets = random_faces([40, 0, 1, 90], 130, seed=3, smallest=smallest, largest=largest)
    assert_follows_the_rule(grid_for(130, 117), targets, 4, second=second)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_accelerator_agrees_and_is_never_waited_for(second: bool) -> None:
    grid = grid_for(640, 640)
    targets = random_faces([50] * 11 + [700], 640, seed=6, smallest=4)
    expected = match(grid, targets, 12, second_stage=second)
    there = Targets(*(tensor.cuda() for tensor in targets))
    match(grid, there, 12, second_stage=second)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = match(grid, there, 12, second_stage=second)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.face_index.cpu(), expected.face_index)
    assert torch.equal(found.unmatched_faces.cpu(), expected.unmatched_faces)
