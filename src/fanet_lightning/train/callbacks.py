"""Lightning callbacks: EMA, epoch summary, run record, atomic checkpoints; the profiler."""

import math
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder, ModelCheckpoint, RichProgressBar, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.profilers import SimpleProfiler
from torch import Tensor
from torch.profiler import profile, record_function

from fanet_lightning.cli.errors import InputError, first_line, is_whole
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
    """Exponential moving average of weights and buffers, validated and saved in place of the raw ones.

    The decay rises as (1 + t) / (10 + t) up to ``decay``, so that short runs are not held back by their first weights.
    None: no such callback.
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
        start: share of the run's steps after which the mean begins; before, the weights are as they are.

    Raises:
        InputError: ``start`` is no share.
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
    """Lightning's learning-rate range test before the first step; its rate is the peak of the run's schedule.

    A run that resumes has found its rate.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, attr_name="learning_rate")

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return
        before = module.learning_rate
        super().on_fit_start(trainer, module)
        if trainer.is_global_zero and module.learning_rate == before:
            print(
                "warning: no learning rate was found, optim.lr stays: the test needs a dozen steps or more", flush=True
            )


class TopCheckpoints(ModelCheckpoint):
    """Lightning's own under another name, because two that watch the same metric cannot be saved side by side."""


class EpochReport(Callback):
    """Prints one line per epoch, which reads well in a log file too, and logs the training speed in images per second.

    With it ``train/wait_share``, once an epoch: which part of the epoch's training the loop waited for its loader,
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
        if self._images:  # none where a run resumes at the very end of an epoch
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
        if trainer.should_stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            if self._stop_after is not None and trainer.current_epoch + 1 >= self._stop_after:
                print(f"stopped by stop_after={self._stop_after}; resume=auto continues", flush=True)
            else:
                print("stopped early by a callback", flush=True)

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
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._record.data = datamodule.digest()
        self._record.write(self._folder)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # What a checkpoint has behind it must be in the logs: a run that is killed resumes after it.
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
        """Also what an earlier start of the run has found; a file that was fixed since stays named."""
        found = {str(name) for name in self._record.train.get("unreadable_images", [])}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EpochReport):
                found.update(callback.unreadable_images)
        return sorted(found)


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
            InputError: the file cannot be written (full disk, quota, permission); the checkpoints before it are left
                as they were.
        """
        target = Path(path)
        temporary = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".tmp")
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            if target.name == LAST and target.exists():
                target.replace(target.with_name(PREVIOUS))
            temporary.replace(target)
        except (OSError, RuntimeError) as error:
            # A failing write inside torch.save comes out as a RuntimeError about its archive.
            while not isinstance(error, OSError) and (error.__cause__ or error.__context__) is not None:
                error = error.__cause__ or error.__context__  # type: ignore[assignment]
            raise InputError(
                f"{target} cannot be written ({getattr(error, 'strerror', None) or first_line(error)}); earlier "
                "checkpoints are kept: free the disk and start again with resume=auto"
            ) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def newest_valid_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume, and one line for each damaged one that was passed over.

    Args:
        folder: ``checkpoints`` of a run.

    Returns:
        ``last.ckpt``, else ``previous.ckpt``, whichever is valid first; None in a folder without either.

    Raises:
        InputError: there are checkpoints, and no valid one.
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


