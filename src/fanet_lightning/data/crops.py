"""Square training crops: a window of the image, possibly reaching outside it, and one resampling of it.

Random expansion (SSD §3.6 of the later version) followed by a random square crop (S3FD §3.4, FANet §3.5) is again a
square window of the original image, so nothing is ever padded and cropped in between: the window is drawn first, and
only its visible part is resampled, once.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.data.images import Image8
from fanet_lightning.data.records import Boxes


class Window(NamedTuple):
    """A square of the image's plane: corner and side in whole image pixels. It may reach outside the image."""

    x: int
    y: int
    side: int


class Placement(NamedTuple):
    """The visible part of a window, and the whole-pixel rectangle of the output that it fills.

    Both are (x1, y1, x2, y2), half-open. Boxes follow this map and not the window's ideal scale, so they sit exactly
    where the pixels land: rounding the rectangles moves nothing by more than one output pixel.
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

    A source that will be halved (see :func:`render`) loses its last rows and columns where its sides are not even, less
    than one output pixel: cv2 is fast for whole factors only.
    """
    source_low, source_high, target_low, target_high = [], [], [], []
    for start, length in ((window.x, width), (window.y, height)):
        low, high = max(start, 0), min(start + window.side, length)
        if low >= high:
            return None
        first = min(round((low - start) * size / window.side), size - 1)
        last = max(round((high - start) * size / window.side), first + 1)
        halvings = ((high - low) // (last - first)).bit_length() - 1
        source_low.append(low)
        source_high.append(high - (high - low) % (1 << max(halvings, 0)))
        target_low.append(first)
        target_high.append(last)
    return Placement(
        (source_low[0], source_low[1], source_high[0], source_high[1]),
        (target_low[0], target_low[1], target_high[0], target_high[1]),
    )


def render(
    image: Image8,
    placement: Placement | None,
    size: int,
    fill: tuple[int, int, int],
    recolour: Callable[[Image8], Image8] = lambda part: part,
) -> Image8:
    """Resample the visible part and surround it with ``fill``. (H, W, 3) → (size, size, 3) uint8.

    Bilinear alone skips source pixels, and so aliases, where the image shrinks to less than half. There the image is
    halved by 2 × 2 averages first, as often as needed: half the time of cv2's INTER_AREA. At scale 1 pixels are copied.

    ``recolour`` works pixel by pixel, so it commutes with resampling but for rounding and cutting; it is given the
    visible part at the source's or the output's resolution, whichever has fewer pixels. ``fill`` stays as it is.
    """
    if placement is None:
        return np.full((size, size, 3), fill, dtype=np.uint8)
    x1, y1, x2, y2 = placement.source
    left, top, right, bottom = placement.target
    width, height = right - left, bottom - top
    visible = image[y1:y2, x1:x2]
    recolour_first = visible.shape[0] * visible.shape[1] < width * height
    if recolour_first:
        visible = recolour(visible)
    while visible.shape[1] >= 2 * width and visible.shape[0] >= 2 * height:
        half = (visible.shape[1] // 2, visible.shape[0] // 2)
        visible = cv2.resize(visible, half, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    visible = cv2.resize(visible, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    if not recolour_first:
        visible = recolour(visible)
    if (height, width) != (size, size):
        border = (top, size - bottom, left, size - right)
        colour = [float(level) for level in fill]
        visible = cv2.copyMakeBorder(visible, *border, cv2.BORDER_CONSTANT, value=colour).astype(np.uint8, copy=False)
    return visible


def boxes_in_window(boxes_xyxy: Boxes, window: Window, placement: Placement | None, min_face: float = 0.0) -> Boxes:
    """The faces that stay, in output pixels. (F, 4) image pixels → (F', 4), F' ≤ F.

    A face stays if its centre lies in the window (S3FD §3.4); it is cut at the window's border, and dropped if its
    shorter side is then under ``min_face`` output pixels. ``boxes_xyxy`` must lie in the image (:func:`clean_boxes`).
    """
    if placement is None or len(boxes_xyxy) == 0:
        return np.zeros((0, 4), dtype=np.float32)
    boxes = boxes_xyxy.astype(np.float64)
    start = np.array([window.x, window.y], dtype=np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= start) & (centres < start + window.side)).all(axis=1)
    source = np.array(placement.source, dtype=np.float64).reshape(2, 2)
    target = np.array(placement.target, dtype=np.float64).reshape(2, 2)
    scale = (target[1] - target[0]) / (source[1] - source[0])
    corners = target[0] + (boxes[inside].reshape(-1, 2, 2) - source[0]) * scale
    corners = corners.clip(target[0], target[1])
    sides = corners[:, 1] - corners[:, 0]
    kept = (sides > 0).all(axis=1) & (sides.min(axis=1, initial=np.inf) >= min_face)
    out: Boxes = corners[kept].reshape(-1, 4).astype(np.float32)
    return out


class SquareSampler(NamedTuple):
    """Draws S3FD's square, on a canvas that SSD's expansion has enlarged first.

    ``size``                side of the output, pixels (decides which faces fall under ``min_face``).
    ``crop``                smallest and largest side of the square over the shorter side of the canvas.
    ``largest_square``      probability of the largest square, in place of a side drawn from ``crop``.
    ``expand_max``          the canvas is 1 … ``expand_max`` times the image in either direction …
    ``expand_probability``  … with this probability, and the image itself otherwise.
    ``attempts``            squares drawn until one keeps a face.
    """

    size: int
    crop: tuple[float, float]
    largest_square: float
    expand_max: float
    expand_probability: float
    min_face: float
    attempts: int

    def draw(self, rng: random.Random, height: int, width: int, boxes_xyxy: Boxes) -> Window:
        """One window. It keeps at least one face, unless there is none or all are too small.

        The canvas is drawn once and the square up to ``attempts`` times on it. After that comes the largest square of
        the image itself, centred on a randomly chosen face as far as the border allows. Images without faces take the
        first square.
        """
        canvas_height, canvas_width, left, top = height, width, 0, 0
        if rng.random() < self.expand_probability:
            ratio = rng.uniform(1.0, self.expand_max)
            canvas_height, canvas_width = round(height * ratio), round(width * ratio)
            left, top = rng.randint(0, canvas_width - width), rng.randint(0, canvas_height - height)
        short = min(canvas_height, canvas_width)
        for _ in range(self.attempts):
            share = 1.0 if rng.random() < self.largest_square else rng.uniform(*self.crop)
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
