"""FDDB's regions as sets of pixels, their overlap, and rectangles as ellipses.

The rules are those of the official program (V. Jain, E. Learned-Miller: FDDB, UM-CS-2010-009, section 5). Everything
happens on the pixels of the image: what reaches out of it is lost, for faces and detections alike, so the image's size
is part of the answer. A coordinate becomes float32 and then the nearest integer, halves to even.

FDDB annotates ellipses, so that even a perfect rectangle has a low IoU. S3FD (S. Zhang et al., ICCV 2017, section 4.2)
trains a regressor that turns its boxes into ellipses before the continuous score is taken: a detector-side step that
changes the scores and is named where it is used. Here it is a linear least squares fit, and no face is part of the fit
that its own detection goes through: the ellipses of a fold are predicted from those of the other folds.

Rows are ``x y w h`` for rectangles and ``major minor angle cx cy`` for ellipses: half-axes in pixels, the angle of the
major axis in radians, clockwise on the screen from the x axis.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.curves import Bools, Floats, Ints


def to_pixels(values: npt.ArrayLike) -> Ints:
    """The official program's rounding: through float32 to the nearest integer, halves to even."""
    return np.rint(np.asarray(values, np.float64).astype(np.float32)).astype(np.int64)


def rectangle_pixels(rows_xywh: Floats, width: int, height: int) -> Ints:
    """(D, 4) rectangles → (D, 4) first column and row, and those after the last: ``x1 y1 x2 y2``, cut to the image.

    An unclipped rectangle has (w + 1) × (h + 1) pixels, one outside the image none.
    """
    first, last = to_pixels(rows_xywh[:, :2]), to_pixels(rows_xywh[:, :2] + rows_xywh[:, 2:])
    low = np.clip(np.minimum(first, last), 0, [width, height])
    return np.concatenate([low, np.clip(np.maximum(first, last) + 1, low, [width, height])], axis=1)


def bounding_boxes(ellipses: npt.ArrayLike) -> Floats:
    """(F, 5) → (F, 4) ``x1 y1 x2 y2`` around each, not cut to the image."""
    major, minor, angle, x, y = np.asarray(ellipses, np.float64).reshape(-1, 5).T
    reach_x = np.hypot(major * np.cos(angle), minor * np.sin(angle))
    reach_y = np.hypot(major * np.sin(angle), minor * np.cos(angle))
    return np.column_stack([x - reach_x, y - reach_y, x + reach_x, y + reach_y])


def ellipse_window(ellipse: Floats, width: int, height: int) -> tuple[int, int, int, int]:
    """First column and row that an ellipse may reach, and those after the last: ``x1 y1 x2 y2``, cut to the image."""
    x, y = to_pixels(ellipse[3:]).tolist()
    # The polygon that is drawn has rounded corners, so it may reach a pixel past the half-axis.
    reach = int(ellipse[:2].max()) + 2
    left, top = max(x - reach, 0), max(y - reach, 0)
    return left, top, max(min(x + reach + 1, width), left), max(min(y + reach + 1, height), top)


