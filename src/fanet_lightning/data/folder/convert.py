"""Labels and images in another format: ``fanet convert data=… to=coco out=DIR``.

Boxes, ignored boxes and image names are kept as far as the format can hold them; whatever it cannot is counted and
said (:mod:`fanet_lightning.data.folder.writers`).
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, check_writable, replaced_folder
from fanet_lightning.data.folder import writers
from fanet_lightning.data.folder.files import CONVERSION_RECORD
from fanet_lightning.data.folder.writers import ImageToWrite
from fanet_lightning.data.images import UnreadableImage, read_image_frame
from fanet_lightning.data.records import ImageRecord, Inventory, LabelledImage
from fanet_lightning.data.sources import FddbSource, PascalFaceSource, build_source

USAGE = "fanet convert data=… to=coco|yolo|voc|wider out=DIR [images=copy|link|none]"
FORMATS = ("coco", "yolo", "voc", "wider")
IMAGES = ("copy", "link", "none")
# Where images go, under ``out``.
IMAGE_FOLDERS = {"coco": "images/{}", "yolo": "images/{}", "voc": "JPEGImages", "wider": "WIDER_{}/images"}


def convert(source: Any, to: str, out: Path, *, images: str = "copy", overwrite: bool = False) -> dict[str, Any]:
    """Write the labels of a source, and its images, in another format.

    Args:
        source: what :func:`fanet_lightning.data.sources.build_source` made.
        to: ``coco``, ``yolo``, ``voc`` or ``wider``.
        out: the folder to make; it appears complete or not at all.
        images: ``copy``, ``link`` (hard links, copies where that is impossible) or ``none``.
        overwrite: replace what an earlier conversion left in ``out``.

    Returns:
        What is in ``out/converted.json``: per part the numbers of images, faces and ignored boxes, and what was lost.

    Raises:
        InputError: the source is missing or malformed, ``out`` is taken or cannot be written, names that no label file
            can hold.
    """
    _check_options(to, images, out, overwrite)
    source.prepare()
    inventories = _inventories(source)
    _check_apart(out, inventories)
    lost: Counter[str] = Counter()
    to_write = {inventory.part: _prepared(inventory, lost) for inventory in inventories}
    stems = [image.stem for own in to_write.values() for image in own]
    if to == "voc" and len(set(stems)) < len(stems):
        # One folder for all parts: where names occur in two of them, all get their part in front.
        to_write = {
            part: [replace(image, name=f"{part}/{image.name}", stem=f"{part}/{image.stem}") for image in own]
            for part, own in to_write.items()
        }
    if to == "yolo":
        to_write = {part: [writers.for_yolo(image, lost) for image in own] for part, own in to_write.items()}
    write = {
        "coco": writers.write_coco, "yolo": writers.write_yolo, "voc": writers.write_voc, "wider": writers.write_wider,
    }[to]  # fmt: skip
    with replaced_folder(out) as folder:
        write(folder, to_write)
        if images != "none":
            _bring(folder, IMAGE_FOLDERS[to], to_write, link=images == "link")
        record = {
            "from": source.name, "to": to, "images": images,
            "parts": {part: _numbers(own) for part, own in to_write.items()},
            "lost": {what: count for what, count in lost.items() if count},
        }  # fmt: skip
        # Other files that are put next to it later are not ours.
        record["wrote"] = sorted([CONVERSION_RECORD, *(entry.name for entry in folder.iterdir())])
        (folder / CONVERSION_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _check_options(to: str, images: str, out: Path, overwrite: bool) -> None:
    if to not in FORMATS:
        raise InputError(f"to={to} is unknown; take {' or '.join(FORMATS)}")
    if images not in IMAGES:
        raise InputError(f"images={images} is unknown; take {' or '.join(IMAGES)}")
    check_writable(out)
    record, wrote = out / CONVERSION_RECORD, []
    if record.is_file():
        if not overwrite:
            raise InputError(f"out={out} holds an earlier conversion; give another out, or overwrite=true")
        with suppress(ValueError, KeyError, TypeError):
            wrote = list(json.loads(record.read_text(encoding="utf-8"))["wrote"])
    check_replaceable(out, "a conversion", lambda entry: entry.name in wrote)


def _inventories(source: Any) -> list[Inventory]:
    """The parts that are there, checked."""
    if not hasattr(source, "inventories"):  # sets to test on, and sources of one's own
        has_train = not isinstance(source, FddbSource | PascalFaceSource)
        source.check(train=has_train)
        parts = {"train": source.train()} if has_train else {}
        return [Inventory(part, Path(), _labelled(own)) for part, own in {**parts, "val": source.val()}.items()]
    inventories: list[Inventory] = source.inventories()
    source.check(train=any(inventory.part == "train" for inventory in inventories))
    return inventories


def _labelled(records: Sequence[ImageRecord]) -> list[LabelledImage]:
    return [
        LabelledImage(
            own.image_id, own.path, np.concatenate([own.boxes_xyxy, own.ignored_xyxy]).astype(np.float64),
            np.repeat([False, True], [len(own.boxes_xyxy), len(own.ignored_xyxy)]),
        )
        for own in records
    ]  # fmt: skip


def _check_apart(out: Path, inventories: Sequence[Inventory]) -> None:
    """Replacing ``out`` must not take the images or labels away."""
    place = out.resolve()
    for path in (path for own in inventories for image in own.images for path in (image.path, image.label_path)):
        if path is not None and place in path.resolve().parents:
            raise InputError(f"out={out} holds {path}, which is to be converted; give another folder")


def _prepared(inventory: Inventory, lost: Counter[str]) -> list[ImageToWrite]:
    prepared = []
    for image in inventory.images:
        name = image.image_id
        if not name.isprintable() or name != name.strip():
            raise InputError(f"{image.path}: no label file can hold this name ({name!r}); rename the image")
        try:
            size_wh = read_image_frame(image.path).upright_wh
        except UnreadableImage as error:
            print(f"warning: {image.path} cannot be read ({error.reason}) and is left out")
            lost["images that cannot be read left out"] += 1
            continue
        kept = (image.boxes_xyxy[:, 2:] > image.boxes_xyxy[:, :2]).all(axis=1)
        lost["boxes without area left out"] += int((~kept).sum())
        boxes, ignored = image.boxes_xyxy[kept], image.ignored[kept]
        prepared.append(ImageToWrite(image.path, f"{name}{image.path.suffix}", name, size_wh, boxes, ignored))
    return prepared


def _bring(folder: Path, place: str, to_write: Mapping[str, Sequence[ImageToWrite]], *, link: bool) -> None:
    for part, image in ((part, image) for part, own in to_write.items() for image in own):
        target = folder / place.format(part) / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            with suppress(OSError):  # another file system, or one without links
                os.link(image.source.resolve(), target)
                continue
        shutil.copyfile(image.source, target)


def _numbers(images: Sequence[ImageToWrite]) -> dict[str, int]:
    ignored = sum(int(image.ignored.sum()) for image in images)
    boxes = sum(len(image.boxes_xyxy) for image in images)
    return {"images": len(images), "faces": boxes - ignored, "ignored": ignored}


def _report(record: Mapping[str, Any], out: Path, attributes: bool) -> list[str]:
    """What was done, in lines; ``attributes``: the source has more than boxes."""
    lines = [
        f"{part}: {own['images']:,} images, {own['faces']:,} faces, {own['ignored']:,} ignored boxes"
        for part, own in record["parts"].items()
    ]
    lines += [f"{what}: {count:,}" for what, count in record["lost"].items()]
    if attributes:
        lines.append("not carried over: blur, expression, illumination, occlusion and pose of the faces")
    lines.append(f"written: {out}; read it with data=folder data.root={out} data.format={record['to']}")
    if record["images"] == "none":
        lines.append("the images stay where they are: data.train.folder=DIR and data.val.folder=DIR name their folders")
    return lines


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("convert", argv, USAGE, required=["to", "out"])
    if config is None:
        return 0
    options = plain(config)
    images = "none" if options["images"] is None else options["images"]
    out = Path(str(options["out"]))
    source = build_source(**options["data"])
    record = convert(source, options["to"], out, images=images, overwrite=options["overwrite"])
    print("\n".join(_report(record, out, source.name in ("wider_face", "synthetic"))))
    return 0
