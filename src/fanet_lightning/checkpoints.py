"""Checkpoints that are whole or not there, and the way back to the newest whole one."""

import os
import random
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from fanet_lightning.errors import InputError
from fanet_lightning.training_images import CHECKPOINT_KEY, TrainingImages, images_of, merged, to_plain

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, renames.

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
            reason = getattr(error, "strerror", None) or _cause(error)
            kept = ", ".join(p.name for p in sorted(target.parent.glob("*.ckpt"))) or "none yet"
            raise InputError(
                f"{target} cannot be written ({reason}); earlier checkpoints are kept ({kept}): free the disk and "
                "start again with resume=auto"
            ) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def newest_whole_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and one line for each damaged one that was passed over.

    Args:
        folder: ``checkpoints`` of a run.

    Returns:
        ``last.ckpt``, else ``previous.ckpt``, whichever is whole first; None in a folder without either.

    Raises:
        InputError: there are checkpoints, and none is whole.
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
        raise InputError(f"no whole checkpoint in {folder}: {'; '.join(damaged)}; give resume=PATH or take another out")
    return None, damaged


def _fault(path: Path) -> str | None:
    """What is wrong with a file of ``torch.save``: it is a zip archive, and every member has a checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        return str(error) or type(error).__name__
    return None if broken is None else f"checksum of {broken} does not fit"


def checkpoint_callbacks(
    folder: Path,
    settings: Mapping[str, Any],
    every_steps: int | None = None,
    earlier: Sequence[TrainingImages] = (),
    *,
    from_trained: bool = False,
) -> list[Callback]:
    """``best.ckpt`` by AP of the last setting (WIDER: hard), and ``last.ckpt`` after every epoch.

    Args:
        folder: where they lie.
        settings: of the run, plain; they travel in every checkpoint, so that who goes on from it is held to them.
        every_steps: also write ``last.ckpt`` inside an epoch, every so many optimiser steps: for long epochs on
            machines that are taken away.
        earlier: what the weights were trained on that the run starts from.
        from_trained: the run starts from a whole trained model: see :class:`StartingModel`.
    """
    common: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor="val/ap", mode="max", save_top_k=1, **common)
    callbacks: list[Callback] = [
        *([StartingModel(best)] if from_trained else []),
        best,
        ModelCheckpoint(filename="last", save_top_k=1, every_n_epochs=1, save_on_train_epoch_end=True, **common),
    ]
    if every_steps is not None:
        callbacks.append(ModelCheckpoint(filename="last", save_top_k=1, every_n_train_steps=every_steps, **common))
    return [RandomState(), NamesTrainingImages(earlier), NamesSettings(settings), *callbacks]


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
            best = self._best.best_model_score
            is_start = best is not None and float(best) <= float(torch.tensor(start))
            kept = "the starting model" if is_start else "of its best epoch"
            print(
                f"warning: the run ends at AP {setting} {float(end):.3f}, below the {start:.3f} of the model that it "
                f"started from; best.ckpt is {kept}. Lower optim.lr, or larger crops (input_size), keep more of it",
                flush=True,
            )


class NamesSettings(Callback):
    """Every checkpoint carries the settings of its run, under the key ``settings``."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self._settings


class RandomState(Callback):
    """The generators' states travel in the checkpoint.

    Nothing in training draws from them (samples are seeded one by one), but whoever adds dropout resumes exactly.
    With several processes the first one's states are kept.
    """

    def state_dict(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
        python_version, python_keys, python_gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [
                str(kind),
                torch.from_numpy(np.asarray(keys, np.int64)),
                int(position),
                int(has_gauss),
                float(cached),
            ],
            "python": [python_version, list(python_keys), python_gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        version, python_keys, gauss = state["python"]
        random.setstate((version, tuple(python_keys), gauss))

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Nothing beside :meth:`state_dict`."""


class NamesTrainingImages(Callback):
    """Every checkpoint names the images that it was trained on, those of a run that it went on from too.

    ``earlier``: what the weights were trained on that the run starts from.
    Under the key ``training_images``, as :func:`fanet_lightning.training_images.to_plain` makes it. About 50 bytes an
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
