"""The labels of one part of a folder, in whichever format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from fanet_lightning.data.formats.coco import coco_folders, coco_place, read_coco
from fanet_lightning.data.formats.image_files import header_size_wh
from fanet_lightning.data.formats.labels import PartLabels, Place, PlacedImage
from fanet_lightning.data.formats.voc import read_voc, voc_folders, voc_place
from fanet_lightning.data.formats.wider import read_wider, wider_folders, wider_place
from fanet_lightning.data.formats.yolo import Points, read_yolo
from fanet_lightning.data.formats.yolo_layout import read_names, yolo_place
from fanet_lightning.data.inventory import LabelProblem
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.errors import InputError

# Where labels are looked for, for messages.
FORMATS = {
    "coco": "COCO (annotations/instances_train.json)",
    "yolo": "YOLO (images/train, labels/train)",
    "voc": "PASCAL VOC (Annotations/*.xml, ImageSets/Main/train.txt)",
    "wider": "a WIDER-style list (wider_face_split/wider_face_train_bbx_gt.txt, train.txt)",
}
# Images whose headers are read to find out whether the sizes of the boxes are corners.
SAMPLE = 100


def find_place(root: Path, format: str, part: str, given: Mapping[str, Any]) -> Place | None:
    """Where the labels of ``train``, ``val`` or ``all`` lie: as given, else in the format's usual layout.

    Raises:
        InputError: several files could be meant, or what is given is not there.
    """
    labels, folder = (None if given.get(key) is None else _under(root, given[key]) for key in ("labels", "folder"))
    if labels is not None and not labels.exists():
        raise InputError(f"data.{part}.labels={labels} does not exist; name the labels, relative to {root}")
    if folder is not None and not folder.is_dir():
        raise InputError(f"data.{part}.folder={folder} is no folder; name the folder of images, relative to {root}")
    if format == "yolo":
        place = yolo_place(root, part, read_names(root)[1]) if folder is None else Place(folder, folder)
        if labels is not None and place is None:
            raise InputError(f"data.{part}.labels={labels}: name the folder of the images too, data.{part}.folder=DIR")
        return place if place is None or labels is None else Place(labels, place.folder)
    if labels is None:
        found = {"coco": coco_place, "voc": voc_place, "wider": wider_place}[format](root, part)
    else:
        found = {"coco": coco_folders, "voc": voc_folders, "wider": wider_folders}[format](root, labels, part)
    if folder is None:
        return found
    if found is None:
        raise InputError(f"data.{part}.folder={folder}: name its labels too, data.{part}.labels=…")
    return Place(found.labels, folder, (), found.names)


def read_part(
    root: Path, format: str, place: Place, *, wanted: Sequence[str] | None, points: str | None = None, origin: int = 1
) -> PartLabels:
    """Read a part.

    Raises:
        InputError: see the format's reader.
    """
    if format != "voc" and format != "yolo" and place.labels.is_dir():
        raise InputError(f"{place.labels} is a folder; data.format={format} reads one file of labels")
    if format == "coco":
        labels = read_coco(place, wanted)
    elif format == "voc":
        labels = read_voc(place, wanted, origin)
    elif format == "yolo":
        labels = read_yolo(place, read_names(root)[0], wanted, cast("Points | None", points))
    else:
        if wanted is not None:
            raise InputError("data.classes: a WIDER-style list has no classes; leave it out")
        labels = read_wider(place)
    if format in ("coco", "wider"):
        corners = corners_problem(labels.images)
        labels.problems += [corners] if corners else []
    return labels


def strict_records(labels: PartLabels, part: str, root: Path) -> list[ImageRecord]:
    """Records of labels that are whole.

    Raises:
        InputError: the first problem, a missing image, an image named twice, a box that is none.
    """
    if labels.problems:
        first = labels.problems[0]
        where = f"{first.path}, line {first.line}" if first.line is not None else str(first.path)
        more = f" (and {len(labels.problems) - 1} more; the doctor lists them all)" if len(labels.problems) > 1 else ""
        raise InputError(f"{where}: {first.value!r} {first.reason}{more}")
    if not labels.images:
        raise InputError(f"{root} has no {part} part; set data.{part}.labels, or data.{part}.images=LIST")
    missing = [image.path for image in labels.images if not image.path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(labels.images)} images of the {part} part are missing, the first is "
            f"{missing[0]}; complete the folder, name those at hand with data.{part}.images=LIST, or let "
            "the doctor make a cleaned copy (fix=true)"
        )
    seen: set[str] = set()
    for image in labels.images:
        if image.image_id in seen:
            raise InputError(f"{image.label_path} has the image {image.path.name} twice; keep one of its entries")
        seen.add(image.image_id)
    return [_record(image) for image in labels.images]


def _record(image: PlacedImage) -> ImageRecord:
    boxes = image.boxes_xyxy
    wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(wrong):
        index = int(wrong[0])
        line = image.box_lines[index] if image.box_lines else image.label_line
        where = (
            f"{image.label_path}, line {line}" if line else f"{image.label_path}, box {index + 1} of {image.path.name}"
        )
        x1, y1, x2, y2 = boxes[index].tolist()
        raise InputError(
            f"{where}: x1={x1:g} y1={y1:g} x2={x2:g} y2={y2:g} is no box (its far side comes first, or a number is not "
            "finite); correct it, or remove it"
        )
    narrow = boxes.astype(np.float32)
    # After rounding to float32 a sliver of a box may have no side left, so the sides are taken there.
    usable = (narrow[:, 2:] > narrow[:, :2]).all(axis=1) & ~image.ignored
    return ImageRecord(image.image_id, image.path, narrow[usable], {}, narrow[~usable])


def corners_problem(images: Sequence[PlacedImage]) -> LabelProblem | None:
    """Rows that are x1 y1 x2 y2 where x y w h is expected, as far as that can be told.

    It is told where every row makes a box inside its image when read as corners, and at least half of them (and no
    fewer than two) leave the image by more than a tenth of their side when read as sides.
    """
    labelled = [image for image in images if len(image.boxes_xyxy)]
    rows = outside = 0
    first: tuple[PlacedImage, int] | None = None
    for image in labelled[:: max(1, len(labelled) // SAMPLE)]:
        size = image.stated_wh or _header_size(image.path)
        if size is None:
            continue
        corners = image.boxes_xyxy.copy()
        corners[:, 2:] -= corners[:, :2]  # the four numbers as they are written
        near, far = corners[:, :2], corners[:, 2:]
        if not ((far > near).all() and (near >= -1).all() and (far <= np.add(size, 1)).all()):
            return None
        leaving = np.any(image.boxes_xyxy[:, 2:] > size + 0.1 * far, axis=1)
        rows += len(leaving)
        outside += int(leaving.sum())
        if first is None and leaving.any():
            first = image, int(np.flatnonzero(leaving)[0])
    if first is None or outside < 2 or 2 * outside < rows:
        return None
    image, index = first
    x, y, x2, y2 = image.boxes_xyxy[index].tolist()
    value = f"{x:g} {y:g} {x2 - x:g} {y2 - y:g}"
    line = image.box_lines[index] if image.box_lines else image.label_line
    reason = (
        f"looks like x1 y1 x2 y2 where x y w h is expected, {outside} of {rows} boxes leave their image otherwise; "
        "subtract x1 and y1"
    )
    return LabelProblem(image.label_path or image.path, line, value, reason)


def _header_size(path: Path) -> tuple[int, int] | None:
    try:
        return header_size_wh(path)
    except OSError:
        return None


def _under(root: Path, given: Path | str) -> Path:
    path = Path(given)
    return path if path.is_absolute() or (path.exists() and not (root / path).exists()) else root / path
