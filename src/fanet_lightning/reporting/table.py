"""The ablation table and the steps: from runs to rows, and rows as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fanet_lightning.reporting.gather import Run
from fanet_lightning.reporting.groups import Group
from fanet_lightning.reporting.intervals import Estimate, Resampler, Verdict, by_seed, verdict
from fanet_lightning.reporting.paper_table import LABELS, ROWS, STEPS, PaperRow, Step
from fanet_lightning.scoring.ground_truth import SETTINGS


@dataclass(frozen=True)
class Row:
    """A row of the ablation table.

    ``paper``   None for a cell that the paper does not have.
    ``ours``    setting → estimate; empty while there is no score.
    ``status``  what is missing of it, in words; empty when all its runs are finished and scored.
    """

    label: str
    cell: str
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
    """The paper's nine rows, then cells of ours and further protocols, each where it has been run."""
    rows, used = [], set()
    for paper in ROWS:
        runs = group.of_cell(paper.cell)
        protocol = _protocol(paper, group, runs)
        used.add((paper.cell, protocol))
        label = paper.label if protocol in ("", group.protocol, *paper.protocols[:1]) else f"{paper.label} ({protocol})"
        rows.append(_row(label, paper.cell, protocol, paper, runs, resampler))
    for cell in group.cells:
        runs = group.of_cell(cell)
        protocols = dict.fromkeys([group.protocol, *(name for run in runs for name in run.evaluations)])
        for protocol in protocols:
            if (cell, protocol) not in used:
                label = cell if protocol == group.protocol else f"{cell} at {protocol}"
                rows.append(_row(label, cell, protocol, None, runs, resampler))
    return rows


def steps(group: Group, resampler: Resampler) -> list[StepResult]:
    """Every step in every setting, at the protocol of the runs."""
    results = []
    for step in STEPS:
        sides = [by_seed(group.of_cell(cell), group.protocol) for cell in (step.after, step.before)]
        absent = [LABELS[cell] for cell, side in zip((step.after, step.before), sides, strict=True) if not side]
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
    label: str, cell: str, protocol: str, paper: PaperRow | None, runs: Sequence[Run], resampler: Resampler
) -> Row:
    evaluations = by_seed(runs, protocol)
    estimates = {setting: resampler.ap(evaluations, setting) for setting in SETTINGS}
    ours = {setting: estimate for setting, estimate in estimates.items() if estimate is not None}
    return Row(label, cell, protocol, paper, ours, _status(runs, protocol))


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


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """Signed, with one decimal; a minus sign rather than a hyphen, and no sign on zero."""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'−' if value < 0 else '+'}{text}"


def spread_text(estimate: Estimate) -> str:
    """With several seeds their standard deviation, with one the interval over images; in per cent."""
    if estimate.seed_sd is not None:
        return f"± {100 * estimate.seed_sd:.1f}"
    if estimate.over_images is None:
        return ""
    return f"[{percent(estimate.over_images.low)}, {percent(estimate.over_images.high)}]"


def interval_text(estimate: Estimate) -> str:
    """Interval over images of a difference, in points."""
    bounds = estimate.over_images
    return "–" if bounds is None else f"{points(100 * bounds.low)} … {points(100 * bounds.high)}"


def seeds_text(estimate: Estimate) -> str:
    """Spread over seeds of a difference, in points."""
    if estimate.seed_sd is None:
        return "one seed"
    return f"± {100 * estimate.seed_sd:.1f} ({estimate.seeds} seeds)"


def markdown_table(rows: Sequence[Row]) -> str:
    """The ablation table, one column per setting: ours with its spread, the paper's, the difference."""
    lines = ["| | " + " | ".join(f"{setting} | paper | Δ" for setting in SETTINGS) + " | |"]
    lines.append("|---|" + "---:|" * (3 * len(SETTINGS)) + "---|")
    for row in rows:
        cells = []
        for setting in SETTINGS:
            estimate, delta = row.ours.get(setting), row.delta_points(setting)
            own = "" if estimate is None else f"{percent(estimate.value)} {spread_text(estimate)}".strip()
            theirs = "" if row.paper is None else f"{row.paper.ap_percent(setting):.1f}"
            cells += [own, theirs, "" if delta is None else points(delta)]
        lines.append(f"| {_escaped(row.label)} | " + " | ".join(cells) + f" | {_escaped(row.status)} |")
    return "\n".join(lines) + "\n"


def markdown_steps(results: Sequence[StepResult]) -> str:
    """The steps that have been run, a line per step and setting."""
    lines = [
        "| step | setting | ours | over images (95 %) | over seeds (SD) | paper | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for result in results:
        if result.ours is not None:
            lines.append(
                f"| {result.step.label} | {result.setting} | {points(100 * result.ours.value)} | "
                f"{interval_text(result.ours)} | {seeds_text(result.ours)} | {points(result.paper_points)} | "
                f"{result.verdict.word} |"
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else "No step has both of its sides yet.\n"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def verdict_counts(results: Sequence[StepResult]) -> Mapping[str, int]:
    """How many comparisons of each kind, ``shows`` first; those without one are ``none``."""
    kinds = [result.verdict.kind for result in results]
    return {kind: kinds.count(kind) for kind in ("shows", "reversed", "unclear", "none")}
