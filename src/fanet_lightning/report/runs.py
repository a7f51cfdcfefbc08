"""Runs below a folder: read, grouped by what they train, and the paper's rows that they are compared with."""

import csv
import datetime
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.provenance import LOG_FILE, RECORD_FILE, RunRecord, differing_settings, read_record, state_now
from fanet_lightning.score.bootstrap import PER_IMAGE_FILE, ImageCounts, curve_from_counts, read_counts
from fanet_lightning.score.curves import Curve
from fanet_lightning.score.wider_face.benchmark import CURVES_FILE, read_curves
from fanet_lightning.score.wider_face.ground_truth import SETTINGS

METRICS_FILE = Path("csv") / "metrics.csv"
SWEEP_FILE = "multirun.yaml"
# A point of pr_curves.npz and one of run.json that are about the same predictions differ by rounding alone.
SAME_AP = 1e-9


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A run scored under one protocol.

    ``ap``      per setting in [0, 1]; a setting in which no face counts is left out.
    ``curves``  per setting, from ``pr_curves.npz``; empty where that is missing.
    ``counts``  per setting, from ``per_image.npz``; empty where that is missing or about other predictions.
    """

    protocol: str
    ap: dict[str, float]
    images: int | None
    curves: dict[str, Curve]
    counts: dict[str, ImageCounts]


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder. ``problems``: one line each about a part that is missing or cannot be read.

    ``written`` is the time of the last change of ``run.json``, the last sign of life of a run that says "running".
    ``learning`` holds (epochs done, setting → AP on the validation images), ascending.
    """

    folder: Path
    record: RunRecord
    written: datetime.datetime
    evaluations: dict[str, Evaluation]
    learning: list[tuple[int, dict[str, float]]]
    problems: list[str] = field(default_factory=list)

    @property
    def protocol(self) -> str:
        """The protocol that the run itself is validated and scored under."""
        return str(self.record.settings.get("protocol", {}).get("name", "unknown"))

    @property
    def variant(self) -> str:
        """``name``, which for one of the paper's rows is a key of :mod:`ablation`."""
        return self.record.name

    @property
    def title(self) -> str:
        return f"{self.record.name}, seed {self.record.seed}"

    @property
    def log(self) -> Path | None:
        """Where its terminal output went, if that was kept."""
        path = self.folder / LOG_FILE
        return path if path.is_file() else None


@dataclass(frozen=True)
class Found:
    """All runs below ``root``, and ``broken``: (folder, one line) of each whose ``run.json`` says nothing usable."""

    root: Path
    runs: list[Run]
    broken: list[tuple[Path, str]]


def find_runs(root: Path) -> Found:
    """Read every folder below ``root`` that has a ``run.json``, in the order of their paths.

    Raises:
        InputError: ``root`` holds no ``run.json``.
    """
    runs: list[Run] = []
    broken: list[tuple[Path, str]] = []
    for folder in _folders(root):
        try:
            record = read_record(folder)
            if record is not None:
                _check_types(record, folder)
                record.state = state_now(folder, record)
                runs.append(_read_run(folder, record))
        except (InputError, OSError) as error:
            broken.append((folder, first_line(error)))
    if not runs and not broken:
        raise InputError(f"runs={root} holds no {RECORD_FILE} at any depth; give the folder of a sweep or of a run")
    return Found(root, runs, broken)


