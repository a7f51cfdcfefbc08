"""The report of a sweep: groups of runs → tables, figures, a page.

Runs whose AP compare, because they were scored on the same images under the same protocol, are one part. Its table
has a row for each combination of the settings that differ, over the seeds that it was trained with.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fanet_lightning.cli.errors import InputError, is_number
from fanet_lightning.cli.provenance import LOG_FILE, now
from fanet_lightning.report.ablation import Estimate, Evaluations, Resampler, steps, verdict
from fanet_lightning.report.figures import canvas, line_style, precision_recall_figure, wrapped
from fanet_lightning.report.html import data_uri, duration, percent, points, render, value_text
from fanet_lightning.report.runs import (
    LABELS,
    ROWS,
    SOURCE,
    SWITCHES,
    Evaluation,
    Found,
    Group,
    Run,
    Variant,
    Varied,
    group_runs,
    sweep_command,
)
from fanet_lightning.score.bootstrap import curve_from_counts, method
from fanet_lightning.score.results import markdown_table
from fanet_lightning.score.wider_face.ground_truth import SETTINGS

# So many variants have a color and a place in the legends; the others are gray.
NAMED = 8
GRAY = {"color": "0.82", "linewidth": 1.0, "zorder": 1.5}
INK = {"axes.edgecolor": "0.6", "text.color": "#1f2937", "axes.labelcolor": "#1f2937"}

Ap = dict[str, Estimate]  # setting → AP, or a difference


class Cell(NamedTuple):
    """``text``, with ``spread`` next to it or below; ``css``: classes; ``value``: what a column is sorted by."""

    head: str
    text: str
    spread: str = ""
    css: str = ""
    value: float | None = None


class Table:
    """A table of the page and of ``table.md``; columns in which no row says anything are left out.

    ``name``: CSS class; ``note``: what its numbers mean; ``rows``: (label, cells), all with the same heads.
    """

    def __init__(self, name: str, title: str, note: str, rows: Sequence[tuple[str, Sequence[Cell]]]) -> None:
        self.name, self.title, self.note = name, title, note
        told = [any(cell.text for cell in column) for column in zip(*(cells for _, cells in rows), strict=True)]
        self.rows = [(key, [cell for cell, kept in zip(row, told, strict=True) if kept]) for key, row in rows]
        self.head = self.rows[0][1] if rows else []

    def markdown(self) -> str:
        texts = [[f"{cell.text} {cell.spread}".strip() for cell in cells] for _, cells in self.rows]
        left = [0, *(i for i, cell in enumerate(self.head) if "left" in cell.css)]
        return "\n".join(markdown_table([cell.head for cell in self.head], texts, left=left))


@dataclass(frozen=True, eq=False)
class Part:
    """What the page says about one group.

    ``letter``   A, B, …; empty where there is one group alone.
    ``tables``   settings and AP per protocol, that of the runs themselves first, each with the differences.
    ``paper``    our runs next to the paper's, where they are among its rows, and its steps.
    ``figures``  title of a section → file name without extension → figure; those that there is data for.
    ``notes``    one line each about what does not compare or is incomplete.
    """

    group: Group
    letter: str
    tables: list[Table]
    paper: list[Table]
    costs: Table
    figures: dict[str, dict[str, Figure]]
    notes: list[str]
    legend: str

    @property
    def title(self) -> str:
        prefix = f"{self.letter}: " if self.letter else ""
        return f"{prefix}{self.group.data_label}, protocol {self.group.protocol}"

    @property
    def states(self) -> dict[str, int]:
        """How many runs are in which state."""
        return {"finished": 0, **Counter(run.record.state for run in self.group.runs)}

    @property
    def facts(self) -> dict[str, str]:
        """Data, protocol, what was varied, seeds and devices, as far as they are known."""
        runs = self.group.runs
        facts = {
            "Data": self.group.data_label,
            "Protocol": self.group.protocol,
            **{one.name: value_text(one.values) for one in self.group.varied},
            "Seeds": value_text(sorted({run.record.seed for run in runs})),
            "Trained on": "; ".join(sorted({str(run.record.train.get("device", "")) for run in runs} - {""})),
        }
        return {name: text for name, text in facts.items() if text}

    @property
    def sweeps(self) -> list[str]:
        """The commands that start or resume its sweeps."""
        folders = dict.fromkeys(run.folder.parent for run in self.group.runs)
        return list(filter(None, map(sweep_command, folders)))


def build_parts(found: Found, *, bootstrap: int, baseline: str | None = None) -> list[Part]:
    """Tables and figures of every group, the largest first; InputError: ``baseline`` names no variant, or several."""
    groups = group_runs(found.runs)
    named = [[own for own in group.variants if own.answers_to(baseline)] for group in groups]
    if baseline is not None and groups and max(map(len, named)) != 1:
        labels = [f"'{variant.label}'" for own in named for variant in own]
        labels = labels or [f"'{variant.label}'" for group in groups for variant in group.variants]
        raise InputError(f"baseline={baseline} is not the name of one: give one of {', '.join(labels)}")
    return [
        _part(group, chr(ord("A") + number) if len(groups) > 1 else "", own[0] if own else None, bootstrap)
        for number, (group, own) in enumerate(zip(groups, named, strict=True))
    ]


def _part(group: Group, letter: str, baseline: Variant | None, bootstrap: int) -> Part:
    resampler = Resampler(bootstrap)
    tables, lines = [], {}
    for protocol in group.protocols:
        evaluations = {own: _evaluations(group, own, protocol) for own in group.variants}
        ap = {own: _estimates(group, resampler, evaluations[own]) for own in group.variants}
        # The highest last AP first; those without one last.
        order = sorted(ap, key=lambda own: -_last(ap[own]))
        if protocol == group.protocol:
            lines = {own: ap[own] for own in order}
        order = [own for own in order if ap[own] or protocol == group.protocol]
        tables.append(_settings_table(group, protocol, {own: ap[own] for own in order}))
        if baseline is not None:
            others = {own.label: _estimates(group, resampler, evaluations[own], evaluations[baseline])
                      for own in order if own is not baseline}  # fmt: skip
            tables.append(_difference_table(group, protocol, baseline.label, others))
    seeds = "mean over seeds" if any(len(own.runs) > 1 for own in group.variants) else "one seed"
    legend = f"AP in %, {seeds}" + (f" [95 % interval: {method(bootstrap)}]." if bootstrap else ".")
    if not any(run.own for run in group.runs):
        legend = "AP in % on the validation images, of each run's best epoch: no run has been scored yet."
    paper, costs = _paper_tables(group, resampler), _costs_table(group)
    return Part(group, letter, tables, paper, costs, _figures(group, lines), _notes(group), legend)


def _evaluations(group: Group, variant: Variant, protocol: str) -> Evaluations:
    """Seed → how its run did; where no run of the group has been scored, its best epoch."""
    if any(run.own for run in group.runs):
        return variant.evaluations(protocol)
    learnt = {run.record.seed: [ap for _, ap in run.learning] for run in variant.runs if run.learning}
    best = {seed: max(own, key=lambda ap: list(ap.values())[-1]) for seed, own in learnt.items()}
    return {seed: Evaluation(protocol, ap, None, {}) for seed, ap in best.items()}


def _estimates(group: Group, resampler: Resampler, *sides: Evaluations) -> Ap:
    return {name: own for name in group.ap_names if (own := resampler.estimate(name, *sides)) is not None}


def _last(ap: Ap) -> float:
    """The AP that variants are ranked by, the last; below all others where there is none."""
    return list(ap.values())[-1].value if ap else -1.0


def _ap_cell(name: str, own: Estimate | None, css: str = "ap") -> Cell:
    if own is None:
        return Cell(name, "", css=css)
    spread = "" if own.over_images is None else "[{}, {}]".format(*map(percent, own.over_images))
    return Cell(name, percent(own.value), spread, css, own.value)


def _difference_cells(head: str, own: Estimate | None) -> list[Cell]:
    """Points, and their standard deviation over seeds."""
    if own is None:
        return [Cell(head, ""), _seeds_cell(None)]
    bounds = [points(100 * bound) for bound in own.over_images or ()]
    spread = "[{} … {}]".format(*bounds) if bounds else ""
    return [Cell(head, points(100 * own.value), spread, value=own.value), _seeds_cell(own)]


def _seeds_cell(own: Estimate | None) -> Cell:
    return Cell("± seeds", "" if own is None or own.seed_sd is None else f"± {100 * own.seed_sd:.1f}", css="seeds")


def _settings_table(group: Group, protocol: str, lines: Mapping[Variant, Ap]) -> Table:
    is_named = "=" not in group.variants[0].label
    best = {name: max((ap[name].value for ap in lines.values() if name in ap), default=0) for name in group.ap_names}
    rows = []
    for own, ap in lines.items():
        cells = [Cell("run", own.label)] if is_named else []
        cells += [Cell(one.name, value_text(own.values[one.key])) for one in group.varied]
        cells.append(Cell("seeds", str(len(own.runs)) if any(len(other.runs) > 1 for other in lines) else ""))
        for name in group.ap_names:
            estimate = ap.get(name)
            is_best = estimate is not None and estimate.value == best[name]
            cells += [_ap_cell(name, estimate, "ap best" if is_best else "ap"), _seeds_cell(estimate)]
        rows.append((own.label, [*cells, *_cost_cells(own.runs, protocol)]))
    return Table(f"settings-ap {protocol}", f"At {protocol}", "", rows)


def _difference_table(group: Group, protocol: str, baseline: str, lines: Mapping[str, Ap]) -> Table:
    rows = []
    for label, ap in lines.items():
        cells = [Cell("run", label)]
        for name in group.ap_names:
            word, kind = verdict(ap[name]) if name in ap else ("", "none")
            cells += [*_difference_cells(name, ap.get(name)), Cell("", word, css=f"left chip {kind}")]
        # Without a score, or without a seed that the baseline has too, there is nothing to compare.
        rows += [(label, cells)] if ap else []
    note = (
        "Differences in points of AP [95 % interval: both sides see the same resampled images]. “Higher” and “lower”: "
        "0 is outside the interval over images and, with several seeds, outside the 95 % t interval over those that "
        "both have; each comparison by itself."
    )
    return Table(f"differences {protocol}", f"Against {baseline}, at {protocol}", note, rows)


def _paper_tables(group: Group, resampler: Resampler) -> list[Table]:
    """Rows and steps, per combination of the settings that are no switch of the paper's.

    Without the paper's data they take two of its networks: one alone says nothing next to its numbers.
    """
    others = [one for one in group.varied if one.key not in SWITCHES]
    gathered: dict[str, dict[str, Variant]] = {}
    for variant in group.variants:
        if (cell := variant.runs[0].cell) in LABELS:
            words = " ".join(f"{one.short}={value_text(variant.values[one.key])}" for one in others)
            gathered.setdefault(words, {})[cell] = variant
    tables = []
    for title, by_cell in gathered.items():
        if len(by_cell) == 1 and group.data != "wider_face":
            continue
        rows = []
        for paper in ROWS:
            own = by_cell.get(paper.variant)
            known = [] if own is None else [group.protocol, *(name for run in own.runs for name in run.evaluations)]
            protocol = next((name for name in paper.protocols or (group.protocol,) if name in known), None)
            if own is None or protocol is None:
                continue
            exact = protocol in (group.protocol, *paper.protocols[:1])
            cells = [Cell("", paper.label if exact else f"{paper.label} ({protocol})")]
            for setting in SETTINGS:
                ours, theirs = resampler.estimate(setting, own.evaluations(protocol)), paper.ap_percent(setting)
                cells += [
                    _ap_cell(setting, ours),
                    Cell("paper", f"{theirs:.1f}", css="paper"),
                    Cell("Δ", points(100 * ours.value - theirs) if ours else "", css="delta"),
                ]
            cells.append(Cell("", status(own.runs, protocol), css="left state"))
            rows.append((f"{paper.variant} {protocol}", cells))
        note = f"{group.warning} The paper's values: {SOURCE}. Δ: ours minus the paper's, in points.".strip()
        tables.append(Table("ablation", f"Next to the paper {title}".strip(), note, rows))
        evaluations = {cell: own.evaluations(group.protocol) for cell, own in by_cell.items()}
        step_rows = []
        for result in steps(evaluations, resampler):
            cells = [Cell("step", result.step.label), Cell("", result.setting, css="left")]
            cells += _difference_cells("ours", result.ours)
            cells.append(Cell("paper", points(result.paper_points), css="paper", value=result.paper_points))
            cells.append(Cell("verdict", result.verdict.word, css=f"left chip {result.verdict.kind}"))
            step_rows.append((f"{result.step.after}-{result.step.before} {result.setting}", cells))
        note = (
            "“Shows”: the difference, in points of AP, has the sign of the paper's, and 0 is outside the interval over "
            "images and, with several seeds, outside the 95 % t interval over seeds; “reversed”: the same with the "
            "other sign. With one seed a verdict holds for these networks, not for the method."
        )
        tables += [Table("steps", "What the paper claims, step by step", note, step_rows)] if step_rows else []
    return tables


def _cost_cells(runs: Sequence[Run], protocol: str) -> list[Cell]:
    """State, and the means of what the runs of one variant cost."""
    costs = [[run.record.train.get(key, "") for run in runs] for key in ("seconds", "images_per_second")]
    known = [[float(value) for value in own if is_number(value)] for own in costs]
    seconds, speed = (statistics.fmean(own) if own else None for own in known)
    return [
        Cell("state", status(runs, protocol), css="left state"),
        Cell("training time", "" if seconds is None else duration(seconds), value=seconds),
        Cell("samples/s", "" if speed is None else f"{speed:.1f}"),
    ]


def _costs_table(group: Group) -> Table:
    rows = []
    for run in group.runs:
        parameters = run.record.model.get("parameters")
        rows.append((run.folder.name, [
            Cell("folder", run.folder.name), Cell("seed", str(run.record.seed)), *_cost_cells([run], run.protocol),
            Cell("parameters", "" if parameters is None else f"{parameters:,}", value=parameters),
            Cell("device", run.record.train.get("device", ""), css="left device"),
        ]))  # fmt: skip
    return Table("runs", "", "", rows)


def status(runs: Sequence[Run], protocol: str) -> str:
    """What runs of one variant lack, in words (``seed 1 running, epoch 3/20``); empty when all are scored."""
    words = []
    for run in runs:
        record, train = run.record, run.record.train
        word = "" if protocol in run.evaluations else f"trained, not scored at {protocol}"
        if record.state == "failed":
            word = f"failed: {record.error or 'no reason was kept'} (log: {run.folder / LOG_FILE})"
        elif record.state != "finished":
            word = f"{record.state}, epoch {train.get('epoch', 0)}/{record.settings.get('epochs', '?')}"
        if word:
            words.append(word if len(runs) == 1 else f"seed {record.seed} {word}")
    return "; ".join(words)


def _notes(group: Group) -> list[str]:
    notes = []
    made = {str((run.record.made_by.get("packages") or {}).get("fanet-lightning")) for run in group.runs} - {"None"}
    if made - {(today := version("fanet-lightning"))}:
        changed = "what a setting means may have changed in between"
        notes.append(f"Recorded by fanet-lightning {', '.join(sorted(made))}, read by {today}: {changed}.")
    commits = {str(run.record.made_by.get("git_commit")) for run in group.runs}
    if len(commits) > 1:
        notes.append(f"The runs come from {len(commits)} different commits.")
    notes += [line for run in group.runs for line in run.problems]
    return notes + group.left_out


def _figures(group: Group, lines: Mapping[Variant, Ap]) -> dict[str, dict[str, Figure]]:
    styles = {own: line_style(i) if i < NAMED else GRAY for i, own in enumerate(lines)}
    varied = [(one, name) for one in group.varied if one.numbers for name in group.ap_names]
    against = {f"{one.name}_{name}": ap_against(one, group, lines, name) for one, name in varied}
    training, curves = {}, {}
    for name in group.ap_names:
        learning = {run: [(epoch, 100 * ap[name]) for epoch, ap in run.learning if name in ap] for run in group.runs}
        training[f"learning_{name}"] = over_training(styles, learning, "epochs", f"validation AP {name}, %")
        # Of the first seed that has any.
        known = {own.label: [e.counts[name] for e in own.evaluations(group.protocol).values() if name in e.counts]
                 for own in list(lines)[:NAMED]}  # fmt: skip
        found = {label: {name: curve_from_counts(own[0])} for label, own in known.items() if own}
        curves[f"pr_curves_{name}"] = precision_recall_figure(found, label="{}: {:.3f}".format) if found else None
    losses = {run: run.losses for run in group.runs}
    training["loss"] = over_training(styles, losses, "optimizer steps", "training loss", log=True)
    sections = {
        "AP against what was varied": against,
        "All settings at once": {"parallel": parallel(group, lines) if len(group.varied) > 2 else None},
        "Over training": training,
        "Precision and recall": curves,
    }
    drawn = {title: {name: own for name, own in made.items() if own} for title, made in sections.items()}
    return {title: made for title, made in drawn.items() if made}


def _legend_below(figure: Figure, axis: Axes, others: int = 0) -> None:
    handles, labels = axis.get_legend_handles_labels()
    labels = [wrapped(label, 3.2) for label in labels]
    if len(labels) > 1 or others:
        columns = 1 if max(map(len, labels), default=0) > 24 else 2
        rows = -(-sum(label.count("\n") + 1 for label in labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.17 * rows)
        title = f"and {others} more in gray" if others else None
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8,
                      title=title, title_fontsize=8)  # fmt: skip


def ap_against(one: Varied, group: Group, lines: Mapping[Variant, Ap], name: str) -> Figure | None:
    """AP against a setting that is a number: a line per combination of the others, bars for the interval over images,
    a dash for each seed; None without an AP."""
    series: dict[str, list[tuple[float, Estimate]]] = {}
    for own, ap in lines.items():
        if name in ap and is_number(own.values[one.key]):
            words = [f"{other.short}={value_text(own.values[other.key])}" for other in group.varied if other is not one]
            series.setdefault(" ".join(words), []).append((float(own.values[one.key]), ap[name]))
    if not series:
        return None
    with canvas((4.2, 3.1), style=INK) as (figure, (axis,)):
        for number, (label, pairs) in enumerate(series.items()):
            style = line_style(number) if number < NAMED else GRAY
            pairs.sort(key=lambda pair: pair[0])
            x, y = [place for place, _ in pairs], [100 * own.value for _, own in pairs]
            axis.plot(x, y, marker="o", markersize=4.5, label=label if number < NAMED else None, **style)
            for place, estimate in pairs:
                bounds = [100 * bound for bound in estimate.over_images or ()]
                axis.plot([place] * len(bounds), bounds, color=style["color"], linewidth=1, alpha=0.45)
                seeds = [100 * value for value in estimate.per_seed.values()] if estimate.seed_sd is not None else []
                axis.plot([place] * len(seeds), seeds, "_", color=style["color"], markersize=7, alpha=0.8)
        if one.is_log:
            axis.set_xscale("log")
        if len(one.numbers) <= 6:  # a tick at each value that was tried
            axis.set_xticks(one.numbers, [f"{number:g}" for number in one.numbers])
            axis.minorticks_off()
        axis.set(xlabel=one.name, ylabel=f"AP {name}, %")
        _legend_below(figure, axis, max(0, len(series) - NAMED))
    return figure


def parallel(group: Group, lines: Mapping[Variant, Ap]) -> Figure | None:
    """A line per variant through an axis per varied setting, colored by the last AP; None without an AP."""
    shown = {own: 100 * _last(ap) for own, ap in reversed(list(lines.items())) if ap}
    if not shown:
        return None
    lowest, span = min(shown.values()), max(shown.values()) - min(shown.values()) or 1.0
    count = len(group.varied)
    with canvas((max(6.4, 1.4 * count + 1.4), 3.8), style={**INK, "axes.grid": False}) as (figure, (axis,)):
        ticks = [_heights(one) for one in group.varied]
        for variant, value in shown.items():
            height = (value - lowest) / span
            places = [own[value_text(v)] for own, v in zip(ticks, variant.values.values(), strict=True)]
            axis.plot([*places, height], color=mpl.colormaps["viridis"](height), linewidth=1.8, alpha=0.85)
        ticks.append({f"{lowest:.1f}": 0.0, f"{lowest + span:.1f}": 1.0})
        for x, own in enumerate(ticks):
            axis.axvline(x, color="0.4", linewidth=0.9, zorder=1)
            for text, height in own.items():
                axis.annotate(
                    text, (x, height), xytext=(4, 3), textcoords="offset points", fontsize=8, parse_math=False,
                    bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
                )  # fmt: skip
        heads = [one.name + (" (log)" if one.is_log else "") for one in group.varied]
        axis.set_xticks(range(count + 1), [*heads, f"AP {group.ap_names[-1]}, %"])
        axis.set(xlim=(-0.15, count + 0.3), ylim=(-0.06, 1.1), yticks=[])
        axis.spines[["left", "bottom"]].set_visible(False)
    return figure


def _heights(one: Varied) -> dict[str, float]:
    """Text of a value → place on its axis, in [0, 1]: by size where all are numbers, else side by side."""
    scale = [float(place) for place in range(len(one.values))]
    if len(one.numbers) == len(one.values):
        scale = [math.log(number) for number in one.numbers] if one.is_log else one.numbers
    span = scale[-1] - scale[0] or 1
    return {value_text(value): (x - scale[0]) / span for value, x in zip(one.values, scale, strict=True)}


def over_training(
    styles: Mapping[Variant, Any], logged: Mapping[Run, Sequence[tuple[int, float]]], x: str, y: str, log: bool = False
) -> Figure | None:
    """A line per run, those of a variant in one color; one point is a marker. None where no run has logged any.

    ``log``: a logarithmic axis where the values span a factor of ten.
    """
    values = [value for own in logged.values() for _, value in own]
    if not values:
        return None
    with canvas((4.2, 3.1), style=INK) as (figure, (axis,)):
        for variant, style in styles.items():
            for number, own in enumerate(logged[run] for run in variant.runs if logged[run]):
                label = variant.label if style is not GRAY and number == 0 else None
                look = {**style, "linewidth": 1.1, "marker": "o" if len(own) < 15 else None, "markersize": 3}
                axis.plot(*zip(*own, strict=True), label=label, **look)
        if log and max(values) >= 10 * min(values) > 0:
            axis.set_yscale("log")
        axis.locator_params(axis="x", integer=True, nbins=6)
        axis.set(xlabel=x, ylabel=y)
        _legend_below(figure, axis, sum(style is GRAY for style in styles.values()))
    return figure


def markdown(found: Found, parts: Sequence[Part]) -> str:
    """The tables of all parts, with what the numbers are about above each."""
    blocks = []
    for part in parts:
        apart = ", ".join(f"{key}={b} (A: {a})" for key, a, b in part.group.apart)
        blocks += [f"## {part.title}", *([f"Unlike A: {apart}"] if apart else []), part.legend]
        for table in [*part.tables, *part.paper]:
            blocks += [f"### {table.title}", *([table.note] if table.note else []), table.markdown()]
    blocks += [f"Not readable: {line}" for line in found.broken]
    return "\n\n".join(blocks) + "\n"


def page(found: Found, parts: Sequence[Part]) -> str:
    """The whole report as HTML; it needs no network and no server."""
    template = Path(__file__).parent / "templates" / "report.html"
    return render(template, found=found, parts=parts, written=now(), data_uri=data_uri)
