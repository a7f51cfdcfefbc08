"""Checks: kinds of findings, image files, labels."""

import hashlib
import io
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.records import LabelledImage

# ``error``: training or a score is wrong or fails with it. ``warning``: worth a look. ``note``: good to know.
Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: ``name`` as in tables (``label_outside``), its meaning and what to do, a sentence each."""

    name: str
    severity: Severity
    meaning: str
    remedy: str
    mended_by_fix: bool = False


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
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    other_part: str | None = None
    other_path: Path | None = None
    badness: float = 0.0


@dataclass(frozen=True)
class Facts:
    """Numbers of one part: ``images``, ``faces``, ``ignored_faces``, ``images_without_faces``, ``bytes``."""

    part: str
    images: int
    faces: int
    ignored_faces: int
    images_without_faces: int
    bytes: int


@dataclass
class Report:
    """All of one examination: ``findings`` in the order of ``kinds``, most severe first."""

    title: str
    kinds: list[Kind]
    findings: list[Finding] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    seconds: float = 0.0

    def of_kind(self, name: str) -> list[Finding]:
        """The findings of a kind, worst first."""
        return sorted((finding for finding in self.findings if finding.kind == name), key=lambda f: -f.badness)


# Fewer pixels than one are no face; below eight even S3FD's smallest anchor (16 pixels) overlaps by less than a half.
TINY_PIXELS = 1.0
SMALL_PIXELS = 8.0

KINDS: tuple[Kind, ...] = (
    Kind(
        "missing_image",
        "error",
        "Labels name an image that is not there.",
        "Fetch the image, or take its labels out.",
        mended_by_fix=True,
    ),
    Kind("empty_file", "error", "The file has no bytes.", "Fetch the image again.", mended_by_fix=True),
    Kind("not_image", "error", "The file is no image.", "Fetch the image again.", mended_by_fix=True),
    Kind("truncated", "error", "The file was cut off.", "Fetch the image again.", mended_by_fix=True),
    Kind("unreadable", "error", "The image cannot be decoded.", "Fetch or convert the image.", mended_by_fix=True),
    Kind(
        "mis_sized",
        "error",
        "The labels state another size than the file has: they were drawn on another picture.",
        "Find the picture that was labelled, or scale the labels.",
    ),
    Kind(
        "mis_rotated",
        "error",
        "The labels fit the image only when it is turned.",
        "Turn the image or the labels; remove the camera's orientation from the file.",
    ),
    Kind(
        "malformed_label", "error", "Something in a label file is no label.", "Mend the line named.", mended_by_fix=True
    ),
    Kind(
        "label_convention",
        "error",
        "Most boxes leave their images or are below a pixel: their numbers are not what the format has.",
        "Write them as the format has them, or set data.format to what they are.",
    ),
    Kind(
        "labelled_twice",
        "error",
        "The labels name the same image more than once.",
        "Join the boxes under one name.",
        mended_by_fix=True,
    ),
    Kind(
        "leak",
        "error",
        "The same file is trained and validated on.",
        "Take it out of the training part.",
        mended_by_fix=True,
    ),
    Kind(
        "label_not_finite",
        "error",
        "A box has a coordinate that is no number.",
        "Label the face again.",
        mended_by_fix=True,
    ),
    Kind(
        "label_outside",
        "error",
        "A box lies wholly outside the image.",
        "Label the face again, or take the box out.",
        mended_by_fix=True,
    ),
    Kind(
        "letter_case",
        "warning",
        "The labels name the image in other letter case than the file: it is read here and missing in other programs.",
        "Rename the file as the labels have it.",
        mended_by_fix=True,
    ),
    Kind(
        "near_leak",
        "warning",
        "An image trained on is nearly one that is validated on: a copy, a crop or the next frame.",
        "Look at the pair; take the image out of the training part.",
        mended_by_fix=True,
    ),
    Kind(
        "label_partly_outside",
        "warning",
        "A box reaches out of the image by more than a pixel.",
        "Clip it to the image.",
        mended_by_fix=True,
    ),
    Kind(
        "label_without_area",
        "warning",
        "A box has no width or no height, or a negative one: no face that could be found.",
        "Label the face again, or take the box out.",
        mended_by_fix=True,
    ),
    Kind(
        "label_doubled",
        "warning",
        "Two boxes of an image are the same or nearly so (IoU above 0.95): one of them can only count as a miss.",
        "Keep one of them.",
        mended_by_fix=True,
    ),
    Kind(
        "label_tiny",
        "warning",
        "A face is less than a pixel wide or high.",
        "Label the face again, flag it as ignored, or take it out.",
    ),
    Kind(
        "duplicate",
        "warning",
        "The same file occurs twice in the training part, so it counts double.",
        "Keep one of them.",
        mended_by_fix=True,
    ),
    Kind(
        "duplicate_in_val",
        "warning",
        "The same file occurs twice in the validation part, so it counts double.",
        "Keep one of them, if the benchmark is yours to change.",
    ),
    Kind(
        "damaged_image",
        "warning",
        "The decoder found damage and went on: a part of the picture may be grey, shifted or of wrong colours.",
        "Look at it; fetch it again.",
    ),
    Kind("blank_image", "warning", "The image shows one colour alone.", "Look at it; fetch it again."),
    Kind(
        "near_duplicate",
        "note",
        "Two images of a part are nearly the same: a copy, a crop or the next frame.",
        "Look at the pair; keep both or one.",
    ),
    Kind(
        "orientation",
        "note",
        "The camera's orientation stands in the file and the labels fit the upright image, or say that they do not.",
        "Nothing to do here; programs that ignore it see the image turned.",
    ),
    Kind("unlabelled_image", "note", "No label speaks of this file.", "Label it, or take it out of the folder."),
    Kind("no_faces", "note", "The image has no face to train on.", "Nothing to do: it is trained on as background."),
)

BY_NAME = {kind.name: kind for kind in KINDS}


# Side of the grey thumbnail that images are compared by; 32 is what the perceptual hash was defined on.
THUMBNAIL_PIXELS = 32
# Standard deviation of the grey levels below which an image shows nothing: JPEG noise of a single colour stays below.
BLANK_DEVIATION = 2.0
_CHUNK = 16
# JPEG and PNG.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n")


@dataclass(frozen=True, eq=False)
class FileFacts:
    """What one image file is.

    ``length``       bytes of content.
    ``digest``       of its content, 16 bytes; equal files have equal ones. b"" where it cannot be read.
    ``width``, ``height``  pixels as stored; 0 where unknown.
    ``orientation``  EXIF 1 … 8; 1 where there is none.
    ``trouble``      name of the :class:`Kind` that keeps it from being read, or "".
    ``reason``       of that trouble, in words.
    ``thumbnail``    (32, 32) uint8 grey, upright, squeezed to a square; None where it was not decoded.
    ``blank``        whether it shows one colour alone; False where it was not decoded.
    ``damage``       what the JPEG decoder found fault with and went on; "" where nothing, or where it was not decoded.
    """

    path: Path
    length: int = 0
    digest: bytes = b""
    width: int = 0
    height: int = 0
    orientation: int = 1
    trouble: str = ""
    reason: str = ""
    thumbnail: npt.NDArray[np.uint8] | None = None
    blank: bool = False
    damage: str = ""

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height once the camera's orientation is applied, as training and scoring read the image."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def examine_file(path: Path, decode: bool) -> FileFacts:
    """Read one file; ``decode``: its pixels too, with the reader that training uses."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return FileFacts(path, trouble="unreadable", reason=error.strerror or type(error).__name__)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    if not content:
        return FileFacts(path, digest=digest, trouble="empty_file", reason="0 bytes")
    width, height, orientation, trouble, reason = _header(content)
    thumbnail, blank, damage = None, False, ""
    if not trouble and decode:
        with _decoder_remarks() as remarks:
            thumbnail, blank, trouble, reason = _look(content, path)
        damage = "" if trouble else "; ".join(dict.fromkeys(remarks))
    return FileFacts(path, len(content), digest, width, height, orientation, trouble, reason, thumbnail, blank, damage)


