"""WIDER FACE on disk: annotations and images → records.

::

    ROOT/WIDER_train/images/<event>/<name>.jpg      also WIDER_val, WIDER_test
    ROOT/wider_face_split/wider_face_{train,val}_bbx_gt.txt, wider_face_test_filelist.txt; or wider_face_split.zip
    ROOT/eval_gt/*.mat                              the ground truth of the official evaluation

The text has, per image, a name, a count, and so many rows ``x y w h blur expression illumination invalid occlusion
pose``. Boxes are those of the files: x1 = x, y1 = y, x2 = x + w, y2 = y + h, pixels of the stored image.
"""

import shlex
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import find_listed, has_image_extension, nearest_name
from fanet_lightning.data.folder.parts import Boxes64, ImageFiles
from fanet_lightning.data.records import (
    ATTRIBUTES,
    ImageRecord,
    Inventory,
    LabelledImage,
    LabelProblem,
    label_numbers,
    read_text,
    shown,
    strict_records,
)
from fanet_lightning.score.inputs import reading
from fanet_lightning.score.wider_face.ground_truth import GroundTruth

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# x y w h and the six attributes of records.ATTRIBUTES.
COLUMNS = 10
INVALID = 4 + ATTRIBUTES.index("invalid")


def read_annotations(source: Path, split: Split) -> tuple[list[LabelledImage], list[LabelProblem]]:
    """Read the annotations of one split, see :func:`parse_list`; ``test`` has names only.

    ``source``: folder of the official files (or of ``wider_face_split``), or the official zip.
    """
    name = "wider_face_test_filelist.txt" if split == "test" else f"wider_face_{split}_bbx_gt.txt"
    with reading(source, "fetch it again"):
        base = zipfile.Path(source) if zipfile.is_zipfile(source) else source
        found = next((path for path in (base / name, base / "wider_face_split" / name) if path.is_file()), None)
        content = b"" if found is None else found.read_bytes()
    if found is None:
        raise InputError(
            f"no {name} in {source}; give the folder wider_face_split or the official wider_face_split.zip: "
            "data.annotations=PATH"
        )
    path = Path(str(found))
    text = read_text(path, content)
    if split == "test":
        return [_labelled(line.strip(), path, [], []) for line in text.splitlines() if line.strip()], []
    return parse_list(text, path, (COLUMNS,))


def parse_list(
    text: str, source: Path, widths: tuple[int, ...] = (4, COLUMNS)
) -> tuple[list[LabelledImage], list[LabelProblem]]:
    """Read a list tolerantly: what is not understood becomes a problem, and reading continues at the next name.

    An image without a face has a row of zeros in the official files, under the count 0 or 1; no row is read as well.
    ``widths``: how many numbers a row may have; attributes that are not there are 0. Image id and path are the names.
    """
    lines = [line.strip() for line in text.splitlines()]
    numbers = [label_numbers(line) for line in lines]
    names = [index for index in range(len(lines)) if numbers[index] is None and _is_name(lines, index)]
    problems: list[LabelProblem] = []

    def problem(index: int, reason: str) -> None:
        problems.append(LabelProblem(source, index + 1, shown(lines[index]), reason))

    stray = next((index for index in range(names[0] if names else len(lines)) if lines[index]), None)
    if stray is not None:
        problem(stray, "stands where an image's name is expected")
    elif not names:
        problems.append(LabelProblem(source, None, "", "names no image"))
    images: list[LabelledImage] = []
    for begin, end in zip(names, [*names[1:], len(lines)][: len(names)], strict=True):
        body, name = [index for index in range(begin + 1, end) if lines[index]], lines[begin]
        first, count = next(iter(body), begin), None
        if not body:
            problem(begin, "has no number of faces after it")
        elif not _is_count(lines[first]):
            problem(first, f"stands where the number of faces of {name} is expected")
        else:
            count = int(lines[body.pop(0)])
        sound = []
        for index in body:
            row = numbers[index]
            if row is None or len(row) not in widths:
                problem(index, f"is no row of {' or '.join(map(str, widths))} numbers 'x y w h …'")
            elif not all(abs(value) <= 127 and value == round(value) for value in row[4:]):
                problem(index, "has attributes that are no small whole numbers")
            else:
                sound.append(index)
        empty = len(body) == len(sound) == 1 and not any(numbers[body[0]] or ())
        if count not in (None, len(body)) and not (count == 0 and empty):
            problem(first, f"faces are said of {name}, and {len(body)} rows follow; correct the number")
        rows = [[*(numbers[index] or ()), *[0.0] * COLUMNS][:COLUMNS] for index in sound]
        images.append(_labelled(name, source, rows, [index + 1 for index in sound]))
    return images, problems


def _labelled(name: str, source: Path, rows: list[list[float]], lines: list[int]) -> LabelledImage:
    """One image with its faces. A single row of zeros is the official way to say that there is no face."""
    if len(rows) == 1 and not any(rows[0]):
        rows, lines = [], []
    table = np.array(rows, np.float64).reshape(-1, COLUMNS)
    boxes_xyxy = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
    return LabelledImage(
        name, Path(name), boxes_xyxy, table[:, INVALID] != 0, label_path=source, box_lines=tuple(lines),
        attributes=table[:, 4:].astype(np.int8),
    )  # fmt: skip


