"""Runs below a folder: read, grouped by what their AP is about, what was varied; the rows of the paper's ablation."""

import csv
import json
import math
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from fanet_lightning.cli.config import run_name
from fanet_lightning.cli.errors import InputError, counted, first_line, is_number
from fanet_lightning.cli.provenance import (
    LATER_SETTINGS,
    RECORD_FILE,
    RunRecord,
    differing_settings,
    flat,
    read_record,
    state_now,
)
from fanet_lightning.report.html import value_text
from fanet_lightning.score.bootstrap import PER_IMAGE_FILE, ImageCounts, curve_from_counts, read_counts
from fanet_lightning.score.results import TITLES
from fanet_lightning.score.wider_face.ground_truth import SETTINGS

METRICS_FILE = Path("csv") / "metrics.csv"
SWEEP_FILE = "multirun.yaml"
# AP of per_image.npz and of run.json that are about the same predictions differ by rounding alone.
SAME_AP = 1e-9


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A run scored under one protocol.

    ``ap``      per setting in [0, 1]; a setting in which no face counts is left out.
    ``counts``  per setting, from ``per_image.npz``; empty where that is missing or about other predictions.
    """

    protocol: str
    ap: dict[str, float]
    images: int | None
    counts: dict[str, ImageCounts]


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder. ``problems``: one line each about a part that is missing or cannot be read.

    ``learning`` holds (epochs done, setting → AP on the validation images), ``losses`` (optimizer steps, training
    loss), both ascending.
    """

    folder: Path
    record: RunRecord
    evaluations: dict[str, Evaluation]
    learning: list[tuple[int, dict[str, float]]]
    losses: list[tuple[int, float]]
    problems: list[str]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted key → value of its configuration."""
        return LATER_SETTINGS | flat(self.record.settings)

    @property
    def protocol(self) -> str:
        """The protocol that the run itself is validated and scored under."""
        return str(self.settings.get("protocol.name", "unknown"))

    @property
    def own(self) -> Evaluation | None:
        return self.evaluations.get(self.protocol)

    @property
    def cell(self) -> str:
        """Name of its network among those of the paper's ablation, whatever else was set."""
        if "model.name" not in self.settings:
            return self.record.name
        level, context, hl = (self.settings.get(f"model.{switch}", 0) for switch in COPIES)
        backbone = self.settings.get("model.backbone", "vgg")
        return run_name(str(self.settings["model.name"]), level, context, hl, backbone)

    @property
    def words(self) -> list[str]:
        """Of its command line, after the program."""
        return [str(word) for word in self.record.made_by.get("command") or [""]][1:]

    @property
    def command(self) -> str:
        return shlex.join(["fanet", "train", *self.words])


@dataclass(frozen=True)
class Found:
    """All runs below ``root``, and ``broken``: one line about each whose ``run.json`` says nothing usable."""

    root: Path
    runs: list[Run]
    broken: list[str]


def find_runs(root: Path) -> Found:
    """Read every folder below ``root`` that has a ``run.json``, in the order of their paths; InputError: none has."""
    found = Found(root, [], [])
    for place, names, files in os.walk(root):
        # Nothing below a run, and hidden folders are locks and outputs in the making.
        names[:] = [] if RECORD_FILE in files else sorted(name for name in names if not name.startswith("."))
        if RECORD_FILE in files:
            folder = Path(place)
            try:
                record = read_record(folder)
                assert record is not None
                record.state = state_now(folder, record)
                found.runs.append(_read_run(folder, record))
            except (InputError, OSError) as error:
                found.broken.append(first_line(error))
    if not found.runs and not found.broken:
        raise InputError(f"runs={root} holds no {RECORD_FILE} at any depth; give the folder of a sweep or of a run")
    return found


def _read_run(folder: Path, record: RunRecord) -> Run:
    problems: list[str] = []
    evaluations = {}
    for protocol, score in record.scores.items():
        ap = {setting: value for setting, value in score["ap"].items() if is_number(value)}
        counts, path = dict[str, ImageCounts](), folder / score["folder"] / PER_IMAGE_FILE
        try:
            counts = {setting: own for setting, own in read_counts(path).items() if setting in ap}
            again = {setting: curve_from_counts(own).ap for setting, own in counts.items()}
            if again.keys() != ap.keys() or any(abs(again[setting] - ap[setting]) > SAME_AP for setting in ap):
                problems.append(f"{path} is about other predictions than {RECORD_FILE}")
                counts = {}
        except InputError as error:
            problems.append(first_line(error))
        evaluations[protocol] = Evaluation(protocol, ap, score.get("images"), counts)
    return Run(folder, record, evaluations, *_read_metrics(folder / METRICS_FILE, problems), problems)


