"""What ``detect`` writes for one picture: the picture with its boxes or redacted, crops, WIDER's text, COCO's JSON.

Every file appears whole or not at all: it is written under another name and renamed.
"""

import errno
import io
import json
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.data.images import Image8
from fanet_lightning.detect.inputs import RESULT_FOLDERS, Item
from fanet_lightning.detect.redaction import redact
from fanet_lightning.ops.draw import annotate
from fanet_lightning.ops.structures import Detections

JSON_FILE = "detections.json"
UNFINISHED = ".unfinished"
IMAGES, VIDEOS, FRAMES, TEXTS, CROPS = RESULT_FOLDERS
JPEG_QUALITY = 90
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
# Formats that a picture keeps; the losslessly compressed ones of the others become PNG, the rest JPEG.
_KEPT_SUFFIXES = (*_JPEG_SUFFIXES, ".png", ".webp", ".bmp", ".tif", ".tiff")
_TO_PNG = (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".dib")


@dataclass(frozen=True)
class Saving:
    """What is written.

    ``save``    of :data:`fanet_lightning.detect.inputs.KINDS`.
    ``redact``  ``blur`` or ``pixelate`` faces in everything that shows them; None leaves them.
    ``draw``    boxes coloured by confidence. ``bar``: and the colour bar beside the picture.
    """

    save: tuple[str, ...] = ("images", "json")
    redact: str | None = None
    draw: bool = True
    bar: bool = True

    def shown(self, image_rgb: Image8, found: Detections) -> Image8:
        """The picture as it is saved: redacted, drawn upon, both or neither."""
        boxes_xyxy, scores = found.numpy()
        shown = image_rgb if self.redact is None else redact(image_rgb, boxes_xyxy, self.redact)
        return annotate(shown, boxes_xyxy, scores, bar=self.bar) if self.draw else shown


def write_picture(
    out: Path, item: Item, image_rgb: Image8, found: Detections, saving: Saving, profile: bytes = b""
) -> list[str]:
    """Write everything that ``saving`` asks for about one picture but the JSON, which is about all of them.

    ``profile``: ICC, of the colors of ``image_rgb``; every picture that is written has it.

    Returns:
        The files, relative to ``out``.

    Raises:
        InputError: the picture has no place in its format (a WebP of more than 16,383 pixels).
        OSError: the disk is full, or a file stands in the way.
    """
    files = []
    if "images" in saving.save:
        name = f"{IMAGES}/{picture_name(item)}"
        write_file(out, name, encoded(saving.shown(image_rgb, found), PurePosixPath(name).suffix, profile))
        files.append(name)
    if "txt" in saving.save:
        name = f"{TEXTS}/{item.stem}.txt"
        # A name that is no text for the system is given back as the bytes it is.
        text = found.to_wider(PurePosixPath(item.stem).name).encode("utf-8", "surrogateescape")
        write_file(out, name, text)
        files.append(name)
    if "crops" in saving.save:
        files += write_crops(out, f"{CROPS}/{item.stem}", image_rgb, found, saving, profile)
    return files


def write_crops(
    out: Path, prefix: str, image_rgb: Image8, found: Detections, saving: Saving, profile: bytes = b""
) -> list[str]:
    """One JPEG a face, ``<prefix>_<number from 0>_<score>.jpg``, best first; of a redacted picture, redacted."""
    boxes_xyxy, scores = found.numpy()
    picture = image_rgb if saving.redact is None else redact(image_rgb, boxes_xyxy, saving.redact)
    files = []
    for number, (box, score) in enumerate(zip(boxes_xyxy, scores, strict=True)):
        name = f"{prefix}_{number}_{score:.2f}.jpg"
        write_file(out, name, encoded(crop(picture, box), ".jpg", profile))
        files.append(name)
    return files


def crop(image_rgb: Image8, box_xyxy: npt.NDArray[np.floating]) -> Image8:
    """The pixels that a box touches, at least one."""
    height, width = image_rgb.shape[:2]
    x1, y1 = (min(max(math.floor(v), 0), limit - 1) for v, limit in zip(box_xyxy[:2], (width, height), strict=True))
    x2, y2 = (min(max(math.ceil(v), least + 1), limit)
              for v, least, limit in zip(box_xyxy[2:], (x1, y1), (width, height), strict=True))  # fmt: skip
    return image_rgb[y1:y2, x1:x2]


def picture_name(item: Item) -> str:
    """Under which the picture is saved: its own format where that can be written, else JPEG or PNG."""
    suffix = PurePosixPath(item.name).suffix
    kept = suffix if suffix.lower() in _KEPT_SUFFIXES else ".png" if suffix.lower() in _TO_PNG else ".jpg"
    return item.stem if item.stem.endswith(kept) else item.stem + kept


