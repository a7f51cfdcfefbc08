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
    PartLabels,
    Place,
    boxes_of,
    finish,
    place_of,
    placed,
    read_text,
)

PILE_FILES = (
    "_annotations.coco.json", "annotations/instances.json", "annotations/annotations.json", "annotations.json",
    "instances.json", "annotations/*.json", "*.json",
)  # fmt: skip
PART_FILES = (
    "annotations/instances_{}.json", "annotations/{}.json", "{}/_annotations.coco.json", "{}/annotations.json",
    "{}.json", "annotations/instances_{}*.json", "annotations/*{}*.json", "*{}*.json",
)  # fmt: skip


def coco_place(root: Path, part: str) -> Place | None:
    """The labels of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none.

    Raises:
        InputError: several files could be meant.
    """
    patterns, others = list(PILE_FILES), []
    if part != "all":
        patterns = [pattern.format(name) for name in PART_NAMES[part] for pattern in PART_FILES]
        others = [name for key, names in PART_NAMES.items() if key != part for name in names]
    for pattern in patterns:
        found = [path for path in sorted(matching(root, pattern)) if not any(name in path.stem for name in others)]
        if len(found) > 1:
            key = "train" if part == "all" else part
            raise InputError(f"{found[0]} and {found[1]} may both hold the labels; choose with data.{key}.labels=FILE")
        if found:
            return place_of(root, found[0], part)
    return None


def read_coco(place: Place, wanted: Sequence[str] | None) -> PartLabels:
    """One label file.

    Raises:
        InputError: no JSON, or JSON of another kind.
    """
    path, content = place.labels, _content(place.labels)
    # Ids are numbers or texts, and some tools mix 7 and "7".
    categories = {str(item.get("id")): str(item.get("name")) for item in content.get("categories", [])}
    named = [item for item in content["images"] if isinstance(item.get("file_name"), str) and item["file_name"].strip()]
    files = place.image_files([item["file_name"] for item in named])
    labels, classes = PartLabels(files.folder), FaceClasses(wanted, categories.values())
    for position, item in enumerate(content["images"]):
        if not isinstance(item.get("file_name"), str) or not item["file_name"].strip():
            labels.problem(path, None, json.dumps(item), f"images[{position}] has no file_name")
    boxes: dict[str, list[list[float]]] = {}
    ignored: dict[str, list[bool]] = {}
    for item in named:
        key = str(item.get("id"))
        if key in boxes:
            labels.problem(path, None, f"id {key}", f"is the id of two images, {item['file_name']}")
        boxes[key], ignored[key] = [], []
    for position, item in enumerate(content.get("annotations", [])):
        box, key, category = item.get("bbox"), str(item.get("image_id")), str(item.get("category_id"))
        reason = ""
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            reason = "has no bbox of four numbers x y w h"
        elif key not in boxes:
            reason = f"is of image_id {key}, which 'images' does not have"
        elif category not in categories:
            reason = f"is of category_id {category}, which 'categories' does not have"
        elif classes.is_face(categories[category]):
            x, y, width, height = map(float, box)
            boxes[key].append([x, y, x + width, y + height])
            ignored[key].append(bool(item.get("iscrowd")) or bool(item.get("ignore")))
        if reason:
            labels.problem(path, None, json.dumps(item), f"annotations[{position}] {reason}")
    for item in named:
        key, sides = str(item.get("id")), (item.get("width"), item.get("height"))
        stated_wh = sides if all(_is_number(side) and 0 < side < 1e9 for side in sides) else None
        placed(
            labels, files, item["file_name"].strip(), boxes_of(boxes[key]), ignored[key], label_path=path,
            stated_wh=stated_wh and (int(stated_wh[0]), int(stated_wh[1])),
        )  # fmt: skip
    return finish(labels, files, path, classes)


def _content(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{path} is no JSON ({error}); data.format=coco reads COCO's instances_*.json, set data.format to what the "
            "labels are"
        ) from error
    lists = [content.get(key, []) for key in ("images", "annotations", "categories")] if type(content) is dict else []
    sound = all(isinstance(own, list) and all(isinstance(item, dict) for item in own) for own in lists)
    if not lists or "images" not in content or not sound:
        raise InputError(
            f"{path} has no lists 'images', 'annotations' and 'categories' of objects; data.format=coco reads COCO's "
            "instances_*.json"
        )
    return dict(content)


def _is_number(value: Any) -> bool:
    # JSON's whole numbers have no bounds, ours have.
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e15)
