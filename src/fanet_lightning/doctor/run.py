"""The doctor: a data set examined, what was found printed and written, a fixed copy made."""

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError, size_text
from fanet_lightning.cli.files import check_names_free, check_writable, replaced
from fanet_lightning.cli.main import check_whole
from fanet_lightning.cli.provenance import made_by
from fanet_lightning.data.records import Inventory
from fanet_lightning.data.sources import build_source
from fanet_lightning.data.transforms import build_augment
from fanet_lightning.doctor.checks import BY_NAME, SMALL_PIXELS, TINY_PIXELS, Finding, Report
from fanet_lightning.doctor.coverage import Coverage, SizedImage, coverage, whole_images
from fanet_lightning.doctor.examine import Examined, examine
from fanet_lightning.doctor.fix import CleanedCopy, check_copy_folder, write_cleaned_copy
from fanet_lightning.doctor.page import check_page_folder, write_page

CLEANED, PAGE = "cleaned", "page"
# What a person has to see to believe is not compared beyond this: pairs of strangers begin at 12 bits.
MAX_NEAR_BITS = 16
# Characters a line where the output is no terminal.
WIDTH_OF_FILES = 160
CSV_FILE, JSON_FILE = "findings.csv", "doctor.json"
COLUMNS = ("kind", "severity", "part", "image_id", "path", "detail", "boxes_xyxy", "other_part", "other_path")
_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}


def diagnose(config: DictConfig, out: Path, argv: Sequence[str] = ()) -> tuple[Examined, CleanedCopy | None]:
    """Examine the data set of a composed configuration, print and write everything.

    Returns:
        What was found, and the fixed copy where ``fix`` asks for one.

    Raises:
        InputError: bad keys, data that cannot be read at all, or ``out`` that cannot be written.
    """
    check_whole(config, near_bits=0, workers=0, worst=1, passes=1, input_size=1, seed=0)
    if config.near_bits > MAX_NEAR_BITS:
        raise InputError(f"near_bits={config.near_bits}: above {MAX_NEAR_BITS} most pairs are strangers; give less")
    if not 0 < config.threshold < 1:
        raise InputError(f"threshold={config.threshold} is no overlap between 0 and 1")
    data = plain(config)["data"]
    inventories = inventories_of(data)
    check_out(out, inventories, page=config.page, fix=config.fix)
    title = f"{data['name']} {data.get('root') or ''}".strip()
    examined = examine(
        inventories, title=title, decode=config.images, near_bits=config.near_bits, workers=config.workers
    )
    report = examined.report
    print_report(Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES), report, inventories)
    copy = write_cleaned_copy(out / CLEANED, examined) if config.fix else None
    origin = made_by(["python", "-m", "fanet_lightning.doctor", *argv])
    write_summary(out / JSON_FILE, report, inventories, origin, level="images" if config.images else "headers")
    write_findings(out / CSV_FILE, report)
    if config.page:
        parts = {inventory.part: sized_images(inventory, examined) for inventory in inventories}
        coverages = coverages_of(config, parts) if config.coverage else []
        write_page(out / PAGE, report, parts=parts, coverages=coverages, worst=config.worst)
    return examined, copy


def inventories_of(options: dict[str, Any]) -> list[Inventory]:
    """The labels of a ``data`` group of the configuration, as written.

    Raises:
        InputError: an unknown source, one that the doctor cannot read, or nothing to read.
    """
    source = build_source(**options)
    source.prepare()
    if not hasattr(source, "inventories"):
        raise InputError(f"data={source.name}: the doctor cannot read it; take wider_face, folder or synthetic")
    found: list[Inventory] = source.inventories()
    if not any(inventory.images for inventory in found):
        problem = next((problem for inventory in found for problem in inventory.problems), None)
        reason = f": {problem.path} {problem.reason}" if problem is not None else ""
        raise InputError(f"data={source.name}: the labels name no image{reason}; set data.root or data.format")
    return found


def check_out(out: Path, inventories: Sequence[Inventory], *, page: bool, fix: bool) -> None:
    """Refuse, before any work, an ``out`` with files of something else, among the images or around them.

    Thumbnails and copies among the images would be taken for some of them, and a copy replaces what it is made of.

    Raises:
        InputError: names the file or folder in the way.
    """
    check_writable(out)
    for images in (inventory.folder.resolve() for inventory in inventories):
        among = (page or fix) and out.resolve().is_relative_to(images)
        if among or (fix and images.is_relative_to((out / CLEANED).resolve())):
            raise InputError(f"out={out} would mix with the images in {images}; give another out")
    own = False
    with suppress(OSError, ValueError):
        own = '"healthy"' in (out / JSON_FILE).read_text(encoding="utf-8")
    if not own:
        check_names_free(out, (JSON_FILE, CSV_FILE), "the doctor")
    if page:
        check_page_folder(out / PAGE)
    if fix:
        check_copy_folder(out / CLEANED)


