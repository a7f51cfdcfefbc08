"""Labels of any format in memory; classes, image files and parts of a folder."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.cli.files import decoded_text, has_image_extension, without_extension
from fanet_lightning.data.images import ImageFrame, UnreadableImage, read_image_frame, read_image_size
from fanet_lightning.data.records import ImageRecord, Inventory, LabelledImage, LabelProblem

# Taken as faces without being asked, in any letter case.
FACE_NAMES = frozenset(("face", "faces"))


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

    def problem(self, path: Path) -> LabelProblem | None:
        """Other classes that nobody has said anything about, with counts."""
        if self._wanted is not None or all(name.casefold() in FACE_NAMES for name in self.counts):
            return None
        faces = [name for name in self.counts if name.casefold() in FACE_NAMES]
        example = ",".join(faces or [name for name, _ in self.counts.most_common(1)])
        reason = f"are its classes, not all of them faces; say which are, for example data.classes=[{example}]"
        return LabelProblem(path, None, _listed(self.counts), reason)

    def remark(self) -> str | None:
        """What was left out on request, and which of the wanted classes nobody knows."""
        if self._wanted is None:
            return None
        others = {name: count for name, count in self.counts.items() if name not in self._wanted}
        known = {*self._declared, *self.counts}
        unknown = sorted(self._wanted - known) if known else []
        parts = [f"left out, as data.classes has them not: {_listed(others)}"] if others else []
        if unknown:
            parts.append(f"no such class: {', '.join(unknown)}; the labels have {', '.join(sorted(known))}")
        return "; ".join(parts) or None


def _listed(counts: Mapping[str, int]) -> str:
    listed = Counter(counts).most_common(20)
    return ", ".join(f"{name} ({count} {'box' if count == 1 else 'boxes'})" for name, count in listed)


@dataclass(frozen=True)
class Found:
    """``name`` of the file relative to the folder, None if there is none, and then ``reason``."""

    name: str | None
    reason: str = ""


class ImageFiles:
    """One listing of a folder with all its sub-folders: fast on network drives, where a stat per image is not.

    ``names``  image files, relative, POSIX slashes, sorted. Hidden files and folders are not among them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(name for name in walk_files(folder) if has_image_extension(name))
        self._exact = set(self.names)
        self._stems: dict[str, list[str]] = {}
        self._folded: dict[str, list[str]] = {}
        self._folded_stems: dict[str, list[str]] = {}
        for name in self.names:
            self._stems.setdefault(without_extension(name), []).append(name)
            self._folded.setdefault(name.casefold(), []).append(name)
            self._folded_stems.setdefault(without_extension(name).casefold(), []).append(name)

    def find(self, written: str) -> Found:
        """The file that a label file means by ``written``.

        First the very name; else the only one that differs in the letter case, or in the extension (also left out).
        """
        name = self.relative(written)
        if name is None:
            return Found(None, f"leaves the folder {self.folder}; write names relative to it")
        if name in self._exact:
            return Found(name)
        if not has_image_extension(name) and (self.folder / name).is_file():
            return Found(name)
        folded = self._folded.get(name.casefold())
        return _only(folded) if folded else self._of_stem(without_extension(name))

    def find_stem(self, written: str) -> Found:
        """The image file that is called ``written`` but for its extension, if need be in other letter case."""
        name = self.relative(written)
        if name is None:
            return Found(None, f"leaves the folder {self.folder}; write names relative to it")
        return self._of_stem(name)

    def _of_stem(self, stem: str) -> Found:
        candidates = self._stems.get(stem) or self._folded_stems.get(stem.casefold())
        return _only(candidates) if candidates else Found(None)

    def relative(self, written: str) -> str | None:
        """``written`` relative to the folder with POSIX slashes, or None where it leads out of it."""
        path = PurePosixPath(written.replace("\\", "/"))
        if path.is_absolute():
            try:
                path = path.relative_to(PurePosixPath(self.folder.resolve().as_posix()))
            except ValueError:
                return None
        if ".." in path.parts or not path.parts:
            return None
        return path.as_posix()


def _only(candidates: list[str]) -> Found:
    if len(candidates) == 1:
        return Found(candidates[0])
    return Found(None, f"may be {candidates[0]} or {candidates[1]}; write which is meant, or rename one of them")


