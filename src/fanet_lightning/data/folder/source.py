"""A folder of images with COCO, YOLO, PASCAL VOC or WIDER-style labels of one's own, as a source (docs/own-data.md)."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.provenance import is_first_process
from fanet_lightning.data.folder import formats
from fanet_lightning.data.folder.parts import Place, place_of, warn_of_odd_boxes
from fanet_lightning.data.records import ImageRecord, Inventory, check_apart, strict_records
from fanet_lightning.data.wider_face import all_usable_faces, listed_part
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.ground_truth import GroundTruth

# What their boxes are, for messages.
FORMATS = {
    "coco": "x y w h in pixels",
    "yolo": "center, width and height as fractions of the image's sides",
    "voc": "xmin ymin xmax ymax in pixels",
    "wider": "x y w h in pixels",
}
PLACES = {"coco": formats.coco_place, "voc": formats.voc_place, "wider": formats.wider_place}
DEFAULT_SHARE = 0.1
PART_KEYS = ("labels", "folder", "images")


class FolderSource:
    """Images with labels in one of :data:`FORMATS`.

    A part is found by its name in the format's usual layout. A set without a validation part is divided by a hash of
    the image ids, so the division stays when images are added.

    Args:
        root: the folder of the set.
        format: "coco", "yolo", "voc" or "wider"; None: the one that the folder has, if it is one alone.
        classes: names of the classes that are faces. By default those called "face", and others are refused.
        train: ``labels`` (file or folder), ``folder`` (of the images), ``images`` (a list of image names), or None for
            each: looked for under ``root``, all images.
        val: the same, and ``share`` of the images to validate on where there is no validation part.
        points: YOLO rows of more than five numbers: "landmarks" after the box, or "polygon" instead of it.
        origin: VOC: number of the first pixel, 1 or 0.
    """

    name = "folder"

    def __init__(
        self,
        root: Path | str | None = None,
        format: str | None = None,
        classes: Sequence[str] | str | None = None,
        train: Mapping[str, Any] | None = None,
        val: Mapping[str, Any] | None = None,
        points: str | None = None,
        origin: int = 1,
    ) -> None:
        self.root = Path(str(root))
        self._given = {"train": dict(train or {}), "val": dict(val or {})}
        self._share = self._given["val"].pop("share", None)
        unknown = (self._given["train"].keys() | self._given["val"].keys()) - set(PART_KEYS)
        for key, value, sound, what in (
            ("root", root, root is not None and self.root.is_dir(), "a directory; give that of the images and labels"),
            ("train or data.val", " ".join(unknown), not unknown, f"known; take {', '.join(PART_KEYS)}"),
            ("val.share", self._share, self._share is None or 0 < self._share < 1, "between 0 and 1"),
            ("points", points, points in (None, "landmarks", "polygon"), "landmarks or polygon"),
            ("origin", origin, origin in (0, 1), "0 or 1"),
            ("format", format, format is None or format in FORMATS, " or ".join(FORMATS)),
        ):
            check(sound, f"data.{key}={value} is not {what}")
        wanted = [classes] if isinstance(classes, str | int) else classes
        self._wanted = None if wanted is None else [str(name) for name in wanted]
        self._points, self._origin = points, origin
        self._records: dict[str, list[ImageRecord]] = {}
        self._remarks: list[str] = []
        self.format = self._recognized() if format is None else format

    def prepare(self) -> None:
        """Nothing to do: the images are there, or reading says what is missing."""

    def check(self, train: bool = True) -> None:
        """Read all labels, look for every image, print remarks; a part without a single face is an InputError."""
        parts = {"train": self.train(), "val": self.val()} if train else {"val": self.val()}
        told: dict[str, list[str]] = {}
        for part in parts:
            for remark in self._parts[part].remarks:
                told.setdefault(remark, []).append(part)
        remarks = [*self._remarks, *(f"{', '.join(where)}: {remark}" for remark, where in told.items())]
        for part, records in parts.items():
            if not any(len(record.boxes_xyxy) for record in records):
                why = "; ".join(self._parts[part].remarks) or "check data.format and the labels"
                raise InputError(f"{self.root}: no face in the {len(records)} images of the {part} part: {why}")
        if is_first_process():
            for remark in remarks:
                print(f"data=folder: {remark}", flush=True)
        warn_of_odd_boxes(parts.values(), FORMATS[self.format])

    def train(self) -> list[ImageRecord]:
        records = self._strict("train")
        check_apart({record.path.resolve() for record in records}, {record.path.resolve() for record in self.val()})
        return records

    def val(self) -> list[ImageRecord]:
        return sorted(self._strict("val"), key=lambda record: record.image_id)

    def ground_truth(self) -> GroundTruth:
        """One setting, ``all``: usable faces count, ignored ones stay in, so that a detection on one is no mistake."""
        return all_usable_faces(self.val())

    def benchmark(self) -> WiderFaceBenchmark:
        return WiderFaceBenchmark(name="folder", title=f"{self.root.resolve().name} ({self.format} labels)")

    def inventories(self) -> list[Inventory]:
        """The labels of the parts that are there, exactly as written; an InputError where there are none at all."""
        parts = self._parts
        if "train" in parts and "val" in parts and parts["val"].problems is parts["train"].problems:
            parts = {**parts, "val": replace(parts["val"], problems=[])}  # of one file of labels: said once
        return list(parts.values())

    def _recognized(self) -> str:
        """The format that the folder has without doubt, told by the content of the files that are found."""
        found: dict[str, Path] = {}
        told = [part for part, own in self._given.items() if own.get("labels") is not None]
        for format, part in product(FORMATS, told or ("train", "val", "all")):
            with suppress(InputError):  # said where this format is asked for
                place = self._place(format, part, self._given.get(part, {}))
                if place is not None and (labels := formats.labels_of(format, place)) is not None:
                    found.setdefault(format, labels)
        if len(found) != 1:
            seen = " and ".join(f"{name} ({example})" for name, example in found.items()) or "no labels"
            raise InputError(f"data.format is not given, {self.root} has {seen}; set data.format={'|'.join(FORMATS)}")
        ((format, example),) = found.items()
        if is_first_process():
            print(f"data=folder: data.format={format} (recognized by {example})", flush=True)
        return format

    def _place(self, format: str, part: str, given: Mapping[str, Any]) -> Place | None:
        """Where the labels of ``train``, ``val`` or ``all`` are: as given, else in the format's usual layout."""
        labels, folder = (None if given.get(key) is None else self.root / given[key] for key in ("labels", "folder"))
        for key, path in (("labels", labels), ("folder", folder)):
            if path is not None and not (path.is_dir() if key == "folder" else path.exists()):
                raise InputError(f"data.{part}.{key}={path} is not there; give it relative to {self.root}")
        if format == "yolo":
            place = formats.yolo_place(self.root, part, folder, listed=given.get("images") is not None)
        else:
            place = PLACES[format](self.root, part) if labels is None else place_of(self.root, labels, part)
        if place is None and (labels or folder):
            raise InputError(f"give both data.{part}.labels=… and data.{part}.folder=DIR, its labels and its images")
        return place and replace(place, labels=labels or place.labels, folders=(folder,) if folder else place.folders)

    @cached_property
    def _parts(self) -> dict[str, Inventory]:
        """The parts that are there."""
        places = {part: self._place(self.format, part, own) for part, own in self._given.items()}
        if not any(places.values()):
            places["train"] = self._place(self.format, "all", {})
        there = {part: place for part, place in places.items() if place is not None}
        parents = (place.labels.parent for place in there.values())
        within = [folder for folder in parents if folder.resolve().is_relative_to(self.root.resolve())]
        folders = [place.labels for place in there.values()] + within
        parts = {part: replace(self._read(place, folders), part=part) for part, place in there.items()}
        lists = {part: own.get("images") for part, own in self._given.items()}
        listed = {
            part: inventory if (images := lists[part]) is None else listed_part(inventory, images, self.root)
            for part, inventory in parts.items()
        }
        if self._share is not None and ("val" in parts or lists["val"] is not None):
            raise InputError(f"data.val.share={self._share}: there is a validation part already; leave it out")
        if "val" in parts:
            return listed
        if "train" not in parts:
            raise InputError(
                f"{self.root} holds no labels of data.format={self.format} (docs/own-data.md has its layout); set "
                "data.format to what the labels are, or data.train.labels to where they are"
            )
        # A set without a validation part is divided: by a list, else by a hash of the names.
        pile, chosen = listed["train"], parts["train"]
        if lists["val"] is not None:
            chosen = listed_part(chosen, lists["val"], self.root)
            ids = {image.image_id for image in chosen.images} if lists["train"] is None else set()
        else:
            share = DEFAULT_SHARE if self._share is None else float(self._share)
            ids = carved({image.image_id for image in pile.images}, share)
            self._remarks.append(
                f"{self.root} has no validation part: {len(ids)} of {len(pile.images)} images ({share:.0%}, by a hash "
                "of their names) are validated on; data.val.share=… or data.val.images=LIST chooses others"
            )
            chosen = replace(pile, images=[image for image in pile.images if image.image_id in ids])
        return {
            "train": replace(pile, images=[image for image in pile.images if image.image_id not in ids]),
            "val": replace(chosen, part="val", unlabelled=[]),
        }

    def _read(self, place: Place, label_folders: Sequence[Path]) -> Inventory:
        """``label_folders``: those of all parts, whose class names may be in one of them."""
        folder = self.format in ("voc", "yolo")
        what = "a folder" if folder else "one file"
        check(place.labels.is_dir() == folder, f"{place.labels}: data.format={self.format} reads {what} of labels")
        if self.format == "coco":
            return formats.read_coco(place, self._wanted)
        if self.format == "voc":
            return formats.read_voc(place, self._wanted, self._origin)
        if self.format == "yolo":
            names = formats.read_names(self.root, *label_folders)
            return formats.read_yolo(place, names, self._wanted, self._points)
        return formats.read_wider(place, self._wanted)

    def _strict(self, part: str) -> list[ImageRecord]:
        if part in self._records:
            return self._records[part]
        inventory = self._parts.get(part)
        if inventory is None:
            raise InputError(f"{self.root} has no {part} part; set data.{part}.labels, or data.{part}.images=LIST")
        remedy = f"complete the folder, name those at hand with data.{part}.images=LIST, or let the doctor make a "
        self._records[part] = strict_records(inventory, f"the {part} part", f"{remedy}cleaned copy (fix=true)")
        return self._records[part]


def carved(image_ids: set[str], share: float) -> set[str]:
    """The ids to validate on: those whose hash falls into the lowest ``share``. At least one, and of two not both."""
    hashes = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in image_ids}
    count = sum(value < share for value in hashes.values())
    return set(sorted(hashes, key=hashes.__getitem__)[: max(1, min(count, len(hashes) - 1))])
