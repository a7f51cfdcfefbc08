"""Labels of any format in memory: face classes, placed images, EXIF frames, boxes of another convention."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.cli.files import without_extension
from fanet_lightning.cli.provenance import is_first_process
from fanet_lightning.data.folder.files import Found, ImageFiles
from fanet_lightning.data.images import ImageFrame, UnreadableImage, read_image_frame
from fanet_lightning.data.records import ImageRecord, Inventory, LabelledImage, LabelProblem, label_text, shown

# Taken as faces without being asked, in any letter case.
FACE_NAMES = frozenset(("face", "faces"))
PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
Boxes64 = npt.NDArray[np.float64]


class FaceClasses:
    """Counts boxes by class and says which are faces: those in ``wanted``, or by default those called "face".

    Args:
        wanted: names of the classes that are faces (in YOLO files without names, their numbers), or None.
        declared: names that the files declare, with boxes or without.
    """

    def __init__(self, wanted: Sequence[str] | None, declared: Iterable[str] = ()) -> None:
        self._wanted = None if wanted is None else frozenset(wanted)
        self._declared = list(dict.fromkeys(declared))
        self.counts: Counter[str] = Counter()

    def is_face(self, name: str) -> bool:
        """Count a box of this class; whether it is a face."""
        self.counts[name] += 1
        return name in self._wanted if self._wanted is not None else name.casefold() in FACE_NAMES

    def judge(self, labels: "PartLabels", path: Path) -> None:
        """Add to the labels: classes of which it is not known whether they are faces, or what was left out."""
        if self._wanted is None:
            faces = [name for name in self.counts if name.casefold() in FACE_NAMES]
            if len(faces) < len(self.counts):
                example = ",".join(faces or [name for name, _ in self.counts.most_common(1)])
                reason = f"are its classes, not all of them faces; say which are, for example data.classes=[{example}]"
                labels.problems.append(LabelProblem(path, None, _listed(self.counts), reason))
            return
        others = {name: count for name, count in self.counts.items() if name not in self._wanted}
        known = {*self._declared, *self.counts}
        unknown = sorted(self._wanted - known) if known else []
        parts = [f"left out, as data.classes has them not: {_listed(others)}"] if others else []
        if unknown:
            parts.append(f"no such class: {', '.join(unknown)}; the labels have {', '.join(sorted(known))}")
        labels.remarks += ["; ".join(parts)] if parts else []


def _listed(counts: Mapping[str, int]) -> str:
    listed = Counter(counts).most_common(20)
    return ", ".join(f"{name} ({count} {'box' if count == 1 else 'boxes'})" for name, count in listed)


@dataclass
class PartLabels:
    """The labels of one part of a data set, as written.

    ``folder``    what the image ids are relative to.
    ``images``    in the labels' order.
    ``unlabelled``, ``problems``  as in :class:`~fanet_lightning.data.records.Inventory`; training refuses problems.
    ``doubts``    what cannot be judged, since the image itself is broken; training continues without that image.
    ``remarks``   what a person should know, a sentence each.
    ``renamed``   image names as written and as they are on disk, where the two differ.
    """

    folder: Path
    images: list[LabelledImage] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    problems: list[LabelProblem] = field(default_factory=list)
    doubts: list[LabelProblem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)

    def problem(self, path: Path, line: int | None, value: str, reason: str) -> None:
        self.problems.append(LabelProblem(path, line, shown(value), reason))

    def inventory(self, part: str) -> Inventory:
        """The same for the doctor."""
        return Inventory(part, self.folder, list(self.images), self.unlabelled, self.problems + self.doubts)


@dataclass(frozen=True)
class Place:
    """Where a part's labels are.

    ``labels``   file, or folder of files.
    ``folder``   of the images; None: among ``folders``, the first that holds the images.
    ``folders``  candidates.
    ``names``    VOC: the list of the part's images.
    """

    labels: Path
    folder: Path | None = None
    folders: tuple[Path, ...] = ()
    names: Path | None = None

    def image_files(self, written: Sequence[str]) -> ImageFiles:
        """The listing of the folder that holds the most of these images."""
        if self.folder is not None:
            return ImageFiles(self.folder)
        candidates = [ImageFiles(folder) for folder in dict.fromkeys(self.folders) if folder.is_dir()]
        some = written[:: max(1, len(written) // 20)]
        return max(candidates, key=lambda files: sum(files.find(name).name is not None for name in some))


def place_of(root: Path, labels: Path, part: str, names: Path | None = None) -> Place:
    """The place of labels whose images may be in any of the usual folders, those of the part first."""
    own = [
        folder for name in (labels.stem.removeprefix("instances_"), *PART_NAMES.get(part, ()))
        for folder in (
            root / f"WIDER_{name}" / "images", root / "images" / name, root / "JPEGImages" / name,
            root / name / "images", root / name,
        )
    ]  # fmt: skip
    labels_folder = labels if labels.is_dir() else labels.parent
    return Place(labels, None, (*own, root / "JPEGImages", root / "images", labels_folder, root), names)


def boxes_of(rows: Sequence[Sequence[float]]) -> Boxes64:
    """(F, 4) float64, also of none."""
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)


def read_text(path: Path) -> str:
    """A label file's text.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        return label_text(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file of labels") from error


