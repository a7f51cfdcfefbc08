"""Checks: kinds of findings, image files, labels."""

import hashlib
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track

from fanet_lightning.cli.errors import counted
from fanet_lightning.data.folder.parts import TOLERANCE_PIXELS
from fanet_lightning.data.images import ImageFrame, UnreadableImage, decode_image_rgb, opened_image, pillow_frame
from fanet_lightning.data.records import LabelledImage
from fanet_lightning.ops.boxes import pairwise_iou

# ``error``: training or a score is wrong or fails with it. ``warning``: worth a look. ``note``: good to know.
Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """A kind of finding: ``name`` as in tables, and whether the cleaned copy is without it."""

    name: str
    severity: Severity
    meaning: str
    fixable: bool = False


@dataclass(frozen=True)
class Finding:
    """One finding.

    ``kind``        the name of a :class:`Kind`.
    ``part``        ``train`` or ``val``.
    ``image_id``    the image concerned, or "" where a label file is.
    ``path``        of the image, or of the label file.
    ``detail``      what was found, with numbers, in a few words.
    ``boxes_xyxy``  the boxes concerned, pixels of the image.
    ``other_part``, ``other_path``  the second image of a pair (duplicates, leaks).
    ``badness``     larger is worse, within a kind: what "worst offenders" are sorted by.
    """

    kind: str
    part: str
    image_id: str
    path: Path
    detail: str
    boxes_xyxy: tuple[tuple[float, ...], ...] = ()
    other_part: str | None = None
    other_path: Path | None = None
    badness: float = 0.0


# Fewer pixels than one are no face; below eight even S3FD's smallest anchor (16 pixels) overlaps by less than a half.
TINY_PIXELS = 1.0
SMALL_PIXELS = 8.0

# The most severe come first, in tables too.
KINDS = (
    Kind("missing_image", "error", "Labels name an image that is not there.", fixable=True),
    Kind("unreadable", "error", "The file is empty, cut off or no image that can be decoded.", fixable=True),
    Kind("mis_sized", "error", "The labels state another size than the file has: they were made on another image."),
    Kind("mis_rotated", "error", "The labels fit the image only when it is turned."),
    Kind("malformed_label", "error", "Something in a label file is no label.", fixable=True),
    Kind("label_convention", "error", "Most boxes leave their images or are below a pixel: their numbers are not what "
         "the format has. Set data.format to what they are."),
    Kind("labelled_twice", "error", "The labels name the same image more than once.", fixable=True),
    Kind("leak", "error", "The same file is trained and validated on.", fixable=True),
    Kind("label_not_finite", "error", "A box has a coordinate that is no number.", fixable=True),
    Kind("label_outside", "error", "A box is wholly outside the image.", fixable=True),
    Kind("near_leak", "warning", "An image trained on is nearly one that is validated on: a copy, a crop or the next "
         "frame.", fixable=True),
    Kind("label_partly_outside", "warning", "A box reaches out of the image by more than a pixel.", fixable=True),
    Kind("label_without_area", "warning", "A box has no width or no height, or a negative one.", fixable=True),
    Kind("label_doubled", "warning", "Two boxes of an image are the same or nearly so (IoU above 0.95): one of them "
         "can only count as a miss.", fixable=True),
    Kind("label_tiny", "warning", "A face is less than a pixel wide or high."),
    Kind("duplicate", "warning", "The same file occurs twice in the training part, so it counts double.", fixable=True),
    Kind("duplicate_in_val", "warning", "The same file occurs twice in the validation part, so it counts double."),
    Kind("blank_image", "warning", "The image shows one color alone."),
    Kind("near_duplicate", "note", "Two images of a part are nearly the same: a copy, a crop or the next frame."),
    Kind("unlabelled_image", "note", "No label speaks of this file."),
    Kind("no_faces", "note", "The image has no face to train on: it is background."),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}


# Side of the gray thumbnail that images are compared by; 32 is what the perceptual hash was defined on.
THUMBNAIL_PIXELS = 32
# Standard deviation of the gray levels below which an image shows nothing: JPEG noise of a single color stays below.
BLANK_DEVIATION = 2.0
NO_FRAME = ImageFrame(0, 0)


