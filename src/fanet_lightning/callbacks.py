"""What happens beside the steps of a training run: averaged weights, one line per epoch, the run's record."""

import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from fanet_lightning.data.dataset import TrainDataset
from fanet_lightning.run_record import RunRecord

# How many unreadable images the line at the end names; ``run.json`` names all.
NAMED = 5


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

    Beside it ``train/wait_share``, once an epoch: which part of the epoch's training the loop waited for its loader,
    of several ranks the one that waited longest (the others wait for it). Images that could not be read, on any rank,
    are counted in the line and named at the end. ``train/clipped_share``: of the epoch's steps the share whose
    gradient was clipped; where that is most of them, the line has it.

    Args:
        stop_after: end the run after so many epochs of its schedule, to be resumed later; None: run to the end.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self._stop_after = stop_after
        self._start = 0.0
        self._seconds = 0.0
        self._images = 0
        self._validated = False
        self._waited = 0.0
        self._told_of_clipping = False
        self.unreadable_images: list[str] = []

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # A run that goes on inside an epoch does not start it.
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images, self._validated = time.perf_counter(), 0, False
        self._waited = _waited_seconds(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._images += len(batch.image_ids) * trainer.world_size
        self._seconds = time.perf_counter() - self._start
        module.log("train/images_per_second", self._images / max(self._seconds, 1e-9), batch_size=1)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._stop_after is not None and trainer.current_epoch + 1 >= self._stop_after:
            trainer.should_stop = True
        # Every rank takes part in what follows.
        self._gather_unreadable(trainer)
        wait_share = 0.0
        if self._images:
            wait_share = (_waited_seconds(trainer) - self._waited) / max(self._seconds, 1e-9)
            wait_share = float(_largest(trainer, torch.tensor(wait_share)))
            module.log("train/wait_share", wait_share, batch_size=1)
        clipped = float(getattr(module, "clipped_share", 0.0))
        if trainer.gradient_clip_val:
            module.log("train/clipped_share", clipped, batch_size=1)
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
            words.append(f"waiting {wait_share:.1%}")
        skipped = int(getattr(module, "skipped_steps", 0))
        if skipped:
            words.append(f"{skipped} steps skipped")
        if clipped > 0.5:
            words.append(f"{clipped:.0%} of steps clipped")
        if self.unreadable_images:
            words.append(f"{len(self.unreadable_images)} images unreadable")
        print("  ".join(words), flush=True)
        if clipped > 0.5 and not self._told_of_clipping and isinstance(trainer.optimizers[0], torch.optim.SGD):
            self._told_of_clipping = True
            print(
                f"warning: the gradient of {clipped:.0%} of this epoch's steps was scaled down to gradient_clip="
                f"{trainer.gradient_clip_val:g}, which under SGD divides their learning rate; raise gradient_clip, or "
                "lower optim.lr (train/grad_norm has the norms)",
                flush=True,
            )
        if trainer.should_stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            print(f"stopped by stop_after={self._stop_after}: resume=auto goes on with the rest", flush=True)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        names = self.unreadable_images
        if trainer.is_global_zero and names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            print(f"{len(names)} training images could not be read: {', '.join(names[:NAMED])}{more}", flush=True)

    def _gather_unreadable(self, trainer: Trainer) -> None:
        dataset = getattr(getattr(trainer, "datamodule", None), "train_dataset", None)
        if isinstance(dataset, TrainDataset):
            if trainer.world_size > 1:
                dataset.unreadable.copy_(_largest(trainer, dataset.unreadable))
            self.unreadable_images = dataset.unreadable_images


def _waited_seconds(trainer: Trainer) -> float:
    """Of the training loader so far, on this rank; 0 where the loader does not tell."""
    return float(getattr(trainer.train_dataloader, "waited_seconds", 0.0))


def _largest(trainer: Trainer, value: Tensor) -> Tensor:
    """The elementwise maximum over all ranks."""
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="max").cpu()


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
        waited = trainer.callback_metrics.get("train/wait_share")
        self._record.train |= {
            "epoch": trainer.current_epoch + 1,
            "steps": trainer.global_step,
            "seconds": round(self._before + time.monotonic() - self._start, 1),
            "images_per_second": None if speed is None else round(float(speed), 2),
            "skipped_steps": int(getattr(module, "skipped_steps", 0)),
            "wait_share": None if waited is None else round(float(waited), 4),
            "unreadable_images": self._unreadable(trainer),
        }
        self._record.write(self._folder)

    def _unreadable(self, trainer: Trainer) -> list[str]:
        """Also what an earlier start of the run has found; a file that was mended since stays named."""
        found = {str(name) for name in self._record.train.get("unreadable_images", [])}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EpochReport):
                found.update(callback.unreadable_images)
        return sorted(found)
