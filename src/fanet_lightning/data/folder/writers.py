"""Labels written as COCO, YOLO, PASCAL VOC and WIDER FACE; one function each, the layouts that the readers look for.

What each format loses:

========  ========================================  =============================  ==================================
format    precision                                 ignored boxes                  boxes that reach out of the image
========  ========================================  =============================  ==================================
coco      1e-6 pixel                                ``iscrowd`` 1                  as they are
voc       1e-6 pixel, whole numbers as such         ``difficult`` 1                as they are
wider     1e-6 pixel, whole numbers as such         ``invalid`` 1                  as they are
yolo      1e-10 of the image's side                 left out                       cut to the image
========  ========================================  =============================  ==================================

Official VOC and WIDER files hold whole numbers alone, and some of their readers take nothing else. Boxes are not
rounded for them: a face of ten pixels would lose up to a tenth of its side.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class ImageToWrite:
    """``source`` the image; ``name`` relative, with extension, ``stem`` without; ``size_wh`` pixels; ``boxes_xyxy``
    (F, 4) float64; ``ignored`` (F,) bool."""

    source: Path
    name: str
    stem: str
    size_wh: tuple[int, int]
    boxes_xyxy: npt.NDArray[np.float64]
    ignored: npt.NDArray[np.bool_]


def write_coco(out: Path, parts: Mapping[str, Sequence[ImageToWrite]]) -> None:
    """``annotations/instances_<part>.json``; images belong into ``images/<part>``. One category, 1: face."""
    for part, images in parts.items():
        content: dict[str, list[dict[str, object]]] = {
            "images": [], "annotations": [], "categories": [{"id": 1, "name": "face", "supercategory": "face"}],
        }  # fmt: skip
        for image_id, image in enumerate(images, start=1):
            width, height = image.size_wh
            content["images"].append({"id": image_id, "file_name": image.name, "width": width, "height": height})
            for box, ignored in zip(image.boxes_xyxy.tolist(), image.ignored.tolist(), strict=True):
                xywh = [_rounded(value) for value in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
                annotation = {
                    "id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": 1, "bbox": xywh,
                    "area": _rounded(xywh[2] * xywh[3]), "iscrowd": int(ignored),
                }  # fmt: skip
                content["annotations"].append(annotation)
        path = _made(out / "annotations" / f"instances_{part}.json")
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def for_yolo(image: ImageToWrite, lost: Counter[str]) -> ImageToWrite:
    """What YOLO's rows can hold of an image: no ignored box, none that reaches out of it; the rest goes to ``lost``."""
    side = np.array([*image.size_wh, *image.size_wh], dtype=np.float64)
    boxes = image.boxes_xyxy[~image.ignored]
    inside = np.clip(boxes, 0, side)
    kept = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    lost["ignored boxes left out"] += int(image.ignored.sum())
    lost["boxes outside their image left out"] += int((~kept).sum())
    lost["boxes cut to their image"] += int((inside != boxes).any(axis=1)[kept].sum())
    return replace(image, boxes_xyxy=inside[kept], ignored=np.zeros(int(kept.sum()), dtype=np.bool_))


def write_yolo(out: Path, parts: Mapping[str, Sequence[ImageToWrite]]) -> None:
    """``labels/<part>/*.txt`` and ``data.yaml``; images belong into ``images/<part>``. One class, 0: face.

    The images are those that :func:`for_yolo` has made.
    """
    for part, images in parts.items():
        for image in images:
            side, boxes = np.array([*image.size_wh, *image.size_wh], dtype=np.float64), image.boxes_xyxy
            normalized = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1) / side
            rows = ["0 " + " ".join(f"{value:.10f}" for value in row) for row in normalized.tolist()]
            path = _made(out / "labels" / part / f"{image.stem}.txt")
            path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    lines = [f"{part}: images/{part}" for part in parts]
    (out / "data.yaml").write_text("\n".join([*lines, "names:", "  0: face", ""]), encoding="utf-8")


def write_voc(out: Path, parts: Mapping[str, Sequence[ImageToWrite]]) -> None:
    """``Annotations/*.xml`` and ``ImageSets/Main/<part>.txt``; images belong into ``JPEGImages``."""
    for part, images in parts.items():
        for image in images:
            path = _made(out / "Annotations" / f"{image.stem}.xml")
            path.write_text(_voc_text(image), encoding="utf-8")
        path = _made(out / "ImageSets" / "Main" / f"{part}.txt")
        path.write_text("".join(f"{image.stem}\n" for image in images), encoding="utf-8")


def write_wider(out: Path, parts: Mapping[str, Sequence[ImageToWrite]]) -> None:
    """``wider_face_split/wider_face_<part>_bbx_gt.txt``; images belong into ``WIDER_<part>/images``."""
    for part, images in parts.items():
        lines = []
        for image in images:
            lines += [image.name, str(len(image.boxes_xyxy))]
            for box, ignored in zip(image.boxes_xyxy.tolist(), image.ignored.tolist(), strict=True):
                xywh = (box[0], box[1], box[2] - box[0], box[3] - box[1])
                lines.append(" ".join(map(_text, xywh)) + f" 0 0 0 {int(ignored)} 0 0")
            if not len(image.boxes_xyxy):
                lines.append("0 0 0 0 0 0 0 0 0 0")
        path = _made(out / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt")
        path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _voc_text(image: ImageToWrite) -> str:
    width, height = image.size_wh
    folder, _, name = image.name.rpartition("/")
    lines = ["<annotation>", f"  <folder>{escape(folder or 'JPEGImages')}</folder>"]
    lines += [f"  <filename>{escape(name)}</filename>"]
    lines += [f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
    lines += ["  <segmented>0</segmented>"]
    for (x1, y1, x2, y2), ignored in zip(image.boxes_xyxy.tolist(), image.ignored.tolist(), strict=True):
        sides = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}  # VOC's first pixel is 1
        lines += ["  <object>", "    <name>face</name>", "    <pose>Unspecified</pose>", "    <truncated>0</truncated>"]
        lines += [f"    <difficult>{int(ignored)}</difficult>", "    <bndbox>"]
        lines += [f"      <{side}>{_text(value)}</{side}>" for side, value in sides.items()]
        lines += ["    </bndbox>", "  </object>"]
    return "\n".join([*lines, "</annotation>", ""])


def _rounded(value: float) -> float | int:
    """Six decimals; whole numbers as such."""
    rounded = round(value, 6)
    return int(rounded) if rounded == int(rounded) else rounded


def _text(value: float) -> str:
    rounded = _rounded(value)
    return str(rounded) if isinstance(rounded, int) else f"{rounded:.6f}".rstrip("0")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