def label_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Files below a folder by their relative name without ``suffix``, which may be in any letter case; sorted.

    Of two that differ in its letter case alone, the second keeps it in its name, so that none is lost.
    """
    found: dict[str, Path] = {}
    names = [name for name in walk_files(folder) if name.lower().endswith(suffix)]
    for name in sorted(names, key=lambda name: (not name.endswith(suffix), name)):
        stem = name[: -len(suffix)]
        found[name if stem in found else stem] = folder / name
    return dict(sorted(found.items()))


def twice(folder: Path, names: list[str], label_path: Path) -> list[LabelProblem]:
    """Files that differ by their extension alone: they would share an image id."""
    first: dict[str, str] = {}
    problems = []
    for name in names:
        other = first.setdefault(without_extension(name), name)
        if other != name:
            reason = f"differs from {other} by the extension alone; rename one of them in {folder}"
            problems.append(LabelProblem(label_path, None, name, reason))
    return problems


def walk_files(folder: Path, prefix: str = "", seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Names of all files below a folder, relative, POSIX slashes; hidden files and folders are left out."""
    try:
        status = folder.stat()
        place = (status.st_dev, status.st_ino)
        if place in seen:  # a link back to a folder above
            return
        with os.scandir(folder) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return
    for name, is_folder in listed:
        if is_folder:
            yield from walk_files(folder / name, f"{prefix}{name}/", seen | {place})
        else:
            yield prefix + name


Boxes64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlacedImage(LabelledImage):
    """With the place of every box: ``box_lines`` (F,) 1-based lines in ``label_path``, empty where there are none.

    ``frame``  of the image file, where the labels state a size too and the file can be read.
    """

    box_lines: tuple[int, ...] = ()
    frame: ImageFrame | None = None


@dataclass
class PartLabels:
    """The labels of one part of a data set, as written.

    ``folder``    what the image ids are relative to.
    ``images``    in the labels' order.
    ``unlabelled``, ``problems``  as in :class:`~fanet_lightning.data.records.Inventory`; training refuses problems.
    ``doubts``    what cannot be judged, since the image itself is broken; training goes on without that image.
    ``remarks``   what a person should know, a sentence each.
    ``renamed``   image names as written and as they are on disk, where the two differ.
    """

    folder: Path
    images: list[PlacedImage] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    problems: list[LabelProblem] = field(default_factory=list)
    doubts: list[LabelProblem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)

    def inventory(self, part: str) -> Inventory:
        """The same for the doctor."""
        return Inventory(part, self.folder, list(self.images), self.unlabelled, self.problems + self.doubts)


def boxes_of(rows: Sequence[Sequence[float]]) -> Boxes64:
    """(F, 4) float64, also of none."""
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)


def xyxy_from_xywh(rows: Sequence[Sequence[float]]) -> Boxes64:
    """x2 = x + w, y2 = y + h."""
    boxes = boxes_of(rows).copy()
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def number(text: str) -> float | None:
    """A number as files write it, not finite ones included; None for anything else."""
    if "_" in text:  # Python's float reads 1_000, nobody else does
        return None
    try:
        return float(text)
    except ValueError:
        return None


