"""Faces made unrecognizable: blurred or pixelated for good.

Both kinds first replace a face by the mean colors of a grid of at most 8 x 8 cells; only those means reach the result.
A blur alone could be undone by deconvolution; the detail that the means lack is nowhere in the image any more.

What this does not promise: 8 cells still show the color of hair and skin, and a video of a moving face shows many
different grids. Against somebody who has a list of candidates to compare with, only leaving the face out helps.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.ops.draw import checked_boxes, checked_image

__all__ = ["REDACTIONS", "Redaction", "redact", "redacted_regions"]


Redaction = Literal["blur", "pixelate"]
REDACTIONS: tuple[str, ...] = get_args(Redaction)

CELLS = 8  # over the longer side of the region: with the margin about 7 over the face itself
SMALLEST_CELL = 4  # pixels: a face of a few pixels becomes one cell, so that it changes as well
BLUR_SIGMA = 0.8  # cells: hides the grid


def redact(
    image_rgb: npt.NDArray[np.uint8], boxes_xyxy: npt.ArrayLike, kind: str = "blur", margin: float = 0.1
) -> npt.NDArray[np.uint8]:
    """The image with every face blurred or pixelated; every pixel outside the regions stays as it is, byte for byte.

    The region of a face is a rectangle, its box with a margin (``redacted_regions``): an ellipse leaves hair, ears and
    chin in the corners. Regions are treated from the smallest to the largest, each on what the ones before it left, so
    where faces overlap the coarser grid holds and the result does not depend on the order of the boxes.

    Args:
        image_rgb: (H, W, 3) uint8; left as it is.
        boxes_xyxy: (D, 4) pixels of the image. Parts outside are cut off; a box wholly outside, or not finite, is
            left out.
        kind: ``blur`` or ``pixelate``.
        margin: share of the box's width and height that is added on each side, at least 0.

    Returns:
        (H, W, 3) uint8: a new array.

    Raises:
        InputError: no such kind, or a negative margin.
        ValueError: the image is not (H, W, 3) uint8, or the boxes are not (D, 4).
    """
    if kind not in REDACTIONS:
        raise InputError(f"redact={kind}: choose {' or '.join(REDACTIONS)}")
    result = checked_image(image_rgb).copy()
    for left, top, right, bottom in redacted_regions(boxes_xyxy, result.shape[0], result.shape[1], margin):
        region = result[top:bottom, left:right]
        region[:] = _pixelated(region) if kind == "pixelate" else _blurred(region)
    return result


def redacted_regions(
    boxes_xyxy: npt.ArrayLike, height: int, width: int, margin: float = 0.1
) -> list[tuple[int, int, int, int]]:
    """The whole-pixel rectangles that ``redact`` changes, from the smallest to the largest.

    Args:
        boxes_xyxy: (D, 4) pixels.
        height, width: of the image.
        margin: as in ``redact``.

    Returns:
        (left, top, right, bottom), half-open, inside the image, none empty: the box with its margin, rounded outwards
        and at least 4 pixels wide and high where the image has them.

    Raises:
        InputError: a negative margin, or one that is not a number.
    """
    if not 0 <= margin < np.inf:
        raise InputError(f"margin={margin}: must be a share of the face, 0 or more")
    regions = set()
    for x1, y1, x2, y2 in checked_boxes(boxes_xyxy):
        if not np.isfinite((x1, y1, x2, y2)).all() or x2 < x1 or y2 < y1:
            continue
        if x2 < 0 or y2 < 0 or x1 >= width or y1 >= height:
            continue
        left, right = _grown(x1, x2, margin, width)
        top, bottom = _grown(y1, y2, margin, height)
        regions.add((left, top, right, bottom))
    return sorted(regions, key=lambda r: ((r[2] - r[0]) * (r[3] - r[1]), r))


def _grown(low: float, high: float, margin: float, limit: int) -> tuple[int, int]:
    """One axis of a box with its margin, rounded outwards, at least SMALLEST_CELL long, inside 0 ... limit."""
    grown = (high - low) * margin
    first, last = max(int(np.floor(low - grown)), 0), min(int(np.ceil(high + grown)), limit)
    missing = min(SMALLEST_CELL, limit) - (last - first)
    if missing > 0:
        first = min(max(first - missing // 2, 0), limit - min(SMALLEST_CELL, limit))
        last = min(first + SMALLEST_CELL, limit)
    return first, last


def _cell_edges(length: int, cell: float) -> npt.NDArray[np.int64]:
    """Where the cells of one axis begin and end: (n + 1,) pixels, cells that differ by at most 1 pixel."""
    count = max(1, int(length / cell + 1e-9))
    return np.round(np.linspace(0, length, count + 1)).astype(np.int64)


def _cell_means(
    region: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Mean colors (rows, columns, 3) of a region's cells, and the lengths of the cells of both axes."""
    height, width = region.shape[:2]
    cell = max(max(height, width) / CELLS, SMALLEST_CELL)
    rows, columns = _cell_edges(height, cell), _cell_edges(width, cell)
    sums = np.add.reduceat(region, rows[:-1], axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, columns[:-1], axis=1, dtype=np.uint64)
    heights, widths = np.diff(rows), np.diff(columns)
    areas = (heights[:, None] * widths[None, :])[..., None]
    return np.round(sums / areas).astype(np.uint8), heights, widths


def _pixelated(region: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    means, heights, widths = _cell_means(region)
    return means.repeat(heights, axis=0).repeat(widths, axis=1)


def _blurred(region: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The grid of means, smoothed and enlarged linearly to the region."""
    import cv2

    means, _, _ = _cell_means(region)
    smooth = cv2.GaussianBlur(means, (0, 0), BLUR_SIGMA, borderType=cv2.BORDER_REPLICATE)
    height, width = region.shape[:2]
    return np.asarray(cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
