"""Records → samples and batches."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fanet_lightning.data.image_cache import MemoryCache
from fanet_lightning.data.images import Image8, UnreadableImage, read_image_rgb
from fanet_lightning.data.records import Boxes, ImageRecord, PackedRecords
from fanet_lightning.data.resize import TestScale
from fanet_lightning.data.sampler import SampleKey
from fanet_lightning.errors import InputError
from fanet_lightning.structures import Batch, EvalBatch, Targets

log = logging.getLogger(__name__)

# (image (H, W, 3) uint8, boxes_xyxy (F, 4) float32, seed) → (image (S, S, 3) uint8, boxes_xyxy (F', 4) float32)
Augment = Callable[[Image8, Boxes, int], tuple[Image8, Boxes]]


class TrainSample(NamedTuple):
    """``image`` (3, S, S) uint8 RGB, ``boxes_xyxy`` (F, 4) float32 in its pixels, and where it comes from."""

    image: Tensor
    boxes_xyxy: Tensor
    image_id: str


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 63-bit seed of one sample's random draws, from (run's seed, epoch, image index) alone."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> 1)


class TrainDataset(Dataset[TrainSample]):
    """Augmented samples, addressed by :class:`SampleKey`.

    A file that cannot be read is named once in the log, counted, and replaced by the next readable image in the
    records' order (after the last comes the first), augmented with the seed of the sample that was asked for. So a
    replacement is the same in every run, on every rank and in every worker.

    The flags of unreadable images lie in shared memory: what one worker process finds the others and the main process
    know.

    ``cache`` changes no sample. An image that is in it is never read again, so it is not missed when its file goes.
    """

    def __init__(
        self, records: Sequence[ImageRecord], augment: Augment, seed: int = 0, cache: MemoryCache | None = None
    ) -> None:
        self.records = PackedRecords(records)
        self.augment = augment
        self.seed = seed
        self.cache = cache
        self._unreadable: Tensor = torch.zeros(len(records), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def unreadable_images(self) -> list[str]:
        """Ids of the images found unreadable so far in this process and its workers, in the records' order."""
        return [self.records.image_id(int(index)) for index in self._unreadable.nonzero()[:, 0]]

    @property
    def unreadable(self) -> Tensor:
        """(N,) uint8, 1 for each of :attr:`unreadable_images`; what is set here is not tried again."""
        return self._unreadable

    def __getitem__(self, key: SampleKey) -> TrainSample:
        """
        Raises:
            InputError: not a single image can be read.
        """
        index, image = self._readable(key.index)
        image, boxes_xyxy = self.augment(
            image, self.records.boxes_xyxy(index), sample_seed(self.seed, key.epoch, key.index)
        )
        chw = torch.empty((3, *image.shape[:2]), dtype=torch.uint8)
        cv2.split(image, list(chw.numpy()))  # less than half the time of a transposed copy
        boxes = torch.from_numpy(np.ascontiguousarray(boxes_xyxy, dtype=np.float32)).reshape(-1, 4)
        return TrainSample(chw, boxes, self.records.image_id(index))

    def _readable(self, wanted: int) -> tuple[int, Image8]:
        for step in range(len(self)):
            index = (wanted + step) % len(self)
            if self._unreadable[index]:
                continue
            try:
                return index, self._read(index)
            except UnreadableImage as error:
                self._unreadable[index] = 1
                log.warning("training goes on without %s: %s", self.records.path(index), error.reason)
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


def collate_train(samples: Sequence[TrainSample]) -> Batch:
    """Stack the images and pack the faces."""
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


class EvalDataset(Dataset[EvalBatch]):
    """Images at test scale, one a batch. An unreadable file raises: a score must not be quietly about fewer images."""

    def __init__(self, records: Sequence[ImageRecord], test_scale: TestScale) -> None:
        self.records = PackedRecords(records)
        self.test_scale = test_scale

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> EvalBatch:
        """
        Raises:
            UnreadableImage: the file is missing or broken.
        """
        image = read_image_rgb(self.records.path(index))
        resized, scale_xy = self.test_scale(image)
        return EvalBatch(
            images=torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))[None],
            scale_xy=torch.from_numpy(scale_xy)[None],
            size_hw=torch.tensor([image.shape[:2]], dtype=torch.int64),
            image_ids=[self.records.image_id(index)],
        )
