"""The training step around the network: skipped steps, learning rate, what travels in a checkpoint."""

import logging
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from fanet_lightning.cli.errors import InputError
from fanet_lightning.ops.structures import Batch, Targets
from fanet_lightning.train.callbacks import ema_callback
from fanet_lightning.train.module import FaceDetectionModule

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


def fit(module: FaceDetectionModule, count: int, tmp_path: Path, **options: object) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, gradient_clip_val=10.0, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches(count), batch_size=None))
    return trainer


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

    class Poison(torch.nn.Module):
        def forward(self, *arguments: object) -> None:
            poisoned.fill_(float("nan"))

    step = module.training_step

    def training_step(batch: Batch, batch_idx: int) -> torch.Tensor:
        if batch_idx == 1:
            Poison()()
        return step(batch, batch_idx)

    module.training_step = training_step  # type: ignore[method-assign]
    fit(module, 3, tmp_path)
    assert all(bool(torch.isfinite(b.float()).all()) for b in module.network.buffers())


def test_weight_decay_can_spare_biases_norms_and_scales() -> None:
    module = FaceDetectionModule(NETWORK)
    groups = module._parameter_groups(0.1, decay_all=False)
    decayed, spared = (sum(p.numel() for p in group["params"]) for group in groups)
    assert decayed + spared == sum(p.numel() for p in module.network.parameters())
    assert groups[1]["weight_decay"] == 0.0
    scales = [p for name, p in module.network.named_parameters() if name.endswith("norm.scale")]
    assert len(scales) == 3
    assert all(any(scale is p for p in groups[1]["params"]) for scale in scales)
    assert len(module._parameter_groups(0.1, decay_all=True)) == 1


def test_unknown_optimiser_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"optim\.name=adam.*adamw"):
        fit(FaceDetectionModule(NETWORK, optim={"name": "adam"}), 1, tmp_path)


def test_averaged_weights_follow_their_rule(tmp_path: Path) -> None:
    """Decay min(0.5, (1 + t) / (10 + t)) at the t-th average, by hand on one weight."""
    torch.manual_seed(0)
    module = Recorded(network=NETWORK, optim=OPTIM, batch_size=2)
    callback = ema_callback(0.5)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches(4), batch_size=None))
    seen = [weights[0].item() for weights in module.weights]
    averaged = seen[0]
    for t, value in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + t) / (10 + t))
        averaged = decay * averaged + (1 - decay) * value
    assert next(module.network.parameters()).flatten()[0].item() == pytest.approx(averaged, rel=1e-4)
