"""Anchor coverage: how many anchors learn a face, by its size, before and after S3FD's second stage.

The faces are those that training sees: every sample's window is drawn as training draws it, from the same seeds, but
by geometry alone. Sizes of images come from their headers, and no pixel is read. :func:`whole_images` does the same
for images at their own size (the protocol ``original``).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.data.records import Boxes
from fanet_lightning.data.transforms import TrainAugment, clean_boxes, sample_seed
from fanet_lightning.ops.anchors import SIZES, STRIDES, AnchorGrid
from fanet_lightning.ops.matching import SECOND_STAGE_ANCHORS, match
from fanet_lightning.ops.structures import Targets

# Pixels of the network's input, half-open; two per octave, so that faces between two anchor sizes stand apart.
BUCKET_EDGES = (0.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, np.inf)
# Second index of all arrays: S3FD's first stage alone, and with its second.
STAGES = ("before", "after")
# A face's candidates take some 15 kB, an anchor 8 bytes.
_BATCH_IMAGES, _BATCH_ANCHORS = 32, 2_500_000


class SizedImage(NamedTuple):
    """An image as far as its geometry goes: pixels, upright (EXIF orientation applied), and its faces to train on.

    ``boxes_xyxy`` (F, 4), as in :class:`~fanet_lightning.data.records.ImageRecord`; clipped and cleaned here.
    """

    width: int
    height: int
    boxes_xyxy: Boxes


@dataclass(frozen=True, eq=False)
class CoverageTable:
    """Coverage by face size: K buckets, L detection maps, two stages (:data:`STAGES`). NaN where there is no face.

    ``edges``             (K + 1,) pixels of the network's input; bucket k holds edges[k] ≤ size < edges[k + 1].
    ``faces``             (K,) int64, faces seen.
    ``anchors_per_face``  (2, K) mean number of anchors that learn a face.
    ``without``           (2, K) share of the faces that no anchor learns, 0 … 1.
    ``few``               (2, K) share of the faces that fewer than 6 anchors learn, those without one included.
    ``anchors_by_map``    (2, K, L) mean number of anchors per face from each map; sums to ``anchors_per_face``.
    """

    edges: npt.NDArray[np.float64]
    faces: npt.NDArray[np.int64]
    anchors_per_face: npt.NDArray[np.float64]
    without: npt.NDArray[np.float64]
    few: npt.NDArray[np.float64]
    anchors_by_map: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Coverage:
    """What became of the faces of all samples.

    ``title``          where the faces come from, for tables and figures.
    ``anchor_sizes``   (L) sides of the maps' anchors, pixels of the network's input.
    ``threshold``      of the first stage.
    ``face_sizes``     (F,) float32, root of the area of each face seen, pixels of the network's input.
    ``anchors``        (2, F, L) int32: anchors of each map that learn the face, before and after the second stage.
    ``samples``        crops, or images, that were looked at; ``empty_samples`` of them hold no face.
    ``labelled_faces`` faces that the images of these samples have; the difference to F was cropped away or fell under
                       ``min_face``.
    """

    title: str
    anchor_sizes: tuple[int, ...]
    threshold: float
    face_sizes: npt.NDArray[np.float32]
    anchors: npt.NDArray[np.int32]
    samples: int
    empty_samples: int
    labelled_faces: int

    def by_size(self, edges: Sequence[float] = BUCKET_EDGES) -> CoverageTable:
        """The table over buckets of face size, between ascending edges."""
        limits = np.asarray(edges, dtype=np.float64)
        bucket = np.searchsorted(limits, self.face_sizes, side="right") - 1
        inside = (bucket >= 0) & (bucket < len(limits) - 1)
        bucket, anchors = bucket[inside], self.anchors[:, inside]
        total = anchors.sum(axis=2)
        count = len(limits) - 1
        faces = np.bincount(bucket, minlength=count)

        def mean(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
            sums = np.bincount(bucket, weights=values, minlength=count)
            means: npt.NDArray[np.float64] = np.divide(sums, faces, out=np.full(count, np.nan), where=faces > 0)
            return means

        return CoverageTable(
            edges=limits,
            faces=faces.astype(np.int64),
            anchors_per_face=np.stack([mean(stage) for stage in total]),
            without=np.stack([mean(stage == 0) for stage in total]),
            few=np.stack([mean(stage < SECOND_STAGE_ANCHORS) for stage in total]),
            anchors_by_map=np.stack([np.stack([mean(of_map) for of_map in stage.T], axis=1) for stage in anchors]),
        )

    def overall(self) -> CoverageTable:
        """All faces in one bucket."""
        return self.by_size((0.0, np.inf))


def coverage(
    images: Sequence[SizedImage | None],
    augment: TrainAugment,
    *,
    passes: int = 1,
    seed: int = 0,
    threshold: float = 0.35,
) -> Coverage:
    """Coverage of the faces that training sees in its first ``passes`` epochs, at this crop policy.

    Args:
        images: the training images in the order of the training list, on which the seeds hang. None stands for an
            unreadable one: the next readable takes its place, as in training.
        augment: the run's augmentation; its ``size`` is the side of the network's input.
        passes: epochs, at least 1.
        seed: of the run.
        threshold: IoU above which S3FD's first stage matches, in (0, 1).
    """
    clean = [None if image is None else _clean(image) for image in images]
    samples = []
    for epoch in range(passes if any(image is not None for image in clean) else 0):
        for index in range(len(clean)):
            places = (i % len(clean) for i in range(index, index + len(clean)))
            image = next(own for place in places if (own := clean[place]) is not None)
            boxes = augment.boxes(image.height, image.width, image.boxes_xyxy, sample_seed(seed, epoch, index))
            samples.append(_Sample((augment.size, augment.size), boxes, len(image.boxes_xyxy)))
    title = f"training crops at {augment.size} × {augment.size}" + (f", {passes} epochs" if passes > 1 else "")
    return _coverage(title, samples, threshold)


def whole_images(images: Iterable[SizedImage | None], *, threshold: float = 0.35) -> Coverage:
    """Coverage of whole images at their own size, uncropped. Unreadable ones (None) are left out."""
    clean = [_clean(image) for image in images if image is not None]
    samples = [_Sample((image.height, image.width), image.boxes_xyxy, len(image.boxes_xyxy)) for image in clean]
    return _coverage("whole images at their own size", samples, threshold)


def _clean(image: SizedImage) -> SizedImage:
    return image._replace(boxes_xyxy=clean_boxes(image.boxes_xyxy, image.height, image.width))


class _Sample(NamedTuple):
    """An input of the network, its faces, and how many the image had."""

    size_hw: tuple[int, int]
    boxes_xyxy: Boxes
    labelled: int


def _coverage(title: str, samples: Sequence[_Sample], threshold: float) -> Coverage:
    # Maps of one shape share a grid, and a grid serves many images at once. Images without faces have no part in it.
    grids: dict[AnchorGrid, list[Boxes]] = {}
    for sample in samples:
        if len(sample.boxes_xyxy):
            height, width = sample.size_hw
            grid = AnchorGrid(tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES))
            grids.setdefault(grid, []).append(sample.boxes_xyxy)
    sizes: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)]
    anchors: list[npt.NDArray[np.int32]] = [np.zeros((2, 0, len(SIZES)), np.int32)]
    for grid, images in grids.items():
        step = max(1, min(_BATCH_IMAGES, _BATCH_ANCHORS // grid.count))
        for batch in (images[start : start + step] for start in range(0, len(images), step)):
            boxes = np.concatenate(batch)
            sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
            sizes.append(np.sqrt(sides.prod(axis=1)).astype(np.float32))
            anchors.append(_anchors_of_faces(grid, batch, boxes, threshold))
    return Coverage(
        title=title,
        anchor_sizes=SIZES,
        threshold=threshold,
        face_sizes=np.concatenate(sizes),
        anchors=np.concatenate(anchors, axis=1),
        samples=len(samples),
        empty_samples=sum(len(sample.boxes_xyxy) == 0 for sample in samples),
        labelled_faces=sum(sample.labelled for sample in samples),
    )


def _anchors_of_faces(
    grid: AnchorGrid, images: Sequence[Boxes], boxes: Boxes, threshold: float
) -> npt.NDArray[np.int32]:
    """(2, F, L): by stage and map the anchors that learn each face; ``boxes`` (F, 4) are those of all images."""
    index = np.repeat(np.arange(len(images)), [len(own) for own in images])
    targets = Targets(torch.from_numpy(boxes), torch.from_numpy(index))
    stages = []
    for second in (False, True):
        # (B, A) face of each anchor, -1 for none.
        owners = match(grid, targets, len(images), threshold=threshold, second_stage=second).face_index.numpy()
        maps = [owners[:, start:end] for start, end in pairwise((*grid.starts, grid.count))]
        stages.append(np.stack([np.bincount(own[own >= 0], minlength=len(boxes)) for own in maps], axis=1))
    return np.stack(stages).astype(np.int32)


def range_label(edges: npt.NDArray[np.float64], row: int) -> str:
    """A bucket of face sizes in words: ``< 4``, ``4–6``, ``≥ 512``."""
    low, high = edges[row], edges[row + 1]
    if low == 0:
        return f"< {high:g}"
    return f"≥ {low:g}" if np.isinf(high) else f"{low:g}–{high:g}"
