"""PASCAL face and AFW: faces and detections as arrays, the official label files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from fanet_lightning.score.curves import Bools, Floats, Ints
from fanet_lightning.score.inputs import (
    DetectionsByImage,
    SelectableImages,
    load_mat,
    packed_detections,
    read_selection,
    reading,
)

# Face-eval's --minw and --minh; a face with a shorter side is ignored.
MIN_FACE_PX = 30
# A detection must overlap a face by more than this.
OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class PascalFaceGroundTruth(SelectableImages):
    """The annotated faces of PASCAL face or AFW.

    ``image_ids``   file names up to the first dot, sorted, N of them, none twice.
    ``boxes_xyxy``  N arrays (F_i, 4) float64, pixels as in the file.
    ``flagged``     N arrays (F_i,) bool, the annotators' ignore flag.
    ``file_names``  N names of image files.
    ``labels``      "corrected" or "original".
    ``warnings``    one line each about labels that are not the official ones.
    """

    image_ids: tuple[str, ...]
    boxes_xyxy: Sequence[Floats]
    flagged: Sequence[Bools]
    file_names: tuple[str, ...]
    labels: str = "corrected"
    whole_ids: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    per_image = ("boxes_xyxy", "flagged", "file_names")

    @property
    def counted(self) -> list[Bools]:
        """N arrays (F_i,) bool: neither flagged nor with a side below 30 px, x2 - x1 or y2 - y1 without the +1."""
        sides = [np.abs(boxes[:, 2:] - boxes[:, :2]) for boxes in self.boxes_xyxy]
        return [~flags & (own >= MIN_FACE_PX).all(axis=1) for flags, own in zip(self.flagged, sides, strict=True)]

    @property
    def faces(self) -> int:
        """Faces that count: the denominator of recall."""
        return sum(int(counted.sum()) for counted in self.counted)


@dataclass(frozen=True, eq=False)
class PascalFaceDetections:
    """The detections of a run in the order of their file, which decides among equal scores.

    ``image_ids``   N of them, as in the ground truth.
    ``image_index`` (D,) int64, the image of each detection.
    ``boxes_xyxy``  (D, 4) float64, pixels; x2 >= x1, y2 >= y1.
    ``scores``      (D,) float64, any scale.
    """

    image_ids: tuple[str, ...]
    image_index: Ints
    boxes_xyxy: Floats
    scores: Floats

    @classmethod
    def from_detections(cls, detections: DetectionsByImage, image_ids: Iterable[str]) -> Self:
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))`` by image, in the order of ``image_ids``. ValueError: as
        :func:`fanet_lightning.score.inputs.packed_detections`."""
        ids = tuple(image_ids)
        starts, boxes_xyxy, scores = packed_detections(detections, ids)
        return cls(ids, np.repeat(np.arange(len(ids)), np.diff(starts)), boxes_xyxy, scores)

    @property
    def missing(self) -> tuple[str, ...]:
        """Images without a detection; the formats cannot tell them from images that were not looked at."""
        present = set(self.image_index.tolist())
        return tuple(image_id for i, image_id in enumerate(self.image_ids) if i not in present)


class Release(NamedTuple):
    """An official label file: ``columns`` of its boxes, ``faces`` that count.

    Six columns are x1 y1 x2 y2, one that is not used, and the ignore flag; four are x1 y1 x2 y2.
    """

    labels: str
    file_name: str
    columns: int
    images: int
    faces: int


PASCAL_FACE: Mapping[str, Release] = {
    "corrected": Release("corrected", "Annotations_Face_PASCALLayout_large_fixed.mat", 6, 851, 1341),
    "original": Release("original", "Annotations_Face_PASCALLayout_large.mat", 4, 851, 1331),
}
AFW: Mapping[str, Release] = {"corrected": Release("corrected", "new_annotations_AFW.mat", 6, 205, 473)}


def image_key(name: str) -> str:
    """``2008_003880.jpg`` → ``2008_003880``: what face-eval knows an image by, the name up to the first dot.

    Folders before it, with either slash, do not count.
    """
    return name.replace("\\", "/").rpartition("/")[2].partition(".")[0]


def read_annotations(path: Path, release: Release, images: Path | None = None) -> PascalFaceGroundTruth:
    """Read a label file, or the official one of a folder; ``images`` is a list that restricts everything.

    Images come sorted. A file in the layout of ``release`` with another number of images or faces gives a warning:
    scores on it do not compare with published ones. InputError: a missing or damaged file, the layout of another
    release, an image twice, a listed image that is not in the file.
    """
    path = path / release.file_name if path.is_dir() else path
    remedy = f"give face-eval's {release.file_name} ({release.labels} labels) or the folder that holds it"
    content = load_mat(path, remedy)
    faces: dict[str, tuple[str, Floats]] = {}
    with reading(path, remedy):
        for image in np.asarray(content["Annotations"]).ravel():
            # Stored as uint8 and the like, whose differences overflow: float64 first.
            boxes = np.asarray(image["objects"]).astype(np.float64)
            boxes = boxes if boxes.ndim == 2 and boxes.size else np.empty((0, release.columns))
            name = str(np.asarray(image["imgname"]).ravel()[0])
            if boxes.shape[1] != release.columns or not np.isfinite(boxes).all() or image_key(name) in faces:
                raise ValueError(f"image {name} twice, or with a box that is not {release.columns} finite numbers")
            faces[image_key(name)] = name, boxes
    image_ids = tuple(sorted(faces))
    own = [faces[image_id][1] for image_id in image_ids]
    whole = PascalFaceGroundTruth(
        image_ids,
        [boxes[:, :4] for boxes in own],
        [(boxes[:, 5:] != 0).any(axis=1) for boxes in own],
        tuple(faces[image_id][0] for image_id in image_ids),
        release.labels,
    )
    if (len(image_ids), whole.faces) != (release.images, release.faces):
        warning = (
            f"{path.name} has {len(image_ids):,} images and {whole.faces:,} faces that count, the official file "
            f"{release.images:,} and {release.faces:,}; the scores do not compare with published ones"
        )
        whole = replace(whole, warnings=(warning,))
    return whole if images is None else whole.select(sorted(read_selection(images, image_ids)))
