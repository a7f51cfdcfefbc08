"""A copy of a data set without the faults that can be fixed safely. The original is never touched.

The copy has the official layout of WIDER FACE, train and val each with labels and images of their own, so that
``data=wider_face`` and ``data=folder data.format=wider`` both read it::

    FOLDER/WIDER_train/images/<image id>.jpg
    FOLDER/WIDER_val/images/<image id>.jpg
    FOLDER/wider_face_split/wider_face_{train,val}_bbx_gt.txt
    FOLDER/changes.csv
"""

import csv
import os
import shutil
from collections import defaultdict
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.files import check_replaceable, replaced_folder, without_extension
from fanet_lightning.data.records import Inventory, LabelledImage
from fanet_lightning.doctor.checks import fixed_boxes, frame_fault
from fanet_lightning.doctor.examine import Examined

CHANGES_FILE = "changes.csv"
# Images of the training part that these name are left out; in val every image that can be read stays.
_OUT_OF_TRAIN = {"leak": "also in val", "near_leak": "nearly the same in val", "duplicate": "the same file in train"}
_FAULTS = {
    "not_finite": "a coordinate is no number",
    "without_area": "no width or height",
    "outside": "outside the image",
    "doubled": "the same as another box",
}
_INVALID = 7  # column of the official rows


@dataclass(frozen=True)
class Change:
    """``before`` and ``after`` are names, or boxes as x1 y1 x2 y2.

    ``what``  ``image dropped``, ``image renamed``, ``labels joined``, ``box dropped``, ``box clipped``, ``row dropped``
              or ``left as it is``.
    """

    part: str
    image_id: str
    what: str
    reason: str
    before: str = ""
    after: str = ""