@contextmanager
def _decoder_remarks() -> Iterator[list[str]]:
    """Lines that libjpeg writes to the standard error stream inside the block; filled when the block ends.

    It reports damage that it can go on after (a segment that ends early, a lost restart marker) in no other way, and
    OpenCV does not look. Other lines are passed on.
    """
    remarks: list[str] = []
    try:
        kept = os.dup(2)
    except OSError:  # a process without that stream
        yield remarks
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield remarks
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if "JPEG" in line:
                    remarks.append(line.strip())
                elif line:
                    print(line, file=sys.stderr)


def _header(content: bytes) -> tuple[int, int, int, str, str]:
    """Stored width and height, orientation, trouble and its reason, without decoding."""
    from PIL import Image, UnidentifiedImageError

    from fanet_lightning.data.images import pillow_frame

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                width, height, orientation = pillow_frame(image)
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        if content.startswith(_MAGIC) and not any(start in content for start in (b"\xff\xda", b"IDAT")):
            return 0, 0, 1, "truncated", f"ends inside its header, after {len(content):,} bytes"
        if isinstance(error, UnidentifiedImageError):
            return 0, 0, 1, "not_image", f"begins with {content[:8]!r}"
        return 0, 0, 1, "unreadable", " ".join(str(error).split()) or type(error).__name__
    if content.startswith(b"\xff\xd8\xff") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        # Compressed data never look like a marker, so the last scan was not closed.
        return width, height, orientation, "truncated", f"a JPEG without its end marker, {len(content):,} bytes"
    return width, height, orientation, "", ""


