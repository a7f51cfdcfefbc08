"""Faces drawn into an image: boxes colored by confidence, and a color bar next to it (paper, figure 9).

Everything here is NumPy, OpenCV and Pillow: no matplotlib figure is built per image, so a video can be drawn as fast
as it is read (docs/experiments.md).
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["annotate", "bar_width", "confidence_colors", "outlined"]

ImageLike = npt.NDArray[np.uint8] | Image.Image | str | os.PathLike[str]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Lines and letters grow with the image's longer side, so that an image shrunk to a screen still shows them.
LINE_PER_SIDE = 1 / 300
FONT_PER_SIDE = 1 / 64
FONT_PER_FACE = 1 / 3  # at most, so that labels leave room for the faces of a crowd
SMALLEST_FONT = 9  # pixels: below it digits cannot be told apart
# The dark casing at both sides of a line, by which it shows on bright images too, as a share of the line.
CASING = 1 / 3
# The part of matplotlib's turbo that is bright enough to show on dark images.
TURBO_FROM, TURBO_TO = 0.15, 0.8
# A line is no thicker than this share of its face's shorter side: small faces in a large image stay visible ...
LINE_PER_FACE = 1 / 6
# ... but no thinner than this share of the image: a line of 1 pixel in 10,000 is gone when the image is shrunk.
THINNEST_PER_SIDE = 1 / 2000


def confidence_colors(scores: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The color of each confidence, of the bright part of matplotlib's ``turbo``: blue at 0, green at 0.5, red at 1.

    Args:
        scores: (D,) in [0, 1]; values outside are clipped, NaN counts as 0.

    Returns:
        (D, 3) uint8 RGB.
    """
    values = np.nan_to_num(np.asarray(scores, dtype=np.float64).reshape(-1), nan=0.0)
    shares = TURBO_FROM + (TURBO_TO - TURBO_FROM) * np.clip(values, 0.0, 1.0)
    return _turbo_rgb()[np.minimum((shares * 256).astype(np.int64), 255)]


def annotate(
    image_rgb: npt.NDArray[np.uint8],
    boxes_xyxy: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    faces_xyxy: npt.ArrayLike = (),
    bar: bool = False,
    labels: bool | Sequence[str] = False,
) -> npt.NDArray[np.uint8]:
    """The image with a frame around every face, color = confidence; confident faces are on top.

    Frames, bright lines with a dark casing, are drawn around the boxes, not over them, so even a face of a few pixels
    stays visible; at the image's border they are moved inside. Line and letter sizes follow the image's size.

    Args:
        image_rgb: (H, W, 3) uint8; left as it is.
        boxes_xyxy: (D, 4) pixels of the image. Parts outside are cut off; a box wholly outside, empty or not finite
            is not drawn.
        scores: (D,) in [0, 1].
        faces_xyxy: (F, 4) annotated faces, beneath as thin white frames.
        bar: add a color bar with ticks from 0 to 1 at the right: the result is ``bar_width(H, W)`` pixels wider.
        labels: write each score above its face; or these texts.

    Returns:
        (H, W, 3), with the bar (H, W + bar_width(H, W), 3), uint8: a new array.

    Raises:
        ValueError: the image is not (H, W, 3) uint8, or boxes and scores do not belong together.
    """
    image_rgb = checked_image(image_rgb)
    boxes = checked_boxes(boxes_xyxy)
    confidences = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(confidences) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes, but {len(confidences)} scores")
    height, width = image_rgb.shape[:2]
    added = bar_width(height, width) if bar else 0
    drawn = np.empty((height, width + added, 3), dtype=np.uint8)
    drawn[:, :width] = outlined(image_rgb, faces_xyxy, WHITE) if np.size(faces_xyxy) else image_rgb
    if bar:
        drawn[:, width:] = _color_bar(height, _font_size(height, width))
    texts = [f"{score:.2f}" for score in confidences] if labels is True else list(labels or ())
    _draw_boxes(drawn[:, :width], boxes, confidences, texts)
    return drawn


def outlined(
    image_rgb: npt.NDArray[np.uint8], boxes_xyxy: npt.ArrayLike, color: tuple[int, int, int], line: int = 1
) -> npt.NDArray[np.uint8]:
    """A copy of the image, (H, W, 3) uint8, with frames of one color around (D, 4) boxes.

    ``line``: width of the bright line in pixels; it has a dark casing.
    """
    drawn = checked_image(image_rgb).copy()
    boxes = checked_boxes(boxes_xyxy)
    boxes = boxes[_is_visible(boxes, *drawn.shape[:2])]
    for frame in _frames(boxes, np.full(len(boxes), line), *drawn.shape[:2]):
        _draw_frame(drawn, frame, color)
    return drawn


