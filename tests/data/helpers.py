"""Data modules and a model whose outcome shows which samples they were given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from fanet_lightning.data.datamodule import FaceDataModule, TrainLoader
from fanet_lightning.data.sources import WiderFaceSource

SIZE = 32


class Shift:
    """Its outcome shows its seed: a crop at a drawn place, and the seed itself in the first pixels."""

    size = SIZE

    def __call__(self, image: np.ndarray, boxes_xyxy: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.random.default_rng(seed).integers(0, (image.shape[1] - SIZE, image.shape[0] - SIZE))
        crop = image[y : y + SIZE, x : x + SIZE].copy()
        crop[0, :3].flat[:8] = np.frombuffer(np.uint64(seed).tobytes(), np.uint8)
        return crop, boxes_xyxy - np.float32([x, y, x, y])


def module_of(root: Path, **options: Any) -> FaceDataModule:
    defaults: dict[str, Any] = {"batch_size": 4, "input_size": SIZE, "workers": 0, "seed": 5, "augment": Shift()}
    return FaceDataModule(WiderFaceSource(root), **{**defaults, **options})


def signature(batch: Any) -> tuple[Any, ...]:
    boxes, image_index = batch.targets
    return (
        tuple(batch.image_ids),
        batch.images.numpy().tobytes(),
        boxes.numpy().tobytes(),
        tuple(image_index.tolist()),
    )


def epoch_of(loader: TrainLoader, epoch: int) -> list[tuple[Any, ...]]:
    loader.sampler.set_epoch(epoch)
    return [signature(batch) for batch in loader]


class FakeClock:
    """Seconds that pass where a test says so, for a module that calls ``time``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.now = 0.0
        monkeypatch.setattr(module, "time", self)

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def takes(self, seconds: float, work: Any) -> Any:
        def slowed(*arguments: Any) -> Any:
            self.now += seconds
            return work(*arguments)

        return slowed


class Recorder(LightningModule):
    """Writes down what it is trained on; stops with an error at ``stop_at`` steps."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_at = stop_at
        self.seen: list[tuple[Any, ...]] = []
        self.validated: list[str] = []

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        if self.stop_at is not None and self.global_step >= self.stop_at:
            raise RuntimeError("cut off")
        self.seen.append((self.current_epoch, batch_index, *signature(batch)))
        return self.weight * batch.images.float().mean()

    def on_validation_epoch_start(self) -> None:
        self.validated = []

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.validated += batch.image_ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "use_distributed_sampler": False, "num_sanity_val_steps": 0,
        "default_root_dir": folder, "enable_checkpointing": "callbacks" in options,
    }  # fmt: skip
    return Trainer(**{**defaults, **options})