@dataclass
class CleanedCopy:
    """What was written: ``images`` and ``boxes`` per part, and all ``changes``."""

    folder: Path
    images: dict[str, int] = field(default_factory=dict)
    boxes: dict[str, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class _Kept:
    image: LabelledImage
    path: Path
    rows: list[list[float]]  # x y w h and six attributes


def write_cleaned_copy(folder: Path, examined: Examined) -> CleanedCopy:
    """Write the copy into ``folder``, which appears whole or not at all; an earlier copy there is replaced.

    Images are hard links where the file system allows, else copies. What happens to the labels:
    :func:`~fanet_lightning.doctor.checks.fixed_boxes`. Images that the labels name twice get all boxes.
    Attributes of WIDER FACE's faces are kept.

    Raises:
        InputError: it cannot be written.
    """
    copy = CleanedCopy(folder)
    kept = {inventory.part: _kept(inventory, examined, copy) for inventory in examined.inventories}
    with replaced_folder(folder) as temporary:
        for part, images in kept.items():
            _write_part(temporary, part, images)
            copy.images[part] = len(images)
            copy.boxes[part] = sum(len(own.rows) for own in images)
        _write_changes(temporary / CHANGES_FILE, copy.changes)
    return copy


def check_copy_folder(folder: Path) -> None:
    """
    Raises:
        InputError: ``folder`` holds something else than such a copy.
    """
    own = (CHANGES_FILE, "wider_face_split", "WIDER_train", "WIDER_val")
    check_replaceable(folder, "a cleaned copy", lambda entry: entry.name in own and (folder / CHANGES_FILE).is_file())


def _name(image: LabelledImage) -> PurePosixPath:
    """The image id with the file's extension in small letters."""
    name = image.path.name
    return PurePosixPath(image.image_id + name[len(without_extension(name)) :].lower())


def _kept(inventory: Inventory, examined: Examined, copy: CleanedCopy) -> list[_Kept]:
    part = inventory.part
    own = [finding for finding in examined.report.findings if finding.part == part]
    unwanted = {
        finding.image_id: f"{_OUT_OF_TRAIN[finding.kind]}: {finding.other_path}"
        for finding in reversed(own)
        if part == "train" and finding.kind in _OUT_OF_TRAIN
    }
    copy.changes += [
        Change(part, "", "row dropped", f"{finding.path}: {finding.detail}")
        for finding in own
        if finding.kind == "malformed_label"
    ]
    kept: list[_Kept] = []
    by_id: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in inventory.images:
        by_id[image.image_id].append(image)

    def change(image_id: str, what: str, reason: str, before: str = "", after: str = "") -> None:
        copy.changes.append(Change(part, image_id, what, reason, before, after))

    for image_id, images in by_id.items():
        image = images[0]
        facts = examined.facts_of(image)
        if facts is None:
            file = examined.files[image.path]
            change(image_id, "image dropped", f"{file.trouble}: {file.reason}")
            continue
        if PurePosixPath(image_id).is_absolute() or ".." in PurePosixPath(image_id).parts:
            unwanted[image_id] = "its name leads out of the folder"
        if image_id in unwanted:
            change(image_id, "image dropped", unwanted[image_id])
            continue
        if facts.path.name != _name(image).name:
            change(image_id, "image renamed", "letter case", facts.path.name, _name(image).name)
        if len(images) > 1:
            change(image_id, "labels joined", f"named {len(images)} times")
        fault = next((fault for own in images if (fault := frame_fault(own, facts)) is not None), None)
        if fault is not None:
            change(image_id, "image dropped" if part == "train" else "left as it is", f"{fault[0]}: {fault[1]}")
            if part == "train":
                continue
        rows = _rows(part, image_id, images, None if fault else facts.frame.upright_wh, copy)
        had = sum(int((~own.ignored).sum()) for own in images)
        if part == "train" and had and all(row[_INVALID] for row in rows):
            # Its faces are somewhere in it; as background it would teach that they are none.
            change(image_id, "image dropped", f"none of its {had} boxes could be kept")
            continue
        kept.append(_Kept(image, facts.path, rows))
    return kept


def _rows(
    part: str,
    image_id: str,
    images: list[LabelledImage],
    frame_wh: tuple[int, int] | None,
    copy: CleanedCopy,
) -> list[list[float]]:
    boxes = np.concatenate([image.boxes_xyxy for image in images])
    ignored = np.concatenate([image.ignored for image in images])
    attributes = np.concatenate(
        [np.zeros((len(own.boxes_xyxy), 6), int) if own.attributes is None else own.attributes for own in images]
    )
    fixed = fixed_boxes(boxes, ignored, frame_wh)
    for name, indices in fixed.dropped.items():
        copy.changes += [Change(part, image_id, "box dropped", _FAULTS[name], _box(boxes[i])) for i in indices]
    copy.changes += [
        Change(part, image_id, "box clipped", "reached out of the image", _box(boxes[i]), _box(box))
        for i, box in zip(fixed.source[fixed.clipped], fixed.boxes_xyxy[fixed.clipped], strict=True)
    ]
    rows = []
    for i, (x1, y1, x2, y2), flag in zip(fixed.source, fixed.boxes_xyxy.tolist(), fixed.ignored, strict=True):
        row = [x1, y1, x2 - x1, y2 - y1, *attributes[i].tolist()]
        row[_INVALID] = int(flag)
        rows.append(row)
    return rows


def _box(box: npt.NDArray[np.float64]) -> str:
    return " ".join(f"{value:.10g}" for value in box)


def _write_part(folder: Path, part: str, images: list[_Kept]) -> None:
    root = folder / f"WIDER_{part}" / "images"
    root.mkdir(parents=True)
    text: list[str] = []
    for own in images:
        name = _name(own.image)
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(own.path, target)
        text += [str(name), str(len(own.rows))]
        text += [" ".join(map(_number, row)) for row in own.rows] or [" ".join("0" * 10)]
    labels = folder / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"
    labels.parent.mkdir(exist_ok=True)
    labels.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")


def _number(value: float) -> str:
    # Whole pixels stay whole, as the official files have them.
    return str(int(value)) if value == int(value) else f"{value:.4f}"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _write_changes(path: Path, changes: list[Change]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([column.name for column in fields(Change)])
        for own in changes:
            rows.writerow([text.encode("utf-8", "backslashreplace").decode() for text in astuple(own)])
