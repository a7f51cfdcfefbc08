"""SimOTA, against hand-worked cases and against its rule in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.assigners import assign_simota
from fanet_lightning.ops.boxes import encode
from fanet_lightning.ops.structures import HeadOutput
from tests.ops.assignment_oracle import simota_slowly
from tests.ops.test_atss import ON_AN_ANCHOR, ONE_MAP, faces_in, grid_for, random_faces


def untrained(grid: AnchorGrid, batch_size: int = 1) -> HeadOutput:
    """Every score 0.5, every predicted box the anchor."""
    return HeadOutput(torch.zeros(batch_size, grid.count, 2), torch.zeros(batch_size, grid.count, 4))


def random_heads(
    grid: AnchorGrid, batch_size: int, seed: int, spread: float = 1.0, dtype: torch.dtype = torch.float32
) -> HeadOutput:
    random = torch.Generator().manual_seed(seed)

    def values(channels: int) -> torch.Tensor:
        return (spread * torch.randn(batch_size, grid.count, channels, generator=random)).to(dtype)

    return HeadOutput(values(2), values(4))


def taken(found: torch.Tensor, face: int = 0) -> list[int]:
    return (found[0] == face).nonzero().flatten().tolist()


def test_dynamic_k_and_cost_by_hand() -> None:
    """IoUs of the 3 x 3: 1 + 4 · 0.6 + 4 · 0.391 = 4.97, so 4 anchors: number 5, then the first 3 of equal ones."""
    found = assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), untrained(ONE_MAP))
    assert taken(found.face_index) == [1, 4, 5, 6]
    assert found.unmatched_faces.item() == 0


def test_the_score_is_part_of_the_cost() -> None:
    """Of the four equal ones, number 9 looks most like a face; number 0 would too, and lacks IoU.

    Costs at a margin of 1: 0.313 - 3 log 0.6 = 1.846 and 0.313 - 3 log 0.391 = 3.128; without: 0.693 + 1.532 = 2.226.
    """
    heads = untrained(ONE_MAP)
    heads.logits[0, [0, 9], 1] = 1
    assert taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads).face_index) == [1, 4, 5, 9]
    heads.logits[0, 0, 1] = 20  # log-sigmoid about 0: 2.815
    assert taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads).face_index) == [1, 4, 5, 9]
    heads.logits[0, [1, 4, 6], 1] = -1  # 1.313 + 1.532 = 2.846
    assert taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads).face_index) == [0, 1, 5, 9]


def test_perfect_boxes_take_up_to_all_candidates() -> None:
    """All nine predict the face: IoUs add up to 9, or a little less by rounding; offsets shrunk: to fewer."""
    heads = untrained(ONE_MAP)
    heads.offsets[0] = encode(torch.tensor(ON_AN_ANCHOR).float(), ONE_MAP.boxes_cxcywh())
    assert len(taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads).face_index)) in (8, 9)
    heads.offsets[0, :, 2:] += math.log(0.5**0.5) / 0.2  # areas of a half: 4.5
    assert len(taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads).face_index)) == 4


def test_at_least_one_even_if_nothing_overlaps() -> None:
    heads = untrained(ONE_MAP)
    heads.offsets[..., 0] = 1000  # boxes 1,600 pixels away
    found = assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads)
    assert taken(found.face_index) == [0]  # all candidates cost the same
    heads.logits[0, 10, 1] = 1
    assert taken(assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads).face_index) == [10]


def test_one_and_a_half_strides_away_is_no_candidate() -> None:
    """Centre x half-way between columns 1 and 2: columns 0 and 3 are 1.5 away exactly, so 2 x 3 candidates are left."""
    heads = untrained(ONE_MAP)
    face = (0.0, -2.0, 16.0, 14.0)
    heads.offsets[0] = encode(torch.tensor(face), ONE_MAP.boxes_cxcywh())
    heads.offsets[0, :, 2:] += 1e-4  # away from sums that round either way
    found = set(taken(assign_simota(ONE_MAP, faces_in([face]), heads).face_index))
    assert found <= {1, 2, 5, 6, 9, 10} and len(found) >= 5


def test_a_disputed_anchor_goes_to_the_lowest_cost_and_equal_ones_to_the_first() -> None:
    shifted = (-1, -2, 15, 14)
    found = assign_simota(ONE_MAP, faces_in([shifted, ON_AN_ANCHOR]), untrained(ONE_MAP)).face_index
    assert found[0, 5].item() == 1 and found[0, 6].item() == 0
    equal = assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR, ON_AN_ANCHOR]), untrained(ONE_MAP))
    assert taken(equal.face_index, 1) == []
    assert equal.unmatched_faces.item() == 1


@pytest.mark.parametrize(
    "box", [(1000, 1000, 1010, 1010), (math.nan, 0, 10, 10), (-math.inf, 0, math.inf, 10), (1e30, 1e30, 2e30, 2e30)]
)
def test_faces_that_can_have_nothing_are_counted_and_harm_nobody(box: tuple[float, ...]) -> None:
    heads = untrained(ONE_MAP, 3)
    found = assign_simota(ONE_MAP, faces_in([box, ON_AN_ANCHOR], [], [ON_AN_ANCHOR]), heads)
    assert found.unmatched_faces.item() == 1
    assert taken(found.face_index, 1) == [1, 4, 5, 6] and (found.face_index[2] == 2).sum().item() == 4


@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf, 1e30])
def test_wild_predictions_take_nothing_away_from_sound_ones(wild: float) -> None:
    heads = untrained(ONE_MAP)
    heads.offsets[0, 1] = wild
    heads.logits[0, 4, 1] = -math.inf if wild == math.inf else wild
    found = assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads)
    assert 5 in taken(found.face_index) and 6 in taken(found.face_index)


def test_no_faces_and_no_images() -> None:
    grid = grid_for(64, 96)
    for images in (0, 2):
        found = assign_simota(grid, faces_in(*[[]] * images), untrained(grid, images))
        assert found.face_index.shape == (images, grid.count) and found.face_index.dtype == torch.int64
        assert (found.face_index == -1).all() and found.unmatched_faces.item() == 0


def test_a_thousand_faces() -> None:
    grid = grid_for(640, 640)
    found = assign_simota(grid, random_faces([1000], 640, seed=1), untrained(grid))
    owners = found.face_index[0][found.face_index[0] >= 0]
    assert found.unmatched_faces.item() == 1000 - owners.unique().numel()
    assert owners.unique().numel() > 500  # two in five have their centre outside of the image


def test_no_gradient_flows() -> None:
    heads = HeadOutput(*(tensor.requires_grad_() for tensor in untrained(ONE_MAP)))
    assert not assign_simota(ONE_MAP, faces_in([ON_AN_ANCHOR]), heads).face_index.requires_grad


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.sampled_from([(16, 16), (33, 70), (64, 40)]),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 10**6),
)
def test_follows_the_rule(
    counts: list[int], size: tuple[int, int], spread: float, dtype: torch.dtype, seed: int
) -> None:
    grid, targets = grid_for(*size), random_faces(counts, max(size), seed)
    heads = random_heads(grid, len(counts), seed, spread, dtype)
    expected, unmatched, close = simota_slowly(grid, targets, heads)
    found = assign_simota(grid, targets, heads)
    if not close:
        assert found.face_index.tolist() == expected
        assert found.unmatched_faces.item() == unmatched


def test_rounding_decides_in_few_of_those_cases() -> None:
    """Or the property above would not test anything."""
    grid = grid_for(64, 40)
    close = [
        simota_slowly(grid, random_faces([3, 2], 64, seed), random_heads(grid, 2, seed, seed % 3))[2]
        for seed in range(30)
    ]
    assert sum(close) <= 2


def test_targets_and_heads_are_left_alone() -> None:
    targets, heads = faces_in([ON_AN_ANCHOR]), random_heads(ONE_MAP, 1, 0)
    copies = [tensor.clone() for tensor in (*targets, *heads)]
    assign_simota(ONE_MAP, targets, heads)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((*targets, *heads), copies, strict=True))
