"""ATSS, against hand-worked cases and against its rule in plain Python."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from fanet_lightning.ops.assigners import assign_atss
from fanet_lightning.ops.structures import Targets
from tests.ops.assignment_oracle import atss_slowly

ONE_MAP = AnchorGrid(((4, 4),), strides=(4,), sizes=(16,))
ON_AN_ANCHOR = (-2, -2, 14, 14)  # anchor (1, 1): number 5


def grid_for(height: int, width: int) -> AnchorGrid:
    return AnchorGrid(tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES))


def faces_in(*images: Sequence[Sequence[float]]) -> Targets:
    boxes = [list(map(float, box)) for image in images for box in image]
    index = [number for number, image in enumerate(images) for _ in image]
    return Targets(torch.tensor(boxes).reshape(-1, 4), torch.tensor(index, dtype=torch.int64))


def random_faces(counts: Sequence[int], extent: float, seed: int, whole_pixels: bool = False) -> Targets:
    """Log-uniform sizes 3 … 90, aspect ratios up to 1 : 3, centres inside and a little outside of a square input."""
    random = torch.Generator().manual_seed(seed)
    count = sum(counts)
    centre = (torch.rand(count, 2, generator=random) * 1.3 - 0.15) * extent
    size = 3 * 30 ** torch.rand(count, 1, generator=random)
    stretch = 3 ** (torch.rand(count, 1, generator=random) - 0.5)
    half = size / 2 * torch.cat([stretch, 1 / stretch], dim=1)
    low, high = centre - half, centre + half
    if whole_pixels:
        low = low.round()
        high = torch.maximum(high.round(), low + 2)
    return Targets(torch.cat([low, high], dim=1), torch.repeat_interleave(torch.tensor(counts, dtype=torch.int64)))


# By hand. Anchors of 16 on a 4 x 4 map of stride 4; centres 2, 6, 10, 14.


def test_mean_plus_deviation_by_hand() -> None:
    """IoUs of the 3 x 3: 1, four of 0.6, four of 144 / 368 = 0.391. Mean 0.5517, deviation (over 8) 0.1979: 0.7496."""
    found = assign_atss(ONE_MAP, faces_in([ON_AN_ANCHOR]), 1)
    assert (found.face_index[0] == 0).nonzero().flatten().tolist() == [5]
    assert found.unmatched_faces.item() == 0


def test_the_deviation_is_over_one_less_than_the_candidates() -> None:
    """Two candidates, of IoU a > b: (a + b) / 2 + (a - b) / √2 lies above a. Over n it would be a itself."""
    grid = AnchorGrid(((1, 2),), strides=(4,), sizes=(16,))
    assert (assign_atss(grid, faces_in([(-6, -6, 10, 10)]), 1).face_index == -1).all()
    one = AnchorGrid(((1, 1),), strides=(4,), sizes=(16,))
    assert assign_atss(one, faces_in([(-6, -6, 10, 10)]), 1).face_index.tolist() == [[0]]  # no deviation of one


def test_on_six_maps_a_face_on_an_anchor_takes_its_neighbours() -> None:
    """45 candidates of the deeper maps, of 0.25 and less, pull the threshold below 0.391: the nine of the 3 x 3."""
    grid = grid_for(640, 640)
    row, column = 40, 60
    face = (4 * column + 2 - 8, 4 * row + 2 - 8, 4 * column + 2 + 8, 4 * row + 2 + 8)
    found = (assign_atss(grid, faces_in([face]), 1).face_index[0] == 0).nonzero().flatten().tolist()
    assert found == [160 * y + x for y in (39, 40, 41) for x in (59, 60, 61)]


@pytest.mark.parametrize(("box", "inside"), [((2.5, 2.5, 5.5, 5.5), 0), ((2, 2, 6, 6), 0), ((1.5, 1.5, 5.5, 5.5), 1)])
def test_a_positive_has_its_centre_inside(box: tuple[float, ...], inside: int) -> None:
    """Centres lie at 2 and 6; borders are outside. A face of 4 within its anchor: 16 / 256."""
    grid = grid_for(64, 64)
    found = assign_atss(grid, faces_in([box]), 1)
    assert (found.face_index == 0).sum().item() == inside
    assert found.unmatched_faces.item() == 1 - inside


def test_the_larger_overlap_keeps_the_anchor_and_equal_ones_go_to_the_first() -> None:
    shifted = (-1, -2, 15, 14)
    both = assign_atss(ONE_MAP, faces_in([shifted, ON_AN_ANCHOR]), 1)
    assert both.face_index[0, 5].item() == 1
    equal = assign_atss(ONE_MAP, faces_in([ON_AN_ANCHOR, ON_AN_ANCHOR]), 1)
    assert equal.face_index[0, 5].item() == 0
    assert equal.unmatched_faces.item() == 1


def test_of_equally_distant_anchors_the_lower_number_is_a_candidate() -> None:
    """k = 1 and a centre half-way between columns 1 and 2."""
    found = assign_atss(ONE_MAP, faces_in([(0, -2, 16, 14)]), 1, k=1)
    assert (found.face_index[0] == 0).nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize(
    "box",
    [
        (1000, 1000, 1010, 1010),
        (math.nan, 0, 10, 10),
        (-math.inf, 0, math.inf, 10),
        (1e30, 1e30, 2e30, 2e30),
        (6, 6, 6, 6),
    ],
)
def test_faces_that_can_have_nothing_are_counted_and_harm_nobody(box: tuple[float, ...]) -> None:
    found = assign_atss(ONE_MAP, faces_in([box, ON_AN_ANCHOR], [], [ON_AN_ANCHOR]), 3)
    assert found.unmatched_faces.item() == 1
    assert found.face_index[0, 5].item() == 1 and found.face_index[2, 5].item() == 2
    assert (found.face_index >= 0).sum().item() == 2


def test_no_faces_and_no_images() -> None:
    grid = grid_for(64, 96)
    for images in (0, 2):
        found = assign_atss(grid, faces_in(*[[]] * images), images)
        assert found.face_index.shape == (images, grid.count) and found.face_index.dtype == torch.int64
        assert (found.face_index == -1).all() and found.unmatched_faces.item() == 0


def test_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="k=0"):
        assign_atss(ONE_MAP, faces_in([]), 1, k=0)


def test_bfloat16_boxes_are_read_as_float32() -> None:
    targets = faces_in([ON_AN_ANCHOR])
    half = Targets(targets.boxes_xyxy.bfloat16(), targets.image_index)
    assert torch.equal(assign_atss(ONE_MAP, half, 1).face_index, assign_atss(ONE_MAP, targets, 1).face_index)


def test_a_thousand_faces() -> None:
    grid = grid_for(640, 640)
    targets = random_faces([1000], 640, seed=1)
    found = assign_atss(grid, targets, 1)
    owners = found.face_index[0][found.face_index[0] >= 0]
    assert found.unmatched_faces.item() == 1000 - owners.unique().numel()
    assert owners.unique().numel() > 500  # two in five have their centre outside of the image


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    st.sampled_from([(16, 16), (33, 70), (64, 40), (130, 100)]),
    st.sampled_from([1, 2, 9, 9, 9]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_follows_the_rule(counts: list[int], size: tuple[int, int], k: int, whole_pixels: bool, seed: int) -> None:
    grid, targets = grid_for(*size), random_faces(counts, max(size), seed, whole_pixels)
    expected, unmatched, close = atss_slowly(grid, targets, len(counts), k)
    found = assign_atss(grid, targets, len(counts), k=k)
    if not close:
        assert found.face_index.tolist() == expected
        assert found.unmatched_faces.item() == unmatched


def test_rounding_decides_in_few_of_those_cases() -> None:
    """Or the property above would not test anything."""
    grid = grid_for(64, 40)
    close = [atss_slowly(grid, random_faces([4, 2], 64, seed, seed % 2 == 0), 2, 9)[2] for seed in range(60)]
    assert sum(close) <= 3
