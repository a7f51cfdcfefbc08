"""Faces and detections of PASCAL face and AFW as arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.scoring.benchmark import DetectionsByImage
from fanet_lightning.scoring.selection import places_of

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]

# Face-eval's --minw and --minh; a face with a shorter side is ignored.
MIN_FACE_PX = 30
OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class PascalFaceGroundTruth:
    """The annotated faces of PASCAL face or AFW.

    ``image_ids``   file names up to the first dot, sorted, N of them, none twice.
    ``boxes_xyxy``  N arrays (F_i, 4) float64, pixels as in the file.
    ``flagged``     N arrays (F_i,) bool, the annotators' ignore flag.
    ``file_names``  N names of image files.
    ``labels``      "corrected" or "original".
    ``known_ids``   images of the whole set, where ``image_ids`` are a selection; detections there are skipped.
    ``warnings``    one line each about labels that are not the official ones.

    Raises:
        ValueError: lengths or shapes that do not fit, an image twice, a box that is not finite.
    """

    image_ids: tuple[str, ...]
    boxes_xyxy: Sequence[Float]
    flagged: Sequence[Bool]
    file_names: tuple[str, ...]
    labels: str = "corrected"
    known_ids: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images = len(self.image_ids)
        if {len(self.boxes_xyxy), len(self.flagged), len(self.file_names)} != {images}:
            raise ValueError(
                f"{images} image ids, boxes of {len(self.boxes_xyxy)}, flags of {len(self.flagged)} images and "
                f"{len(self.file_names)} file names"
            )
        if len(set(self.image_ids)) != images:
            raise ValueError("an image id twice")
        for image_id, boxes, flagged in zip(self.image_ids, self.boxes_xyxy, self.flagged, strict=True):
            if boxes.ndim != 2 or boxes.shape[1] != 4 or flagged.shape != (len(boxes),):
                raise ValueError(f"{image_id}: boxes {boxes.shape} and flags {flagged.shape}, need (F, 4) and (F,)")
            if not np.isfinite(boxes).all():
                raise ValueError(f"{image_id}: a box that is not finite")

    @property
    def counted(self) -> list[Bool]:
        """N arrays (F_i,) bool: neither flagged nor with a side below 30 px, x2 - x1 or y2 - y1 without the +1."""
        counted = []
        for boxes, flagged in zip(self.boxes_xyxy, self.flagged, strict=True):
            counted.append(~flagged & (np.abs(boxes[:, 2:] - boxes[:, :2]) >= MIN_FACE_PX).all(axis=1))
        return counted

    @property
    def faces(self) -> int:
        """Faces that count: the denominator of recall."""
        return sum(int(counted.sum()) for counted in self.counted)

    def select(self, image_ids: Iterable[str]) -> Self:
        """The ground truth of these images alone, sorted; the others stay known.

        Raises:
            ValueError: an image id that is not there, or one given twice.
        """
        wanted = tuple(sorted(image_ids))
        rows = places_of(wanted, self.image_ids)
        return type(self)(
            wanted,
            [self.boxes_xyxy[i] for i in rows],
            [self.flagged[i] for i in rows],
            tuple(self.file_names[i] for i in rows),
            self.labels,
            self.known_ids | frozenset(self.image_ids),
            self.warnings,
        )


@dataclass(frozen=True, eq=False)
class PascalFaceDetections:
    """The detections of a run in the order of their file, which decides among equal scores.

    ``image_ids``   N of them, as in the ground truth.
    ``image_index`` (D,) int64, the image of each detection.
    ``boxes_xyxy``  (D, 4) float64, pixels; x2 >= x1, y2 >= y1.
    ``scores``      (D,) float64, any scale.
    ``overlap``     a detection must overlap a face by more than this: 0.5, for Picasa 0.1.
    ``layout``      of the numbers in the file: ``x1 y1 x2 y2`` or ``x y w h``.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, a negative side, an index without an image.
    """

    image_ids: tuple[str, ...]
    image_index: Index
    boxes_xyxy: Float
    scores: Float
    overlap: float = OVERLAP
    layout: str = "x1 y1 x2 y2"

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes_xyxy.shape != (count, 4) or self.image_index.shape != (count,) or self.scores.ndim != 1:
            raise ValueError(
                f"boxes {self.boxes_xyxy.shape}, scores {self.scores.shape} and images {self.image_index.shape}, "
                "need (D, 4), (D,) and (D,)"
            )
        if not (np.isfinite(self.boxes_xyxy).all() and np.isfinite(self.scores).all()):
            raise ValueError("a detection that is not finite")
        if (self.boxes_xyxy[:, 2:] < self.boxes_xyxy[:, :2]).any():
            raise ValueError("a detection with a negative side")
        if count and not (self.image_index.min() >= 0 and self.image_index.max() < len(self.image_ids)):
            raise ValueError(f"image indices up to {self.image_index.max()} for {len(self.image_ids)} images")

    @classmethod
    def from_detections(cls, detections: DetectionsByImage, image_ids: Iterable[str]) -> Self:
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))`` image by image, in the order of ``image_ids``.

        Raises:
            ValueError: as the constructor; detections of an image outside ``image_ids``.
        """
        ids = tuple(image_ids)
        surplus = sorted(set(detections) - set(ids))
        if surplus:
            raise ValueError(f"detections of {len(surplus)} images outside the run, the first is '{surplus[0]}'")
        index, boxes, scores = [np.empty(0, np.int64)], [np.empty((0, 4))], [np.empty(0)]
        for i, image_id in enumerate(ids):
            if image_id in detections:
                own_boxes, own_scores = (np.asarray(part, np.float64) for part in detections[image_id])
                boxes.append(own_boxes.reshape(-1, 4))
                scores.append(own_scores.reshape(-1))
                index.append(np.full(len(scores[-1]), i, np.int64))
        return cls(ids, np.concatenate(index), np.concatenate(boxes), np.concatenate(scores))

    @property
    def missing(self) -> tuple[str, ...]:
        """Images without a detection; the formats cannot tell them from images that nobody looked at."""
        present = np.bincount(self.image_index, minlength=len(self.image_ids)) > 0
        return tuple(image_id for image_id, found in zip(self.image_ids, present, strict=True) if not found)
