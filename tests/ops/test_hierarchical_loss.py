"""The hierarchical loss and its options, by hand, against plain loops, over ranks, and through the command line."""

import csv
import math
import os
import sys
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
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput, Targets
from fanet_lightning.train import __main__ as train
from tests.ops.helpers import ON_AN_ANCHOR, faces_in, grid_for, leaves, random_faces, random_heads
from tests.ops.oracles import slow_loss

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


@pytest.mark.parametrize(("ratio", "kept"), [(0, 0), (0.5, 4), (3, 27), (10, 55)])
def test_at_most_so_many_negatives_per_positive(ratio: float, kept: int) -> None:
    """9 positives; half of 9 is rounded down; there are 55 negatives and no more."""
    grid = AnchorGrid(((8, 8),), (4,), (16,))
    heads = HeadOutput(torch.zeros(1, 64, 2), torch.zeros(1, 64, 4))
    criterion = HierarchicalLoss(negatives_per_positive=ratio)
    found = criterion(NetworkOutput([heads], []), grid, faces_in([(2.0, 2.0, 18.0, 18.0)]))
    assert found.parts["h1/cls"].item() * 9 / math.log(2) == pytest.approx(9 + kept, rel=1e-5)


@pytest.mark.parametrize(("min_negatives", "kept"), [(0, 0), (16, 16), (1000, 26)])
def test_an_image_without_faces_keeps_its_hardest(min_negatives: int, kept: int) -> None:
    heads = HeadOutput(torch.zeros(2, GRID.count, 2, requires_grad=True), torch.zeros(2, GRID.count, 4))
    found = HierarchicalLoss(min_negatives=min_negatives)(NetworkOutput([heads], []), GRID, faces_in([], []))
    assert found.parts["h1/cls"].item() / math.log(2) == pytest.approx(2 * kept)
    found.total.backward()
    assert heads.logits.grad is not None and heads.logits.grad.count_nonzero() == 2 * 2 * kept


coordinate = st.integers(-20, 80).map(lambda quarters: quarters / 4)
length = st.integers(4, 160).map(lambda quarters: quarters / 4)
box = st.tuples(coordinate, coordinate, length, length).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(box, max_size=4), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=3),
    st.sampled_from([0.0, 1.5, 3.0]), st.sampled_from([0, 2, 16]), st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 1000),
)  # fmt: skip
def test_value_and_gradient_equal_plain_loops(
    images: list[list[tuple[float, ...]]], weights: list[float], ratio: float, min_negatives: int,
    count_negatives: bool, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    output = random_heads(len(weights), len(images), GRID.count, seed, dtype)
    targets = faces_in(*images)
    normalise_by = "positives_and_negatives" if count_negatives else "positives"
    criterion = HierarchicalLoss(weights, 3, normalise_by, ratio, min_negatives)
    found = criterion(output, GRID, targets)
    assert found.total.dtype == torch.float32
    expected = slow_loss(
        output, GRID, targets, weights, ratio=ratio, min_negatives=min_negatives, count_negatives=count_negatives
    )
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(found.total, leaves(output))
    # No face and nothing mined: the plain loops then have no graph at all, which stands for zero.
    wanted: tuple[torch.Tensor | None, ...] = (None,) * len(gradients)
    if expected.requires_grad:
        wanted = torch.autograd.grad(expected, leaves(output), allow_unused=True)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for gradient, want in zip(gradients, wanted, strict=True):
        want = torch.zeros_like(gradient) if want is None else want
        torch.testing.assert_close(gradient, want, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=120)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 3), *map(st.sampled_from, KINDS.values()),
    st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([0.1, 1.0]), st.integers(0, 10**6),
)  # fmt: skip
def test_every_combination_equals_plain_loops(
    counts: list[int], hierarchies: int, assignment: str, classification: str, box: str, box_weight: float,
    beta: float, seed: int,
) -> None:  # fmt: skip
    output = random_heads(hierarchies, len(counts), SIX_MAPS.count, seed)
    targets = random_faces(counts, 64, seed)
    criterion = HierarchicalLoss(
        assignment=assignment, classification=classification, box=box, box_weight=box_weight, box_beta=beta
    )
    found = criterion(output, SIX_MAPS, targets)
    expected = slow_loss(
        output, SIX_MAPS, targets, assignment=assignment, classification=classification, box=box,
        box_weight=box_weight, beta=beta,
    ).item()  # fmt: skip
    assert found.total.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for gradient in torch.autograd.grad(found.total, leaves(output)):
        assert gradient.isfinite().all()
    parts = sum(value * (3 if name.endswith("cls") else box_weight) for name, value in found.parts.items())
    torch.testing.assert_close(found.total.detach(), torch.as_tensor(parts))


