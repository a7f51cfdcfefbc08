"""What ``detect`` writes: images and crops with boxes or redacted, WIDER's text, COCO's JSON; and what is done."""

import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.files import replaced
from fanet_lightning.data.images import Image8
from fanet_lightning.detect.inputs import JOURNAL_FILE, RESULT_FOLDERS, Item
from fanet_lightning.detect.journal import Journal
from fanet_lightning.detect.redaction import Redaction
from fanet_lightning.ops.draw import annotate
from fanet_lightning.ops.structures import Detections

JSON_FILE = "detections.json"
UNFINISHED = ".unfinished"
IMAGES, VIDEOS, FRAMES, TEXTS, CROPS = RESULT_FOLDERS
VERSION = 1
# No two inputs in a folder of results have the same.
KEYS = ("stem", "name")
JPEG_QUALITY = 90
# Pillow's name and options, and OpenCV's options, by suffix. Images of other formats become JPEG, or PNG where those
# are losslessly compressed.
_Format = tuple[str, dict[str, Any], list[int]]
_JPEG: _Format = ("JPEG", {"quality": JPEG_QUALITY}, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
_TIFF: _Format = ("TIFF", {"compression": "tiff_lzw"}, [])
_FORMATS: dict[str, _Format] = {
    ".jpg": _JPEG, ".jpeg": _JPEG, ".tif": _TIFF, ".tiff": _TIFF,
    ".png": ("PNG", {"compress_level": 1}, [cv2.IMWRITE_PNG_COMPRESSION, 1]),
    ".webp": ("WEBP", {"quality": JPEG_QUALITY}, [cv2.IMWRITE_WEBP_QUALITY, JPEG_QUALITY]),
    ".bmp": ("BMP", {}, []),
}  # fmt: skip
_TO_PNG = (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".dib")


@dataclass(frozen=True)
class Saving:
    """What is written.

    ``save``    of :data:`fanet_lightning.detect.inputs.KINDS`.
    ``redact``  hides faces in everything that shows them; None leaves them.
    ``draw``    boxes colored by confidence. ``labels``: with their scores. ``bar``: and a color bar next to the image.
    """

    save: tuple[str, ...] = ("images", "json")
    redact: Redaction | None = None
    draw: bool = True
    bar: bool = False
    labels: bool = False

    def hidden(self, image_rgb: Image8, found: Detections, time_seconds: float | None = None) -> Image8:
        """The image with its faces redacted, where that is asked for; ``time_seconds`` of a video's frame."""
        return image_rgb if self.redact is None else self.redact.apply(image_rgb, found.numpy()[0], time_seconds)

    def shown(
        self, image_rgb: Image8, found: Detections, time_seconds: float | None = None, texts: Sequence[str] = ()
    ) -> Image8:
        """The image as it is saved: redacted, drawn upon, both or neither; ``texts``: of the boxes, else of labels."""
        shown = self.hidden(image_rgb, found, time_seconds)
        return annotate(shown, *found.numpy(), bar=self.bar, labels=texts or self.labels) if self.draw else shown


class FoundImage(NamedTuple):
    """An image and its faces. ``profile``: ICC, of the colors of ``image_rgb`` (H, W, 3); every file written has it."""

    item: Item
    image_rgb: Image8
    faces: Detections
    profile: bytes = b""

    def entry(self, files: Sequence[str]) -> dict[str, Any]:
        """What is remembered of it: enough to write the JSON of all images without looking at it again."""
        boxes_xyxy, scores = self.faces.numpy()
        return {
            "width": self.image_rgb.shape[1], "height": self.image_rgb.shape[0], "boxes_xyxy": boxes_xyxy.tolist(),
            "scores": scores.tolist(), "files": list(files),
        }  # fmt: skip


def write_image(out: Path, found: FoundImage, saving: Saving) -> list[str]:
    """Write everything that ``saving`` asks for about one image but the JSON; the files, relative to ``out``."""
    item, image_rgb, faces, profile = found
    files = []
    if "images" in saving.save:
        files.append(f"{IMAGES}/{_image_name(item)}")
        write_file(out, files[-1], encoded(saving.shown(image_rgb, faces), PurePosixPath(files[-1]).suffix, profile))
    return files + write_parts(out, item.stem, image_rgb, faces, saving, profile)


def write_parts(
    out: Path, stem: str, image_rgb: Image8, found: Detections, saving: Saving, profile: bytes = b"",
    time_seconds: float | None = None,
) -> list[str]:  # fmt: skip
    """Text and crops of an image or a frame, as far as they are wanted; the files, relative to ``out``.

    Crops: one JPEG a face, ``<stem>_<number from 0>_<score>.jpg``, best first; of a redacted image, redacted.
    """
    files = []
    if "txt" in saving.save:
        files.append(f"{TEXTS}/{stem}.txt")
        # A name that is no text for the system is given back as the bytes it is.
        write_file(out, files[-1], found.to_wider(PurePosixPath(stem).name).encode("utf-8", "surrogateescape"))
    if "crops" in saving.save:
        shown = saving.hidden(image_rgb, found, time_seconds)
        for number, face in enumerate(found):
            files.append(f"{CROPS}/{stem}_{number}_{face.score:.2f}.jpg")
            write_file(out, files[-1], encoded(crop(shown, np.array(face.box_xyxy)), ".jpg", profile))
    return files


def crop(image_rgb: Image8, box_xyxy: npt.NDArray[np.floating]) -> Image8:
    """The pixels that a box touches, at least one."""
    height, width = image_rgb.shape[:2]
    x1, y1 = np.clip(np.floor(box_xyxy[:2]), 0, (width - 1, height - 1)).astype(int)
    x2, y2 = np.clip(np.ceil(box_xyxy[2:]), (x1 + 1, y1 + 1), (width, height)).astype(int)
    return image_rgb[y1:y2, x1:x2]


def _image_name(item: Item) -> str:
    """Under which the image is saved: its own format where that can be written, else JPEG or PNG."""
    suffix = PurePosixPath(item.name).suffix
    kept = suffix if suffix.lower() in _FORMATS else ".png" if suffix.lower() in _TO_PNG else ".jpg"
    return item.stem if item.stem == item.name and item.stem.endswith(kept) else item.stem + kept


def encoded(image_rgb: Image8, suffix: str, profile: bytes = b"") -> bytes:
    """The image as a file of the kind that the suffix names, with its ICC profile.

    InputError: it does not fit into the format (a WebP of more than 16,383 pixels).
    """
    kind, options, flags = _FORMATS[suffix.lower()]
    try:
        if profile:  # OpenCV writes none into JPEG before its version 5, and none into TIFF, but is three times faster
            file = io.BytesIO()
            Image.fromarray(image_rgb).save(file, kind, icc_profile=profile, **options)
            return file.getvalue()
        done, coded = cv2.imencode(suffix.lower(), cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), flags)
        if not done:  # since OpenCV 5; before, it raised
            raise ValueError("OpenCV cannot write it")
        return coded.tobytes()
    except (OSError, ValueError, cv2.error) as error:
        size = f"{image_rgb.shape[1]} × {image_rgb.shape[0]} pixels"
        raise InputError(f"an image of {size} is too large for {suffix}; leave images out of save") from error


