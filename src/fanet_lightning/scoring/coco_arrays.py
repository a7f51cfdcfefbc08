"""Faces and detections of a COCO evaluation, packed image by image."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

# What a COCO file numbers its images and categories by.
FileId = int | str


@dataclass(frozen=True, eq=False)
class CocoGroundTruth:
    """The faces of the images of a run.

    ``image_ids``    N of them, none twice: the file name without its extension. Their order decides between equal
                     scores; a file is read in the order of its own image numbers, as pycocotools sorts them.
    ``categories``   names of the K categories that are scored.
    ``starts``       (N + 1,) int64: the faces of image i are ``starts[i]`` … ``starts[i + 1]``.
    ``boxes_xywh``   (F, 4) float64, pixels; sides may be 0, never negative.
    ``category``     (F,) int64, index into ``categories``.
    ``areas``        (F,) float64 ≥ 0, square pixels, what the area ranges look at: the file's ``area``, which may be
                     that of a mask.
    ``crowd``        (F,) bool, the file's ``iscrowd``.
    ``file_images``  the file's number of an image → image id, of all images in the file, scored or not.
    ``file_categories`` the file's number of a category → name, likewise.
    ``sizes_wh``     (N, 2) float64, width and height in pixels as the file states them, NaN where not; None: nowhere.

    Raises:
        ValueError: lengths or shapes that do not fit, an image twice, a box that is not finite or has a negative side.
    """

    image_ids: tuple[str, ...]
    categories: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    category: npt.NDArray[np.int64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    file_images: Mapping[FileId, str] = field(default_factory=dict)
    file_categories: Mapping[FileId, str] = field(default_factory=dict)
    sizes_wh: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        faces = len(self.boxes_xywh)
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError("an image id twice")
        _check_packed(self.starts, len(self.image_ids), faces)
        if self.boxes_xywh.shape != (faces, 4) or not _are_boxes(self.boxes_xywh):
            raise ValueError(f"boxes_xywh {self.boxes_xywh.shape}, need (F, 4), finite, no side negative")
        for name in ("category", "areas", "crowd"):
            if getattr(self, name).shape != (faces,):
                raise ValueError(f"{name} {getattr(self, name).shape}, need ({faces},)")
        if not self.file_images:
            object.__setattr__(self, "file_images", dict(enumerate(self.image_ids, start=1)))
        if not self.file_categories:
            object.__setattr__(self, "file_categories", dict(enumerate(self.categories, start=1)))

    @classmethod
    def from_faces(
        cls, faces: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike | None]], category: str = "face"
    ) -> Self:
        """Pack ``image_id → (boxes_xyxy (F, 4), crowd (F,) or None)``, areas taken from the boxes.

        Raises:
            ValueError: as the class; or flags that are not one per box.
        """
        boxes = [_xywh(image_id, own) for image_id, (own, _) in faces.items()]
        flags = [
            np.zeros(len(xywh), np.bool_) if crowd is None else np.asarray(crowd, np.bool_).reshape(-1)
            for xywh, (_, crowd) in zip(boxes, faces.values(), strict=True)
        ]
        for image_id, xywh, crowd in zip(faces, boxes, flags, strict=True):
            if len(xywh) != len(crowd):
                raise ValueError(f"{image_id}: {len(xywh)} faces but {len(crowd)} flags")
        packed = np.concatenate([np.empty((0, 4)), *boxes])
        return cls(
            tuple(faces),
            (category,),
            np.cumsum([0, *(len(xywh) for xywh in boxes)], dtype=np.int64),
            packed,
            np.zeros(len(packed), np.int64),
            packed[:, 2] * packed[:, 3],
            np.concatenate([np.zeros(0, np.bool_), *flags]),
        )

    def select(self, image_ids: Iterable[str]) -> Self:
        """The ground truth of these images alone; their order stays that of the whole.

        Raises:
            ValueError: an image id that is not there.
        """
        wanted = set(image_ids)
        unknown = wanted - set(self.image_ids)
        if unknown:
            raise ValueError(f"{len(unknown)} image ids are not in the ground truth, the first is '{min(unknown)}'")
        images = [i for i, image_id in enumerate(self.image_ids) if image_id in wanted]
        counts = np.diff(self.starts)
        faces = np.isin(np.repeat(np.arange(len(self.image_ids)), counts), images)
        return type(self)(
            tuple(self.image_ids[i] for i in images),
            self.categories,
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[images], dtype=np.int64)]),
            self.boxes_xywh[faces],
            self.category[faces],
            self.areas[faces],
            self.crowd[faces],
            self.file_images,
            self.file_categories,
            None if self.sizes_wh is None else self.sizes_wh[images],
        )


@dataclass(frozen=True, eq=False)
class CocoDetections:
    """The rows of all images, packed image by image in the order of the ground truth.

    ``starts``     (N + 1,) int64: the rows of image i are ``starts[i]`` … ``starts[i + 1]``.
    ``boxes_xywh`` (R, 4) float64, pixels of the original image.
    ``scores``     (R,) float64, in any order.
    ``category``   (R,) int64, index into the ground truth's categories.
    ``missing``    images without a row.
    ``warnings``   one line each about the file that they are from.

    Raises:
        ValueError: lengths or shapes that do not fit, numbers that are not finite, negative sides.
    """

    starts: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    category: npt.NDArray[np.int64]
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = len(self.scores)
        _check_packed(self.starts, len(self.starts) - 1, rows)
        if self.boxes_xywh.shape != (rows, 4) or self.category.shape != (rows,):
            raise ValueError(f"boxes {self.boxes_xywh.shape}, categories {self.category.shape}, scores ({rows},)")
        if not _are_boxes(self.boxes_xywh) or not np.isfinite(self.scores).all():
            raise ValueError("a detection that is not finite or has a negative side")

    @classmethod
    def from_detections(
        cls,
        detections: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
        ground_truth: CocoGroundTruth,
        category: int = 0,
    ) -> Self:
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))``; an image that is not there has no detection.

        Raises:
            ValueError: as the class; or an image outside ``ground_truth``.
        """
        known = set(ground_truth.image_ids)
        surplus = [image_id for image_id in detections if image_id not in known]
        if surplus:
            raise ValueError(f"detections of {len(surplus)} images outside the run, the first is '{surplus[0]}'")
        boxes, scores, counts = [np.empty((0, 4))], [np.empty(0)], []
        for image_id in ground_truth.image_ids:
            own_boxes, own_scores = detections.get(image_id, ((), ()))
            boxes.append(_xywh(image_id, own_boxes))
            scores.append(np.asarray(own_scores, np.float64).reshape(-1))
            counts.append(len(boxes[-1]))
            if len(scores[-1]) != counts[-1]:
                raise ValueError(f"{image_id}: {counts[-1]} boxes but {len(scores[-1])} scores")
        packed = np.concatenate(scores)
        return cls(
            np.cumsum([0, *counts], dtype=np.int64),
            np.concatenate(boxes),
            packed,
            np.full(len(packed), category, np.int64),
            tuple(image_id for image_id, count in zip(ground_truth.image_ids, counts, strict=True) if not count),
        )

    def missing_line(self) -> str | None:
        """One line about the images without a row, or None."""
        if not self.missing:
            return None
        some = ", ".join(self.missing[:3]) + (", …" if len(self.missing) > 3 else "")
        return f"{len(self.missing)} of {len(self.starts) - 1} images have no predictions and count as empty: {some}"


def _xywh(image_id: str, boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    xywh = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    if not _are_boxes(xywh):
        raise ValueError(f"{image_id}: a box that is not finite or has a negative side")
    return xywh


def _are_boxes(xywh: npt.NDArray[np.float64]) -> bool:
    return bool(np.isfinite(xywh).all() and (xywh[:, 2:] >= 0).all())


def _check_packed(starts: npt.NDArray[np.int64], images: int, total: int) -> None:
    if starts.shape != (images + 1,) or starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        raise ValueError(f"starts of {images} images must rise from 0 to {total}")
