"""What the doctor writes beside the page: ``findings.csv``, ``doctor.json``, and the table in the terminal."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fanet_lightning.cli.errors import size_text
from fanet_lightning.cli.files import check_names_free, replaced
from fanet_lightning.data.records import Inventory
from fanet_lightning.doctor.checks import BY_NAME, SMALL_PIXELS, TINY_PIXELS, Finding, Report

if TYPE_CHECKING:
    from rich.console import Console


CSV_FILE, JSON_FILE = "findings.csv", "doctor.json"
COLUMNS = ("kind", "severity", "part", "image_id", "path", "detail", "boxes_xyxy", "other_part", "other_path")
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def check_out(out: Path) -> None:
    """Refuse, before any work, a folder whose ``findings.csv`` or ``doctor.json`` is not the doctor's.

    Raises:
        InputError: names the file in the way.
    """
    try:
        summary = json.loads((out / JSON_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = None
    if not (isinstance(summary, dict) and {"healthy", "kinds"} <= set(summary)):
        # Of an examination that was cut off there may be the findings alone.
        try:
            with (out / CSV_FILE).open(encoding="utf-8") as file:
                own = file.readline().strip() == ",".join(COLUMNS)
        except (OSError, ValueError):
            own = False
        check_names_free(out, [JSON_FILE] if own else [JSON_FILE, CSV_FILE], "the doctor")


def write_findings(path: Path, report: Report) -> None:
    """One row a finding, in the report's order; boxes as ``x1 y1 x2 y2; …``."""
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for finding in report.findings:
            boxes = "; ".join(" ".join(f"{value:.10g}" for value in box) for box in finding.boxes_xyxy)
            rows.writerow(
                [
                    finding.kind, BY_NAME[finding.kind].severity, finding.part, finding.image_id, _text(finding.path),
                    finding.detail, boxes, finding.other_part or "", _text(finding.other_path),
                ]
            )  # fmt: skip


def _text(path: Path | None) -> str:
    # Names in no valid encoding come as surrogates, which a UTF-8 file cannot hold.
    return "" if path is None else str(path).encode("utf-8", "backslashreplace").decode()


def counts(report: Report) -> dict[str, dict[str, int]]:
    """Of each kind that was found, most severe first: ``findings``, those in ``train`` and ``val``, ``boxes``."""
    table: dict[str, dict[str, int]] = {}
    for finding in report.findings:
        row = table.setdefault(finding.kind, {"findings": 0, "train": 0, "val": 0, "boxes": 0})
        row["findings"] += 1
        row[finding.part] += 1
        row["boxes"] += len(finding.boxes_xyxy)
    return table


def face_sizes(inventory: Inventory) -> dict[str, float | int | None]:
    """Sizes of a part's usable faces, root of the area in pixels of the image: quantiles and shares of small ones.

    ``below_1_px`` is by the shorter side, since such a face has no pixel; ``below_8_px`` by the size.
    """
    boxes = np.concatenate([np.zeros((0, 4)), *(image.boxes_xyxy[~image.ignored] for image in inventory.images)])
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = sides[(sides > 0).all(axis=1)]
    if not len(sides):
        return {"faces": 0, "median": None, "p05": None, "p95": None, "below_1_px": 0, "below_8_px": 0}
    sizes = np.sqrt(sides.prod(axis=1))
    p05, median, p95 = np.quantile(sizes, [0.05, 0.5, 0.95]).tolist()
    return {
        "faces": len(sizes),
        "median": median,
        "p05": p05,
        "p95": p95,
        "below_1_px": int((sides.min(axis=1) < TINY_PIXELS).sum()),
        "below_8_px": int((sizes < SMALL_PIXELS).sum()),
    }


def faces_per_image(inventory: Inventory) -> dict[str, int]:
    """Number of usable faces → images that have so many."""
    number = [int((~image.ignored).sum()) for image in inventory.images]
    values, images = np.unique(np.array(number, dtype=np.int64), return_counts=True)
    return {str(value): count for value, count in zip(values.tolist(), images.tolist(), strict=True)}


def write_summary(
    path: Path, report: Report, inventories: Sequence[Inventory], made_by: dict[str, Any], level: str
) -> None:
    """``doctor.json``: ``healthy``, counts by kind, facts, face sizes and faces per image of each part."""
    content = {
        "title": report.title,
        "healthy": not errors_of(report),
        "level": level,
        "seconds": round(report.seconds, 3),
        "kinds": {
            name: {"severity": BY_NAME[name].severity, "mended_by_fix": BY_NAME[name].mended_by_fix, **row}
            for name, row in counts(report).items()
        },
        "parts": {
            facts.part: {
                "images": facts.images,
                "faces": facts.faces,
                "ignored_faces": facts.ignored_faces,
                "images_without_faces": facts.images_without_faces,
                "bytes": facts.bytes,
                "face_sizes": face_sizes(inventory),
                "faces_per_image": faces_per_image(inventory),
            }
            for facts, inventory in zip(report.facts, inventories, strict=True)
        },
        "made_by": made_by,
    }
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def errors_of(report: Report) -> list[Finding]:
    """The findings of severity ``error``."""
    return [finding for finding in report.findings if BY_NAME[finding.kind].severity == "error"]


def print_report(console: "Console", report: Report, inventories: Sequence[Inventory]) -> None:
    """Facts of the parts, and one row a kind with its first example, the worst first."""
    from rich.markup import escape
    from rich.table import Table

    for facts, inventory in zip(report.facts, inventories, strict=True):
        sizes = face_sizes(inventory)
        console.print(
            f"{facts.part}: {facts.images:,} images ({size_text(facts.bytes)}), {facts.faces:,} faces, "
            f"{facts.ignored_faces:,} ignored, {facts.images_without_faces:,} images without a face; "
            f"{_share(sizes['below_8_px'], sizes['faces'])} of the faces below {SMALL_PIXELS:.0f} pixels",
            highlight=False,
        )
    table = Table("kind", "severity", "train", "val", "boxes", "for example", box=None, pad_edge=False)
    for name, row in counts(report).items():
        example = report.of_kind(name)[0]
        where = example.image_id or _text(example.path)
        severity = BY_NAME[name].severity
        table.add_row(
            name, f"[{_COLOURS[severity]}]{severity}[/]", f"{row['train']:,}", f"{row['val']:,}",
            f"{row['boxes']:,}" if row["boxes"] else "", escape(f"{where}: {example.detail}"),
        )  # fmt: skip
    if table.row_count:
        console.print(table)


def _share(part: float | int | None, whole: float | int | None) -> str:
    return f"{(part or 0) / whole:.1%}" if whole else "none"