def _read_metrics(
    path: Path, problems: list[str]
) -> tuple[list[tuple[int, dict[str, float]]], list[tuple[int, float]]]:
    learning, losses = dict[int, dict[str, float]](), dict[int, float]()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                # A run that was resumed may have logged an epoch or a step twice: the last counts.
                if row.get("train/loss"):
                    losses[int(row["step"]) + 1] = float(row["train/loss"])
                ap = {key.removeprefix("val/ap_"): float(text) for key, text in row.items()
                      if key.startswith("val/ap_") and text and not math.isnan(float(text))}  # fmt: skip
                if ap:
                    learning[int(row["epoch"]) + 1] = {name: ap[name] for name in ordered(ap)}
    except Exception as error:  # rows may be cut short anywhere
        problems.append(f"{path} cannot be read ({first_line(error)}): no curves over training beyond it")
    return sorted(learning.items()), sorted(losses.items())


def ordered(names: Iterable[str]) -> list[str]:
    """Names of AP, each once, from easy to hard."""
    return sorted(dict.fromkeys(names), key=lambda name: SETTINGS.index(name) if name in SETTINGS else len(SETTINGS))


def sweep_command(root: Path) -> str | None:
    """The command that starts, or resumes, the sweep in ``root``; None where there is no sweep that can be read."""
    try:
        overrides = yaml.safe_load((root / SWEEP_FILE).read_text(encoding="utf-8"))["hydra"]["overrides"]
        # Hydra itself adds what tells the folders of variants apart.
        hydra = [word for word in overrides["hydra"] if not word.startswith("hydra.job.config")]
        return shlex.join(["fanet", "train", *overrides["task"], *hydra])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # none is there, or it is cut short
        return None


# What the paper reports for the ablation, and the steps it argues with, with the place each number stands at.
# Zhang, Wu, Zhu, Hoi: Feature Agglomeration Networks for Single Stage Face Detection, arXiv 1712.00721 v2: Table 1
# (S3FD, S3FD + FPN, 2-level + HL), Table 2 (all others; it repeats 1-level and 2-level + HL).
PAPER_PROTOCOL = "short640"
PAPER_IMAGES = 3226
SOURCE = "arXiv 1712.00721 v2, Tables 1 and 2: WIDER FACE val, 3,226 images, single scale, shorter side 640"


class PaperRow(NamedTuple):
    """A row of the paper's ablation.

    ``variant``    the name of the run that it is, as :func:`fanet_lightning.cli.config.run_name` makes it.
    ``protocols``  at which it may be scored, the first that is there counts; empty: the run's own.
    ``percent``    AP in per cent, easy / medium / hard.
    """

    label: str
    variant: str
    protocols: tuple[str, ...]
    percent: tuple[float, float, float]

    def ap_percent(self, setting: str) -> float:
        return self.percent[SETTINGS.index(setting)]


FINAL = "level3_context_hl"
ROWS = (
    PaperRow("1-level (S3FD)", "level1", (), (94.5, 92.9, 82.8)),
    PaperRow("S3FD + FPN", "s3fd_fpn", (), (94.3, 93.1, 83.8)),
    PaperRow("2-level", "level2", (), (94.8, 93.6, 84.4)),
    PaperRow("2-level + HL", "level2_hl", (), (94.8, 93.6, 85.3)),
    PaperRow("3-level", "level3", (), (94.7, 93.3, 84.8)),
    PaperRow("3-level + HL", "level3_hl", (), (94.8, 93.6, 85.7)),
    PaperRow("3-level + HL + context", FINAL, (), (95.0, 93.9, 86.7)),
    PaperRow("… at short768", FINAL, ("short768",), (94.8, 93.6, 88.4)),
    PaperRow("… multi-scale", FINAL, ("multiscale", "multiscale_quick"), (95.6, 94.7, 89.5)),
)
LABELS = {row.variant: row.label for row in ROWS if not row.protocols}


class Step(NamedTuple):
    """One comparison that the paper makes: ``after`` against ``before``, both names of variants."""

    claim: str
    after: str
    before: str

    @property
    def label(self) -> str:
        return f"{LABELS[self.after]} − {LABELS[self.before]}"

    def difference_percent(self, setting: str) -> float:
        """The paper's difference in points of AP."""
        values = {row.variant: row.ap_percent(setting) for row in ROWS if not row.protocols}
        return round(values[self.after] - values[self.before], 1)


STEPS = (
    Step("Levels", "level2", "level1"),
    Step("Levels", "level3", "level2"),
    Step("Levels", "level3_hl", "level2_hl"),
    Step("Hierarchical loss", "level2_hl", "level2"),
    Step("Hierarchical loss", "level3_hl", "level3"),
    Step("Context", FINAL, "level3_hl"),
    Step("FPN against S3FD", "s3fd_fpn", "level1"),
    Step("FANet against FPN", "level2_hl", "s3fd_fpn"),
    Step("FANet against FPN", FINAL, "s3fd_fpn"),
    Step("FANet against S3FD", FINAL, "level1"),
)


