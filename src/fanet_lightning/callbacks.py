"""What happens beside the steps of a training run: averaged weights, one line per epoch, the run's record."""

import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from fanet_lightning.run_record import RunRecord


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
        self._validated = False

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images, self._validated = time.perf_counter(), 0, False

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
        # Lightning remembers the metrics of an earlier epoch's validation, too.
        aps = {name.removeprefix("val/ap_"): float(v) for name, v in metrics.items() if name.startswith("val/ap_")}
        if aps and self._validated:
            words.append("AP " + " ".join(f"{setting} {ap:.3f}" for setting, ap in aps.items()))
        if self._images:  # none where a run goes on at the very end of an epoch
            words.append(f"{self._images / max(self._seconds, 1e-9):.1f} images/s")
        skipped = int(getattr(module, "skipped_steps", 0))
        if skipped:
            words.append(f"{skipped} steps skipped")
        print("  ".join(words), flush=True)
        if trainer.should_stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            print(f"stopped by stop_after={self._stop_after}: resume=auto goes on with the rest", flush=True)


class RecordProgress(Callback):
    """Writes how far the run has got into its record after every epoch.

    The seconds of training count over all starts; what was trained and lost to a kill is counted, too.

    Args:
        record: of this run; changed in place.
        folder: of the run.
    """

    def __init__(self, record: RunRecord, folder: Path) -> None:
        self._record, self._folder = record, folder
        self._flush = False
        self._before = float(record.train.get("seconds", 0.0))
        self._start = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # What a checkpoint has behind it must be in the logs: a run that is killed goes on after it.
        for logger in trainer.loggers:
            logger.save()
        self._flush = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._flush:
            # Lightning logs a step after the checkpoint that was written at its end.
            for logger in trainer.loggers:
                logger.save()
            self._flush = False

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        speed = trainer.callback_metrics.get("train/images_per_second")
        self._record.train |= {
            "epoch": trainer.current_epoch + 1,
            "steps": trainer.global_step,
            "seconds": round(self._before + time.monotonic() - self._start, 1),
            "images_per_second": None if speed is None else round(float(speed), 2),
            "skipped_steps": int(getattr(module, "skipped_steps", 0)),
        }
        self._record.write(self._folder)
