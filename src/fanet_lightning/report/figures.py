"""Figures: style, precision-recall, ROC, attributes, grids of detections."""

import logging
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from fanet_lightning.cli.files import replaced
from fanet_lightning.ops.draw import confidence_colors
from fanet_lightning.score.analysis.attributes import ATTRIBUTES, AttributeScores, GroupScore, group_label
from fanet_lightning.score.curves import Curve, Floats, Ints, RocCurve
from fanet_lightning.score.inputs import reading
from fanet_lightning.score.wider_face.ground_truth import SETTINGS
from fanet_lightning.score.wider_face.published import (
    FULL_NAMES,
    HOMEPAGE,
    method_name,
    published_curve,
    published_methods,
)

# Vector text stays text in the PDF (TrueType, not the Type 3 that many publishers refuse).
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "0.9", "axes.axisbelow": True,
}  # fmt: skip
# M. Okabe, K. Ito: Color Universal Design, 2008; the strongest first, without the yellow, which fades on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# For the eighth line and on the colors come again, dashed.
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)))

# Widths of a page of text and of one column of two, in inches: neither is scaled when it is set in a paper.
Layout = Literal["page", "column"]
WIDTHS_INCHES: dict[Layout, float] = {"page": 7.0, "column": 3.4}
_TEXT_POINTS = 7.5
_LINE_INCHES = 0.145
# Of the x axis, between a panel and its legend.
_LABELS_INCHES = 0.42


def line_style(index: int) -> dict[str, Any]:
    """Color and dashes of the index-th run."""
    again, color = divmod(index, len(COLORS))
    return {"color": COLORS[color], "linestyle": DASHES[again % len(DASHES)], "linewidth": 1.5}


