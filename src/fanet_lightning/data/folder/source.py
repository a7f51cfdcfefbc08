"""A folder of images with COCO, YOLO, PASCAL VOC or WIDER-style labels of one's own, as a source.

Where each format's files are is said in its module under :mod:`fanet_lightning.data.folder`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import find_listed, nearest_name, without_extension
from fanet_lightning.data.folder.coco import coco_place, read_coco
from fanet_lightning.data.folder.files import ImageFiles, label_files, matching
from fanet_lightning.data.folder.labels import (
    PartLabels,
    Place,
    corners_problem,
    inverted_problem,
    place_of,
    read_text,
    say_once,
    warn_of_odd_boxes,
)
from fanet_lightning.data.folder.voc import read_voc, voc_place
from fanet_lightning.data.folder.wider import read_wider, wider_place
from fanet_lightning.data.folder.yolo import YAML_FILES, Points, label_folder, read_names, read_yolo, yolo_place
from fanet_lightning.data.records import (
    ImageRecord,
    Inventory,
    LabelledImage,
    check_apart,
    clean_record,
    label_numbers,
    refuse_missing,
)
from fanet_lightning.data.wider_face import all_usable_faces, is_list, listed_path
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.ground_truth import GroundTruth

# Where labels are looked for, for messages.
FORMATS = {
    "coco": "COCO (annotations/instances_train.json)",
    "yolo": "YOLO (images/train, labels/train)",
    "voc": "PASCAL VOC (Annotations/*.xml, ImageSets/Main/train.txt)",
    "wider": "a WIDER-style list (wider_face_split/wider_face_train_bbx_gt.txt, train.txt)",
}
# What their boxes are, for messages.
BOXES = {
    "coco": "x y w h in pixels",
    "yolo": "centre, width and height as fractions of the image's sides",
    "voc": "xmin ymin xmax ymax in pixels",
    "wider": "x y w h in pixels",
}


def find_place(root: Path, format: str, part: str, given: Mapping[str, Any]) -> Place | None:
    """Where the labels of ``train``, ``val`` or ``all`` are: as given, else in the format's usual layout.

    Raises:
        InputError: several files could be meant, or what is given is not there.
    """
    labels, folder = (None if given.get(key) is None else _under(root, given[key]) for key in ("labels", "folder"))
    if labels is not None and not labels.exists():
        raise InputError(f"data.{part}.labels={labels} does not exist; name the labels, relative to {root}")
    if folder is not None and not folder.is_dir():
        raise InputError(f"data.{part}.folder={folder} is not a directory; name the images' folder, relative to {root}")
    if format == "yolo":
        place = yolo_place(root, part, read_names(root)[1]) if folder is None else Place(folder, folder)
    else:
        usual = {"coco": coco_place, "voc": voc_place, "wider": wider_place}[format]
        place = usual(root, part) if labels is None else place_of(root, labels, part)
    if place is None and (labels or folder):
        raise InputError(f"give both data.{part}.labels=… and data.{part}.folder=DIR, its labels and its images")
    return place and replace(place, labels=labels or place.labels, folder=folder or place.folder)


def formats_found(root: Path, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """The formats whose files are where they are looked for, each with such a file; told by the files' content.

    Args:
        root: the folder of the set.
        given: ``labels`` and ``folder`` of each part, as for :func:`find_place`.
    """
    found: dict[str, Path] = {}
    told = [part for part, own in given.items() if own.get("labels") is not None]
    for format in FORMATS:
        for part in told or ("train", "val", "all"):
            try:
                place = find_place(root, format, part, given.get(part, {}))
                labels = None if place is None else _labels_of(format, place)
            except InputError:
                # Several files of COCO could be meant, or data.yaml is at fault: it is that format all the same.
                patterns = {} if told else {"coco": ("*.json", "annotations/*.json"), "yolo": YAML_FILES}
                labels = next((path for pattern in patterns.get(format, ()) for path in matching(root, pattern)), None)
            if labels is not None:
                found.setdefault(format, labels)
    return found


def _labels_of(format: str, place: Place) -> Path | None:
    """A file of labels of a format; None if there is none."""
    if format == "yolo":
        assert place.folder is not None
        stems = {without_extension(name) for name in ImageFiles(place.folder).names}
        for stem, path in label_files(label_folder(place), ".txt").items():
            row = read_text(path).strip().partition("\n")[0] if stem in stems else ""
            if row:
                return path if len(label_numbers(row) or ()) >= 5 else None
        return None
    if format == "voc":
        xml = next(iter(label_files(place.labels, ".xml").values()), None)
        return xml if xml is not None and b"<annotation" in xml.read_bytes().replace(b"\0", b"") else None
    text = read_text(place.labels) if place.labels.is_file() else ""
    told = text.lstrip().startswith("{") and '"images"' in text if format == "coco" else is_list(text)
    return place.labels if told else None


def read_part(
    root: Path, format: str, place: Place, *, wanted: Sequence[str] | None, points: str | None = None, origin: int = 1
) -> PartLabels:
    """Read a part.

    Raises:
        InputError: see the format's reader.
    """
    if place.labels.is_dir() != (format in ("voc", "yolo")):
        what = "a folder" if format in ("voc", "yolo") else "one file"
        raise InputError(f"{place.labels}: data.format={format} reads {what} of labels")
    if format == "coco":
        labels = read_coco(place, wanted)
    elif format == "voc":
        labels = read_voc(place, wanted, origin)
    elif format == "yolo":
        labels = read_yolo(place, read_names(root)[0], wanted, cast("Points | None", points))
    else:
        if wanted is not None:
            raise InputError("data.classes: a WIDER-style list has no classes; leave it out")
        labels = read_wider(place)
    if format != "yolo":
        problem = inverted_problem(labels.images) if format == "voc" else corners_problem(labels.images)
        labels.problems += [problem] if problem else []
    return labels


def strict_records(labels: PartLabels, part: str, root: Path) -> list[ImageRecord]:
    """Records of labels that are complete.

    Raises:
        InputError: the first problem, a missing image, an image named twice, a box that is none.
    """
    if labels.problems:
        first = labels.problems[0]
        where = f"{first.path}, line {first.line}" if first.line is not None else str(first.path)
        more = f" (and {len(labels.problems) - 1} more; the doctor lists them all)" if len(labels.problems) > 1 else ""
        raise InputError(f"{where}: {first.value!r} {first.reason}{more}")
    if not labels.images:
        raise InputError(f"{root} has no {part} part; set data.{part}.labels, or data.{part}.images=LIST")
    refuse_missing(
        [image.path for image in labels.images if not image.path.is_file()],
        len(labels.images),
        f"the {part} part",
        f"complete the folder, name those at hand with data.{part}.images=LIST, or let the doctor make a cleaned copy "
        "(fix=true)",
    )
    others = [image for image in labels.images if image.frame and image.stated_wh != image.frame.upright_wh]
    if others:
        raise InputError(_another_frame(others, len(labels.images)))
    seen: set[str] = set()
    for image in labels.images:
        if image.image_id in seen:
            raise InputError(f"{image.label_path} has the image {image.path.name} twice; keep one of its entries")
        seen.add(image.image_id)
    return [_record(image) for image in labels.images]


def _another_frame(others: Sequence[LabelledImage], count: int) -> str:
    first = others[0]
    assert first.frame is not None and first.stated_wh is not None
    size = "{} × {}".format
    stored = f" (stored {size(*first.frame.stored_wh)}, turned by EXIF)" if first.frame.orientation >= 5 else ""
    more = f" (as {len(others)} of {count} images differ; the doctor lists them)" if len(others) > 1 else ""
    return (
        f"{first.label_path}: the labels of {first.path} are for an image of {size(*first.stated_wh)} pixels, it has "
        f"{size(*first.frame.upright_wh)}{stored}{more}; bring the images that were labelled, or scale the boxes and "
        "the width and height to these; where only width and height are wrong, write 0 for both"
    )


def _record(image: LabelledImage) -> ImageRecord:
    boxes = image.boxes_xyxy
    wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(wrong):
        index = int(wrong[0])
        line = image.line_of(index)
        where = (
            f"{image.label_path}, line {line}" if line else f"{image.label_path}, box {index + 1} of {image.path.name}"
        )
        x1, y1, x2, y2 = boxes[index].tolist()
        raise InputError(
            f"{where}: x1={x1:g} y1={y1:g} x2={x2:g} y2={y2:g} is no box (its far side comes first, or a number is not "
            "finite); correct it, or remove it"
        )
    return clean_record(image.image_id, image.path, boxes, image.ignored)


def _under(root: Path, given: Path | str) -> Path:
    path = Path(given)
    return path if path.is_absolute() or (path.exists() and not (root / path).exists()) else root / path


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

    Raises:
        InputError: an unknown format or key, or a value out of range.
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
        if root is None:
            raise InputError("data.root is not given: set data.root=DIR, the folder of the images and labels")
        self.root = Path(root)
        self._given = {"train": dict(train or {}), "val": dict(val or {})}
        self._share = self._given["val"].get("share")
        known = {"train": PART_KEYS, "val": (*PART_KEYS, "share")}
        for key, value, sound, what in (
            *(
                (f"{part}.{key}", own[key], key in known[part], "known")
                for part, own in self._given.items()
                for key in own
            ),
            ("val.share", self._share, self._share is None or 0 < self._share < 1, "between 0 and 1"),
            ("points", points, points in (None, "landmarks", "polygon"), "landmarks or polygon"),
            ("origin", origin, origin in (0, 1), "0 or 1"),
        ):
            if not sound:
                raise InputError(f"data.{key}={value} is not {what}")
        wanted = [classes] if isinstance(classes, str | int) else classes
        self._options: dict[str, Any] = {
            "wanted": None if wanted is None else [str(name) for name in wanted],
            "points": points,
            "origin": origin,
        }
        self._records: dict[str, list[ImageRecord]] = {}
        self._remarks: list[str] = []
        self._recognised: str | None = None
        self.format = self._known_format(format)

    def prepare(self) -> None:
        """Nothing to do: the images are there, or reading says what is missing."""

    def check(self, train: bool = True) -> None:
        """Read all labels, look for every image, print what a person should know of them.

        Args:
            train: the training part too, not only the validation one.

        Raises:
            InputError: whatever :meth:`train` and :meth:`val` say; a part without a single face.
        """
        parts = {"train": self.train(), "val": self.val()} if train else {"val": self.val()}
        for part, records in parts.items():
            if not any(len(record.boxes_xyxy) for record in records):
                why = "; ".join(self._parts[part].remarks) or "check data.format and the labels"
                raise InputError(f"{self.root}: no face in the {len(records)} images of the {part} part: {why}")
        warn_of_odd_boxes(list(parts.values()), BOXES[self.format])
        for remark in self._remarks + [f"{part}: {remark}" for part in parts for remark in self._parts[part].remarks]:
            say_once(f"data=folder: {remark}", self.root)

    def train(self) -> list[ImageRecord]:
        """
        Raises:
            InputError: labels or images that are missing or malformed; or an image is trained and validated on.
        """
        records = self._strict("train")
        check_apart({record.path.resolve() for record in records}, {record.path.resolve() for record in self.val()})
        return records

    def val(self) -> list[ImageRecord]:
        """The validation records, sorted by image id.

        Raises:
            InputError: labels or images that are missing or malformed.
        """
        return sorted(self._strict("val"), key=lambda record: record.image_id)

    def ground_truth(self) -> GroundTruth:
        """One setting, ``all``: usable faces count, ignored ones stay in, so that a detection on one is no mistake."""
        return all_usable_faces(self.val())

    def benchmark(self) -> WiderFaceBenchmark:
        return WiderFaceBenchmark(name="folder", title=f"{self.root.resolve().name} ({self.format} labels)")

    def inventories(self) -> list[Inventory]:
        """The labels of both parts exactly as written, see :mod:`fanet_lightning.data.records`.

        Raises:
            InputError: there are no labels at all.
        """
        return [labels.inventory(part) for part, labels in self._parts.items() if labels.images or labels.problems]

    def _known_format(self, given: str | None) -> str:
        """The given format, or the one that the folder has without doubt."""
        if given in FORMATS:
            return str(given)
        if given is None:
            self._check_root()
        found = self._found()
        if given is None and len(found) == 1:
            ((format, example),) = found.items()
            self._recognised = f"data.format={format} (recognised by {example})"
            return format
        said = "is not given" if given is None else f"{given} is unknown"
        looks = " and ".join(f"{name} ({example})" for name, example in found.items())
        hint = f"{self.root} looks like {looks}" if found else f"no labels were found in {self.root}"
        raise InputError(f"data.format {said}: take data.format={'|'.join(FORMATS)}; {hint}")

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise InputError(f"data.root={self.root} is not a directory; give the folder of the images and labels")

    def _found(self) -> dict[str, Path]:
        return formats_found(self.root, self._given) if self.root.is_dir() else {}

    @cached_property
    def _parts(self) -> dict[str, PartLabels]:
        """Both parts; an empty one where there is none."""
        if self._recognised is not None:
            say_once(f"data=folder: {self._recognised}", self.root)
        self._check_root()
        try:
            return self._read()
        except InputError as error:
            found = self._found()
            if not found or self.format in found or "looks like" in str(error):
                raise
            raise InputError(f"{error}; {self.root} looks like data.format={' or '.join(found)}") from error

    def _read(self) -> dict[str, PartLabels]:
        places = {part: find_place(self.root, self.format, part, own) for part, own in self._given.items()}
        if not any(places.values()):
            places["train"] = find_place(self.root, self.format, "all", {})
        train, val = (
            None if place is None else read_part(self.root, self.format, place, **self._options)
            for place in places.values()
        )
        if val is not None:
            if self._share is not None:
                raise InputError(
                    f"data.val.share={self._share}: {self.root} has a validation part ({val.folder}); leave the share "
                    "out"
                )
            return {"train": self._listed(train or PartLabels(val.folder), "train"), "val": self._listed(val, "val")}
        if train is None:
            raise InputError(
                f"{self.root} holds no labels in the layout of {FORMATS[self.format]}; set data.format to what the "
                "labels are, or data.train.labels to where they are"
            )
        return self._divided(train)

    def _divided(self, labels: PartLabels) -> dict[str, PartLabels]:
        """A set without a validation part: by lists, else by a hash of the names."""
        pile, val_list = self._listed(labels, "train"), self._given["val"].get("images")
        if val_list is not None:
            if self._share is not None:
                raise InputError(f"data.val.share={self._share} and data.val.images={val_list}: give one of them")
            chosen = self._listed(labels, "val")
            listed = self._given["train"].get("images") is not None
            return {"train": pile if listed else _without(pile, chosen.images), "val": chosen}
        share = DEFAULT_SHARE if self._share is None else float(self._share)
        ids = carved(sorted({image.image_id for image in pile.images}), share)
        self._remarks.append(
            f"{self.root} has no validation part: {len(ids)} of {len(pile.images)} images ({share:.0%}, by a hash of "
            "their names) are validated on; data.val.share=… or data.val.images=LIST chooses others"
        )
        of_val = PartLabels(pile.folder, [image for image in pile.images if image.image_id in ids])
        return {"train": _without(pile, of_val.images), "val": of_val}

    def _listed(self, labels: PartLabels, part: str) -> PartLabels:
        """The images of the part's list, in its order; all where it has none."""
        images = self._given[part].get("images")
        if images is None:
            return labels
        path = listed_path(Path(images), self.root)
        by_id: dict[str, list[LabelledImage]] = {}
        for image in labels.images:
            by_id.setdefault(image.image_id, []).append(image)
        chosen: list[LabelledImage] = []
        example = "image name, relative to the folder of images,"
        others = {without_extension(path.relative_to(labels.folder).as_posix()) for path in labels.unlabelled}
        ids = by_id.keys() | others
        for line, written, image_id in find_listed(path, ids, folder=labels.folder, root=self.root, example=example):
            if image_id not in by_id:
                near = nearest_name(without_extension(written.replace("\\", "/")), by_id)
                hint = f"did you mean {near}?" if near else "correct the name, or take the line out"
                reason = f"no image {written} in {labels.folder} ({len(by_id)} labelled images, named relative to it)"
                if image_id is not None:
                    reason, hint = f"no label speaks of {written} in {labels.folder}", "label it, or take the line out"
                raise InputError(f"data.{part}.images: {path}, line {line}: {reason}; {hint}")
            chosen += by_id[image_id]
        return replace(labels, images=chosen)

    def _strict(self, part: str) -> list[ImageRecord]:
        if part not in self._records:
            self._records[part] = strict_records(self._parts[part], part, self.root)
        return self._records[part]


def carved(image_ids: Sequence[str], share: float) -> set[str]:
    """The ids to validate on: those whose hash falls into the lowest ``share``. At least one, and not all.

    Raises:
        InputError: fewer than two images.
    """
    if len(image_ids) < 2:
        raise InputError(
            f"{len(image_ids)} labelled images cannot be divided into two parts; add some, or name a validation part"
        )
    hashes = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in image_ids}
    ordered = sorted(image_ids, key=lambda name: hashes[name])
    count = sum(value < share for value in hashes.values())
    return set(ordered[: min(max(count, 1), len(ordered) - 1)])


def _without(labels: PartLabels, images: Sequence[LabelledImage]) -> PartLabels:
    image_ids = {image.image_id for image in images}
    return replace(labels, images=[image for image in labels.images if image.image_id not in image_ids])