def upright_rgb(image: ImageLike) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a path or a PIL image, turned as its EXIF orientation says; arrays as they are."""
    if isinstance(image, str | os.PathLike):
        with Image.open(Path(image)) as opened:
            return upright_rgb(opened)
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
    return image


def bar_width(height: int, width: int) -> int:
    """How many pixels the color bar adds to an image's width."""
    return int(_color_bar(height, _font_size(height, width)).shape[1])


def checked_image(image_rgb: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The image as an array, or a ValueError that names what it is instead of (H, W, 3) uint8."""
    image = np.asarray(image_rgb)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image is (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    return image


def checked_boxes(boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The boxes as (D, 4) float64, or a ValueError that names their shape."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes are (D, 4) x1, y1, x2, y2, not {boxes.shape}")
    return boxes


def _is_visible(boxes: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.bool_]:
    """(D,) whether a box is finite, not empty, and at least partly inside; comparisons with NaN are false."""
    x1, y1, x2, y2 = boxes.T
    inside = (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0) & (x2 > x1) & (y2 > y1)
    return np.asarray(inside & np.isfinite(boxes).all(axis=1))


def _draw_boxes(
    drawn: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], texts: list[str]
) -> None:
    """Frames, then labels, into ``drawn`` (H, W, 3); ascending, so that confident ones are on top."""
    height, width = drawn.shape[:2]
    longer = max(height, width)
    thinnest, thickest = max(1, round(longer * THINNEST_PER_SIDE)), max(1, round(longer * LINE_PER_SIDE))
    order = np.argsort(scores, kind="stable")
    order = order[_is_visible(boxes, height, width)[order]]
    boxes, scores = boxes[order], scores[order]
    colors = confidence_colors(scores).tolist()
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    frames = _frames(boxes, np.clip(np.round(sides * LINE_PER_FACE), thinnest, thickest).astype(int), height, width)
    for frame, color in zip(frames, colors, strict=True):
        _draw_frame(drawn, frame, color)
    if texts:
        sizes = np.clip((sides * FONT_PER_FACE).astype(int), SMALLEST_FONT, _font_size(height, width)).tolist()
        for (left, top, *_), index, size, color in zip(frames, order, sizes, colors, strict=True):
            _label(drawn, left, top, texts[index], size, tuple(color))


def _frames(boxes: npt.NDArray[np.float64], lines: npt.NDArray[Any], height: int, width: int) -> list[list[int]]:
    """(D, 4) boxes and (D,) widths of their lines → left, top, right, bottom outside, width of the line, of its casing.

    Frames are around their boxes, but inside the image.
    """
    casings = np.maximum(np.round(lines * CASING), 1).astype(int)
    around = (lines + 2 * casings)[:, None]
    low = np.maximum((boxes[:, :2] + 0.5).astype(int) - around, 0)
    high = np.minimum((boxes[:, 2:] + 0.5).astype(int) + around, (width, height))
    frames: list[list[int]] = np.column_stack([low, np.maximum(high, low + 1), lines, casings]).tolist()
    return frames


def _draw_frame(drawn: npt.NDArray[np.uint8], frame: list[int], color: Any) -> None:
    left, top, right, bottom, line, casing = frame
    _draw_band(drawn, left, top, right, bottom, line + 2 * casing, BLACK)
    if min(right - left, bottom - top) > 2 * casing:
        _draw_band(drawn, left + casing, top + casing, right - casing, bottom - casing, line, color)


def _draw_band(
    drawn: npt.NDArray[np.uint8], left: int, top: int, right: int, bottom: int, line: int, color: Any
) -> None:
    """A band of ``line`` pixels inside a rectangle."""
    drawn[top : top + line, left:right] = color
    drawn[max(bottom - line, top) : bottom, left:right] = color
    drawn[top:bottom, left : left + line] = color
    drawn[top:bottom, max(right - line, left) : right] = color


def _label(
    drawn: npt.NDArray[np.uint8], left: int, top: int, text: str, size: int, color: tuple[int, int, int]
) -> None:
    """The score on a patch of the box's color, above the frame's corner, or inside it at the image's top."""
    height, width = drawn.shape[:2]
    patch = _text_patch(text, size, BLACK, color)
    patch_height, patch_width = patch.shape[0], patch.shape[1]
    if patch_height > height or patch_width > width:
        return  # an image smaller than its label
    top = top - patch_height if top >= patch_height else min(top, height - patch_height)
    left = min(left, width - patch_width)
    drawn[top : top + patch_height, left : left + patch_width] = patch


def _font_size(height: int, width: int) -> int:
    """Letter size in pixels for an image; a wide, low one gets letters that its height can hold."""
    return max(SMALLEST_FONT, round(min(max(height, width) * FONT_PER_SIDE, height / 8)))


@lru_cache(maxsize=8)
def _color_bar(height: int, size: int) -> npt.NDArray[np.uint8]:
    """The bar (height, its width, 3): white ground, gradient, ticks and, where there is room, what it shows.

    Rendered once per image height and letter size; read-only because it is shared.
    """
    gap, strip, tick = max(2, size // 2), max(4, size), max(2, size // 4)
    # The gradient ends half a letter from the edges, so that "1.0" and "0.0" are whole.
    end = min(size, height // 8)
    length = height - 2 * end
    steps = next((n for n in (10, 5, 2, 1) if length >= n * 3 * size), 0)  # ticks stand 3 letter heights apart
    values = [n / steps for n in range(steps + 1)] if steps else []
    digits = _text_patch("0.0", size, BLACK, WHITE)
    caption = _text_patch("confidence", size, BLACK, WHITE)
    captioned = bool(steps) and caption.shape[1] <= 0.7 * height
    label_left = gap + strip + (2 * tick if steps else 0)
    caption_left = label_left + (digits.shape[1] if steps else 0)
    bar = np.full((height, caption_left + (caption.shape[0] if captioned else 0) + gap // 2, 3), 255, dtype=np.uint8)
    rows = (np.arange(length)[::-1] + 0.5) / length
    bar[end : end + length, gap : gap + strip] = confidence_colors(rows)[:, None]
    canvas = Image.fromarray(bar)
    draw = ImageDraw.Draw(canvas)
    outline = max(1, size // 12)
    draw.rectangle((gap, end, gap + strip - 1, end + length - 1), outline=BLACK, width=outline)
    for value in values:
        y = end + round((1 - value) * (length - 1))
        draw.rectangle((gap + strip, y - outline // 2, gap + strip + tick - 1, y - outline // 2 + outline - 1), BLACK)
        text = Image.fromarray(_text_patch(f"{value:.1f}", size, BLACK, WHITE))
        canvas.paste(text, (label_left, y - text.height // 2))
    if captioned:
        turned = Image.fromarray(np.ascontiguousarray(np.rot90(caption)))
        canvas.paste(turned, (caption_left, (height - turned.height) // 2))
    result = np.asarray(canvas, dtype=np.uint8)
    result.setflags(write=False)
    return result


@lru_cache(maxsize=4096)  # 101 scores in the sizes of an image
def _text_patch(text: str, size: int, ink: tuple[int, int, int], ground: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The text on a ground of its own, (h, w, 3); every patch of one size has the same height."""
    font = _font(size)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, _, right, _ = draw.textbbox((0, 0), text, font=font)
    top, bottom = _digit_extent(size)
    pad = max(1, size // 6)
    patch = Image.new("RGB", (int(right - left) + 2 * pad, bottom - top + 2 * pad), ground)
    ImageDraw.Draw(patch).text((pad - left, pad - top), text, fill=ink, font=font)
    return np.asarray(patch, dtype=np.uint8)


def _digit_extent(size: int) -> tuple[int, int]:
    """Upper and lower edge of the letters "0d" in pixels of the font's line."""
    _, top, _, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), "0d", font=_font(size))
    return int(top), int(bottom) + 1


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which needs no file of the system."""
    return ImageFont.load_default(size)


@lru_cache(maxsize=1)
def _turbo_rgb() -> npt.NDArray[np.uint8]:
    """The 256 colors of ``turbo``; OpenCV's table equals matplotlib's and loads in a tenth of the time."""
    ramp: npt.NDArray[Any] = np.arange(256, dtype=np.uint8)[:, None]
    return np.asarray(cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[:, 0, ::-1], dtype=np.uint8).copy()
