"""The ablation report: groups of runs → intervals, tables, figures, speed, a page.

Two kinds of uncertainty, kept apart: other images of the same kind, and the same model trained with another seed.

Over images: paired bootstrap of the trained networks as they are (:mod:`fanet_lightning.score.bootstrap`). Over
seeds: the standard deviation between runs, and for a difference the t interval of its mean over the seeds that both
sides have. Neither is ever added to the other.
"""

import math
import shlex
import string
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.progress import track
from scipy.special import stdtrit
from torch import Tensor, nn

from fanet_lightning.cli.device import device_name, resolve_device
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import now
from fanet_lightning.models.fanet import flops, inference_parameters, network_of
from fanet_lightning.report.figures import begun, canvas
from fanet_lightning.report.html import data_uri, percent, points, render
from fanet_lightning.report.runs import (
    LABELS,
    PAPER_PROTOCOL,
    PAPER_SPEED,
    ROWS,
    SOURCE,
    STEPS,
    VARIANTS,
    Evaluation,
    Evaluations,
    Found,
    Group,
    PaperRow,
    Run,
    Step,
    by_seed,
    differences,
    group_runs,
    shared_settings,
    sweep_command,
)
from fanet_lightning.score.bootstrap import CONFIDENCE, Interval, bootstrap_ap, method
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
    def spread_text(self) -> str:
        """Of an AP in per cent: with several seeds their standard deviation, with one the interval over images."""
        if self.seed_sd is not None:
            return f"± {100 * self.seed_sd:.1f}"
        return "" if self.over_images is None else "[{}, {}]".format(*map(percent, self.over_images))

    @property
    def interval_text(self) -> str:
        """Interval over images of a difference, in points."""
        return "–" if self.over_images is None else " … ".join(points(100 * bound) for bound in self.over_images)

    @property
    def seeds_text(self) -> str:
        """Spread over seeds of a difference, in points."""
        return "one seed" if self.seed_sd is None else f"± {100 * self.seed_sd:.1f} ({self.seeds} seeds)"


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


