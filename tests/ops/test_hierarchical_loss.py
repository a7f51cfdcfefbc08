"""The hierarchical loss and its options, by hand, against plain loops, over ranks, and through the command line."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.hierarchical_loss import CHOICES, HierarchicalLoss
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput
from tests.ops.helpers import ON_AN_ANCHOR, faces_in, grid_for, leaves, random_faces, random_heads
from tests.ops.oracles import slow_loss
from tests.train.helpers import TINY, column, trained

GRID = AnchorGrid(((5, 4), (3, 2)), strides=(4, 8), sizes=(16, 32))  # 26 anchors
SIX_MAPS = grid_for(64, 64)  # 342 anchors
KINDS = {name: CHOICES[name] for name in ("assignment", "classification", "box")}
IMAGES = [[(-2, -2, 14, 14), (2, 3, 20, 25)], [(1, 1, 9, 9)], [], []]


@pytest.mark.parametrize(
    ("face_logit", "dx", "faces", "cls", "box"),
    [
        # The face is the anchor: -log(3/4) at logit log 3; an offset 2 off: smooth-L1 1.5.
        (math.log(3), 2.0, [(-6, -6, 10, 10)], -math.log(0.75), 1.5),
        (0.0, -0.5, [(-6, -6, 10, 10)], math.log(2), 0.125),  # quadratic below 1
        # No face: the only anchor is the hardest negative, -log(1/4); N is 1, not 0.
        (math.log(3), 0.0, [], -math.log(0.25), 0.0),
    ],
)
def test_one_anchor_by_hand(
    face_logit: float, dx: float, faces: list[tuple[float, ...]], cls: float, box: float
) -> None:
    """A map of one cell: an anchor of 16 centered on (2, 2); λ = 3."""
    logits, offsets = torch.tensor([[[0.0, face_logit]]]), torch.tensor([[[dx, 0.0, 0.0, 0.0]]])
    grid = AnchorGrid(((1, 1),), (4,), (16,))
    found = HierarchicalLoss()(NetworkOutput([HeadOutput(logits, offsets)], []), grid, faces_in(faces))
    assert found.parts["h1/cls"].item() == pytest.approx(cls)
    assert found.parts["h1/box"].item() == pytest.approx(box)
    assert found.total.item() == pytest.approx(3 * cls + box)
    assert (found.positives.item(), found.unmatched_faces.item()) == (len(faces), 0)


@settings(max_examples=150)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=3), *map(st.sampled_from, KINDS.values()),
    st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([0.1, 1.0]), st.sampled_from([0.0, 1.5, 3.0]),
    st.sampled_from([0, 2, 16]), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 10**6),
)  # fmt: skip
def test_value_and_gradient_equal_plain_loops(
    counts: list[int], weights: list[float], assignment: str, classification: str, box: str, box_weight: float,
    beta: float, ratio: float, min_negatives: int, count_negatives: bool, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    output, targets = (
        random_heads(len(weights), len(counts), SIX_MAPS.count, seed, dtype),
        random_faces(counts, 64, seed),
    )
    count_negatives &= classification == "cross_entropy"
    kinds = {"assignment": assignment, "classification": classification, "box": box, "box_weight": box_weight}
    criterion = HierarchicalLoss(
        weights, 3, "positives_and_negatives" if count_negatives else "positives", ratio, min_negatives, box_beta=beta,
        **kinds,  # type: ignore[arg-type]
    )  # fmt: skip
    found = criterion(output, SIX_MAPS, targets)
    expected = slow_loss(
        output, SIX_MAPS, targets, weights, beta=beta, ratio=ratio, min_negatives=min_negatives,
        count_negatives=count_negatives, **kinds,  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total.double(), torch.as_tensor(expected).double(), rtol=1e-4, atol=1e-4)
    parts = [float(found.parts[f"h{i + 1}/{name}"]) for i in range(len(weights)) for name in ("cls", "box")]
    sums = [w * (3 * cls + box_weight * of) for w, cls, of in zip(weights, parts[::2], parts[1::2], strict=True)]
    assert found.total.item() == pytest.approx(sum(sums), rel=1e-4, abs=1e-4)
    gradients = torch.autograd.grad(found.total, leaves(output))
    assert all(gradient.isfinite().all() for gradient in gradients)
    if classification == "cross_entropy" and box == "smooth_l1" and expected.requires_grad:
        wanted = torch.autograd.grad(expected, leaves(output), allow_unused=True)
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        for gradient, want in zip(gradients, wanted, strict=True):
            want = torch.zeros_like(gradient) if want is None else want
            torch.testing.assert_close(gradient, want, rtol=tolerance, atol=tolerance)


def test_the_last_hierarchy_decides_for_all() -> None:
    """The first one is sure of the anchors where there is no face; the faces' anchors are those of the last."""
    targets, output = random_faces([3], 64, seed=2), random_heads(2, 1, SIX_MAPS.count, seed=2)
    criterion = HierarchicalLoss(assignment="simota")
    first, last = (criterion(NetworkOutput([heads], []), SIX_MAPS, targets).parts for heads in output.hierarchies)
    both = criterion(output, SIX_MAPS, targets).parts
    assert torch.equal(both["h2/cls"], last["h1/cls"]) and torch.equal(both["h2/box"], last["h1/box"])
    assert both["h1/box"] != first["h1/box"]