def remove_unlisted(out: Path, items: Iterable[Item]) -> None:
    """Remove pictures and crops of inputs that are to be done now: a process that was killed may have left them.

    They may show faces that shall be redacted, and a crop is not overwritten by one of another score.
    """
    crops: dict[Path, list[str]] = {}
    for item in items:
        (out / IMAGES / picture_name(item)).unlink(missing_ok=True)
        prefix = out / CROPS / item.stem
        for folder, name in ((prefix.parent, re.escape(prefix.name)), (prefix, r"frame_\d+")):
            if folder not in crops:
                crops[folder] = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            for found in crops[folder]:
                if re.fullmatch(name + r"_\d+_\d\.\d\d\.jpg", found):
                    (folder / found).unlink(missing_ok=True)


def encoded(image_rgb: Image8, suffix: str, profile: bytes = b"") -> bytes:
    """The picture as a file of the kind that the suffix names, with an ICC profile where one is given.

    Raises:
        InputError: it is too large for the format.
    """
    suffix = suffix.lower()
    try:
        content = _encoded_by_pillow(image_rgb, suffix, profile) if profile else _encoded_by_opencv(image_rgb, suffix)
    except (OSError, ValueError):  # what Pillow raises
        content = None
    if content is None:
        height, width = image_rgb.shape[:2]
        raise InputError(f"a picture of {width} × {height} pixels is too large for {suffix}; leave images out of save")
    return content


def _encoded_by_opencv(image_rgb: Image8, suffix: str) -> bytes | None:
    """Beside the network: it lets go of the interpreter."""
    import cv2

    options = {
        ".png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, JPEG_QUALITY],
    }.get(suffix, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix in _JPEG_SUFFIXES else [])
    kind = ".jpg" if suffix in _JPEG_SUFFIXES else suffix
    try:
        done, content = cv2.imencode(kind, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), options)
    except cv2.error:
        done = False
    return content.tobytes() if done else None


def _encoded_by_pillow(image_rgb: Image8, suffix: str, profile: bytes) -> bytes:
    """OpenCV writes no profiles into JPEG before its version 5, and none into TIFF."""
    from PIL import Image

    formats: dict[str, tuple[str, dict[str, Any]]] = {
        ".png": ("PNG", {"compress_level": 1}), ".webp": ("WEBP", {"quality": JPEG_QUALITY}), ".bmp": ("BMP", {}),
        ".tif": ("TIFF", {"compression": "tiff_lzw"}), ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    }  # fmt: skip
    kind, options = formats.get(suffix, ("JPEG", {"quality": JPEG_QUALITY}))
    file = io.BytesIO()
    Image.fromarray(image_rgb).save(file, kind, icc_profile=profile, **options)
    return file.getvalue()


def write_file(out: Path, name: str, content: bytes) -> None:
    """Write ``out/name``, whole or not at all; folders are made.

    Raises:
        InputError: the name is longer than the file system takes.
        OSError: the disk is full, or something stands in the way.
    """
    # All in one folder, so that what a killed process leaves is found and removed.
    temporary = out / UNFINISHED / f"{threading.get_ident():x}"
    try:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        temporary.parent.mkdir(exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(out / name)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{out / name}: the name is too long to be written; rename the input") from error
        raise


def entry_of(image_rgb: Image8, found: Detections, note: str, files: Sequence[str]) -> dict[str, Any]:
    """What is remembered of a picture: enough to write the JSON of all without looking at it again."""
    boxes_xyxy, scores = found.numpy()
    return {
        "width": image_rgb.shape[1], "height": image_rgb.shape[0], "boxes_xyxy": boxes_xyxy.tolist(),
        "scores": scores.tolist(), "note": note, "files": list(files),
    }  # fmt: skip


def write_json(
    out: Path,
    images: Iterable[Mapping[str, Any]],
    videos: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
    head: Mapping[str, Any],
) -> None:
    """``detections.json``: a COCO file whose annotations have scores. Readers of COCO files skip the further keys.

    Args:
        out: the folder.
        images: entries of :func:`entry_of` with their ``name`` and ``location``.
        videos: what is known of each video; its frames lie in a file of its own.
        failed: inputs that could not be read, and why.
        head: what made it.

    Raises:
        OSError: it cannot be written.
    """
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(images, start=1):
        own = {"id": number, "file_name": entry["name"], "width": entry["width"], "height": entry["height"]}
        listed.append({**own, "source": entry["location"], **({"note": entry["note"]} if entry["note"] else {})})
        for (x1, y1, x2, y2), score in zip(entry["boxes_xyxy"], entry["scores"], strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "score": score,
            })  # fmt: skip
    content = {
        **head,
        "failed": [{"file_name": name, "reason": reason} for name, reason in failed.items()],
        "categories": [{"id": 1, "name": "face"}],
        "videos": list(videos),
        "images": listed,
        "annotations": annotations,
    }
    try:
        write_file(out, JSON_FILE, _json_text(content).encode())
    except OSError as error:
        raise InputError(f"{out / JSON_FILE} cannot be written ({error.strerror or first_line(error)})") from error


def _json_text(content: Mapping[str, Any]) -> str:
    """Lists with an entry a line: a person can read it, and it is a fifth of the size that indenting gives."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            body = "".join(f"\n  {json.dumps(entry)}," for entry in value).rstrip(",")
            parts.append(f"{json.dumps(key)}: [{body}]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{" + ",\n ".join(parts) + "}\n"
