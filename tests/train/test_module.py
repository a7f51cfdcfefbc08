"""The training step around the network: skipped steps, learning rate, what travels in a checkpoint."""

import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import Backbone
from fanet_lightning.models.fanet import FANet
from fanet_lightning.ops.structures import Batch, Targets
from fanet_lightning.train.callbacks import ema_callback
from fanet_lightning.train.module import FaceDetectionModule, lr_factor

NETWORK = {"level": 2, "context": False, "hl": True, "width": 0.0625, "batch_norm": True}


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    targets = Targets(torch.tensor([[8.0, 8.0, 40.0, 44.0], [20.0, 30.0, 36.0, 46.0]]), torch.tensor([0, 1]))
    return [Batch(images[i], targets, [f"event/{2 * i}", f"event/{2 * i + 1}"]) for i in range(count)]


class Recorded(FaceDetectionModule):
    """Remembers its weights after each batch, and poisons the loss of chosen batches."""

    def __init__(self, poisoned: tuple[int, ...] = (), **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.poisoned = poisoned
        self.weights: list[torch.Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if batch_idx in self.poisoned else loss

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in self.network.parameters()]))


def fit(module: FaceDetectionModule, count: int, tmp_path: Path, **options: Any) -> None:
    options = {"max_epochs": 1, "gradient_clip_val": 10.0, **options}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches(count), batch_size=None))


OPTIM = {"name": "sgd", "lr": 0.012, "momentum": 0.9, "weight_decay": 0.1, "schedule": "constant"}


def test_a_non_finite_step_moves_no_weight_and_names_its_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    module = Recorded(poisoned=(1, 2), network=NETWORK, optim=OPTIM, batch_size=2)
    with caplog.at_level(logging.WARNING, logger="fanet_lightning.train.module"):
        fit(module, 4, tmp_path)
    assert module.skipped_steps == 2
    assert torch.equal(module.weights[1], module.weights[0])  # neither momentum nor weight decay
    assert torch.equal(module.weights[2], module.weights[0])
    assert not torch.equal(module.weights[3], module.weights[0])
    messages = [record.message for record in caplog.records if "skipped" in record.message]
    assert len(messages) == 2
    assert "event/2, event/3" in messages[0] and "event/4, event/5" in messages[1]
    assert torch.isfinite(module.weights[-1]).all()


def test_training_ends_with_advice_when_every_step_is_lost(tmp_path: Path) -> None:
    module = Recorded(poisoned=tuple(range(60)), network=NETWORK, optim=OPTIM, batch_size=2)
    with pytest.raises(InputError, match=r"50 steps.*optim\.lr"):
        fit(module, 60, tmp_path)


def test_running_statistics_poisoned_by_a_forward_pass_go_back_to_finite_ones(tmp_path: Path) -> None:
    module = Recorded(poisoned=(1,), network=NETWORK, optim=OPTIM, batch_size=2)
    poisoned = next(b for n, b in module.network.named_buffers() if n.endswith("running_mean"))

    step = module.training_step

    def training_step(batch: Batch, batch_idx: int) -> torch.Tensor:
        if batch_idx == 1:
            poisoned.fill_(float("nan"))
        return step(batch, batch_idx)

    module.training_step = training_step  # type: ignore[method-assign]
    fit(module, 3, tmp_path)
    assert all(bool(torch.isfinite(b.float()).all()) for b in module.network.buffers())