def verdict(difference: Estimate | None, paper_points: float) -> Verdict:
    """Whether a difference has the sign of the paper's.

    It counts as seen when the interval over images excludes 0, and with several seeds the interval over seeds, too;
    each is asked by itself.

    Args:
        difference: ours; None where runs are missing.
        paper_points: the paper's; 0 means that the paper sees none.
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
    if paper_points == 0:
        return Verdict(f"{'gain' if rises else 'loss'}, paper none{suffix}", "unclear")
    return (
        Verdict(f"shows{suffix}", "shows") if rises == (paper_points > 0) else Verdict(f"reversed{suffix}", "reversed")
    )


HEIGHT, WIDTH = 480, 640
WARM_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """Of detecting in one image.

    ``parameters`` that detection uses, ``flops`` at 640×480 (two per multiply-add). ``seconds`` is the median of the
    timed passes, ``quartiles`` the first and third; None where nothing was timed.
    """

    parameters: int
    flops: int
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None

    @property
    def images_per_second(self) -> float | None:
        return None if self.seconds is None else 1 / self.seconds


@dataclass(frozen=True)
class Timing:
    """How the passes were timed. ``passes`` is 0 where none was; ``refused``: name → why a network cannot be built."""

    passes: int
    device: str
    refused: dict[str, str]

    @property
    def text(self) -> str:
        return (
            f"Images per second: median of {self.passes} passes at {WIDTH}×{HEIGHT}, batch 1, float32, after "
            f"{WARM_PASSES} untimed ones, networks in turn so that a slow moment hits them alike; the network alone, "
            f"without reading images, decoding boxes and suppression; {self.device}."
        )


def network_costs(
    models: Mapping[str, Mapping[str, Any]], passes: int, device: str = "auto", known: dict[str, Cost] | None = None
) -> tuple[dict[str, Cost], Timing]:
    """Count and time networks with fresh weights; their speed does not depend on the weights.

    Args:
        models: name → ``name`` and keyword arguments of :func:`fanet_lightning.models.fanet.build_network`. Equal ones
            are one network, timed once.
        passes: timed passes per network; 0: count alone.
        device: ``auto``, ``cpu``, ``cuda`` …
        known: what earlier calls measured; changed in place.

    Raises:
        InputError: a device that is not there.
    """
    device = resolve_device(device)
    image = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8).to(device)
    known = {} if known is None else known
    identities = {name: repr(sorted(settings.items())) for name, settings in models.items()}
    networks: dict[str, nn.Module] = {}
    refused = {}
    for name, identity in identities.items():
        if identity in known:
            continue
        try:
            network = network_of(models[name]).eval()
        except (InputError, TypeError, ValueError, RuntimeError) as error:  # settings of a run that failed for them
            refused[name] = " ".join(str(error).split())
            continue
        known[identity] = Cost(inference_parameters(network), flops(network, HEIGHT, WIDTH))
        networks[identity] = network.to(device).to(memory_format=torch.channels_last)
    if passes:
        for identity, seconds in _timed(networks, image.to(memory_format=torch.channels_last), passes).items():
            low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
            known[identity] = replace(known[identity], seconds=middle, quartiles=(low, high))
    costs = {name: known[identity] for name, identity in identities.items() if identity in known}
    return costs, Timing(passes, device_name(device), refused)


def _timed(networks: Mapping[str, nn.Module], image: Tensor, passes: int) -> dict[str, list[float]]:
    """Seconds of each timed pass, the networks taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    numbers = track(
        range(WARM_PASSES + passes), "timing networks", console=Console(stderr=True), transient=True,
        disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with torch.inference_mode():
        for number in numbers:
            for name, network in networks.items():
                _wait(image)
                start = time.perf_counter()
                network(image)
                _wait(image)
                if number >= WARM_PASSES:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(image: Tensor) -> None:
    if image.is_cuda:
        torch.cuda.synchronize(image.device)


@dataclass(frozen=True)
class Row:
    """A row of the ablation table.

    ``paper``   None for a variant that the paper does not have.
    ``ours``    setting → estimate; empty while there is no score.
    ``status``  what is missing of it, in words; empty when all its runs are finished and scored.
    """

    label: str
    variant: str
    protocol: str
    paper: PaperRow | None
    ours: dict[str, Estimate]
    status: str

    def delta_points(self, setting: str) -> float | None:
        """Ours minus the paper's, in points of AP."""
        if self.paper is None or setting not in self.ours:
            return None
        return 100 * self.ours[setting].value - self.paper.ap_percent(setting)


@dataclass(frozen=True)
class StepResult:
    """A step of the paper in one setting; ``ours`` is None where runs are missing, ``waits_for`` then says which."""

    step: Step
    setting: str
    ours: Estimate | None
    paper_points: float
    verdict: Verdict
    waits_for: str


def ablation_rows(group: Group, resampler: Resampler) -> list[Row]:
    """The paper's nine rows, then variants of ours and further protocols, each where it has been run."""
    rows, used = [], set()
    for paper in ROWS:
        runs = group.of_variant(paper.variant)
        protocol = _protocol(paper, group, runs)
        used.add((paper.variant, protocol))
        label = paper.label if protocol in ("", group.protocol, *paper.protocols[:1]) else f"{paper.label} ({protocol})"
        rows.append(_row(label, paper.variant, protocol, paper, runs, resampler))
    for variant in group.variants:
        runs = group.of_variant(variant)
        protocols = dict.fromkeys([group.protocol, *(name for run in runs for name in run.evaluations)])
        for protocol in protocols:
            if (variant, protocol) not in used:
                label = variant if protocol == group.protocol else f"{variant} at {protocol}"
                rows.append(_row(label, variant, protocol, None, runs, resampler))
    return rows


def steps(group: Group, resampler: Resampler) -> list[StepResult]:
    """Every step in every setting, at the protocol of the runs."""
    results = []
    for step in STEPS:
        sides = [by_seed(group.of_variant(variant), group.protocol) for variant in (step.after, step.before)]
        absent = [LABELS[variant] for variant, side in zip((step.after, step.before), sides, strict=True) if not side]
        waits_for = f"needs {' and '.join(absent)}" if absent else "no seed that both sides have"
        for setting in SETTINGS:
            ours = resampler.difference(sides[0], sides[1], setting)
            points = step.difference_percent(setting)
            results.append(StepResult(step, setting, ours, points, verdict(ours, points), "" if ours else waits_for))
    return results


def _protocol(paper: PaperRow, group: Group, runs: Sequence[Run]) -> str:
    """The protocol that a row is read at: the first of its own that is there or was asked for."""
    if not paper.protocols:
        return group.protocol
    for protocol in paper.protocols:
        if any(protocol in run.evaluations for run in runs):
            return protocol
    lists = [run.record.settings.get("also_protocols") for run in runs]
    asked = {str(name) for names in lists if isinstance(names, list) for name in names}
    return next((protocol for protocol in paper.protocols if protocol in asked), paper.protocols[0])


def _row(
    label: str, variant: str, protocol: str, paper: PaperRow | None, runs: Sequence[Run], resampler: Resampler
) -> Row:
    evaluations = by_seed(runs, protocol)
    estimates = {setting: resampler.ap(evaluations, setting) for setting in SETTINGS}
    ours = {setting: estimate for setting, estimate in estimates.items() if estimate is not None}
    return Row(label, variant, protocol, paper, ours, _status(runs, protocol))


def _status(runs: Sequence[Run], protocol: str) -> str:
    if not runs:
        return "not run"
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
    """The ablation table, one column per setting: ours with its spread, the paper's, the difference."""
    lines = []
    for row in rows:
        texts = [row.label]
        for setting in SETTINGS:
            estimate, delta = row.ours.get(setting), row.delta_points(setting)
            texts += [
                "" if estimate is None else f"{percent(estimate.value)} {estimate.spread_text}".strip(),
                "" if row.paper is None else f"{row.paper.ap_percent(setting):.1f}",
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


# Levels by hue (grey, blue, red), the baseline orange; HL is the darker shade, context the darkest.
VARIANT_COLORS = {
    "level1": "#6b7280",
    "s3fd_fpn": "#d97706",
    "level2": "#7db8e8",
    "level2_hl": "#1d6fb8",
    "level3": "#f0a3a3",
    "level3_hl": "#d64550",
    "level3_context_hl": "#8f1d2c",
}
OTHER_COLORS = ("#2f9e6e", "#7c5cc4", "#a3a635", "#c44f9a", "#3aa6a6", "#8a6d4b")
PAPER_COLOR = "#4b5563"
VERDICT_COLORS = {"shows": "#1a7f4b", "reversed": "#b42318", "unclear": "#6b7280", "none": "#6b7280"}
_INK = {"axes.edgecolor": "0.6", "text.color": "#1f2937", "axes.labelcolor": "#1f2937"}


def colors(variants: Sequence[str]) -> dict[str, str]:
    """A color per variant; the paper's have theirs in every figure and every report."""
    others = [variant for variant in variants if variant not in VARIANT_COLORS]
    return VARIANT_COLORS | {variant: OTHER_COLORS[i % len(OTHER_COLORS)] for i, variant in enumerate(others)}


def _legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str] | None = None) -> None:
    figure.legend(
        handles=handles, labels=labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )  # fmt: skip


