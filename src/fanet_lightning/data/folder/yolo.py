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
from fanet_lightning.data.folder.labels import PART_NAMES, FaceClasses, Place, boxes_of, finish, placed, read_text
from fanet_lightning.data.images import UnreadableImage, read_image_size
from fanet_lightning.data.records import Inventory, label_numbers

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
Points = Literal["landmarks", "polygon"]
# A coordinate of 1 written with few digits may be a little above; a pixel never is.
MOST = 1.01
# Text files that tools leave with the labels.
NO_LABELS = frozenset(("classes", "README", "README.dataset", "README.roboflow"))


@dataclass(frozen=True)
class YoloNames:
    """What data.yaml or classes.txt says.

    ``names``             by class number; empty where nothing is named.
    ``landmark_numbers``  after each box, None: unknown.
    ``folders``           of images, by ``train``, ``val`` …, as they stand in data.yaml.
    """

    names: dict[int, str] = field(default_factory=dict)
    landmark_numbers: int | None = None
    folders: dict[str, str] = field(default_factory=dict)

    def name_of(self, number: int) -> str | None:
        """The class's name. Where nothing is named, 0 is the face and the others have their number for a name."""
        if not self.names:
            return "face" if number == 0 else str(number)
        return self.names.get(number)


def read_names(root: Path) -> YoloNames:
    """What data.yaml in ``root`` says, or classes.txt.

    Raises:
        InputError: a data.yaml that is none.
    """
    path = next((root / name for name in YAML_FILES if (root / name).is_file()), None)
    if path is None:
        text = root / "classes.txt"
        lines = read_text(text).splitlines() if text.is_file() else []
        return YoloNames({number: line.strip() for number, line in enumerate(lines) if line.strip()})
    try:
        content: dict[str, Any] = yaml.safe_load(read_text(path))
        names = content.get("names") or {}
        named = {int(key): str(name) for key, name in (enumerate(names) if isinstance(names, list) else names.items())}
        points, each = content.get("kpt_shape") or (None, 1)
        base = Path(str(content.get("path") or "."))
        folders: dict[str, str] = {}
        for name in (name for own in PART_NAMES.values() for name in own if content.get(name)):
            if not isinstance(content[name], str) or content[name].endswith(".txt"):
                raise ValueError(f"{name}: {content[name]} is not a directory; lists are data.{name}.images=LIST")
            folders[name] = str(base / content[name])
        return YoloNames(named, None if points is None else int(points) * int(each), folders)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: {first_line(error)}; write names (a list, or number: name), train, val (a folder each) and "
            "kpt_shape ([points, numbers of each]) as Ultralytics has them"
        ) from error


def yolo_place(root: Path, part: str, folder: Path | None = None) -> Place | None:
    """The images of ``train``, ``val`` or, for a set without parts, ``all``, in ``folder`` if that is given; None if
    there are none."""
    folders = read_names(root).folders
    candidates = [root / "images", root] if part == "all" else []
    # Roboflow writes ../train/images of what is in train/images.
    for name in PART_NAMES[part]:
        if name in folders:
            steps = Path(folders[name]).parts
            candidates += [root.joinpath(*steps), root.joinpath(*(step for step in steps if step != ".."))]
    for name in PART_NAMES[part]:
        candidates += [root / "images" / name, root / name / "images", root / name]
    for own in candidates if folder is None else [folder]:
        if any(map(has_image_extension, walk_files(own))):
            return Place(part, _label_folder(own), (own,))
    return None


def _label_folder(images: Path) -> Path:
    """The folder of the text files: the images' with "labels" for the last "images", or the same."""
    parts = list(images.parts)
    if "images" in parts:
        position = len(parts) - 1 - parts[::-1].index("images")
        swapped = Path(*parts[:position], "labels", *parts[position + 1 :])
        return swapped if swapped.is_dir() else images
    return images


