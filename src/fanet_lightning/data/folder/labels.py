"""Labels of any format in memory: face classes, placed images, EXIF frames, boxes of another convention."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import without_extension
from fanet_lightning.data.folder.files import ImageFiles, relative
from fanet_lightning.data.images import ImageFrame, UnreadableImage, read_image_frame
from fanet_lightning.data.records import ImageRecord, Inventory, LabelledImage, label_text

# Taken as faces without being asked, in any letter case.
FACE_NAMES = frozenset(("face", "faces"))
PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "all": ()}
Boxes64 = npt.NDArray[np.float64]


class FaceClasses:
    """Counts boxes by class and says which are faces: those in ``wanted``, or by default those called "face".

    Args:
        wanted: names of the classes that are faces (in YOLO files without names, their numbers), or None.
    """

    def __init__(self, wanted: Sequence[str] | None) -> None:
        self._wanted = None if wanted is None else frozenset(wanted)
        self._counts: Counter[str] = Counter()

    def is_face(self, name: str) -> bool:
        """Count a box of this class; whether it is a face."""
        self._counts[name] += 1
        return name in self._wanted if self._wanted is not None else name.casefold() in FACE_NAMES

    def judge(self, inventory: Inventory, path: Path) -> None:
        """Add classes of which it is not known whether they are faces as a problem, and those left out as a remark."""
        if self._wanted is None:
            faces = [name for name in self._counts if name.casefold() in FACE_NAMES]
            if len(faces) < len(self._counts):
                reason = "are its classes, not all of them faces; say which are: data.classes=[NAME,…]"
                inventory.problem(path, None, _listed(self._counts), reason)
            return
        others = {name: count for name, count in self._counts.items() if name not in self._wanted}
        unknown = sorted(self._wanted - self._counts.keys())
        if others:
            inventory.remarks.append(f"left out, as data.classes has them not: {_listed(others)}")
        if unknown:
            inventory.remarks.append(f"no box is of the class {', '.join(unknown)}")


def _listed(counts: Mapping[str, int]) -> str:
    listed = Counter(counts).most_common(20)
    return ", ".join(f"{name} ({count} {'box' if count == 1 else 'boxes'})" for name, count in listed)


@dataclass(frozen=True)
class Place:
    """Where a part's labels are.

    ``part``     ``train``, ``val``, or ``all`` of a set without parts.
    ``labels``   file, or folder of files.
    ``folders``  of the images: candidates, of which the first is taken that holds the images.
    ``names``    VOC: the list of the part's images.
    """

    part: str
    labels: Path
    folders: tuple[Path, ...]
    names: Path | None = None

    def image_files(self, written: Sequence[str]) -> ImageFiles:
        """The listing of the folder that holds the most of these images."""
        candidates = [ImageFiles(folder) for folder in dict.fromkeys(self.folders) if folder.is_dir()]
        some = written[:: max(1, len(written) // 20)]
        return max(candidates, key=lambda files: sum(files.find(name).name is not None for name in some))


def place_of(root: Path, labels: Path, part: str, names: Path | None = None) -> Place:
    """The place of labels whose images may be in any of the usual folders, those of the part first."""
    own = [
        folder
        for name in (labels.stem.removeprefix("instances_"), *PART_NAMES[part])
        for folder in (root / f"WIDER_{name}" / "images", root / "images" / name, root / name / "images", root / name)
    ]
    with_them = labels if labels.is_dir() else labels.parent
    return Place(part, labels, (*own, root / "JPEGImages", root / "images", with_them, root), names)


def boxes_of(rows: Sequence[Sequence[float]]) -> Boxes64:
    """(F, 4) float64, also of none."""
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)


def read_text(path: Path) -> str:
    """A label file's text.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        return label_text(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file of labels") from error


def placed(
    inventory: Inventory,
    files: ImageFiles,
    written: str,
    boxes_xyxy: Boxes64,
    ignored: Sequence[bool] | npt.NDArray[np.bool_],
    *,
    label_path: Path,
    stated_wh: tuple[int, int] | None = None,
    box_lines: Sequence[int] = (),
    attributes: npt.NDArray[np.int8] | None = None,
) -> None:
    """Add an image to ``inventory``: the file that is meant by ``written``, or where it should be.

    Where ``stated_wh`` is the size of the stored pixels of a photo that its EXIF orientation turns by a quarter, its
    boxes are turned with it.
    """
    found, own = files.find(written), relative(written)
    if found.reason:
        inventory.problem(label_path, None, written, found.reason)
    if own is None:
        return
    name = found.name or own
    frame = None if stated_wh is None or found.name is None else _frame(files.folder / name)
    turned = frame is not None and stated_wh == frame.stored_wh != frame.upright_wh
    if turned and frame is not None:
        boxes_xyxy, stated_wh = upright_boxes(boxes_xyxy, frame), frame.upright_wh
    image = LabelledImage(
        without_extension(name), files.folder / name, boxes_xyxy, np.array(ignored, dtype=np.bool_), stated_wh,
        None if frame is None else frame.upright_wh, label_path, None if name == own else written, turned,
        tuple(box_lines), attributes,
    )  # fmt: skip
    inventory.images.append(image)


