"""``profile=true``: which actions took how long, which operators, and a trace that opens."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from fanet_lightning.train.callbacks import WARM_UP_STEPS, WATCHED_STEPS, StepProfiler

PAUSE = 0.02


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        with self.trainer.profiler.profile("network"):  # type: ignore[attr-defined]
            out = self.layer(batch)
            time.sleep(PAUSE)
        return out.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, steps: int, epochs: int = 1) -> StepProfiler:
    profiler = StepProfiler(folder / "profile")
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_progress_bar=False, profiler=profiler,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(torch.zeros(steps, 3)))
    return profiler


def test_actions_operators_and_trace(tmp_path: Path) -> None:
    profiler = fit(tmp_path, WARM_UP_STEPS + WATCHED_STEPS + 2)
    seconds = profiler.recorded_durations["network"]
    assert len(seconds) == WARM_UP_STEPS + WATCHED_STEPS + 2 and min(seconds) >= PAUSE
    table = (tmp_path / "profile/fit-steps.txt").read_text(encoding="utf-8")
    assert "network" in table and "optimizer_step" in table and "train_dataloader_next" in table
    assert "aten::addmm" in (tmp_path / "profile/operators.txt").read_text(encoding="utf-8")
    events = json.loads((tmp_path / "profile/trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert sum(event.get("ph") == "X" and event["name"] == "network" for event in events) == WATCHED_STEPS


def test_epochs_shorter_than_what_is_watched(tmp_path: Path) -> None:
    fit(tmp_path, WARM_UP_STEPS + 1)
    events = json.loads((tmp_path / "profile/trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert sum(event.get("ph") == "X" and event["name"] == "network" for event in events) == 1
    fit(tmp_path / "shorter", 2)
    assert [path.name for path in (tmp_path / "shorter/profile").iterdir()] == ["fit-steps.txt"]
