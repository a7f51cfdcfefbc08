"""Dataset, sampler, loader, image cache and the LightningDataModule."""

import hashlib
import logging
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from fanet_lightning.cli.device import available_bytes
from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.data.images import Image8, UnreadableImage, image_fault, read_image_rgb, read_image_size
from fanet_lightning.data.records import Boxes, ImageRecord, PackedRecords
from fanet_lightning.data.sources import FaceSource
from fanet_lightning.data.transforms import TestScale, check_numbers, sample_seed
from fanet_lightning.ops.structures import Batch, EvalBatch, Targets

log = logging.getLogger(__name__)


class SampleKey(NamedTuple):
    """What a sample is made from, next to the seed. Workers outlive an epoch, so the epoch travels in it."""

    epoch: int
    index: int  # type: ignore[assignment]  # tuple has a method of this name


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Global batch k of an epoch is the k-th run of B entries of a permutation drawn from (seed, epoch).

    Rank r takes the r-th share of each batch, so one process and several train on the same batches. The last,
    incomplete batch is dropped; fewer images than B are repeated to fill one. InputError: ``batch_size_total`` B is not
    a multiple of the number of processes. Iteration begins with ``first_batch``, until the epoch changes.
    """

    def __init__(
        self, num_images: int, batch_size_total: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        if batch_size_total < 1 or batch_size_total % world_size:
            raise InputError(
                f"batch_size={batch_size_total} is the total over {world_size} devices and must be a multiple of "
                f"{world_size}; take {max(1, round(batch_size_total / world_size)) * world_size}"
            )
        self.num_images, self.batch_size_total = num_images, batch_size_total
        self.rank, self.world_size = rank, world_size
        self.seed, self.epoch, self.first_batch = seed, 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; another epoch than the current one starts at its first batch."""
        if epoch != self.epoch:
            self.first_batch = 0
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch, at least 1."""
        return max(1, self.num_images // self.batch_size_total)

    def permutation(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(N,) image indices of this epoch in order."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch])).permutation(self.num_images)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # np.resize cuts, and repeats a tiny set from the start.
        order = np.resize(self.permutation(), len(self) * self.batch_size_total).reshape(len(self), self.world_size, -1)
        epoch = self.epoch
        for batch in range(self.first_batch, len(self)):
            yield [SampleKey(epoch, int(index)) for index in order[batch, self.rank]]


GIB = 2**30
# Of the free memory: the rest is for the samples on their way, the training itself and other programs.
SHARE_OF_FREE = 0.5


class MemoryCache:
    """Decoded images in memory that the loader processes of a rank share, filled by whoever decodes one first.

    Every image has its place from the start: two processes that decode the same one write the same bytes. The memory
    has no name and leaves nothing behind; a page is taken when it is first written.

    ``sizes_hw`` (N, 2) int64, an image of size 0 is never kept; ``limit_bytes`` of all pixels: the first images have
    ``places``; ``file``: descriptor of another cache's memory, of the same images and limit, to share it.
    """

    def __init__(self, sizes_hw: npt.NDArray[np.int64], limit_bytes: int, file: int | None = None) -> None:
        self.sizes_hw, self.limit_bytes = sizes_hw, limit_bytes
        self.file = _anonymous_file() if file is None else file
        nbytes = 3 * sizes_hw.prod(axis=1)
        # Flags first, then pixels.
        self._starts = len(nbytes) + np.cumsum(nbytes) - nbytes
        self._fits = (np.cumsum(nbytes) <= limit_bytes) & (nbytes > 0)
        size = max(1, len(nbytes) + int(nbytes[self._fits].sum()))
        os.ftruncate(self.file, size)
        self._memory = np.frombuffer(mmap.mmap(self.file, size), dtype=np.uint8)
        self._flags = self._memory[: len(nbytes)]
        self._lock, self.places = threading.Lock(), int(self._fits.sum())

    def get(self, index: int) -> Image8 | None:
        """The image (H, W, 3) as a view that cannot be written; None if it is not there (yet)."""
        if not self._flags[index]:
            return None
        self._fence()
        pixels = self._pixels(index)
        pixels.flags.writeable = False
        return pixels

    def put(self, index: int, image: Image8) -> None:
        """Keep an image if it has a place. One of another size than its file's head said has none."""
        if self._fits[index] and not self._flags[index] and image.shape == (*self.sizes_hw[index], 3):
            self._pixels(index)[...] = image
            self._fence()
            self._flags[index] = 1

    def _pixels(self, index: int) -> Image8:
        height, width = self.sizes_hw[index]
        start = self._starts[index]
        return self._memory[start : start + 3 * height * width].reshape(height, width, 3)

    def _fence(self) -> None:
        # A flag must not be seen before the pixels that it is about. Processors other than x86 may reorder the two;
        # not across letting a lock go and taking it again.
        for _ in range(2):
            with self._lock:
                pass

    def __reduce__(self) -> tuple[Any, ...]:
        # Spawned workers are given the open file itself.
        return _reopened, (self.sizes_hw, self.limit_bytes, DupFd(self.file))


