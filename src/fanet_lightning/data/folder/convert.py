"""Labels and images in another format: ``fanet convert data=… to=coco out=DIR``.

Boxes, ignored boxes (``iscrowd``, ``difficult``, ``invalid``) and image names are kept, to 1e-6 pixel, and boxes that
reach out of their image as they are (of FDDB, PASCAL face and AFW as float32, within the image). YOLO keeps 1e-10 of a
side, cuts boxes to the image and has no ignored ones. What is lost is counted and said.

Official VOC and WIDER files hold whole numbers alone. Boxes are not rounded for them: a face of ten pixels would lose
up to a tenth of its side.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.files import check_replaceable, check_writable, copied, replaced_folder
from fanet_lightning.data.folder.parts import CONVERSION_RECORD
from fanet_lightning.data.images import UnreadableImage, read_image_frame
from fanet_lightning.data.records import Inventory, LabelledImage
from fanet_lightning.data.sources import FddbSource, PascalFaceSource, build_source
from fanet_lightning.data.wider_face import label_rows, list_entry, number_text

USAGE = "fanet convert data=… to=coco|yolo|voc|wider out=DIR [images=copy|link|none]"
# The formats, and where images go, under ``out``.
IMAGE_FOLDERS = {"coco": "images/{}", "yolo": "images/{}", "voc": "JPEGImages", "wider": "WIDER_{}/images"}


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageToWrite(LabelledImage):
    """One that can be read, without boxes that have no area; ``size_wh``: its pixels, as it is shown."""

    size_wh: tuple[int, int]

    @property
    def name(self) -> str:
        return self.image_id + self.path.suffix

    @property
    def faces(self) -> list[tuple[list[float], int]]:
        """x1 y1 x2 y2, and 1 where it is ignored."""
        return list(zip(self.boxes_xyxy.tolist(), self.ignored.astype(int).tolist(), strict=True))


def convert(source: Any, to: str, out: Path, *, images: str = "copy", overwrite: bool = False) -> dict[str, Any]:
    """Write the labels of a source, and its images, in another format.

    Args:
        source: what :func:`fanet_lightning.data.sources.build_source` made.
        to: ``coco``, ``yolo``, ``voc`` or ``wider``.
        out: the folder to make; it appears complete or not at all.
        images: ``copy``, ``link`` (hard links, copies where that is impossible) or ``none``.
        overwrite: replace what an earlier conversion left in ``out``.

    Returns what is in ``out/converted.json``: per part the numbers of images, faces and ignored boxes, and what was
    lost. InputError: the source is missing or malformed, or ``out`` is taken.
    """
    for key, value, known in (("to", to, tuple(IMAGE_FOLDERS)), ("images", images, ("copy", "link", "none"))):
        check(value in known, f"{key}={value} is unknown; take {' or '.join(known)}")
    _check_out(out, overwrite)
    source.prepare()
    inventories = _inventories(source)
    for path in (path for own in inventories for image in own.images for path in (image.path, image.label_path)):
        if path is not None and out.resolve() in path.resolve().parents:
            raise InputError(f"out={out} holds {path}, which is to be converted; give another folder")
    lost: Counter[str] = Counter()
    to_write = {inventory.part: _images_of(inventory, lost) for inventory in inventories}
    stems = [image.image_id for own in to_write.values() for image in own]
    if to == "voc" and len(set(stems)) < len(stems):
        # One folder for all parts: where names occur in two of them, all get their part in front.
        to_write = {
            part: [replace(image, image_id=f"{part}/{image.image_id}") for image in own]
            for part, own in to_write.items()
        }
    if to != "wider":
        faces = [len(image.boxes_xyxy) for own in to_write.values() for image in own if image.attributes is not None]
        lost["faces whose attributes (blur, pose …) are left out"] += sum(faces)
    if to == "yolo":
        to_write = {part: [_for_yolo(image, lost) for image in own] for part, own in to_write.items()}

    def numbers(images: Sequence[ImageToWrite]) -> dict[str, int]:
        flags = [flag for image in images for flag in image.ignored.tolist()]
        return {"images": len(images), "faces": flags.count(False), "ignored": flags.count(True)}

    with replaced_folder(out) as folder:
        for part, own in to_write.items():
            WRITERS[to](folder, part, own)
            for image in own if images != "none" else ():
                copied(image.path, folder / IMAGE_FOLDERS[to].format(part) / image.name, link=images == "link")
        if to == "yolo":
            text = "".join(f"{part}: images/{part}\n" for part in to_write)
            _write(folder / "data.yaml", f"{text}names:\n  0: face\n")
        record = {
            "from": source.name, "to": to, "images": images,
            "parts": {part: numbers(own) for part, own in to_write.items()},
            "lost": {what: count for what, count in lost.items() if count},
        }  # fmt: skip
        # Other files that are put next to it later are not ours.
        record["wrote"] = sorted([CONVERSION_RECORD, *(entry.name for entry in folder.iterdir())])
        _write(folder / CONVERSION_RECORD, json.dumps(record, indent=2) + "\n")
    return record


def _check_out(out: Path, overwrite: bool) -> None:
    check_writable(out)
    record, wrote = out / CONVERSION_RECORD, []
    if record.is_file():
        check(overwrite, f"out={out} holds an earlier conversion; give another out, or overwrite=true")
        with suppress(ValueError, KeyError, TypeError):
            wrote = list(json.loads(record.read_text(encoding="utf-8"))["wrote"])
    check_replaceable(out, "a conversion", lambda entry: entry.name in wrote)


def _inventories(source: Any) -> list[Inventory]:
    """The parts that are there, checked."""
    if hasattr(source, "inventories"):
        inventories: list[Inventory] = source.inventories()
        parts = {inventory.part for inventory in inventories}
        if "val" in parts or not parts:
            source.check(train="train" in parts)
        else:
            source.train()
        return inventories
    # Sets to test on, and sources of one's own.
    has_train = not isinstance(source, FddbSource | PascalFaceSource)
    source.check(train=has_train)
    inventories = []
    for part in ("train", "val") if has_train else ("val",):
        inventories.append(Inventory(part, Path()))
        for own in source.train() if part == "train" else source.val():
            boxes = np.concatenate([own.boxes_xyxy, own.ignored_xyxy]).astype(np.float64)
            ignored = np.arange(len(boxes)) >= len(own.boxes_xyxy)
            inventories[-1].images.append(LabelledImage(own.image_id, own.path, boxes, ignored))
    return inventories


def _images_of(inventory: Inventory, lost: Counter[str]) -> list[ImageToWrite]:
    found = []
    for image in inventory.images:
        is_text = (text := str(image.path)) == text.encode(errors="replace").decode()
        check(is_text, f"{text}: the name is not in UTF-8; rename the file")
        try:
            size_wh = read_image_frame(image.path).upright_wh
        except UnreadableImage as error:
            print(f"warning: {image.path} cannot be read ({error.reason}) and is left out")
            lost["images that cannot be read left out"] += 1
            continue
        kept = (image.boxes_xyxy[:, 2:] > image.boxes_xyxy[:, :2]).all(axis=1)
        lost["boxes without area left out"] += int((~kept).sum())
        boxes, ignored = image.boxes_xyxy[kept], image.ignored[kept]
        attributes = None if image.attributes is None else image.attributes[kept]
        found.append(ImageToWrite(image.image_id, image.path, boxes, ignored, attributes=attributes, size_wh=size_wh))
    return found


def _for_yolo(image: ImageToWrite, lost: Counter[str]) -> ImageToWrite:
    """What YOLO's rows can hold of an image: no ignored box, none that reaches out of it; the rest goes to ``lost``."""
    boxes = image.boxes_xyxy[~image.ignored]
    inside = np.clip(boxes, 0, np.array([*image.size_wh, *image.size_wh], dtype=np.float64))
    kept = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    lost["ignored boxes left out"] += int(image.ignored.sum())
    lost["boxes outside their image left out"] += int((~kept).sum())
    lost["boxes cut to their image"] += int((inside != boxes).any(axis=1)[kept].sum())
    return replace(image, boxes_xyxy=inside[kept], ignored=np.zeros(int(kept.sum()), dtype=np.bool_))


