"""The report of a sweep: groups of runs → tables, figures, costs, a page.

Runs whose AP compare, because they were scored on the same images under the same protocol, are one part. Its table
has a row for each combination of the settings that differ, over the seeds that it was trained with.
"""

import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import now
from fanet_lightning.report.ablation import (
    INK,
    Estimate,
    PaperTable,
    Resampler,
    forest,
    markdown_rows,
    markdown_steps,
    paper_tables,
    run_status,
    status,
    verdict,
)
from fanet_lightning.report.figures import canvas, line_style, precision_recall_figure, wrapped
from fanet_lightning.report.html import data_uri, duration, percent, points, render, value_text
from fanet_lightning.report.runs import (
    SOURCE,
    Found,
    Group,
    Run,
    Variant,
    Varied,
    group_runs,
    is_number,
    sweep_command,
)
from fanet_lightning.score.bootstrap import method
from fanet_lightning.score.results import markdown_table

# So many variants have a color and a place in the legends; the others are grey.
NAMED = 8
GREY = {"color": "0.82", "linewidth": 1.0, "zorder": 1.5}


@dataclass(frozen=True)
class Line:
    """A row of the table: one combination of settings. By name of the AP: ``ap``, and ``difference`` to the baseline.

    ``status`` says what is missing of it, in words; empty when all its runs are finished and scored.
    """

    variant: Variant
    ap: dict[str, Estimate]
    difference: dict[str, Estimate]
    status: str

    def mean_of(self, key: str) -> float | None:
        """Mean over its runs of a number in ``train`` of their records: ``seconds``, ``images_per_second``."""
        values = [run.record.train.get(key) for run in self.variant.runs]
        known = [float(value) for value in values if isinstance(value, int | float)]
        return statistics.fmean(known) if known else None


@dataclass(frozen=True, eq=False)
class Part:
    """What the page says about one group.

    ``letter``    A, B, …; empty where there is one group alone.
    ``tables``    protocol → rows, the highest last AP first; that of the runs themselves is first.
    ``baseline``  that the differences are to; None where none was asked for, or it is in another group.
    ``paper``     our runs next to the paper's, where they are among its rows.
    ``figures``   by file name without extension; those that there is data for.
    ``notes``     one line each about what does not compare or is incomplete.
    """

    group: Group
    letter: str
    tables: dict[str, list[Line]]
    baseline: Variant | None
    paper: list[PaperTable]
    figures: dict[str, Figure]
    notes: list[str]
    intervals_method: str | None

    @property
    def prefix(self) -> str:
        """Of the names of its figures' files."""
        return f"{self.letter.lower()}_" if self.letter else ""

    @property
    def seeds(self) -> list[int]:
        return sorted({run.record.seed for run in self.group.runs})

    @property
    def several_seeds(self) -> bool:
        return any(len(variant.runs) > 1 for variant in self.group.variants)

    @property
    def states(self) -> dict[str, int]:
        """How many runs are in which state."""
        states = [run.record.state for run in self.group.runs]
        return {"finished": states.count("finished"), **{state: states.count(state) for state in sorted({*states})}}

    @property
    def legend(self) -> str:
        """What stands behind an AP of the tables."""
        if not self.group.is_scored:
            return "AP in % on the validation images, of each run's best epoch: no run has been scored yet."
        seeds = "mean over seeds" if self.several_seeds else "one seed"
        return f"AP in %, {seeds}" + (f" [95 % interval: {self.intervals_method}]." if self.intervals_method else ".")

    @property
    def facts(self) -> dict[str, str]:
        """Data, protocol, what was varied, seeds and devices, as far as they are known."""
        devices = {str(run.record.train["device"]) for run in self.group.runs if run.record.train.get("device")}
        facts = {
            "Data": self.group.data_label,
            "Protocol": self.group.protocol,
            **{one.name: value_text(one.values) for one in self.group.varied},
            "Seeds": value_text(self.seeds),
            "Trained on": "; ".join(sorted(devices)),
        }
        return {name: text for name, text in facts.items() if text}

    def names_of(self, prefix: str) -> list[str]:
        """Names of those figures that are drawn for each AP."""
        return [prefix + name for name in self.group.ap_names]

    def best(self, protocol: str, name: str) -> float | None:
        """The highest AP of a table's column."""
        return max((line.ap[name].value for line in self.tables[protocol] if name in line.ap), default=None)


def build_parts(found: Found, *, bootstrap: int, baseline: str | None = None) -> list[Part]:
    """Tables and figures of every group, the largest first.

    Raises:
        InputError: no run is called ``baseline``, or several variants are.
    """
    groups = group_runs(found.runs)
    baselines = [_baseline(group, baseline) for group in groups]
    if baseline is not None and groups and not any(baselines):
        labels = [f"'{variant.label}'" for group in groups for variant in group.variants]
        raise InputError(f"baseline={baseline} is none of the runs below {found.root}; there are {', '.join(labels)}")
    return [
        _part(group, chr(ord("A") + number) if len(groups) > 1 else "", own, bootstrap)
        for number, (group, own) in enumerate(zip(groups, baselines, strict=True))
    ]