def _reopened(sizes_hw: npt.NDArray[np.int64], limit_bytes: int, file: Any) -> MemoryCache:
    return MemoryCache(sizes_hw, limit_bytes, file.detach())


T = TypeVar("T")


def over_files(work: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
    """What ``work`` makes of each, by threads: reading files and OpenCV let other threads run."""
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(work, paths))


def memory_cache(paths: Sequence[Path], cache_gib: float | None, ranks: int = 1) -> MemoryCache:
    """Of these images, in their order. ``cache_gib``: of all ``ranks`` of the machine together; None, or more than is
    free: half of the free memory."""

    def size(path: Path) -> tuple[int, int]:
        with suppress(UnreadableImage):
            return read_image_size(path)
        return 0, 0

    sizes_hw = np.array(over_files(size, paths), dtype=np.int64).reshape(-1, 2)
    free = available_bytes(torch.device("cpu"))
    limit = None if cache_gib is None else int(cache_gib * GIB)
    if free is not None and (limit is None or limit > free):
        limit = int(free * SHARE_OF_FREE)
    return MemoryCache(sizes_hw, int(3 * sizes_hw.prod(axis=1).sum()) if limit is None else limit // ranks)


def _anonymous_file() -> int:
    """A file without a name, in memory where the system has such files; it is gone with the last process."""
    # Not share_memory_(): it takes every page at once, of /dev/shm, which containers hold at 64 MB.
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fanet_images")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


# (image (H, W, 3) uint8, boxes_xyxy (F, 4) float32, seed) → (image (S, S, 3) uint8, boxes_xyxy (F', 4) float32)
Augment = Callable[[Image8, Boxes, int], tuple[Image8, Boxes]]


class TrainSample(NamedTuple):
    """``image`` (3, S, S) uint8 RGB, ``boxes_xyxy`` (F, 4) float32 in its pixels, and where it comes from."""

    image: Tensor
    boxes_xyxy: Tensor
    image_id: str


class TrainDataset(Dataset[TrainSample]):
    """Augmented samples, addressed by :class:`SampleKey`; ``cache`` changes none of them.

    A file that cannot be read is named once in the log and replaced by the next readable image (after the last the
    first), with the seed of the sample that was asked for: the same in every run, rank and worker. ``unreadable`` (N,)
    uint8, in shared memory, is 1 for each of :attr:`unreadable_images`.
    """

    def __init__(
        self, records: Sequence[ImageRecord], augment: Augment, seed: int = 0, cache: MemoryCache | None = None
    ) -> None:
        self.records, self.augment, self.seed, self.cache = PackedRecords(records), augment, seed, cache
        self.unreadable: Tensor = torch.zeros(len(records), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def unreadable_images(self) -> list[str]:
        """Ids of the images found unreadable so far, in the records' order."""
        return [self.records.image_id(int(index)) for index in self.unreadable.nonzero()[:, 0]]

    def __getitem__(self, key: SampleKey) -> TrainSample:
        index, image = self._readable(key.index)
        seed = sample_seed(self.seed, key.epoch, key.index)
        image, boxes_xyxy = self.augment(image, self.records.boxes_xyxy(index), seed)
        chw = torch.empty((3, *image.shape[:2]), dtype=torch.uint8)
        cv2.split(image, list(chw.numpy()))  # less than half the time of a transposed copy
        boxes = torch.from_numpy(np.ascontiguousarray(boxes_xyxy, dtype=np.float32)).reshape(-1, 4)
        return TrainSample(chw, boxes, self.records.image_id(index))

    def batch(self, keys: Sequence[SampleKey]) -> Batch:
        """The samples of these keys, images stacked and faces packed."""
        samples = [self[key] for key in keys]
        counts = torch.tensor([len(sample.boxes_xyxy) for sample in samples])
        return Batch(
            # In a worker it stacks them in shared memory, where they travel from: a copy less than torch.stack.
            images=default_collate([sample.image for sample in samples]),
            targets=Targets(
                boxes_xyxy=torch.cat([sample.boxes_xyxy for sample in samples]),
                image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
            ),
            image_ids=[sample.image_id for sample in samples],
        )

    def _readable(self, wanted: int) -> tuple[int, Image8]:
        for step in range(len(self)):
            index = (wanted + step) % len(self)
            if self.unreadable[index]:
                continue
            try:
                return index, self._read(index)
            except UnreadableImage as error:
                self.unreadable[index] = 1
                log.warning("training continues without %s: %s", self.records.path(index), error.reason)
        raise InputError(
            f"none of the {len(self)} training images can be read, the first is {self.records.path(0)}; check data.root"
        )

    def _read(self, index: int) -> Image8:
        image = None if self.cache is None else self.cache.get(index)
        if image is None:
            image = read_image_rgb(self.records.path(index))
            if self.cache is not None:
                self.cache.put(index, image)
        return image


def eval_image(records: PackedRecords, test_scale: TestScale, index: int) -> EvalBatch:
    """An image at test scale. An unreadable file raises: a score must not be quietly about fewer images."""
    resized, scale_xy = test_scale(read_image_rgb(records.path(index)))
    return EvalBatch(
        images=torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))[None],
        scale_xy=torch.from_numpy(scale_xy)[None],
        image_ids=[records.image_id(index)],
    )