@dataclass(frozen=True, eq=False)
class FileFacts:
    """What an image file is: ``length`` in bytes, ``digest`` of the content (b"" where it could not be read).

    ``trouble``    ``missing_image``, ``unreadable`` or "", and the ``reason`` for it.
    ``thumbnail``  (32, 32) uint8 gray, upright; None where the image is broken, or not decoded.
    ``blank``      whether all of it has one color.
    """

    path: Path
    length: int = 0
    digest: bytes = b""
    frame: ImageFrame = NO_FRAME
    trouble: str = ""
    reason: str = ""
    thumbnail: npt.NDArray[np.uint8] | None = None
    blank: bool = False


def examine_file(path: Path, decode: bool) -> FileFacts:
    """Read one file; ``decode``: its pixels too, with the reader that training uses."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return FileFacts(path, trouble="missing_image", reason="the image is not there")
    except OSError as error:
        return FileFacts(path, trouble="unreadable", reason=error.strerror or type(error).__name__)
    facts = FileFacts(path, len(content), hashlib.blake2b(content, digest_size=16).digest())
    try:
        with opened_image(content, path) as image:
            facts = replace(facts, frame=pillow_frame(image))
        if not decode:
            return facts
        gray = cv2.cvtColor(decode_image_rgb(content, path), cv2.COLOR_RGB2GRAY)
    except UnreadableImage as error:
        return replace(facts, trouble="unreadable", reason=error.reason)
    thumbnail = cv2.resize(gray, (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), interpolation=cv2.INTER_AREA)
    blank = float(np.asarray(cv2.meanStdDev(gray)[1]).item()) < BLANK_DEVIATION
    return replace(facts, thumbnail=np.asarray(thumbnail, dtype=np.uint8), blank=blank)


def examine_files(paths: Iterable[Path], *, decode: bool, workers: int = 1) -> dict[Path, FileFacts]:
    """Every file once, with a progress bar where there is a terminal; ``workers``: threads that read."""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = track(
            pool.map(partial(examine_file, decode=decode), distinct), "reading images", len(distinct),
            console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        return {facts.path: facts for facts in results}


# Two faces at one place to within a twentieth of their area: no person labels that on purpose.
DOUBLED_IOU = 0.95

Boxes = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Size = tuple[int, int]


class BoxFaults(NamedTuple):
    """(F,) bool each, one fault a box. ``doubled``: a box before it is the same; it goes before the two above it."""

    not_finite: Mask
    without_area: Mask
    outside: Mask
    partly_outside: Mask
    tiny: Mask
    doubled: Mask


def box_faults(boxes_xyxy: Boxes, ignored: Mask, frame_wh: Size | None) -> BoxFaults:
    """What is wrong with every box of an image, (F, 4) float64 pixels.

    Those that are flagged ``ignored``, (F,) bool, are not reported as tiny, nor as doubled among each other. Where
    ``frame_wh``, width and height of the image as it is read, is None, no box is outside.
    """
    finite = np.asarray(np.isfinite(boxes_xyxy).all(axis=1))
    boxes = np.where(finite[:, None], boxes_xyxy, 0.0)
    sides = boxes[:, 2:] - boxes[:, :2]
    without_area: Mask = finite & (sides <= 0).any(axis=1)
    sound = finite & ~without_area
    outside = partly = np.zeros_like(sound)
    if frame_wh is not None:
        outside = sound & ((boxes[:, :2] >= frame_wh) | (boxes[:, 2:] <= 0)).any(axis=1)
        partly = sound & ~outside & (overrun_pixels(boxes, frame_wh) > TOLERANCE_PIXELS)
    sound &= ~outside
    tiny = sound & ~partly & ~ignored & (sides < TINY_PIXELS).any(axis=1)
    doubled = _doubled(boxes, sound, ignored)
    return BoxFaults(~finite, without_area, outside, partly & ~doubled, tiny & ~doubled, doubled)


def overrun_pixels(boxes_xyxy: Boxes, frame_wh: Size) -> npt.NDArray[np.float64]:
    """(F,) how far each box reaches out of the image at most, 0 where it does not."""
    over = np.concatenate([-boxes_xyxy, boxes_xyxy - np.array(frame_wh * 2)], axis=1)
    return np.asarray(over.max(axis=1, initial=0.0))


def _doubled(boxes: Boxes, sound: Mask, ignored: Mask) -> Mask:
    """Greedy, usable boxes first: a box that is the same as one already kept is a double of it."""
    index = np.flatnonzero(sound)
    index = index[np.argsort(ignored[index], kind="stable")]
    chosen, flagged = torch.from_numpy(boxes[index]), ignored[index]
    same = np.tril(pairwise_iou(chosen, chosen).numpy() > DOUBLED_IOU, -1) & ~(flagged[:, None] & flagged)
    doubled = np.zeros(len(boxes), dtype=np.bool_)
    for row in np.flatnonzero(same.any(axis=1)):
        doubled[index[row]] = (same[row] & ~doubled[index]).any()
    return doubled


class FixedBoxes(NamedTuple):
    """``boxes_xyxy`` (K, 4) and ``ignored`` (K,) that are left, ``source`` (K,) their rows before, and what was done:
    ``clipped`` (K,) bool, ``dropped`` name of a fault → the rows that fell to it."""

    boxes_xyxy: Boxes
    ignored: Mask
    source: npt.NDArray[np.int64]
    clipped: Mask
    dropped: dict[str, npt.NDArray[np.int64]]


def fixed_boxes(boxes_xyxy: Boxes, ignored: Mask, frame_wh: Size | None) -> FixedBoxes:
    """Boxes clipped to the image, without those that are not finite, have no area, are outside or are doubled.

    A box that clipping leaves less than a pixel of is dropped as one outside. What is left has none of these faults.
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
    return FixedBoxes(boxes[~double], ignored[source[~double]], source[~double], clipped[~double], dropped)