def write_coco(out: Path, part: str, images: Sequence[ImageToWrite]) -> None:
    """``annotations/instances_<part>.json``. One category, 1: face."""
    content: dict[str, list[dict[str, object]]] = {
        "images": [], "annotations": [], "categories": [{"id": 1, "name": "face", "supercategory": "face"}],
    }  # fmt: skip
    for image_id, image in enumerate(images, start=1):
        width, height = image.size_wh
        content["images"].append({"id": image_id, "file_name": image.name, "width": width, "height": height})
        for (x1, y1, x2, y2), ignored in image.faces:
            xywh = [round(value, 6) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotation = {
                "id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": 1, "bbox": xywh,
                "area": round(xywh[2] * xywh[3], 6), "iscrowd": ignored,
            }  # fmt: skip
            content["annotations"].append(annotation)
    _write(out / "annotations" / f"instances_{part}.json", json.dumps(content, ensure_ascii=False) + "\n")


def write_yolo(out: Path, part: str, images: Sequence[ImageToWrite]) -> None:
    """``labels/<part>/*.txt``. One class, 0: face."""
    for image in images:
        side, boxes = np.array([*image.size_wh, *image.size_wh], dtype=np.float64), image.boxes_xyxy
        normalized = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1) / side
        rows = ["0 " + " ".join(f"{value:.10f}" for value in row) + "\n" for row in normalized.tolist()]
        _write(out / "labels" / part / f"{image.image_id}.txt", "".join(rows))