def write_file(out: Path, name: str, content: bytes) -> None:
    # Unfinished ones are in one folder, so that what a killed process leaves is found and removed.
    with replaced(out / name, out / UNFINISHED) as temporary:
        temporary.write_bytes(content)


class Results(Journal):
    """The results of detect in a folder, by input: what is done is not done again. A context manager.

    ``entries`` what is done, by the input's name: ``stem``, ``location``, ``state`` and what :meth:`add` was given.
    Results of other settings are removed as the block is entered, because faces that shall be redacted must not stay
    next to the redacted ones.

    Args:
        settings: what results depend on, as plain values.
        items: the inputs of this run; what other inputs left in the folder with the same settings stays there.
            InputError: it would be overwritten, or is of other settings.
        resume: False removes whatever is listed, and starts over.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], items: Collection[Item], *, resume: bool = True) -> None:
        super().__init__(out / JOURNAL_FILE, {"version": VERSION, **settings}, resume=resume)
        self.out = out
        self.entries: dict[str, dict[str, Any]] = {}
        self._states: dict[str, Any] = {}
        for entry in self.lines:
            self.entries.pop(entry["name"], None)
            if not entry.get("removed"):
                self.entries[entry["name"]] = entry
        places = {(item.name, item.place) for item in items}
        others = [x for x in self.entries.values() if (x["name"], x["location"]) not in places and self._is_whole(x)]
        taken = {(key, entry[key].casefold()): entry["location"] for entry in others if resume for key in KEYS}
        own = ((item, (key, getattr(item, key).casefold())) for item in items for key in KEYS)
        reason = next((f"the results of {item.text} would overwrite those of {taken[key]}"
                       for item, key in own if key in taken), "")  # fmt: skip
        if self.refused and others:  # neither kept with the new ones, which may be redacted, nor removed unasked
            reason = f"holds results of other settings ({', '.join(self.refused)}), e.g. of {others[0]['name']}"
        check(not reason, f"out={out}: {reason}; give another out, or resume=false to remove all that is there")

    def __enter__(self) -> Self:
        if self.found and not self.resumed:
            for entry in self.lines:
                self._remove(entry)
            (self.out / JSON_FILE).unlink(missing_ok=True)  # it is about what has been removed
            self.entries = {}
        return super().__enter__()

    def is_done(self, item: Item, further: Mapping[str, Any] | None = None) -> bool:
        """Whether the results of this very input, with ``further`` values, are there, and the file has not changed."""
        entry = self.entries.get(item.name)
        wanted = {"state": item.state, "location": item.place, **(further or {})}
        return entry is not None and wanted.items() <= entry.items() and self._is_whole(entry)

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        return all((self.out / name).is_file() for name in entry["files"])

    def forget(self, items: Iterable[Item]) -> None:
        """Remove what inputs that are about to be done left in an earlier state, and what a killed process left.

        They may show faces that shall be redacted, and a crop is not overwritten by one of another score.
        """
        items = list(items)
        # As they are before they are read: one that is still being written is not done.
        self._states = {item.name: item.state for item in items}
        stems = set()
        for item in items if self.found else ():
            entry = self.entries.pop(item.name, None)
            if entry is not None:
                self.append({"name": item.name, "removed": True})
                self._remove(entry)
            (self.out / IMAGES / _image_name(item)).unlink(missing_ok=True)
            stems.add(item.stem)
        for path in (self.out / CROPS).rglob("*.jpg") if stems else ():
            name = path.relative_to(self.out / CROPS).as_posix()
            own = re.fullmatch(r"((.+?)(?:/frame_\d+)?)_\d+_\d\.\d\d\.jpg", name)
            if own and stems & {*own.groups()}:
                path.unlink(missing_ok=True)

    def _remove(self, entry: Mapping[str, Any]) -> None:
        """Remove the files that an entry calls its own, as far as they are within the folder."""
        for name in entry.get("files", ()):
            path = self.out / str(name)
            if path.parent.resolve().is_relative_to(self.out.resolve()):
                path.unlink(missing_ok=True)

    def add(self, item: Item, values: Mapping[str, Any]) -> None:
        """Take note of what an input gave, with its ``files``; once this returns, killing does not lose it."""
        state = self._states.get(item.name, item.state)
        entry = {"name": item.name, "stem": item.stem, "location": item.place, "state": state, **values}
        self.append(entry)
        self.entries[item.name] = entry

    def ordered(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        """Everything that is there: this run's inputs in their order, then those of earlier runs."""
        own = {item.name for item in items}
        yield from (self.entries[item.name] for item in items if item.name in self.entries)
        yield from (entry for name, entry in self.entries.items() if name not in own and self._is_whole(entry))


