"""What a scoring leaves behind: ``scores.json``, the curves beside it, and a table for the eye."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced
from fanet_lightning.scoring.bootstrap import Interval
from fanet_lightning.scoring.curves import Curve
from fanet_lightning.scoring.per_image import PER_IMAGE_FILE, ImageCounts, write_counts

SCORES_FILE = "scores.json"
CURVES_FILE = "pr_curves.npz"


def made_by(
    command: Sequence[str],
    *,
    checkpoint: str | None = None,
    packages: Sequence[str] = ("fanet-lightning", "numpy", "scipy"),
) -> dict[str, Any]:
    """Where a number comes from: the command line, versions (null when not installed), commit, checkpoint."""
    return {
        "command": list(command),
        "packages": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "checkpoint": checkpoint,
    }


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, ``-dirty`` after local changes; None for an installed one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def prepare_out(out: Path) -> None:
    """Make the folder ``out`` before the work starts, so that a mistaken path costs no time.

    Raises:
        InputError: it cannot be made or written into.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "no permission to write", str(out))
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror}); give a folder of your own") from error


def write_results(
    out: Path,
    *,
    benchmark: str,
    protocol: str | None,
    curves: Mapping[str, Curve],
    images: int,
    made_by: Mapping[str, Any],
    per_image: Mapping[str, ImageCounts] | None = None,
    intervals: Mapping[str, Interval] | None = None,
    intervals_method: str | None = None,
    against: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``pr_curves.npz``, ``per_image.npz`` and then ``scores.json`` into ``out``, each by rename.

    An AP or interval that is not defined (no face counts) is null.

    Args:
        out: folder, made if need be.
        benchmark: by name.
        protocol: the test scale by name, None for predictions made elsewhere.
        curves: per setting; written as float64 arrays ``<setting>_precision``, ``…_recall``, ``…_thresholds``.
        images: how many were scored.
        made_by: see :func:`made_by`.
        per_image: counts per setting, for intervals and paired comparisons later. Without them a ``per_image.npz`` that
            another scoring left in ``out`` is removed: it would not belong to these scores.
        intervals: per setting, become [low, high].
        intervals_method: how they came about, :func:`fanet_lightning.scoring.bootstrap.method`.
        against: what :func:`comparison` made.

    Returns:
        What ``scores.json`` holds.

    Raises:
        InputError: ``out`` cannot be written.
    """
    scores = {
        "benchmark": benchmark,
        "protocol": protocol,
        "images": images,
        "faces": {setting: curve.faces for setting, curve in curves.items()},
        "ap": {setting: _defined(curve.ap) for setting, curve in curves.items()},
        "intervals": {setting: _bounds(interval) for setting, interval in (intervals or {}).items()},
        "intervals_method": intervals_method if intervals else None,
        "made_by": dict(made_by),
    }
    if against is not None:
        scores["against"] = dict(against)
    prepare_out(out)
    arrays: dict[str, Any] = {
        f"{setting}_{name}": np.asarray(getattr(curve, name))
        for setting, curve in curves.items()
        for name in ("precision", "recall", "thresholds")
    }
    text = json.dumps(scores, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with replaced(out / CURVES_FILE) as path:
            np.savez_compressed(path, **arrays)
        if per_image:
            write_counts(out / PER_IMAGE_FILE, per_image)
        else:
            (out / PER_IMAGE_FILE).unlink(missing_ok=True)
        with replaced(out / SCORES_FILE) as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror}); free it or give another folder") from error
    return scores


def comparison(name: str, curves: Mapping[str, Curve], differences: Mapping[str, Interval]) -> dict[str, Any]:
    """What ``scores.json`` holds about the run that another is compared with.

    Args:
        name: of the other predictions.
        curves: of the other predictions, per setting.
        differences: paired AP(scored) - AP(other), :func:`fanet_lightning.scoring.bootstrap.bootstrap_difference`.
    """
    return {
        "predictions": name,
        "ap": {setting: _defined(curve.ap) for setting, curve in curves.items()},
        "difference": {setting: _defined(difference.value) for setting, difference in differences.items()},
        "intervals": {setting: _bounds(difference) for setting, difference in differences.items()},
    }


def print_table(
    title: str,
    curves: Mapping[str, Curve],
    intervals: Mapping[str, Interval] | None = None,
    file: TextIO | None = None,
) -> None:
    """Setting, faces, AP and its interval, one line each: drawn with rich on a terminal, plain columns elsewhere."""
    head = ["setting", "faces", "AP", *(["95 % interval"] if intervals else [])]
    rows = []
    for setting, curve in curves.items():
        row = [setting, f"{curve.faces:,}", "no face" if math.isnan(curve.ap) else f"{curve.ap:.6f}"]
        rows.append([*row, _interval_text(intervals[setting])] if intervals else row)
    _print_rows(title, head, rows, file or sys.stdout)


def print_difference(
    title: str, curves: Mapping[str, Curve], differences: Mapping[str, Interval], file: TextIO | None = None
) -> None:
    """Setting, AP of the other run (``curves``), the difference to it and the paired interval, one line each."""
    rows = [
        [
            setting,
            "no face" if math.isnan(curves[setting].ap) else f"{curves[setting].ap:.6f}",
            "–" if math.isnan(difference.value) else f"{difference.value:+.6f}",
            _interval_text(difference, sign="+"),
        ]
        for setting, difference in differences.items()
    ]
    _print_rows(title, ["setting", "other AP", "difference", "95 % interval"], rows, file or sys.stdout)


def _print_rows(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], file: TextIO) -> None:
    if file.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        Console(file=file).print(table)
        return
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    print(title, file=file)
    for row in [head, *rows]:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]), file=file)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _bounds(interval: Interval) -> list[float] | None:
    return None if math.isnan(interval.low) else [interval.low, interval.high]


def _interval_text(interval: Interval, sign: str = "") -> str:
    return "–" if math.isnan(interval.low) else f"{interval.low:{sign}.4f} … {interval.high:{sign}.4f}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
