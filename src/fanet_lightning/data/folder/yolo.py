"""YOLO's text files in Ultralytics' layout: per image the rows ``class x y w h``, normalized by its width and height.

::

    ROOT/images/train/a.jpg, ROOT/labels/train/a.txt, ROOT/data.yaml    also ROOT/train/images, ROOT/train/labels
    ROOT/images/train/a.jpg, ROOT/images/train/a.txt                    side by side

x and y are the box's centre. No file, or an empty one: no face. They are of the image as it is shown (EXIF
orientation applied), as Ultralytics takes them. Rows of more than five numbers have landmarks after the box, or a
polygon instead of it; ``kpt_shape`` in data.yaml says so, else the caller does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import has_image_extension, walk_files, without_extension
from fanet_lightning.data.folder.files import ImageFiles, label_files
from fanet_lightning.data.folder.labels import (
    PART_NAMES,
    FaceClasses,
    PartLabels,
    Place,
    boxes_of,
    finish,
    placed,
    read_text,
)
from fanet_lightning.data.images import UnreadableImage, read_image_size
from fanet_lightning.data.records import LabelProblem, label_numbers, shown

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")


@dataclass(frozen=True)
class YoloNames:
    """``names`` by class number, ``landmark_numbers`` after each box (None: unknown), ``source`` for messages."""

    names: dict[int, str] = field(default_factory=dict)
    landmark_numbers: int | None = None
    source: str = "data.yaml"

    def name_of(self, number: int) -> str | None:
        """The class's name. Where nothing is named, 0 is the face and the others have their number for a name."""
        if not self.names:
            return "face" if number == 0 else str(number)
        return self.names.get(number)


def read_names(root: Path) -> tuple[YoloNames, dict[str, Any]]:
    """What data.yaml says, or classes.txt; and data.yaml itself, empty if there is none.

    Raises:
        InputError: a data.yaml that is none.
    """
    path = next((root / name for name in YAML_FILES if (root / name).is_file()), None)
    if path is None:
        text = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
        if text is None:
            return YoloNames(), {}
        lines = [line.strip() for line in read_text(text).splitlines()]
        return YoloNames({number: name for number, name in enumerate(lines) if name}, None, str(text)), {}
    try:
        content = yaml.safe_load(read_text(path))
        names = content.get("names") or {}
        named = {int(key): str(name) for key, name in (enumerate(names) if isinstance(names, list) else names.items())}
        points, each = content.get("kpt_shape") or (None, 1)
        return YoloNames(named, None if points is None else int(points) * int(each), str(path)), content
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: {first_line(error)}; write names (a list, or number: name) and kpt_shape ([points, numbers of "
            "each]) as Ultralytics has them"
        ) from error


def yolo_place(root: Path, part: str, content: dict[str, Any]) -> Place | None:
    """The images of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none.

    Raises:
        InputError: data.yaml names something else than a folder.
    """
    candidates: list[Path | None]
    if part == "all":
        candidates = [root / "images", root]
    else:
        candidates = [
            *(_of_yaml(root, name, content) for name in PART_NAMES[part] if content.get(name)),
            *(
                folder for name in PART_NAMES[part]
                for folder in (root / "images" / name, root / name / "images", root / name)
            ),
        ]  # fmt: skip
    folder = next((folder for folder in candidates if folder is not None and _holds_images(folder)), None)
    return None if folder is None else Place(folder, folder)


def _of_yaml(root: Path, key: str, content: dict[str, Any]) -> Path | None:
    value = content[key]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or value.endswith(".txt"):
        raise InputError(
            f"{key}: {value} in data.yaml of {root} is not a directory; set data.{key}.folder=DIR and, for a list of "
            f"names, data.{key}.images=LIST"
        )
    base = Path(str(content.get("path") or "."))
    inside = Path(*(step for step in Path(value).parts if step != ".."))  # Roboflow writes ../train/images
    for candidate in (root / base / value, root / value, root / inside):
        if candidate.is_dir():
            return candidate
    return None


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(map(has_image_extension, walk_files(folder)))


def label_folder(place: Place) -> Path:
    """The folder of the text files: the one given, or the images' with "labels" for the last "images", or the same."""
    assert place.folder is not None
    if place.labels != place.folder:
        return place.labels
    parts = list(place.folder.parts)
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] == "images":
            swapped = Path(*parts[:position], "labels", *parts[position + 1 :])
            if swapped.is_dir():
                return swapped
            break
    return place.folder


Points = Literal["landmarks", "polygon"]
# A coordinate of 1 written with few digits may be a little above; a pixel never is.
MOST = 1.01
# Text files that tools leave with the labels.
NO_LABELS = frozenset(("classes", "README", "README.dataset", "README.roboflow"))
ORPHAN = "is a label file without an image; remove it, or let the doctor make a cleaned copy (fix=true)"


