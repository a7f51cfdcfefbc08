"""Small pictures of findings: a JPEG of the part that matters, and where the boxes lie on it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fanet_lightning.data.images import Image8, UnreadableImage, read_image_rgb

Box = tuple[float, float, float, float]

# Longer side of a picture, pixels: two columns of cards on a screen of high density.
SIDE = 480
_QUALITY = 70
# A box takes at least this share of the picture's longer side, or a part around it is cut out …
_SMALLEST_SHARE = 1 / 6
# … of at least so many pixels of the image, so that it is still seen what is there.
_SMALLEST_CUT = 96
_MAX_BOXES = 400


class Sheet(NamedTuple):
    """What is shown of an image.

    ``path``      of the image.
    ``file``      name of the JPEG, or None: ``reason`` says why there is none.
    ``view_xywh`` the part of the image's plane that the sheet shows, pixels of the image; it may reach outside.
    ``image_wh``  width and height of the image, or None.
    ``cut_xywh``  where the JPEG lies, pixels of the image.
    ``boxes_xywh``  the boxes that can be drawn.
    """

    path: Path
    file: str | None
    reason: str | None
    view_xywh: Box
    image_wh: tuple[int, int] | None
    cut_xywh: Box
    boxes_xywh: tuple[Box, ...]

    @property
    def is_cut(self) -> bool:
        """Whether a part of the image is shown in place of the whole."""
        return self.image_wh is not None and (self.cut_xywh[2], self.cut_xywh[3]) != self.image_wh


def draw_sheet(path: Path, jpeg: Path, boxes_xyxy: Sequence[Box] = ()) -> Sheet:
    """Write ``jpeg``, upright, and say where the boxes go. An image that cannot be read gives an empty sheet.

    Boxes that are not finite cannot be drawn and are left out; inverted ones are drawn between their corners.
    """
    import cv2

    boxes = tuple(_drawable(box) for box in boxes_xyxy if all(map(math.isfinite, box)))[:_MAX_BOXES]
    try:
        image = read_image_rgb(path)
    except UnreadableImage as error:
        view = _around(boxes)
        return Sheet(path, None, error.reason, view, None, view, boxes)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = _cut(boxes, width, height)
    part = _shrunk(image[y1:y2, x1:x2])
    # Not cv2.imwrite, which tells nobody when the disk is full.
    done, content = cv2.imencode(".jpg", cv2.cvtColor(part, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError(f"cannot encode a picture of {part.shape}")
    jpeg.write_bytes(content.tobytes())
    cut = (float(x1), float(y1), float(x2 - x1), float(y2 - y1))
    return Sheet(path, jpeg.name, None, _view(cut, boxes), (width, height), cut, boxes)


def _drawable(box_xyxy: Box) -> Box:
    """→ x, y, width, height, not negative."""
    x1, y1, x2, y2 = box_xyxy
    return min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)


def _extent(boxes_xywh: Sequence[Box]) -> Box:
    """x1, y1, x2, y2 around all boxes."""
    return (
        min(x for x, _, _, _ in boxes_xywh),
        min(y for _, y, _, _ in boxes_xywh),
        max(x + w for x, _, w, _ in boxes_xywh),
        max(y + h for _, y, _, h in boxes_xywh),
    )


def _around(boxes_xywh: Sequence[Box]) -> Box:
    """View of a sheet without an image."""
    if not boxes_xywh:
        return 0.0, 0.0, 640.0, 480.0
    x1, y1, x2, y2 = _extent(boxes_xywh)
    margin = max(x2 - x1, y2 - y1, 8.0) * 0.1
    return x1 - margin, y1 - margin, x2 - x1 + 2 * margin, y2 - y1 + 2 * margin


def _cut(boxes_xywh: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """The whole image, or where its boxes are small a square around them: whole pixels, within the image."""
    everything = (0, 0, width, height)
    if not boxes_xywh:
        return everything
    x1, y1, x2, y2 = _extent(boxes_xywh)
    largest = max(max(w, h) for _, _, w, h in boxes_xywh)
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    # A part that does not show the boxes shows nothing.
    if largest >= _SMALLEST_SHARE * max(width, height) or not (0 <= centre_x <= width and 0 <= centre_y <= height):
        return everything
    side = max(largest / _SMALLEST_SHARE, 1.25 * max(x2 - x1, y2 - y1), _SMALLEST_CUT)
    spans = []
    for centre, length in ((centre_x, width), (centre_y, height)):
        span = min(math.ceil(side), length)
        spans.append((min(max(math.floor(centre - side / 2), 0), length - span), span))
    (left, across), (top, down) = spans
    return left, top, left + across, top + down


def _view(cut_xywh: Box, boxes_xywh: Sequence[Box]) -> Box:
    """The cut, and beyond it what of the boxes lies outside: by half its sides at most on each of its four."""
    x, y, width, height = cut_xywh
    if not boxes_xywh:
        return cut_xywh
    x1, y1, x2, y2 = _extent(boxes_xywh)
    pad = 0.02 * max(width, height)
    left = min(max(x - x1 + pad if x1 < x else 0.0, 0.0), width / 2)
    top = min(max(y - y1 + pad if y1 < y else 0.0, 0.0), height / 2)
    right = min(max(x2 - x - width + pad if x2 > x + width else 0.0, 0.0), width / 2)
    bottom = min(max(y2 - y - height + pad if y2 > y + height else 0.0, 0.0), height / 2)
    return x - left, y - top, width + left + right, height + top + bottom


def _shrunk(image: Image8) -> Image8:
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    scale = SIDE / max(width, height)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