def _look(content: bytes, path: Path) -> tuple[npt.NDArray[np.uint8] | None, bool, str, str]:
    """Thumbnail, blankness, trouble and its reason."""
    import cv2

    from fanet_lightning.data.images import UnreadableImage, decode_image_rgb

    try:
        grey = cv2.cvtColor(decode_image_rgb(content, path), cv2.COLOR_RGB2GRAY)
    except UnreadableImage as error:
        cut = "truncated" in error.reason or "cut short" in error.reason
        return None, False, "truncated" if cut else "unreadable", error.reason
    side = (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    thumbnail = np.asarray(cv2.resize(grey, side, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    _, deviation = cv2.meanStdDev(grey)
    return thumbnail, float(np.asarray(deviation).item()) < BLANK_DEVIATION, "", ""


def _examine_chunk(paths: Sequence[Path], decode: bool) -> list[FileFacts]:
    import cv2

    cv2.setNumThreads(1)  # as many processes as cores already; restored nowhere, since the process is ours alone
    return [examine_file(path, decode) for path in paths]


def examine_files(
    paths: Iterable[Path], *, decode: bool, workers: int = 1, progress: Callable[[int], None] | None = None
) -> dict[Path, FileFacts]:
    """Every file once, in ``workers`` processes.

    Args:
        paths: image files; repeated ones are read once.
        decode: read the pixels too, else headers and content hashes alone.
        workers: processes; 1 stays in this one.
        progress: called with the number of files done since the last call.

    Raises:
        InputError: a worker process was killed.
    """
    distinct = list(dict.fromkeys(paths))
    facts: dict[Path, FileFacts] = {}
    if workers <= 1:
        for path in distinct:
            facts[path] = examine_file(path, decode)
            if progress is not None:
                progress(1)
        return facts
    chunks = [distinct[start : start + _CHUNK] for start in range(0, len(distinct), _CHUNK)]
    # spawn: a fork of a process in which libraries run threads may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_examine_chunk, chunk, decode) for chunk in chunks]
        try:
            for job in as_completed(jobs):
                done = job.result()
                facts.update((fact.path, fact) for fact in done)
                if progress is not None:
                    progress(len(done))
        except BrokenProcessPool as error:
            raise InputError("a process that reads images was killed, likely for memory; try workers=1") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {path: facts[path] for path in distinct}


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
    from fanet_lightning.data.folder.labels import PlacedImage

    x1, y1, x2, y2 = image.boxes_xyxy[rows[0]].tolist()
    first = f"x y w h {x1:.6g} {y1:.6g} {x2 - x1:.6g} {y2 - y1:.6g}"
    if not np.isfinite([x1, y1, x2, y2]).all():  # their differences would say nothing
        first = f"x1 y1 x2 y2 {x1:.6g} {y1:.6g} {x2:.6g} {y2:.6g}"
    lines = image.box_lines if isinstance(image, PlacedImage) else ()
    place = f", line {lines[int(rows[0])]}" if lines else ""
    count = f"{len(rows)} boxes, first " if len(rows) > 1 else ""
    return f"{count}{first}{place}" + (f"; {extra}" if extra else "")


def best_overlaps(sizes: npt.ArrayLike, positions: int = 37) -> npt.NDArray[np.float64]:
    """Largest IoU of a square face with any anchor: (S,) sizes in pixels → (S, P) by position of its centre.

    ``positions`` per axis, evenly over the coarsest stride; P is their square. An odd number visits every phase of the
    finer strides. Far from the image's border.
    """
    from fanet_lightning.ops.anchors import SIZES, STRIDES

    face = np.asarray(sizes, dtype=np.float64)[:, None]
    axis = (np.arange(positions) + 0.5) * STRIDES[-1] / positions
    best = np.zeros((len(face), positions * positions))
    for stride, size in zip(STRIDES, SIZES, strict=True):
        # Of one map the anchor nearest in x and y overlaps most, as all are of one size.
        offset = np.abs(axis - (np.floor(axis / stride) + 0.5) * stride)
        overlap = np.clip(np.minimum((face + size) / 2 - offset, np.minimum(face, size)), 0, None)
        intersection = (overlap[:, :, None] * overlap[:, None, :]).reshape(len(face), -1)
        best = np.maximum(best, intersection / (face**2 + size**2 - intersection))
    return best


class Listing:
    """Looks files up in listings of their folders, each read once: fast on network drives too."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, str]] = {}
        self._folded: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path | None:
        """The file at ``path``, else the only one whose name differs in letter case alone, else None.

        The folders above may differ in letter case as well.
        """
        folder = self._folder(path.parent)
        if folder is None:
            return None
        names = self._read(folder)
        if path.name in names:
            return folder / path.name
        candidates = self._folded[folder].get(path.name.casefold(), [])
        return folder / candidates[0] if len(candidates) == 1 else None

    def _folder(self, folder: Path) -> Path | None:
        if folder in self._names or folder == folder.parent:
            return folder
        above = self._folder(folder.parent)
        if above is None:
            return None
        names = self._read(above)
        # A folder that cannot be listed may still be entered.
        if folder.name in names or folder.name == ".." or not names:
            return above / folder.name
        candidates = self._folded[above].get(folder.name.casefold(), [])
        return above / candidates[0] if len(candidates) == 1 else None

    def _read(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            try:
                with os.scandir(folder) as entries:
                    names = [entry.name for entry in entries]
            except OSError:
                names = []
            self._names[folder] = {name: name for name in names}
            self._folded[folder] = {}
            for name in names:
                self._folded[folder].setdefault(name.casefold(), []).append(name)
        return self._names[folder]