def write_voc(out: Path, part: str, images: Sequence[ImageToWrite]) -> None:
    """``Annotations/*.xml`` and ``ImageSets/Main/<part>.txt``."""
    for image in images:
        width, height = image.size_wh
        folder, _, name = image.name.rpartition("/")
        lines = [f"<annotation>\n  <folder>{escape(folder or 'JPEGImages')}</folder>"]
        lines += [f"  <filename>{escape(name)}</filename>"]
        lines += [f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
        lines += ["  <segmented>0</segmented>"]
        for (x1, y1, x2, y2), ignored in image.faces:
            sides = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}  # VOC's first pixel is 1
            lines += ["  <object>\n    <name>face</name>\n    <pose>Unspecified</pose>\n    <truncated>0</truncated>"]
            lines += [f"    <difficult>{ignored}</difficult>\n    <bndbox>"]
            lines += [f"      <{side}>{number_text(value)}</{side}>" for side, value in sides.items()]
            lines += ["    </bndbox>\n  </object>"]
        _write(out / "Annotations" / f"{image.image_id}.xml", "\n".join([*lines, "</annotation>\n"]))
    _write(out / "ImageSets" / "Main" / f"{part}.txt", "".join(f"{image.image_id}\n" for image in images))


def write_wider(out: Path, part: str, images: Sequence[ImageToWrite]) -> None:
    """``wider_face_split/wider_face_<part>_bbx_gt.txt``."""
    entries = []
    for image in images:
        rows = label_rows(image.boxes_xyxy, image.ignored, image.attributes)
        entries.append(list_entry(image.name, rows.tolist()))
    _write(out / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt", "".join(entries))


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "wider": write_wider}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("convert", argv, USAGE, required=["to", "out"])
    if config is None:
        return 0
    options = plain(config)
    out, images = Path(str(options["out"])), options["images"]
    source = build_source(**options["data"])
    record = convert(source, options["to"], out, images=images, overwrite=options["overwrite"])
    for part, own in record["parts"].items():
        print(f"{part}: {own['images']:,} images, {own['faces']:,} faces, {own['ignored']:,} ignored boxes")
    for what, count in record["lost"].items():
        print(f"{what}: {count:,}")
    reading = f"data=folder data.root={out} data.format={record['to']}"
    if images == "none":
        reading += " data.train.folder=DIR data.val.folder=DIR, the folders of the images, which stay where they are"
    print(f"written: {out}; read it with {reading}")
    return 0
