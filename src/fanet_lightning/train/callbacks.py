"""Lightning callbacks: EMA, epoch summary, run record, atomic checkpoints."""

import math
import os
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder, ModelCheckpoint, RichProgressBar, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from fanet_lightning.cli.errors import InputError, first_line, is_whole
from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import CHECKPOINT_KEY, RunRecord, TrainingImages, images_of, merged, to_plain
from fanet_lightning.data.datamodule import TrainDataset
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.sources import FaceSource
from fanet_lightning.data.wider_face import all_usable_faces
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.train.loggers import spread

# How many unreadable images the line at the end names; ``run.json`` names all.
NAMED = 5


def ema_callback(decay: float | None) -> WeightAveraging | None:
    """Exponential moving average of weights and buffers, validated and saved in place of the raw ones; None: none.

    The decay rises as (1 + t) / (10 + t) up to ``decay``, so that short runs are not held back by their first weights.
    """
    if decay is None:
        return None

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        t = float(num_averaged)
        _move(averaged, current, 1 - min(decay, (1 + t) / (10 + t)))

    return WeightAveraging(use_buffers=True, multi_avg_fn=average)


def _move(averaged: list[Tensor], current: list[Tensor], weight: float) -> None:
    for old, new in zip(averaged, current, strict=True):
        if old.dtype.is_floating_point:
            old.lerp_(new.to(old.dtype), weight)
        else:
            old.copy_(new)  # batch norm's counter of batches


class StochasticAverage(WeightAveraging):
    """The mean of weights and buffers over the last steps (SWA), validated and saved in place of the raw ones.

    Lightning's own ``StochasticWeightAveraging`` keeps the mean out of validation and checkpoints until the run ends.

    Args:
        start: share of the run's steps after which the mean begins, 0 … 1; before, the weights are as they are.
    """

    def __init__(self, start: float) -> None:
        if not 0 <= start < 1:
            raise InputError(f"callbacks.swa.start={start}: give a share of the run, from 0 to below 1")
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self._start, self._first = start, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._first = round(self._start * trainer.estimated_stepping_batches)

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        _move(averaged, current, 1 / max(1, int(num_averaged) - self._first + 1))


class RateFinder(LearningRateFinder):
    """Lightning's learning-rate range test before the first step; its rate is the peak of the run's schedule."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, attr_name="learning_rate")

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.ckpt_path is not None:  # a run that resumes has found its rate
            return
        before = module.learning_rate
        super().on_fit_start(trainer, module)
        if trainer.is_global_zero and module.learning_rate == before:
            print("warning: no learning rate was found, optim.lr stays: the test needs a dozen steps or more")


class TopCheckpoints(ModelCheckpoint):
    """Lightning's own under another name, because two that watch the same metric cannot be saved side by side."""


