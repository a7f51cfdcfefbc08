"""COCO's object-detection JSON: ``images``, ``annotations`` with ``bbox`` x y w h, ``categories``.

::

    ROOT/annotations/instances_train.json, instances_val.json    also …_train2017.json, train.json
    ROOT/train/_annotations.coco.json                            with its images
    ROOT/images/train, ROOT/train, ROOT/images, …                the first folder that holds the images

Boxes are 0-based pixels, x2 = x + w, y2 = y + h. ``iscrowd`` 1 (and ``ignore`` 1) is an ignored box.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.files import matching
from fanet_lightning.data.folder.labels import (
    PART_NAMES,
    FaceClasses,
    Place,
    boxes_of,
    finish,
    place_of,
    placed,
    read_text,
)
from fanet_lightning.data.records import Inventory

PILE_FILES = ("_annotations.coco.json", "annotations/*.json", "*.json")
PART_FILES = ("annotations/instances_{}*.json", "annotations/{}.json", "{}/_annotations.coco.json", "{}.json")


def coco_place(root: Path, part: str) -> Place | None:
    """The labels of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none.

    Raises:
        InputError: several files could be meant.
    """
    patterns = PILE_FILES if part == "all" else [own.format(name) for name in PART_NAMES[part] for own in PART_FILES]
    for pattern in patterns:
        found = [path for path in matching(root, pattern) if part != "train" or "val" not in path.stem]
        if len(found) > 1:
            key = "train" if part == "all" else part
            raise InputError(f"{found[0]} and {found[1]} may both hold the labels; choose with data.{key}.labels=FILE")
        if found:
            return place_of(root, found[0], part)
    return None


def read_coco(place: Place, wanted: Sequence[str] | None) -> Inventory:
    """One label file.

    Raises:
        InputError: no JSON, or JSON of another kind.
    """
    path, content = place.labels, _content(place.labels)
    # Ids are numbers or texts, and some tools mix 7 and "7".
    categories = {str(item.get("id")): str(item.get("name")) for item in content["categories"]}
    images = {str(item.get("id")): item for item in content["images"] if str(item.get("file_name", "")).strip()}
    files = place.image_files([str(item["file_name"]) for item in images.values()])
    inventory, classes = Inventory(place.part, files.folder), FaceClasses(wanted)
    for position, item in enumerate(content["images"]):
        if images.get(str(item.get("id"))) is not item:
            inventory.problem(path, None, json.dumps(item), f"images[{position}] has no file_name, or another's id")
    boxes: dict[str, list[list[float]]] = {key: [] for key in images}
    ignored: dict[str, list[bool]] = {key: [] for key in images}
    for position, item in enumerate(content["annotations"]):
        box, key, category = item.get("bbox"), str(item.get("image_id")), str(item.get("category_id"))
        reason = ""
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            reason = "has no bbox of four numbers x y w h"
        elif key not in images:
            reason = f"is of image_id {key}, which 'images' does not have"
        elif category not in categories:
            reason = f"is of category_id {category}, which 'categories' does not have"
        elif classes.is_face(categories[category]):
            x, y, width, height = map(float, box)
            boxes[key].append([x, y, x + width, y + height])
            ignored[key].append(bool(item.get("iscrowd") or item.get("ignore")))
        if reason:
            inventory.problem(path, None, json.dumps(item), f"annotations[{position}] {reason}")
    for key, item in images.items():
        sides = [item.get("width"), item.get("height")]
        known = [int(side) for side in sides if isinstance(side, int | float) and 0 < side < 1e9]
        stated_wh = (known[0], known[1]) if len(known) == 2 else None
        name = str(item["file_name"]).strip()
        placed(inventory, files, name, boxes_of(boxes[key]), ignored[key], label_path=path, stated_wh=stated_wh)
    return finish(inventory, files, path, classes)


def _content(path: Path) -> dict[str, list[dict[str, Any]]]:
    wrong = f"data.format=coco reads COCO's instances_*.json with 'images', 'annotations' and 'categories', not {path}"
    try:
        content = json.loads(read_text(path))
        lists: dict[str, list[Any]] = {key: content[key] for key in ("images", "annotations", "categories")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{wrong} ({type(error).__name__}: {error})") from error
    if not all(isinstance(own, list) and all(isinstance(item, dict) for item in own) for own in lists.values()):
        raise InputError(wrong)
    return lists


def _is_number(value: Any) -> bool:
    # JSON's whole numbers have no bounds, ours have.
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e15)
