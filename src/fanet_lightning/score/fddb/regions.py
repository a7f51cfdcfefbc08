"""FDDB's regions as sets of pixels, their overlap, and rectangles as ellipses.

The rules are those of the official program (V. Jain, E. Learned-Miller: FDDB, UM-CS-2010-009, section 5). Everything
happens on the pixels of the image: what reaches out of it is lost, for faces and detections alike, so the image's size
is part of the answer. A coordinate becomes float32 and then the nearest integer, halves to even. Only the window around
a region is drawn. An ellipse is drawn by OpenCV, with an integer centre, so it moves with its window without changing a
pixel.

FDDB annotates ellipses, so that even a perfect rectangle has a low IoU. S3FD (S. Zhang et al., ICCV 2017, section 4.2)
trains a regressor that turns its boxes into ellipses before the continuous score is taken: a detector-side step that
changes the scores and is named where it is used. Here it is a linear least squares fit, and no face is part of the fit
that its own detection goes through: the ellipses of a fold are predicted from those of the other folds.

Rows are ``x y w h`` for rectangles and ``major minor angle cx cy`` for ellipses: half-axes in pixels, the angle of the
major axis in radians, clockwise on the screen from the x axis.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]


class Region(NamedTuple):
    """The ``area`` pixels of one region: ``mask`` (h, w) uint8, 0 or 1, its first at column ``left``, row ``top``."""

    left: int
    top: int
    mask: npt.NDArray[np.uint8]
    area: int


def to_pixels(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The official program's rounding: through float32 to the nearest integer, halves to even."""
    return np.rint(np.asarray(values, np.float64).astype(np.float32)).astype(np.int64)


def rectangle_pixels(rows_xywh: npt.ArrayLike, width: int, height: int) -> npt.NDArray[np.int64]:
    """(D, 4) rectangles → (D, 4) first and last column and row ``x1 y1 x2 y2``, both included, cut to the image.

    An unclipped rectangle has (w + 1) × (h + 1) pixels. One outside the image has x2 < x1 or y2 < y1.
    """
    rows = np.asarray(rows_xywh, np.float64).reshape(-1, 4)
    first, last = to_pixels(rows[:, :2]), to_pixels(rows[:, :2] + rows[:, 2:])
    low, high = np.minimum(first, last), np.maximum(first, last)
    return np.concatenate([np.maximum(low, 0), np.minimum(high, [width - 1, height - 1])], axis=1)


def bounding_boxes(ellipses: npt.ArrayLike) -> Rows:
    """(F, 5) → (F, 4) ``x1 y1 x2 y2`` around each, not cut to the image."""
    major, minor, angle, x, y = np.asarray(ellipses, np.float64).reshape(-1, 5).T
    reach_x, reach_y = (
        np.hypot(major * np.cos(angle), minor * np.sin(angle)),
        np.hypot(major * np.sin(angle), minor * np.cos(angle)),
    )
    return np.column_stack([x - reach_x, y - reach_y, x + reach_x, y + reach_y])


def ellipse_region(ellipse: npt.ArrayLike, width: int, height: int) -> Region:
    """The pixels of an ellipse ``major minor angle cx cy``: half-axes truncated, the angle in whole degrees."""
    row = np.asarray(ellipse, np.float64).tolist()
    axes = int(row[0]), int(row[1])
    centre_x, centre_y = (round(float(np.float32(value))) for value in row[3:])
    # The polygon that is drawn has rounded corners, so it may reach a pixel past the half-axis.
    reach = max(axes) + 2
    left, top = max(centre_x - reach, 0), max(centre_y - reach, 0)
    right, bottom = min(centre_x + reach + 1, width), min(centre_y + reach + 1, height)
    if right <= left or bottom <= top:
        return Region(0, 0, np.zeros((0, 0), np.uint8), 0)
    mask = np.zeros((bottom - top, right - left), np.uint8)
    # The official program's own expression: what it rounds to whole degrees depends on the last bit.
    degrees = 180 - ((math.pi - row[2]) * 180 / math.pi)
    cv2.ellipse(mask, (centre_x - left, centre_y - top), axes, degrees, 0, 360, 1, -1)
    return Region(left, top, mask, int(np.count_nonzero(mask)))


def iou_with_rectangles(faces: npt.ArrayLike, rows_xywh: npt.ArrayLike, width: int, height: int) -> Rows:
    """IoU of F ellipses (F, 5) with D rectangles (D, 4), in pixels of the image → (F, D); 0 for two without a pixel."""
    ellipses = np.asarray(faces, np.float64).reshape(-1, 5)
    pixels = rectangle_pixels(rows_xywh, width, height)
    areas = np.prod(np.maximum(pixels[:, 2:] - pixels[:, :2] + 1, 0), axis=1)
    iou = np.zeros((len(ellipses), len(pixels)))
    for face, ellipse in enumerate(ellipses):
        region = ellipse_region(ellipse, width, height)
        if region.area and len(pixels):
            both = _shared_pixels(region, pixels)
            iou[face] = both / (areas + region.area - both)
    return iou