@pytest.mark.parametrize(("assignment", "classification"), [*product(KINDS["assignment"], KINDS["classification"])])
def test_the_order_of_the_faces_does_not_matter(assignment: str, classification: str) -> None:
    criterion = HierarchicalLoss(assignment=assignment, classification=classification, box="ciou")
    for seed in range(10):
        targets, output = random_faces([5, 0, 7], 64, seed), random_heads(2, 3, SIX_MAPS.count, seed)
        order = torch.cat([torch.randperm(5), 5 + torch.randperm(7)])
        shuffled = Targets(targets.boxes_xyxy[order], targets.image_index[order])
        first, second = criterion(output, SIX_MAPS, targets), criterion(output, SIX_MAPS, shuffled)
        torch.testing.assert_close(first.total, second.total, rtol=1e-5, atol=1e-5)
        assert first.positives == second.positives and first.unmatched_faces == second.unmatched_faces


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


def test_heads_grid_and_weights_must_agree() -> None:
    with pytest.raises(ValueError, match=r"25.*26"):
        HierarchicalLoss()(random_heads(1, 1, 25), GRID, faces_in([]))
    for weights in ([1, 1], []):
        with pytest.raises(InputError, match=rf"loss\.weights=.*{len(weights)} .* 3 "):
            HierarchicalLoss(weights=weights)(random_heads(3, 1, GRID.count), GRID, faces_in([]))


def rank_gradients(rank: int, options: dict[str, str], folder: str) -> None:
    """Rank 0 has all faces, rank 1 none."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    whole = random_heads(2, 4, GRID.count)
    mine = [tensor.detach()[2 * rank : 2 * rank + 2].clone().requires_grad_() for tensor in leaves(whole)]
    output = NetworkOutput([HeadOutput(*mine[:2]), HeadOutput(*mine[2:])], [])
    criterion = HierarchicalLoss(**options)  # type: ignore[arg-type]
    found = criterion(output, GRID, faces_in(*IMAGES[2 * rank : 2 * rank + 2]))
    found.total.backward()
    torch.save([found.total.detach(), [tensor.grad for tensor in mine]], Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_average_to_the_gradient_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"assignment": "simota", "classification": "quality_focal", "box": "giou"}
    whole = random_heads(2, 4, GRID.count)
    expected = HierarchicalLoss(**options)(whole, GRID, faces_in(*IMAGES))  # type: ignore[arg-type]
    expected.total.backward()
    # The children import this file by its name.
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    torch.multiprocessing.spawn(rank_gradients, args=(options, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, expected.total.detach())
    for index, tensor in enumerate(leaves(whole)):
        torch.testing.assert_close(torch.cat([ranks[0][1][index], ranks[1][1][index]]) / 2, tensor.grad)


TINY = [
    "model.width=0.0625", "level=2", "input_size=64", "batch_size=4", "epochs=8", "workers=0", "data.train_images=12",
    "data.val_images=2", "augment=none", "trainer.accelerator=cpu", "validate_every=8", "trainer.log_every_n_steps=1",
    "optim.lr=0.01", "optim.warmup_steps=4", "evaluate_at_end=false", "logger=csv",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs share the synthetic images."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        (["loss=simota", "loss.box=diou"], {"assignment": "simota", "box": "diou"}),
        (["loss=focal_giou"], {"classification": "focal", "box": "giou", "box_weight": 2.0, "lambda_cls": 1.0}),
    ],
)
def test_training_lowers_the_loss(
    words: list[str], stored: dict[str, object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out = Path("_".join(words).replace("=", "-"))
    arguments = [*TINY, *words, f"out={out}"]
    monkeypatch.setattr(sys, "argv", ["train", *arguments])  # Hydra reads them there
    train.main(arguments)
    with (out / "csv/metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 24  # 8 epochs of 3 steps, each over the same 12 images
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    hyper_parameters = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert hyper_parameters["loss"].items() >= stored.items()
    assert hyper_parameters["network"]["face_prior"] == (0.01 if "loss=focal_giou" in words else None)
