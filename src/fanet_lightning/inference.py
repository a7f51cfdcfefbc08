"""A detector over many images: reading overlaps with inference, and what was found is kept as it comes."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fanet_lightning.data.dataset import EvalDataset
from fanet_lightning.data.loader import in_shared_memory
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.resize import TestScale
from fanet_lightning.inference_store import Inferred, Journal
from fanet_lightning.multiscale import MultiScale, PassRecord
from fanet_lightning.structures import Detections, EvalBatch

if TYPE_CHECKING:
    from fanet_lightning.detector import FaceDetector

# Worker processes hand images over in shared memory, of which containers often have 64 MB. Larger images are read by
# the process that wants them.
LARGEST_SHARED_BYTES = 16 * 2**20


def detect_records(
    detector: "FaceDetector",
    records: Sequence[ImageRecord],
    scale: TestScale | MultiScale,
    workers: int,
    journal: Journal,
) -> dict[str, Inferred]:
    """Faces of every image by image id, in the records' order; those that the journal has are not looked at again.

    Args:
        detector: boxes come out in pixels of the original image, clipped to it.
        scale: a single test scale, or several.
        workers: processes that read and resize images; 0 reads between two images.
        journal: open; what is found is added to it image by image.

    Raises:
        UnreadableImage: a file is missing or broken.
        InputError: an image does not fit into memory, see :meth:`FaceDetector.find`; or the journal's disk is full.
    """
    from rich.progress import track

    missing = [record for record in records if record.image_id not in journal.done]
    found = dict(journal.done)
    start = time.perf_counter()
    batches = track(_batches(missing, scale, workers), "detecting", len(missing), disable=not sys.stderr.isatty())
    for batch in batches:
        detections, passes = _detect(detector, batch, scale)
        now = time.perf_counter()
        item = Inferred(batch.image_ids[0], detections, passes, now - start)
        start = now
        journal.add(item)
        found[item.image_id] = item
    return {record.image_id: found[record.image_id] for record in records}


def _detect(
    detector: "FaceDetector", batch: EvalBatch, scale: TestScale | MultiScale
) -> tuple[Detections, list[PassRecord]]:
    if isinstance(scale, MultiScale):
        return scale.detect(detector, np.ascontiguousarray(batch.images[0].permute(1, 2, 0).numpy()))
    height, width = batch.size_hw[0].tolist()
    found, tiles = detector.detect_resized(batch.images, batch.scale_xy, height, width, scale.tile_pixels)
    rows, columns = batch.images.shape[-2:]
    step = PassRecord(rows / height, False, rows, columns, tiles, len(found.scores))
    return found, [step]


class _SmallEnough(Dataset[EvalBatch]):
    """As :class:`EvalDataset`, without the pixels of images that are too large to be handed over."""

    def __init__(self, images: EvalDataset) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> EvalBatch:
        batch = self._images[index]
        if batch.images.numel() > LARGEST_SHARED_BYTES:
            batch = batch._replace(images=torch.empty(0, dtype=torch.uint8))
        return in_shared_memory(batch)  # type: ignore[no-any-return]


def _batches(records: Sequence[ImageRecord], scale: TestScale | MultiScale, workers: int) -> Iterator[EvalBatch]:
    """One image a batch, in order."""
    # Several scales start from the image as it is.
    images = EvalDataset(records, scale if isinstance(scale, TestScale) else TestScale("original"))
    if not workers or not records:
        yield from (images[index] for index in range(len(images)))
        return
    for index, batch in enumerate(DataLoader(_SmallEnough(images), batch_size=None, num_workers=workers)):
        yield batch if batch.images.numel() else images[index]
