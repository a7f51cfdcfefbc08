"""The ablation report: runs, groups, intervals, tables, figures, speed.

Two kinds of uncertainty, kept apart: other images of the same kind, and the same model trained with another seed.

Over images: paired bootstrap of the trained networks as they are (:mod:`fanet_lightning.score.bootstrap`). Over
seeds: the standard deviation between runs, and for a difference the t interval of its mean over the seeds that both
sides have. Neither is ever added to the other.

What the paper reports for the ablation, and the steps it argues with: data, with the place each number stands at.

Zhang, Wu, Zhu, Hoi: Feature Agglomeration Networks for Single Stage Face Detection, arXiv 1712.00721 v2: Table 1 (S3FD,
S3FD + FPN, 2-level + HL), Table 2 (all others; it repeats 1-level and 2-level + HL).
"""

import csv
import datetime
import math
import os
import statistics
import string
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import LOG_FILE, RECORD_FILE, RunRecord, differing_settings, read_record, state_now
from fanet_lightning.report.figures import STYLE
from fanet_lightning.score.bootstrap import CONFIDENCE, Interval, bootstrap_ap, method
from fanet_lightning.score.wider_face.ground_truth import SETTINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from fanet_lightning.score.bootstrap import ImageCounts
    from fanet_lightning.score.curves import Curve


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
    curves: "dict[str, Curve]"
    counts: "dict[str, ImageCounts]"


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
    def cell(self) -> str:
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
        InputError: ``root`` is no folder, or holds no ``run.json``.
    """
    if not root.is_dir():
        raise InputError(f"runs={root} is not a folder; give the folder of a sweep or of a run")
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
            broken.append((folder, _line(error)))
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
    for key, kind in wanted.items():
        value = getattr(record, key)
        if not isinstance(value, kind):
            raise InputError(f"{folder / RECORD_FILE}: {key} is {value!r:.60}, not a {kind.__name__}")
    for key in ("model", "data", "protocol", "trainer"):
        if not isinstance(record.settings.get(key, {}), Mapping):
            raise InputError(f"{folder / RECORD_FILE}: settings.{key} is not a mapping")


def _read_run(folder: Path, record: RunRecord) -> Run:
    problems: list[str] = []
    evaluations = {}
    for protocol, score in record.scores.items():
        evaluation = _read_evaluation(folder, protocol, score, problems)
        if evaluation is not None:
            evaluations[protocol] = evaluation
    written = datetime.datetime.fromtimestamp((folder / RECORD_FILE).stat().st_mtime).astimezone()
    return Run(folder, record, written, evaluations, _read_learning(folder / METRICS_FILE, problems), problems)


def _read_evaluation(folder: Path, protocol: str, score: Any, problems: list[str]) -> Evaluation | None:
    if not isinstance(score, Mapping) or not isinstance(score.get("ap"), Mapping):
        problems.append(f"{folder / RECORD_FILE}: the scores under {protocol} cannot be read")
        return None
    ap = {str(setting): float(v) for setting, v in score["ap"].items() if _is_number(v)}
    part = folder / str(score.get("folder", "evaluation"))
    curves = _read_curves(part / "pr_curves.npz", ap, problems)
    counts = _read_counts(part / "per_image.npz", ap, problems)
    images = score.get("images")
    return Evaluation(protocol, ap, images if isinstance(images, int) else None, curves, counts)


def _read_curves(path: Path, ap: Mapping[str, float], problems: list[str]) -> "dict[str, Curve]":
    import numpy as np

    from fanet_lightning.score.curves import Curve, average_precision

    if not path.is_file():
        problems.append(f"{path} is missing: no precision-recall curve")
        return {}
    curves = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for setting, value in ap.items():
                precision, recall, thresholds = (
                    np.asarray(arrays[f"{setting}_{name}"], np.float64)
                    for name in ("precision", "recall", "thresholds")
                )
                if abs(average_precision(precision, recall) - value) > SAME_AP:
                    problems.append(f"{path} is about other predictions than {RECORD_FILE}: not drawn")
                    return {}
                # The number of faces is not kept beside the curve, and nothing here reads it.
                curves[setting] = Curve(precision, recall, thresholds, value, 0)
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged archive
        problems.append(f"{path} cannot be read ({_line(error)}): no precision-recall curve")
        return {}
    return curves


def _read_counts(path: Path, ap: Mapping[str, float], problems: list[str]) -> "dict[str, ImageCounts]":
    from fanet_lightning.score.bootstrap import curve_from_counts, read_counts

    if not path.is_file():
        problems.append(f"{path} is missing: no interval over images")
        return {}
    try:
        counts = {setting: own for setting, own in read_counts(path).items() if setting in ap}
    except InputError as error:
        problems.append(f"{_line(error)}: no interval over images")
        return {}
    if set(counts) != set(ap) or any(abs(curve_from_counts(counts[s]).ap - ap[s]) > SAME_AP for s in ap):
        problems.append(f"{path} is about other predictions than {RECORD_FILE}: no interval over images")
        return {}
    return counts


def _read_learning(path: Path, problems: list[str]) -> list[tuple[int, dict[str, float]]]:
    if not path.is_file():
        problems.append(f"{path} is missing: no learning curve")
        return []
    points: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                ap = {key.removeprefix("val/ap_"): float(text) for key, text in row.items()
                      if isinstance(key, str) and key.startswith("val/ap_") and text}  # fmt: skip
                if ap and row.get("epoch"):
                    # Logged with the epoch's index; a run that went on may have logged an epoch twice, the last counts.
                    points[int(float(row["epoch"])) + 1] = ap
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        problems.append(f"{path} cannot be read ({_line(error)}): no learning curve beyond it")
    return sorted(points.items())


def sweep_command(root: Path) -> str | None:
    """The command that starts, or goes on with, the sweep in ``root``; None where no sweep lies."""
    import shlex

    import yaml

    try:
        hydra = yaml.safe_load((root / SWEEP_FILE).read_text(encoding="utf-8"))["hydra"]
        words = [str(word) for word in hydra["overrides"]["task"]]
        # Hydra itself adds what tells the folders of cells apart.
        words += [word for word in hydra["overrides"]["hydra"] if not str(word).startswith("hydra.job.config")]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    return shlex.join(["python", "-m", "fanet_lightning.train", *words])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


Evaluations = Mapping[int, Evaluation]  # seed → how its run did


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


class Resampler:
    """Bootstrap over images, each evaluation resampled once, the same images for all.

    Args:
        samples: resamples; 0: no interval.
        seed: of the draw.
    """

    def __init__(self, samples: int, seed: int = 0) -> None:
        self.samples, self._seed = samples, seed
        self._known: dict[int, dict[str, Interval]] = {}
        self._alive: list[Evaluation] = []  # an id stays taken as long as its object lives

    def ap(self, evaluations: Evaluations, setting: str) -> Estimate | None:
        """AP over the seeds of one cell; None where no seed has that setting."""
        per_seed = {seed: own.ap[setting] for seed, own in sorted(evaluations.items()) if setting in own.ap}
        if not per_seed:
            return None
        return self._estimate(per_seed, [(1.0, evaluations[seed]) for seed in per_seed], setting)

    def difference(self, after: Evaluations, before: Evaluations, setting: str) -> Estimate | None:
        """AP(after) - AP(before) over the seeds that both sides have; None where they share none."""
        shared = [
            seed
            for seed in sorted(set(after) & set(before))
            if setting in after[seed].ap and setting in before[seed].ap
        ]
        if not shared:
            return None
        per_seed = {seed: after[seed].ap[setting] - before[seed].ap[setting] for seed in shared}
        sides = [(1.0, after[seed]) for seed in shared] + [(-1.0, before[seed]) for seed in shared]
        return self._estimate(per_seed, sides, setting)

    def _estimate(
        self, per_seed: dict[int, float], sides: Sequence[tuple[float, Evaluation]], setting: str
    ) -> Estimate:
        values = np.array(list(per_seed.values()))
        over_images, missing = None, self._why_not([own for _, own in sides], setting)
        if missing is None:
            drawn = [sign * self._samples(own, setting) for sign, own in sides]
            over_images = _percentiles(np.sum(drawn, axis=0) / len(per_seed))
            missing = None if over_images else "no face counts"
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return Estimate(float(values.mean()), per_seed, over_images, sd, _t_interval(values), missing)

    def _samples(self, evaluation: Evaluation, setting: str) -> npt.NDArray[np.float64]:
        if id(evaluation) not in self._known:
            self._known[id(evaluation)] = bootstrap_ap(evaluation.counts, self.samples, self._seed)
            self._alive.append(evaluation)
        return self._known[id(evaluation)][setting].samples

    def _why_not(self, evaluations: Sequence[Evaluation], setting: str) -> str | None:
        if self.samples == 0:
            return "switched off"
        counts = [own.counts.get(setting) for own in evaluations]
        present = [own for own in counts if own is not None]
        if len(present) < len(counts):
            return "no counts per image"
        if not all(_same_images(present[0], own) for own in present[1:]):
            return "scored on different images"
        return None if present[0].image_ids else "no image"


def _same_images(a: "ImageCounts", b: "ImageCounts") -> bool:
    return a.image_ids == b.image_ids and np.array_equal(a.faces, b.faces)


def _percentiles(samples: npt.NDArray[np.float64]) -> Bounds | None:
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return None
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [outside, 1 - outside])
    return Bounds(float(low), float(high))


def _t_interval(values: npt.NDArray[np.float64]) -> Bounds | None:
    """Student's interval of the mean of (n,) values, n ≥ 2."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

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


