"""A copy of a data set without the faults that can be fixed safely. The original is never touched.

The copy has the layout of WIDER FACE, train and val each with labels and images of their own; ``data=folder
data.format=wider`` reads it, where all images are ``.jpg`` ``data=wider_face`` too::

    FOLDER/WIDER_{train,val}/images/<image id>.<ending>
    FOLDER/wider_face_split/wider_face_{train,val}_bbx_gt.txt
    FOLDER/changes.csv
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fanet_lightning.cli.files import copied, replaced_folder, without_extension
from fanet_lightning.data.records import Inventory, LabelledImage
from fanet_lightning.data.wider_face import INVALID, label_rows, list_entry
from fanet_lightning.doctor.checks import fixed_boxes, frame_fault
from fanet_lightning.doctor.examine import Report

CHANGES_FILE = "changes.csv"
# What such a copy holds; a folder without the first is none.
OWN = (CHANGES_FILE, "wider_face_split", "WIDER_train", "WIDER_val")
# Images of the training part that these name are left out; in val every image that can be read stays.
_OUT_OF_TRAIN = {"leak": "also in val", "near_leak": "nearly the same in val", "duplicate": "the same file in train"}
_FAULTS = {
    "not_finite": "a coordinate is no number", "without_area": "no width or height", "outside": "outside the image",
    "doubled": "the same as another box",
}  # fmt: skip
# Names in no valid encoding come as surrogates, which a UTF-8 file cannot hold.
AS_CSV: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}


class Change(NamedTuple):
    """``what``: ``image dropped``, ``labels joined``, ``box dropped``, ``box clipped``, ``image renamed``, ``label
    problem`` or ``left as it is``. ``before`` and ``after`` are boxes as x1 y1 x2 y2."""

    part: str
    image_id: str
    what: str
    reason: str
    before: str = ""
    after: str = ""


def write_cleaned_copy(folder: Path, report: Report) -> tuple[int, int, int]:
    """Write the copy into ``folder``, which appears whole or not at all; an earlier copy there is replaced.

    Images are hard links where the file system allows, else copies. What happens to the labels:
    :func:`~fanet_lightning.doctor.checks.fixed_boxes`. Images that the labels name twice get all boxes.
    Attributes of WIDER FACE's faces are kept. Returns how many images and boxes it has, and how many changes.
    """
    images, boxes, changes = 0, 0, list[Change]()
    with replaced_folder(folder) as temporary:
        (temporary / "wider_face_split").mkdir()
        for inventory in report.inventories:
            part = inventory.part
            root = temporary / f"WIDER_{part}" / "images"
            root.mkdir(parents=True)
            entries: list[str] = []
            for image, rows in _kept(inventory, report, changes):
                # The image id with the file's extension in small letters.
                name = image.image_id + image.path.name[len(without_extension(image.path.name)) :].lower()
                copied(image.path, root / name, link=True)
                entries.append(list_entry(name, rows))
                images, boxes = images + 1, boxes + len(rows)
            labels = temporary / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"
            labels.write_text("".join(entries), encoding="utf-8")
        with (temporary / CHANGES_FILE).open("w", **AS_CSV) as file:
            csv.writer(file).writerows([Change._fields, *changes])
    return images, boxes, len(changes)


def _kept(
    inventory: Inventory, report: Report, changes: list[Change]
) -> Iterator[tuple[LabelledImage, list[list[float]]]]:
    """The images that stay and their rows: x y w h and six attributes."""
    part, unwanted, first = inventory.part, dict[Path, str](), dict[Path, Path]()
    for own in (finding for finding in report.findings if finding.part == part):
        if own.kind == "malformed_label":
            changes.append(Change(part, "", "label problem", f"{own.path}: {own.detail}"))
        elif part == "train" and own.kind in _OUT_OF_TRAIN:
            unwanted.setdefault(own.path, f"{_OUT_OF_TRAIN[own.kind]}: {own.other_path}")
            if own.kind == "duplicate" and own.other_path is not None:
                first[own.path] = own.other_path
    by_path: dict[Path, list[LabelledImage]] = defaultdict(list)
    for image in inventory.images:
        kept = by_path[first.get(image.path, image.path)]  # a copy's boxes go to the file that stays
        if image.path in first:
            changes.append(Change(part, image.image_id, "image dropped", unwanted[image.path]))
        if image.path not in first or not (kept and np.array_equal(kept[0].boxes_xyxy, image.boxes_xyxy)):
            kept.append(image)
    taken = set[str]()
    for images in by_path.values():
        image_id = images[0].image_id
        facts, path = report.files[images[0].path], PurePosixPath(image_id)
        faults = [] if facts.trouble else list(filter(None, (frame_fault(own, facts) for own in images)))
        fault = "{}: {}".format(*faults[0]) if faults else None
        reason = unwanted.get(images[0].path) or (fault if part == "train" else None)
        if facts.trouble:
            reason = f"{facts.trouble}: {facts.reason}"
        elif path.is_absolute() or ".." in path.parts:
            reason = "its name leads out of the folder"
        if reason is not None:
            changes.append(Change(part, image_id, "image dropped", reason))
            continue
        if image_id in taken:
            changes.append(Change(part, image_id, "image renamed", f"{images[0].path.name}: another has its name"))
            while image_id in taken:
                image_id += images[0].path.suffix.replace(".", "_")
            images[0] = replace(images[0], image_id=image_id)
        taken.add(image_id)
        if fault is not None:
            changes.append(Change(part, image_id, "left as it is", fault))
        if len(images) > 1:
            changes.append(Change(part, image_id, "labels joined", f"named {len(images)} times"))
        rows = _rows(part, images, None if fault else facts.frame.upright_wh, changes)
        had = sum(int((~own.ignored).sum()) for own in images)
        if part == "train" and had and all(row[INVALID] for row in rows):
            # Its faces are somewhere in it; as background it would teach that they are none.
            changes.append(Change(part, image_id, "image dropped", f"none of its {had} boxes could be kept"))
            continue
        yield images[0], rows


def _rows(
    part: str, images: list[LabelledImage], frame_wh: tuple[int, int] | None, changes: list[Change]
) -> list[list[float]]:
    image_id = images[0].image_id
    boxes = np.concatenate([image.boxes_xyxy for image in images])
    ignored = np.concatenate([image.ignored for image in images])
    attributes = np.concatenate(
        [np.zeros((len(own.boxes_xyxy), 6), int) if own.attributes is None else own.attributes for own in images]
    )
    fixed = fixed_boxes(boxes, ignored, frame_wh)
    for name, indices in fixed.dropped.items():
        changes += [Change(part, image_id, "box dropped", _FAULTS[name], box_text(boxes[i])) for i in indices]
    changes += [
        Change(part, image_id, "box clipped", "reached out of the image", box_text(boxes[i]), box_text(box))
        for i, box in zip(fixed.source[fixed.clipped], fixed.boxes_xyxy[fixed.clipped], strict=True)
    ]
    return label_rows(fixed.boxes_xyxy, fixed.ignored, attributes[fixed.source]).tolist()  # type: ignore[no-any-return]


def box_text(box: Iterable[float]) -> str:
    return " ".join(f"{value:.10g}" for value in box)
