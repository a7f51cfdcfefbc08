"""Boxes in another convention than their format's: corners for sides, fractions for pixels, and the other way round."""

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.data.formats.labels import PlacedImage
from fanet_lightning.data.images import UnreadableImage, read_image_size
from fanet_lightning.data.inventory import LabelProblem
from fanet_lightning.data.records import ImageRecord

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
    from fanet_lightning.run_record import is_first_process

    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def _size_wh(path: Path) -> tuple[int, int] | None:
    try:
        height, width = read_image_size(path)
    except UnreadableImage:
        return None
    return width, height