def _baseline(group: Group, name: str | None) -> Variant | None:
    found = [variant for variant in group.variants if name is not None and variant.answers_to(name)]
    if len(found) > 1:
        raise InputError(f"baseline={name} is the name of several: give one of {', '.join(v.label for v in found)}")
    return found[0] if found else None


def _part(group: Group, letter: str, baseline: Variant | None, bootstrap: int) -> Part:
    resampler = Resampler(bootstrap)
    tables = {protocol: _lines(group, protocol, baseline, resampler) for protocol in group.protocols}
    paper = paper_tables(group, resampler)
    return Part(
        group=group,
        letter=letter,
        tables=tables,
        baseline=baseline,
        paper=paper,
        figures=_figures(group, tables[group.protocol], paper),
        notes=_notes(group),
        intervals_method=method(bootstrap) if bootstrap else None,
    )


def _lines(group: Group, protocol: str, baseline: Variant | None, resampler: Resampler) -> list[Line]:
    def evaluations(variant: Variant) -> dict[int, Any]:
        if group.is_scored:
            return variant.evaluations(protocol)
        return {run.record.seed: own for run in variant.runs if (own := run.best_validation)}

    lines = []
    for variant in group.variants:
        own = evaluations(variant)
        if protocol != group.protocol and not own:
            continue
        ap = {name: resampler.ap(own, name) for name in group.ap_names}
        to = evaluations(baseline) if baseline is not None and baseline is not variant else {}
        difference = {name: resampler.difference(own, to, name) for name in group.ap_names}
        lines.append(
            Line(
                variant,
                {name: one for name, one in ap.items() if one is not None},
                {name: one for name, one in difference.items() if one is not None},
                status(variant.runs, protocol),
            )
        )
    return sorted(lines, key=lambda line: -_last(line))


def _last(line: Line) -> float:
    """The AP that variants are ranked by, the last; below all others where there is none."""
    return list(line.ap.values())[-1].value if line.ap else -1.0


def _notes(group: Group) -> list[str]:
    notes = []
    packages = [run.record.made_by.get("packages") for run in group.runs]
    made = {str(own["fanet-lightning"]) for own in packages if isinstance(own, dict) and "fanet-lightning" in own}
    if made - {version("fanet-lightning")}:
        notes.append(
            f"Recorded by fanet-lightning {', '.join(sorted(made))}, read by {version('fanet-lightning')}: "
            "what a setting means may have changed in between."
        )
    commits = {str(run.record.made_by.get("git_commit")) for run in group.runs}
    if len(commits) > 1:
        notes.append(f"The runs come from {len(commits)} different commits.")
    notes += [line for run in group.runs for line in run.problems]
    return notes + [line for _, line in group.left_out]


def _figures(group: Group, lines: Sequence[Line], paper: Sequence[PaperTable]) -> dict[str, Figure]:
    styles = {line.variant.label: line_style(i) if i < NAMED else GREY for i, line in enumerate(lines)}
    names = group.ap_names
    figures: dict[str, Figure | None] = {}
    for one in group.varied:
        for name in names if one.numbers else ():
            figures[f"{one.name}_{name}"] = ap_against(one, group, lines, name)
    if len(group.varied) > 2:
        figures["parallel"] = parallel(group, lines)
    for number, table in enumerate(paper):
        figures["steps" if number == 0 else f"steps_{number + 1}"] = forest(table.steps) if table.steps else None
    for name in names:
        figures[f"learning_{name}"] = over_training(
            group, styles, "epochs", f"validation AP {name}, %",
            partial(_learning, name),
        )  # fmt: skip
    figures["loss"] = over_training(group, styles, "optimizer steps", "training loss", lambda run: run.losses)
    curves = {line.variant.label: _curves(line.variant, group.protocol) for line in lines[:NAMED]}
    for name in names:
        own = {label: {name: found[name]} for label, found in curves.items() if name in found}
        if own:
            figures[f"pr_curves_{name}"] = precision_recall_figure(own, label="{}: {:.3f}".format)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _learning(name: str, run: Run) -> list[tuple[int, float]]:
    return [(epoch, 100 * ap[name]) for epoch, ap in run.learning if name in ap]


def _curves(variant: Variant, protocol: str) -> dict[str, Any]:
    """Those of its first seed that has any."""
    return next((e.curves for e in variant.evaluations(protocol).values() if e.curves), {})


