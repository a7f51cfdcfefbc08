"""Lightning callbacks: averaged weights, epoch summary, run record, atomic checkpoints, few images."""

import math
import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder, ModelCheckpoint, RichProgressBar, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from fanet_lightning.cli.errors import InputError, counted, first_line, is_whole
from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import CHECKPOINT_KEY, RunRecord, TrainingImages, images_of, merged, to_plain
from fanet_lightning.data.datamodule import TrainDataset
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.sources import FaceSource
from fanet_lightning.data.wider_face import all_usable_faces
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.train.loggers import spread


def ema_callback(decay: float | None) -> WeightAveraging | None:
    """Exponential moving average of weights and buffers, validated and saved in place of the raw ones; None: none.

    The decay rises as (1 + t) / (10 + t) up to ``decay``, so that short runs are not held back by their first weights.
    """
    if decay is None:
        return None
    return WeightAveraging(use_buffers=True, multi_avg_fn=_moved(lambda t: 1 - min(decay, (1 + t) / (10 + t))))


def _moved(share: Callable[[int], float]) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        weight = share(int(num_averaged))
        for old, new in zip(averaged, current, strict=True):
            if old.dtype.is_floating_point:
                old.lerp_(new.to(old.dtype), weight)
            else:
                old.copy_(new)  # batch norm's counter of batches

    return average


class StochasticAverage(WeightAveraging):
    """The mean of weights and buffers over the last steps (SWA), validated and saved in place of the raw ones.

    Lightning's own ``StochasticWeightAveraging`` keeps the mean out of validation and checkpoints until the run ends.
    ``start``: share of the run's steps after which the mean begins, 0 … 1; before, the weights are as they are.
    """

    def __init__(self, start: float) -> None:
        if not 0 <= start < 1:
            raise InputError(f"callbacks.swa.start={start}: give a share of the run, from 0 to below 1")
        self._start, self._first = start, 0
        self._average = _moved(lambda t: 1 / max(1, t - self._first + 1))
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._first = round(self._start * trainer.estimated_stepping_batches)


class RateFinder(LearningRateFinder):
    """Lightning's learning-rate range test before the first step; its rate is the peak of the run's schedule."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, attr_name="learning_rate")

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.ckpt_path is not None:  # a run that resumes has found its rate
            return
        before, rates = module.learning_rate, [group["lr"] for group in trainer.optimizers[0].param_groups]
        super().on_fit_start(trainer, module)
        for group, rate in zip(trainer.optimizers[0].param_groups, rates, strict=True):
            group["lr"] = rate * module.learning_rate / before  # Lightning's is the peak, for all groups
        if trainer.is_global_zero and module.learning_rate == before:
            print("warning: no learning rate was found, optim.lr stays: the test needs a dozen steps or more")


class TopCheckpoints(ModelCheckpoint):
    """Lightning's own under another name, because two that watch the same metric cannot be saved side by side."""


class EpochReport(Callback):
    """Prints one line per epoch, logs the training speed in images per second, and keeps the run's record.

    Once an epoch ``train/wait_share``: which part of the epoch's training the loop waited for its loader, of several
    ranks the one that waited longest (the others wait for it); and ``train/clipped_share``: the share of the steps
    whose gradient was clipped. Images that could not be read, on any rank, are counted and named at the end.

    Args:
        stop_after: end the run after so many epochs of its schedule, to be resumed later; None: run to the end.
        record: of the run in ``folder``, changed in place and written after every epoch; None: on the other ranks.
    """

    def __init__(self, stop_after: int | None = None, record: RunRecord | None = None, folder: Path = Path()) -> None:
        self._stop_after, self._record, self._folder = stop_after, record, folder
        self._run_start = self._start = self._seconds = self._waited = 0.0
        self._before = 0.0 if record is None else float(record.train.get("seconds", 0.0))
        self._images = 0
        self._validated = self._flush = False
        self.unreadable_images: list[str] = []

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._run_start = time.perf_counter()
        if self._record is not None:
            self._record.data = trainer.datamodule.digest()  # type: ignore[attr-defined]
            self._record.write(self._folder)
        # A run that resumes inside an epoch does not start it.
        self.on_train_epoch_start(trainer, module)

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

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images, self._validated = time.perf_counter(), 0, False
        self._waited = _waited_seconds(trainer)
        if trainer.current_epoch + 1 == trainer.max_epochs:  # whatever the interval: it may be the best
            trainer.check_val_every_n_epoch = 1

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
            words.append(f"last loss {float(metrics['train/loss']):.3f}")
        # Lightning remembers the metrics of an earlier epoch's validation, too.
        aps = {name.removeprefix("val/ap_"): float(v) for name, v in metrics.items() if name.startswith("val/ap_")}
        if aps and self._validated:
            words.append("AP " + " ".join(f"{setting} {ap:.3f}" for setting, ap in aps.items()))
        if self._images:  # none where a run resumes at the very end of an epoch
            words += [f"{self._images / self._seconds:.1f} images/s", f"waiting {wait_share:.1%}"]
        words += [f"{skipped} steps skipped"] if skipped else []
        words += [f"{clipped:.0%} of steps clipped"] if clipped > 0.5 else []
        words += [f"{counted(len(self.unreadable_images), 'image')} unreadable"] if self.unreadable_images else []
        print("  ".join(words), flush=True)
        if trainer.should_stop and epoch < last:
            reason = f"by stop_after={self._stop_after}; resume=auto continues" if stops else "early by a callback"
            print(f"stopped {reason}", flush=True)
        if self._record is not None:
            # Also what an earlier start of the run has found; a file that was fixed since stays named.
            unreadable = {*self._record.train.get("unreadable_images", ()), *self.unreadable_images}
            self._record.scores = {}  # those of an earlier end are about other weights
            self._record.train |= {
                "epoch": epoch,
                "steps": trainer.global_step,
                # Over all starts, with what was trained and lost to a kill.
                "seconds": round(self._before + time.perf_counter() - self._run_start, 1),
                "images_per_second": round(self._images / self._seconds, 2) if self._images else None,
                "skipped_steps": skipped,
                "wait_share": round(wait_share, 4) if self._images else None,
                "unreadable_images": sorted(unreadable),
            }
            self._record.write(self._folder)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        names = self.unreadable_images
        if trainer.is_global_zero and names:  # run.json names all
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            print(f"{counted(len(names), 'training image')} could not be read: {listed}", flush=True)


