"""Figures of a breakdown by attribute: a dot and its interval per group, the number of faces beside it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fanet_lightning.figure_style import STYLE
from fanet_lightning.scoring.attribute_groups import ATTRIBUTES
from fanet_lightning.scoring.attribute_results import group_label
from fanet_lightning.scoring.attributes import AttributeScores, GroupScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by people with any colour vision and in grey.
COLOURS = {"ap": "#0072b2", "normalised_ap": "#56b4e9", "recall": "#d55e00", "max_recall": "#e69f00"}
HEADINGS = {"all": "", "height": "height", "scale": "scale (WIDER FACE)"}


def attribute_figure(scores: AttributeScores, title: str = "") -> "Figure":
    """AP to the left and recall to the right, one line per group of every attribute but events.

    Groups without a face are left out. Light dots: AP with normalised precision, and the recall of all rows.
    """
    blocks = []
    for attribute in ATTRIBUTES:
        own = [score for score in scores.groups if score.attribute == attribute and score.faces]
        if own and attribute != "event":
            blocks.append((HEADINGS.get(attribute, attribute), own))
    return _figure(scores, blocks, title, ("ap", "normalised_ap"))


def event_figure(scores: AttributeScores, title: str = "") -> "Figure":
    """As :func:`attribute_figure` for the events, the highest AP on top; there is no normalised AP of an event."""
    events = [score for score in scores.groups if score.attribute == "event" and score.faces]
    everything = [score for score in scores.groups if score.attribute == "all"]
    events.sort(key=lambda score: -score.ap.value)
    return _figure(scores, [("", everything), ("event", events)], title, ("ap",))


def _figure(
    scores: AttributeScores, blocks: Sequence[tuple[str, list[GroupScore]]], title: str, left_measures: tuple[str, ...]
) -> "Figure":
    import matplotlib as mpl
    from matplotlib.figure import Figure

    sides = (left_measures, ("recall", "max_recall"))
    lines = sum(len(own) + bool(heading) for heading, own in blocks)
    with mpl.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(7.0, 0.165 * lines + 1.15), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        labels: list[tuple[str, bool]] = []
        for heading, own in blocks:
            if heading:
                labels.append((heading, True))
            for score in own:
                for axis, measures in zip(axes, sides, strict=True):
                    _dots(axis, len(labels), score, measures)
                labels.append((_label(score), False))
        for axis, measures, name in zip(axes, sides, ("AP", "recall"), strict=True):
            whole = scores.groups[0].measure(measures[0]).value
            if not math.isnan(whole):
                axis.axvline(whole, color=COLOURS[measures[0]], linewidth=0.7, linestyle=(0, (2, 2)))
            axis.set(xlim=(0, 1), ylim=(len(labels) - 0.4, -0.6), xlabel=name)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(labels)), [text for text, _ in labels])
        for tick, (_, is_heading) in zip(axes[0].get_yticklabels(), labels, strict=True):
            tick.set_fontweight("bold" if is_heading else "normal")
        handles = _legend(scores, sides)
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) > 3 else 3, frameon=False)
        if title:
            figure.suptitle(title, fontsize=9)
        # Laid out once; else every file that it is written to would do it again, which takes most of the time.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _label(score: GroupScore) -> str:
    label = group_label(score.attribute, score.value)
    return f"all {score.faces:,} faces" if score.attribute == "all" else f"{label}  ({score.faces:,})"


def _dots(axis: "Axes", y: float, score: GroupScore, measures: tuple[str, ...]) -> None:
    shown = [name for name in measures if not math.isnan(score.measure(name).value)]
    for number, name in enumerate(shown):
        interval, colour = score.measure(name), COLOURS[name]
        # Two numbers of a line lie a little apart, so that neither interval hides the other.
        place = y + 0.32 * (number - (len(shown) - 1) / 2)
        if not math.isnan(interval.low):
            axis.plot([interval.low, interval.high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        axis.plot(interval.value, place, marker="o", markersize=3.2, color=colour, clip_on=False, zorder=3)


def _legend(scores: AttributeScores, sides: Sequence[tuple[str, ...]]) -> list[Any]:
    from matplotlib.lines import Line2D

    texts = {
        "ap": "AP",
        "normalised_ap": "AP with normalised precision",
        "recall": f"recall at precision {scores.at_precision:g} over all faces",
        "max_recall": "recall of all detections",
    }
    style: dict[str, Any] = {"marker": "o", "markersize": 3.2, "linewidth": 1.4}
    return [Line2D([], [], color=COLOURS[name], label=texts[name], **style) for side in sides for name in side]