def ellipse_mask(ellipse: Floats, window: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """The pixels of ``major minor angle cx cy`` in a window, (h, w), 0 or 1: half-axes truncated, whole degrees.

    With an integer centre an ellipse moves with its window without changing a pixel.
    """
    left, top, right, bottom = window
    mask = np.zeros((bottom - top, right - left), np.uint8)
    (x, y), (major, minor, angle) = to_pixels(ellipse[3:]).tolist(), ellipse[:3].tolist()
    # The official program's own expression: what it rounds to whole degrees depends on the last bit.
    degrees = 180 - ((math.pi - angle) * 180 / math.pi)
    if mask.size:
        cv2.ellipse(mask, (x - left, y - top), (int(major), int(minor)), degrees, 0, 360, 1, -1)
    return mask


def has_negative_side(rows: Floats) -> Bools:
    """(D,): width and height of rectangles (D, 4), or half-axes of ellipses (D, 5), of which one is below 0."""
    sides = rows[:, :2] if rows.shape[1] == 5 else rows[:, 2:]
    return (sides[:, 0] < 0) | (sides[:, 1] < 0)


def iou(ellipses: Floats, rows: Floats, width: int, height: int) -> Floats:
    """IoU of F ellipses (F, 5) with D rectangles (D, 4) or ellipses (D, 5), in pixels of the image → (F, D).

    0 for two without a pixel, and for rows with a negative side.
    """
    windows = [ellipse_window(face, width, height) for face in ellipses]
    masks = [ellipse_mask(face, window) for face, window in zip(ellipses, windows, strict=True)]
    kept = np.flatnonzero(~has_negative_side(rows)).tolist()
    areas, shared = np.zeros(len(rows)), np.zeros((len(masks), len(rows)))
    if rows.shape[1] == 5:
        for place in kept:
            areas[place] = np.count_nonzero(ellipse_mask(rows[place], ellipse_window(rows[place], width, height)))
            both = [mask & ellipse_mask(rows[place], window) for mask, window in zip(masks, windows, strict=True)]
            shared[:, place] = [np.count_nonzero(mask) for mask in both]
    else:
        corners = rectangle_pixels(rows[kept], width, height)
        areas[kept] = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
        for place, (window, mask) in enumerate(zip(windows, masks, strict=True)):
            x1, y1, x2, y2 = (np.clip(corners, window[:2] * 2, window[2:] * 2) - window[:2] * 2).T
            sums = cv2.integral(mask)
            shared[place, kept] = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    union = np.array([np.count_nonzero(mask) for mask in masks]).reshape(-1, 1) + areas - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


# Pairs that a fit needs: ten for each coefficient of an equation.
LEAST_PAIRS = 20


class EllipseFit(NamedTuple):
    """Coefficients of the four equations that a rectangle's width and height go into, and one angle for all.

    ``coefficients`` (2, 4): columns are the two half-axes, the one along ``angle`` first, and the centre's offset from
                     the rectangle's centre in x and y, all in pixels; rows are the factors of width and height.
    ``angle``        radians in [0, π), of the first half-axis.
    ``pairs``        that it was fitted on.
    """

    coefficients: Floats
    angle: float
    pairs: int


def inscribed_ellipses(rows_xywh: npt.ArrayLike) -> Floats:
    """The largest ellipse within each rectangle, (D, 4) → (D, 5): half-axes w/2 and h/2, the longer one first."""
    rows = np.asarray(rows_xywh, np.float64).reshape(-1, 4)
    half = rows[:, 2:] / 2
    angle = np.where(rows[:, 3] >= rows[:, 2], np.pi / 2, 0.0)
    return np.column_stack([half.max(axis=1), half.min(axis=1), angle, rows[:, :2] + half])


def fit_ellipses(rows_xywh: Floats, ellipses: Floats) -> EllipseFit:
    """Least squares from P rectangles (P, 4) to the P ellipses (P, 5) that they were matched to.

    Each equation is linear in width and height, without a constant, and is weighted by 1 / height: so the fit neither
    depends on where in the image a face is nor on the scale, and a large face counts as much as a small one. The angle
    does not depend on the rectangle: it is the mean of the annotated ones as axes, θ and θ + π being the same.
    InputError: fewer than :data:`LEAST_PAIRS` pairs.
    """
    if len(rows_xywh) < LEAST_PAIRS:
        text = f"ellipses are fitted to {LEAST_PAIRS} found faces or more, these are {len(rows_xywh)}"
        raise InputError(f"{text}; take benchmark.ellipses=as_given")
    angle = float(np.angle(np.exp(2j * ellipses[:, 2]).mean()) / 2 % np.pi)
    # The first half-axis is the one nearer to the common angle, or the fit would mix up lying and standing ellipses.
    along = np.cos(2 * (ellipses[:, 2] - angle)) >= 0
    first, second = np.where(along, ellipses[:, :2].T, ellipses[:, 1::-1].T)
    offset = ellipses[:, 3:] - (rows_xywh[:, :2] + rows_xywh[:, 2:] / 2)
    wanted = np.column_stack([first, second, offset]) / rows_xywh[:, 3:]
    coefficients = np.linalg.lstsq(rows_xywh[:, 2:] / rows_xywh[:, 3:], wanted, rcond=None)[0]
    return EllipseFit(coefficients.astype(np.float64), angle, len(rows_xywh))


def apply_fit(fit: EllipseFit, rows_xywh: Floats) -> Floats:
    """(D, 4) rectangles → (D, 5) ellipses. Half-axes below 0, which a fit may give far from its pairs, become 0.

    Those of a rectangle with a negative side, which is none, become -1.
    """
    predicted = rows_xywh[:, 2:] @ fit.coefficients
    half = np.where(has_negative_side(rows_xywh)[:, None], -1, np.maximum(predicted[:, :2], 0))
    centre = rows_xywh[:, :2] + rows_xywh[:, 2:] / 2 + predicted[:, 2:]
    return np.column_stack([half, np.full(len(half), fit.angle), centre])