def _waited_seconds(trainer: Trainer) -> float:
    """Of the training loader so far, on this rank; 0 where the loader does not tell."""
    return float(getattr(trainer.train_dataloader, "waited_seconds", 0.0))


def _largest(trainer: Trainer, value: Tensor) -> Tensor:
    """The elementwise maximum over all ranks."""
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="max").cpu()


LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target, flushes to the disk, renames.

    Lightning's own transaction writes to the system's temporary folder and copies from there, which a kill or a full
    disk cuts short. ``last.ckpt`` keeps its predecessor as ``previous.ckpt``: should the disk damage the newest, the
    one before is there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """InputError: the file cannot be written; the checkpoints before it are left as they were."""
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
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:  # a zip archive, whose members have checksums
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is None:
                return path, damaged
            fault = f"checksum of {broken} does not fit"
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
            fault = first_line(error)
        damaged.append(f"{path} is damaged ({fault}) and is passed over")
    if damaged:
        raise InputError(f"no valid checkpoint in {folder}: {'; '.join(damaged)}; give resume=PATH or take another out")
    return None, damaged


def checkpoint_within_epoch(dirpath: Path | str, every_steps: int | None) -> ModelCheckpoint | None:
    """Writes ``last.ckpt`` inside epochs too, every so many optimizer steps; None: no such callback."""
    if every_steps is None:
        return None
    return ModelCheckpoint(
        dirpath=dirpath, filename="last", save_top_k=1, every_n_train_steps=every_steps, auto_insert_metric_name=False,
        enable_version_counter=False,
    )  # fmt: skip


def progress_bar() -> RichProgressBar | None:
    """A progress bar on a terminal, else None."""
    return RichProgressBar() if sys.stdout.isatty() else None


class StartingModel(Callback):
    """The trained model that a run starts from stands as ``best.ckpt`` until an epoch beats it.

    A run from the beginning has to validate it first, as Lightning's sanity check; ``best`` writes ``best.ckpt``.
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
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"torch": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class Origin(Callback):
    """Every checkpoint carries its run's ``settings`` and, as ``training_images``, what its weights were trained on.

    ``earlier``: what the weights were trained on that the run starts from.
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
    """Trains and validates on a part of the images, spread evenly: ``take`` of each set, or a share below 1."""

    def __init__(self, take: float) -> None:
        if not (0 < take < 1 or is_whole(take, 1)):
            raise InputError(f"callbacks.few_images.take={take}: give a number of images, or a share below 1")
        self._take = take

    def part_of(self, source: FaceSource) -> FaceSource:
        """The source that has only these images."""

        @cache
        def train() -> list[ImageRecord]:
            return self._few(source.train())

        @cache
        def val() -> list[ImageRecord]:
            return self._few(source.val())

        def ground_truth() -> GroundTruth:
            whole: GroundTruth = source.ground_truth()
            return whole.select(sorted(record.image_id for record in val()))

        return _Part(source, train, val, ground_truth)

    def _few(self, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        count = math.ceil(self._take * len(records)) if self._take < 1 else int(self._take)
        return [records[index] for index in spread(len(records), count)]


@dataclass
class _Part:
    """A source of some of another's images."""

    source: FaceSource
    train: Callable[[], list[ImageRecord]]
    val: Callable[[], list[ImageRecord]]
    ground_truth: Callable[[], GroundTruth]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


class ByHeart(FewImages):
    """Validates on the few images that are trained on, and ends with loss and AP; InputError: less than ``ap``."""

    def __init__(self, take: float, ap: float = 0.8) -> None:
        super().__init__(take)
        self._ap = ap
        self._first_loss: float | None = None

    def part_of(self, source: FaceSource) -> FaceSource:
        @cache
        def records() -> list[ImageRecord]:
            with_faces = [record for record in source.train() if len(record.boxes_xyxy)]
            return sorted(self._few(with_faces), key=lambda record: record.image_id)

        return _Part(source, records, records, lambda: all_usable_faces(records()))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._first_loss is None:
            self._first_loss = float(outputs["loss"])

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        first, metrics = self._first_loss or math.nan, trainer.callback_metrics
        if "val/ap" not in metrics:
            print("overfit or not is not known: the run ended before its validation", flush=True)
            return
        loss, ap = float(metrics["train/loss"]), float(metrics["val/ap"])
        text = f"AP {ap:.3f} on the {len(trainer.datamodule.val_records)} images trained on"  # type: ignore[attr-defined]
        text += (
            f", loss {first:.3g} → {loss:.3g} in {trainer.global_step} steps, {module.skipped_steps} of them skipped"
        )
        if ap < self._ap:
            raise InputError(
                f"cannot overfit: {text}; look at optim.lr, the labels (fanet doctor), your network and loss"
            )
        print(f"overfit: {text}", flush=True)