def _shared_pixels(region: Region, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Pixels of the region in each rectangle, (D,), from sums over the mask up to each corner."""
    origin = np.array([region.left, region.top])
    size = np.array(region.mask.shape[::-1])
    low = np.minimum(np.maximum(pixels[:, :2] - origin, 0), size)
    high = np.maximum(np.minimum(pixels[:, 2:] + 1 - origin, size), low)
    sums = cv2.integral(region.mask).astype(np.int64)
    x1, y1, x2, y2 = low[:, 0], low[:, 1], high[:, 0], high[:, 1]
    shared: npt.NDArray[np.int64] = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    return shared


def iou_with_ellipses(faces: npt.ArrayLike, rows: npt.ArrayLike, width: int, height: int) -> Rows:
    """The same with D ellipses (D, 5)."""
    ours = [ellipse_region(row, width, height) for row in np.asarray(faces, np.float64).reshape(-1, 5)]
    theirs = [ellipse_region(row, width, height) for row in np.asarray(rows, np.float64).reshape(-1, 5)]
    iou = np.zeros((len(ours), len(theirs)))
    for i, face in enumerate(ours):
        for j, detection in enumerate(theirs):
            shared = _shared(face, detection)
            if shared:
                iou[i, j] = shared / (face.area + detection.area - shared)
    return iou


def _shared(a: Region, b: Region) -> int:
    left, top = max(a.left, b.left), max(a.top, b.top)
    right = min(a.left + a.mask.shape[1], b.left + b.mask.shape[1])
    bottom = min(a.top + a.mask.shape[0], b.top + b.mask.shape[0])
    if right <= left or bottom <= top:
        return 0
    part_a = a.mask[top - a.top : bottom - a.top, left - a.left : right - a.left]
    part_b = b.mask[top - b.top : bottom - b.top, left - b.left : right - b.left]
    return int(np.count_nonzero(part_a & part_b))


# Pairs that a fit needs: ten for each coefficient of an equation.
LEAST_PAIRS = 20


class EllipseFit(NamedTuple):
    """Coefficients of the four equations that a rectangle's width and height go into, and one angle for all.

    ``coefficients`` (2, 4): columns are the two half-axes, the one along ``angle`` first, and the centre's offset from
                     the rectangle's centre in x and y, all in pixels; rows are the factors of width and height.
    ``angle``        radians in [0, π), of the first half-axis.
    ``pairs``        that it was fitted on.
    """

    coefficients: Rows
    angle: float
    pairs: int


def inscribed_ellipses(rows_xywh: npt.ArrayLike) -> Rows:
    """The largest ellipse within each rectangle, (D, 4) → (D, 5): half-axes w/2 and h/2, the longer one first."""
    rows = np.asarray(rows_xywh, np.float64).reshape(-1, 4)
    upright = rows[:, 3] >= rows[:, 2]
    half = rows[:, 2:] / 2
    angle = np.where(upright, np.pi / 2, 0.0)
    return np.column_stack([half.max(axis=1), half.min(axis=1), angle, rows[:, :2] + half])


def fit_ellipses(rows_xywh: npt.ArrayLike, ellipses: npt.ArrayLike) -> EllipseFit:
    """Least squares from P rectangles (P, 4) to the P ellipses (P, 5) that they were matched to.

    Each equation is linear in width and height, without a constant, and is weighted by 1 / height: so the fit neither
    depends on where in the image a face is nor on the scale, and a large face counts as much as a small one. The angle
    does not depend on the rectangle: it is the mean of the annotated ones as axes, θ and θ + π being the same.
    ValueError: fewer than :data:`LEAST_PAIRS` pairs.
    """
    rows, targets = np.asarray(rows_xywh, np.float64).reshape(-1, 4), np.asarray(ellipses, np.float64).reshape(-1, 5)
    if len(rows) < LEAST_PAIRS:
        raise ValueError(f"{len(rows)} pairs, need at least {LEAST_PAIRS} to fit ellipses; take ellipses=as_given")
    doubled = np.exp(2j * targets[:, 2])
    angle = float(np.angle(doubled.mean()) / 2 % np.pi)
    # The first half-axis is the one nearer to the common angle, or the fit would mix up lying and standing ellipses.
    along = np.cos(2 * (targets[:, 2] - angle)) >= 0
    first, second = np.where(along, targets[:, :2].T, targets[:, 1::-1].T)
    offset = targets[:, 3:] - (rows[:, :2] + rows[:, 2:] / 2)
    wanted = np.column_stack([first, second, offset]) / rows[:, 3:]
    coefficients = np.linalg.lstsq(rows[:, 2:] / rows[:, 3:], wanted, rcond=None)[0]
    return EllipseFit(coefficients.astype(np.float64), angle, len(rows))


def apply_fit(fit: EllipseFit, rows_xywh: npt.ArrayLike) -> Rows:
    """(D, 4) rectangles → (D, 5) ellipses. Half-axes below 0, which a fit may give far from its pairs, become 0.

    Those of a rectangle with a negative side, which is none, become -1.
    """
    rows = np.asarray(rows_xywh, np.float64).reshape(-1, 4)
    predicted = rows[:, 2:] @ fit.coefficients
    half = np.where((rows[:, 2:] < 0).any(axis=1, keepdims=True), -1, np.maximum(predicted[:, :2], 0))
    centre = rows[:, :2] + rows[:, 2:] / 2 + predicted[:, 2:]
    return np.column_stack([half, np.full(len(rows), fit.angle), centre])


def fit_without_fold(
    rows_xywh: Sequence[npt.ArrayLike], ellipses: Sequence[npt.ArrayLike], folds: npt.NDArray[np.int64]
) -> dict[int, EllipseFit]:
    """Fold → the fit on the pairs, (P_i, 4) and (P_i, 5) of N images, of all other folds; ``folds`` (N,) of each."""
    fits = {}
    for fold in np.unique(folds).tolist():
        others = np.flatnonzero(folds != fold).tolist()
        rows = [np.zeros((0, 4)), *(np.asarray(rows_xywh[i], np.float64) for i in others)]
        wanted = [np.zeros((0, 5)), *(np.asarray(ellipses[i], np.float64) for i in others)]
        fits[int(fold)] = fit_ellipses(np.concatenate(rows), np.concatenate(wanted))
    return fits