def _frame(path: Path) -> ImageFrame | None:
    try:
        return read_image_frame(path)
    except UnreadableImage:
        return None


def upright_boxes(boxes_xyxy: Boxes64, frame: ImageFrame) -> Boxes64:
    """(F, 4) boxes of a stored image that is turned by a quarter (EXIF 5 … 8) → as it is shown, as ``images.py`` turns
    its pixels."""
    y1, x1, y2, x2 = boxes_xyxy.T
    width, height = frame.upright_wh
    if frame.orientation in (6, 7):
        x1, x2 = width - x2, width - x1
    if frame.orientation in (7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1)


def finish(inventory: Inventory, files: ImageFiles, label_path: Path, classes: FaceClasses | None = None) -> Inventory:
    """What is judged once all is read: classes, names, turned photos, images that no label speaks of."""
    own = {image.path for image in inventory.images}
    inventory.unlabelled.extend(files.folder / name for name in files.names if files.folder / name not in own)
    turned = sum(image.turned for image in inventory.images)
    if turned:
        inventory.remarks.append(
            f"the boxes of {turned} photos are turned with them by their EXIF orientation, as the width and height in "
            "the labels are those before it"
        )
    renamed = [image for image in inventory.images if image.written]
    if renamed:
        inventory.remarks.append(
            f"{len(renamed)} image names of the labels are spelt otherwise on disk, the first {renamed[0].written}: "
            f"{renamed[0].path.relative_to(files.folder).as_posix()}"
        )
    if classes is not None:
        classes.judge(inventory, label_path)
    return inventory


# Images of a part whose headers are read for it.
SAMPLE = 100
# Conventions of the last pixel differ by one.
TOLERANCE_PIXELS = 1.0
# A fraction ends within the first pixel, and within the second where corners are taken for sides.
FRACTION_END = 2.0


class OddBoxes(NamedTuple):
    """``odd`` of ``total`` boxes are ``what``; ``first``: index of the first image that has one."""

    odd: int
    total: int
    what: str
    first: int

    @property
    def text(self) -> str:
        return f"{self.odd} of {self.total} boxes {self.what}"


def odd_boxes(boxes_xyxy: Sequence[npt.NDArray[Any]], sizes_wh: Sequence[tuple[int, int] | None]) -> OddBoxes | None:
    """Whether most boxes of a set are below a pixel, or most and no fewer than two leave their image.

    Args:
        boxes_xyxy: (F, 4) pixels, of each image.
        sizes_wh: of each image; None where it is unknown: then its boxes leave nothing.
    """
    small, leaving = [], []
    for boxes, size_wh in zip(boxes_xyxy, sizes_wh, strict=True):
        near, far = np.where(np.isfinite(boxes), boxes, 0).reshape(-1, 2, 2).transpose(1, 0, 2)
        small.append((far - near < 1).all(axis=1) | (far <= FRACTION_END).all(axis=1))
        out = (near < -TOLERANCE_PIXELS) | (far > np.add(size_wh or np.inf, TOLERANCE_PIXELS))
        leaving.append(out.any(axis=1) & (size_wh is not None))
    total = sum(map(len, boxes_xyxy))
    for flags, what, least in ((small, "are below a pixel, as fractions are", 1), (leaving, "leave their image", 2)):
        count = sum(int(own.sum()) for own in flags)
        if count >= least and 2 * count > total:
            return OddBoxes(count, total, what, next(index for index, own in enumerate(flags) if own.any()))
    return None


def warn_of_odd_boxes(records: Sequence[ImageRecord], expected: str) -> None:
    """One line on the error stream where most boxes of a part are odd; of a large part a sample is looked at.

    ``expected`` is what the format's rows are, for the message.
    """
    labelled = [record for record in records if len(record.boxes_xyxy)]
    labelled = labelled[:: max(1, len(labelled) // SAMPLE)]
    frames = [_frame(record.path) for record in labelled]
    odd = odd_boxes([own.boxes_xyxy for own in labelled], [frame and frame.upright_wh for frame in frames])
    if odd is not None:
        print(
            f"warning: {odd.text}, the first of {labelled[odd.first].path}: {expected} is expected; write the labels "
            "so, or see what the doctor shows of them",
            file=sys.stderr,
            flush=True,
        )