class NamesSettings(Callback):
    """Every checkpoint carries the settings of its run, under the key ``settings``."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self._settings


class RandomState(Callback):
    """The state of torch's generators travels in the checkpoint; with several processes that of the first one.

    Nothing in training draws from them (samples are seeded one by one), but a network with dropout resumes exactly.
    """

    def state_dict(self) -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class NamesTrainingImages(Callback):
    """Every checkpoint names the images that it was trained on, those of a run that it went on from too.

    ``earlier``: what the weights were trained on that the run starts from.
    Under the key ``training_images``, as :func:`fanet_lightning.cli.provenance.to_plain` makes it. About 50 bytes an
    image.
    """

    def __init__(self, earlier: Sequence[TrainingImages] = ()) -> None:
        self._earlier = list(earlier)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._earlier = images_of(checkpoint, Path(str(trainer.ckpt_path or "checkpoint"))) or []

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        dataset = getattr(datamodule, "train_dataset", None)
        parts = list(self._earlier)
        if dataset is not None and trainer.global_step:
            ids = tuple(dataset.records.image_ids.tolist())
            source = datamodule.source
            parts.append(TrainingImages(source.name, getattr(source, "train_split", None), ids))
        if parts:
            checkpoint[CHECKPOINT_KEY] = to_plain(merged(parts))


class FewImages(Callback):
    """Trains and validates on a part of the images, spread evenly over each set.

    Args:
        take: how many images, or which share of them if it is below 1.

    Raises:
        InputError: ``take`` is neither.
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
        """
        Raises:
            InputError: the AP stays below ``ap``; says whether the loss fell.
        """
        first, metrics = self._first_loss or math.nan, trainer.callback_metrics
        loss, ap = float(metrics["train/loss"]), float(metrics["val/ap"])
        text = f"AP {ap:.3f} on the {len(trainer.datamodule.val_records)} images trained on"  # type: ignore[attr-defined]
        text += f", loss {first:.3g} → {loss:.3g} in {trainer.global_step} steps"
        if ap >= self._ap:
            print(f"by heart: {text}", flush=True)
        elif getattr(module, "skipped_steps", 0):
            raise InputError(f"not by heart: {text}: steps without a finite gradient; lower optim.lr")
        elif not loss < first / 3:
            raise InputError(
                f"not by heart: {text}: the loss hardly falls; look at optim.lr, at frozen layers and at your own loss"
            )
        else:
            raise InputError(
                f"not by heart: {text}: the loss falls and the faces are not found; train longer (epochs=), or look at "
                "the labels (fanet doctor), at input_size and at your own network's output"
            )


# Profiles (``profile=true``)

# The first steps choose algorithms, fill caches and allocate: they are not what a long run consists of.
WARM_UP_STEPS, WATCHED_STEPS = 3, 3


class StepProfiler(SimpleProfiler):
    """Writes ``fit-steps.txt``: calls and seconds of every action of Lightning's loop and of the parts of a step.

    ``torch.profiler`` watches three steps, fewer where an epoch ends sooner: ``operators.txt`` and, for
    ui.perfetto.dev, ``trace.json``. On CUDA the seconds are those in which the CPU launches or waits; the operators
    have the device's own. Of several ranks the first one is watched.

    Args:
        folder: where the files go, ``out/profile``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "steps")
        # Kineto tells standard error that it starts, stops and finds no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self._folder, self._steps = folder, 0
        self._watching: profile | None = None
        self._ranges: dict[str, Any] = {}

    def start(self, action_name: str) -> None:
        if action_name == "run_training_batch" and self.local_rank == 0:
            self._steps += 1
            if self._steps == WARM_UP_STEPS + 1:
                self._watching = profile(acc_events=True)
                self._watching.start()
            elif self._steps == WARM_UP_STEPS + WATCHED_STEPS + 1:
                self._end()
        super().start(action_name)
        if self._watching is not None:
            self._ranges[action_name] = record_function(action_name)
            self._ranges[action_name].__enter__()

    def stop(self, action_name: str) -> None:
        if action_name in self._ranges:
            self._ranges.pop(action_name).__exit__(None, None, None)
        super().stop(action_name)
        if action_name == "run_training_epoch":
            self._end()

    def _end(self) -> None:
        if self._watching is None:
            return
        for name in reversed(self._ranges.copy()):
            self._ranges.pop(name).__exit__(None, None, None)
        watched, self._watching = self._watching, None
        watched.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        watched.export_chrome_trace(str(self._folder / "trace.json"))
        averages = watched.key_averages()
        on_device = any(event.self_device_time_total for event in averages)
        table = averages.table(sort_by=f"self_{'device' if on_device else 'cpu'}_time_total", row_limit=40)
        (self._folder / "operators.txt").write_text(table, encoding="utf-8")
        print(f"profile: {self._folder}", flush=True)
