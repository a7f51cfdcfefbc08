"""The LightningDataModule: the same batches for any number of workers, processes and restarts."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import LightningDataModule

from fanet_lightning.data.dataset import Augment, EvalDataset, TrainDataset
from fanet_lightning.data.image_cache import MemoryCache, check_cache, memory_cache
from fanet_lightning.data.images import UnreadableImage, check_image
from fanet_lightning.data.loader import EvalLoader, TrainLoader
from fanet_lightning.data.over_files import over_files
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.resize import TestScale
from fanet_lightning.data.sampler import EvalSampler, TrainBatchSampler
from fanet_lightning.data.shrunk_images import shrunk_records
from fanet_lightning.data.sources import FaceSource
from fanet_lightning.devices import usable_cores
from fanet_lightning.errors import InputError

if TYPE_CHECKING:
    from fanet_lightning.scoring.ground_truth import GroundTruth

log = logging.getLogger(__name__)


def default_workers() -> int:
    """As many worker processes as there are usable cores, at most 8."""
    return min(8, usable_cores())


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
        cache: ``memory`` keeps decoded training images (:mod:`.image_cache`; the same samples); ``disk`` trains on
            shrunk copies of the large ones (:mod:`.shrunk_images`; another data set).
        cache_gib: most memory of ``cache=memory``, for all ranks of a machine together; None, or more than is free:
            half of what is free.
        cache_dir: folder of the copies of ``cache=disk``.
        cache_side: their shorter side, pixels, at least ``input_size``; None: twice ``input_size``.

    Raises:
        InputError: an argument that is out of range, or a size that ``augment`` does not make.
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
        cache: str | None = None,
        cache_gib: float | None = None,
        cache_dir: Path | str = "data/image_cache",
        cache_side: int | None = None,
    ) -> None:
        super().__init__()
        check_cache(cache, cache_gib, cache_dir, cache_side, input_size)
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
        self.cache = cache
        self.cache_gib = cache_gib
        self.cache_dir = Path(cache_dir)
        self.cache_side = 2 * input_size if cache_side is None else cache_side
        self.train_dataset: TrainDataset | None = None
        self._train_loader: TrainLoader | None = None
        self._position: dict[str, int] | None = None
        self._trained_on: dict[str, Any] | None = None
        self._val_records: list[ImageRecord] | None = None
        self._ground_truth: GroundTruth | None = None

    def prepare_data(self) -> None:
        """Write or fetch what the source needs; and refuse unreadable validation images before anything trains on.

        Raises:
            InputError: see the source; or validation images that :func:`check_image` refuses.
        """
        self.source.prepare()
        if self.augment is not None:
            self._check_val_images()

    def _check_val_images(self) -> None:
        def reason(index: int) -> UnreadableImage | None:
            try:
                check_image(self.val_records[index].path)
            except UnreadableImage as error:
                return error
            return None

        unreadable = [error for error in over_files(reason, len(self.val_records)) if error is not None]
        if unreadable:
            raise InputError(
                f"{len(unreadable)} of {len(self.val_records)} validation images cannot be read, the first is "
                f"{unreadable[0].path}: {unreadable[0].reason}; replace them, or leave them out with data.val.images"
            )

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
            self.train_dataset = self._train_dataset(self.augment)
        rank, world_size = self._rank_and_world_size()
        sampler = TrainBatchSampler(len(self.train_dataset), self.batch_size, rank, world_size, self.seed)
        self._train_loader = TrainLoader(
            self.train_dataset, sampler, self.workers, self._pin_memory(), self.multiprocessing_context
        )
        if self._position is not None:
            now, before = self._train_images(), self._trained_on
            if before is not None and now != before:
                raise InputError(
                    f"data.root: {now['count']} training images, and not the {before['count']} that the checkpoint was "
                    "trained on; give those to go on with the run, or start a new one with init="
                )
            self._train_loader.load_state_dict(self._position)
            self._position = None
        return self._train_loader

    def _train_dataset(self, augment: Augment) -> TrainDataset:
        records, cache = self.source.train(), None
        if self.cache == "disk":
            records, line = shrunk_records(records, self.cache_dir, self.cache_side)
            self._say(line)
        if self.cache == "memory":
            cache, line = memory_cache([record.path for record in records], self.cache_gib)
            cache = _shared_by_ranks(cache)
            self._say(line)
        return TrainDataset(records, augment, self.seed, cache)

    def _say(self, line: str) -> None:
        if self._rank_and_world_size()[0] == 0:
            print(line, flush=True)

    def state_dict(self) -> dict[str, Any]:
        """How far training has come in its epoch, and on which images, for the checkpoint.

        Lightning saves the loaders' states as well, but gives them back only where nobody has asked for the length of
        the run beforehand, which a learning-rate schedule does.
        """
        if self._train_loader is None:
            return {}
        return {"train": self._train_loader.state_dict(), "images": self._train_images()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there with the next training loader."""
        self._position, self._trained_on = state_dict.get("train"), state_dict.get("images")

    def _train_images(self) -> dict[str, Any]:
        assert self.train_dataset is not None
        ids = self.train_dataset.records.image_ids.tolist()
        return {"count": len(ids), "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()}

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


def _shared_by_ranks(cache: MemoryCache) -> MemoryCache | None:
    """The same memory for all ranks of a machine: that of its first one. None where that cannot be had."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return cache
    mine = cache.address()
    addresses = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(addresses, mine)
    first = next(address for address in addresses if address.machine == mine.machine)
    try:
        if first != mine:
            cache.use(first)
    except (OSError, ValueError) as error:
        # One cache each would take several times what was asked for.
        log.warning("cache=memory: this rank reads all files itself (%s)", error)
        return None
    finally:
        torch.distributed.barrier()  # nobody ends, and takes the address along, before all have looked
    return cache