def precision_recall(group: Group) -> Figure | None:
    """One panel per setting, one line per variant and seed; None where no run has kept its curves."""
    evaluations = [
        (run.variant, run.evaluations[run.protocol]) for run in group.runs if run.protocol in run.evaluations
    ]
    if not any(own.curves for _, own in evaluations):
        return None
    palette = colors(group.variants)
    with canvas((10.0, 4.0), columns=len(SETTINGS), sharey=True, style=_INK) as (figure, axes):
        for axis, setting in zip(axes, SETTINGS, strict=True):
            for variant in group.variants:
                curves = [own.curves[setting] for name, own in evaluations if name == variant and setting in own.curves]
                for number, curve in enumerate(curves):
                    mean = sum(other.ap for other in curves) / len(curves)
                    label = f"{LABELS.get(variant, variant)}  {100 * mean:.1f}" if number == 0 else None
                    width = 1.5 if len(curves) == 1 else 0.9
                    axis.plot(*begun(curve), color=palette[variant], linewidth=width, label=label)
            axis.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", title=setting)
            axis.legend(loc="lower left", frameon=False, fontsize=7.5, handlelength=1.4)
        axes[0].set_ylabel("precision")
    return figure


def forest(results: Sequence[StepResult]) -> Figure | None:
    """Every step of the paper: ours with its interval over images, each seed, and the paper's; None without a step."""
    if not any(result.ours for result in results):
        return None
    with canvas((10.0, 0.42 * len(STEPS) + 1.5), columns=len(SETTINGS), sharey=True, style=_INK) as (figure, axes):
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
        axes[0].set_yticks(range(len(STEPS)), [step.label for step in STEPS])
        shown: dict[str, Any] = {"color": VERDICT_COLORS["shows"], "linewidth": 2.2}
        handles = [
            Line2D([], [], marker="o", label="ours, 95 % over images", **shown),
            Line2D([], [], marker="|", linestyle="none", label="each seed", color=shown["color"]),
            Line2D([], [], color="none", marker="D", markeredgecolor=PAPER_COLOR, markersize=4.5, label="paper"),
            Line2D(
                [], [], marker="o", label="grey: not distinguishable, red: reversed", color="#6b7280", linewidth=2.2
            ),
        ]
        _legend_below(figure, handles)
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


