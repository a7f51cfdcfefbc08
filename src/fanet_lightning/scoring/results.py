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
from fanet_lightning.scoring.curves import Curve

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
    intervals: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``pr_curves.npz`` and then ``scores.json`` into ``out``, each by rename; return what ``scores.json`` holds.

    ``protocol`` is the test scale by name, None for predictions made elsewhere. An AP that is not defined (no face
    counts) is null. The curves are float64 arrays ``<setting>_precision``, ``…_recall``, ``…_thresholds``.

    Raises:
        InputError: ``out`` cannot be written.
    """
    scores = {
        "benchmark": benchmark,
        "protocol": protocol,
        "images": images,
        "faces": {setting: curve.faces for setting, curve in curves.items()},
        "ap": {setting: None if math.isnan(curve.ap) else curve.ap for setting, curve in curves.items()},
        "intervals": dict(intervals or {}),
        "made_by": dict(made_by),
    }
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
        with replaced(out / SCORES_FILE) as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror}); free it or give another folder") from error
    return scores


def print_table(title: str, curves: Mapping[str, Curve], file: TextIO | None = None) -> None:
    """Setting, faces and AP, one line each: drawn with rich on a terminal, plain columns anywhere else."""
    file = file or sys.stdout
    rows = [
        (setting, f"{curve.faces:,}", "no face" if math.isnan(curve.ap) else f"{curve.ap:.6f}")
        for setting, curve in curves.items()
    ]
    head = ("setting", "faces", "AP")
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
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(3)]
    print(title, file=file)
    for row in [head, *rows]:
        print("  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2])]), file=file)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
