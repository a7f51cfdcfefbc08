"""What happens beside the steps of a training run: averaged weights, checkpoints, one line per epoch."""

import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor


def ema_callback(decay: float) -> WeightAveraging:
    """Exponential moving average of weights and buffers, validated and saved in place of the raw ones.

    The decay rises as (1 + t) / (10 + t) up to ``decay``, so that short runs are not held back by their first weights.
    """

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        t = float(num_averaged)
        weight = 1 - min(decay, (1 + t) / (10 + t))
        for old, new in zip(averaged, current, strict=True):
            if old.dtype.is_floating_point:
                old.lerp_(new.to(old.dtype), weight)
            else:
                old.copy_(new)  # batch norm's counter of batches

    return WeightAveraging(use_buffers=True, multi_avg_fn=average)


def checkpoint_callbacks(folder: Path) -> list[ModelCheckpoint]:
    """``best.ckpt`` by AP of the last setting (WIDER: hard), and ``last.ckpt`` after every epoch."""
    common: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "enable_version_counter": False}
    return [
        ModelCheckpoint(filename="best", monitor="val/ap", mode="max", save_top_k=1, **common),
        ModelCheckpoint(filename="last", save_top_k=1, every_n_epochs=1, save_on_train_epoch_end=True, **common),
    ]


class EpochReport(Callback):
    """Prints one line per epoch, which reads well in a log file too, and logs the training speed in images per second.

    Args:
        stop_after: end the run after so many epochs of its schedule, to be resumed later; None: run to the end.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self._stop_after = stop_after
        self._start = 0.0
        self._seconds = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._images += len(batch.image_ids) * trainer.world_size
        self._seconds = time.perf_counter() - self._start
        module.log("train/images_per_second", self._images / max(self._seconds, 1e-9), batch_size=1)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._stop_after is not None and trainer.current_epoch + 1 >= self._stop_after:
            trainer.should_stop = True
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        words = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", f"step {trainer.global_step}"]
        if "train/loss" in metrics:
            words.append(f"loss {float(metrics['train/loss']):.3f}")
        aps = {name.removeprefix("val/ap_"): float(v) for name, v in metrics.items() if name.startswith("val/ap_")}
        if aps:
            words.append("AP " + " ".join(f"{setting} {ap:.3f}" for setting, ap in aps.items()))
        words.append(f"{self._images / max(self._seconds, 1e-9):.1f} images/s")
        skipped = int(getattr(module, "skipped_steps", 0))
        if skipped:
            words.append(f"{skipped} steps skipped")
        print("  ".join(words), flush=True)