def trade_off(rows: Sequence[Row], costs: Mapping[str, Cost]) -> Figure | None:
    """AP hard against speed, parameters and operations (the paper's figure 7); None where no row has both."""
    shown: dict[str, Row] = {}
    for row in rows:
        if "hard" in row.ours and row.variant in costs:
            shown.setdefault(row.variant, row)  # a variant at its first protocol alone
    if not shown:
        return None
    palette = colors(list(shown))
    kinds: dict[str, Callable[[Cost], float]] = {
        "images/s": lambda cost: cost.images_per_second or 0.0,
        "parameters, millions": lambda cost: cost.parameters / 1e6,
        "GFLOPs at 640×480": lambda cost: cost.flops / 1e9,
    }
    if not all(costs[variant].seconds for variant in shown):
        del kinds["images/s"]
    with canvas((10.0, 3.9), columns=len(kinds), sharey=True, style=_INK) as (figure, axes):
        for axis, (kind, value_of) in zip(axes, kinds.items(), strict=True):
            for variant, row in shown.items():
                x, estimate = value_of(costs[variant]), row.ours["hard"]
                if estimate.over_images is not None:
                    bounds = [100 * bound for bound in estimate.over_images]
                    axis.plot([x, x], bounds, color=palette[variant], linewidth=1, alpha=0.45)
                label = LABELS.get(variant, variant)
                axis.plot(x, 100 * estimate.value, "o", markersize=7, color=palette[variant], label=label)
            axis.set_xlabel(kind)
            axis.margins(x=0.12)
        axes[0].set_ylabel("AP hard, %")
        _legend_below(figure, *axes[0].get_legend_handles_labels())
    return figure


def learning(group: Group) -> Figure | None:
    """AP on the validation images over the epochs, a line per variant and seed; None where no run has logged it."""
    shown = [run for run in group.runs if run.learning]
    if not shown:
        return None
    palette = colors(group.variants)
    with canvas((10.0, 3.9), columns=len(SETTINGS), style=_INK) as (figure, axes):
        lines: dict[str, Line2D] = {}
        for axis, setting in zip(axes, SETTINGS, strict=True):
            for run in shown:
                known = [(epoch, 100 * ap[setting]) for epoch, ap in run.learning if setting in ap]
                if known:
                    (line,) = axis.plot(
                        *zip(*known, strict=True), marker="o", markersize=3, linewidth=1.2, color=palette[run.variant]
                    )
                    lines.setdefault(run.variant, line)
            axis.set(title=setting, xlabel="epochs")
            axis.locator_params(axis="x", integer=True)
        axes[0].set_ylabel("validation AP, %")
        _legend_below(figure, list(lines.values()), [LABELS.get(variant, variant) for variant in lines])
    return figure


ALT = {
    "pr_curves": "Precision-recall curves, a panel per setting and a line per variant",
    "steps": "Forest plot of the paper's steps: our differences with intervals and the paper's",
    "trade_off": "AP against images per second, parameters and operations",
    "learning": "Validation AP over the epochs, a line per variant",
}


