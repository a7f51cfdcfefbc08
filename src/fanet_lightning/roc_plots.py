"""FDDB's ROC figure, discrete and continuous, from scores or from anybody's curve files in the official format."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.figure_style import Layout, label_lines, legend_below, line_style, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fanet_lightning.scoring.fddb import Roc

SCORES = ("discrete", "continuous")


class RocCurve(NamedTuple):
    """``true_positive_rate`` (T,) in [0, 1] and ``false_positives`` (T,), in the order of the official files: by
    ascending threshold, so the first point has most false positives."""

    true_positive_rate: npt.NDArray[np.float64]
    false_positives: npt.NDArray[np.float64]

    def at(self, false_positives: float = math.inf) -> float:
        """Rate of the first point with no more than so many false positives, 0 where there is none."""
        within = np.flatnonzero(self.false_positives <= false_positives)
        return float(self.true_positive_rate[within[0]]) if len(within) else 0.0


def roc_curves(roc: "Roc") -> dict[str, RocCurve]:
    """Both curves of a scoring."""
    false_positives = roc.false_positives.astype(np.float64)
    return {
        "discrete": RocCurve(roc.rate_discrete, false_positives),
        "continuous": RocCurve(roc.rate_continuous, false_positives),
    }


def read_roc_file(path: Path) -> RocCurve:
    """An official ``…DiscROC.txt`` (rate, false positives, threshold) or ``…ContROC.txt`` (rate, false positives).

    Blank lines are skipped. A file by descending threshold is turned round.

    Raises:
        InputError: the file is missing or empty; a line that does not have 2 or 3 numbers, as many as the first has; a
            rate outside [0, 1]; a count of false positives that is negative or not finite.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a curve file of FDDB's program") from error
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            row = [float(field) for field in fields]
        except ValueError:
            hint = "; write decimals with a point" if "," in line else ""
            raise InputError(f"{path}:{number}: '{line.strip()[:60]}' is not numbers{hint}") from None
        if len(row) not in (2, 3) or (rows and len(row) != len(rows[0])):
            expected = str(len(rows[0])) if rows else "2 or 3"
            raise InputError(
                f"{path}:{number}: {len(row)} numbers instead of {expected}: rate, false positives, threshold"
            )
        if not 0 <= row[0] <= 1:
            raise InputError(f"{path}:{number}: a true-positive rate of {fields[0]} is not in [0, 1]")
        if not (math.isfinite(row[1]) and row[1] >= 0):
            raise InputError(f"{path}:{number}: {fields[1]} is no count of false positives")
        rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no line; give a curve file of FDDB's program")
    points = np.array([row[:2] for row in rows])
    if points[0, 1] < points[-1, 1]:
        points = points[::-1]
    return RocCurve(points[:, 0], points[:, 1])


def roc_figure(
    runs: Mapping[str, Mapping[str, RocCurve]],
    title: str = "",
    *,
    max_false_positives: float | None = 2000,
    scale: Literal["linear", "log"] = "linear",
    note: str = "",
    layout: Layout = "page",
) -> "Figure":
    """The discrete and the continuous panel; under each the runs by descending rate.

    The rate in the legend is that of the first point with no more than ``max_false_positives``, as in ``scores.json``.

    Args:
        runs: name → ``discrete`` and ``continuous`` → curve; a run may have one of them alone.
        title: protocol and data.
        max_false_positives: end of the x axis; None: as far as the longest curve goes.
        scale: of false positives. ``log`` is linear between 0 and 1, so that the points without any are in it.
        note: what else stands below the panels.
        layout: as :func:`fanet_lightning.curve_plots.precision_recall_figure`.

    Raises:
        ValueError: no run, an end of the axis that is not above 0, or an unknown scale or layout.
    """
    if not any(runs.values()):
        raise ValueError("no curve to draw")
    if max_false_positives is not None and not (math.isfinite(max_false_positives) and max_false_positives > 0):
        raise ValueError(f"max_false_positives={max_false_positives} is not above 0")
    if scale not in ("linear", "log"):
        raise ValueError(f"scale={scale!r} is neither linear nor log")
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    limit = math.inf if max_false_positives is None else max_false_positives
    head = "rate at the end of the curve" if math.isinf(limit) else f"rate at ≤ {limit:,.0f} false positives"
    characters, lines = label_lines([*runs], len(SCORES), layout)
    with panels(len(SCORES), title=title, note=note, legend_lines=lines + 1, layout=layout) as (figure, axes):
        for axis, score in zip(axes, SCORES, strict=True):
            shown = []
            for index, (name, curves) in enumerate(runs.items()):
                if score in curves:
                    curve = curves[score]
                    rate = curve.at(limit)
                    (line,) = axis.plot(
                        curve.false_positives,
                        curve.true_positive_rate,
                        **line_style(index),
                        label="\n".join(textwrap.wrap(f"{name} {rate:.4f}", characters)),
                    )
                    shown.append((rate, line))
            longest = max(float(curve.false_positives.max()) for own in runs.values() for curve in own.values())
            axis.set(xlim=(0, longest or 1 if math.isinf(limit) else limit), ylim=(0, 1), title=f"{score} score")
            if scale == "log":
                axis.set_xscale("symlog", linthresh=1)
            else:
                axis.xaxis.set_major_locator(MaxNLocator(5))
                axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set(xlabel="False positives", ylabel="True-positive rate")
            shown.sort(key=lambda pair: -pair[0])
            legend_below(axis, [line for _, line in shown], head)
    return figure
