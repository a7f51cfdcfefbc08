"""What the label formats share: image files, places, the reader of a part, boxes of another convention."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.files import has_image_extension, walk_files, without_extension
from fanet_lightning.cli.provenance import is_first_process
from fanet_lightning.data.images import ImageFrame, UnreadableImage, read_image_frame
from fanet_lightning.data.records import ImageRecord, Inventory, LabelledImage

# Taken as faces without being asked, in any letter case.
FACE_NAMES = frozenset(("face", "faces"))
PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "all": ()}
# What `convert` writes with the labels that it makes: no labels.
CONVERSION_RECORD = "converted.json"
Boxes64 = npt.NDArray[np.float64]


class ImageFiles:
    """One listing of the image ``names`` in a folder, POSIX slashes, sorted: a stat per image is slow on networks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(name for name in walk_files(folder) if has_image_extension(name))
        self._exact = set(self.names)
        self._alike: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            self._alike[without_extension(name).casefold()].append(name)

    def find(self, written: str) -> tuple[str | None, str]:
        """The file that a label file means by ``written``, or None; and, where that is a problem, the reason.

        First the very name; else the only one that differs in the letter case, or in the extension (also left out).
        """
        name = relative(written)
        if name is None:
            return None, f"leaves the folder {self.folder}; write names relative to it"
        if name in self._exact:
            return name, ""
        alike = self._alike.get(without_extension(name).casefold(), [])
        alike = [other for other in alike if other.casefold() == name.casefold()] or alike
        if len(alike) > 1:
            return None, f"may be {alike[0]} or {alike[1]}; write which, or rename one of them"
        return next(iter(alike), None), ""

    def put_unlabelled(self, inventory: Inventory) -> None:
        """Add the files that no label speaks of to ``inventory``."""
        own = {image.path for image in inventory.images}
        inventory.unlabelled.extend(self.folder / name for name in self.names if self.folder / name not in own)


def relative(written: str) -> str | None:
    """A name of a label file with POSIX slashes, or None where it leads out of its folder."""
    path = PurePosixPath(written.replace("\\", "/"))
    return None if path.is_absolute() or ".." in path.parts or not path.parts else path.as_posix()


