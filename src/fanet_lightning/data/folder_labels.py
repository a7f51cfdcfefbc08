"""The labels of one part of a folder, in whichever format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from fanet_lightning.data.box_checks import corners_problem, inverted_problem
from fanet_lightning.data.formats.coco import coco_folders, coco_place, read_coco
from fanet_lightning.data.formats.image_files import ImageFiles, label_files
from fanet_lightning.data.formats.labels import PartLabels, Place, PlacedImage, number, read_text
from fanet_lightning.data.formats.layouts import matching
from fanet_lightning.data.formats.voc import read_voc, voc_folders, voc_place
from fanet_lightning.data.formats.wider import is_wider_list, read_wider, wider_folders, wider_place
from fanet_lightning.data.formats.yolo import Points, read_yolo
from fanet_lightning.data.formats.yolo_layout import YAML_FILES, label_folder, read_names, yolo_place
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.errors import InputError
from fanet_lightning.image_lists import without_extension

# Where labels are looked for, for messages.
FORMATS = {
    "coco": "COCO (annotations/instances_train.json)",
    "yolo": "YOLO (images/train, labels/train)",
    "voc": "PASCAL VOC (Annotations/*.xml, ImageSets/Main/train.txt)",
    "wider": "a WIDER-style list (wider_face_split/wider_face_train_bbx_gt.txt, train.txt)",
}
# What their boxes are, for messages.
BOXES = {
    "coco": "x y w h in pixels",
    "yolo": "centre, width and height as fractions of the image's sides",
    "voc": "xmin ymin xmax ymax in pixels",
    "wider": "x y w h in pixels",
}


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


def formats_found(root: Path, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """The formats whose files are where they are looked for, each with such a file; told by the files' content.

    Args:
        root: the folder of the set.
        given: ``labels`` and ``folder`` of each part, as for :func:`find_place`.
    """
    found: dict[str, Path] = {}
    told = [part for part, own in given.items() if own.get("labels") is not None]
    for format in FORMATS:
        for part in told or ("train", "val", "all"):
            try:
                place = find_place(root, format, part, given.get(part, {}))
                labels = None if place is None else _labels_of(format, place)
            except InputError:
                # Several files of COCO could be meant, or data.yaml is at fault: it is that format all the same.
                patterns = {} if told else {"coco": ("*.json", "annotations/*.json"), "yolo": YAML_FILES}
                labels = next((path for pattern in patterns.get(format, ()) for path in matching(root, pattern)), None)
            if labels is not None:
                found.setdefault(format, labels)
    return found


def _labels_of(format: str, place: Place) -> Path | None:
    """A file of labels of a format; None if there is none."""
    if format == "yolo":
        assert place.folder is not None
        stems = {without_extension(name) for name in ImageFiles(place.folder).names}
        own = [path for stem, path in label_files(label_folder(place), ".txt").items() if stem in stems]
        rows = ((path, next(filter(None, map(str.split, read_text(path).splitlines())), None)) for path in own)
        path, row = next(((path, row) for path, row in rows if row), (None, []))
        return path if row and len(row) >= 5 and all(number(field) is not None for field in row) else None
    if format == "voc":
        xml = next(iter(label_files(place.labels, ".xml").values()), None)
        return xml if xml is not None and b"<annotation" in xml.read_bytes().replace(b"\0", b"") else None
    if not place.labels.is_file():
        return None
    text = read_text(place.labels)
    if format == "coco":
        return place.labels if text.lstrip().startswith("{") and '"images"' in text else None
    return place.labels if is_wider_list(text) else None


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
    if format != "yolo":
        problem = inverted_problem(labels.images) if format == "voc" else corners_problem(labels.images)
        labels.problems += [problem] if problem else []
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
    others = [image for image in labels.images if image.frame and image.stated_wh != image.frame.upright_wh]
    if others:
        raise InputError(_another_frame(others, len(labels.images)))
    seen: set[str] = set()
    for image in labels.images:
        if image.image_id in seen:
            raise InputError(f"{image.label_path} has the image {image.path.name} twice; keep one of its entries")
        seen.add(image.image_id)
    return [_record(image) for image in labels.images]


def _another_frame(others: Sequence[PlacedImage], count: int) -> str:
    first = others[0]
    assert first.frame is not None and first.stated_wh is not None
    size = "{} × {}".format
    stored = f" (stored {size(*first.frame.stored_wh)}, turned by EXIF)" if first.frame.orientation >= 5 else ""
    more = f" (as {len(others)} of {count} images differ; the doctor lists them)" if len(others) > 1 else ""
    return (
        f"{first.label_path}: the labels of {first.path} are for an image of {size(*first.stated_wh)} pixels, it has "
        f"{size(*first.frame.upright_wh)}{stored}{more}; bring the images that were labelled, or scale the boxes and "
        "the width and height to these; where only width and height are wrong, write 0 for both"
    )


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


def _under(root: Path, given: Path | str) -> Path:
    path = Path(given)
    return path if path.is_absolute() or (path.exists() and not (root / path).exists()) else root / path
