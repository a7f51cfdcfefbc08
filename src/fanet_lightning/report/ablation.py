"""The paper's ablation, and the statistics of every report: estimates with intervals, steps, verdicts.

Two kinds of uncertainty, kept apart: other images of the same kind, and the same model trained with another seed.

Over images: paired bootstrap of the trained networks as they are (:mod:`fanet_lightning.score.bootstrap`). Over
seeds: the standard deviation between runs, and for a difference the t interval of its mean over the seeds that both
sides have. Neither is ever added to the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import stdtrit

from fanet_lightning.report.figures import canvas
from fanet_lightning.report.html import percent, points
from fanet_lightning.report.runs import (
    LABELS,
    ROWS,
    STEPS,
    SWITCHES,
    Evaluation,
    Evaluations,
    Group,
    PaperRow,
    Run,
    Step,
    Variant,
)
from fanet_lightning.score.bootstrap import CONFIDENCE, Interval, bootstrap_ap
from fanet_lightning.score.results import markdown_table
from fanet_lightning.score.wider_face.ground_truth import SETTINGS


class Bounds(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Estimate:
    """AP, or a difference of two, in [-1, 1].

    ``value``       mean over seeds, on the images as they are.
    ``per_seed``    seed → value.
    ``over_images`` bootstrap interval of the mean, the networks held fixed; None without counts per image.
    ``seed_sd``     standard deviation between seeds (n - 1); None with one seed.
    ``over_seeds``  t interval of the mean over seeds; None with one seed.
    ``missing``     why there is no interval over images.
    """

    value: float
    per_seed: dict[int, float]
    over_images: Bounds | None
    seed_sd: float | None
    over_seeds: Bounds | None
    missing: str | None = None

    @property
    def seeds(self) -> int:
        return len(self.per_seed)

    @property
    def ap_interval_text(self) -> str:
        """Interval over images of an AP, in per cent."""
        return "" if self.over_images is None else "[{}, {}]".format(*map(percent, self.over_images))

    @property
    def interval_text(self) -> str:
        """Interval over images of a difference, in points."""
        return "–" if self.over_images is None else " … ".join(points(100 * bound) for bound in self.over_images)

    @property
    def sd_text(self) -> str:
        """Standard deviation over seeds, in points."""
        return "–" if self.seed_sd is None else f"± {100 * self.seed_sd:.1f}"

    @property
    def seeds_text(self) -> str:
        """The same with the number of seeds."""
        return "one seed" if self.seed_sd is None else f"{self.sd_text} ({self.seeds} seeds)"


class Resampler:
    """Bootstrap over images, each evaluation resampled once, the same images for all.

    Args:
        samples: resamples; 0: no interval.
        seed: of the draw.
    """

    def __init__(self, samples: int, seed: int = 0) -> None:
        self.samples, self._seed = samples, seed
        self._known: dict[Evaluation, dict[str, Interval]] = {}

    def ap(self, evaluations: Evaluations, setting: str) -> Estimate | None:
        """AP over the seeds of one variant; None where no seed has that setting."""
        return self._estimate([(1.0, evaluations)], setting)

    def difference(self, after: Evaluations, before: Evaluations, setting: str) -> Estimate | None:
        """AP(after) - AP(before) over the seeds that both sides have; None where they share none."""
        return self._estimate([(1.0, after), (-1.0, before)], setting)

    def _estimate(self, sides: Sequence[tuple[float, Evaluations]], setting: str) -> Estimate | None:
        shared = set.intersection(*({seed for seed in own if setting in own[seed].ap} for _, own in sides))
        if not shared:
            return None
        per_seed = {seed: sum(sign * own[seed].ap[setting] for sign, own in sides) for seed in sorted(shared)}
        terms = [(sign, own[seed]) for sign, own in sides for seed in per_seed]
        values = np.array(list(per_seed.values()))
        over_images, missing = None, self._why_not([own for _, own in terms], setting)
        if missing is None:
            samples = np.sum([sign * self._samples(own, setting) for sign, own in terms], axis=0) / len(per_seed)
            over_images = _percentiles(samples)
            missing = None if over_images else "no face counts"
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return Estimate(float(values.mean()), per_seed, over_images, sd, _t_interval(values), missing)

    def _samples(self, evaluation: Evaluation, setting: str) -> npt.NDArray[np.float64]:
        if evaluation not in self._known:
            self._known[evaluation] = bootstrap_ap(evaluation.counts, self.samples, self._seed)
        return self._known[evaluation][setting].samples

    def _why_not(self, evaluations: Sequence[Evaluation], setting: str) -> str | None:
        if self.samples == 0:
            return "switched off"
        counts = [own.counts[setting] for own in evaluations if setting in own.counts]
        if len(counts) < len(evaluations):
            return "no counts per image"
        first = counts[0]
        if any(own.image_ids != first.image_ids or not np.array_equal(own.faces, first.faces) for own in counts[1:]):
            return "scored on different images"
        return None if first.image_ids else "no image"


def _percentiles(samples: npt.NDArray[np.float64]) -> Bounds | None:
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return None
    outside = (1 - CONFIDENCE) / 2
    return Bounds(*np.quantile(defined, [outside, 1 - outside]).tolist())


def _t_interval(values: npt.NDArray[np.float64]) -> Bounds | None:
    """Student's interval of the mean of (n,) values, n ≥ 2."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Bounds(float(values.mean()) - half, float(values.mean()) + half)