def _legend_below(figure: Figure, axis: Axes, others: int = 0) -> None:
    handles, labels = axis.get_legend_handles_labels()
    labels = [wrapped(label, 3.2) for label in labels]
    if len(labels) > 1 or others:
        columns = 1 if max(map(len, labels), default=0) > 24 else 2
        rows = -(-sum(label.count("\n") + 1 for label in labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.17 * rows)
        title = f"and {others} more in grey" if others else None
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, title=title,
            title_fontsize=8,
        )  # fmt: skip


def _value_axis(axis: Axes, one: Varied) -> None:
    """Linear or logarithmic, with a tick at each value that was tried where they are few."""
    if one.is_log:
        axis.set_xscale("log")
    if len(one.numbers) <= 6:
        axis.set_xticks(one.numbers, [f"{number:g}" for number in one.numbers])
        axis.minorticks_off()


def ap_against(one: Varied, group: Group, lines: Sequence[Line], name: str) -> Figure | None:
    """AP against a setting that is a number: a line per combination of the others, bars for the interval over images,
    a dot for each seed; None without an AP."""
    series: dict[str, list[Line]] = {}
    for line in lines:
        if name in line.ap and is_number(line.variant.values[one.key]):
            values = line.variant.values.items()
            words = [f"{v.short}={value_text(value)}" for v, (_, value) in zip(group.varied, values, strict=True)
                     if v is not one]  # fmt: skip
            series.setdefault(" ".join(words), []).append(line)
    if not series:
        return None
    with canvas((4.2, 3.1), style=INK) as (figure, (axis,)):
        for number, (label, own) in enumerate(series.items()):
            style = line_style(number) if number < NAMED else GREY
            own = sorted(own, key=lambda line: float(line.variant.values[one.key]))
            x = [float(line.variant.values[one.key]) for line in own]
            y = [100 * line.ap[name].value for line in own]
            axis.plot(x, y, marker="o", markersize=4.5, label=label if number < NAMED else None, **style)
            for place, line in zip(x, own, strict=True):
                estimate = line.ap[name]
                if estimate.over_images is not None:
                    bounds = [100 * bound for bound in estimate.over_images]
                    axis.plot([place, place], bounds, color=style["color"], linewidth=1, alpha=0.45)
                if estimate.seeds > 1:
                    seeds = [100 * value for value in estimate.per_seed.values()]
                    axis.plot([place] * len(seeds), seeds, "_", color=style["color"], markersize=7, alpha=0.8)
        _value_axis(axis, one)
        axis.set(xlabel=one.name, ylabel=f"AP {name}, %")
        _legend_below(figure, axis, max(0, len(series) - NAMED))
    return figure


def parallel(group: Group, lines: Sequence[Line]) -> Figure | None:
    """A line per variant through an axis per varied setting, colored by the last AP; None without an AP."""
    shown = [line for line in reversed(lines) if line.ap]
    if not shown:
        return None
    name = list(shown[-1].ap)[-1]
    ap = [100 * _last(line) for line in shown]
    span = max(ap) - min(ap) or 1.0
    viridis = mpl.colormaps["viridis"]
    count = len(group.varied)
    with canvas((max(6.4, 1.4 * count + 1.4), 3.8), style={**INK, "axes.grid": False}) as (figure, (axis,)):
        ticks = [_heights(one) for one in group.varied]
        for line, value in zip(shown, ap, strict=True):
            places = [own[value_text(v)] for own, v in zip(ticks, line.variant.values.values(), strict=True)]
            axis.plot(
                [*places, (value - min(ap)) / span], color=viridis((value - min(ap)) / span), linewidth=1.8, alpha=0.85
            )
        ticks.append({f"{value:.1f}": (value - min(ap)) / span for value in (min(ap), min(ap) + span)})
        for x, own in enumerate(ticks):
            axis.axvline(x, color="0.4", linewidth=0.9, zorder=1)
            for text, height in own.items():
                axis.annotate(
                    text, (x, height), xytext=(4, 3), textcoords="offset points", fontsize=8, parse_math=False,
                    bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
                )  # fmt: skip
        heads = [one.name + (" (log)" if one.is_log else "") for one in group.varied]
        axis.set_xticks(range(count + 1), [*heads, f"AP {name}, %"])
        axis.set(xlim=(-0.15, count + 0.3), ylim=(-0.06, 1.1), yticks=[])
        axis.spines[["left", "bottom"]].set_visible(False)
    return figure


def _heights(one: Varied) -> dict[str, float]:
    """Text of a value → place on its axis, in [0, 1]: by size where all are numbers, else side by side."""
    if one.numbers and len(one.numbers) == len(one.values):
        scale = [math.log(number) for number in one.numbers] if one.is_log else one.numbers
        return {
            value_text(v): (x - scale[0]) / ((scale[-1] - scale[0]) or 1)
            for v, x in zip(one.values, scale, strict=True)
        }
    return {value_text(value): i / max(1, len(one.values) - 1) for i, value in enumerate(one.values)}