def shown(text: str, limit: int = 60) -> str:
    """A value for a message: one line, cut."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


@dataclass(frozen=True)
class Place:
    """Where a part's labels lie.

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
        """The listing of the folder that holds the first of these images.

        Raises:
            InputError: ``folder`` is none.
        """
        if self.folder is not None:
            if not self.folder.is_dir():
                raise InputError(f"{self.folder} is no folder; set data.train.folder or data.val.folder")
            return ImageFiles(self.folder)
        candidates = [ImageFiles(folder) for folder in dict.fromkeys(self.folders) if folder.is_dir()]
        if not candidates:
            raise InputError(
                f"no folder of images beside {self.labels} (looked for {', '.join(map(str, self.folders[:4]))}, …); "
                "set data.train.folder or data.val.folder"
            )
        some = written[:: max(1, len(written) // 20)]
        return max(candidates, key=lambda files: sum(files.find(name).name is not None for name in some))


def read_text(path: Path) -> str:
    """A label file's text.

    Raises:
        InputError: it is not there, or is no text.
    """
    try:
        return decoded_text(path.read_bytes())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text (byte {error.start}); give a file of labels") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file of labels") from error


def placed(
    labels: PartLabels,
    files: ImageFiles,
    written: str,
    boxes_xyxy: Boxes64,
    ignored: Sequence[bool],
    *,
    label_path: Path,
    line: int | None = None,
    stated_wh: tuple[int, int] | None = None,
    box_lines: Sequence[int] = (),
    found: Found | None = None,
) -> None:
    """Add an image to ``labels``: the file that is meant by ``written``, or where it should be."""
    found = files.find(written) if found is None else found
    if found.name is None and found.reason:
        labels.problems.append(LabelProblem(label_path, line, shown(written), found.reason))
        if files.relative(written) is None:
            return
    name = found.name or files.relative(written) or written
    differs = found.name is not None and found.name != files.relative(written)
    if differs:
        labels.renamed.append((written, name))
    frame = None if stated_wh is None or found.name is None else _frame(files.folder / name)
    image = PlacedImage(
        without_extension(name), files.folder / name, boxes_xyxy, np.array(ignored, dtype=np.bool_), stated_wh,
        label_path, box_lines[0] if box_lines else line, written if differs else None, False, tuple(box_lines), frame,
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
        stored, shown = (image.stated_wh == wh for wh in (image.frame.stored_wh, image.frame.upright_wh))
        if stored or shown:
            kinds["unknown" if stored and shown else "stored" if stored else "shown"].append(index)
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
    names = [name for name in files.names if files.folder / name in own]
    labels.unlabelled = [files.folder / name for name in files.names if files.folder / name not in own]
    labels.problems += twice(files.folder, names, label_path)
    if labels.renamed:
        written, name = labels.renamed[0]
        labels.remarks.append(
            f"{len(labels.renamed)} image names of the labels are spelt otherwise on disk, the first {written}: {name}"
        )
    if classes is not None:
        problem, remark = classes.problem(label_path), classes.remark()
        labels.problems += [problem] if problem else []
        labels.remarks += [remark] if remark else []
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


def corners_problem(images: Sequence[PlacedImage]) -> LabelProblem | None:
    """Rows that are x1 y1 x2 y2 where x y w h is expected, as far as that can be told.

    It is told where every row makes a box inside its image when read as corners, and at least half of them (and no
    fewer than two) leave the image by more than a tenth of their side when read as sides.
    """
    labelled = [image for image in images if len(image.boxes_xyxy)]
    rows = outside = 0
    first: tuple[PlacedImage, int] | None = None
    for image in labelled[:: max(1, len(labelled) // SAMPLE)]:
        size = image.stated_wh or _size_wh(image.path)
        if size is None:
            continue
        corners = image.boxes_xyxy.copy()
        corners[:, 2:] -= corners[:, :2]  # the four numbers as they are written
        near, far = corners[:, :2], corners[:, 2:]
        if not ((far > near).all() and (near >= -1).all() and (far <= np.add(size, 1)).all()):
            return None
        leaving = np.any(image.boxes_xyxy[:, 2:] > size + 0.1 * far, axis=1)
        rows += len(leaving)
        outside += int(leaving.sum())
        if first is None and leaving.any():
            first = image, int(np.flatnonzero(leaving)[0])
    if first is None or outside < 2 or 2 * outside < rows:
        return None
    image, index = first
    x, y, x2, y2 = image.boxes_xyxy[index].tolist()
    value = f"{x:g} {y:g} {x2 - x:g} {y2 - y:g}"
    line = image.box_lines[index] if image.box_lines else image.label_line
    reason = (
        f"looks like x1 y1 x2 y2 where x y w h is expected, {outside} of {rows} boxes leave their image otherwise; "
        "subtract x1 and y1"
    )
    return LabelProblem(image.label_path or image.path, line, value, reason)


def inverted_problem(images: Sequence[PlacedImage]) -> LabelProblem | None:
    """Sides where corners are expected: at least half of the boxes, no fewer than two, have their far side first."""
    inverted = [(image.boxes_xyxy[:, 2:] < image.boxes_xyxy[:, :2]).any(axis=1) for image in images]
    count, total = sum(int(own.sum()) for own in inverted), sum(len(image.boxes_xyxy) for image in images)
    if count < 2 or 2 * count < total:
        return None
    image, own = next((image, own) for image, own in zip(images, inverted, strict=True) if own.any())
    index = int(np.flatnonzero(own)[0])
    value = " ".join(f"{side:g}" for side in image.boxes_xyxy[index])
    line = image.box_lines[index] if image.box_lines else image.label_line
    reason = (
        f"looks like x y w h where x1 y1 x2 y2 is expected, {count} of {total} boxes have their far side first "
        "otherwise; add x1 and y1"
    )
    return LabelProblem(image.label_path or image.path, line, value, reason)


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
        _warn_once(
            f"warning: {sum(own.odd for own in found)} of {sum(own.total for own in found)} boxes looked at {what}, "
            f"the first of {first}: {expected} is expected; write the labels so, or see what the doctor shows of them"
        )


@cache
def _warn_once(line: str) -> None:
    from fanet_lightning.cli.provenance import is_first_process

    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def _size_wh(path: Path) -> tuple[int, int] | None:
    try:
        height, width = read_image_size(path)
    except UnreadableImage:
        return None
    return width, height


# What `convert` writes beside the labels that it makes: no labels.
CONVERSION_RECORD = "converted.json"
PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}


def only_one(found: list[Path], part: str) -> Path:
    """
    Raises:
        InputError: there are several.
    """
    if len(found) > 1:
        key = "train" if part == "all" else part
        raise InputError(f"{found[0]} and {found[1]} may both hold the labels; choose with data.{key}.labels=FILE")
    return found[0]


def matching(root: Path, pattern: str) -> Iterator[Path]:
    """What a glob pattern finds under ``root``, its suffix in any letter case, without hidden files and folders and
    without the record that a conversion leaves there."""
    stem, dot, suffix = pattern.rpartition(".")
    pattern = stem + dot + "".join(f"[{letter.lower()}{letter.upper()}]" for letter in suffix) if dot else pattern
    for path in root.glob(pattern):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.name != CONVERSION_RECORD:
            yield path