def by_seed(runs: Sequence[Run], protocol: str) -> dict[int, Evaluation]:
    """Seed → evaluation under a protocol, of those runs that have one."""
    return {run.record.seed: run.evaluations[protocol] for run in runs if protocol in run.evaluations}


PAPER_PROTOCOL = "short640"
PAPER_IMAGES = 3226
SOURCE = "arXiv 1712.00721 v2, Tables 1 and 2: WIDER FACE val, 3,226 images, single scale, shorter side 640"
# Appendix, section 7: GTX 1080 Ti, CuDNN v6, shorter side 640.
PAPER_SPEED = "2-level 45.4 images/s, S3FD + FPN 45.9 images/s on a GTX 1080 Ti, shorter side 640 (appendix, figure 7)"


class PaperRow(NamedTuple):
    """A row of the paper's ablation.

    ``cell``       the name of the run that it is, as :func:`fanet_lightning.cli.config.run_name` makes it.
    ``protocols``  at which it may be scored, the first that is there counts; empty: the run's own.
    ``percent``    AP in per cent, easy / medium / hard.
    """

    label: str
    cell: str
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
CELLS = tuple(dict.fromkeys(row.cell for row in ROWS))
LABELS = {row.cell: row.label for row in ROWS if not row.protocols}


class Step(NamedTuple):
    """One comparison that the paper makes: ``after`` against ``before``, both names of cells."""

    claim: str
    after: str
    before: str

    @property
    def label(self) -> str:
        return f"{LABELS[self.after]} − {LABELS[self.before]}"

    def difference_percent(self, setting: str) -> float:
        """The paper's difference in points of AP."""
        values = {row.cell: row.ap_percent(setting) for row in ROWS if not row.protocols}
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
    import torch

    from fanet_lightning.cli.device import device_name, resolve_device
    from fanet_lightning.models.fanet import build_network, flops, inference_parameters

    device = resolve_device(device)
    image = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8).to(device)
    known = {} if known is None else known
    identities = {name: repr(sorted(settings.items())) for name, settings in models.items()}
    networks, counted, refused = {}, {}, {}
    for name, settings in models.items():
        identity = identities[name]
        if identity in known or identity in counted:
            continue
        try:
            network = build_network(**settings).eval()
        except (InputError, TypeError, ValueError, RuntimeError) as error:  # settings of a run that failed for them
            refused[name] = " ".join(str(error).split())
            continue
        counted[identity] = Cost(inference_parameters(network), flops(network, HEIGHT, WIDTH))
        networks[identity] = network.to(device).to(memory_format=torch.channels_last)
    seconds = _timed(networks, image.to(memory_format=torch.channels_last), passes) if passes else {}
    for identity, cost in counted.items():
        known[identity] = replace(cost, **_summary(seconds[identity])) if passes else cost
    costs = {name: known[identity] for name, identity in identities.items() if identity in known}
    return costs, Timing(passes, device_name(device), refused)