# What makes a row of the paper's. The switches at the top are copies of the model's, which the model alone reads.
SWITCHES = ("model.name", "model.level", "model.context", "model.hl")
COPIES = ("level", "context", "hl")
# The value of a setting that a run does not have.
ABSENT = "–"


@dataclass(frozen=True)
class Varied:
    """A setting that differs between runs that are compared: ``values`` tried, ascending, :data:`ABSENT` where a run
    has none; ``also``: settings that change in step with it and that were not set by themselves."""

    key: str
    values: list[Any]
    also: list[str]

    @property
    def name(self) -> str:
        """As it is typed: ``level`` for its copy ``model.level``."""
        return self.key.removeprefix("model.") if self.key in SWITCHES[1:] else self.key

    @property
    def short(self) -> str:
        """For legends: the last word of the key, or the one before it where that is ``name`` or ``_target_``."""
        return self.key.removesuffix(".name").removesuffix("._target_").rsplit(".", 1)[-1]

    @property
    def numbers(self) -> list[float]:
        """The values, where all of them are numbers; else empty."""
        given = [value for value in self.values if value not in (None, ABSENT)]
        return [float(value) for value in given] if all(map(is_number, given)) else []

    @property
    def is_log(self) -> bool:
        """Whether the values want a logarithmic axis: the largest is at least ten times the smallest."""
        return bool(self.numbers) and self.numbers[0] > 0 and self.numbers[-1] >= 10 * self.numbers[0]


@dataclass(frozen=True, eq=False)
class Variant:
    """Runs that differ in nothing but their seed; ``values`` are those of the group's varied settings."""

    label: str
    values: dict[str, Any]
    runs: list[Run]

    def evaluations(self, protocol: str) -> dict[int, Evaluation]:
        """Seed → evaluation, of those runs that have one under the protocol."""
        return {run.record.seed: run.evaluations[protocol] for run in self.runs if protocol in run.evaluations}

    def answers_to(self, name: str | None) -> bool:
        """Whether ``name`` is its label, or the name or the folder of one of its runs."""
        names = [own for run in self.runs for own in (run.record.name, run.folder.name, str(run.folder))]
        return name in (self.label, *names)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are scored on the same images under the same protocol, so that their AP compare.

    ``runs``      all of them. ``left_out``: one line about each that another one of its variant and seed stands for.
    ``apart``     (dotted key, value in the first group, value here): why these are no rows of the first group's table.
    """

    runs: list[Run]
    varied: list[Varied]
    variants: list[Variant]
    left_out: list[str]
    apart: list[tuple[str, Any, Any]] = field(default_factory=list)

    @property
    def protocol(self) -> str:
        return self.runs[0].protocol

    @property
    def protocols(self) -> list[str]:
        """Its own, and all others that runs were scored under as well."""
        return list(dict.fromkeys([self.protocol, *(name for run in self.runs for name in run.evaluations)]))

    @property
    def ap_names(self) -> list[str]:
        """Of the AP that the runs have: easy, medium, hard, or those of another benchmark."""
        tables = [e.ap for run in self.runs for e in run.evaluations.values()]
        return ordered(name for ap in tables or [ap for run in self.runs for _, ap in run.learning] for name in ap)

    @property
    def data(self) -> str:
        return str(self.runs[0].settings.get("data.name", "unknown"))

    @property
    def images(self) -> int | None:
        """How many images were scored; None before the first score."""
        return max((e.images for run in self.runs for e in run.evaluations.values() if e.images), default=None)

    @property
    def data_label(self) -> str:
        """The data in words."""
        title, settings = TITLES.get(self.data, self.data), self.runs[0].settings
        if self.data == "wider_face":
            title += f" {settings.get('data.val.split') or 'val'}"
        elif self.data == "folder":
            title += f" ({settings.get('data.root')})"
        return title if self.images is None else f"{title}, {counted(self.images, 'image')}"

    @property
    def warning(self) -> str:
        """What keeps AP from comparing with the paper's; empty on WIDER FACE val in full at the paper's protocol."""
        if self.images is not None and self.data_label != f"WIDER FACE val, {PAPER_IMAGES:,} images":
            where = f"Scored on {self.data_label}, not on WIDER FACE val in full"
            return f"{where}: this says nothing about the paper's numbers, at most about the order of its rows."
        return "" if self.protocol == PAPER_PROTOCOL else f"Scored at {self.protocol}, the paper at {PAPER_PROTOCOL}."

    @property
    def shared(self) -> dict[str, Any]:
        """Dotted key → value of what all runs have in common."""
        first, *others = (run.settings for run in self.runs)
        alike = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
        return {key: value for key, value in alike.items() if key not in ("seed", "out", "name")}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Split runs by the data, the images and the protocol that their AP are about, the largest group first.

    Nothing else splits them: every other setting that differs is a column of the group's table.
    """
    parts: list[list[Run]] = []
    # Those that know their images come first; one that knows nothing of them joins the first part of its settings.
    for run in sorted(runs, key=lambda run: 0 if run.own is None else -1 - bool(run.own.counts)):
        like = next((part for part in parts if not _unlike(part[0], run)), None)
        if like is None:
            parts.append(like := [])
        like.append(run)
    parts.sort(key=lambda part: -len(part))
    return [_group(sorted(part, key=lambda run: run.folder), _unlike(parts[0][0], part[0])) for part in parts]