class Verdict(NamedTuple):
    """``word`` for the reader, ``kind``: ``shows``, ``reversed``, ``unclear`` or ``none`` (nothing to judge)."""

    word: str
    kind: str


def verdict(difference: Estimate | None, paper_points: float | None = None) -> Verdict:
    """Whether a difference is there, and has the sign of the paper's.

    It counts as seen when the interval over images excludes 0, and with several seeds the interval over seeds, too;
    each is asked by itself.

    Args:
        difference: ours; None where runs are missing.
        paper_points: the paper's; 0 means that the paper sees none, None that there is nothing of the paper's.
    """
    if difference is None:
        return Verdict("", "none")
    if difference.over_images is None:
        return Verdict(f"no interval: {difference.missing}", "none")
    if difference.over_images.holds_zero:
        return Verdict("not distinguishable", "unclear")
    if difference.over_seeds is not None and difference.over_seeds.holds_zero:
        return Verdict("not distinguishable: seeds differ", "unclear")
    rises = difference.over_images.low > 0
    suffix = " (one seed)" if difference.seeds == 1 else ""
    if paper_points is None:
        return Verdict(f"higher{suffix}", "shows") if rises else Verdict(f"lower{suffix}", "reversed")
    if paper_points == 0:
        return Verdict(f"{'gain' if rises else 'loss'}, paper none{suffix}", "unclear")
    return (
        Verdict(f"shows{suffix}", "shows") if rises == (paper_points > 0) else Verdict(f"reversed{suffix}", "reversed")
    )


@dataclass(frozen=True)
class Row:
    """A row of the paper's ablation table.

    ``variant``  its run's; None where there is none.
    ``ours``     setting → estimate; empty while there is no score.
    ``status``   what is missing of it, in words; empty when all its runs are finished and scored.
    """

    label: str
    protocol: str
    paper: PaperRow
    variant: Variant | None
    ours: dict[str, Estimate]
    status: str

    def delta_points(self, setting: str) -> float | None:
        """Ours minus the paper's, in points of AP."""
        if setting not in self.ours:
            return None
        return 100 * self.ours[setting].value - self.paper.ap_percent(setting)


@dataclass(frozen=True)
class StepResult:
    """A step of the paper in one setting; ``ours`` is None where both sides have no seed in common."""

    step: Step
    setting: str
    ours: Estimate | None
    paper_points: float
    verdict: Verdict


@dataclass(frozen=True)
class PaperTable:
    """Our runs next to the paper's rows. ``title``: the settings that they have in common, where others were varied."""

    title: str
    rows: list[Row]
    steps: list[StepResult]


