"""The named options of the loss together: against plain loops, over ranks, and through the command line."""

import csv
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.assigners import assign_atss, assign_simota
from fanet_lightning.ops.boxes import decode, encode, paired_iou
from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss
from fanet_lightning.ops.matching import match
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput, Targets
from fanet_lightning.train import __main__ as train
from tests.ops.test_atss import faces_in, random_faces
from tests.ops.test_box_losses import slow_loss as slow_iou_loss
from tests.ops.test_focal import slow_focal, slow_quality_focal
from tests.ops.test_hierarchical_loss import GRID, leaves, random_heads

ASSIGNMENTS = ("iou", "atss", "simota")
CLASSIFICATIONS = ("cross_entropy", "focal", "quality_focal")
BOXES = ("smooth_l1", "giou", "diou", "ciou")
IMAGES = [[(-2, -2, 14, 14), (2, 3, 20, 25)], [(1, 1, 9, 9)], [], []]
SIX_MAPS = AnchorGrid(((16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)))  # 342 anchors


def slow_loss(
    output: NetworkOutput, grid: AnchorGrid, targets: Targets, assignment: str, classification: str, box: str,
    box_weight: float, beta: float,
) -> float:  # fmt: skip
    """The value, one anchor at a time, given who learns what; λ = 3, mining 3 : 1 and 16 where there is no face."""
    images, last = len(output.hierarchies[0].logits), output.hierarchies[-1]
    assigned = {
        "iou": lambda: match(grid, targets, images),
        "atss": lambda: assign_atss(grid, targets, images),
        "simota": lambda: assign_simota(grid, targets, last),
    }[assignment]().face_index
    count, total = max(int((assigned >= 0).sum()), 1), 0.0
    for logits, offsets in output.hierarchies:
        margins = (logits[..., 1] - logits[..., 0]).double()
        for image in range(images):
            faces = assigned[image].tolist()
            positive = [face >= 0 for face in faces]
            rows = [anchor for anchor, face in enumerate(faces) if face >= 0]
            wanted = targets.boxes_xyxy[[faces[anchor] for anchor in rows]]
            priors = grid.boxes_cxcywh()[rows]
            predicted = decode(offsets[image, rows], priors)
            values = margins[image].tolist()
            if classification == "focal":
                total += 3 * slow_focal(values, positive, 0.25, 2)
            elif classification == "quality_focal":
                quality = dict(zip(rows, paired_iou(predicted, wanted).tolist(), strict=True))
                total += 3 * slow_quality_focal(values, [quality.get(anchor, 0.0) for anchor in range(len(values))], 2)
            else:
                cost = torch.nn.functional.softplus(margins[image])
                negatives = sorted(cost[torch.tensor([not face for face in positive])].tolist(), reverse=True)
                kept = negatives[: 3 * len(rows) if rows else 16]
                total += 3 * (sum(kept) + sum((cost - margins[image])[rows].tolist()))
            if box == "smooth_l1":
                errors = (offsets[image, rows] - encode(wanted, priors)).abs().flatten().tolist()
                terms = [error**2 / (2 * beta) if error < beta else error - beta / 2 for error in errors]
            else:
                terms = [slow_iou_loss(box, *pair) for pair in zip(predicted.tolist(), wanted.tolist(), strict=True)]
            total += box_weight * sum(terms)
    return total / count


@settings(deadline=None, max_examples=120)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from(ASSIGNMENTS),
    st.sampled_from(CLASSIFICATIONS),
    st.sampled_from(BOXES),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.sampled_from([0.1, 1.0]),
    st.integers(0, 10**6),
)
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
    expected = slow_loss(output, SIX_MAPS, targets, assignment, classification, box, box_weight, beta)
    assert found.total.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for gradient in torch.autograd.grad(found.total, leaves(output)):
        assert gradient.isfinite().all()
    parts = sum(value * (3 if name.endswith("cls") else box_weight) for name, value in found.parts.items())
    torch.testing.assert_close(found.total.detach(), torch.as_tensor(parts))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_the_order_of_the_faces_does_not_matter(assignment: str, classification: str) -> None:
    criterion = HierarchicalLoss(assignment=assignment, classification=classification, box="ciou")
    for seed in range(30):
        targets = random_faces([5, 0, 7], 64, seed)
        output = random_heads(2, 3, SIX_MAPS.count, seed)
        order = torch.cat([torch.randperm(5), 5 + torch.randperm(7)])
        shuffled = Targets(targets.boxes_xyxy[order], targets.image_index[order])
        first, second = criterion(output, SIX_MAPS, targets), criterion(output, SIX_MAPS, shuffled)
        torch.testing.assert_close(first.total, second.total, rtol=1e-5, atol=1e-5)
        assert first.positives == second.positives and first.unmatched_faces == second.unmatched_faces


