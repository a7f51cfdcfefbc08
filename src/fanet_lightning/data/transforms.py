"""Transforms: crops, distortion, anchor sampling, the training augmentation, the test scale.

The training augmentation (FANet §3.5): random expansion (SSD §3.6 of the later version) and then a random square crop
(S3FD §3.4) is again a square window of the original image, so the window is drawn first, and only its visible part is
resampled, once. SSD's color distortion works on that part before or after it, where there are fewer pixels, and so not
on the area around an expanded image; then come the flip, and what Albumentations is asked for.
"""

import importlib
import math
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, check, first_line, is_whole
from fanet_lightning.data.images import MAX_PIXELS, Image8
from fanet_lightning.data.records import Boxes
from fanet_lightning.ops.anchors import SIZES, STRIDES


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 63-bit seed of one sample's random draws, from (run's seed, epoch, image index) alone."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> 1)


class Window(NamedTuple):
    """A square of the image's plane: corner and side in whole image pixels. It may reach outside the image."""

    x: int
    y: int
    side: int


class Placement(NamedTuple):
    """The visible part of a window, and the output rectangle that it fills, in whole pixels x1 y1 x2 y2, half-open.
    Boxes follow this map and not the window's ideal scale, so they sit exactly where the pixels land.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]


def clean_boxes(boxes_xyxy: npt.ArrayLike, height: int, width: int) -> Boxes:
    """Boxes clipped to the image; those that are not finite, or have no area left, are dropped. (F, 4) → (F', 4)."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(boxes[:, 2:], np.array([width, height], dtype=np.float32))
    clipped: Boxes = np.concatenate([low, high], axis=1)
    return clipped[(high > low).all(axis=1)]


def place(window: Window, height: int, width: int, size: int) -> Placement | None:
    """Where the visible part of ``window`` lands in a ``size`` × ``size`` output; None if nothing is visible.

    A source that :func:`render` halves loses last rows and columns, under an output pixel, to have even sides.
    """
    sources, targets = [], []
    for start, length in ((window.x, width), (window.y, height)):
        low, high = max(start, 0), min(start + window.side, length)
        if low >= high:
            return None
        first = min(round((low - start) * size / window.side), size - 1)
        last = max(round((high - start) * size / window.side), first + 1)
        halvings = ((high - low) // (last - first)).bit_length() - 1
        sources.append((low, high - (high - low) % (1 << max(halvings, 0))))
        targets.append((first, last))
    (x1, x2), (y1, y2) = sources
    (left, right), (top, bottom) = targets
    return Placement((x1, y1, x2, y2), (left, top, right, bottom))


def render(
    image: Image8,
    placement: Placement | None,
    size: int,
    fill: tuple[int, int, int],
    recolor: Callable[[Image8], Image8] = lambda part: part,
) -> Image8:
    """The visible part resampled, ``fill`` around it. (H, W, 3) → (size, size, 3) uint8.

    Bilinear, which aliases where the image shrinks to less than half: so it is halved by 2 × 2 averages first.
    ``recolor`` works pixel by pixel, at the source's or the output's resolution, whichever has fewer pixels.
    """
    if placement is None:
        return np.full((size, size, 3), fill, dtype=np.uint8)
    x1, y1, x2, y2 = placement.source
    left, top, right, bottom = placement.target
    width, height = right - left, bottom - top
    visible = image[y1:y2, x1:x2]
    recolor_first = visible.shape[0] * visible.shape[1] < width * height
    if recolor_first:
        visible = recolor(visible)
    while visible.shape[1] >= 2 * width and visible.shape[0] >= 2 * height:
        half = (visible.shape[1] // 2, visible.shape[0] // 2)
        visible = cv2.resize(visible, half, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    visible = cv2.resize(visible, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    if not recolor_first:
        visible = recolor(visible)
    if (height, width) != (size, size):
        border = (top, size - bottom, left, size - right)
        color = [float(level) for level in fill]
        visible = cv2.copyMakeBorder(visible, *border, cv2.BORDER_CONSTANT, value=color).astype(np.uint8, copy=False)
    return visible


def boxes_in_window(boxes_xyxy: Boxes, window: Window, placement: Placement | None, min_face: float = 0.0) -> Boxes:
    """The faces that stay, in output pixels. (F, 4) pixels in the image → (F', 4), F' ≤ F.

    One stays if its center is in the window (S3FD §3.4), is cut at its border, and dropped under ``min_face`` pixels.
    """
    if placement is None or len(boxes_xyxy) == 0:
        return np.zeros((0, 4), dtype=np.float32)
    boxes = boxes_xyxy.astype(np.float64)
    start = np.array([window.x, window.y], dtype=np.float64)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centers >= start) & (centers < start + window.side)).all(axis=1)
    source = np.array(placement.source, dtype=np.float64).reshape(2, 2)
    target = np.array(placement.target, dtype=np.float64).reshape(2, 2)
    scale = (target[1] - target[0]) / (source[1] - source[0])
    corners = target[0] + (boxes[inside].reshape(-1, 2, 2) - source[0]) * scale
    corners = corners.clip(target[0], target[1])
    sides = corners[:, 1] - corners[:, 0]
    kept = (sides > 0).all(axis=1) & (sides.min(axis=1, initial=np.inf) >= min_face)
    out: Boxes = corners[kept].reshape(-1, 4).astype(np.float32)
    return out


class Strengths(NamedTuple):
    """What one image undergoes; the defaults change nothing.

    ``brightness`` is added to every channel, gray levels; ``contrast`` a factor on every channel (SSD scales about
    black, not about the mean); ``saturation`` a factor, ``hue`` added degrees, in HSV; ``contrast_first``: before the
    HSV steps, else after them; ``channels``: the order in which red, green and blue come out.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True
    channels: tuple[int, ...] = (0, 1, 2)


def distort(image_rgb: Image8, strengths: Strengths) -> Image8:
    """Brightness, then contrast, saturation and hue; or contrast last; then the channel order. (H, W, 3) uint8 RGB.

    Every step rounds and cuts to 0 … 255, as the original does. With neutral strengths the image itself comes back.
    """

    def contrasted(image: Image8) -> Image8:
        return cv2.convertScaleAbs(image, alpha=strengths.contrast).astype(np.uint8, copy=False)

    image = image_rgb
    if strengths.brightness != 0.0:
        level = float(round(strengths.brightness))
        per_channel: Any = (level, level, level, 0.0)  # cv2's typing knows arrays only
        image = cv2.add(image, per_channel).astype(np.uint8, copy=False)
    if strengths.contrast_first and strengths.contrast != 1.0:
        image = contrasted(image)
    if strengths.saturation != 1.0 or strengths.hue != 0.0:
        image = _shift_hsv(image, strengths.saturation, strengths.hue)
    if not strengths.contrast_first and strengths.contrast != 1.0:
        image = contrasted(image)
    if strengths.channels != (0, 1, 2):
        image = np.ascontiguousarray(image[..., list(strengths.channels)])
    return image


def _shift_hsv(image_rgb: Image8, saturation: float, hue: float) -> Image8:
    # The FULL variants spread 360° over 256 levels, 1.4° each; the plain ones over 180. So uint8 wraps as hue must.
    h, s, v = cv2.split(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2HSV_FULL))
    turned = h.astype(np.uint8, copy=False) + np.uint8(round(hue * 256 / 360) % 256)
    turned -= turned >> 7  # cv2 comes with 256 levels to the circle and goes back with 255: times 255/256, rounded
    hsv = cv2.merge((turned, cv2.convertScaleAbs(s, alpha=saturation), v))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL).astype(np.uint8, copy=False)


def target_range(face: float) -> list[tuple[float, float]]:
    """Intervals for a face's new size, each scale up to one past the nearest; ``face``: root of its area, pixels."""
    nearest = min(range(len(SIZES)), key=lambda i: abs(SIZES[i] - face))
    return [(size / 2, size * 2.0) for size in SIZES[: nearest + 2]]


def anchor_sampling_window(rng: random.Random, height: int, width: int, boxes_xyxy: Boxes, size: int) -> Window:
    """A window in which a randomly chosen face of (F, 4) has a randomly chosen anchor's size, resized to ``size``.

    The window holds the whole face, or lies around its center where the face is larger. It stays within the image
    where the image is large enough and covers it where it is not (ours: the paper leaves the position open).
    """
    x1, y1, x2, y2 = boxes_xyxy[rng.randrange(len(boxes_xyxy))].tolist()
    face = float(((x2 - x1) * (y2 - y1)) ** 0.5)
    low, high = rng.choice(target_range(face))
    side = max(1, round(size * face / rng.uniform(low, high)))
    return Window(_start(rng, x1, x2, side, width), _start(rng, y1, y2, side, height), side)


def _start(rng: random.Random, low: float, high: float, side: int, length: int) -> int:
    """First pixel of a window of ``side`` on an axis of ``length``, for a face from ``low`` to ``high``."""
    center = (low + high) / 2
    if side >= high - low:
        first, last = high - side, low
    else:
        first, last = max(low, center - side), min(high - side, center)
    within = (0, length - side) if side <= length else (length - side, 0)
    # Rounded to the nearest pixel and not inwards: a window as narrow as its face must still exist.
    start = round(rng.uniform(max(first, within[0]), min(last, within[1])))
    return min(max(start, within[0]), within[1])


# What each setting may be: the least and the most, of each number where there are several.
LIMITS: dict[str, tuple[float, float]] = {
    "size": (1, 1 << 16), "crop": (1e-3, 1), "expand_max": (1, 100), "brightness": (0, 255), "contrast": (0, 10),
    "saturation": (0, 10), "hue": (0, 180), "min_face": (0, 1 << 16), "fill": (0, 255), "attempts": (1, 1 << 20),
    "largest_square": (0, 1), "expand_probability": (0, 1), "flip": (0, 1), "distortion_probability": (0, 1),
    "channel_shuffle": (0, 1), "anchor_sampling": (0, 1),
}  # fmt: skip


class Drawn(NamedTuple):
    """What a sample's seed decides; ``boxes_xyxy`` (F', 4) stay, in output pixels; ``extra`` draws on from ``rng``."""

    window: Window
    placement: Placement | None
    boxes_xyxy: Boxes
    strengths: Strengths
    is_flipped: bool
    rng: random.Random


@dataclass(eq=False)
class TrainAugment:
    """``augment(image_rgb, boxes_xyxy, seed)`` → a square training sample. Picklable; every draw follows from ``seed``.

    Args:
        size: side S of the output, pixels.
        crop: smallest and largest side of the square crop over the shorter side of the (expanded) image.
        largest_square: probability of the largest square instead (S3FD §3.4: one patch of five).
        expand_max, expand_probability: SSD's expansion, up to this factor in either direction.
        flip: probability of the horizontal flip.
        brightness: gray levels, ±. contrast, saturation: ranges of the factors. hue: degrees, ±.
        distortion_probability: of each of the four. channel_shuffle: probability of a random channel order.
        anchor_sampling: probability of data-anchor-sampling in place of the square crop; 0 is FANet.
        min_face: faces whose shorter side is under this many output pixels are dropped.
        fill: RGB of the area outside the image, the mean color of ImageNet.
        attempts: squares tried until one keeps a face; then the largest square around a face is taken.
        extra: transforms of Albumentations on the finished square, in their order: objects, or mappings with
            ``_target_`` and arguments. Boxes follow; a face whose center leaves the image is dropped.

    InputError: a value outside :data:`LIMITS`, or a transform that does not exist, has no such argument, changes the
    size or type of the image or cannot take boxes.
    """

    size: int = 640
    _: KW_ONLY
    crop: Sequence[float] = (0.3, 1.0)
    largest_square: float = 0.2
    expand_max: float = 4.0
    expand_probability: float = 0.5
    flip: float = 0.5
    brightness: float = 32.0
    contrast: Sequence[float] = (0.5, 1.5)
    saturation: Sequence[float] = (0.5, 1.5)
    hue: float = 18.0
    distortion_probability: float = 0.5
    channel_shuffle: float = 0.0
    anchor_sampling: float = 0.0
    min_face: float = 2.0
    fill: Sequence[int] = (124, 116, 104)
    attempts: int = 50
    extra: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for name, limits in LIMITS.items():
            check_numbers(f"augment.{name}", getattr(self, name), getattr(TrainAugment, name), *limits)
        self._extra: Any = None
        if self.extra:
            # No bbox_params: what its processor does is done here, faster and without rounding fractions to float32.
            self._extra = _albumentations().Compose([self._made(item) for item in self.extra])

    def __call__(self, image_rgb: Image8, boxes_xyxy: npt.ArrayLike, seed: int) -> tuple[Image8, Boxes]:
        """(H, W, 3) uint8 and (F, 4) pixels → (S, S, 3) uint8 and (F', 4) float32 in its pixels, F' ≤ F, within 0 … S.

        Boxes may reach outside or be empty: they are clipped or dropped. ``seed`` ≥ 0. ValueError: no RGB uint8 image.
        """
        if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
            raise ValueError(f"expected a (H, W, 3) uint8 image, got {image_rgb.shape} {image_rgb.dtype}")
        drawn = self.draw(image_rgb.shape[0], image_rgb.shape[1], boxes_xyxy, seed)
        fill = (int(self.fill[0]), int(self.fill[1]), int(self.fill[2]))
        image = render(image_rgb, drawn.placement, self.size, fill, lambda part: distort(part, drawn.strengths))
        if drawn.is_flipped:
            image = cv2.flip(image, 1).astype(np.uint8, copy=False)
        if self._extra:
            return self._with_extra(self._extra, image, drawn.boxes_xyxy, seed, drawn.rng)
        return image, drawn.boxes_xyxy

    def draw(self, height: int, width: int, boxes_xyxy: npt.ArrayLike, seed: int) -> Drawn:
        """All draws of one sample but those of ``extra``, from the image's size and boxes alone, without any pixel."""
        rng = random.Random(seed)
        rng.random()  # of no use, but without it the samples of every seed would be others
        boxes = clean_boxes(boxes_xyxy, height, width)
        window: Window | None = None
        if rng.random() < self.anchor_sampling and len(boxes):
            window = anchor_sampling_window(rng, height, width, boxes, self.size)
            window = window if self.keeps_a_face(window, height, width, boxes) else None
        window = window or self.square(rng, height, width, boxes)
        placement = place(window, height, width, self.size)
        kept = boxes_in_window(boxes, window, placement, self.min_face)
        strengths, is_flipped = self.strengths(rng), rng.random() < self.flip
        if is_flipped:
            kept[:, [0, 2]] = self.size - kept[:, [2, 0]]
        return Drawn(window, placement, kept, strengths, is_flipped, rng)

    def boxes(self, height: int, width: int, boxes_xyxy: npt.ArrayLike, seed: int) -> Boxes:
        """The boxes of ``augment(image, boxes_xyxy, seed)`` for such an image; without pixels but for ``extra``."""
        if self._extra:
            return self(np.zeros((height, width, 3), dtype=np.uint8), boxes_xyxy, seed)[1]
        return self.draw(height, width, boxes_xyxy, seed).boxes_xyxy

    def square(self, rng: random.Random, height: int, width: int, boxes_xyxy: Boxes) -> Window:
        """S3FD's square, drawn up to ``attempts`` times on a canvas that SSD's expansion has enlarged, until it keeps a
        face (or there is none); then the largest square of the image itself around a face.
        """
        canvas_height, canvas_width, left, top = height, width, 0, 0
        if rng.random() < self.expand_probability:
            ratio = rng.uniform(1.0, self.expand_max)
            canvas_height, canvas_width = round(height * ratio), round(width * ratio)
            left, top = rng.randint(0, canvas_width - width), rng.randint(0, canvas_height - height)
        short = min(canvas_height, canvas_width)
        for _ in range(self.attempts):
            share = 1.0 if rng.random() < self.largest_square else rng.uniform(self.crop[0], self.crop[1])
            side = max(1, round(short * share))
            x, y = rng.randint(0, canvas_width - side), rng.randint(0, canvas_height - side)
            window = Window(x - left, y - top, side)
            if len(boxes_xyxy) == 0 or self.keeps_a_face(window, height, width, boxes_xyxy):
                return window
        return self.largest_with_a_face(rng, height, width, boxes_xyxy)

    def keeps_a_face(self, window: Window, height: int, width: int, boxes_xyxy: Boxes) -> bool:
        """Whether any face survives this window, its size in the output included."""
        return len(boxes_in_window(boxes_xyxy, window, place(window, height, width, self.size), self.min_face)) > 0

    def largest_with_a_face(self, rng: random.Random, height: int, width: int, boxes_xyxy: Boxes) -> Window:
        """The image's largest square around a face; a face too small for the output is taken only if all are."""
        side = min(height, width)
        large_enough = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).min(axis=1) * self.size / side >= self.min_face
        faces = np.flatnonzero(large_enough) if large_enough.any() else np.arange(len(boxes_xyxy))
        x1, y1, x2, y2 = boxes_xyxy[rng.choice(faces.tolist())].tolist()
        x, y = math.floor((x1 + x2 - side + 1) / 2), math.floor((y1 + y2 - side + 1) / 2)
        return Window(min(max(x, 0), width - side), min(max(y, 0), height - side), side)

    def strengths(self, rng: random.Random) -> Strengths:
        """SSD's distortion: each of the four steps with its probability, evenly from its range; either order alike."""

        def drawn(bounds: Sequence[float], neutral: float) -> float:
            return rng.uniform(bounds[0], bounds[1]) if rng.random() < self.distortion_probability else neutral

        return Strengths(
            brightness=drawn((-self.brightness, self.brightness), 0.0),
            contrast=drawn(self.contrast, 1.0),
            saturation=drawn(self.saturation, 1.0),
            hue=drawn((-self.hue, self.hue), 0.0),
            contrast_first=rng.random() < 0.5,
            channels=tuple(rng.sample(range(3), 3)) if rng.random() < self.channel_shuffle else (0, 1, 2),
        )

    def _with_extra(
        self, transform: Any, image: Image8, boxes_xyxy: Boxes, seed: int, rng: random.Random, **options: Any
    ) -> tuple[Image8, Boxes]:
        # One stream for all transforms: Compose.set_random_seed would start each of them at the same draws, and so tie
        # them together.
        transform.set_random_state(np.random.default_rng(seed), rng)
        changed = transform(image=image, bboxes=boxes_xyxy.astype(np.float64) / self.size, **options)
        if changed["image"].shape != image.shape or changed["image"].dtype != np.uint8:
            raise InputError(f"augment.extra: {transform} changes the size or type of the image; leave it out")
        whole = (0, 0, self.size, self.size)
        boxes = (np.asarray(changed["bboxes"]).reshape(-1, 4) * self.size).astype(np.float32)
        return changed["image"], boxes_in_window(boxes, Window(0, 0, self.size), Placement(whole, whole), self.min_face)

    def _made(self, item: Any) -> Any:
        """One of ``extra``, run once on a small face before anything trains: many mistakes show only then."""
        from fanet_lightning.cli.config import made

        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Albumentations only warns of arguments that it does not know
            transform = made(f"augment.extra: {item}", item) if isinstance(item, Mapping) else item
        image = np.full((self.size, self.size, 3), 128, dtype=np.uint8)
        face = np.array([[0.25, 0.25, 0.75, 0.75]], dtype=np.float32) * self.size
        try:
            if not isinstance(transform, _albumentations().BasicTransform | _albumentations().BaseCompose):
                raise TypeError("is no transform; give [{_target_: albumentations.GaussNoise, p: 0.2}]")
            self._with_extra(transform, image, face, 0, random.Random(0), force_apply=True)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"augment.extra: {item}: {first_line(error)}") from error
        return transform


def build_augment(settings: Mapping[str, Any]) -> Any:
    """What the group ``augment`` names by its ``_target_``; TrainAugment makes its extra transforms itself."""
    # Here and below: detection needs this module as well, and Hydra takes a quarter of a second to import.
    from fanet_lightning.cli.config import made

    return made("augment", settings, _recursive_=False)


def check_numbers(key: str, value: Any, default: Any, low: float, high: float) -> None:
    """Refuse what is not of the default's kind: as many numbers, within the limits, in rising order if two."""
    numbers = list(value) if isinstance(default, Sequence) and isinstance(value, Sequence) else [value]
    kind = int if isinstance(default, int) else int | float
    good = all(isinstance(x, kind) and not isinstance(x, bool) and low <= x <= high for x in numbers)
    good = good and len(numbers) == np.size(default) and (len(numbers) != 2 or numbers == sorted(numbers))
    check(good, f"{key}={value}: give what is like {default}, within {low:g} … {high:g}")


def _albumentations() -> Any:
    # Here, because detection needs this module as well, and importing Albumentations takes longer than all else in it.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer version
    return importlib.import_module("albumentations")


# Of tiles (detect.tiling): their places are multiples of the stride, the margin is what the network sees around a face.
STRIDE = STRIDES[-1]
MARGIN = 640
SMALLEST_TILE_PIXELS = (2 * MARGIN + STRIDE) ** 2

# ``auto``: as many as fit into memory. A number: at most so many. None: the whole image, whatever comes.
TilePixels = int | Literal["auto"] | None
AUTO: Literal["auto"] = "auto"


def check_tile_pixels(value: object) -> None:
    """Refuse what is neither ``auto``, nor None, nor a whole number of at least SMALLEST_TILE_PIXELS."""
    least = f"a number of at least {SMALLEST_TILE_PIXELS}"
    fits = value in (None, AUTO) or is_whole(value, SMALLEST_TILE_PIXELS)
    check(fits, f"protocol.tile_pixels={value}; give auto, {least}, or null for no tiles")


# Longer side of a strip that was enlarged, in shorter sides asked for. WIDER FACE's images are at most 6 times as long.
LONGEST_STRIP = 10


class Resized(NamedTuple):
    """``image`` (H', W', 3) uint8 and ``scale_xy`` (2,) float32, the exact ratio of the sizes along x and y."""

    image: npt.NDArray[np.uint8]
    scale_xy: npt.NDArray[np.float32]


SINGLE_KINDS = ("short", "long", "original")


@dataclass(frozen=True)
class TestScale:
    """Resizes an image to a protocol's scale, aspect kept to the pixel; it also enlarges.

    ``kind``: ``short`` sets the shorter side to ``size``, ``long`` the longer one, ``original`` neither.
    ``max_long``: the longer side ends at most here; the scale is lowered where need be (RetinaFace's 1600/2150 rule).
    ``tile_pixels``: a resized image with more pixels is computed in overlapping tiles, to the same faces
        (:mod:`fanet_lightning.detect.tiling`); ``auto``: one that does not fit into memory; None: never.

    A strip is enlarged until its longer side is ten times the size asked for, and no image becomes larger than what can
    be read (179 megapixels). Sides are rounded to the nearest pixel, so the two scales differ by a trifle.
    Bilinear without antialiasing both ways, as in the evaluation programs of S3FD and RetinaFace.
    """

    # Not a test case, whatever its name begins with.
    __test__ = False

    kind: Literal["short", "long", "original"] = "short"
    size: int | None = 640
    max_long: int | None = None
    tile_pixels: TilePixels = AUTO

    def __post_init__(self) -> None:
        if self.kind not in SINGLE_KINDS:
            raise InputError(f"protocol.kind={self.kind} is unknown; take one of {', '.join(SINGLE_KINDS)}")
        for key, needed in (("size", self.kind != "original"), ("max_long", self.max_long is not None)):
            if needed:
                check_numbers(f"protocol.{key}", getattr(self, key), 640, 1, math.inf)
        check_tile_pixels(self.tile_pixels)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the resized image, at least 1 × 1."""
        scale = 1.0
        if self.kind != "original":
            assert self.size is not None
            scale = self.size / (min if self.kind == "short" else max)(height, width)
            scale = min(scale, max(1.0, LONGEST_STRIP * self.size / max(height, width)))
        if self.max_long is not None:
            scale = min(scale, self.max_long / max(height, width))
        # Sides are rounded up by half a pixel at most, which on a thin strip is much.
        while scale > 1 and max(1, int(height * scale + 0.5)) * max(1, int(width * scale + 0.5)) > MAX_PIXELS:
            scale = max(1.0, min(scale * 0.999, (MAX_PIXELS / (height * width)) ** 0.5))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def __call__(self, image: npt.NDArray[np.uint8]) -> Resized:
        """``image`` (H, W, 3) uint8; an image that has its size already is handed back as it is."""
        height, width = image.shape[:2]
        new_height, new_width = self.target_size(height, width)
        scale_xy = np.array([new_width / width, new_height / height], dtype=np.float32)
        if (new_height, new_width) == (height, width):
            return Resized(image, scale_xy)
        resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        return Resized(resized.astype(np.uint8, copy=False), scale_xy)