def read_yolo(place: Place, names: YoloNames, wanted: Sequence[str] | None, points: Points | None) -> Inventory:
    """The labels of a folder of images.

    Args:
        place: ``folders`` of the images; ``labels`` of the text files.
        names: what data.yaml or classes.txt says.
        wanted: classes that are faces, see :class:`FaceClasses`; without names the class 0 is taken as one.
        points: what the numbers after the fourth are.

    Raises:
        InputError: no label file that goes with an image.
    """
    files, texts = ImageFiles(place.folders[0]), place.labels
    inventory, classes = Inventory(place.part, files.folder), FaceClasses(wanted)
    written = label_files(texts, ".txt")
    # A file that fits an image to the letter is no other image's.
    stems = {without_extension(name) for name in files.names}
    folded = {stem.casefold(): stem for stem in written if stem not in stems}
    used = set()
    for name in files.names:
        stem = without_extension(name)
        own = stem if stem in written else folded.get(stem.casefold())
        if own is None:
            placed(inventory, files, name, boxes_of([]), [], label_path=files.folder / name)
        else:
            used.add(own)
            _read_file(written[own], files, name, inventory, classes, names, points)
    if not used:
        raise InputError(
            f"{texts} holds no label file for the {len(files.names)} images of {files.folder} ({len(written)} .txt "
            "files); labels have the images' names, data.train.labels and data.val.labels name their folder"
        )
    for own, path in written.items():
        if own not in used and path.stem not in NO_LABELS:
            reason = "is a label file without an image; remove it, or let the doctor make a cleaned copy (fix=true)"
            inventory.problem(path, None, path.name, reason)
    without = len(files.names) - len(used)
    if without:
        remark = f"{without} of {len(files.names)} images have no label file in {texts}: no face is in them"
        inventory.remarks.append(remark)
    if not names.names and wanted is None:
        inventory.remarks.append("no data.yaml or classes.txt names the classes: class 0 is taken for the face")
    return finish(inventory, files, texts, classes)


def _read_file(
    path: Path,
    files: ImageFiles,
    name: str,
    inventory: Inventory,
    classes: FaceClasses,
    names: YoloNames,
    points: Points | None,
) -> None:
    rows: list[list[float]] = []
    lines: list[int] = []
    try:
        text = read_text(path)
    except InputError as error:
        inventory.problem(path, None, path.name, str(error))
        text = ""
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            row, reason = _row(label_numbers(content) or [], names, points)
            if reason:
                inventory.problem(path, line, content, reason)
            elif classes.is_face(names.name_of(int(row[0])) or ""):
                rows.append(row[1:])
                lines.append(line)
    boxes = boxes_of(rows)
    if rows:
        try:
            height, width = read_image_size(files.folder / name)
            boxes = boxes * [width, height, width, height]
        except UnreadableImage:  # training replaces such an image, and the doctor names it
            boxes, lines = boxes[:0], []
    placed(inventory, files, name, boxes, np.zeros(len(boxes), np.bool_), label_path=path, box_lines=lines)


def _row(row: list[float], names: YoloNames, points: Points | None) -> tuple[list[float], str]:
    """The class and the normalized box x1 y1 x2 y2, and why it is no row."""
    number, values, extra = row[0] if row else -1, row[1:], names.landmark_numbers
    if len(values) < 4:
        return [], "is no row of numbers 'class x y w h'; set data.format to what the labels are"
    if not (0 <= number < 1e6 and number == int(number)):
        return [], f"has the class {number:g}, which is no whole number"
    polygon = len(values) > 4 and extra is None and points == "polygon"
    if polygon and (len(values) % 2 or len(values) < 6):
        return [], "is no polygon 'class x y x y …'"
    if len(values) > 4 and not polygon:
        if extra is not None and len(values) - 4 != extra:
            return [], f"has {len(values) - 4} numbers after the box, kpt_shape in data.yaml says {extra}"
        if extra is None and (points is None or len(values) == 5):
            return [], (
                f"has {len(values)} numbers after the class; say what they are: data.points=landmarks (after the box "
                "x y w h) or data.points=polygon (instead of it); a confidence is no label"
            )
        values = values[:4]
    wrong = next((value for value in values if not 0 <= value <= MOST), None)
    if wrong is not None:
        return [], f"has {wrong:g} where a normalized coordinate (0 … 1) is expected"
    if names.name_of(int(number)) is None:
        return [], f"has the class {int(number)}, which data.yaml or classes.txt does not name"
    if polygon:
        xs, ys = values[0::2], values[1::2]
        return [number, min(xs), min(ys), max(xs), max(ys)], ""
    x, y, width, height = values
    return [number, x - width / 2, y - height / 2, x + width / 2, y + height / 2], ""