def read_yolo(place: Place, names: YoloNames, wanted: Sequence[str] | None, points: Points | None) -> PartLabels:
    """The labels of a folder of images.

    Args:
        place: ``folder`` of the images; ``labels`` of the text files.
        names: what data.yaml or classes.txt says.
        wanted: classes that are faces, see :class:`FaceClasses`; without names the class 0 is taken as one.
        points: what the numbers after the fourth are.

    Raises:
        InputError: no image, or no label file that goes with one.
    """
    assert place.folder is not None
    files, texts = ImageFiles(place.folder), label_folder(place)
    stems = {without_extension(name) for name in files.names}
    labels = PartLabels(files.folder)
    written = {
        stem: path for stem, path in label_files(texts, ".txt").items()
        if stem in stems or stem.rpartition("/")[2] not in NO_LABELS
    }  # fmt: skip
    classes = FaceClasses(wanted, names.names.values())
    # A file that fits an image to the letter is no other image's.
    folded = {stem.casefold(): stem for stem in written if stem not in stems}
    used, without = set(), 0
    for name in files.names:
        stem = without_extension(name)
        own = stem if stem in written else folded.get(stem.casefold())
        if own is None:
            without += 1
            placed(labels, files, name, boxes_of([]), [], label_path=files.folder / name)
            continue
        used.add(own)
        if own != stem:
            labels.renamed.append((written[own].relative_to(texts).as_posix(), name))
        _read_file(written[own], files, name, labels, classes, names, points)
    if not used:
        raise InputError(
            f"{texts} holds no label file for the {len(files.names)} images of {place.folder} ({len(written)} .txt "
            "files); labels have the images' names, data.train.labels and data.val.labels name their folder"
        )
    labels.problems += [LabelProblem(path, None, path.name, ORPHAN) for own, path in written.items() if own not in used]
    if without:
        remark = f"{without} of {len(files.names)} images have no label file in {texts}: no face is in them"
        labels.remarks.append(remark)
    if not names.names and wanted is None:
        labels.remarks.append("no data.yaml or classes.txt names the classes: class 0 is taken for the face")
    return finish(labels, files, texts, classes)


def _read_file(
    path: Path,
    files: ImageFiles,
    name: str,
    labels: PartLabels,
    classes: FaceClasses,
    names: YoloNames,
    points: Points | None,
) -> None:
    rows: list[list[float]] = []
    lines: list[int] = []
    try:
        text = read_text(path)
    except InputError as error:
        labels.problem(path, None, "", str(error))
        text = ""
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            row, reason = _row(label_numbers(content) or [], names, points)
            if reason:
                labels.problem(path, line, content, reason)
            elif classes.is_face(names.name_of(int(row[0])) or ""):
                rows.append(row[1:])
                lines.append(line)
    boxes = boxes_of(rows)
    if rows:
        try:
            height, width = read_image_size(files.folder / name)
            boxes = boxes * [width, height, width, height]
        except UnreadableImage as error:
            reason = f"normalized boxes of {name}, whose size cannot be read ({shown(error.reason)})"
            labels.doubts.append(LabelProblem(path, lines[0], str(len(lines)), reason))
            boxes, lines = boxes[:0], []
    placed(labels, files, name, boxes, np.zeros(len(boxes), np.bool_), label_path=path, box_lines=lines)


def _row(row: list[float], names: YoloNames, points: Points | None) -> tuple[list[float], str]:
    """The class and the normalized box x1 y1 x2 y2, and why it is no row."""
    number, values, extra = row[0] if row else -1, row[1:], names.landmark_numbers
    if len(values) < 4:
        return [], "is no row of numbers 'class x y w h'; set data.format to what the labels are"
    if not (0 <= number < 1e6 and number == int(number)):
        return [], f"has the class {number:g}, which is no whole number"
    polygon = len(values) > 4 and extra is None and points == "polygon"
    if polygon:
        if len(values) % 2 or len(values) < 6:
            return [], "is no polygon 'class x y x y …'"
    elif len(values) > 4:
        if extra is not None and len(values) - 4 != extra:
            return [], f"has {len(values) - 4} numbers after the box, kpt_shape in {names.source} says {extra}"
        if extra is None and len(values) == 5:
            return [], "has a number after the box: a detection with its confidence is no label; take it out"
        if extra is None and points is None:
            return [], (
                f"has {len(values)} numbers after the class; say what they are: data.points=landmarks (after the box "
                "x y w h) or data.points=polygon (instead of it)"
            )
        values = values[:4]
    wrong = next((value for value in values if value < 0 or value > MOST), None)
    if wrong is not None:
        return (
            [],
            f"has {wrong:g} where a normalized coordinate is expected; divide pixels by the image's width or height",
        )
    if names.name_of(int(number)) is None:
        return [], f"has the class {int(number)}, which {names.source} does not name"
    if polygon:
        xs, ys = values[0::2], values[1::2]
        return [number, min(xs), min(ys), max(xs), max(ys)], ""
    x, y, width, height = values
    return [number, x - width / 2, y - height / 2, x + width / 2, y + height / 2], ""