def label_rows(boxes_xyxy: Boxes64, ignored: npt.ArrayLike, attributes: npt.ArrayLike | None = None) -> Boxes64:
    """(F, 4) boxes, (F,) flags and (F, 6) :data:`ATTRIBUTES`, None: 0 → (F, 10) x y w h and attributes of a list."""
    rows = np.zeros((len(boxes_xyxy), COLUMNS))
    rows[:, :4] = boxes_xyxy
    rows[:, 2:4] -= rows[:, :2]
    if attributes is not None:
        rows[:, 4:] = attributes
    rows[:, INVALID] = ignored
    return rows


def list_entry(name: str, rows: Sequence[Sequence[float]]) -> str:
    """An image's lines in a list; without a face it has a row of zeros under the count 0, as in the official ones."""
    return "\n".join([name, str(len(rows)), *(" ".join(map(number_text, row)) for row in rows or [(0,) * COLUMNS]), ""])


def number_text(value: float) -> str:
    """Six decimals; whole numbers as such."""
    return f"{round(value, 6) + 0.0:.6f}".rstrip("0").rstrip(".")


def is_list(text: str) -> bool:
    """Whether a text begins with a name and a count."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][:2]
    return len(lines) == 2 and label_numbers(lines[0]) is None and _is_name(lines, 0) and _is_count(lines[1])


def _is_name(lines: list[str], index: int) -> bool:
    """Of what is no number, a name ends like an image; anything else is one if a count follows."""
    return has_image_extension(lines[index]) or (index + 1 < len(lines) and _is_count(lines[index + 1]))


def _is_count(line: str) -> bool:
    return line.isascii() and line.isdigit()


def split_inventory(
    part: str, root: Path, split: Split, images: Path | str | None = None, annotations: Path | None = None
) -> Inventory:
    """Everything that the labels say, also of images that are not there; see :func:`load_wider_face`."""
    folder = root / f"WIDER_{split}" / "images"
    source = annotations or root / "wider_face_split"
    if annotations is None and not source.is_dir() and source.with_suffix(".zip").is_file():
        source = source.with_suffix(".zip")
    for place, what, fetched in (
        (folder, "<event>/<name>.jpg in it", split),
        (source, f"wider_face_{split}_bbx_gt.txt in it; or set data.annotations=PATH", "annotations"),
    ):
        if not place.exists():
            raise InputError(
                f"no WIDER FACE here: {place} does not exist (expected {what}); get it with "
                f"{fetch_command(root, fetched)}, set data.root to where it is, or take data=synthetic"
            )
    (labelled, problems), files = read_annotations(source, split), ImageFiles(folder)
    inventory = Inventory(part, folder, problems=problems)
    for image in labelled:
        image_id = image.image_id.removesuffix(".jpg")
        found, reason = files.find(f"{image_id}.jpg")
        if reason:
            inventory.problem(folder, None, f"{image_id}.jpg", reason)
        inventory.images.append(replace(image, image_id=image_id, path=folder / (found or f"{image_id}.jpg")))
    files.put_unlabelled(inventory)
    return inventory if images is None else listed_part(inventory, images, root)


def listed_part(inventory: Inventory, images: Path | str, root: Path) -> Inventory:
    """The images of a list, in its order; a relative path that does not exist is looked for under ``root`` too."""
    path = Path(images) if Path(images).exists() else root / images
    by_id: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in inventory.images:
        by_id[image.image_id].append(image)
    chosen: list[LabelledImage] = []
    for line, written, image_id in find_listed(path, by_id, folder=inventory.folder, root=root):
        if image_id is None:
            near = nearest_name(written, by_id)
            raise InputError(
                f"{path}, line {line}: {written} is not among the {len(by_id)} labelled images of {inventory.folder}; "
                + (f"did you mean {near}?" if near else "correct the name, or take the line out")
            )
        chosen += by_id[image_id]
    return replace(inventory, images=chosen)


def load_wider_face(
    root: Path, split: Split, images: Path | str | None = None, annotations: Path | None = None
) -> list[ImageRecord]:
    """The records of a split, or of the images of a list (one a line) within it, each checked to be on disk.

    ``root`` holds ``WIDER_{split}``; ``annotations``: folder or zip, by default ``root/wider_face_split`` or ``….zip``.
    InputError: a missing folder or image, a malformed line, or a listed name that the split does not have.
    """
    root = Path(root)
    inventory = split_inventory(split, root, split, images, None if annotations is None else Path(annotations))
    remedy = f"complete the folder with {fetch_command(root, split)}, or name those at hand with data.val.images=LIST "
    return strict_records(
        inventory, f"the {split} split" if images is None else "the list", f"{remedy}or data.train.images=LIST"
    )


def fetch_command(root: Path, part: str) -> str:
    """The line that fetches a part (``train``, ``annotations``, ``ground_truth``, …), in quotes, for messages."""
    return f"'fanet download wider_face --root {shlex.quote(str(root))} --parts {part}'"


def all_usable_faces(records: list[ImageRecord]) -> GroundTruth:
    """Usable faces count; ignored ones stay in, so that a detection on one is no false positive."""
    boxes_xywh, counted = [], []
    for record in records:
        boxes = np.concatenate([record.boxes_xyxy, record.ignored_xyxy]).astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        boxes_xywh.append(boxes)
        counted.append(np.arange(len(boxes)) < len(record.boxes_xyxy))
    return GroundTruth(tuple(record.image_id for record in records), boxes_xywh, {"all": counted})
