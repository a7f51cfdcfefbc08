"""Faces drawn into an image: boxes colored by confidence, and a color bar next to it (paper, figure 9).

NumPy, OpenCV and Pillow alone: a matplotlib figure per image takes 300 times as long (docs/experiments.md).
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


# The 256 colors of matplotlib's turbo, RGB; OpenCV's table equals it and loads in a tenth of the time.
_RAMP: Any = np.arange(256, dtype=np.uint8)[:, None]
TURBO_RGB = np.asarray(cv2.applyColorMap(_RAMP, cv2.COLORMAP_TURBO)[:, 0, ::-1], dtype=np.uint8)


def confidence_colors(scores: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """(D,) confidences → (D, 3) uint8 RGB of the bright part of ``turbo``: blue at 0, green at 0.5, red at 1.

    Values outside [0, 1] are clipped, NaN counts as 0.
    """
    values = np.clip(np.nan_to_num(np.asarray(scores, dtype=np.float64).reshape(-1), nan=0.0), 0.0, 1.0)
    return TURBO_RGB[np.minimum(((TURBO_FROM + (TURBO_TO - TURBO_FROM) * values) * 256).astype(np.int64), 255)]


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
        image_rgb: (H, W, 3) uint8; left as it is, the result is a new array. ValueError: something else.
        boxes_xyxy: (D, 4) pixels of the image; one that is wholly outside, empty or not finite is not drawn.
        scores: (D,) in [0, 1]. ValueError: not as many as boxes.
        faces_xyxy: (F, 4) annotated faces, beneath as thin white frames.
        bar: add a color bar with ticks from 0 to 1 at the right, which makes the image wider.
        labels: write each score above its face; or these texts.
    """
    boxes, confidences = checked_boxes(boxes_xyxy), np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(confidences) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes, but {len(confidences)} scores")
    image = outlined(image_rgb, faces_xyxy, WHITE)
    height, width = image.shape[:2]
    longer = max(height, width)
    font = max(SMALLEST_FONT, round(min(longer * FONT_PER_SIDE, height / 8)))  # a wide, low image can hold such letters
    thinnest, thickest = max(1, round(longer * THINNEST_PER_SIDE)), max(1, round(longer * LINE_PER_SIDE))
    order = np.argsort(confidences, kind="stable")
    order = order[_is_visible(boxes, height, width)[order]]
    boxes = boxes[order]
    colors = confidence_colors(confidences[order]).tolist()
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    frames = _framed(image, boxes, np.clip(np.round(sides * LINE_PER_FACE), thinnest, thickest).astype(int), colors)
    if labels:
        texts = [f"{score:.2f}" for score in confidences] if labels is True else labels
        sizes = np.clip((sides * FONT_PER_FACE).astype(int), SMALLEST_FONT, font).tolist()
        for (left, top), index, size, color in zip(frames, order, sizes, colors, strict=True):
            _label(image, left, top, _text_patch(texts[index], size, tuple(color)))
    return np.hstack([image, _color_bar(height, font)]) if bar else image


def outlined(
    image_rgb: npt.NDArray[np.uint8], boxes_xyxy: npt.ArrayLike, color: tuple[int, int, int], line: int = 1
) -> npt.NDArray[np.uint8]:
    """A copy of the image, (H, W, 3) uint8, with frames around (D, 4) boxes; ``line``: their width but for casings."""
    canvas, boxes = checked_image(image_rgb).copy(), checked_boxes(boxes_xyxy)
    boxes = boxes[_is_visible(boxes, *canvas.shape[:2])]
    _framed(canvas, boxes, np.full(len(boxes), line), [color] * len(boxes))
    return canvas


