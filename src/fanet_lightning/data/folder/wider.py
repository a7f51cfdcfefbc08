"""WIDER FACE's text format for any folder, and its official layout.

WIDER FACE's text list, for any folder: a name, a count, and so many rows ``x y w h`` with or without attributes.

::

    0--Parade/a.jpg
    2
    449 330 122 149 0 0 0 0 0 0
    10 20 30 40

Columns 5 … 10 are ``blur expression illumination invalid occlusion pose``; ``invalid`` 1 is an ignored box. An image
without a face has the count 0, or the official row of zeros.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import find_listed, has_image_extension
from fanet_lightning.data.folder.labels import (
    PART_NAMES,
    Boxes64,
    ImageFiles,
    PartLabels,
    Place,
    PlacedImage,
    finish,
    matching,
    number,
    placed,
    read_text,
    shown,
    xyxy_from_xywh,
)
from fanet_lightning.data.records import ATTRIBUTES, Inventory, LabelledImage, LabelProblem
from fanet_lightning.data.wider_face import COLUMNS, AnnotationTable, Split, find_annotations, parse_mat

INVALID = 7


@dataclass
class WiderEntry:
    """One image of the list: ``name`` and its ``line``; per box the row ``x y w h``, ``invalid`` and its line."""

    name: str
    line: int
    rows_xywh: list[list[float]] = field(default_factory=list)
    invalid: list[bool] = field(default_factory=list)
    box_lines: list[int] = field(default_factory=list)

    @property
    def boxes_xyxy(self) -> Boxes64:
        """(F, 4) as written."""
        return xyxy_from_xywh(self.rows_xywh)


def parse_wider(
    text: str, path: Path, columns: tuple[int, ...] = (4, COLUMNS)
) -> tuple[list[WiderEntry], list[LabelProblem]]:
    """Read a list tolerantly: what is not understood becomes a problem, and reading goes on at the next name.

    Args:
        text: the file's content.
        path: for the problems.
        columns: how many numbers a row may have.
    """
    lines = [line.strip() for line in text.splitlines()]
    names = [index for index in range(len(lines)) if _is_name(lines, index)]
    entries: list[WiderEntry] = []
    problems: list[LabelProblem] = []
    stray = next((index for index in range(names[0] if names else len(lines)) if lines[index]), None)
    if stray is not None:
        problems.append(LabelProblem(path, stray + 1, shown(lines[stray]), "stands where an image's name is expected"))
    for start, end in zip(names, [*names[1:], len(lines)][: len(names)], strict=True):
        block = [(index, lines[index]) for index in range(start + 1, end) if lines[index]]
        entries.append(_entry(lines[start], start, block, path, columns, problems))
    return entries, problems


def _entry(
    name: str,
    start: int,
    block: list[tuple[int, str]],
    path: Path,
    columns: tuple[int, ...],
    problems: list[LabelProblem],
) -> WiderEntry:
    entry = WiderEntry(name, start + 1)
    count: int | None = None
    if block and _is_count(block[0][1]):
        count, rows = int(block[0][1]), block[1:]
    else:
        index, value = block[0] if block else (start, name)
        reason = f"stands where the number of faces of {name} goes" if block else "has no number of faces behind it"
        problems.append(LabelProblem(path, index + 1, shown(value), reason))
        rows = block
    if count is not None and count != len(rows) and not (count == 0 and len(rows) == 1 and _is_zeros(rows[0][1])):
        reason = f"faces are said of {name}, and {len(rows)} rows follow; correct the number"
        problems.append(LabelProblem(path, block[0][0] + 1, str(count), reason))
    if len(rows) == 1 and _is_zeros(rows[0][1]):  # the official way to say that there is no face
        return entry
    for index, line in rows:
        numbers, reason = _row(line, columns)
        if reason:
            problems.append(LabelProblem(path, index + 1, shown(line), reason))
            continue
        entry.rows_xywh.append(numbers[:4])
        entry.invalid.append(len(numbers) > INVALID and numbers[INVALID] != 0)
        entry.box_lines.append(index + 1)
    return entry


def _row(line: str, columns: tuple[int, ...]) -> tuple[list[float], str]:
    """The numbers, and why they are no row."""
    numbers = [value for value in map(number, line.split()) if value is not None]
    if len(numbers) != len(line.split()) or len(numbers) not in columns:
        return [], f"is no row of {' or '.join(str(width) for width in columns)} numbers 'x y w h …'"
    if not all(abs(value) <= 127 and value == round(value) for value in numbers[4:]):
        return [], "has attributes that are no small whole numbers"
    return numbers, ""


def _is_name(lines: list[str], index: int) -> bool:
    """A name ends like an image or has a folder; anything else that is no number is one if a count follows."""
    line = lines[index]
    if not line or all(number(field) is not None for field in line.split()):
        return False
    if has_image_extension(line):
        return True
    return index + 1 < len(lines) and _is_count(lines[index + 1])


def is_wider_list(text: str) -> bool:
    """Whether a text begins with a name and a count."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][:2]
    return len(lines) == 2 and _is_name(lines, 0) and _is_count(lines[1])


def _is_count(line: str) -> bool:
    return line.isascii() and line.isdigit()


def _is_zeros(line: str) -> bool:
    fields = line.split()
    return len(fields) in (4, COLUMNS) and all(number(field) == 0 for field in fields)


LISTS = ("wider_face_split/wider_face_{}_bbx_gt.txt", "wider_face_{}_bbx_gt.txt", "{}_bbx_gt.txt", "annotations/{}.txt",
         "labels/{}.txt", "{}/labels.txt", "{}.txt")  # fmt: skip
