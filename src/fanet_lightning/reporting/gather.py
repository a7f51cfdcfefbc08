"""Run folders as they lie on the disk: finished, half-finished and broken ones."""

import csv
import datetime
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.errors import InputError
from fanet_lightning.run_record import LOG_FILE, RECORD_FILE, RunRecord, read_record, state_now

if TYPE_CHECKING:
    from fanet_lightning.scoring.curves import Curve
    from fanet_lightning.scoring.per_image import ImageCounts

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
        """``name``, which for one of the paper's rows is a key of :mod:`paper_table`."""
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

    from fanet_lightning.scoring.curves import Curve, average_precision

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
    from fanet_lightning.scoring.per_image import curve_from_counts, read_counts

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