class _Loading(Dataset[Any]):
    """``load(key)`` in a worker. One that raises loses its message in a traceback of many lines: errors are values."""

    def __init__(self, load: Callable[[Any], Any]) -> None:
        self.load = load

    def __getitem__(self, key: Any) -> Any:
        try:
            item = self.load(key)
        except InputError as error:
            return error
        # Where tensors travel from: no room raises here, where the queue would drop the item and let the loader wait.
        for leaf in tree_leaves(item) if get_worker_info() is not None else ():
            if isinstance(leaf, torch.Tensor):
                leaf.share_memory_()  # type: ignore[no-untyped-call]
        return item


def _start_worker(worker: int) -> None:
    # The workers share the cores already; OpenCV's threads on top only get in each other's way.
    cv2.setNumThreads(0)


class Loader(DataLoader[Any]):
    """Batches: what ``load`` makes of each key of ``sampler``. ``waited_seconds`` for them, over all epochs."""

    def __init__(self, load: Callable[[Any], Any], sampler: Any, workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(
            _Loading(load),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            # Of its own, so that starting an epoch draws nothing from the model's random numbers.
            generator=torch.Generator().manual_seed(0),
        )
        self.waited_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        start = time.perf_counter()
        for item in super().__iter__():
            self.waited_seconds += time.perf_counter() - start
            if isinstance(item, InputError):
                raise item
            yield item
            start = time.perf_counter()


class TrainLoader(Loader):
    """Batches (:class:`~fanet_lightning.ops.structures.Batch`) of this rank's part.

    A run that was cut off inside an epoch resumes with the next batch of the same permutation. The state counts images:
    with another batch size it resumes at the batch that holds the first unseen one.
    """

    sampler: TrainBatchSampler

    def __init__(self, dataset: TrainDataset, sampler: TrainBatchSampler, *options: Any) -> None:
        super().__init__(dataset.batch, sampler, *options)
        self._position = (0, 0)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, which draws nothing yet: Lightning asks for an iterator before it sets the epoch.
        sampler, done = self.sampler, self.sampler.first_batch
        self._position = (sampler.epoch, done)
        try:
            for batch in super().__iter__():
                # Counted before it is handed out: a checkpoint after this batch's step must not train on it again.
                done += 1
                self._position = (sampler.epoch, done)
                yield batch
        finally:
            # The offset of a resumed epoch is used up, also where a limit ends the epoch early.
            sampler.first_batch = 0

    def state_dict(self) -> dict[str, int]:
        """``epoch``, and ``images``: how many entries of its permutation were handed out over all ranks."""
        epoch, done = self._position
        return {"epoch": epoch, "images": done * self.sampler.batch_size_total}

    def load_state_dict(self, state: dict[str, int]) -> None:
        batch = min(state["images"] // self.sampler.batch_size_total, len(self.sampler))
        self._position = (state["epoch"], batch)
        self.sampler.epoch, self.sampler.first_batch = self._position


def _some(records: list[ImageRecord], part: str) -> list[ImageRecord]:
    check(records, f"the {part} part has no image; check data.{part}")
    return records


class FaceDataModule(LightningDataModule):
    """Training batches (``structures.Batch``) and validation images (``structures.EvalBatch``).

    Samples depend on (``seed``, epoch, image) alone and batches on (``seed``, epoch) alone, so workers, devices and
    restarts change nothing. The samplers know their rank: give the Trainer ``use_distributed_sampler=False``.

    Args (an InputError where one is out of range):
        source: where records come from, e.g. :class:`~fanet_lightning.data.sources.WiderFaceSource`.
        batch_size: total over all devices, which must divide it.
        input_size: side of the training images that ``augment`` makes, pixels.
        augment: (image, boxes_xyxy, seed) → (image, boxes_xyxy), e.g. ``data.transforms.TrainAugment``.
        workers: processes that load, per device; 0: the main process loads.
        val_scale: size at which validation images are shown; by default their own.
        cache: ``memory`` keeps decoded training images (the same samples), once for all workers of a rank.
        cache_gib: most memory of it, for all ranks of a machine; None, or more than is free: half of what is free.
    """

    def __init__(
        self,
        source: FaceSource,
        *,
        augment: Augment,
        batch_size: int = 12,
        input_size: int = 640,
        workers: int = 0,
        seed: int = 0,
        val_scale: TestScale | None = None,
        cache: str | None = None,
        cache_gib: float | None = None,
    ) -> None:
        super().__init__()
        check(cache in (None, "memory"), f"cache={cache} is unknown; take memory or null")
        if cache_gib is not None:
            check_numbers("cache_gib", cache_gib, 0.5, 1e-9, 1e9)
        check_numbers("workers", workers, 0, 0, 1024)
        size = getattr(augment, "size", input_size)
        check(size == input_size, f"augment.size={size} but input_size={input_size}; give both the same value")
        self.source, self.batch_size, self.seed, self.augment = source, batch_size, seed, augment
        self.workers, self.val_scale = workers, val_scale or TestScale("original")
        self.cache, self.cache_gib = cache, cache_gib
        self.train_dataset: TrainDataset | None = None
        self._train_loader: TrainLoader | None = None
        self._resumed: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Write or fetch what the source needs; unreadable validation images are an InputError before training."""
        self.source.prepare()
        faults = over_files(image_fault, [record.path for record in self.val_records])
        unreadable = [fault for fault in faults if fault is not None]
        if unreadable:
            raise InputError(
                f"{len(unreadable)} of {len(faults)} validation images cannot be read, the first is "
                f"{unreadable[0].path}: {unreadable[0].reason}; replace them, or leave them out with data.val.images"
            )

    @cached_property
    def val_records(self) -> list[ImageRecord]:
        """The validation records, sorted by image id."""
        return sorted(_some(self.source.val(), "val"), key=lambda record: record.image_id)

    @cached_property
    def ground_truth(self) -> Any:
        """The faces of :attr:`val_records`, in their order."""
        return self.source.ground_truth()

    def digest(self) -> dict[str, dict[str, Any]]:
        """Of ``train`` and ``val``, see :meth:`PackedRecords.digest`; once the source is prepared."""
        train = PackedRecords(self.source.train()) if self.train_dataset is None else self.train_dataset.records
        return {"train": train.digest(), "val": PackedRecords(self.val_records).digest()}

    def train_dataloader(self) -> TrainLoader:
        """This rank's part; InputError: of the source or the sampler."""
        if self.train_dataset is None:
            self.train_dataset = self._train_dataset()
        sampler = TrainBatchSampler(len(self.train_dataset), self.batch_size, *self._rank_and_world_size(), self.seed)
        self._train_loader = TrainLoader(self.train_dataset, sampler, *self._options())
        if self._resumed:
            now, before = self._train_images(), self._resumed.get("images")
            if before is not None and now != before:
                raise InputError(
                    f"data.root: {now['count']} training images, and not the {before['count']} that the checkpoint was "
                    "trained on; give those to resume the run, or start a new one with init="
                )
            self._train_loader.load_state_dict(self._resumed["train"])
            self._resumed = {}
        return self._train_loader

    def _train_dataset(self) -> TrainDataset:
        records, cache = _some(self.source.train(), "train"), None
        if self.cache == "memory":
            ranks = 1 if self.trainer is None else self.trainer.world_size // self.trainer.num_nodes
            cache = memory_cache([record.path for record in records], self.cache_gib, ranks)
            if self._rank_and_world_size()[0] == 0:
                size = f"{cache.limit_bytes / GIB:.2f} GiB"
                print(f"cache=memory: {cache.places:,} of {len(records):,} images fit into {size}", flush=True)
        return TrainDataset(records, self.augment, self.seed, cache)

    def state_dict(self) -> dict[str, Any]:
        """How far training has come in its epoch, and on which images, for the checkpoint."""
        # Lightning saves the loaders' states too, but loses them where a schedule asks for the run's length beforehand.
        if self._train_loader is None:
            return {}
        return {"train": self._train_loader.state_dict(), "images": self._train_images()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume there with the next training loader."""
        self._resumed = state_dict

    def _train_images(self) -> dict[str, Any]:
        assert self.train_dataset is not None
        ids = self.train_dataset.records.image_ids.tolist()
        return {"count": len(ids), "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()}

    def val_dataloader(self) -> Loader:
        """This rank's part of the validation images, one a batch (``structures.EvalBatch``), in order, each once."""
        rank, world_size = self._rank_and_world_size()
        load = partial(eval_image, PackedRecords(self.val_records), self.val_scale)
        return Loader(load, range(rank, len(self.val_records), world_size), *self._options())

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _options(self) -> tuple[int, bool]:
        pin = torch.cuda.is_available() if self.trainer is None else self.trainer.strategy.root_device.type == "cuda"
        return self.workers, pin
