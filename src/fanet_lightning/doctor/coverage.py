"""Anchor coverage: how many anchors learn a face, by its size, before and after S3FD's second stage.

The faces are those that training sees: every sample's window is drawn as training draws it, from the same seeds, but
by geometry alone. Sizes of images come from their headers, and no pixel is read. :func:`whole_images` does the same
for images at their own size (the protocol ``original``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.data.records import Boxes
from fanet_lightning.data.transforms import TrainAugment, clean_boxes, sample_seed
from fanet_lightning.detect.tiling import map_shapes
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.matching import SECOND_STAGE_ANCHORS, match
from fanet_lightning.ops.structures import Targets

# A face's candidates take some 15 kB, an anchor 8 bytes.
_BATCH_IMAGES, _BATCH_ANCHORS = 32, 2_500_000


class SizedImage(NamedTuple):
    """An image as far as its geometry goes: pixels, upright (EXIF orientation applied), and its faces to train on.

    ``boxes_xyxy`` (F, 4), pixels, as the labels have them; clipped and cleaned here.
    """

    width: int
    height: int
    boxes_xyxy: Boxes


class CoverageTable(NamedTuple):
    """Coverage by face size: K buckets, two stages (S3FD's first alone, and with its second). NaN without a face.

    ``edges``             (K + 1,) pixels of the network's input; bucket k holds edges[k] ≤ size < edges[k + 1].
    ``faces``             (K,) int64, faces seen.
    ``anchors_per_face``  (2, K) mean number of anchors that learn a face.
    ``without``           (2, K) share of the faces that no anchor learns, 0 … 1.
    ``few``               (2, K) share of the faces that fewer than 6 anchors learn, those without one included.
    """

    edges: npt.NDArray[np.float64]
    faces: npt.NDArray[np.int64]
    anchors_per_face: npt.NDArray[np.float64]
    without: npt.NDArray[np.float64]
    few: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Coverage:
    """What became of the faces of all samples; ``title``: where they come from; ``threshold``: of the first stage.

    ``face_sizes``     (F,) float32, root of the area of each face seen, pixels of the network's input.
    ``anchors``        (2, F) int64: anchors that learn the face, before and after the second stage.
    ``samples``        crops, or images, that were looked at; ``empty_samples`` of them hold no face.
    ``labelled_faces`` of the images of these samples: what is not among F was cropped away or fell under ``min_face``.
    """

    title: str
    threshold: float
    face_sizes: npt.NDArray[np.float32]
    anchors: npt.NDArray[np.int64]
    samples: int
    empty_samples: int
    labelled_faces: int

    def by_size(self, edges: Sequence[float]) -> CoverageTable:
        """The table over buckets of face size, between ascending edges."""
        limits = np.asarray(edges, dtype=np.float64)
        count = len(limits) - 1
        bucket = np.searchsorted(limits, self.face_sizes, side="right") - 1
        inside = (bucket >= 0) & (bucket < count)
        bucket, anchors = bucket[inside], self.anchors[:, inside]
        faces = np.bincount(bucket, minlength=count)
        values = np.stack([anchors, anchors == 0, anchors < SECOND_STAGE_ANCHORS])
        sums = np.stack([np.bincount(bucket, own, count) for own in values.reshape(6, -1)]).reshape(3, 2, count)
        means = np.divide(sums, faces, out=np.full(sums.shape, np.nan), where=faces > 0)
        return CoverageTable(limits, faces, *means)


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
        augment, seed: the run's; the augmentation's ``size`` is the side of the network's input.
        threshold: IoU above which S3FD's first stage matches, in (0, 1).
    """
    clean = [None if image is None else _clean(image) for image in images]
    samples, labelled = [], 0
    for epoch in range(passes if any(clean) else 0):
        for index in range(len(clean)):
            after = (clean[place % len(clean)] for place in range(index, index + len(clean)))
            image = next(own for own in after if own is not None)
            boxes = augment.boxes(image.height, image.width, image.boxes_xyxy, sample_seed(seed, epoch, index))
            samples.append(SizedImage(augment.size, augment.size, boxes))
            labelled += len(image.boxes_xyxy)
    title = f"training crops at {augment.size} × {augment.size}" + (f", {passes} epochs" if passes > 1 else "")
    return _coverage(title, samples, threshold, labelled)


def whole_images(images: Iterable[SizedImage | None], *, threshold: float = 0.35) -> Coverage:
    """Coverage of whole images at their own size, uncropped. Unreadable ones (None) are left out."""
    clean = [_clean(image) for image in images if image is not None]
    return _coverage("whole images at their own size", clean, threshold, sum(len(own.boxes_xyxy) for own in clean))


def _clean(image: SizedImage) -> SizedImage:
    return image._replace(boxes_xyxy=clean_boxes(image.boxes_xyxy, image.height, image.width))


def _coverage(title: str, samples: Sequence[SizedImage], threshold: float, labelled: int) -> Coverage:
    # Maps of one shape share a grid, and a grid serves many images at once. Images without faces have no part in it.
    grids: dict[AnchorGrid, list[Boxes]] = {}
    for width, height, own in samples:
        if len(own):
            grids.setdefault(AnchorGrid(map_shapes(height, width)), []).append(own)
    sizes: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)]
    anchors: list[npt.NDArray[np.int64]] = [np.zeros((2, 0), np.int64)]
    for grid, images in grids.items():
        step = max(1, min(_BATCH_IMAGES, _BATCH_ANCHORS // grid.count))
        for batch in (images[start : start + step] for start in range(0, len(images), step)):
            boxes = np.concatenate(batch)
            sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
            sizes.append(np.sqrt(sides.prod(axis=1)).astype(np.float32))
            index = np.repeat(np.arange(len(batch)), [len(own) for own in batch])
            targets = Targets(torch.from_numpy(boxes), torch.from_numpy(index))
            # (B, A) face of each anchor, -1 for none, of either stage.
            owners = [match(grid, targets, len(batch), threshold=threshold, second_stage=second).face_index.numpy()
                      for second in (False, True)]  # fmt: skip
            anchors.append(np.stack([np.bincount(own[own >= 0], minlength=len(boxes)) for own in owners]))
    empty = sum(len(sample.boxes_xyxy) == 0 for sample in samples)
    return Coverage(
        title, threshold, np.concatenate(sizes), np.concatenate(anchors, axis=1), len(samples), empty, labelled
    )
