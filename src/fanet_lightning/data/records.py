"""Records of annotated images, clean and complete, and the tolerant inventory of labels as they are written."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.files import decoded_text, walk_files

# In the order of the official rows, after x y w h.
ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")

Boxes = npt.NDArray[np.float32]


def _no_boxes() -> Boxes:
    return np.zeros((0, 4), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """An image on disk and its faces; boxes are float32 ``xyxy`` in pixels of the original image (see ``structures``).

    ``image_id``     official relative path without extension, ``event/name``.
    ``boxes_xyxy``   (F, 4), the usable faces: x2 > x1, y2 > y1, not flagged invalid. May reach out of the image.
    ``ignored_xyxy`` (K, 4), annotated boxes that are flagged invalid or have no area. Nothing trains on them.
    """

    image_id: str
    path: Path
    boxes_xyxy: Boxes = field(default_factory=_no_boxes)
    ignored_xyxy: Boxes = field(default_factory=_no_boxes)

    def __post_init__(self) -> None:
        if (self.boxes_xyxy[:, 2:] <= self.boxes_xyxy[:, :2]).any():
            raise ValueError(f"boxes_xyxy of {self.image_id} holds a box without area; such boxes go to ignored_xyxy")


def clean_record(
    image_id: str,
    path: Path,
    boxes_xyxy: npt.NDArray[np.float64],
    ignored: npt.NDArray[np.bool_] | Literal[False] = False,
) -> ImageRecord:
    """A record of (F, 4) boxes as labels have them: ``ignored`` (F,) ones and those without area become ignored."""
    narrow = boxes_xyxy.astype(np.float32)
    # After rounding to float32 a sliver of a box may have no side left, so the sides are taken there.
    usable = (narrow[:, 2:] > narrow[:, :2]).all(axis=1) & ~np.asarray(ignored)
    return ImageRecord(image_id, path, narrow[usable], narrow[~usable])


class PackedRecords:
    """What training reads of many records, in arrays, which worker processes share: reading an object of a list writes
    its reference count and so copies its page."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self.image_ids = np.array([record.image_id for record in records], dtype=np.str_)
        self._paths = np.array([str(record.path) for record in records], dtype=np.str_)
        self._boxes_xyxy = np.concatenate([_no_boxes(), *(record.boxes_xyxy for record in records)])
        self._starts = np.cumsum([0, *(len(record.boxes_xyxy) for record in records)])

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_id(self, index: int) -> str:
        return str(self.image_ids[index])

    def path(self, index: int) -> Path:
        return Path(str(self._paths[index]))

    def digest(self) -> dict[str, Any]:
        """The number of images, and SHA-256 over ids and file sizes (``files``) and usable boxes (``annotations``)."""
        sizes = np.array([Path(path).stat().st_size for path in self._paths], dtype=np.int64)
        contents = {"files": [self.image_ids, sizes], "annotations": [self.image_ids, self._starts, self._boxes_xyxy]}
        digests = {name: hashlib.sha256(b"".join(own.tobytes() for own in arrays)) for name, arrays in contents.items()}
        return {"images": len(self), **{name: digest.hexdigest() for name, digest in digests.items()}}

    def boxes_xyxy(self, index: int) -> Boxes:
        """(F, 4) float32, a copy that the caller may write into."""
        return self._boxes_xyxy[self._starts[index] : self._starts[index + 1]].copy()


