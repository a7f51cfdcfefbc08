"""Which runs may stand in one table: those that differ in nothing but the paper's switches and the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fanet_lightning.reporting.gather import Run
from fanet_lightning.reporting.paper_table import CELLS, PAPER_IMAGES
from fanet_lightning.run_record import differing_settings

# What makes a cell; everything else has to agree within a table.
SWITCHES = frozenset({"level", "context", "hl", "seed", "model.name", "model.level", "model.context", "model.hl"})


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of the same recipe, data and protocol, by cell in the paper's order and then by seed.

    ``left_out``: (run, why) of those that another run of the same cell and seed stands for.
    """

    runs: list[Run]
    left_out: list[tuple[Run, str]]

    @property
    def settings(self) -> dict[str, Any]:
        return self.runs[0].record.settings

    @property
    def protocol(self) -> str:
        return self.runs[0].protocol

    @property
    def data(self) -> str:
        return str(self.settings.get("data", {}).get("name", "unknown"))

    @property
    def images(self) -> int | None:
        """How many images were scored; None before the first score."""
        numbers = [e.images for run in self.runs for e in run.evaluations.values() if e.images is not None]
        return max(numbers) if numbers else None

    def of_cell(self, cell: str) -> list[Run]:
        return [run for run in self.runs if run.cell == cell]

    @property
    def cells(self) -> list[str]:
        return list(dict.fromkeys(run.cell for run in self.runs))

    @property
    def data_label(self) -> str:
        """The data in words, in the singular case that compares with the paper as in all others."""
        count = "" if self.images is None else f", {self.images:,} images"
        if self.data == "synthetic":
            return f"drawn faces{count}"
        if self.data == "wider_face":
            split = str(_at(self.settings, "data.val.split") or "val")
            return f"WIDER FACE {split}{'' if self.is_the_papers_data else ' sample'}{count}"
        return f"{self.data}{count}"

    @property
    def is_the_papers_data(self) -> bool:
        return (
            self.data == "wider_face"
            and self.images == PAPER_IMAGES
            and _at(self.settings, "data.val.split") in (None, "val")
        )

    @property
    def warning(self) -> str | None:
        """What the numbers do not say; None on WIDER FACE val in full."""
        if self.data == "synthetic":
            return "Drawn faces: this says nothing about the paper's numbers, at most about the order of its rows."
        if self.is_the_papers_data or (self.data == "wider_face" and self.images is None):
            return None
        if self.data == "wider_face":
            return (
                f"A sample of {self.images:,} images, not WIDER FACE val in full: close to the paper's numbers at best."
            )
        return f"Scored on {self.data}, not on WIDER FACE val: this does not compare with the paper's numbers."


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Split runs by everything that changes what is trained, but the switches; the largest group first.

    An option that only one of the two models reads (``model.own_blocks``) keeps no run of the other out of a group.
    """
    # Those with more options come first, so that a baseline without them joins a group rather than founding one.
    gathered: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: -len(_recipe(run))):
        for members in gathered:
            if not any(differences(members[0], run)):
                members.append(run)
                break
        else:
            gathered.append([run])
    groups = [_without_doubles(members) for members in gathered]
    return sorted(groups, key=lambda group: (-len(set(group.cells) & set(CELLS)), -len(group.runs)))


def differences(first: Run, second: Run) -> list[tuple[str, Any, Any]]:
    """(dotted key, value, value) of every setting that keeps two runs out of one table."""
    other_model = _at(first.record.settings, "model.name") != _at(second.record.settings, "model.name")
    found = []
    for key, a, b in differing_settings(first.record.settings, second.record.settings):
        unread = other_model and key.startswith("model.") and (a is None or b is None)
        if key not in SWITCHES and not unread:
            found.append((key, a, b))
    return found


def shared_settings(group: Group) -> dict[str, Any]:
    """Dotted key → value of everything that all runs of the group agree in."""
    recipes = [_recipe(run) for run in group.runs]
    return {
        key: value
        for key, value in recipes[0].items()
        if key not in SWITCHES and all(recipe.get(key) == value for recipe in recipes[1:])
    }


def _recipe(run: Run) -> dict[str, Any]:
    return {key: value for key, value, _ in differing_settings(run.record.settings, {})}


def _without_doubles(runs: list[Run]) -> Group:
    def worth(run: Run) -> tuple[bool, bool, str]:
        return (bool(run.evaluations), run.record.state in ("running", "finished"), str(run.record.started))

    chosen: dict[tuple[str, int], Run] = {}
    left_out = []
    for run in sorted(runs, key=worth, reverse=True):
        key = (run.cell, run.record.seed)
        if key in chosen:
            left_out.append((run, f"{run.title} is there twice; the table reads {chosen[key].folder}"))
        else:
            chosen[key] = run
    order = {cell: number for number, cell in enumerate(CELLS)}
    kept = sorted(chosen.values(), key=lambda run: (order.get(run.cell, len(order)), run.cell, run.record.seed))
    return Group(kept, left_out)


def _at(settings: Mapping[str, Any], dotted: str) -> Any:
    node: Any = settings
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