def label_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Files below a folder by their relative name without ``suffix``, which may be in any letter case; sorted."""
    names = sorted(name for name in walk_files(folder) if name.lower().endswith(suffix))
    return {name[: -len(suffix)]: folder / name for name in names}


def matching(root: Path, pattern: str) -> Iterator[Path]:
    """What a glob pattern finds under ``root``, sorted, its suffix in any letter case; hidden files are left out."""
    stem, dot, suffix = pattern.rpartition(".")
    any_case = "".join(f"[{letter.lower()}{letter.upper()}]" for letter in suffix)
    for path in sorted(root.glob(stem + dot + any_case)):
        if not any(part.startswith(".") for part in path.relative_to(root).parts) and path.name != CONVERSION_RECORD:
            yield path


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count} box{'' if count == 1 else 'es'})" for name, count in counts.most_common(20))


@dataclass(frozen=True)
class Place:
    """Where the labels of a ``part`` (``all`` of a set without parts) are: file, or folder of files.

    ``folders`` of the images: candidates, the one that has most of them is taken; ``names``: VOC's list of the part.
    """

    part: str
    labels: Path
    folders: tuple[Path, ...]
    names: Path | None = None


def place_of(root: Path, labels: Path, part: str, names: Path | None = None) -> Place:
    """The place of labels whose images may be in any of the usual folders, those of the part first."""
    own = [
        folder
        for name in (labels.stem.removeprefix("instances_"), *PART_NAMES[part])
        for folder in (root / f"WIDER_{name}" / "images", root / "images" / name, root / name / "images", root / name)
    ]
    with_them = labels if labels.is_dir() else labels.parent
    return Place(part, labels, (*own, root / "JPEGImages", root / "images", with_them, root), names)


def boxes_of(rows: Sequence[Sequence[float]]) -> Boxes64:
    """(F, 4) float64, also of none."""
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)


class PartReader:
    """Makes the :class:`Inventory` of one part: finds the images that labels mean, and tells faces from other classes.

    ``written``: names of its images in the labels; ``wanted``: classes that are faces, by default those called "face".
    """

    def __init__(self, place: Place, written: Sequence[str], wanted: Sequence[str] | None = None) -> None:
        candidates = [ImageFiles(folder) for folder in dict.fromkeys(place.folders) if folder.is_dir()]
        some = written[:: max(1, len(written) // 20)]
        self.files = max(candidates, key=lambda files: sum(files.find(name)[0] is not None for name in some))
        self.inventory, self._wanted = Inventory(place.part, self.files.folder), wanted
        self._counts, self._turned = Counter[str](), 0

    def is_face(self, name: str) -> bool:
        """Count a box of this class; whether it is a face."""
        self._counts[name] += 1
        return self._is_wanted(name)

    def _is_wanted(self, name: str) -> bool:
        return name.casefold() in FACE_NAMES if self._wanted is None else name in self._wanted

    def add(
        self,
        written: str,
        boxes_xyxy: Boxes64,
        ignored: Sequence[bool] | npt.NDArray[np.bool_],
        label_path: Path,
        stated_wh: tuple[int, int] | None = None,
        **facts: Any,
    ) -> None:
        """Add the image that is meant by ``written``, where it is or should be; ``facts``: see :class:`LabelledImage`.

        Boxes of a photo whose EXIF orientation turns it by a quarter turn with it if ``stated_wh`` is its stored size.
        """
        found, reason = self.files.find(written)
        name = found or relative(written)
        if reason:
            self.inventory.problem(label_path, None, written, reason)
        if name is None:
            return
        path = self.files.folder / name
        frame = None if stated_wh is None or found is None else _frame(path)
        if frame is not None and stated_wh == frame[:2] != frame.upright_wh:
            boxes_xyxy, stated_wh = upright_boxes(boxes_xyxy, frame), frame.upright_wh
            self._turned += 1
        flags, file_wh = np.array(ignored, dtype=np.bool_), frame and frame.upright_wh
        image = LabelledImage(without_extension(name), path, boxes_xyxy, flags, stated_wh, file_wh, label_path, **facts)
        self.inventory.images.append(image)

    def finish(self, label_path: Path) -> Inventory:
        """Judge what is known once all is read: images that no label speaks of, turned photos, other classes."""
        self.files.put_unlabelled(self.inventory)
        remarks, counts = self.inventory.remarks, self._counts
        if self._turned:
            remarks.append(
                f"the boxes of {self._turned} photos are turned with them by their EXIF orientation, as the width and "
                "height in the labels are those before it"
            )
        others = Counter({name: count for name, count in counts.items() if not self._is_wanted(name)})
        if others and self._wanted is None:
            reason = "are its classes, not all of them faces; say which are: data.classes=[NAME,…]"
            self.inventory.problem(label_path, None, _listed(counts), reason)
        elif others:
            remarks.append(f"left out, as data.classes has them not: {_listed(others)}")
        if absent := set(self._wanted or ()) - counts.keys():
            remarks.append(f"no box is of the class {', '.join(sorted(absent))}")
        return self.inventory


def _frame(path: Path) -> ImageFrame | None:
    try:
        return read_image_frame(path)
    except UnreadableImage:
        return None


def upright_boxes(boxes_xyxy: Boxes64, frame: ImageFrame) -> Boxes64:
    """(F, 4) boxes of a stored image that is turned by a quarter (EXIF 5 … 8) → as it is shown."""
    y1, x1, y2, x2 = boxes_xyxy.T
    width, height = frame.upright_wh
    if frame.orientation in (6, 7):
        x1, x2 = width - x2, width - x1
    if frame.orientation in (7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1)


# Conventions of the last pixel differ by one.
TOLERANCE_PIXELS = 1.0
# A fraction ends within the first pixel, and within the second where corners are taken for sides.
FRACTION_END = 2.0


class OddBoxes(NamedTuple):
    """What most boxes of a set are, and the index of the first image that has such a one."""

    text: str
    first: int


def odd_boxes(boxes_xyxy: Sequence[npt.NDArray[Any]], sizes_wh: Sequence[tuple[int, int] | None]) -> OddBoxes | None:
    """Whether most boxes, (F, 4) pixels of each image, are below a pixel, or most and at least two leave their image
    (one whose size is None has no border)."""
    small, leaving = [], []
    for boxes, size_wh in zip(boxes_xyxy, sizes_wh, strict=True):
        near, far = np.where(np.isfinite(boxes), boxes, 0).reshape(-1, 2, 2).transpose(1, 0, 2)
        small.append((far - near < 1).all(axis=1) | (far <= FRACTION_END).all(axis=1))
        out = (near < -TOLERANCE_PIXELS) | (far > np.add(size_wh or np.inf, TOLERANCE_PIXELS))
        leaving.append(out.any(axis=1) & (size_wh is not None))
    total = sum(map(len, boxes_xyxy))
    for flags, what, least in ((small, "are below a pixel, as fractions are", 1), (leaving, "leave their image", 2)):
        count = sum(int(own.sum()) for own in flags)
        if count >= least and 2 * count > total:
            first = next(index for index, own in enumerate(flags) if own.any())
            return OddBoxes(f"{count} of {total} boxes {what}", first)
    return None


def warn_of_odd_boxes(parts: Iterable[Sequence[ImageRecord]], expected: str) -> None:
    """A line on stderr for each part of which most boxes (of a sample) are odd; ``expected``: the format's rows."""
    for records in parts if is_first_process() else ():
        labelled = [record for record in records if len(record.boxes_xyxy)]
        labelled = labelled[:: max(1, len(labelled) // 100)]  # so many headers are read
        frames = [_frame(record.path) for record in labelled]
        odd = odd_boxes([own.boxes_xyxy for own in labelled], [frame and frame.upright_wh for frame in frames])
        if odd is not None:
            remedy = f"{expected} is expected; write the labels so, or see what the doctor shows of them"
            where = f"the first of {labelled[odd.first].path}"
            print(f"warning: {odd.text}, {where}: {remedy}", file=sys.stderr, flush=True)