def test_the_last_hierarchy_decides_for_all() -> None:
    """The first one is sure of the anchors where there is no face; the faces' anchors are those of the last."""
    targets, output = random_faces([3], 64, seed=2), random_heads(2, 1, SIX_MAPS.count, seed=2)
    alone = HierarchicalLoss(assignment="simota")(NetworkOutput(output.hierarchies[1:], []), SIX_MAPS, targets)
    both = HierarchicalLoss(assignment="simota")(output, SIX_MAPS, targets)
    assert torch.equal(both.parts["h2/cls"], alone.parts["h1/cls"])
    assert torch.equal(both.parts["h2/box"], alone.parts["h1/box"])
    first = HierarchicalLoss(assignment="simota")(NetworkOutput(output.hierarchies[:1], []), SIX_MAPS, targets)
    assert both.parts["h1/box"] != first.parts["h1/box"]


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("classification", CLASSIFICATIONS)
@pytest.mark.parametrize("box", BOXES)
def test_a_batch_without_faces_is_finite_and_reaches_every_head(assignment: str, classification: str, box: str) -> None:
    output = random_heads(2, 2, GRID.count)
    criterion = HierarchicalLoss(assignment=assignment, classification=classification, box=box)
    found = criterion(output, GRID, faces_in([], []))
    found.total.backward()
    assert found.total.isfinite() and found.positives.item() == 0
    for heads in output.hierarchies:
        assert heads.logits.grad is not None and heads.logits.grad.count_nonzero() > 0
        assert heads.offsets.grad is not None and heads.offsets.grad.count_nonzero() == 0
    if classification == "focal":  # every anchor of every image, over N = 1
        margins = torch.cat([h.logits[..., 1] - h.logits[..., 0] for h in output.hierarchies]).flatten().tolist()
        assert found.total.item() == pytest.approx(3 * slow_focal(margins, [False] * len(margins), 0.25, 2), rel=1e-4)


@pytest.mark.parametrize("options", [{"assignment": "simota", "box": "ciou"}, {"classification": "quality_focal"}])
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


def test_a_thousand_faces() -> None:
    grid = AnchorGrid(tuple((-(-640 // stride), -(-640 // stride)) for stride in (4, 8, 16, 32, 64, 128)))
    output, targets = random_heads(1, 1, grid.count), random_faces([1000], 640, seed=3)
    for assignment in ("atss", "simota"):
        found = HierarchicalLoss(assignment=assignment, classification="quality_focal", box="ciou")(
            output, grid, targets
        )
        assert found.total.isfinite() and found.positives.item() > 500


# Mistakes.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"assignment": "max_iou"}, r"loss\.assignment=max_iou.*simota"),
        ({"classification": "bce"}, r"loss\.classification=bce.*quality_focal"),
        ({"box": "iou"}, r"loss\.box=iou.*ciou"),
        ({"assignment": "atss", "second_stage": True}, r"loss\.second_stage=true.*loss\.assignment=atss"),
        ({"assignment": "simota", "second_stage": True}, r"loss\.second_stage=true"),
        ({"classification": "focal", "normalise_by": "positives_and_negatives"}, r"loss\.normalise_by="),
        ({"focal_alpha": 1.5}, r"loss\.focal_alpha=1.5"),
        ({"focal_gamma": -1}, r"loss\.focal_gamma=-1"),
        ({"focal_gamma": 0.5, "classification": "quality_focal"}, r"loss\.focal_gamma=0.5"),
        ({"box_weight": float("inf")}, r"loss\.box_weight=inf"),
        ({"box_beta": -0.1}, r"loss\.box_beta=-0.1"),
        ({"box_weight": "two"}, r"loss\.box_weight=two"),
        ({"threshold": "low"}, r"loss\.threshold=low"),
        ({"focal_alpha": None}, r"loss\.focal_alpha=None"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        HierarchicalLoss(**options)  # type: ignore[arg-type]


def test_the_loss_says_what_it_is() -> None:
    text = repr(HierarchicalLoss(assignment="atss", box="diou", box_weight=2))
    assert "assignment=atss" in text and "box=diou, box_weight=2" in text


# Two ranks.


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


# Through the command line.

TINY = [
    "model.width=0.0625", "level=2", "input_size=64", "batch_size=4", "epochs=8", "workers=0", "data.train_images=12",
    "data.val_images=2", "augment=none", "trainer.accelerator=cpu", "validate_every=8", "trainer.log_every_n_steps=1",
    "optim.lr=0.01", "optim.warmup_steps=4", "evaluate_at_end=false", "logger=csv",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs share the drawn pictures."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        (["loss=atss"], {"assignment": "atss", "lambda_cls": 3.0}),
        (["loss=simota", "loss.box=diou"], {"assignment": "simota", "box": "diou"}),
        (["loss=focal_giou"], {"classification": "focal", "box": "giou", "box_weight": 2.0, "lambda_cls": 1.0}),
        (
            ["loss=focal_giou", "loss.classification=quality_focal", "loss.box=ciou"],
            {"classification": "quality_focal"},
        ),
        (["loss.box_beta=0.11"], {"box_beta": 0.11, "assignment": "iou"}),
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
    assert len(losses) == 24  # 8 epochs of 3 steps, each over the same 12 pictures
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    hyper_parameters = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert hyper_parameters["loss"].items() >= stored.items()
    assert hyper_parameters["network"]["face_prior"] == (0.01 if "loss=focal_giou" in words else None)
