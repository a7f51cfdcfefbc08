"""How the parts of a data set are called on disk, and what a folder looks like that is of another format."""

from collections.abc import Iterator
from pathlib import Path

from fanet_lightning.errors import InputError

# What `convert` writes beside the labels that it makes: no labels.
CONVERSION_RECORD = "converted.json"
PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}


def only_one(found: list[Path], part: str) -> Path:
    """
    Raises:
        InputError: there are several.
    """
    if len(found) > 1:
        key = "train" if part == "all" else part
        raise InputError(f"{found[0]} and {found[1]} may both hold the labels; choose with data.{key}.labels=FILE")
    return found[0]


def formats_seen(root: Path) -> list[str]:
    """The formats that the names of files under ``root`` speak for, at most two folders deep."""
    patterns = {
        "coco": ("*.json", "annotations/*.json", "*/_annotations.coco.json"),
        "yolo": ("data.yaml", "dataset.yaml", "labels/*.txt", "labels/*/*.txt", "*/labels/*.txt"),
        "voc": ("Annotations/*.xml", "annotations/*.xml", "*/*.xml", "*.xml"),
        "wider": ("wider_face_split", "*_bbx_gt.txt"),
    }
    return [name for name, own in patterns.items() if any(next(matching(root, pattern), None) for pattern in own)]


def matching(root: Path, pattern: str) -> Iterator[Path]:
    """What a glob pattern finds under ``root``, without the record that a conversion leaves there."""
    return (path for path in root.glob(pattern) if path.name != CONVERSION_RECORD)
