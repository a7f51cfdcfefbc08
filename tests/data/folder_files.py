"""Small sets in COCO's, YOLO's, PASCAL VOC's and WIDER's layout, written by hand and not by the project's writers."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.source import FolderSource
from fanet_lightning.data.records import ImageRecord

# x y w h in pixels, whether ignored, class.
Face = tuple[float, float, float, float, bool, str]
# Every image has this size.
WIDTH, HEIGHT = 200, 100

# Two images with faces, one with an ignored one, one without any.
TRAIN: dict[str, list[Face]] = {
    "party/a": [(10, 20, 30, 40, False, "face"), (100.5, 10.25, 20, 16, False, "face")],
    "party/b": [(50, 30, 25, 35, True, "face"), (5, 5, 10, 10, False, "face")],
    "c": [],
}
VAL: dict[str, list[Face]] = {"street/d": [(20, 10, 40, 50, False, "face")], "e": []}
BOTH = {"train": TRAIN, "val": VAL}
Parts = Mapping[str, Mapping[str, Sequence[Face]]]


def write_image(path: Path, size_wh: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """An image of one color; the format follows the extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = tuple(np.random.default_rng(len(path.name)).integers(0, 255, 3).tolist())
    Image.new("RGB", size_wh, color).save(path)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_coco(root: Path, parts: Parts = BOTH) -> None:
    for part, faces in parts.items():
        names = sorted({face[5] for own in faces.values() for face in own} | {"face"})
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for number, (image_id, own) in enumerate(faces.items(), start=10):
            write_image(root / "images" / part / f"{image_id}.jpg")
            images.append({"id": number, "file_name": f"{image_id}.jpg", "width": WIDTH, "height": HEIGHT})
            annotations += [
                {"id": len(annotations) + k, "image_id": number, "category_id": names.index(name), "bbox": box,
                 "iscrowd": int(ignored)} for k, (*box, ignored, name) in enumerate(own)
            ]  # fmt: skip
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(root / "annotations" / f"instances_{part}.json", json.dumps(content))


def write_yolo(root: Path, parts: Parts = BOTH) -> None:
    """Ignored faces are not there; an image without a face has no file."""
    names = sorted({face[5] for own in parts.values() for faces in own.values() for face in faces} | {"face"})
    for part, faces in parts.items():
        for image_id, own in faces.items():
            write_image(root / "images" / part / f"{image_id}.jpg")
            rows = [
                f"{names.index(name)} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"
                for x, y, w, h, ignored, name in own
                if not ignored
            ]
            if rows:
                write_text(root / "labels" / part / f"{image_id}.txt", "\n".join(rows) + "\n")
    listed = "\n".join(f"  {number}: {name}" for number, name in enumerate(names))
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{listed}\n")


def write_voc(root: Path, parts: Parts = BOTH) -> None:
    for part, faces in parts.items():
        for image_id, own in faces.items():
            write_image(root / "JPEGImages" / f"{image_id}.jpg")
            objects = "".join(
                f"<object>\n<name>{name}</name><difficult>{int(ignored)}</difficult>\n<bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>\n"
                for x, y, w, h, ignored, name in own
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            text = f"<annotation>\n<filename>{Path(image_id).name}.jpg</filename>\n{size}\n{objects}</annotation>\n"
            write_text(root / "Annotations" / f"{image_id}.xml", text)
        write_text(root / "ImageSets" / "Main" / f"{part}.txt", "\n".join(faces) + "\n")


def write_wider_list(root: Path, parts: Parts = BOTH) -> None:
    for part, faces in parts.items():
        lines = []
        for image_id, own in faces.items():
            write_image(root / "images" / part / f"{image_id}.jpg")
            lines += [f"{image_id}.jpg", str(len(own))]
            lines += [f"{x} {y} {w} {h} 0 0 0 {int(ignored)} 0 0" for x, y, w, h, ignored, _ in own]
        (root / f"{part}.txt").write_text("\n".join(lines) + "\n")


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "wider": write_wider_list}
FORMATS = list(WRITERS)


def written(root: Path, format: str, parts: Parts = BOTH, **options: Any) -> FolderSource:
    """A set in a format, as a source."""
    WRITERS[format](root, parts)
    return FolderSource(root, format, **options)


def by_id(records: list[ImageRecord]) -> dict[str, ImageRecord]:
    return {record.image_id: record for record in records}


def refusal(root: Path, format: str, **options: Any) -> str:
    """The single line with which training refuses the set."""
    with pytest.raises(InputError) as error:
        FolderSource(root, format, **options).check()
    assert "\n" not in str(error.value)
    return str(error.value)


class Told(NamedTuple):
    """What a verb has printed, and its exit code."""

    code: int
    out: str
    err: str


# The fixture ``tell``.
Tell = Callable[..., Told]