def check_apart(train: set[Any], val: set[Any]) -> None:
    """Refuse images that are trained and validated on; both sets hold whatever tells images apart."""
    if shared := train & val:
        raise InputError(
            f"{len(shared)} images are both trained and validated on, the first is {min(shared)}; "
            "give data.train.images and data.val.images lists that have none in common"
        )


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image that labels speak of: ``image_id`` as in :class:`ImageRecord`, ``path`` where it should be.

    ``boxes_xyxy``  (F, 4) float64, pixels of the image, as written: may be empty, inverted, outside or not finite.
    ``ignored``     (F,) bool, flagged by the annotators as no face to train on (invalid, difficult, crowd).
    ``stated_wh``   width and height as the labels state them (COCO, VOC), or None.
    ``file_wh``     width and height of the image file as shown, where the labels state them too; or None.
    ``label_path``  the file that the boxes stand in; ``box_lines`` (F,) their 1-based lines, where it has lines.
    ``attributes``  (F, 6) int8, :data:`ATTRIBUTES` of the boxes as written, or None where the format has none.
    """

    image_id: str
    path: Path
    boxes_xyxy: npt.NDArray[np.float64]
    ignored: npt.NDArray[np.bool_]
    stated_wh: tuple[int, int] | None = None
    file_wh: tuple[int, int] | None = None
    label_path: Path | None = None
    box_lines: tuple[int, ...] = ()
    attributes: npt.NDArray[np.int8] | None = None


@dataclass(frozen=True)
class LabelProblem:
    """Something in a label file that is no label: ``line`` 1-based or None, ``value`` as it stands there."""

    path: Path
    line: int | None
    value: str
    reason: str


@dataclass(frozen=True, eq=False)
class Inventory:
    """One part (``train`` or ``val``) of a data set.

    ``folder``      the folder that the image ids are relative to.
    ``images``      in the labels' order, as often as the labels name them.
    ``unlabelled``  image files under ``folder`` that no label speaks of.
    ``problems``    rows and files that could not be read as labels; ``remarks`` what a person should know.
    """

    part: str
    folder: Path
    images: list[LabelledImage] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    problems: list[LabelProblem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def problem(self, path: Path, line: int | None, value: str, reason: str) -> None:
        """Add one; ``value`` is cut to a line's length."""
        self.problems.append(LabelProblem(path, line, shown(value), reason))


def strict_records(inventory: Inventory, whole: str, remedy: str) -> list[ImageRecord]:
    """The records of labels that are complete; ``whole`` is what images are missing of, ``remedy`` how to get them.

    InputError: the first problem; no image, one that is missing, named twice or of another size than its labels say; a
    box that is not finite or inverted.
    """
    if inventory.problems:
        first, more = inventory.problems[0], len(inventory.problems) - 1
        where = f"{first.path}, line {first.line}" if first.line is not None else str(first.path)
        others = f" (and {more} more; the doctor lists them all)" if more else ""
        raise InputError(f"{where}: {first.value!r} {first.reason}{others}")
    images = inventory.images
    check(images, f"{whole} has no labelled image in {inventory.folder}; add some, or name them in its list")
    # One listing: asking for each file is slow on network drives.
    present = {str(inventory.folder / name) for name in walk_files(inventory.folder)}
    refuse_missing([image.path for image in images if str(image.path) not in present], len(images), whole, remedy)
    counts = Counter(image.image_id for image in images)
    records = []
    for image in images:
        boxes, labels = image.boxes_xyxy, image.label_path
        if counts[image.image_id] > 1:
            paths = sorted({own.path.name for own in images if own.image_id == image.image_id})
            check(len(paths) == 1, f"{labels}: {' and '.join(paths)} differ in the ending alone; rename one")
            raise InputError(f"{labels} has the image {image.image_id} twice; keep one of its entries")
        wrong = np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)))
        for index in wrong[:1].tolist():
            where = f"line {image.box_lines[index]}" if image.box_lines else f"box {index + 1} of {image.path.name}"
            box = "x1={:g} y1={:g} x2={:g} y2={:g}".format(*boxes[index])
            raise InputError(f"{labels}, {where}: {box} is no box; correct or remove it")
        if image.file_wh is not None and image.stated_wh != image.file_wh:
            said, has = ("{} × {}".format(*size) for size in (image.stated_wh or (0, 0), image.file_wh))
            raise InputError(
                f"{labels}: the labels of {image.path} are for an image of {said} pixels, it has {has}; bring the "
                "images that were labelled, or where only the size is wrong, write 0 for it"
            )
        records.append(clean_record(image.image_id, image.path, boxes, image.ignored))
    return records


def refuse_missing(missing: Sequence[Path], count: int, whole: str, remedy: str) -> None:
    """Refuse a set of ``count`` images of which some are missing."""
    if missing:
        several = f"{len(missing)} of the {count} images of {whole}"
        raise InputError(f"{several} are missing, the first is {missing[0]}; {remedy}")


def read_text(path: Path | str, content: bytes | None = None) -> str:
    """A label file's text, UTF-8, -16 or -32; ``content`` where it has been read already."""
    try:
        return decoded_text(Path(path).read_bytes() if content is None else content)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text (byte {error.start}); give a file of labels") from error


def label_numbers(line: str) -> list[float] | None:
    """The numbers of a line, not finite ones included; None where one of its words is none."""
    try:
        # Python's float reads 1_000, no other reader does.
        return None if "_" in line else [float(word) for word in line.split()]
    except ValueError:
        return None


def shown(text: str, limit: int = 60) -> str:
    """A value for a message: one line, cut."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