@pytest.mark.parametrize(
    ("decay_all", "factor", "groups"), [(True, 1, 1), (False, 1, 2), (True, 0.1, 2), (False, 0.1, 4)]
)
def test_groups_of_weights(decay_all: bool, factor: float, groups: int) -> None:
    """Biases, norms and scales can be spared the decay; the backbone's trained layers have a rate of their own."""
    options = {"weight_decay": 0.1, "decay_all": decay_all, "backbone_factor": factor}
    module = FaceDetectionModule(NETWORK, optim=options)
    found = module._parameter_groups(0.5)
    of = {id(p): group for group in found for p in group["params"]}
    assert len(found) == groups and len(of) == sum(len(group["params"]) for group in found)
    slow = re.compile(r"trunk\.conv([1-5]_|_fc)\d(\.|$)")
    for name, p in module.network.named_parameters():
        assert of[id(p)]["weight_decay"] == (0.1 if decay_all or p.ndim > 1 else 0.0)
        assert of[id(p)]["lr"] == pytest.approx(0.5 * (factor if slow.match(name) else 1)), name


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"freeze_until": "conv2_1"}, [("conv1_", "conv2_1."), ("conv1_", "conv2_1.")]),
        ({"freeze_epochs": 1}, [("conv1_", "conv2_", "conv3_3.", "conv_fc7."), ()]),
        ({"freeze_epochs": 1, "freeze_until": "conv1_2"}, [("conv1_",), ()]),
    ],
)
def test_frozen_layers(options: dict[str, Any], frozen: list[tuple[str, ...]], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = FaceDetectionModule(NETWORK, optim=OPTIM, batch_size=2, **options)
    states = [{name: x.clone() for name, x in module.network.trunk.state_dict().items()}]

    class Keep(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            states.append({name: x.clone() for name, x in pl_module.network.trunk.state_dict().items()})

    fit(module, 2, tmp_path, max_epochs=2, callbacks=[Keep()])
    for (before, after), names in zip(pairwise(states), frozen, strict=True):
        for name in before:
            if name.startswith(names):
                assert torch.equal(before[name], after[name]), name
        assert not torch.equal(before["conv6_2.weight"], after["conv6_2.weight"])
        if "conv3_" not in str(names):
            assert not torch.equal(before["conv3_1.weight"], after["conv3_1.weight"])
            assert not torch.equal(before["conv3_1.bn.running_mean"], after["conv3_1.bn.running_mean"])


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("freeze_until", {"freeze_until": "conv1_1"}),
        ("freeze_epochs", {"freeze_epochs": 1}),
        (r"optim\.backbone_factor", {"optim": {"backbone_factor": 0.1}}),
    ],
)
def test_a_network_that_does_not_name_its_layers(key: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"{key}: .*trained_layers"):
        FaceDetectionModule({"_target_": f"{__name__}.OwnBackbone"}, **options)


class OwnBackbone(FANet):
    def __init__(self) -> None:
        super().__init__(width=0.01)
        self.trunk = type("Nameless", (torch.nn.Sequential, Backbone), {})(self.trunk)


def test_averaged_weights_follow_their_rule(tmp_path: Path) -> None:
    """Decay min(0.5, (1 + t) / (10 + t)) at the t-th average, by hand on one weight."""
    torch.manual_seed(0)
    module = Recorded(network=NETWORK, optim=OPTIM, batch_size=2)
    fit(module, 4, tmp_path, gradient_clip_val=None, callbacks=[ema_callback(0.5)])
    seen = [weights[0].item() for weights in module.weights]
    averaged = seen[0]
    for t, value in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + t) / (10 + t))
        averaged = decay * averaged + (1 - decay) * value
    assert next(module.network.parameters()).flatten()[0].item() == pytest.approx(averaged, rel=1e-4)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 4e-3), (79, 4e-3), (80, 4e-4), (99, 4e-4), (100, 4e-5), (119, 4e-5)]
)
def test_paper_schedule_falls_after_80_and_100_of_120_epochs(epoch: int, expected: float) -> None:
    steps_per_epoch = 1073  # 12,880 images in batches of 12
    assert 4e-3 * lr_factor(epoch * steps_per_epoch, 120 * steps_per_epoch) == pytest.approx(expected)


def test_warmup_rises_linearly_to_one_and_cosine_then_falls_to_final() -> None:
    factors = [lr_factor(step, 1000, kind="constant", warmup_steps=4) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    factors = [lr_factor(step, 110, kind="cosine", warmup_steps=10, final=0.1) for step in (9, 10, 60, 110, 500)]
    assert factors == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])