def write_json(
    out: Path, entries: Iterable[Mapping[str, Any]], failed: Mapping[str, str], head: Mapping[str, Any]
) -> None:
    """``detections.json``: a COCO file whose annotations have scores. Readers of COCO files skip the further keys.

    ``entries``: of :class:`Results`; ``failed``: inputs that could not be read, and why; ``head``: what made it.
    """
    lists: dict[str, list[dict[str, Any]]] = {
        "failed": [{"file_name": name, "reason": reason} for name, reason in failed.items()],
        "categories": [{"id": 1, "name": "face"}],
        "videos": [], "images": [], "annotations": [],
    }  # fmt: skip
    videos, images, annotations = lists["videos"], lists["images"], lists["annotations"]
    for entry in entries:
        if entry.get("video"):
            # Texts and crops of its frames may be a hundred thousand files.
            files = [name for name in entry["files"] if name.startswith((f"{VIDEOS}/", f"{FRAMES}/"))]
            left_out = ("state", "of_video", "video")
            videos.append({**{key: value for key, value in entry.items() if key not in left_out}, "files": files})
            continue
        images.append({
            "id": len(images) + 1, "file_name": entry["name"], "width": entry["width"], "height": entry["height"],
            "source": entry["location"],
        })  # fmt: skip
        for (x1, y1, x2, y2), score in zip(entry["boxes_xyxy"], entry["scores"], strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": len(images), "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "score": score,
            })  # fmt: skip
    # Lists with an entry a line: a person can read it, and it is a fifth of the size that indenting gives.
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, values in lists.items():
        body = ",".join(f"\n  {json.dumps(value)}" for value in values)
        parts.append(f"{json.dumps(key)}: [{body}]")
    write_file(out, JSON_FILE, ("{" + ",\n ".join(parts) + "}\n").encode())