def placed(
    labels: PartLabels,
    files: ImageFiles,
    written: str,
    boxes_xyxy: Boxes64,
    ignored: Sequence[bool] | npt.NDArray[np.bool_],
    *,
    label_path: Path,
    line: int | None = None,
    stated_wh: tuple[int, int] | None = None,
    box_lines: Sequence[int] = (),
    found: Found | None = None,
    attributes: npt.NDArray[np.int8] | None = None,
) -> None:
    """Add an image to ``labels``: the file that is meant by ``written``, or where it should be."""
    found = files.find(written) if found is None else found
    relative = files.relative(written)
    if found.reason:
        labels.problem(label_path, line, written, found.reason)
        if relative is None:
            return
    name = found.name or relative or written
    differs = found.name is not None and found.name != relative
    labels.renamed += [(written, name)] if differs else []
    frame = None if stated_wh is None or found.name is None else _frame(files.folder / name)
    image = LabelledImage(
        without_extension(name), files.folder / name, boxes_xyxy, np.array(ignored, dtype=np.bool_), stated_wh,
        label_path, box_lines[0] if box_lines else line, written if differs else None, False, tuple(box_lines), frame,
        attributes,
    )  # fmt: skip
    labels.images.append(image)


def _frame(path: Path) -> ImageFrame | None:
    try:
        return read_image_frame(path)
    except UnreadableImage:
        return None


def upright_boxes(boxes_xyxy: Boxes64, frame: ImageFrame) -> Boxes64:
    """(F, 4) boxes of the image as it is stored → as it is shown; the steps are those of ``images.py`` for pixels."""
    x1, y1, x2, y2 = boxes_xyxy.T
    if frame.orientation >= 5:
        x1, y1, x2, y2 = y1, x1, y2, x2
    width, height = frame.upright_wh
    if frame.orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if frame.orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1)


def _turn_upright(labels: PartLabels) -> None:
    """Turn the boxes of photos that were labelled as they are stored, as the size in their labels tells.

    It tells where the camera's orientation turns a photo by a quarter, unless it is square. Those of the others
    (square, mirrored, upside down) are turned as well where all photos that can be told were labelled as stored: one
    program labelled them. Otherwise they are taken as shown.
    """
    kinds: dict[str, list[int]] = {"stored": [], "shown": [], "unknown": []}
    for index, image in enumerate(labels.images):
        if image.frame is None or image.frame.orientation == 1:
            continue
        as_stored, as_shown = (image.stated_wh == wh for wh in (image.frame.stored_wh, image.frame.upright_wh))
        if as_stored or as_shown:
            kinds["unknown" if as_stored and as_shown else "stored" if as_stored else "shown"].append(index)
    if not kinds["stored"]:
        return
    others = [] if kinds["shown"] else kinds["unknown"]
    for index in kinds["stored"] + others:
        image = labels.images[index]
        assert image.frame is not None
        boxes = upright_boxes(image.boxes_xyxy, image.frame)
        labels.images[index] = replace(image, boxes_xyxy=boxes, stated_wh=image.frame.upright_wh, turned=True)
    remark = (
        f"the boxes of {counted(len(kinds['stored']), 'photo')} are turned with them by their EXIF orientation, as the "
        "width and height in the labels are those before it"
    )
    if kinds["unknown"]:
        done = "are taken as shown, as some photos were labelled" if kinds["shown"] else "are turned alike"
        others_said = counted(len(kinds["unknown"]), "other")
        remark += f"; those of {others_said} (square, mirrored or upside down), whose size cannot tell, {done}"
    labels.remarks.append(remark)


def finish(labels: PartLabels, files: ImageFiles, label_path: Path, classes: FaceClasses | None = None) -> PartLabels:
    """What is judged once all is read: classes, names, images that no label speaks of."""
    _turn_upright(labels)
    own = {image.path for image in labels.images}
    labels.unlabelled = [files.folder / name for name in files.names if files.folder / name not in own]
    # Files that differ by their extension alone would share an image id.
    first: dict[str, str] = {}
    for name in (name for name in files.names if files.folder / name in own):
        other = first.setdefault(without_extension(name), name)
        if other != name:
            reason = f"differs from {other} by the extension alone; rename one of them in {files.folder}"
            labels.problem(label_path, None, name, reason)
    if labels.renamed:
        written, name = labels.renamed[0]
        labels.remarks.append(
            f"{len(labels.renamed)} image names of the labels are spelt otherwise on disk, the first {written}: {name}"
        )
    if classes is not None:
        classes.judge(labels, label_path)
    return labels