def _timed(networks: "Mapping[str, nn.Module]", image: "Tensor", passes: int) -> dict[str, list[float]]:
    """Seconds of each timed pass, the networks taking turns."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in networks}
    visible = sys.stderr.isatty()
    with torch.inference_mode():
        for number in range(WARM_PASSES + passes):
            for name, network in networks.items():
                _wait(image)
                start = time.perf_counter()
                network(image)
                _wait(image)
                if number >= WARM_PASSES:
                    seconds[name].append(time.perf_counter() - start)
            if visible:
                end = "\n" if number + 1 == WARM_PASSES + passes else ""
                print(f"\rtiming networks, pass {number + 1}/{WARM_PASSES + passes} ", end=end, file=sys.stderr)
    return seconds


def _wait(image: "Tensor") -> None:
    if image.is_cuda:
        import torch

        torch.cuda.synchronize(image.device)


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    if len(seconds) == 1:
        return {"seconds": seconds[0], "quartiles": (seconds[0], seconds[0])}
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"seconds": middle, "quartiles": (low, high)}


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
    rows: list[Row]
    steps: list[StepResult]
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
    grouped = group_runs(found.runs)
    parts = []
    known: dict[str, Cost] = {}
    for number, group in enumerate(grouped):
        resampler = Resampler(bootstrap)
        rows, paper_steps = ablation_rows(group, resampler), steps(group, resampler)
        # The hierarchical loss adds heads that detection does not run: with and without it the network is the same.
        models = {run.cell: {**run.record.settings.get("model", {})} | {"hl": False} for run in group.runs}
        costs, timing = network_costs(models, speed_passes, device, known)
        drawn = {
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
        blocks.append(markdown_table(part.rows).rstrip())
        blocks.append("The paper's steps, in points of AP:")
        blocks.append(markdown_steps(part.steps).rstrip())
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