class EpochReport(Callback):
    """Prints one line per epoch, and logs the training speed in images per second.

    Once an epoch ``train/wait_share``: which part of the epoch's training the loop waited for its loader, of several
    ranks the one that waited longest (the others wait for it); and ``train/clipped_share``: the share of the steps
    whose gradient was clipped. Images that could not be read, on any rank, are counted and named at the end.

    Args:
        stop_after: end the run after so many epochs of its schedule, to be resumed later; None: run to the end.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self._stop_after = stop_after
        self._start = self._seconds = self._waited = 0.0
        self._images = 0
        self._validated = False
        self.unreadable_images: list[str] = []

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # A run that resumes inside an epoch does not start it.
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images, self._validated = time.perf_counter(), 0, False
        self._waited = _waited_seconds(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._images += len(batch.image_ids) * trainer.world_size
        self._seconds = max(time.perf_counter() - self._start, 1e-9)
        module.log("train/images_per_second", self._images / self._seconds, batch_size=1)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or 0
        stops = self._stop_after is not None and epoch >= self._stop_after
        trainer.should_stop |= stops
        # Every rank takes part in what follows.
        dataset = getattr(getattr(trainer, "datamodule", None), "train_dataset", None)
        if isinstance(dataset, TrainDataset):
            dataset.unreadable.copy_(_largest(trainer, dataset.unreadable))
            self.unreadable_images = dataset.unreadable_images
        wait_share = 0.0
        if self._images:
            waited = (_waited_seconds(trainer) - self._waited) / self._seconds
            wait_share = float(_largest(trainer, torch.tensor(waited)))
            module.log("train/wait_share", wait_share, batch_size=1)
        clipped, skipped = float(getattr(module, "clipped_share", 0.0)), int(getattr(module, "skipped_steps", 0))
        if trainer.gradient_clip_val:
            module.log("train/clipped_share", clipped, batch_size=1)
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        words = [f"epoch {epoch}/{last}", f"step {trainer.global_step}"]
        if "train/loss" in metrics:
            words.append(f"loss {float(metrics['train/loss']):.3f}")
        # Lightning remembers the metrics of an earlier epoch's validation, too.
        aps = {name.removeprefix("val/ap_"): float(v) for name, v in metrics.items() if name.startswith("val/ap_")}
        if aps and self._validated:
            words.append("AP " + " ".join(f"{setting} {ap:.3f}" for setting, ap in aps.items()))
        if self._images:  # none where a run resumes at the very end of an epoch
            words += [f"{self._images / self._seconds:.1f} images/s", f"waiting {wait_share:.1%}"]
        if skipped:
            words.append(f"{skipped} steps skipped")
        if clipped > 0.5:
            words.append(f"{clipped:.0%} of steps clipped")
        if self.unreadable_images:
            words.append(f"{len(self.unreadable_images)} images unreadable")
        print("  ".join(words), flush=True)
        if trainer.should_stop and epoch < last:
            reason = f"by stop_after={self._stop_after}; resume=auto continues" if stops else "early by a callback"
            print(f"stopped {reason}", flush=True)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        names = self.unreadable_images
        if trainer.is_global_zero and names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            print(f"{len(names)} training images could not be read: {', '.join(names[:NAMED])}{more}", flush=True)


def _waited_seconds(trainer: Trainer) -> float:
    """Of the training loader so far, on this rank; 0 where the loader does not tell."""
    return float(getattr(trainer.train_dataloader, "waited_seconds", 0.0))


def _largest(trainer: Trainer, value: Tensor) -> Tensor:
    """The elementwise maximum over all ranks."""
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="max").cpu()


class RecordProgress(Callback):
    """Writes how far the run in ``folder`` has got into ``record``, changed in place, after every epoch."""

    def __init__(self, record: RunRecord, folder: Path) -> None:
        self._record, self._folder = record, folder
        self._flush = False
        self._before = float(record.train.get("seconds", 0.0))
        self._start = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.monotonic()
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._record.data = datamodule.digest()
        self._record.write(self._folder)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # What a checkpoint has behind it must be in the logs: a run that is killed resumes after it.
        for logger in trainer.loggers:
            logger.save()
        self._flush = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Lightning logs a step after the checkpoint that was written at its end.
        for logger in trainer.loggers if self._flush else []:
            logger.save()
        self._flush = False

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        speed = trainer.callback_metrics.get("train/images_per_second")
        waited = trainer.callback_metrics.get("train/wait_share")
        # Also what an earlier start of the run has found; a file that was fixed since stays named.
        unreadable = {str(name) for name in self._record.train.get("unreadable_images", [])}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EpochReport):
                unreadable.update(callback.unreadable_images)
        self._record.train |= {
            "epoch": trainer.current_epoch + 1,
            "steps": trainer.global_step,
            # Over all starts, with what was trained and lost to a kill.
            "seconds": round(self._before + time.monotonic() - self._start, 1),
            "images_per_second": None if speed is None else round(float(speed), 2),
            "skipped_steps": int(getattr(module, "skipped_steps", 0)),
            "wait_share": None if waited is None else round(float(waited), 4),
            "unreadable_images": sorted(unreadable),
        }
        self._record.write(self._folder)


BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target, flushes to the disk, renames.

    Lightning's own transaction writes to the system's temporary folder and copies from there, which a kill or a full
    disk cuts short. ``last.ckpt`` keeps its predecessor as ``previous.ckpt``: should the disk damage the newest, the
    one before is there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """
        Raises:
            InputError: the file cannot be written; the checkpoints before it are left as they were.
        """
        target = Path(path)
        try:
            with replaced(target) as temporary:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if target.name == LAST and target.exists():
                    target.replace(target.with_name(PREVIOUS))
        except (OSError, RuntimeError) as error:
            # A failing write inside torch.save comes out as a RuntimeError about its archive.
            while not isinstance(error, OSError) and (error.__cause__ or error.__context__) is not None:
                error = error.__cause__ or error.__context__  # type: ignore[assignment]
            raise InputError(
                f"{target} cannot be written ({getattr(error, 'strerror', None) or first_line(error)}); earlier "
                "checkpoints are kept: free the disk and start again with resume=auto"
            ) from error


def newest_valid_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """``last.ckpt`` of a run's ``checkpoints``, else ``previous.ckpt``, whichever is valid first; None without either.

    And one line for each damaged one that was passed over. InputError: there are checkpoints, and no valid one.
    """
    damaged: list[str] = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.is_file():
            continue
        fault = _fault(path)
        if fault is None:
            return path, damaged
        damaged.append(f"{path} is damaged ({fault}) and is passed over")
    if damaged:
        raise InputError(f"no valid checkpoint in {folder}: {'; '.join(damaged)}; give resume=PATH or take another out")
    return None, damaged


def _fault(path: Path) -> str | None:
    """What is wrong with a file of ``torch.save``: it is a zip archive, and every member has a checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        return str(error) or type(error).__name__
    return None if broken is None else f"checksum of {broken} does not fit"