def paper_tables(group: Group, resampler: Resampler) -> list[PaperTable]:
    """A table per combination of the settings that are no switch of the paper's; only rows that were run or asked for.

    Without the paper's data a table takes two of its networks: one alone says nothing next to its numbers.
    """
    others = [one for one in group.varied if one.key not in SWITCHES]
    gathered: dict[str, dict[str, Variant]] = {}
    for variant in group.variants:
        if variant.cell in LABELS:
            words = " ".join(f"{one.short}={variant.values[one.key]}" for one in others)
            gathered.setdefault(words, {})[variant.cell] = variant
    asked = group.asked_cells
    tables = []
    for title, by_cell in gathered.items():
        if len(by_cell) > 1 or asked & {*LABELS} or group.data == "wider_face":
            rows = [row for paper in ROWS if (row := _row(paper, group, by_cell.get(paper.variant), resampler, asked))]
            evaluations = {cell: variant.evaluations(group.protocol) for cell, variant in by_cell.items()}
            tables.append(PaperTable(title, rows, steps(evaluations, resampler)))
    return tables


def _row(paper: PaperRow, group: Group, variant: Variant | None, resampler: Resampler, asked: set[str]) -> Row | None:
    runs = variant.runs if variant else []
    protocol = group.protocol
    if paper.protocols:
        lists = [run.record.settings.get("also_protocols") for run in runs]
        there = [name for run in runs for name in run.evaluations]
        there += [str(name) for names in lists if isinstance(names, list) for name in names]
        protocol = next((name for name in (*paper.protocols, "") if name in there), "")
        if not protocol:
            return None
    if variant is None:
        return Row(paper.label, protocol, paper, None, {}, "not run yet") if paper.variant in asked else None
    label = paper.label if protocol in (group.protocol, *paper.protocols[:1]) else f"{paper.label} ({protocol})"
    evaluations = variant.evaluations(protocol)
    estimates = {setting: resampler.ap(evaluations, setting) for setting in SETTINGS}
    ours = {setting: estimate for setting, estimate in estimates.items() if estimate is not None}
    return Row(label, protocol, paper, variant, ours, status(runs, protocol))


def steps(by_cell: Mapping[str, Evaluations], resampler: Resampler) -> list[StepResult]:
    """The paper's steps in every setting, of those with both sides among the runs.

    Args:
        by_cell: the paper's name of a network (``level2_hl``) → seed → how it did.
        resampler: of the images.
    """
    results = []
    for step in STEPS:
        if by_cell.get(step.after) and by_cell.get(step.before):
            for setting in SETTINGS:
                ours = resampler.difference(by_cell[step.after], by_cell[step.before], setting)
                paper = step.difference_percent(setting)
                results.append(StepResult(step, setting, ours, paper, verdict(ours, paper)))
    return results


def status(runs: Sequence[Run], protocol: str) -> str:
    """What runs of one variant lack, in words; empty when all are finished and scored."""
    words = {run.record.seed: run_status(run, protocol) for run in runs}
    open_ends = {seed: word for seed, word in words.items() if word}
    if len(runs) == 1:
        return next(iter(open_ends.values()), "")
    return "; ".join(f"seed {seed} {word}" for seed, word in open_ends.items())


def run_status(run: Run, protocol: str) -> str:
    """What a run lacks, in words: ``running, epoch 3/20``; empty when it is finished and scored."""
    record = run.record
    epochs = f"epoch {record.train.get('epoch', 0)}/{record.train.get('epochs', record.settings.get('epochs', '?'))}"
    if record.state == "failed":
        return f"failed: {record.error or 'no reason was kept'}"
    if record.state in ("running", "interrupted", "stopped"):
        return f"{record.state}, {epochs}"
    if record.state != "finished":
        return f"state {record.state!r} is unknown"
    return "" if protocol in run.evaluations else f"trained, not scored at {protocol}"