def over_training(
    group: Group,
    styles: Mapping[str, Mapping[str, Any]],
    x: str,
    y: str,
    points_of: Callable[[Run], list[tuple[int, float]]],
) -> Figure | None:
    """A line per run, those of a variant in one color; one point is a marker. None where no run has logged any."""
    if not any(points_of(run) for run in group.runs):
        return None
    with canvas((4.2, 3.1), style=INK) as (figure, (axis,)):
        lowest, highest = math.inf, 0.0
        for variant in sorted(group.variants, key=lambda own: list(styles).index(own.label)):
            label: str | None = variant.label if styles[variant.label] is not GREY else None
            for run in variant.runs:
                known = points_of(run)
                if known:
                    marker = "o" if len(known) < 15 else None
                    style = {**styles[variant.label], "linewidth": 1.1}
                    axis.plot(*zip(*known, strict=True), marker=marker, markersize=3, label=label, **style)
                    lowest, highest = min(lowest, *(v for _, v in known)), max(highest, *(v for _, v in known))
                    label = None
        if "loss" in y and highest >= 10 * lowest > 0:
            axis.set_yscale("log")
        axis.locator_params(axis="x", integer=True, nbins=6)
        axis.set(xlabel=x, ylabel=y)
        _legend_below(figure, axis, sum(style is GREY for style in styles.values()))
    return figure


def markdown(found: Found, parts: Sequence[Part]) -> str:
    """The tables of all parts, with what the numbers are about above each."""
    blocks = []
    if len(parts) > 1:
        blocks.append(f"**{len(parts)} parts: scored on other data, or under another protocol, AP do not compare.**")
    for part in parts:
        title = f"{part.group.data_label}, protocol {part.group.protocol}"
        blocks.append(f"## {part.letter + ': ' if part.letter else ''}{title}")
        if part.group.apart:
            blocks.append("Unlike A: " + ", ".join(f"{key}={b} (A: {a})" for key, a, b in part.group.apart))
        blocks.append(part.legend)
        for protocol, lines in part.tables.items():
            blocks += [f"At {protocol}:"] if len(part.tables) > 1 else []
            blocks.append(_markdown_lines(part, lines))
        for table in part.paper:
            blocks.append(" ".join(filter(None, ["### Next to the paper", table.title])))
            blocks += [part.group.warning] if part.group.warning else []
            blocks += [f"Paper: {SOURCE}.", markdown_rows(table.rows)]
            blocks += ["Its steps, in points of AP:", markdown_steps(table.steps)] if table.steps else []
    blocks += [f"Not readable: {line}" for _, line in found.broken]
    return "\n\n".join(blocks) + "\n"


def _markdown_lines(part: Part, lines: Sequence[Line]) -> str:
    names = part.group.ap_names
    head = ["", "seeds", *(text for name in names for text in (name, f"{name} over seeds"))]
    head += [f"{name} − {part.baseline.label}" for name in names] if part.baseline else []
    rows = []
    for line in lines:
        row = [line.variant.label, str(len(line.variant.runs))]
        for name in names:
            own = line.ap.get(name)
            row += [f"{percent(own.value)} {own.ap_interval_text}", own.sd_text] if own else ["", ""]
        for name in names if part.baseline else ():
            other = line.difference.get(name)
            row.append("" if other is None else f"{points(100 * other.value)} [{other.interval_text}]")
        rows.append([*row, duration(line.mean_of("seconds")), line.status])
    return "\n".join(markdown_table([*head, "training", ""], rows, left=(0, len(head) + 1)))


def page(found: Found, parts: Sequence[Part]) -> str:
    """The whole report as HTML; it needs no network and no server."""
    return render(
        Path(__file__).parent / "templates" / "report.html",
        found=found,
        parts=parts,
        source=SOURCE,
        written=now(),
        data_uri=data_uri,
        run_status=run_status,
        verdict=verdict,
        images_seen=images_seen,
        command_of=command_of,
        sweep_commands=lambda group: list(filter(None, map(sweep_command, group.sweeps))),
    )


def images_seen(run: Run) -> int | None:
    """Optimizer steps × batch size × accumulated batches; None where the record lacks one of them."""
    train, settings = run.record.train, run.record.settings
    accumulated = settings.get("trainer", {}).get("accumulate_grad_batches", 1)
    factors = (train.get("steps"), settings.get("batch_size"), accumulated)
    return math.prod(factors) if all(isinstance(factor, int) for factor in factors) else None


def command_of(run: Run) -> str | None:
    """The run's command line, to be typed in a shell."""
    if not run.command:
        return None
    first, *rest = run.command
    start = ["fanet", "train"] if Path(first).name in ("train.py", "__main__.py") else [first]
    return shlex.join([*start, *rest])