@pytest.mark.parametrize(("assignment", "classification", "box"), [*product(*KINDS.values())])
def test_a_batch_without_faces_is_finite_and_reaches_every_head(assignment: str, classification: str, box: str) -> None:
    output = random_heads(2, 2, GRID.count)
    found = HierarchicalLoss(assignment=assignment, classification=classification, box=box)(
        output, GRID, faces_in([], [])
    )
    found.total.backward()
    assert found.total.isfinite() and found.positives.item() == 0
    for heads in output.hierarchies:
        assert heads.logits.grad is not None and heads.logits.grad.count_nonzero() > 0
        assert heads.offsets.grad is not None and heads.offsets.grad.count_nonzero() == 0


@pytest.mark.parametrize("options", [{"assignment": "simota", "box": "ciou"}, {"classification": "quality_focal"}, {}])
def test_bfloat16_heads_and_autocast(options: dict[str, str]) -> None:
    targets = random_faces([3, 4], 64, seed=5)
    output = random_heads(2, 2, SIX_MAPS.count, 5, torch.bfloat16)
    same = NetworkOutput([HeadOutput(h.logits.float(), h.offsets.float()) for h in output.hierarchies], [])
    expected = HierarchicalLoss(**options)(same, SIX_MAPS, targets)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = HierarchicalLoss(**options)(output, SIX_MAPS, targets)  # type: ignore[arg-type]
    assert found.total.dtype == torch.float32 and torch.equal(found.total, expected.total)
    found.total.backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves(output))


def test_the_quality_is_a_target_without_gradient() -> None:
    output, targets = random_heads(1, 1, SIX_MAPS.count), random_faces([4], 64, seed=1)
    criterion = HierarchicalLoss(classification="quality_focal", box_weight=0)
    criterion(output, SIX_MAPS, targets).total.backward()
    gradient = output.hierarchies[0].offsets.grad
    assert gradient is not None and gradient.count_nonzero() == 0


def test_extreme_logits_and_tiny_faces_stay_finite_and_a_nan_shows() -> None:
    ((logits, offsets),) = random_heads(1, 1, GRID.count).hierarchies
    targets, wild = faces_in([(3.0, 3.0, 3.001, 3.001), ON_AN_ANCHOR]), (logits.detach() * 1e4).requires_grad_()
    found = HierarchicalLoss()(NetworkOutput([HeadOutput(wild, offsets)], []), GRID, targets)
    found.total.backward()
    assert found.total.isfinite() and wild.grad is not None and wild.grad.isfinite().all()
    with torch.no_grad():
        wild[0, -1] = math.nan  # a negative
    assert HierarchicalLoss()(NetworkOutput([HeadOutput(wild, offsets)], []), GRID, targets).total.isnan()


@pytest.mark.parametrize(
    "options",
    [
        *({name: "other"} for name in (*CHOICES, "box_weight")),
        {"negatives_per_positive": math.nan}, {"weights": [1, math.inf]}, {"threshold": 35}, {"focal_alpha": None},
        {"second_stage": True, "assignment": "atss"},
        {"normalise_by": "positives_and_negatives", "classification": "focal"},
        {"focal_gamma": 0.5, "classification": "quality_focal"},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"^loss\.{next(iter(options))}="):
        HierarchicalLoss(**options)  # type: ignore[arg-type]


def test_training_lowers_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["loss=focal_giou", "level=2", "epochs=8", "validate_every=8", "augment=none", "logger=csv", "out=run"]
    trained(*TINY, *words, "optim.lr=0.01", "data.train_images=12", "data.val_images=2", "evaluate_at_end=false")
    losses = column("run", "train/loss")
    assert len(losses) == 24  # 8 epochs of 3 steps, each over the same 12 images
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    stored = torch.load("run/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    expected = {"classification": "focal", "box": "giou", "box_weight": 2.0, "lambda_cls": 1.0}
    assert stored["loss"].items() >= expected.items() and stored["network"]["face_prior"] == 0.01