@dataclass(frozen=True, eq=False)
class Part:
    """What the page says about one group.

    ``letter``       A, B, …; empty where there is one group alone.
    ``differences``  (dotted key, value in the first group, value here); empty in the first group.
    ``costs``        by variant, of every network that could be built; the paper's variants first.
    ``figures``      by file name without extension; those that there is data for.
    """

    group: Group
    letter: str
    differences: list[tuple[str, Any, Any]]
    rows: list[Row]
    steps: list[StepResult]
    costs: dict[str, Cost]
    timing: Timing
    figures: dict[str, Figure]
    intervals_method: str | None

    @property
    def prefix(self) -> str:
        """Of the names of its figures' files."""
        return f"{self.letter.lower()}_" if self.letter else ""

    @property
    def seeds(self) -> list[int]:
        return sorted({run.record.seed for run in self.group.runs})

    @property
    def trainings(self) -> dict[str, int]:
        """How many of the paper's trainings (seven per seed) are in which state; ``missing`` have no record."""
        states = [run.record.state for run in self.group.runs if run.variant in VARIANTS]
        counts = {state: states.count(state) for state in ("finished", "running", "interrupted", "stopped", "failed")}
        # An unknown state is a record, so it is not missing.
        return {**counts, "missing": len(VARIANTS) * len(self.seeds) - len(states)}

    @property
    def others(self) -> tuple[int, int]:
        """How many runs are none of the paper's variants, and how many of those failed."""
        states = [run.record.state for run in self.group.runs if run.variant not in VARIANTS]
        return len(states), states.count("failed")

    @property
    def legend(self) -> str:
        """What stands behind a value of the ablation table."""
        if len(self.seeds) > 1:
            return "AP in %, mean ± standard deviation over seeds; with a single seed [95 % interval over images]."
        if self.intervals_method is None:
            return "AP in %."
        return f"AP in % [95 % interval over images: {self.intervals_method}]."

    @property
    def facts(self) -> dict[str, str]:
        """Data, protocol, recipe, seeds and devices, as far as they are known."""
        settings, protocol = self.group.settings, self.group.protocol
        devices = {str(run.record.train["device"]) for run in self.group.runs if run.record.train.get("device")}
        words = {"epochs": "{} epochs", "batch_size": "batch {}", "input_size": "{} px"}
        recipe = [text.format(settings[key]) for key, text in words.items() if key in settings]
        width = settings.get("model", {}).get("width")
        recipe += [f"width ×{width:g}"] if isinstance(width, int | float) and width != 1 else []
        facts = {
            "Data": self.group.data_label,
            "Protocol": protocol if protocol == PAPER_PROTOCOL else f"{protocol} (paper: {PAPER_PROTOCOL})",
            "Recipe": ", ".join(recipe),
            "Seeds": ", ".join(map(str, self.seeds)),
            "Trained on": "; ".join(sorted(devices)),
        }
        return {name: text for name, text in facts.items() if text}

    @property
    def best(self) -> dict[str, float | None]:
        """By setting, the highest AP at the protocol of the runs."""
        own = [row.ours for row in self.rows if row.protocol == self.group.protocol]
        return {s: max((ours[s].value for ours in own if s in ours), default=None) for s in SETTINGS}

    @property
    def problems(self) -> list[str]:
        """What of the report is incomplete, a line each."""
        lines = [line for run in self.group.runs for line in run.problems]
        lines += [line for _, line in self.group.left_out]
        return lines + [f"{name}: the network cannot be built ({why})" for name, why in self.timing.refused.items()]

    @property
    def versions(self) -> dict[str, list[str]]:
        """Package → its versions among the runs, Python first."""
        found: dict[str, set[str]] = {}
        for run in self.group.runs:
            packages = run.record.made_by.get("packages")
            own = {"Python": run.record.made_by.get("python"), **(packages if isinstance(packages, dict) else {})}
            for name, version in own.items():
                if version is not None:
                    found.setdefault(str(name), set()).add(str(version))
        return {name: sorted(versions) for name, versions in found.items()}


