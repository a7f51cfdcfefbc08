"""Where YOLO data lie: data.yaml, folders of images and of labels."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fanet_lightning.data.formats.image_files import walk_files
from fanet_lightning.data.formats.labels import Place, read_text
from fanet_lightning.data.formats.layouts import PART_NAMES
from fanet_lightning.errors import InputError, first_line
from fanet_lightning.image_lists import has_image_extension

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