PILE_LISTS = ("labels.txt", "annotations.txt", "bbx_gt.txt", "annotations/labels.txt")


def wider_place(root: Path, part: str) -> Place | None:
    """The list of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none."""
    names = PILE_LISTS if part == "all" else [form.format(name) for name in PART_NAMES[part] for form in LISTS]
    path = next((path for name in names for path in sorted(matching(root, name)) if path.is_file()), None)
    return None if path is None else wider_folders(root, path, part)


def wider_folders(root: Path, labels: Path, part: str) -> Place:
    """The folders where the images of a list may lie."""
    names = PART_NAMES.get(part, ())
    own = [
        folder for name in names
        for folder in (root / f"WIDER_{name}" / "images", root / "images" / name, root / name / "images", root / name)
    ]  # fmt: skip
    return Place(labels, None, (*own, root / "images", root, labels.parent))


def read_wider(place: Place) -> PartLabels:
    """One list.

    Raises:
        InputError: it cannot be read, or names no image.
    """
    entries, problems = parse_wider(read_text(place.labels), place.labels)
    if not entries:
        first = f"line {problems[0].line}: {problems[0].value!r} {problems[0].reason}" if problems else "it is empty"
        raise InputError(f"{place.labels}, {first}; data.format=wider reads lists of a name, a count and rows x y w h")
    files = place.image_files([entry.name for entry in entries])
    labels = PartLabels(files.folder, problems=problems)
    for entry in entries:
        placed(
            labels, files, entry.name, entry.boxes_xyxy, entry.invalid, label_path=place.labels, line=entry.line,
            box_lines=entry.box_lines,
        )  # fmt: skip
    return finish(labels, files, place.labels)


def official_entries(source: Path, split: Split) -> tuple[list[WiderEntry], list[LabelProblem], Path]:
    """The rows of a split, tolerantly, and the file that they stand in.

    Raises:
        InputError: neither the text list nor the ``.mat`` file is there, or the latter is damaged.
    """
    found = find_annotations(source, f"wider_face_{split}_bbx_gt.txt")
    if found is not None:
        content, name = found
        return *parse_wider(content.decode("utf-8-sig", errors="replace"), Path(name), (COLUMNS,)), Path(name)
    found = find_annotations(source, f"wider_face_{split}.mat")
    if found is None:
        raise InputError(
            f"no wider_face_{split}_bbx_gt.txt or wider_face_{split}.mat in {source}; give the folder "
            "wider_face_split or the official wider_face_split.zip: data.annotations=PATH"
        )
    table = parse_mat(*found)
    return [_of_table(table, index) for index in range(len(table.image_ids))], [], Path(table.source)


def _of_table(table: AnnotationTable, index: int) -> WiderEntry:
    rows = table.of_image(index)
    if len(rows) == 1 and not rows.any():
        rows = rows[:0]
    invalid = rows[:, 4 + ATTRIBUTES.index("invalid")] != 0
    return WiderEntry(f"{table.image_ids[index]}.jpg", 0, rows[:, :4].tolist(), invalid.tolist())


def split_inventory(
    part: str, root: Path, split: Split, source: Path, images: Path | None = None, with_unlabelled: bool = True
) -> Inventory:
    """Everything that the labels of a split say, or of a list of images within it.

    An image that is not on disk is in the inventory all the same. A split without a folder of images has none at all.

    Args:
        part: ``train`` or ``val``.
        root, split, source: as :func:`~fanet_lightning.data.wider_face.load_wider_face` takes them.
        images: list of image names; its order is kept.
        with_unlabelled: also look for images that no label speaks of.

    Raises:
        InputError: the labels or the list are not there.
    """
    folder = root / f"WIDER_{split}" / "images"
    if not folder.is_dir():
        reason = f"is no folder, so there is nothing to say of the {part} part (expected <event>/<name>.jpg in it)"
        return Inventory(part, folder, [], [], [LabelProblem(folder, None, str(folder), reason)])
    entries, problems, path = official_entries(source, split)
    files = ImageFiles(folder)
    labelled = [_labelled(entry, files, path) for entry in entries]
    chosen: list[LabelledImage] = list(labelled)
    if images is not None:
        by_id: dict[str, list[PlacedImage]] = {}
        for image in labelled:
            by_id.setdefault(image.image_id, []).append(image)
        chosen = []
        for line, written, image_id in find_listed(images, by_id, folder=folder, root=root):
            if image_id is None:
                reason = f"is not among the {len(by_id)} images of the {split} split"
                problems.append(LabelProblem(images, line, written, reason))
            else:
                chosen += by_id[image_id]
    unlabelled: list[Path] = []
    if with_unlabelled:
        known = {image.path for image in labelled}
        unlabelled = [folder / name for name in files.names if folder / name not in known]
    return Inventory(part, folder, chosen, unlabelled, problems)


def _labelled(entry: WiderEntry, files: ImageFiles, path: Path) -> PlacedImage:
    # Ids as data/wider_face.py makes them; it finds files in another letter case too.
    image_id = entry.name.removesuffix(".jpg")
    name = files.find(f"{image_id}.jpg").name or f"{image_id}.jpg"
    first = entry.box_lines[0] if entry.box_lines else entry.line or None
    return PlacedImage(
        image_id, files.folder / name, entry.boxes_xyxy, np.array(entry.invalid, dtype=np.bool_),
        label_path=path, label_line=first, box_lines=tuple(entry.box_lines),
    )  # fmt: skip