def frame_fault(image: LabelledImage, facts: FileFacts) -> tuple[str, str] | None:
    """Whether the labels were made for another frame than the image has: (kind, detail), or None.

    ``mis_sized``: the labels state a size that the image does not have. ``mis_rotated``: it has the size stated when
    turned by a quarter; or, where no size is stated, boxes are outside the image and all are inside the turned one.
    Without an orientation in the file that takes a box whose centre is outside.
    """
    upright = facts.frame.upright_wh
    turned = upright[::-1]
    size = "{} × {}".format
    if image.stated_wh is not None:
        kind = "mis_rotated" if image.stated_wh == turned else "mis_sized"
        said = f"labels say {size(*image.stated_wh)}, the image is {size(*upright)}"
        return None if image.stated_wh == upright else (kind, said)
    boxes = image.boxes_xyxy[np.isfinite(image.boxes_xyxy).all(axis=1)]
    if not len(boxes) or upright == turned or (overrun_pixels(boxes, turned) > TOLERANCE_PIXELS).any():
        return None
    away = overrun_pixels(boxes, upright) > TOLERANCE_PIXELS
    if facts.frame.orientation < 5:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        away = np.asarray(((centres < 0) | (centres > upright)).any(axis=1))
    if not away.any():
        return None
    detail = f"{int(away.sum())} of {len(boxes)} boxes leave {size(*upright)}, all fit {size(*turned)}"
    return "mis_rotated", f"{detail}; orientation {facts.frame.orientation} in the file"


def label_findings(part: str, image: LabelledImage, facts: FileFacts | None) -> list[Finding]:
    """Findings about one image's labels; ``facts`` None: it cannot be looked at, so only the boxes' own shape."""
    found: list[Finding] = []

    def add(kind: str, detail: str, badness: float, boxes: Boxes = image.boxes_xyxy[:0]) -> None:
        listed = tuple(map(tuple, boxes.tolist()))
        found.append(Finding(kind, part, image.image_id, image.path, detail, listed, badness=badness))

    frame = None if facts is None else facts.frame.upright_wh
    if facts is not None and (fault := frame_fault(image, facts)):
        # Boxes outside are the consequence and would only repeat it.
        add(*fault, float(len(image.boxes_xyxy)), image.boxes_xyxy)
        frame = None
    faults = box_faults(image.boxes_xyxy, image.ignored, frame)
    for name, mask in faults._asdict().items():
        if mask.any():
            boxes = image.boxes_xyxy[mask]
            detail = f"{counted(len(boxes), 'box')}, first " if len(boxes) > 1 else ""
            detail += "x1 y1 x2 y2 {:.6g} {:.6g} {:.6g} {:.6g}".format(*boxes[0].tolist())
            detail += f", line {image.box_lines[int(mask.argmax())]}" if image.box_lines else ""
            badness = float(len(boxes))
            if frame is not None:
                detail += f"; image {frame[0]} × {frame[1]}"
                if name == "partly_outside":
                    badness = float(overrun_pixels(boxes, frame).max())
            add(f"label_{name}", detail, badness, boxes)
    # An image that cannot be read is trained on as nothing at all.
    if facts is not None and not (~image.ignored & ~faults.not_finite & ~faults.without_area).any():
        count = len(image.boxes_xyxy)
        add("no_faces", f"none of its {counted(count, 'box')} can be trained on" if count else "no box", 0.0)
    return found
