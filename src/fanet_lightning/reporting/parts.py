"""One part of the report per group of comparable runs, and all of it as Markdown."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanet_lightning.reporting import figures, groups, table
from fanet_lightning.reporting.gather import Found
from fanet_lightning.reporting.groups import Group
from fanet_lightning.reporting.intervals import Resampler
from fanet_lightning.reporting.paper_table import CELLS, SOURCE
from fanet_lightning.reporting.speed import Cost, Timing, network_costs
from fanet_lightning.scoring.bootstrap import method

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Part:
    """What the page says about one group.

    ``letter``       A, B, …; empty where there is one group alone.
    ``differences``  (dotted key, value in the first group, value here); empty in the first group.
    ``costs``        by cell, of every network that could be built.
    ``figures``      by file name without extension; those that there is data for.
    """

    group: Group
    letter: str
    differences: list[tuple[str, Any, Any]]
    rows: list[table.Row]
    steps: list[table.StepResult]
    costs: dict[str, Cost]
    timing: Timing
    figures: "dict[str, Figure]"
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
        states = [run.record.state for run in self.group.runs if run.cell in CELLS]
        counts = {state: states.count(state) for state in ("finished", "running", "interrupted", "stopped", "failed")}
        # An unknown state is a record, so it is not missing.
        return {**counts, "missing": len(CELLS) * len(self.seeds) - len(states)}

    @property
    def others(self) -> tuple[int, int]:
        """How many runs are none of the paper's cells, and how many of those failed."""
        states = [run.record.state for run in self.group.runs if run.cell not in CELLS]
        return len(states), states.count("failed")


def build_parts(found: Found, *, bootstrap: int, speed_passes: int, device: str) -> list[Part]:
    """Tables, costs and figures of every group, the largest first.

    Raises:
        InputError: the device is not there.
    """
    grouped = groups.group_runs(found.runs)
    parts = []
    known: dict[str, Cost] = {}
    for number, group in enumerate(grouped):
        resampler = Resampler(bootstrap)
        rows, steps = table.ablation_rows(group, resampler), table.steps(group, resampler)
        # The hierarchical loss adds heads that detection does not run: with and without it the network is the same.
        models = {run.cell: {**run.record.settings.get("model", {})} | {"hl": False} for run in group.runs}
        costs, timing = network_costs(models, speed_passes, device, known)
        drawn = {
            "pr_curves": figures.precision_recall(group),
            "steps": figures.forest(steps),
            "trade_off": figures.trade_off(rows, costs),
            "learning": figures.learning(group),
        }
        parts.append(
            Part(
                group=group,
                letter=_letter(number) if len(grouped) > 1 else "",
                differences=[] if number == 0 else groups.differences(grouped[0].runs[0], group.runs[0]),
                rows=rows,
                steps=steps,
                costs=costs,
                timing=timing,
                figures={name: figure for name, figure in drawn.items() if figure is not None},
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
        blocks.append(legend(part) + f" Paper: {SOURCE}.")
        blocks.append(table.markdown_table(part.rows).rstrip())
        blocks.append("The paper's steps, in points of AP:")
        blocks.append(table.markdown_steps(part.steps).rstrip())
    blocks += [f"Not readable: {line}" for _, line in found.broken]
    return "\n\n".join(blocks) + "\n"


def legend(part: Part) -> str:
    """What stands behind a value of the ablation table."""
    if len(part.seeds) > 1:
        return "AP in %, mean ± standard deviation over seeds; with a single seed [95 % interval over images]."
    if part.intervals_method is None:
        return "AP in %."
    return f"AP in % [95 % interval over images: {part.intervals_method}]."


def _letter(number: int) -> str:
    letters = string.ascii_uppercase
    return letters[number] if number < len(letters) else f"{letters[number // 26 - 1]}{letters[number % 26]}"
