"""YOLO's text format and its layout on disk.

YOLO's text files in Ultralytics' layout: per image the rows ``class x y w h``, shares of its width and height.

::

    ROOT/images/train/a.jpg, ROOT/labels/train/a.txt, ROOT/data.yaml    also ROOT/train/images, ROOT/train/labels
    ROOT/images/train/a.jpg, ROOT/images/train/a.txt                    side by side

x and y are the box's centre. No file, or an empty one: no face. Shares are of the image as it is shown (EXIF
orientation applied), as Ultralytics takes them. Rows of more than five numbers have landmarks behind the box, or a
polygon instead of it; ``kpt_shape`` in data.yaml says so, else the caller does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import has_image_extension, without_extension
from fanet_lightning.data.folder.labels import (
    PART_NAMES,
    FaceClasses,
    ImageFiles,
    PartLabels,
    Place,
    boxes_of,
    finish,
    label_files,
    number,
    placed,
    read_text,
    shown,
    walk_files,
)
from fanet_lightning.data.images import UnreadableImage, read_image_size
from fanet_lightning.data.records import LabelProblem

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")


@dataclass(frozen=True)
class YoloNames:
    """``names`` by class number, ``landmark_numbers`` behind each box (None: unknown), ``source`` for messages."""

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
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML ({first_line(error)}); mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no keys; write train, val and names as Ultralytics has them")
    names = content.get("names") or {}
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        named = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{path}: names={names} is neither a list nor number: name") from None
    shape = content.get("kpt_shape")
    if shape is not None and not (
        isinstance(shape, list) and len(shape) == 2 and all(isinstance(side, int) for side in shape)
    ):
        raise InputError(f"{path}: kpt_shape={shape} is no list [points, numbers of each]")
    return YoloNames(named, None if shape is None else shape[0] * shape[1], str(path)), content


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
            f"{key}: {value} in data.yaml of {root} is no folder; set data.{key}.folder=DIR and, for a list of names, "
            f"data.{key}.images=LIST"
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
    """The folder of the text files: the one given, or the images' with "labels" for the last "images", or the same.

    Raises:
        InputError: the folder given is none.
    """
    assert place.folder is not None
    if place.labels != place.folder:
        if not place.labels.is_dir():
            raise InputError(f"{place.labels} is no folder; data.format=yolo reads a folder of .txt files")
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
# A share of 1 written with few digits may lie a little above; a pixel never does.
MOST = 1.01
# Text files that tools leave beside the labels.
NO_LABELS = frozenset(("classes", "README", "README.dataset", "README.roboflow"))
ORPHAN = "is a label file without an image; remove it, or let the doctor make a cleaned copy (fix=true)"


def read_yolo(place: Place, names: YoloNames, wanted: Sequence[str] | None, points: Points | None) -> PartLabels:
    """The labels of a folder of images.

    Args:
        place: ``folder`` of the images; ``labels`` of the text files.
        names: what data.yaml or classes.txt says.
        wanted: classes that are faces, see :class:`FaceClasses`; without names the class 0 is taken as one.
        points: what the numbers behind the fourth are.

    Raises:
        InputError: no folder, no image, or no label file at all.
    """
    if place.folder is None or not place.folder.is_dir():
        raise InputError(f"{place.folder} is no folder of images; set data.train.folder or data.val.folder")
    files = ImageFiles(place.folder)
    if not files.names:
        raise InputError(f"{place.folder} holds no image; set data.train.folder or data.val.folder")
    texts = label_folder(place)
    stems = {without_extension(name) for name in files.names}
    labels = PartLabels(files.folder)
    written: dict[str, Path] = {}
    for stem, path in label_files(texts, ".txt").items():
        if stem in stems or stem.rpartition("/")[2] not in NO_LABELS:
            written[stem] = path
    if not written:
        raise InputError(
            f"{texts} holds no label file for the {len(files.names)} images of {place.folder}; set "
            "data.train.labels or data.val.labels to the folder of the .txt files"
        )
    reader = _Reader(names, FaceClasses(wanted, names.names.values()), points, labels)
    # A file that fits an image to the letter is no other image's.
    folded = {stem.casefold(): stem for stem in written if stem not in stems}
    used = set()
    without = 0
    for name in files.names:
        stem = without_extension(name)
        own = stem if stem in written else folded.get(stem.casefold())
        if own is None:
            without += 1
            reader.add(files, name, None)
            continue
        used.add(own)
        if own != stem:
            labels.renamed.append((written[own].relative_to(texts).as_posix(), name))
        reader.add(files, name, written[own])
    if not used:
        raise InputError(
            f"{texts}: none of its {len(written)} .txt files, the first {next(iter(written))}.txt, goes with an image "
            f"of {place.folder}; labels have the images' names"
        )
    orphans = [path for stem, path in written.items() if stem not in used]
    labels.problems += [LabelProblem(path, None, path.name, ORPHAN) for path in orphans]
    if without:
        remark = f"{without} of {len(files.names)} images have no label file in {texts}: no face is in them"
        labels.remarks.append(remark)
    if not names.names and wanted is None:
        labels.remarks.append("no data.yaml or classes.txt names the classes: class 0 is taken for the face")
    finish(labels, files, texts, reader.classes)
    return labels


class _Reader:
    def __init__(self, names: YoloNames, classes: FaceClasses, points: Points | None, labels: PartLabels) -> None:
        self.classes = classes
        self._names = names
        self._points = points
        self._labels = labels

    def add(self, files: ImageFiles, name: str, path: Path | None) -> None:
        shares: list[list[float]] = []
        lines: list[int] = []
        text = "" if path is None else self._text(path)
        for line, content in enumerate(text.splitlines(), start=1):
            if path is None or not content.strip():
                continue
            row, reason = self._row(content.split())
            if reason:
                self._labels.problems.append(LabelProblem(path, line, shown(content), reason))
            elif row is not None:
                shares.append(row)
                lines.append(line)
        boxes = boxes_of([])
        if shares and path is not None:
            try:
                height, width = read_image_size(files.folder / name)
                boxes = boxes_of(shares) * [width, height, width, height]
            except UnreadableImage as error:
                reason = f"boxes are shares of {name}, whose size cannot be read ({shown(error.reason)})"
                self._labels.doubts.append(LabelProblem(path, lines[0], f"{len(lines)}", reason))
                lines = []
        placed(
            self._labels, files, name, boxes, [False] * len(boxes), label_path=path or files.folder / name,
            box_lines=lines,
        )  # fmt: skip

    def _text(self, path: Path) -> str:
        try:
            return read_text(path)
        except InputError as error:
            self._labels.problems.append(LabelProblem(path, None, "", str(error)))
            return ""

    def _row(self, fields: list[str]) -> tuple[list[float] | None, str]:
        """The box x1 y1 x2 y2 in shares, None for another class, and why it is no row."""
        numbers = [value for value in map(number, fields) if value is not None]
        if len(numbers) != len(fields) or not numbers:
            return None, "is no row of numbers 'class x y w h'; set data.format to what the labels are"
        if not (0 <= numbers[0] < 1e6 and numbers[0] == int(numbers[0])):
            return None, f"has the class {fields[0]}, which is no whole number"
        shares, reason = self._shares(numbers[1:])
        if reason:
            return None, reason
        high = [value for value in shares if value > MOST]
        if high:
            return None, f"has {high[0]:g} where a share of the image is expected; divide pixels by its width or height"
        if min(shares) < 0:
            return None, f"has {min(shares):g} where a share of the image is expected"
        name = self._names.name_of(int(numbers[0]))
        if name is None:
            return None, f"has the class {int(numbers[0])}, which {self._names.source} does not name"
        if not self.classes.is_face(name):
            return None, ""
        if self._polygon(len(numbers) - 1):
            xs, ys = shares[0::2], shares[1::2]
            return [min(xs), min(ys), max(xs), max(ys)], ""
        x, y, width, height = shares
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2], ""

    def _polygon(self, count: int) -> bool:
        return count > 4 and self._names.landmark_numbers is None and self._points == "polygon"

    def _shares(self, values: list[float]) -> tuple[list[float], str]:
        """What has to lie between 0 and 1: the box, or the whole polygon."""
        if len(values) < 4:
            return [], "is no row 'class x y w h'"
        if len(values) == 4:
            return values, ""
        extra = self._names.landmark_numbers
        if extra is not None:
            wrong = f"has {len(values) - 4} numbers behind the box, kpt_shape in {self._names.source} says {extra}"
            return (values[:4], "") if len(values) - 4 == extra else ([], wrong)
        if len(values) == 5:
            return [], "has a number behind the box: a detection with its confidence is no label; take it out"
        if self._points == "polygon":
            return (
                (values, "") if len(values) % 2 == 0 and len(values) >= 6 else ([], "is no polygon 'class x y x y …'")
            )
        if self._points == "landmarks":
            return values[:4], ""
        return [], (
            f"has {len(values)} numbers behind the class; say what they are: data.points=landmarks (behind the box "
            "x y w h) or data.points=polygon (instead of it)"
        )
