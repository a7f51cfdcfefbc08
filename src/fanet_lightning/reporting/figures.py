"""The report's figures; :mod:`page` puts them on the page, :func:`fanet_lightning.plots.save_figure` on the disk."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fanet_lightning.plots import STYLE
from fanet_lightning.reporting.gather import Run
from fanet_lightning.reporting.groups import Group
from fanet_lightning.reporting.intervals import by_seed
from fanet_lightning.reporting.paper_table import LABELS, STEPS
from fanet_lightning.reporting.speed import Cost
from fanet_lightning.reporting.table import Row, StepResult
from fanet_lightning.scoring.ground_truth import SETTINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Levels by hue (grey, blue, red), the baseline orange; HL is the darker shade, context the darkest.
COLOURS = {
    "level1": "#6b7280",
    "s3fd_fpn": "#d97706",
    "level2": "#7db8e8",
    "level2_hl": "#1d6fb8",
    "level3": "#f0a3a3",
    "level3_hl": "#d64550",
    "level3_context_hl": "#8f1d2c",
}
OTHER_COLOURS = ("#2f9e6e", "#7c5cc4", "#a3a635", "#c44f9a", "#3aa6a6", "#8a6d4b")
PAPER_COLOUR = "#4b5563"
VERDICT_COLOURS = {"shows": "#1a7f4b", "reversed": "#b42318", "unclear": "#6b7280", "none": "#6b7280"}


def colours(cells: Sequence[str]) -> dict[str, str]:
    """A colour per cell; the paper's cells have theirs in every figure and every report."""
    others = [cell for cell in cells if cell not in COLOURS]
    return COLOURS | {cell: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, cell in enumerate(others)}


@contextmanager
def _figure(size_inches: tuple[float, float]) -> Iterator["Figure"]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "axes.edgecolor": "0.6", "text.color": "#1f2937", "axes.labelcolor": "#1f2937"}):
        figure = Figure(figsize=size_inches, layout="constrained")
        yield figure
        # Laid out once; else every file that it is written to would do it again, which takes most of the time.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def precision_recall(group: Group) -> "Figure | None":
    """One panel per setting, one line per cell and seed; None where no run has kept its curves."""
    shown = [run for run in group.runs if _curves(run)]
    if not shown:
        return None
    palette = colours(group.cells)
    with _figure((10.0, 4.0)) as figure:
        panels = figure.subplots(1, len(SETTINGS), sharey=True)
        for axis, setting in zip(panels, SETTINGS, strict=True):
            for cell in dict.fromkeys(run.cell for run in shown):
                of_cell = [curve for run in shown if run.cell == cell if (curve := _curves(run).get(setting))]
                for number, curve in enumerate(of_cell):
                    mean = sum(other.ap for other in of_cell) / len(of_cell)
                    label = f"{LABELS.get(cell, cell)}  {100 * mean:.1f}" if number == 0 else None
                    begun = curve.precision.cumsum() > 0  # before the first row precision is 0 by definition
                    axis.plot(
                        curve.recall[begun], curve.precision[begun], color=palette[cell],
                        linewidth=1.5 if len(of_cell) == 1 else 0.9, label=label,
                    )  # fmt: skip
            axis.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", title=setting)
            axis.legend(loc="lower left", frameon=False, fontsize=7.5, handlelength=1.4)
        panels[0].set_ylabel("precision")
    return figure