def _folders(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        if RECORD_FILE in files:
            names.clear()
            yield Path(folder)
        # Hidden folders are locks and outputs in the making.
        names[:] = sorted(name for name in names if not name.startswith("."))


def _check_types(record: RunRecord, folder: Path) -> None:
    wanted = {"name": str, "seed": int, "settings": dict, "state": str, "model": dict, "train": dict, "scores": dict,
              "made_by": dict}  # fmt: skip
    values = [(key, getattr(record, key), kind) for key, kind in wanted.items()]
    if isinstance(record.settings, dict):
        keys = ("model", "data", "protocol", "trainer")
        values += [(f"settings.{key}", record.settings.get(key, {}), dict) for key in keys]
    for key, value, kind in values:
        if not isinstance(value, kind):
            raise InputError(f"{folder / RECORD_FILE}: {key} is {value!r:.60}, not a {kind.__name__}")


def _read_run(folder: Path, record: RunRecord) -> Run:
    problems: list[str] = []
    evaluations = {}
    for protocol, score in record.scores.items():
        if not isinstance(score, dict) or not isinstance(score.get("ap"), dict):
            problems.append(f"{folder / RECORD_FILE}: the scores under {protocol} cannot be read")
            continue
        ap = {setting: float(value) for setting, value in score["ap"].items() if _is_number(value)}
        part, images = folder / str(score.get("folder", "evaluation")), score.get("images")
        evaluations[protocol] = Evaluation(
            protocol,
            ap,
            images if isinstance(images, int) else None,
            _kept(part / CURVES_FILE, read_curves, lambda own: own.ap, ap, "precision-recall curve", problems),
            _kept(part / PER_IMAGE_FILE, read_counts, _ap_of_counts, ap, "interval over images", problems),
        )
    written = datetime.datetime.fromtimestamp((folder / RECORD_FILE).stat().st_mtime).astimezone()
    return Run(folder, record, written, evaluations, _read_learning(folder / METRICS_FILE, problems), problems)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ap_of_counts(counts: ImageCounts) -> float:
    return curve_from_counts(counts).ap


T = TypeVar("T")


def _kept(
    path: Path,
    read: Callable[[Path], dict[str, T]],
    ap_of: Callable[[T], float],
    ap: Mapping[str, float],
    what: str,
    problems: list[str],
) -> dict[str, T]:
    """Per setting what ``path`` holds, if it is about the predictions that have this ``ap``; else a problem more."""
    if not path.is_file():
        problems.append(f"{path} is missing: no {what}")
        return {}
    try:
        found = {setting: own for setting, own in read(path).items() if setting in ap}
    except InputError as error:
        problems.append(f"{first_line(error)}: no {what}")
        return {}
    if set(found) != set(ap) or any(abs(ap_of(found[setting]) - ap[setting]) > SAME_AP for setting in ap):
        problems.append(f"{path} is about other predictions than {RECORD_FILE}: no {what}")
        return {}
    return found


def _read_learning(path: Path, problems: list[str]) -> list[tuple[int, dict[str, float]]]:
    points: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                ap = {key.removeprefix("val/ap_"): float(text) for key, text in row.items()
                      if isinstance(key, str) and key.startswith("val/ap_") and text}  # fmt: skip
                if ap and row.get("epoch"):
                    # Logged with the epoch's index; a run that was resumed may have logged one twice: the last counts.
                    points[int(float(row["epoch"])) + 1] = ap
    except FileNotFoundError:
        problems.append(f"{path} is missing: no learning curve")
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        problems.append(f"{path} cannot be read ({first_line(error)}): no learning curve beyond it")
    return sorted(points.items())


def sweep_command(root: Path) -> str | None:
    """The command that starts, or resumes, the sweep in ``root``; None where there is no sweep."""
    try:
        hydra = yaml.safe_load((root / SWEEP_FILE).read_text(encoding="utf-8"))["hydra"]
        words = [str(word) for word in hydra["overrides"]["task"]]
        # Hydra itself adds what tells the folders of variants apart.
        words += [word for word in hydra["overrides"]["hydra"] if not str(word).startswith("hydra.job.config")]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    return shlex.join(["python", "-m", "fanet_lightning.train", *words])


Evaluations = Mapping[int, Evaluation]  # seed → how its run did


def by_seed(runs: Sequence[Run], protocol: str) -> dict[int, Evaluation]:
    """Seed → evaluation under a protocol, of those runs that have one."""
    return {run.record.seed: run.evaluations[protocol] for run in runs if protocol in run.evaluations}


# What the paper reports for the ablation, and the steps it argues with, with the place each number stands at.
# Zhang, Wu, Zhu, Hoi: Feature Agglomeration Networks for Single Stage Face Detection, arXiv 1712.00721 v2: Table 1
# (S3FD, S3FD + FPN, 2-level + HL), Table 2 (all others; it repeats 1-level and 2-level + HL).
PAPER_PROTOCOL = "short640"
PAPER_IMAGES = 3226
SOURCE = "arXiv 1712.00721 v2, Tables 1 and 2: WIDER FACE val, 3,226 images, single scale, shorter side 640"
# Appendix, section 7: GTX 1080 Ti, CuDNN v6, shorter side 640.
PAPER_SPEED = "2-level 45.4 images/s, S3FD + FPN 45.9 images/s on a GTX 1080 Ti, shorter side 640 (appendix, figure 7)"


class PaperRow(NamedTuple):
    """A row of the paper's ablation.

    ``variant``       the name of the run that it is, as :func:`fanet_lightning.cli.config.run_name` makes it.
    ``protocols``  at which it may be scored, the first that is there counts; empty: the run's own.
    ``percent``    AP in per cent, easy / medium / hard.
    """

    label: str
    variant: str
    protocols: tuple[str, ...]
    percent: tuple[float, float, float]
    source: str

    def ap_percent(self, setting: str) -> float:
        return self.percent[SETTINGS.index(setting)]


FINAL = "level3_context_hl"
ROWS = (
    PaperRow("1-level (S3FD)", "level1", (), (94.5, 92.9, 82.8), "Tables 1, 2"),
    PaperRow("S3FD + FPN", "s3fd_fpn", (), (94.3, 93.1, 83.8), "Table 1"),
    PaperRow("2-level", "level2", (), (94.8, 93.6, 84.4), "Table 2"),
    PaperRow("2-level + HL", "level2_hl", (), (94.8, 93.6, 85.3), "Tables 1, 2"),
    PaperRow("3-level", "level3", (), (94.7, 93.3, 84.8), "Table 2"),
    PaperRow("3-level + HL", "level3_hl", (), (94.8, 93.6, 85.7), "Table 2"),
    PaperRow("3-level + HL + context", FINAL, (), (95.0, 93.9, 86.7), "Table 2"),
    PaperRow("… at short768", FINAL, ("short768",), (94.8, 93.6, 88.4), "Table 2"),
    PaperRow("… multi-scale", FINAL, ("multiscale", "multiscale_quick"), (95.6, 94.7, 89.5), "Tables 2, 3"),
)
# The trainings behind the rows, in the paper's order.
VARIANTS = tuple(dict.fromkeys(row.variant for row in ROWS))
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


# What makes a variant; everything else has to agree within a table.
SWITCHES = frozenset({"level", "context", "hl", "seed", "model.name", "model.level", "model.context", "model.hl"})


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of the same recipe, data and protocol, by variant in the paper's order and then by seed.

    ``left_out``: (run, why) of those that another run of the same variant and seed stands for.
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

    def of_variant(self, variant: str) -> list[Run]:
        return [run for run in self.runs if run.variant == variant]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(run.variant for run in self.runs))

    @property
    def data_label(self) -> str:
        """The data in words, in the singular case that compares with the paper as in all others."""
        count = "" if self.images is None else f", {self.images:,} images"
        if self.data == "synthetic":
            return f"synthetic faces{count}"
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
            return "Synthetic faces: this says nothing about the paper's numbers, at most about the order of its rows."
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
    return sorted(groups, key=lambda group: (-len(set(group.variants) & set(VARIANTS)), -len(group.runs)))


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
        key = (run.variant, run.record.seed)
        if key in chosen:
            left_out.append((run, f"{run.title} is there twice; the table reads {chosen[key].folder}"))
        else:
            chosen[key] = run
    order = {variant: number for number, variant in enumerate(VARIANTS)}
    kept = sorted(chosen.values(), key=lambda run: (order.get(run.variant, len(order)), run.variant, run.record.seed))
    return Group(kept, left_out)


def _at(settings: Mapping[str, Any], dotted: str) -> Any:
    node: Any = settings
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
