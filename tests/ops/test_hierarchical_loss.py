"""The hierarchical loss, against numbers worked out by hand and against plain loops."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fanet_lightning.cli.errors import InputError
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss, hardest_negatives
from fanet_lightning.ops.matching import match
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput, Targets

GRID = AnchorGrid(((5, 4), (3, 2)), strides=(4, 8), sizes=(16, 32))  # 26 anchors
ON_AN_ANCHOR = (-2.0, -2.0, 14.0, 14.0)


def faces_in(*images: list[tuple[float, ...]]) -> Targets:
    boxes = [box for image in images for box in image]
    index = [number for number, image in enumerate(images) for _ in image]
    return Targets(torch.tensor(boxes).reshape(-1, 4), torch.tensor(index, dtype=torch.int64))


def random_heads(
    hierarchies: int, batch_size: int, anchors: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> NetworkOutput:
    random = torch.Generator().manual_seed(seed)

    def leaf(channels: int) -> Tensor:
        values = 3 * torch.randn(batch_size, anchors, channels, generator=random)
        return values.to(dtype).requires_grad_()

    return NetworkOutput([HeadOutput(leaf(2), leaf(4)) for _ in range(hierarchies)], [])


def leaves(output: NetworkOutput) -> list[Tensor]:
    return [tensor for heads in output.hierarchies for tensor in heads]


def slow_loss(
    output: NetworkOutput,
    grid: AnchorGrid,
    targets: Targets,
    weights: list[float],
    lambda_cls: float = 3.0,
    ratio: float = 3.0,
    min_negatives: int = 16,
    count_negatives: bool = False,
) -> Tensor:
    """Eq. 4 and 5, one anchor at a time, in double precision; mining by a full sort."""
    face_index = match(grid, targets, len(output.hierarchies[0].logits)).face_index.tolist()
    anchors, boxes = grid.boxes_cxcywh().tolist(), targets.boxes_xyxy.tolist()
    total = torch.zeros((), dtype=torch.float64)
    for weight, (logits, offsets) in zip(weights, output.hierarchies, strict=True):
        logits, offsets = logits.double(), offsets.double()
        loss, counted = torch.zeros((), dtype=torch.float64), 0
        for image, faces in enumerate(face_index):
            positives = [anchor for anchor, face in enumerate(faces) if face >= 0]
            negatives = [anchor for anchor, face in enumerate(faces) if face < 0]
            background_loss = {a: -torch.log_softmax(logits[image, a], dim=0)[0] for a in negatives}
            quota = math.floor(ratio * len(positives)) if positives else min_negatives
            mined = sorted(background_loss.values(), key=lambda value: -value.item())[:quota]
            counted += len(positives) + (len(mined) if count_negatives else 0)
            for value in mined:
                loss = loss + lambda_cls * value
            for a in positives:
                loss = loss - lambda_cls * torch.log_softmax(logits[image, a], dim=0)[1]
                x1, y1, x2, y2 = boxes[faces[a]]
                cx, cy, width, height = anchors[a]
                wanted = [
                    ((x1 + x2) / 2 - cx) / width / 0.1,
                    ((y1 + y2) / 2 - cy) / height / 0.1,
                    math.log((x2 - x1) / width) / 0.2,
                    math.log((y2 - y1) / height) / 0.2,
                ]
                for said, value in zip(offsets[image, a], wanted, strict=True):
                    error = (said - value).abs()
                    loss = loss + (error - 0.5 if error.item() >= 1 else error**2 / 2)
        total = total + weight * loss / max(counted, 1)
    return total


# By hand.


def one_anchor(face_logit: float, dx: float = 0.0) -> tuple[NetworkOutput, AnchorGrid]:
    """A map of one cell: an anchor of 16 centred on (2, 2)."""
    logits, offsets = torch.tensor([[[0.0, face_logit]]]), torch.tensor([[[dx, 0.0, 0.0, 0.0]]])
    return NetworkOutput([HeadOutput(logits, offsets)], []), AnchorGrid(((1, 1),), (4,), (16,))


def test_one_positive_by_hand() -> None:
    """The face is the anchor. Cross-entropy -log(3/4) at logit log 3, offset 2 off: smooth-L1 1.5; λ = 3, N = 1."""
    output, grid = one_anchor(math.log(3), dx=2.0)
    found = HierarchicalLoss()(output, grid, faces_in([(-6.0, -6.0, 10.0, 10.0)]))
    assert found.parts["h1/cls"].item() == pytest.approx(-math.log(0.75))
    assert found.parts["h1/box"].item() == pytest.approx(1.5)
    assert found.total.item() == pytest.approx(-3 * math.log(0.75) + 1.5)
    assert (found.positives.item(), found.unmatched_faces.item()) == (1, 0)


def test_smooth_l1_is_quadratic_below_one() -> None:
    output, grid = one_anchor(0.0, dx=-0.5)
    found = HierarchicalLoss()(output, grid, faces_in([(-6.0, -6.0, 10.0, 10.0)]))
    assert found.parts["h1/box"].item() == pytest.approx(0.125)


def test_one_negative_by_hand() -> None:
    """No face: the only anchor is the hardest negative, -log(1/4) at logit log 3; N is 1, not 0."""
    output, grid = one_anchor(math.log(3))
    found = HierarchicalLoss()(output, grid, faces_in([]))
    assert found.total.item() == pytest.approx(-3 * math.log(0.25))
    assert found.positives.item() == 0


def test_nine_positives_twelve_hierarchical_terms_by_hand() -> None:
    """All logits 0 and offsets as wanted: every kept anchor costs log 2.

    On an 8 x 8 map the face has 9 anchors and keeps 27 of 55 negatives: 36 log 2 / 9; ω = 1 and 2, λ = 3.
    """
    grid = AnchorGrid(((8, 8),), (4,), (16,))
    face = (2.0, 2.0, 18.0, 18.0)
    offsets = torch.zeros(1, 64, 4)
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            # One cell is a quarter of the anchor: 0.25 / 0.1.
            offsets[0, 8 * (2 + y) + 2 + x, :2] = torch.tensor([-2.5 * x, -2.5 * y])
    heads = HeadOutput(torch.zeros(1, 64, 2), offsets)
    found = HierarchicalLoss(weights=[1, 2])(NetworkOutput([heads, heads], []), grid, faces_in([face]))
    assert found.positives.item() == 9
    assert found.parts["h1/cls"].item() == pytest.approx(4 * math.log(2))
    assert found.parts["h2/box"].item() == pytest.approx(0, abs=1e-5)
    assert found.total.item() == pytest.approx(3 * 3 * 4 * math.log(2), rel=1e-5)
    both = HierarchicalLoss(normalise_by="positives_and_negatives")(NetworkOutput([heads], []), grid, faces_in([face]))
    assert both.parts["h1/cls"].item() == pytest.approx(math.log(2))


def test_parts_make_up_the_total() -> None:
    output = random_heads(3, 2, GRID.count)
    found = HierarchicalLoss(weights=[0.5, 1, 2], lambda_cls=4)(output, GRID, faces_in([ON_AN_ANCHOR], []))
    assert list(found.parts) == ["h1/cls", "h1/box", "h2/cls", "h2/box", "h3/cls", "h3/box"]
    total = sum(w * (4 * found.parts[f"h{i}/cls"] + found.parts[f"h{i}/box"]) for i, w in ((1, 0.5), (2, 1), (3, 2)))
    torch.testing.assert_close(found.total, total)
    assert found.total.requires_grad and not any(part.requires_grad for part in found.parts.values())
    assert all(value.shape == () for value in (found.total, found.positives, *found.parts.values()))


# Mining.


def test_the_hardest_are_kept_per_image_and_hierarchy() -> None:
    margins = torch.tensor([[[5.0, 1, 4, 2], [9, 8, 7, 6]], [[0, 3, 1, 2], [-1, -2, -3, -4]]])
    positive = torch.tensor([[True, False, False, False], [False, False, False, True]])
    found = hardest_negatives(margins, positive, torch.tensor([2, 1]))
    assert [sorted(rows) for rows in found.tolist()] == [[2, 3, 4], [1, 3, 4]]


@pytest.mark.parametrize(("ratio", "kept"), [(0, 0), (0.5, 4), (1, 9), (3, 27), (10, 55)])
def test_at_most_so_many_negatives_per_positive(ratio: float, kept: int) -> None:
    """9 positives; half of 9 is rounded down; there are 55 negatives and no more."""
    grid = AnchorGrid(((8, 8),), (4,), (16,))
    heads = HeadOutput(torch.zeros(1, 64, 2), torch.zeros(1, 64, 4))
    criterion = HierarchicalLoss(negatives_per_positive=ratio)
    found = criterion(NetworkOutput([heads], []), grid, faces_in([(2.0, 2.0, 18.0, 18.0)]))
    assert found.parts["h1/cls"].item() * 9 / math.log(2) == pytest.approx(9 + kept, rel=1e-5)


@pytest.mark.parametrize(("min_negatives", "kept"), [(0, 0), (16, 16), (1000, 26)])
def test_an_image_without_faces_keeps_its_hardest(min_negatives: int, kept: int) -> None:
    heads = HeadOutput(torch.zeros(1, GRID.count, 2), torch.zeros(1, GRID.count, 4))
    found = HierarchicalLoss(min_negatives=min_negatives)(NetworkOutput([heads], []), GRID, faces_in([]))
    assert found.parts["h1/cls"].item() / math.log(2) == pytest.approx(kept)


def test_ties_at_the_cut_do_not_change_the_loss() -> None:
    """Only three different losses; whichever of the equal ones are kept, the sum is that of a full sort."""
    output = random_heads(1, 2, GRID.count)
    logits = output.hierarchies[0].logits.detach().sign().requires_grad_()
    output = NetworkOutput([HeadOutput(logits, output.hierarchies[0].offsets)], [])
    targets = faces_in([ON_AN_ANCHOR], [])
    criterion = HierarchicalLoss(negatives_per_positive=1, min_negatives=7)
    expected = slow_loss(output, GRID, targets, [1.0], ratio=1, min_negatives=7)
    torch.testing.assert_close(criterion(output, GRID, targets).total.double(), expected, rtol=1e-5, atol=1e-5)


# Against plain loops.

coordinate = st.integers(-20, 80).map(lambda quarters: quarters / 4)
length = st.integers(4, 160).map(lambda quarters: quarters / 4)
box = st.tuples(coordinate, coordinate, length, length).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(box, max_size=4), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=3),
    st.sampled_from([0.0, 1.5, 3.0]),
    st.sampled_from([0, 2, 16]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_value_and_gradient_equal_plain_loops(
    images: list[list[tuple[float, ...]]],
    weights: list[float],
    ratio: float,
    min_negatives: int,
    count_negatives: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    output = random_heads(len(weights), len(images), GRID.count, seed, dtype)
    targets = faces_in(*images)
    criterion = HierarchicalLoss(
        weights=weights,
        normalise_by="positives_and_negatives" if count_negatives else "positives",
        negatives_per_positive=ratio,
        min_negatives=min_negatives,
    )
    found = criterion(output, GRID, targets)
    assert found.total.dtype == torch.float32
    expected = slow_loss(output, GRID, targets, weights, 3.0, ratio, min_negatives, count_negatives)
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(found.total, leaves(output))
    # No face and nothing mined: the plain loops then have no graph at all, which stands for zero.
    if expected.requires_grad:
        wanted = torch.autograd.grad(expected, leaves(output), allow_unused=True)
    else:
        wanted = (None,) * len(gradients)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for gradient, want in zip(gradients, wanted, strict=True):
        want = torch.zeros_like(gradient) if want is None else want
        torch.testing.assert_close(gradient, want, rtol=tolerance, atol=tolerance)


def test_autocast_changes_nothing() -> None:
    output, targets = random_heads(2, 2, GRID.count), faces_in([ON_AN_ANCHOR], [])
    expected = HierarchicalLoss()(output, GRID, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = HierarchicalLoss()(output, GRID, targets)
    assert found.total.dtype == torch.float32
    assert torch.equal(found.total, expected.total)


# What must not go wrong in training.


@pytest.mark.parametrize("min_negatives", [0, 16])
def test_a_batch_without_faces_is_finite_and_reaches_every_head(min_negatives: int) -> None:
    output = random_heads(3, 2, GRID.count)
    found = HierarchicalLoss(min_negatives=min_negatives)(output, GRID, faces_in([], []))
    found.total.backward()
    assert found.total.isfinite()
    for heads in output.hierarchies:
        assert heads.logits.grad is not None and heads.offsets.grad is not None
        assert heads.logits.grad.count_nonzero() == 2 * 2 * min_negatives
        assert heads.offsets.grad.count_nonzero() == 0


def test_extreme_logits_and_tiny_faces_stay_finite() -> None:
    output = random_heads(1, 1, GRID.count)
    wild = HeadOutput((output.hierarchies[0].logits.detach() * 1e4).requires_grad_(), output.hierarchies[0].offsets)
    found = HierarchicalLoss()(NetworkOutput([wild], []), GRID, faces_in([(3.0, 3.0, 3.001, 3.001), ON_AN_ANCHOR]))
    found.total.backward()
    assert found.total.isfinite()
    assert wild.logits.grad is not None and wild.logits.grad.isfinite().all()


def test_a_nan_among_the_negatives_shows() -> None:
    output = random_heads(1, 1, GRID.count)
    with torch.no_grad():
        output.hierarchies[0].logits[0, -1] = math.nan
    assert HierarchicalLoss()(output, GRID, faces_in([ON_AN_ANCHOR])).total.isnan()


def test_matching_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(kwargs)
        return match(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("fanet_lightning.ops.hierarchical_loss.match", counted)
    HierarchicalLoss(threshold=0.5, second_stage=True)(random_heads(3, 1, GRID.count), GRID, faces_in([ON_AN_ANCHOR]))
    assert calls == [{"threshold": 0.5, "second_stage": True}]


# Mistakes.


@pytest.mark.parametrize("weights", [[1, 1], []])
def test_one_weight_per_hierarchy(weights: list[float]) -> None:
    criterion = HierarchicalLoss(weights=weights)
    with pytest.raises(InputError, match=rf"loss\.weights=.*{len(weights)} .* 3 "):
        criterion(random_heads(3, 1, GRID.count), GRID, faces_in([]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normalise_by": "anchors"}, r"loss\.normalise_by=anchors.*positives_and_negatives"),
        ({"lambda_cls": -1}, r"loss\.lambda_cls=-1"),
        ({"negatives_per_positive": math.nan}, r"loss\.negatives_per_positive=nan"),
        ({"min_negatives": -16}, r"loss\.min_negatives=-16"),
        ({"weights": [1, math.inf]}, r"loss\.weights=inf"),
        ({"threshold": 35}, r"loss\.threshold=35"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        HierarchicalLoss(**options)  # type: ignore[arg-type]


def test_heads_and_grid_must_agree() -> None:
    with pytest.raises(ValueError, match=r"25.*26"):
        HierarchicalLoss()(random_heads(1, 1, 25), GRID, faces_in([]))
    with pytest.raises(ValueError, match="heads for"):
        HierarchicalLoss()(NetworkOutput([], []), GRID, faces_in([]))


# Two ranks.

IMAGES = [[ON_AN_ANCHOR, (2.0, 3.0, 20.0, 25.0)], [(1.0, 1.0, 9.0, 9.0)], [], []]


def rank_gradients(rank: int, normalise_by: str, folder: str) -> None:
    """Rank 0 has all faces, rank 1 none: the hardest split for a normaliser."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    whole = random_heads(2, 4, GRID.count)
    mine = [tensor.detach()[2 * rank : 2 * rank + 2].clone().requires_grad_() for tensor in leaves(whole)]
    output = NetworkOutput([HeadOutput(*mine[:2]), HeadOutput(*mine[2:])], [])
    found = HierarchicalLoss(normalise_by=normalise_by)(output, GRID, faces_in(*IMAGES[2 * rank : 2 * rank + 2]))
    found.total.backward()
    torch.save([found.total.detach(), found.parts, [tensor.grad for tensor in mine]], Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("normalise_by", ["positives", "positives_and_negatives"])
def test_two_ranks_average_to_the_gradient_of_one(
    normalise_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parameter's gradient is a sum over images, and DDP halves the sum of the two ranks' gradients."""
    whole = random_heads(2, 4, GRID.count)
    expected = HierarchicalLoss(normalise_by=normalise_by)(whole, GRID, faces_in(*IMAGES))
    expected.total.backward()
    # The children import this file by its name.
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    torch.multiprocessing.spawn(rank_gradients, args=(normalise_by, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, expected.total.detach())
    for name, part in expected.parts.items():
        torch.testing.assert_close((ranks[0][1][name] + ranks[1][1][name]) / 2, part)
    for index, tensor in enumerate(leaves(whole)):
        gradient = torch.cat([ranks[0][2][index], ranks[1][2][index]]) / 2
        torch.testing.assert_close(gradient, tensor.grad)
