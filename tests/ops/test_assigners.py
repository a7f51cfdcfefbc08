"""ATSS and SimOTA, against hand-worked cases and against their rules in plain Python."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.assigners import assign_atss, assign_simota
from fanet_lightning.ops.matching import Matches
from fanet_lightning.ops.structures import HeadOutput, Targets
from tests.ops.helpers import ON_AN_ANCHOR, ONE_MAP, faces_in, grid_for, random_faces, random_heads
from tests.ops.oracles import atss_slowly, simota_slowly

Assign = Callable[[AnchorGrid, Targets, int], Matches]


def untrained(grid: AnchorGrid, batch_size: int = 1) -> HeadOutput:
    """Every score 0.5, every predicted box the anchor."""
    return HeadOutput(torch.zeros(batch_size, grid.count, 2), torch.zeros(batch_size, grid.count, 4))


def atss(grid: AnchorGrid, targets: Targets, images: int) -> Matches:
    return assign_atss(grid, targets, images)


def simota(grid: AnchorGrid, targets: Targets, images: int) -> Matches:
    return assign_simota(grid, targets, untrained(grid, images))


def taken(found: Matches, face: int = 0, image: int = 0) -> list[int]:
    return (found.face_index[image] == face).nonzero().flatten().tolist()


def test_both_by_hand() -> None:
    """IoUs of the 3 x 3: 1, four of 0.6, four of 144 / 368 = 0.391.

    ATSS: mean 0.5517, deviation (over 8) 0.1979, threshold 0.7496. SimOTA: the sum is 4.97, so 4 anchors: number 5,
    then the first 3 of equal ones.
    """
    for assign, expected in ((atss, [5]), (simota, [1, 4, 5, 6])):
        found = assign(ONE_MAP, faces_in([ON_AN_ANCHOR]), 1)
        assert taken(found) == expected and found.unmatched_faces.item() == 0


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    st.sampled_from([(16, 16), (33, 70), (64, 40), (130, 100)]),
    st.sampled_from([1, 2, 9, 9, 9]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_atss_follows_its_rule(counts: list[int], size: tuple[int, int], k: int, whole_pixels: bool, seed: int) -> None:
    grid, targets = grid_for(*size), random_faces(counts, max(size), seed, whole_pixels=whole_pixels)
    expected, unmatched, close = atss_slowly(grid, targets, len(counts), k)
    found = assign_atss(grid, targets, len(counts), k=k)
    assume(not close)
    assert (found.face_index.tolist(), found.unmatched_faces.item()) == (expected, unmatched)


def test_the_score_is_part_of_the_cost() -> None:
    """Of the four equal ones, number 9 looks most like a face; number 0 would too, and lacks IoU.

    Costs at a margin of 1: 0.313 - 3 log 0.6 = 1.846 and 0.313 - 3 log 0.391 = 3.128; without: 0.693 + 1.532 = 2.226.
    """
    heads = untrained(ONE_MAP)
    heads.logits[0, [0, 9], 1] = 1
    assert taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads)) == [1, 4, 5, 9]
    heads.logits[0, 0, 1] = 20  # log-sigmoid about 0: 2.815
    assert taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads)) == [1, 4, 5, 9]
    heads.logits[0, [1, 4, 6], 1] = -1  # 1.313 + 1.532 = 2.846
    assert taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads)) == [0, 1, 5, 9]


@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf, 1e30])
def test_wild_predictions_take_nothing_away_from_sound_ones(wild: float) -> None:
    heads = untrained(ONE_MAP)
    heads.offsets[0, 1] = wild
    heads.logits[0, 4, 1] = -math.inf if wild == math.inf else wild
    found = assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads)
    assert 5 in taken(found) and 6 in taken(found)


@settings(max_examples=150)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.sampled_from([(16, 16), (33, 70), (64, 40)]),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 10**6),
)
def test_simota_follows_its_rule(
    counts: list[int], size: tuple[int, int], spread: float, dtype: torch.dtype, seed: int
) -> None:
    grid, targets = grid_for(*size), random_faces(counts, max(size), seed)
    heads = random_heads(1, len(counts), grid.count, seed, dtype, spread).hierarchies[0]
    expected, unmatched, close = simota_slowly(grid, targets, heads)
    found = assign_simota(grid, targets, heads)
    assume(not close)
    assert (found.face_index.tolist(), found.unmatched_faces.item()) == (expected, unmatched)


@pytest.mark.parametrize("assign", [atss, simota])
@pytest.mark.parametrize(
    "box", [(1000, 1000, 1010, 1010), (math.nan, 0, 10, 10), (-math.inf, 0, math.inf, 10), (1e30, 1e30, 2e30, 2e30)]
)
def test_faces_that_can_have_nothing_are_counted_and_change_no_other(assign: Assign, box: tuple[float, ...]) -> None:
    found = assign(ONE_MAP, faces_in([box, ON_AN_ANCHOR], [], [ON_AN_ANCHOR]), 3)
    alone = taken(assign(ONE_MAP, faces_in([ON_AN_ANCHOR]), 1))
    assert found.unmatched_faces.item() == 1
    assert taken(found, 1) == alone and taken(found, 2, image=2) == alone
    assert (found.face_index >= 0).sum().item() == 2 * len(alone)


@pytest.mark.parametrize("assign", [atss, simota])
def test_no_faces_no_images_and_a_thousand_faces(assign: Assign) -> None:
    grid = grid_for(64, 96)
    for images in (0, 2):
        found = assign(grid, faces_in(*[[]] * images), images)
        assert found.face_index.shape == (images, grid.count) and found.face_index.dtype == torch.int64
        assert (found.face_index == -1).all() and found.unmatched_faces.item() == 0
    found = assign(grid_for(640, 640), random_faces([1000], 640, seed=1), 1)
    owners = found.face_index[0][found.face_index[0] >= 0]
    assert found.unmatched_faces.item() == 1000 - owners.unique().numel()
    assert owners.unique().numel() > 500  # two in five have their center outside of the image