def build_parts(found: Found, *, bootstrap: int, speed_passes: int, device: str) -> list[Part]:
    """Tables, costs and figures of every group, the largest first.

    Raises:
        InputError: the device is not there.
    """
    grouped = group_runs(found.runs)
    parts = []
    known: dict[str, Cost] = {}
    for number, group in enumerate(grouped):
        resampler = Resampler(bootstrap)
        rows, paper_steps = ablation_rows(group, resampler), steps(group, resampler)
        # The hierarchical loss adds heads that detection does not run: with and without it the network is the same.
        models = {run.variant: {**run.record.settings.get("model", {})} | {"hl": False} for run in group.runs}
        models = {name: models[name] for name in sorted(models, key=[*VARIANTS, *models].index)}
        costs, timing = network_costs(models, speed_passes, device, known)
        figures = {
            "pr_curves": precision_recall(group),
            "steps": forest(paper_steps),
            "trade_off": trade_off(rows, costs),
            "learning": learning(group),
        }
        parts.append(
            Part(
                group=group,
                letter=_letter(number) if len(grouped) > 1 else "",
                differences=[] if number == 0 else differences(grouped[0].runs[0], group.runs[0]),
                rows=rows,
                steps=paper_steps,
                costs=costs,
                timing=timing,
                figures={name: figure for name, figure in figures.items() if figure is not None},
                intervals_method=method(bootstrap) if bootstrap else None,
            )
        )
    return parts


def markdown(found: Found, parts: Sequence[Part]) -> str:
    """The tables of all parts, with what the numbers are about above each."""
    blocks = []
    if len(parts) > 1:
        blocks.append(f"**{len(parts)} groups of settings below {found.root}: their numbers do not compare.**")
    for part in parts:
        head = f"{part.group.data_label}, protocol {part.group.protocol}"
        blocks.append(f"## {part.letter + ': ' if part.letter else ''}{head}")
        if part.differences:
            blocks.append("Unlike A: " + ", ".join(f"{key}={b} (A: {a})" for key, a, b in part.differences))
        if part.group.warning:
            blocks.append(part.group.warning)
        blocks.append(f"{part.legend} Paper: {SOURCE}.")
        blocks.append(markdown_rows(part.rows))
        blocks.append("The paper's steps, in points of AP:")
        blocks.append(markdown_steps(part.steps))
    blocks += [f"Not readable: {line}" for _, line in found.broken]
    return "\n\n".join(blocks) + "\n"


def page(found: Found, parts: Sequence[Part]) -> str:
    """The whole report as HTML; it needs no network, no server and no script."""
    return render(
        Path(__file__).parent / "templates" / "report.html",
        found=found,
        parts=parts,
        settings=SETTINGS,
        source=SOURCE,
        paper_protocol=PAPER_PROTOCOL,
        paper_speed=PAPER_SPEED,
        written=now(),
        labels=LABELS,
        alt=ALT,
        data_uri=data_uri,
        run_status=run_status,
        images_seen=images_seen,
        shared_settings=shared_settings,
        command_of=command_of,
        sweep_commands=lambda group: filter(
            None, map(sweep_command, dict.fromkeys(run.folder.parent for run in group.runs))
        ),
    )


def images_seen(run: Run) -> int | None:
    """Optimizer steps × batch size × accumulated batches; None where the record lacks one of them."""
    train, settings = run.record.train, run.record.settings
    accumulated = settings.get("trainer", {}).get("accumulate_grad_batches", 1)
    factors = (train.get("steps"), settings.get("batch_size"), accumulated)
    return math.prod(factors) if all(isinstance(factor, int) for factor in factors) else None


def command_of(run: Run) -> str | None:
    """The run's command line, to be typed in a shell."""
    words = run.record.made_by.get("command")
    if not isinstance(words, list) or not words:
        return None
    first, *rest = [str(word) for word in words]
    start = ["python", "-m", "fanet_lightning.train"] if Path(first).name in ("train.py", "__main__.py") else [first]
    return shlex.join([*start, *rest])


def _letter(number: int) -> str:
    letters = string.ascii_uppercase
    return letters[number] if number < len(letters) else f"{letters[number // 26 - 1]}{letters[number % 26]}"
