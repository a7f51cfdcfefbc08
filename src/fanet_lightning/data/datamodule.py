"""The LightningDataModule: the same batches for any number of workers, processes and restarts."""

import os
from typing import TYPE_CHECKING

import torch
from pytorch_lightning import LightningDataModule

from fanet_lightning.data.dataset import Augment, EvalDataset, TrainDataset
from fanet_lightning.data.loader import EvalLoader, TrainLoader
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.resize import TestScale
from fanet_lightning.data.sampler import EvalSampler, TrainBatchSampler
from fanet_lightning.data.sources import FaceSource
from fanet_lightning.errors import InputError

if TYPE_CHECKING:
    from fanet_lightning.scoring.ground_truth import GroundTruth


def default_workers() -> int:
    """As many worker processes as there are usable cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


class FaceDataModule(LightningDataModule):
    """Training batches (``structures.Batch``) and validation images (``structures.EvalBatch``).

    Samples depend on (``seed``, epoch, image) alone and batches on (``seed``, epoch) alone, so workers, devices and
    restarts change nothing. The samplers know their rank: give the Trainer ``use_distributed_sampler=False``.

    Args:
        source: where records come from, e.g. :class:`~fanet_lightning.data.sources.WiderFaceSource`.
        batch_size: total over all devices, which must divide it.
        input_size: side of the training images that ``augment`` makes, pixels.
        workers: processes that load, per device; None: :func:`default_workers`. 0 loads in the main process.
        seed: of permutations and augmentations.
        augment: (image, boxes_xyxy, seed) → (image, boxes_xyxy), e.g. ``data.augment.TrainAugment``; None where
            nothing trains.
        val_scale: size at which validation images are shown; by default their own.
        multiprocessing_context: ``fork``, ``spawn`` or ``forkserver``; None: the platform's.
    """

    def __init__(
        self,
        source: FaceSource,
        *,
        batch_size: int = 12,
        input_size: int = 640,
        workers: int | None = None,
        seed: int = 0,
        augment: Augment | None = None,
        val_scale: TestScale | None = None,
        multiprocessing_context: str | None = None,
    ) -> None:
        super().__init__()
        if workers is not None and workers < 0:
            raise InputError(f"workers={workers}; give 0 (load in the main process) or more")
        size = getattr(augment, "size", input_size)
        if size != input_size:
            raise InputError(f"augment.size={size} but input_size={input_size}; give both the same value")
        self.source = source
        self.batch_size = batch_size
        self.input_size = input_size
        self.workers = default_workers() if workers is None else workers
        self.seed = seed
        self.augment = augment
        self.val_scale = val_scale or TestScale("original")
        self.multiprocessing_context = multiprocessing_context
        self.train_dataset: TrainDataset | None = None
        self._train_loader: TrainLoader | None = None
        self._position: dict[str, int] | None = None
        self._val_records: list[ImageRecord] | None = None
        self._ground_truth: GroundTruth | None = None

    def prepare_data(self) -> None:
        self.source.prepare()

    @property
    def val_records(self) -> list[ImageRecord]:
        """The validation records, sorted by image id."""
        if self._val_records is None:
            self._val_records = sorted(self.source.val(), key=lambda record: record.image_id)
            if not self._val_records:
                raise InputError("the validation set has no image; check data.val.split and data.val.images")
        return self._val_records

    @property
    def ground_truth(self) -> "GroundTruth":
        """The faces of :attr:`val_records`, in their order."""
        if self._ground_truth is None:
            self._ground_truth = self.source.ground_truth()
        return self._ground_truth

    @property
    def unreadable_images(self) -> list[str]:
        """Ids of training images that this process and its workers could not read so far."""
        return [] if self.train_dataset is None else self.train_dataset.unreadable_images

    def train_dataloader(self) -> TrainLoader:
        """
        Raises:
            InputError: see the source and :class:`TrainBatchSampler`.
            ValueError: there is no ``augment``.
        """
        if self.augment is None:
            raise ValueError("FaceDataModule(augment=None) cannot train; give an augmentation")
        if self.train_dataset is None:
            self.train_dataset = TrainDataset(self.source.train(), self.augment, self.seed)
        rank, world_size = self._rank_and_world_size()
        sampler = TrainBatchSampler(len(self.train_dataset), self.batch_size, rank, world_size, self.seed)
        self._train_loader = TrainLoader(
            self.train_dataset, sampler, self.workers, self._pin_memory(), self.multiprocessing_context
        )
        if self._position is not None:
            self._train_loader.load_state_dict(self._position)
            self._position = None
        return self._train_loader

    def state_dict(self) -> dict[str, dict[str, int]]:
        """How far training has come in its epoch, for the checkpoint.

        Lightning saves the loaders' states as well, but gives them back only where nobody has asked for the length of
        the run beforehand, which a learning-rate schedule does.
        """
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, dict[str, int]]) -> None:
        """Go on there with the next training loader."""
        self._position = state_dict.get("train")

    def val_dataloader(self) -> EvalLoader:
        """This rank's share of the validation images, in order."""
        dataset = EvalDataset(self.val_records, self.val_scale)
        sampler = EvalSampler(len(dataset), *self._rank_and_world_size())
        return EvalLoader(dataset, sampler, self.workers, self._pin_memory(), self.multiprocessing_context)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _pin_memory(self) -> bool:
        if self.trainer is None:
            return torch.cuda.is_available()
        return self.trainer.strategy.root_device.type == "cuda"
