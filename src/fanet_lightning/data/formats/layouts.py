"""How the parts of a data set are called on disk, and which files a pattern means."""

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


def matching(root: Path, pattern: str) -> Iterator[Path]:
    """What a glob pattern finds under ``root``, its suffix in any letter case, without hidden files and folders and
    without the record that a conversion leaves there."""
    stem, dot, suffix = pattern.rpartition(".")
    pattern = stem + dot + "".join(f"[{letter.lower()}{letter.upper()}]" for letter in suffix) if dot else pattern
    for path in root.glob(pattern):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.name != CONVERSION_RECORD:
            yield path