def upright_rgb(image: ImageLike) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a path or a PIL image, upright, transparency over white; arrays as they are."""
    if isinstance(image, str | os.PathLike):
        with Image.open(Path(image)) as opened:
            return upright_rgb(opened)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:  # over white, as data.images reads it
            over = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
        return np.array(upright.convert("RGB"), dtype=np.uint8)
    return image


def checked_image(image_rgb: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The image as an array; ValueError: it is not (H, W, 3) uint8."""
    image = np.asarray(image_rgb)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image is (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    return image


def checked_boxes(boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The boxes as (D, 4) float64; ValueError: another shape."""
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


def _framed(
    canvas: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float64], lines: npt.NDArray[Any], colors: Sequence[Any]
) -> list[list[int]]:
    """Frames around (D, 4) boxes, but inside the image, with (D,) widths of their lines; the corners left, top."""
    casings = np.maximum(np.round(lines * CASING), 1).astype(int)
    around = (lines + 2 * casings)[:, None]
    low = np.maximum((boxes[:, :2] + 0.5).astype(int) - around, 0)
    high = np.maximum(np.minimum((boxes[:, 2:] + 0.5).astype(int) + around, canvas.shape[1::-1]), low + 1)
    rows = np.column_stack([low, high, lines, casings]).tolist()
    for (left, top, right, bottom, line, casing), color in zip(rows, colors, strict=True):
        _draw_band(canvas[top:bottom, left:right], line + 2 * casing, BLACK)
        if min(right - left, bottom - top) > 2 * casing:
            _draw_band(canvas[top + casing : bottom - casing, left + casing : right - casing], line, color)
    corners: list[list[int]] = low.tolist()
    return corners


def _draw_band(rectangle: npt.NDArray[np.uint8], line: int, color: Any) -> None:
    """A band of ``line`` pixels inside a rectangle's edges, in place."""
    height, width = rectangle.shape[:2]
    rectangle[:line] = rectangle[max(height - line, 0) :] = color
    rectangle[:, :line] = rectangle[:, max(width - line, 0) :] = color


def _label(canvas: npt.NDArray[np.uint8], left: int, top: int, patch: npt.NDArray[np.uint8]) -> None:
    """A text above the frame's corner, or inside it at the image's top; none in an image smaller than it."""
    (height, width), (patch_height, patch_width) = canvas.shape[:2], patch.shape[:2]
    if patch_height <= height and patch_width <= width:
        top = top - patch_height if top >= patch_height else min(top, height - patch_height)
        left = min(left, width - patch_width)
        canvas[top : top + patch_height, left : left + patch_width] = patch


@lru_cache(maxsize=8)
def _color_bar(height: int, size: int) -> npt.NDArray[np.uint8]:
    """The bar (height, its width, 3): white ground, gradient, ticks and, where there is room, what it shows."""
    gap, strip, tick = max(2, size // 2), max(4, size), max(2, size // 4)
    # The gradient ends half a letter from the edges, so that "1.0" and "0.0" are whole.
    end = min(size, height // 8)
    length = height - 2 * end
    steps = next((n for n in (10, 5, 2, 1) if length >= n * 3 * size), 0)  # ticks stand 3 letter heights apart
    texts = [_text_patch(f"{n / steps:.1f}", size, WHITE) for n in range(steps + 1)] if steps else []
    caption = np.rot90(_text_patch("confidence", size, WHITE))
    captioned = bool(steps) and caption.shape[0] <= 0.7 * height
    label_left = gap + strip + (2 * tick if steps else 0)
    caption_left = label_left + max((text.shape[1] for text in texts), default=0)
    bar = np.full((height, caption_left + (caption.shape[1] if captioned else 0) + gap // 2, 3), 255, dtype=np.uint8)
    outline = max(1, size // 12)
    gradient = bar[end : end + length, gap : gap + strip]
    gradient[:] = confidence_colors((np.arange(length)[::-1] + 0.5) / length)[:, None]
    _draw_band(gradient, outline, BLACK)
    for n, text in enumerate(texts):
        y = end + round((1 - n / steps) * (length - 1))
        bar[y - outline // 2 : y - outline // 2 + outline, gap + strip : gap + strip + tick] = BLACK
        top = y - len(text) // 2
        bar[max(top, 0) : top + len(text), label_left : label_left + text.shape[1]] = text[max(-top, 0) : height - top]
    if captioned:
        top = (height - len(caption)) // 2
        bar[top : top + len(caption), caption_left : caption_left + caption.shape[1]] = caption
    return bar


@lru_cache(maxsize=4096)  # 101 scores in the sizes of an image
def _text_patch(text: str, size: int, ground: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The text in black on a ground of its own, (h, w, 3); every patch of one size has the same height."""
    font = _font(size)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, _, right, _ = draw.textbbox((0, 0), text, font=font)
    _, top, _, bottom = draw.textbbox((0, 0), "0d", font=font)
    pad = max(1, size // 6)
    patch = Image.new("RGB", (int(right - left) + 2 * pad, int(bottom) + 1 - int(top) + 2 * pad), ground)
    ImageDraw.Draw(patch).text((pad - left, pad - int(top)), text, fill=BLACK, font=font)
    return np.asarray(patch, dtype=np.uint8)


_font = lru_cache(maxsize=8)(ImageFont.load_default)  # needs no file of the system
