"""What every format's reader returns, and the shape that boxes have in between."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fanet_lightning.data.formats.classes import FaceClasses
from fanet_lightning.data.formats.image_files import Found, ImageFiles, twice
from fanet_lightning.data.images import ImageFrame, UnreadableImage, read_image_frame
from fanet_lightning.data.inventory import Inventory, LabelledImage, LabelProblem
from fanet_lightning.errors import InputError
from fanet_lightning.files import decoded_text
from fanet_lightning.image_lists import without_extension
from fanet_lightning.wording import counted

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
    ``unlabelled``, ``problems``  as in :class:`~fanet_lightning.data.inventory.Inventory`; training refuses problems.
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