# Images of a part whose headers are read for it.
SAMPLE = 100
# Conventions of the last pixel differ by one.
TOLERANCE_PIXELS = 1.0
# A fraction ends within the first pixel, and within the second where corners are taken for sides.
FRACTION_END = 2.0


class OddBoxes(NamedTuple):
    """``odd`` of ``total`` boxes are ``what``; ``first``: index of the first image that has one."""

    odd: int
    total: int
    what: str
    first: int

    @property
    def text(self) -> str:
        return f"{self.odd} of {self.total} boxes {self.what}"


def odd_boxes(boxes_xyxy: Sequence[npt.NDArray[Any]], sizes_wh: Sequence[tuple[int, int] | None]) -> OddBoxes | None:
    """Whether most boxes of a set are below a pixel, or most and no fewer than two leave their image.

    Args:
        boxes_xyxy: (F, 4) pixels, of each image.
        sizes_wh: of each image; None where it is unknown: then its boxes leave nothing.
    """
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
            return OddBoxes(count, total, what, next(index for index, own in enumerate(flags) if own.any()))
    return None


def corners_problem(images: Sequence[LabelledImage]) -> LabelProblem | None:
    """Rows that are x1 y1 x2 y2 where x y w h is expected, as far as that can be told.

    It is told where every row makes a box inside its image when read as corners, and at least half of them (and no
    fewer than two) leave the image by more than a tenth of their side when read as sides.
    """
    labelled = [image for image in images if len(image.boxes_xyxy)]
    rows: list[tuple[LabelledImage, Any]] = []
    for image in labelled[:: max(1, len(labelled) // SAMPLE)]:
        size = image.stated_wh or _size_wh(image.path)
        if size is None:
            continue
        near, far = image.boxes_xyxy[:, :2], image.boxes_xyxy[:, 2:] - image.boxes_xyxy[:, :2]  # as they are written
        if not ((far > near).all() and (near >= -1).all() and (far <= np.add(size, 1)).all()):
            return None
        rows.append((image, (image.boxes_xyxy[:, 2:] > size + 0.1 * far).any(axis=1)))
    return _most(
        rows,
        "looks like x1 y1 x2 y2 where x y w h is expected, {} of {} boxes leave their image otherwise; "
        "subtract x1 and y1",
        sides=True,
    )


def inverted_problem(images: Sequence[LabelledImage]) -> LabelProblem | None:
    """Sides where corners are expected: at least half of the boxes, no fewer than two, have their far side first."""
    return _most(
        [(image, (image.boxes_xyxy[:, 2:] < image.boxes_xyxy[:, :2]).any(axis=1)) for image in images],
        "looks like x y w h where x1 y1 x2 y2 is expected, {} of {} boxes have their far side first "
        "otherwise; add x1 and y1",
        sides=False,
    )


def _most(rows: Sequence[tuple[LabelledImage, Any]], reason: str, *, sides: bool) -> LabelProblem | None:
    """A problem at the first flagged box if at least half of all boxes, and no fewer than two, are flagged."""
    count, total = sum(int(flags.sum()) for _, flags in rows), sum(len(flags) for _, flags in rows)
    if count < 2 or 2 * count < total:
        return None
    image, flags = next((image, flags) for image, flags in rows if flags.any())
    index = int(np.flatnonzero(flags)[0])
    box = image.boxes_xyxy[index] - (np.r_[0, 0, image.boxes_xyxy[index, :2]] if sides else 0)
    value = " ".join(f"{side:g}" for side in box)
    return LabelProblem(image.label_path or image.path, image.line_of(index), value, reason.format(count, total))


def warn_of_odd_boxes(parts: Sequence[Sequence[ImageRecord]], expected: str) -> None:
    """One line on the error stream for the parts in which most boxes are odd; once in a process.

    Args:
        parts: the records of each part; of large ones a sample is looked at.
        expected: what the format's rows are, for the message.
    """
    found: list[OddBoxes] = []
    first: Path | None = None
    for records in parts:
        labelled = [record for record in records if len(record.boxes_xyxy)]
        labelled = labelled[:: max(1, len(labelled) // SAMPLE)]
        odd = odd_boxes([record.boxes_xyxy for record in labelled], [_size_wh(record.path) for record in labelled])
        if odd is not None:
            found.append(odd)
            first = first or labelled[odd.first].path
    if found:
        what = " or ".join(dict.fromkeys(own.what for own in found))
        say_once(
            f"warning: {sum(own.odd for own in found)} of {sum(own.total for own in found)} boxes looked at {what}, "
            f"the first of {first}: {expected} is expected; write the labels so, or see what the doctor shows of them",
            error=True,
        )


@cache
def say_once(line: str, root: Path | None = None, error: bool = False) -> None:
    """Print it once (per ``root``), in the first of a run's processes: a run checks its data twice."""
    if is_first_process():
        print(line, file=sys.stderr if error else sys.stdout, flush=True)


def _size_wh(path: Path) -> tuple[int, int] | None:
    frame = _frame(path)
    return None if frame is None else frame.upright_wh