@contextmanager
def canvas(
    size_inches: tuple[float, float], rows: int = 1, columns: int = 1, *, sharey: bool = False, style: Mapping[Any, Any]
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of panels, row by row, laid out when the block ends; ``style``: rc parameters beyond :data:`STYLE`."""
    with mpl.rc_context({**STYLE, **style}):
        figure = Figure(figsize=size_inches, layout="constrained")
        yield figure, figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel().tolist()
        # Laid out once; else every file that it is written to would do it again, which takes most of the time.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


@contextmanager
def panels(
    count: int, *, title: str, note: str, legend_lines: int, layout: Layout
) -> Iterator[tuple[Figure, list[Axes]]]:
    """``count`` panels: side by side on a page, one above the other in a column; room for ``legend_lines`` below each,
    and for the note below all: what a reader must know before comparing."""
    width = WIDTHS_INCHES["column" if count == 1 else layout]
    rows, columns = (count, 1) if layout == "column" else (1, count)
    titles, notes = (wrapped(text, width) for text in (title, note))
    panel = min(width / columns, 3.0) * (0.6 if rows > 1 else 0.85)
    height = rows * (panel + 0.65 + _LINE_INCHES * legend_lines)
    height += _LINE_INCHES * sum(text.count("\n") + 1 for text in (titles, notes) if text)
    style = {"font.size": 8, "legend.fontsize": _TEXT_POINTS, "axes.titlesize": 8.5}
    with canvas((width, height), rows, columns, sharey=True, style=style) as (figure, axes):
        figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.05)
        if titles:
            figure.suptitle(titles, fontsize=8.5, parse_math=False)
        if notes:
            figure.supxlabel(notes, fontsize=7, color="0.3", parse_math=False)
        yield figure, axes
        for axis in axes[1:] if columns > 1 else []:
            axis.set_ylabel("")


def label_lines(names: Sequence[str], count: int, layout: Layout) -> tuple[int, int]:
    """Characters that fit into a line of the legend below one of ``count`` panels, and lines that the names take."""
    width = WIDTHS_INCHES["column"] if layout == "column" or count == 1 else WIDTHS_INCHES["page"] / count
    characters = int((width - 0.8) * 15)
    # A number of up to ten characters follows the name.
    return characters, sum(-(-(len(name) + 10) // characters) for name in names)


def wrapped(text: str, width_inches: float) -> str:
    """Text broken into lines of a figure's width at 7 to 9 points."""
    return "\n".join(
        line for part in text.splitlines() for line in textwrap.wrap(part, max(20, int(width_inches * 15.5)))
    )


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.pdf (vector, for papers) and ``stem``.png (for looking), by rename and without the time of day."""
    # It reports on every table of every font where the root logger lets it, as Hydra's does.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    for path, metadata in zip(paths, ({"CreationDate": None}, {}), strict=True):
        # The style of fonts is read when a file is written, not when the figure is made.
        with replaced(path) as temporary, mpl.rc_context(STYLE):
            figure.savefig(temporary, format=path.suffix[1:], dpi=200, metadata=metadata)
    return paths


# Value, label, x, y and style.
_Line = tuple[float, str, Floats | Ints, Floats, dict[str, Any]]
# Published methods with a name are dark dashes of their own; beyond these they come again, lighter.
_PUBLISHED_DASHES = (
    (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1)), (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
NOT_COMPARABLE = "The published curves are over the whole val split: they do not compare with other images."


def wider_label(name: str, ap: float) -> str:
    """As in the figures of the WIDER FACE page: ``FANet-0.956``."""
    return f"{name}-{ap:.3f}" if np.isfinite(ap) else f"{name}: no face"


def pascal_label(name: str, ap: float) -> str:
    """As in the figures of face-eval: ``FANet (AP 98.78)``."""
    return f"{name} (AP {100 * ap:.2f})" if np.isfinite(ap) else f"{name} (no face)"


def precision_recall_figure(
    runs: Mapping[str, Mapping[str, Curve]],
    title: str = "",
    *,
    published: Sequence[str] | None = None,
    sample: bool = False,
    label: Callable[[str, float], str] = wider_label,
    layout: Layout = "page",
) -> Figure:
    """One panel per setting; under each its legend by descending AP, the runs in color.

    Args:
        runs: name of a run → setting → curve. May be empty with ``published``.
        title: protocol and data, so that the numbers are never without them.
        published: methods on WIDER FACE val that get a name in the legend (InputError: one without curves); all others
            are light gray lines. An empty sequence: all of them gray. None: no published curve.
        sample: the runs are over other images: the figure says that the published curves do not compare.
        label: name and AP → text of the legend.
        layout: ``page``: panels side by side over 7 inches; ``column``: one above the other, 3.4 inches wide.
    """
    settings = list(dict.fromkeys(setting for curves in runs.values() for setting in curves)) or list(SETTINGS)
    known = {} if published is None else published_methods("val")
    named = list(dict.fromkeys(map(method_name, published or ())))
    others = [name for name in known if name not in named]
    notes = []
    if published is not None:
        meant = [f"{name} is {FULL_NAMES[name]}" for name in named if name in FULL_NAMES]
        notes = ["; ".join([f"Published curves: {HOMEPAGE}", *meant]), *([NOT_COMPARABLE] if sample else [])]
    characters, lines = label_lines([*runs, *named], len(settings), layout)
    lines += bool(others)

    with panels(len(settings), title=title, note="\n".join(notes), legend_lines=lines, layout=layout) as (figure, axes):
        for axis, setting in zip(axes, settings, strict=True):
            gray, shown = list[Line2D](), []
            for name in others:
                precision, recall = published_curve(name, "val", setting)
                gray += axis.plot(recall, precision, color="0.82", linewidth=0.5, zorder=1.5, clip_on=False)
            for line in gray[:1]:
                line.set_label(f"{len(others)} other published methods")
            for index, name in enumerate(named):
                precision, recall = published_curve(name, "val", setting)
                ap, text = known[name][setting], f"{name} (published)" if name in runs else name
                again, dashes = divmod(index, len(_PUBLISHED_DASHES))
                style = {"color": "0.55" if again else "0.2", "linestyle": _PUBLISHED_DASHES[dashes], "linewidth": 1.0}
                shown.append((ap, label(text, ap), recall, precision, {**style, "zorder": 1.8, "clip_on": False}))
            for index, (name, curves) in enumerate(runs.items()):
                if own := curves.get(setting):
                    # Before the first detection precision is 0 by definition, or 0 / 0.
                    begun = np.cumsum(np.nan_to_num(own.precision)) > 0
                    x, y = own.recall[begun], own.precision[begun]
                    shown.append((own.ap, label(name, own.ap), x, y, {**line_style(index), "clip_on": False}))
            axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="Recall", ylabel="Precision")
            if settings != ["all"]:
                axis.set_title(setting, parse_math=False)
            _plot_lines(axis, shown, characters, also=gray[:1])
    return figure


def _plot_lines(
    axis: Axes, lines: Sequence[_Line], characters: int, *, also: Sequence[Line2D] = (), title: str | None = None
) -> None:
    """Curves with their legend by descending value, that of ``also`` below, all under the panel: inside it would hide
    curves that fall early."""
    drawn: list[tuple[float, Line2D]] = []
    for value, text, x, y, style in lines:
        (line,) = axis.plot(x, y, label="\n".join(textwrap.wrap(text, characters)), **style)
        drawn.append((-value if np.isfinite(value) else np.inf, line))
    # Stable, so that runs of equal value keep their order; those without a face come last.
    shown = [*(line for _, line in sorted(drawn, key=lambda pair: pair[0])), *also]
    below = ScaledTranslation(0, -_LABELS_INCHES, axis.figure.dpi_scale_trans)
    # Their own labels come below: here one that starts with _ would be left out, and $ would begin a formula.
    legend = axis.legend(
        shown, ["-"] * len(shown), title=title, title_fontsize=_TEXT_POINTS, alignment="left", loc="upper left",
        bbox_to_anchor=(-0.02, 0), bbox_transform=axis.transAxes + below, borderaxespad=0, borderpad=0, frameon=False,
        handlelength=2.2, labelspacing=0.25,
    )  # fmt: skip
    for entry, handle in zip(legend.get_texts(), shown, strict=True):
        entry.set_parse_math(False)
        entry.set_text(handle.get_label())


SCORES = ("discrete", "continuous")


def read_roc_file(path: Path) -> RocCurve:
    """An official ``DiscROC.txt`` (rate, false positives, threshold) or ``ContROC.txt`` (rate, false positives)."""
    with reading(path, "score the detections again"):
        rate, false_positives, *_ = np.loadtxt(path, ndmin=2, encoding="utf-8").T
    return RocCurve(rate, false_positives)


def roc_figure(
    runs: Mapping[str, Mapping[str, RocCurve]],
    title: str = "",
    *,
    max_false_positives: float | None = 2000,
    scale: Literal["linear", "log"] = "linear",
    layout: Layout = "page",
) -> Figure:
    """The discrete and the continuous panel; under each the runs by descending rate, that of the first point with no
    more than ``max_false_positives``, as in ``scores.json``.

    Args:
        runs: name → ``discrete`` and ``continuous`` → curve; a run may have one of them alone.
        max_false_positives: end of the x axis; None: as far as the longest curve goes.
        scale: of false positives. ``log`` is linear between 0 and 1, so that the points without any are in it.
        title, layout: as :func:`precision_recall_figure`.
    """
    limit = math.inf if max_false_positives is None else max_false_positives
    head = "rate at the end of the curve" if math.isinf(limit) else f"rate at ≤ {limit:,.0f} false positives"
    characters, lines = label_lines([*runs], len(SCORES), layout)
    with panels(len(SCORES), title=title, note="", legend_lines=lines + 1, layout=layout) as (figure, axes):
        for axis, score in zip(axes, SCORES, strict=True):
            shown = [
                ((rate := own[score].at(limit)), f"{name} {rate:.4f}", *own[score][::-1], line_style(index))
                for index, (name, own) in enumerate(runs.items())
                if score in own
            ]
            longest = max(float(curve.false_positives.max()) for own in runs.values() for curve in own.values())
            axis.set(xlim=(0, longest or 1 if math.isinf(limit) else limit), ylim=(0, 1), title=f"{score} score")
            if scale == "log":
                axis.set_xscale("symlog", linthresh=1)
            else:
                axis.xaxis.set_major_locator(MaxNLocator(5))
                axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set(xlabel="False positives", ylabel="True-positive rate")
            _plot_lines(axis, shown, characters, title=head)
    return figure


# Of the same palette, in pairs of a strong and a light one.
MEASURE_COLORS = {"ap": "#0072b2", "normalised_ap": "#56b4e9", "recall": "#d55e00", "max_recall": "#e69f00"}
HEADINGS = {"scale": "scale (WIDER FACE)"}


def attribute_figure(scores: AttributeScores, title: str = "", *, of_events: bool = False) -> Figure:
    """AP to the left and recall to the right, one line per group of every attribute but events.

    Groups without a face are left out. Light dots: AP with normalised precision, and the recall of all rows.
    ``of_events``: of the events alone, the highest AP on top; there is no normalised AP of an event.
    """
    attributes = ["all", "event"] if of_events else [name for name in ATTRIBUTES if name != "event"]
    sides = (("ap",) if of_events else ("ap", "normalised_ap"), ("recall", "max_recall"))
    # A heading, or the text of a group and its numbers.
    lines: list[tuple[str, GroupScore | None]] = []
    for attribute in attributes:
        counted = [score for score in scores.groups if score.attribute == attribute and score.faces]
        counted.sort(key=lambda score: -score.ap.value if of_events else 0)
        if counted and attribute != "all":
            lines.append((HEADINGS.get(attribute, attribute), None))
        for score in counted:
            text = f"{group_label(score.attribute, score.value)}  ({score.faces:,})"
            lines.append((f"all {score.faces:,} faces" if attribute == "all" else text, score))
    texts = {
        "ap": "AP", "normalised_ap": "AP with normalised precision", "max_recall": "recall of all detections",
        "recall": f"recall at precision {scores.at_precision:g} over all faces",
    }  # fmt: skip
    dot: dict[str, Any] = {"marker": "o", "markersize": 3.2}
    with canvas((7.0, 0.165 * len(lines) + 1.15), columns=2, sharey=True, style={"font.size": 8}) as (figure, axes):
        for axis, measures, name in zip(axes, sides, ("AP", "recall"), strict=True):
            for y, (_, group) in enumerate(lines):
                known = {} if group is None else {own: getattr(group, own) for own in measures}
                known = {own: interval for own, interval in known.items() if not math.isnan(interval.value)}
                for number, (own, (value, low, high, *_)) in enumerate(known.items()):
                    # Two numbers of a line are a little apart, so that neither interval hides the other.
                    place, color = y + 0.32 * (number - (len(known) - 1) / 2), MEASURE_COLORS[own]
                    if not math.isnan(low):
                        axis.plot([low, high], [place, place], color=color, linewidth=1.4, solid_capstyle="butt")
                    axis.plot(value, place, color=color, clip_on=False, zorder=3, **dot)
            whole = getattr(scores.groups[0], measures[0]).value
            if not math.isnan(whole):
                axis.axvline(whole, color=MEASURE_COLORS[measures[0]], linewidth=0.7, linestyle=(0, (2, 2)))
            axis.set(xlim=(0, 1), ylim=(len(lines) - 0.4, -0.6), xlabel=name)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(lines)), [text for text, _ in lines])
        for tick, (_, group) in zip(axes[0].get_yticklabels(), lines, strict=True):
            tick.set_fontweight("bold" if group is None else "normal")
            tick.set_parse_math(False)
        handles = [
            Line2D([], [], color=MEASURE_COLORS[name], label=texts[name], linewidth=1.4, **dot)
            for side in sides for name in side
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) > 3 else 3, frameon=False)
        if title:
            figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def detection_grid(images_rgb: Sequence[npt.NDArray[np.uint8]], titles: Sequence[str], caption: str) -> Figure:
    """Annotated images in a grid of three columns with the color bar of confidence at the right."""
    rows = max(1, -(-len(images_rgb) // 3))
    width, lines = 4.0 * 3 + 0.8, [wrapped(title, 3.5) for title in titles]
    height = (3.0 + _LINE_INCHES * max((text.count("\n") + 1 for text in lines), default=1)) * rows + 0.5
    with canvas((width, height), rows, 3, style={"axes.grid": False}) as (figure, axes):
        for axis in axes:
            axis.set_axis_off()
        for axis, image, text in zip(axes, images_rgb, lines, strict=False):
            axis.imshow(image)
            axis.set_title(text, fontsize=7, parse_math=False)
        bar = ScalarMappable(Normalize(0, 1), ListedColormap(confidence_colors(np.linspace(0, 1, 256)) / 255))
        figure.colorbar(bar, ax=axes, fraction=0.02, pad=0.01, label="confidence")
        figure.suptitle(wrapped(caption, width), fontsize=9, parse_math=False)
    return figure