def checkpoint_within_epoch(dirpath: Path | str, every_steps: int | None) -> ModelCheckpoint | None:
    """Writes ``last.ckpt`` inside epochs too, every so many optimizer steps; None: no such callback."""
    if every_steps is None:
        return None
    return ModelCheckpoint(
        dirpath=dirpath,
        filename="last",
        save_top_k=1,
        every_n_train_steps=every_steps,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


def progress_bar() -> RichProgressBar | None:
    """A progress bar on a terminal, else None."""
    return RichProgressBar() if sys.stdout.isatty() else None


class StartingModel(Callback):
    """The trained model that a run starts from stands as ``best.ckpt`` until an epoch beats it.

    A run from the beginning has to validate it first, as all of Lightning's sanity check.

    Args:
        best: writes ``best.ckpt``.
    """

    def __init__(self, best: ModelCheckpoint) -> None:
        self._best = best
        self.ap: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"ap": self.ap}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ap = state["ap"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        curves: dict[str, Any] = module.curves  # type: ignore[assignment]
        if trainer.global_step or not curves:
            return
        self.ap = {setting: float(curve.ap) for setting, curve in curves.items()}
        if trainer.is_global_zero:
            words = " ".join(f"{setting} {ap:.3f}" for setting, ap in self.ap.items())
            print(f"starting model  AP {words}", flush=True)
        none_yet, score = torch.tensor(0), torch.tensor(list(self.ap.values())[-1])
        self._best._save_topk_checkpoint(trainer, {"val/ap": score, "epoch": none_yet, "step": none_yet})

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        end = trainer.callback_metrics.get("val/ap")
        if not (trainer.is_global_zero and self.ap and end is not None):
            return
        *_, (setting, start) = self.ap.items()
        if float(end) < start:
            print(
                f"warning: the run ends at AP {setting} {float(end):.3f}, below the {start:.3f} of the model that it "
                "started from; best.ckpt is the better one. A lower optim.lr, or larger crops (input_size), keep more",
                flush=True,
            )


class RandomState(Callback):
    """The state of torch's generators travels in the checkpoint, for networks with dropout (that of the first rank)."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class Origin(Callback):
    """Every checkpoint carries its run's ``settings`` and, as ``training_images``, what its weights were trained on.

    Args:
        settings: of the run.
        earlier: what the weights were trained on that the run starts from.
    """

    def __init__(self, settings: Mapping[str, Any], earlier: Sequence[TrainingImages] = ()) -> None:
        self._settings, self._earlier = dict(settings), list(earlier)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._earlier = images_of(checkpoint) or []

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self._settings
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        parts, source = list(self._earlier), datamodule.source
        if trainer.global_step:
            ids = tuple(datamodule.train_dataset.records.image_ids.tolist())
            parts.append(TrainingImages(source.name, getattr(source, "train_split", None), ids))
        if parts:
            checkpoint[CHECKPOINT_KEY] = to_plain(merged(parts))


class FewImages(Callback):
    """Trains and validates on a part of the images, spread evenly over each set.

    Args:
        take: how many images, or which share of them if it is below 1.
    """

    def __init__(self, take: float) -> None:
        if not (0 < take < 1 or is_whole(take, 1)):
            raise InputError(f"callbacks.few_images.take={take}: give a number of images, or a share below 1")
        self._take = take

    def part_of(self, source: FaceSource) -> FaceSource:
        """The source that has only these images."""
        return _Part(source, self._few(source.train()), self._few(source.val()))

    def _few(self, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        count = math.ceil(self._take * len(records)) if self._take < 1 else int(self._take)
        return [records[index] for index in spread(len(records), count)]


class _Part:
    """A source of some of another's images; ``truth`` in place of the other's ground truth."""

    def __init__(
        self, source: FaceSource, train: list[ImageRecord], val: list[ImageRecord], truth: GroundTruth | None = None
    ) -> None:
        self._source, self._train, self._val, self._truth = source, train, val, truth

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def train(self) -> list[ImageRecord]:
        return self._train

    def val(self) -> list[ImageRecord]:
        return self._val

    def ground_truth(self) -> Any:
        return self._truth or self._source.ground_truth().select(sorted(record.image_id for record in self._val))


class ByHeart(FewImages):
    """Validates on the few images that are trained on, and ends with what loss and AP got to, or what is wrong.

    Args:
        take: as :class:`FewImages`.
        ap: to be reached at least.
    """

    def __init__(self, take: float, ap: float = 0.8) -> None:
        super().__init__(take)
        self._ap = ap
        self._first_loss: float | None = None

    def part_of(self, source: FaceSource) -> FaceSource:
        records = [record for record in source.train() if len(record.boxes_xyxy)]
        records = sorted(self._few(records), key=lambda record: record.image_id)
        return _Part(source, records, records, all_usable_faces(records))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._first_loss is None:
            self._first_loss = float(outputs["loss"])

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        first, metrics = self._first_loss or math.nan, trainer.callback_metrics
        loss, ap = float(metrics["train/loss"]), float(metrics["val/ap"])
        text = f"AP {ap:.3f} on the {len(trainer.datamodule.val_records)} images trained on"  # type: ignore[attr-defined]
        text += (
            f", loss {first:.3g} → {loss:.3g} in {trainer.global_step} steps, {module.skipped_steps} of them skipped"
        )
        if ap < self._ap:
            raise InputError(
                f"not by heart: {text}; look at optim.lr, the labels (fanet doctor), your network and loss"
            )
        print(f"by heart: {text}", flush=True)
