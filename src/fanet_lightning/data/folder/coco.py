"""COCO's object-detection JSON: ``images``, ``annotations`` with ``bbox`` x y w h, ``categories``.

::

    ROOT/annotations/instances_train.json, instances_val.json    also …_train2017.json, train.json
    ROOT/train/_annotations.coco.json                            images beside it
    ROOT/images/train, ROOT/train, ROOT/images, …                the first folder that holds the images

Boxes are 0-based pixels, x2 = x + w, y2 = y + h. ``iscrowd`` 1 (and ``ignore`` 1) is an ignored box.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.labels import (
    PART_NAMES,
    FaceClasses,
    PartLabels,
    Place,
    finish,
    matching,
    only_one,
    placed,
    read_text,
    shown,
    xyxy_from_xywh,
)
from fanet_lightning.data.records import LabelProblem

PILE_FILES = (
    "_annotations.coco.json", "annotations/instances.json", "annotations/annotations.json", "annotations.json",
    "instances.json", "annotations/*.json", "*.json",
)  # fmt: skip


def coco_place(root: Path, part: str) -> Place | None:
    """The labels of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none.

    Raises:
        InputError: several files could be meant.
    """
    if part == "all":
        patterns = [(pattern, "") for pattern in PILE_FILES]
    else:
        patterns = [
            (pattern.format(name), name)
            for name in PART_NAMES[part]
            for pattern in (
                "annotations/instances_{}.json", "annotations/{}.json", "{}/_annotations.coco.json",
                "{}/annotations.json", "{}.json", "annotations/instances_{}*.json", "annotations/*{}*.json",
                "*{}*.json",
            )
        ]  # fmt: skip
    others = [] if part == "all" else [name for key, names in PART_NAMES.items() if key != part for name in names]
    for pattern, _ in patterns:
        found = [path for path in sorted(matching(root, pattern)) if not any(name in path.stem for name in others)]
        if found:
            return coco_folders(root, only_one(found, part), part)
    return None


def coco_folders(root: Path, labels: Path, part: str) -> Place:
    """The folders where the images of a label file may lie."""
    stem = labels.stem.removeprefix("instances_")
    names = [stem, *PART_NAMES.get(part, ())]
    folders = [folder for name in names for folder in (root / "images" / name, root / name / "images", root / name)]
    return Place(labels, None, (*folders, root / "images", labels.parent, root))


def read_coco(place: Place, wanted: Sequence[str] | None) -> PartLabels:
    """One label file.

    Raises:
        InputError: no JSON, or JSON of another kind.
    """
    content = _content(place.labels)
    path = place.labels
    categories = {_key(item.get("id")): str(item.get("name")) for item in _dicts(content.get("categories", []))}
    images = [item for item in _dicts(content["images"]) if isinstance(item.get("file_name"), str)]
    files = place.image_files([item["file_name"] for item in images])
    labels = PartLabels(files.folder)
    problem = labels.problems.append
    for position, item in enumerate(content["images"]):
        if not isinstance(item, dict) or not isinstance(item.get("file_name"), str) or not item["file_name"].strip():
            problem(LabelProblem(path, None, shown(json.dumps(item)), f"images[{position}] has no file_name"))
    rows: dict[str, list[list[float]]] = {}
    ignored: dict[str, list[bool]] = {}
    for item in images:
        if _key(item.get("id")) in rows:
            problem(LabelProblem(path, None, f"id {item.get('id')}", f"is the id of two images, {item['file_name']}"))
        rows[_key(item.get("id"))], ignored[_key(item.get("id"))] = [], []
    classes = FaceClasses(wanted, categories.values())
    for position, item in enumerate(content.get("annotations", [])):
        reason = _fault(item, categories, rows)
        if reason:
            problem(LabelProblem(path, None, shown(json.dumps(item)), f"annotations[{position}] {reason}"))
        elif classes.is_face(categories[_key(item["category_id"])]):
            rows[_key(item["image_id"])].append([float(value) for value in item["bbox"]])
            ignored[_key(item["image_id"])].append(bool(item.get("iscrowd")) or bool(item.get("ignore")))
    for item in images:
        key = _key(item.get("id"))
        placed(
            labels, files, item["file_name"].strip(), xyxy_from_xywh(rows[key]), ignored[key], label_path=path,
            stated_wh=_size(item),
        )  # fmt: skip
    return finish(labels, files, path, classes)


def _content(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        value = shown(text.splitlines()[line - 1] if text.strip() else "an empty file")
        raise InputError(
            f"{path}, line {line}: {value!r} is no JSON ({error}); data.format=coco reads COCO's instances_*.json, "
            "set data.format to what the labels are"
        ) from error
    if isinstance(content, list):
        raise InputError(f"{path} is a list, as COCO's results of a detector are; give the file of labels")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path} has no list 'images'; data.format=coco reads COCO's instances_*.json")
    if not isinstance(content.get("annotations", []), list):
        raise InputError(f"{path} has no list 'annotations'; data.format=coco reads COCO's instances_*.json")
    return content


def _fault(item: Any, categories: dict[str, str], images: dict[str, Any]) -> str:
    if not isinstance(item, dict):
        return "is no annotation"
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return "has no bbox of four numbers x y w h"
    if _key(item.get("image_id")) not in images:
        return f"is of image_id {item.get('image_id')}, which 'images' does not have"
    if _key(item.get("category_id")) not in categories:
        return f"is of category_id {item.get('category_id')}, which 'categories' does not have"
    return ""


def _is_number(value: Any) -> bool:
    # JSON's whole numbers have no bounds, ours have.
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e15)


def _key(value: Any) -> str:
    # Ids are numbers or texts, and some tools mix 7 and "7".
    return str(value)


def _dicts(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _size(item: dict[str, Any]) -> tuple[int, int] | None:
    width, height = item.get("width"), item.get("height")
    if not (_is_number(width) and _is_number(height)) or not (0 < width < 1e9 and 0 < height < 1e9):  # type: ignore
        return None
    return int(width), int(height)  # type: ignore[arg-type]