def forest(results: Sequence[StepResult], settings: Sequence[str] = SETTINGS) -> "Figure | None":
    """Every step of the paper: ours with its interval over images, each seed, and the paper's; None without a step."""
    if not any(result.ours for result in results):
        return None
    with _figure((10.0, 0.42 * len(STEPS) + 1.5)) as figure:
        panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for axis, setting in zip(panels, settings, strict=True):
            own = [result for result in results if result.setting == setting]
            for y, result in enumerate(own):
                _forest_line(axis, y, result)
            axis.axvline(0, color="#374151", linewidth=0.9)
            axis.set(title=setting, xlabel="difference, points of AP", ylim=(len(own) - 0.4, -0.6))
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
            claims = [result.step.claim for result in own]
            for y in range(1, len(own)):
                if claims[y] != claims[y - 1]:
                    axis.axhline(y - 0.5, color="0.85", linewidth=0.8)
        panels[0].set_yticks(range(len(STEPS)), [step.label for step in STEPS])
        figure.legend(handles=_forest_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _forest_line(axis: "Axes", y: int, result: StepResult) -> None:
    axis.plot(result.paper_points, y + 0.18, marker="D", markersize=4.5, color="none", markeredgecolor=PAPER_COLOUR)
    if result.ours is None:
        return
    colour = VERDICT_COLOURS[result.verdict.kind]
    if result.ours.over_images is not None:
        low, high = (100 * bound for bound in result.ours.over_images)
        axis.plot([low, high], [y - 0.12, y - 0.12], color=colour, linewidth=2.2, solid_capstyle="butt")
    axis.plot(100 * result.ours.value, y - 0.12, marker="o", markersize=5.5, color=colour)
    if result.ours.seeds > 1:
        values = [100 * value for value in result.ours.per_seed.values()]
        axis.plot(values, [y - 0.32] * len(values), "|", color=colour, markersize=5)


def _forest_legend() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color="#1a7f4b", marker="o", linewidth=2.2, label="ours, 95 % over images"),
        Line2D([], [], color="#1a7f4b", marker="|", linestyle="none", label="each seed"),
        Line2D([], [], color="none", marker="D", markeredgecolor=PAPER_COLOUR, markersize=4.5, label="paper"),
        Line2D([], [], color="#6b7280", marker="o", linewidth=2.2, label="grey: not distinguishable, red: reversed"),
    ]


def trade_off(rows: Sequence[Row], costs: Mapping[str, Cost], setting: str = "hard") -> "Figure | None":
    """AP against speed, parameters and operations (the paper's figure 7); None where no row has both."""
    shown = [row for row in rows if setting in row.ours and row.cell in costs]
    shown = list({row.cell: row for row in reversed(shown)}.values())[::-1]  # a cell at its first protocol alone
    if not shown:
        return None
    palette = colours([row.cell for row in shown])
    timed = all(costs[row.cell].seconds for row in shown)
    kinds = ["images/s", "parameters, millions", "GFLOPs at 640×480"][0 if timed else 1 :]
    with _figure((10.0, 3.9)) as figure:
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axis, kind in zip(panels, kinds, strict=True):
            for row in shown:
                cost, estimate = costs[row.cell], row.ours[setting]
                x = {"images/s": cost.images_per_second or 0.0, "parameters, millions": cost.parameters / 1e6}.get(
                    kind, cost.flops / 1e9
                )
                y = 100 * estimate.value
                if estimate.over_images is not None:
                    low, high = (100 * bound for bound in estimate.over_images)
                    axis.plot([x, x], [low, high], color=palette[row.cell], linewidth=1, alpha=0.45)
                axis.plot(x, y, "o", markersize=7, color=palette[row.cell], label=LABELS.get(row.cell, row.cell))
            axis.set_xlabel(kind)
            axis.margins(x=0.12)
        panels[0].set_ylabel(f"AP {setting}, %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def learning(group: Group) -> "Figure | None":
    """AP on the validation images over the epochs, a line per cell and seed; None where no run has logged it."""
    shown = [run for run in group.runs if run.learning]
    if not shown:
        return None
    palette = colours(group.cells)
    with _figure((10.0, 3.9)) as figure:
        panels = figure.subplots(1, len(SETTINGS))
        named: set[str] = set()
        for axis, setting in zip(panels, SETTINGS, strict=True):
            for run in shown:
                points = [(epoch, 100 * ap[setting]) for epoch, ap in run.learning if setting in ap]
                if points:
                    label = None if run.cell in named else LABELS.get(run.cell, run.cell)
                    named.add(run.cell)
                    axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2,
                              color=palette[run.cell], label=label)  # fmt: skip
            axis.set(title=setting, xlabel="epochs")
            axis.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel("validation AP, %")
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _curves(run: Run) -> Mapping[str, Any]:
    evaluation = by_seed([run], run.protocol).get(run.record.seed)
    return evaluation.curves if evaluation is not None else {}