def _unlike(first: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """(setting, its two values): what two runs' AP depend on beyond the network, and differ in."""
    # Other data has a name; where it is does not matter.
    ignored = ("data.train",) if first.settings.get("data.name") == "folder" else ("data.train", "data.root")
    found = [
        (key, a, b) for key in dict.fromkeys([*first.settings, *other.settings])
        if key.startswith(("data.", "protocol.")) and not key.startswith(ignored)
        and (a := first.settings.get(key)) != (b := other.settings.get(key))
    ]  # fmt: skip
    # The data may have changed in between.
    if not found and first.own and other.own:
        counts = [(own, other.own.counts[name]) for name, own in first.own.counts.items() if name in other.own.counts]
        same = all(a.image_ids == b.image_ids and np.array_equal(a.faces, b.faces) for a, b in counts)
        if not same or first.own.images != other.own.images:
            found = [("scored images", first.own.images, other.own.images)]
    return found


def _group(runs: list[Run], apart: list[tuple[str, Any, Any]]) -> Group:
    def worth(run: Run) -> tuple[bool, bool, str]:
        return (bool(run.evaluations), run.record.state in ("running", "finished"), run.record.started)

    varied, left_out = _varied(runs), []
    chosen: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=worth, reverse=True):
        seeds = chosen.setdefault("\n".join(_text(run.settings.get(one.key, ABSENT)) for one in varied), {})
        kept = seeds.setdefault(run.record.seed, run)
        if kept is not run:
            left_out.append(f"{run.folder} repeats settings and seed of {kept.folder}, which the tables read")
    variants = []
    labels = {run.cell: LABELS.get(run.cell, run.cell) for run in runs}
    names_suffice = all(one.key in SWITCHES for one in varied) and len(labels) == len(chosen)
    for seeds in chosen.values():
        members = [seeds[seed] for seed in sorted(seeds)]
        values = {one.key: members[0].settings.get(one.key, ABSENT) for one in varied}
        words = [f"{one.short}={value_text(values[one.key])}" for one in varied if values[one.key] != ABSENT]
        label = labels[members[0].cell] if names_suffice else " ".join(words) or members[0].record.name
        variants.append(Variant(label, values, members))
    order = {row.variant: number for number, row in enumerate(ROWS)}
    variants.sort(key=lambda own: (order.get(own.runs[0].cell, len(order)), [*map(_place, own.values.values())]))
    return Group(runs, varied, variants, left_out, apart)


def _varied(runs: Sequence[Run]) -> list[Varied]:
    """What differs between runs, without what changes nothing of the training (:func:`differing_settings`), seeds, and
    what only follows from another setting."""
    first = runs[0].record.settings
    differing = dict.fromkeys(key for run in runs for key, *_ in differing_settings(first, run.record.settings))
    has_switches = any("model.level" in run.settings for run in runs)
    keys = [key for key in differing if key != "seed" and not (has_switches and key in COPIES)]
    words = {word.lstrip("+~").split("=")[0] for run in runs for word in run.words}
    words |= {f"model.{key}" for key in COPIES if key in words}
    alike: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        texts = [_text(run.settings.get(key, ABSENT)) for run in runs]
        alike.setdefault(tuple(map(texts.index, texts)), []).append(key)
    found = []
    for together in alike.values():
        shown = [key for key in together if key in words or key in SWITCHES]
        shown = shown or [min(together, key=lambda key: (not key.endswith(".name"), key.count("."), keys.index(key)))]
        for key in shown:
            values = {_text(value): value for value in (run.settings.get(key, ABSENT) for run in runs)}
            also = [other for other in together if other not in shown] if key == shown[0] else []
            found.append(Varied(key, sorted(values.values(), key=_place), also))
    order = [*SWITCHES, *runs[0].settings, *keys]
    return sorted(found, key=lambda one: order.index(one.key))


def _text(value: Any) -> str:
    return repr(float(value)) if is_number(value) else json.dumps(value, sort_keys=True, default=str)


def _place(value: Any) -> tuple[int, float, str]:
    """Sorts numbers by size, then texts."""
    return (0, float(value), "") if is_number(value) else (1, 0.0, value_text(value))