def sized_images(inventory: Inventory, examined: Examined) -> list[SizedImage | None]:
    """Sizes and usable faces of a part's images, in its order; None for those that cannot be read."""
    sized: list[SizedImage | None] = []
    for image in inventory.images:
        facts = examined.facts_of(image)
        boxes = image.boxes_xyxy[~image.ignored]
        usable = boxes[np.isfinite(boxes).all(axis=1)].astype(np.float32)
        usable = usable[(usable[:, 2:] > usable[:, :2]).all(axis=1)]
        sized.append(None if facts is None else SizedImage(*facts.frame.upright_wh, usable))
    return sized


def coverages_of(config: DictConfig, parts: dict[str, list[SizedImage | None]]) -> list[Coverage]:
    """Anchor coverage of the training crops, and of whole images, of the training part or what there is."""
    images = parts.get("train") or next(iter(parts.values()))
    if not any(image is not None and len(image.boxes_xyxy) for image in images):
        return []
    augment = build_augment(plain(config)["augment"])
    threshold = float(config.threshold)
    return [
        coverage(images, augment, passes=config.passes, seed=config.seed, threshold=threshold),
        whole_images(images, threshold=threshold),
    ]


def write_findings(path: Path, report: Report) -> None:
    """One row a finding, in the report's order; boxes as ``x1 y1 x2 y2; …``."""
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for own in report.findings:
            boxes = "; ".join(" ".join(f"{value:.10g}" for value in box) for box in own.boxes_xyxy)
            rows.writerow([own.kind, BY_NAME[own.kind].severity, own.part, own.image_id, _text(own.path), own.detail,
                           boxes, own.other_part or "", _text(own.other_path)])  # fmt: skip


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
    """Sizes of a part's usable faces, root of the area in pixels of the image: quantiles and counts of small ones.

    ``below_1_px`` is by the shorter side, since such a face has no pixel; ``below_8_px`` by the size.
    """
    boxes = np.concatenate([np.zeros((0, 4)), *(image.boxes_xyxy[~image.ignored] for image in inventory.images)])
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = sides[(sides > 0).all(axis=1)]
    sizes = np.sqrt(sides.prod(axis=1))
    p05, median, p95 = np.quantile(sizes, [0.05, 0.5, 0.95]).tolist() if len(sizes) else (None, None, None)
    return {
        "faces": len(sizes),
        "median": median,
        "p05": p05,
        "p95": p95,
        "below_1_px": int((sides.min(axis=1, initial=np.inf) < TINY_PIXELS).sum()),
        "below_8_px": int((sizes < SMALL_PIXELS).sum()),
    }


def write_summary(
    path: Path, report: Report, inventories: Sequence[Inventory], origin: dict[str, Any], level: str
) -> None:
    """``doctor.json``: ``healthy``, counts by kind, facts and face sizes of each part."""
    content = {
        "title": report.title,
        "healthy": not errors_of(report),
        "level": level,
        "seconds": round(report.seconds, 3),
        "kinds": {
            name: {"severity": BY_NAME[name].severity, "mended_by_fix": BY_NAME[name].fixable, **row}
            for name, row in counts(report).items()
        },
        "parts": {
            facts.part: {
                **{name: value for name, value in asdict(facts).items() if name != "part"},
                "face_sizes": face_sizes(inventory),
            }
            for facts, inventory in zip(report.facts, inventories, strict=True)
        },
        "made_by": origin,
    }
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def errors_of(report: Report) -> list[Finding]:
    """The findings of severity ``error``."""
    return [finding for finding in report.findings if BY_NAME[finding.kind].severity == "error"]


def print_report(console: Console, report: Report, inventories: Sequence[Inventory]) -> None:
    """Facts of the parts, and one row a kind with its first example, the worst first."""
    for facts, inventory in zip(report.facts, inventories, strict=True):
        sizes = face_sizes(inventory)
        console.print(
            f"{facts.part}: {facts.images:,} images ({size_text(facts.bytes)}), {facts.faces:,} faces, "
            f"{facts.ignored_faces:,} ignored, {facts.images_without_faces:,} images without a face; "
            f"{(sizes['below_8_px'] or 0) / (sizes['faces'] or 1):.1%} of the faces below {SMALL_PIXELS:.0f} pixels",
            highlight=False,
        )
    table = Table("kind", "severity", "train", "val", "boxes", "for example", box=None, pad_edge=False)
    for name, row in counts(report).items():
        example = report.of_kind(name)[0]
        where = example.image_id or _text(example.path)
        severity = BY_NAME[name].severity
        table.add_row(
            name, f"[{_COLORS[severity]}]{severity}[/]", f"{row['train']:,}", f"{row['val']:,}",
            f"{row['boxes']:,}" if row["boxes"] else "", escape(f"{where}: {example.detail}"),
        )  # fmt: skip
    if table.row_count:
        console.print(table)
