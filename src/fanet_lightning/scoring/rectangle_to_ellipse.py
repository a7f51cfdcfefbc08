"""Rectangles as ellipses, for FDDB: a detector-side step that changes the scores and is named where it is used.

FDDB annotates ellipses, so that even a perfect rectangle has a low IoU. S3FD (S. Zhang et al., ICCV 2017, section 4.2)
trains a regressor that turns its boxes into ellipses before the continuous score is taken. Here it is a linear least
squares fit, and no face is part of the fit that its own detection goes through: the ellipses of a fold are predicted
from those of the other folds.

Rows are ``x y w h`` for rectangles and ``major minor angle cx cy`` for ellipses, pixels and radians.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

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
    upright = rows[:, 3] >= rows[:, 2]
    half = rows[:, 2:] / 2
    angle = np.where(upright, np.pi / 2, 0.0)
    return np.column_stack([half.max(axis=1), half.min(axis=1), angle, rows[:, :2] + half])


def fit_ellipses(rows_xywh: npt.ArrayLike, ellipses: npt.ArrayLike) -> EllipseFit:
    """Least squares from P rectangles (P, 4) to the P ellipses (P, 5) that they were matched to.

    Each equation is linear in width and height, without a constant, and is weighted by 1 / height: so the fit neither
    depends on where in the image a face is nor on the scale, and a large face counts as much as a small one. The angle
    does not depend on the rectangle: it is the mean of the annotated ones as axes, θ and θ + π being the same.

    Raises:
        ValueError: fewer than :data:`LEAST_PAIRS` pairs, lengths that differ, or a rectangle without area.
    """
    rows, targets = np.asarray(rows_xywh, np.float64).reshape(-1, 4), np.asarray(ellipses, np.float64).reshape(-1, 5)
    if len(rows) != len(targets):
        raise ValueError(f"{len(rows)} rectangles but {len(targets)} ellipses")
    if len(rows) < LEAST_PAIRS:
        raise ValueError(f"{len(rows)} pairs, need at least {LEAST_PAIRS}")
    if (rows[:, 2:] <= 0).any():
        raise ValueError("a rectangle without area")
    doubled = np.exp(2j * targets[:, 2])
    angle = float(np.angle(doubled.mean()) / 2 % np.pi)
    # The first half-axis is the one nearer to the common angle, or the fit would mix up lying and standing ellipses.
    along = np.cos(2 * (targets[:, 2] - angle)) >= 0
    first, second = np.where(along, targets[:, :2].T, targets[:, 1::-1].T)
    offset = targets[:, 3:] - (rows[:, :2] + rows[:, 2:] / 2)
    wanted = np.column_stack([first, second, offset]) / rows[:, 3:]
    coefficients = np.linalg.lstsq(rows[:, 2:] / rows[:, 3:], wanted, rcond=None)[0]
    return EllipseFit(coefficients.astype(np.float64), angle, len(rows))


def apply_fit(fit: EllipseFit, rows_xywh: npt.ArrayLike) -> Floats:
    """(D, 4) rectangles → (D, 5) ellipses. Half-axes below 0, which a fit may give far from its pairs, become 0.

    Those of a rectangle with a negative side, which is none, become -1.
    """
    rows = np.asarray(rows_xywh, np.float64).reshape(-1, 4)
    predicted = rows[:, 2:] @ fit.coefficients
    half = np.where((rows[:, 2:] < 0).any(axis=1, keepdims=True), -1, np.maximum(predicted[:, :2], 0))
    centre = rows[:, :2] + rows[:, 2:] / 2 + predicted[:, 2:]
    return np.column_stack([half, np.full(len(rows), fit.angle), centre])


def fit_without_fold(
    rows_xywh: Sequence[npt.ArrayLike], ellipses: Sequence[npt.ArrayLike], folds: npt.ArrayLike
) -> dict[int, EllipseFit]:
    """Per fold the fit on the pairs of all other folds.

    Args:
        rows_xywh, ellipses: N images' pairs, (P_i, 4) and (P_i, 5).
        folds: (N,), the fold of each image.

    Raises:
        ValueError: as :func:`fit_ellipses`; the message names the fold.
    """
    of_image = np.asarray(folds)
    fits = {}
    for fold in np.unique(of_image).tolist():
        others = np.flatnonzero(of_image != fold).tolist()
        pairs = [
            np.concatenate([np.zeros((0, width)), *(np.asarray(parts[i], np.float64) for i in others)])
            for parts, width in ((rows_xywh, 4), (ellipses, 5))
        ]
        try:
            fits[int(fold)] = fit_ellipses(*pairs)
        except ValueError as error:
            raise ValueError(f"the fit for fold {fold}, on all other folds: {error}") from error
    return fits
