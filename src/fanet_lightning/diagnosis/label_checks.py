"""Boxes against their image: what is wrong with them, and what is left when that is mended."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.data.inventory import LabelledImage
from fanet_lightning.diagnosis.findings import Finding
from fanet_lightning.diagnosis.image_checks import FileFacts
from fanet_lightning.diagnosis.kinds import TINY_PIXELS

# Conventions of the last pixel differ by one, so so much reaching out is no mistake of the person who drew the box.
TOLERANCE_PIXELS = 1.0
# Two faces at one place to within a twentieth of their area: nobody draws that on purpose.
DOUBLED_IOU = 0.95

Boxes = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Size = tuple[int, int]


class BoxFaults(NamedTuple):
    """(F,) bool each, one fault a box: the first in this order. ``doubled``: a box before it is the same."""

    not_finite: Mask
    without_area: Mask
    outside: Mask
    partly_outside: Mask
    tiny: Mask
    doubled: Mask


def box_faults(boxes_xyxy: Boxes, ignored: Mask, frame_wh: Size | None) -> BoxFaults:
    """What is wrong with every box of an image.

    Args:
        boxes_xyxy: (F, 4) float64, pixels.
        ignored: (F,) bool; flagged boxes are not reported as tiny, nor as doubled among each other.
        frame_wh: width and height of the image as it is read, or None where they are unknown: then no box is outside.
    """
    finite = np.asarray(np.isfinite(boxes_xyxy).all(axis=1))
    not_finite = ~finite
    boxes = np.where(not_finite[:, None], 0.0, boxes_xyxy)
    sides = boxes[:, 2:] - boxes[:, :2]
    sound = finite.copy()
    without_area: Mask = sound & (sides <= 0).any(axis=1)
    sound &= ~without_area
    outside = np.zeros_like(sound)
    partly = np.zeros_like(sound)
    if frame_wh is not None:
        outside = sound & ((boxes[:, :2] >= frame_wh) | (boxes[:, 2:] <= 0)).any(axis=1)
        partly = sound & ~outside & (overrun_pixels(boxes, frame_wh) > TOLERANCE_PIXELS)
    sound &= ~outside
    tiny = sound & ~partly & ~ignored & (sides < TINY_PIXELS).any(axis=1)
    doubled = _doubled(boxes, sound, ignored)
    return BoxFaults(not_finite, without_area, outside, partly & ~doubled, tiny & ~doubled, doubled)


def overrun_pixels(boxes_xyxy: Boxes, frame_wh: Size) -> npt.NDArray[np.float64]:
    """(F,) how far each box reaches out of the image at most, 0 where it does not."""
    over = np.concatenate([-boxes_xyxy, boxes_xyxy - np.array(frame_wh * 2)], axis=1)
    reach: npt.NDArray[np.float64] = over.max(axis=1, initial=0.0)
    return reach


def _doubled(boxes: Boxes, sound: Mask, ignored: Mask) -> Mask:
    """Greedy, usable boxes first: a box that is the same as one already kept is a double of it."""
    doubled = np.zeros(len(boxes), dtype=np.bool_)
    index = np.flatnonzero(sound)
    if len(index) < 2:
        return doubled
    index = index[np.argsort(ignored[index], kind="stable")]
    chosen, flagged = boxes[index], ignored[index]
    same = _iou(chosen) > DOUBLED_IOU
    same &= ~(flagged[:, None] & flagged[None, :])
    np.fill_diagonal(same, False)
    kept = np.ones(len(index), dtype=np.bool_)
    for row in np.flatnonzero(same.any(axis=1)):
        kept[row] = not (same[row, :row] & kept[:row]).any()
    doubled[index[~kept]] = True
    return doubled


def _iou(boxes: Boxes) -> npt.NDArray[np.float64]:
    """(F, F); boxes have an area."""
    corner = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    shared: npt.NDArray[np.float64] = np.maximum(corner, 0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    overlap: npt.NDArray[np.float64] = shared / (areas[:, None] + areas[None, :] - shared)
    return overlap


class MendedBoxes(NamedTuple):
    """``boxes_xyxy`` (K, 4) and ``ignored`` (K,) that are left, ``source`` (K,) their rows before, and what was done:
    ``clipped`` (K,) bool, ``dropped`` name of a fault → the rows that fell to it."""

    boxes_xyxy: Boxes
    ignored: Mask
    source: npt.NDArray[np.int64]
    clipped: Mask
    dropped: dict[str, npt.NDArray[np.int64]]


def mended_boxes(boxes_xyxy: Boxes, ignored: Mask, frame_wh: Size | None) -> MendedBoxes:
    """Boxes clipped to the image, without those that are not finite, have no area, lie outside or are doubled.

    A box that clipping leaves less than a pixel of is dropped as lying outside. What is left has none of these faults.
    """
    faults = box_faults(boxes_xyxy, ignored, frame_wh)
    dropped = {name: np.flatnonzero(getattr(faults, name)) for name in ("not_finite", "without_area", "outside")}
    source = np.flatnonzero(~(faults.not_finite | faults.without_area | faults.outside))
    boxes = boxes_xyxy[source]
    if frame_wh is not None:
        boxes = np.clip(boxes, 0, np.array(frame_wh * 2, dtype=np.float64))
    clipped = (boxes != boxes_xyxy[source]).any(axis=1)
    sliver = clipped & ((boxes[:, 2:] - boxes[:, :2]) < TINY_PIXELS).any(axis=1)
    dropped["outside"] = np.sort(np.concatenate([dropped["outside"], source[sliver]]))
    source, boxes, clipped = source[~sliver], boxes[~sliver], clipped[~sliver]
    # Clipping can make two boxes the same.
    double = _doubled(boxes, np.ones(len(boxes), dtype=np.bool_), ignored[source])
    dropped["doubled"] = source[double]
    return MendedBoxes(boxes[~double], ignored[source[~double]], source[~double], clipped[~double], dropped)


def frame_fault(image: LabelledImage, facts: FileFacts) -> tuple[str, str] | None:
    """Whether the labels were made for another frame than the image has: (kind, detail), or None.

    ``mis_sized``: the labels state a size that the image does not have. ``mis_rotated``: it has the size stated when
    turned by a quarter; or, where no size is stated, boxes lie outside the image and
    all lie inside the turned one. Without an orientation in the file that takes a box whose centre is outside.
    """
    stored, upright = (facts.width, facts.height), facts.upright_wh
    size = "{} × {}".format
    if image.stated_wh is not None:
        if image.stated_wh == upright:
            return None
        said = f"labels say {size(*image.stated_wh)}, the image is {size(*upright)}"
        if image.stated_wh == upright[::-1]:
            return "mis_rotated", f"{said}, turned by a quarter"
        return "mis_sized", said
    boxes = image.boxes_xyxy[np.isfinite(image.boxes_xyxy).all(axis=1)]
    turned = upright[::-1]
    if not len(boxes) or upright == turned or (overrun_pixels(boxes, turned) > TOLERANCE_PIXELS).any():
        return None
    over = overrun_pixels(boxes, upright)
    if facts.orientation >= 5 and (over > TOLERANCE_PIXELS).any():
        return "mis_rotated", (
            f"{int((over > TOLERANCE_PIXELS).sum())} of {len(boxes)} boxes leave the {size(*upright)} image that "
            f"orientation {facts.orientation} gives, all fit the stored {size(*stored)}"
        )
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = ((centres < 0) | (centres > upright)).any(axis=1)
    if away.any():
        return "mis_rotated", (
            f"{int(away.sum())} of {len(boxes)} boxes lie outside {size(*upright)}, all fit {size(*turned)}"
        )
    return None


def label_findings(part: str, image: LabelledImage, facts: FileFacts | None) -> list[Finding]:
    """Findings about one image's labels; ``facts`` None: it cannot be looked at, so only the boxes' own shape."""
    found: list[Finding] = []
    path = image.path if facts is None else facts.path

    def add(kind: str, rows: npt.NDArray[np.int64], detail: str, badness: float) -> None:
        boxes = tuple(tuple(map(float, box)) for box in image.boxes_xyxy[rows])
        found.append(Finding(kind, part, image.image_id, path, detail, boxes, badness=badness))  # type: ignore[arg-type]

    frame = None if facts is None or not facts.width else facts.upright_wh
    fault = None if facts is None or frame is None else frame_fault(image, facts)
    if fault is not None:
        # Boxes outside are the consequence and would only repeat it.
        add(fault[0], np.arange(len(image.boxes_xyxy)), fault[1], float(len(image.boxes_xyxy)))
        frame = None
    elif facts is not None and facts.orientation > 1:
        none = np.zeros(0, dtype=np.int64)
        turned = "; labelled as stored, the boxes are turned with it" if image.turned else ""
        add("orientation", none, f"orientation {facts.orientation}: {_stored(facts)}{turned}", 0.0)
    faults = box_faults(image.boxes_xyxy, image.ignored, frame)
    for name, mask in faults._asdict().items():
        rows = np.flatnonzero(mask)
        if not len(rows):
            continue
        boxes = image.boxes_xyxy[rows]
        if name == "partly_outside" and frame is not None:
            badness = float(overrun_pixels(boxes, frame).max())
            extra = f"by up to {badness:.4g} pixels of {frame[0]} × {frame[1]}"
        else:
            badness = float(len(rows))
            extra = f"image {frame[0]} × {frame[1]}" if name == "outside" and frame is not None else ""
        add(f"label_{name}", rows, _detail(image, rows, extra), badness)
    # An image that cannot be read is trained on as nothing at all.
    if facts is not None and not (~image.ignored & ~faults.not_finite & ~faults.without_area).any():
        add("no_faces", np.zeros(0, dtype=np.int64), _without(len(image.boxes_xyxy)), 0.0)
    return found


def _stored(facts: FileFacts) -> str:
    width, height = facts.upright_wh
    return f"stored {facts.width} × {facts.height}, read as {width} × {height}"


def _without(count: int) -> str:
    return "no box" if not count else f"none of its {count} box{'es' if count > 1 else ''} can be trained on"


def _detail(image: LabelledImage, rows: npt.NDArray[np.int64], extra: str) -> str:
    """How many boxes, the first of them, and the line that it stands in."""
    from fanet_lightning.data.formats.labels import PlacedImage

    x1, y1, x2, y2 = image.boxes_xyxy[rows[0]].tolist()
    first = f"x y w h {x1:.6g} {y1:.6g} {x2 - x1:.6g} {y2 - y1:.6g}"
    if not np.isfinite([x1, y1, x2, y2]).all():  # their differences would say nothing
        first = f"x1 y1 x2 y2 {x1:.6g} {y1:.6g} {x2:.6g} {y2:.6g}"
    lines = image.box_lines if isinstance(image, PlacedImage) else ()
    place = f", line {lines[int(rows[0])]}" if lines else ""
    count = f"{len(rows)} boxes, first " if len(rows) > 1 else ""
    return f"{count}{first}{place}" + (f"; {extra}" if extra else "")