def markdown_rows(rows: Sequence[Row]) -> str:
    """The paper's table, per setting ours with its interval, the paper's, the difference."""
    lines = []
    for row in rows:
        texts = [row.label]
        for setting in SETTINGS:
            estimate, delta = row.ours.get(setting), row.delta_points(setting)
            texts += [
                "" if estimate is None else f"{percent(estimate.value)} {estimate.ap_interval_text}".strip(),
                f"{row.paper.ap_percent(setting):.1f}",
                "" if delta is None else points(delta),
            ]
        lines.append([*texts, row.status])
    head = ["", *(name for setting in SETTINGS for name in (setting, "paper", "Δ")), ""]
    return "\n".join(markdown_table(head, lines, left=(0, len(head) - 1)))


def markdown_steps(results: Sequence[StepResult]) -> str:
    """The steps that have been run, a line per step and setting."""
    lines = [
        [
            result.step.label, result.setting, points(100 * result.ours.value), result.ours.interval_text,
            result.ours.seeds_text, points(result.paper_points), result.verdict.word,
        ]
        for result in results if result.ours is not None
    ]  # fmt: skip
    head = ["step", "setting", "ours", "over images (95 %)", "over seeds (SD)", "paper", ""]
    return "\n".join(markdown_table(head, lines, left=(0, 1, 6))) if lines else "No step has both of its sides yet."


PAPER_COLOR = "#4b5563"
VERDICT_COLORS = {"shows": "#1a7f4b", "reversed": "#b42318", "unclear": "#6b7280", "none": "#6b7280"}
INK = {"axes.edgecolor": "0.6", "text.color": "#1f2937", "axes.labelcolor": "#1f2937"}


def forest(results: Sequence[StepResult]) -> Figure:
    """Every step of the paper: ours with its interval over images, each seed, and the paper's."""
    shown = list(dict.fromkeys(result.step for result in results))
    with canvas((10.0, 0.42 * len(shown) + 1.5), columns=len(SETTINGS), sharey=True, style=INK) as (figure, axes):
        for axis, setting in zip(axes, SETTINGS, strict=True):
            own = [result for result in results if result.setting == setting]
            for y, result in enumerate(own):
                _forest_line(axis, y, result)
                if y and result.step.claim != own[y - 1].step.claim:
                    axis.axhline(y - 0.5, color="0.85", linewidth=0.8)
            axis.axvline(0, color="#374151", linewidth=0.9)
            axis.set(title=setting, xlabel="difference, points of AP", ylim=(len(own) - 0.4, -0.6))
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(shown)), [step.label for step in shown])
        green: dict[str, Any] = {"color": VERDICT_COLORS["shows"], "linewidth": 2.2}
        handles = [
            Line2D([], [], marker="o", label="ours, 95 % over images", **green),
            Line2D([], [], marker="|", linestyle="none", label="each seed", color=green["color"]),
            Line2D([], [], color="none", marker="D", markeredgecolor=PAPER_COLOR, markersize=4.5, label="paper"),
            Line2D(
                [], [], marker="o", label="grey: not distinguishable, red: reversed", color="#6b7280", linewidth=2.2
            ),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _forest_line(axis: Axes, y: int, result: StepResult) -> None:
    axis.plot(result.paper_points, y + 0.18, marker="D", markersize=4.5, color="none", markeredgecolor=PAPER_COLOR)
    if result.ours is None:
        return
    color = VERDICT_COLORS[result.verdict.kind]
    if result.ours.over_images is not None:
        bounds = [100 * bound for bound in result.ours.over_images]
        axis.plot(bounds, [y - 0.12, y - 0.12], color=color, linewidth=2.2, solid_capstyle="butt")
    axis.plot(100 * result.ours.value, y - 0.12, marker="o", markersize=5.5, color=color)
    if result.ours.seeds > 1:
        values = [100 * value for value in result.ours.per_seed.values()]
        axis.plot(values, [y - 0.32] * len(values), "|", color=color, markersize=5)
