"""Precision-recall figures, with the published WIDER FACE curves beneath (paper, figure 5)."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fanet_lightning.figure_style import Layout, label_lines, legend_below, line_style, panels
from fanet_lightning.scoring.published import (
    FULL_NAMES,
    HOMEPAGE,
    SETTINGS,
    method_name,
    published_curve,
    published_methods,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Published methods with a name are dark dashes of their own; beyond these they come again, lighter.
_PUBLISHED_DASHES = (
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (3, 1)),
    (0, (7, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
NOT_COMPARABLE = "The published curves are over the whole {split} split: they do not compare with other images."


class PrecisionRecall(Protocol):
    """What is drawn of a curve: :class:`fanet_lightning.scoring.curves.Curve` is one.

    ``precision`` and ``recall`` are (T,) in [0, 1], at descending thresholds; ``ap`` in [0, 1], NaN without a face.
    """

    @property
    def precision(self) -> npt.NDArray[np.float64]: ...
    @property
    def recall(self) -> npt.NDArray[np.float64]: ...
    @property
    def ap(self) -> float: ...


def wider_label(name: str, ap: float) -> str:
    """As in the figures of the WIDER FACE page: ``FANet-0.956``."""
    return f"{name}-{ap:.3f}" if np.isfinite(ap) else f"{name}: no face"


def pascal_label(name: str, ap: float) -> str:
    """As in the figures of face-eval: ``FANet (AP 98.78)``."""
    return f"{name} (AP {100 * ap:.2f})" if np.isfinite(ap) else f"{name} (no face)"


def precision_recall_figure(
    runs: Mapping[str, Mapping[str, PrecisionRecall]],
    title: str = "",
    *,
    published: Sequence[str] | None = None,
    split: str = "val",
    sample: bool = False,
    note: str = "",
    label: Callable[[str, float], str] = wider_label,
    layout: Layout = "page",
) -> "Figure":
    """One panel per setting; under each its legend by descending AP, the runs in colour.

    Args:
        runs: name of a run → setting → curve. May be empty with ``published``.
        title: protocol and data, so that the numbers are never without them.
        published: WIDER FACE methods that get a name in the legend; all others of the split are drawn as light grey
            lines. An empty sequence: all of them grey. None: no published curve.
        split: of the published curves, ``val`` or ``test``.
        sample: the runs are over other images, say a part of the split. The figure then says that the published curves
            do not compare.
        note: what else stands below the panels.
        label: name and AP → text of the legend.
        layout: ``page``: panels side by side over 7 inches; ``column``: one above the other, 3.4 inches wide. Neither
            is meant to be scaled.

    Raises:
        InputError: a method or split without published curves.
        ValueError: nothing to draw, published curves beside settings that they do not have, or an unknown layout.
    """
    settings = list(dict.fromkeys(setting for curves in runs.values() for setting in curves))
    notes = [note] if note else []
    named: list[str] = []
    if published is not None:
        named = list(dict.fromkeys(method_name(name, split) for name in published))
        settings = settings or list(SETTINGS)
        if strangers := set(settings) - set(SETTINGS):
            raise ValueError(f"there are no published curves of setting '{min(strangers)}'")
        meant = [f"{name} is {FULL_NAMES[name]}" for name in named if name in FULL_NAMES]
        notes.append("; ".join([f"Published curves: {HOMEPAGE}", *meant]))
        if sample:
            notes.append(NOT_COMPARABLE.format(split=split))
    if not settings:
        raise ValueError("no curve to draw")
    characters, lines = label_lines([*runs, *named], len(settings), layout)
    lines += published is not None and len(named) < len(published_methods(split))

    def legend(name: str, ap: float) -> str:
        return "\n".join(textwrap.wrap(label(name, ap), characters))

    with panels(len(settings), title=title, note="\n".join(notes), legend_lines=lines, layout=layout) as (figure, axes):
        for axis, setting in zip(axes, settings, strict=True):
            grey = [] if published is None else _draw_others(axis, named, split, setting)
            shown = _draw_published(axis, named, runs, split, setting, legend)
            for index, (name, curves) in enumerate(runs.items()):
                if setting in curves:
                    curve = curves[setting]
                    # Before the first detection precision is 0 by definition, or 0 / 0.
                    begun = np.cumsum(np.nan_to_num(curve.precision)) > 0
                    (line,) = axis.plot(
                        curve.recall[begun],
                        curve.precision[begun],
                        **line_style(index),
                        label=legend(name, curve.ap),
                        clip_on=False,
                    )
                    shown.append((curve.ap, line))
            axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="Recall", ylabel="Precision")
            if settings != ["all"]:
                axis.set_title(setting, parse_math=False)
            # Stable, so that runs of equal AP keep their order; those without a face come last.
            shown.sort(key=lambda pair: -pair[0] if np.isfinite(pair[0]) else np.inf)
            legend_below(axis, [line for _, line in shown] + grey)
    return figure


def _draw_others(axis: "Axes", named: Sequence[str], split: str, setting: str) -> "list[Line2D]":
    """All published curves without a name; the one that stands for them in the legend."""
    others = [name for name in published_methods(split) if name not in named]
    lines = []
    for name in others:
        precision, recall = published_curve(name, split, setting)
        lines += axis.plot(recall, precision, color="0.82", linewidth=0.5, zorder=1.5, clip_on=False)
    if lines:
        lines[0].set_label(f"{len(others)} other published methods")
    return lines[:1]


def _draw_published(
    axis: "Axes",
    named: Sequence[str],
    runs: Mapping[str, object],
    split: str,
    setting: str,
    label: Callable[[str, float], str],
) -> "list[tuple[float, Line2D]]":
    drawn = []
    for index, name in enumerate(named):
        precision, recall = published_curve(name, split, setting)
        ap = published_methods(split)[name][setting]
        (line,) = axis.plot(
            recall,
            precision,
            color="0.2" if index < len(_PUBLISHED_DASHES) else "0.55",
            linestyle=_PUBLISHED_DASHES[index % len(_PUBLISHED_DASHES)],
            linewidth=1.0,
            zorder=1.8,
            clip_on=False,
            label=label(f"{name} (published)" if name in runs else name, ap),
        )
        drawn.append((ap, line))
    return drawn
