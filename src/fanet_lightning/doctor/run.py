"""The doctor: a data set examined, what was found printed and written, a fixed copy made."""

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError, check_values, counted, is_whole, size_text
from fanet_lightning.cli.files import check_names_free, check_replaceable, check_writable, replaced
from fanet_lightning.cli.main import check_whole
from fanet_lightning.cli.provenance import made_by
from fanet_lightning.data.records import Inventory
from fanet_lightning.data.sources import build_source
from fanet_lightning.data.transforms import build_augment
from fanet_lightning.doctor import fix, page
from fanet_lightning.doctor.checks import BY_NAME, KINDS, SMALL_PIXELS
from fanet_lightning.doctor.coverage import Coverage, SizedImage, coverage, whole_images
from fanet_lightning.doctor.examine import Report, examine

CLEANED, PAGE = "cleaned", "page"
# What a person has to see to believe is not compared beyond this: pairs of strangers begin at 12 bits.
MAX_NEAR_BITS = 16
# Characters a line where the output is no terminal.
WIDTH_OF_FILES = 160
CSV_FILE, JSON_FILE = "findings.csv", "doctor.json"
COLUMNS = ("kind", "severity", "part", "image_id", "path", "detail", "boxes_xyxy", "other_part", "other_path")
_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}


def diagnose(config: DictConfig, out: Path, argv: Sequence[str] = ()) -> Report:
    """Examine the data set of a composed configuration, print and write everything.

    InputError: bad keys, data that cannot be read at all, or ``out`` that cannot be written.
    """
    check_whole(config, workers=0, worst=1, passes=1, input_size=1, seed=0)
    check_values(
        config,
        (f"a whole number from 0 to {MAX_NEAR_BITS}", lambda bits: is_whole(bits, 0) and bits <= MAX_NEAR_BITS,
         "near_bits"),
        ("an overlap above 0 and below 1", lambda iou: 0 < iou < 1, "threshold"),
    )  # fmt: skip
    options = plain(config)
    inventories = inventories_of(options["data"])
    check_out(out, inventories, page_too=config.page, fix_too=config.fix)
    title = f"{options['data']['name']} {options['data'].get('root') or ''}".strip()
    for remark in dict.fromkeys(remark for inventory in inventories for remark in inventory.remarks):
        print(remark)
    report = examine(inventories, title=title, decode=config.images, near_bits=config.near_bits, workers=config.workers)
    print_report(report)
    if config.fix:
        copied, boxes, changes = fix.write_cleaned_copy(out / CLEANED, report)
        print(f"cleaned: {counted(copied, 'image')}, {counted(boxes, 'box')}, {counted(changes, 'change')}; "
              f"read it with data=folder data.format=wider data.root={out / CLEANED}")  # fmt: skip
    write_summary(out / JSON_FILE, report, argv, level="images" if config.images else "headers")
    write_findings(out / CSV_FILE, report)
    if config.page:
        parts = {inventory.part: sized_images(inventory, report) for inventory in inventories}
        # Of the training part, or what there is.
        images, augment = parts.get("train") or next(iter(parts.values())), build_augment(options["augment"])
        found: list[Coverage] = []
        if config.coverage and any(image is not None and len(image.boxes_xyxy) for image in images):
            crops = coverage(images, augment, passes=config.passes, seed=config.seed, threshold=config.threshold)
            found = [crops, whole_images(images, threshold=config.threshold)]
        page.write_page(out / PAGE, report, parts=parts, coverages=found, worst=config.worst)
    return report


def inventories_of(options: dict[str, Any]) -> list[Inventory]:
    """The labels of a ``data`` group of the configuration, as written; InputError: they name no image."""
    source = build_source(**options)
    source.prepare()
    found: list[Inventory] = source.inventories() if hasattr(source, "inventories") else []
    if not any(inventory.images for inventory in found):
        problems = [f": {problem.path} {problem.reason}" for inventory in found for problem in inventory.problems]
        raise InputError(
            f"data={source.name}: no image in labels that the doctor reads{''.join(problems[:1])}; take data=folder, "
            "wider_face or synthetic, and set data.root or data.format"
        )
    return found


def check_out(out: Path, inventories: Sequence[Inventory], *, page_too: bool, fix_too: bool) -> None:
    """Refuse, before any work, an ``out`` with files of something else, among the images or around them (InputError).

    Thumbnails and copies among the images would be taken for some of them, and a copy replaces what it is made of.
    """
    check_writable(out)
    for images in (inventory.folder.resolve() for inventory in inventories):
        among = (page_too or fix_too) and out.resolve().is_relative_to(images)
        if among or (fix_too and images.is_relative_to((out / CLEANED).resolve())):
            raise InputError(f"out={out} would mix with the images in {images}; give another out")
    own = False
    with suppress(OSError, ValueError):
        own = '"healthy"' in (out / JSON_FILE).read_text(encoding="utf-8")
    if not own:
        check_names_free(out, (JSON_FILE, CSV_FILE), "the doctor")
    if page_too:
        check_replaceable(out / PAGE, "the doctor's page", page.OWN)
    if fix_too:
        check_replaceable(out / CLEANED, "a cleaned copy", fix.OWN)


def sized_images(inventory: Inventory, report: Report) -> list[SizedImage | None]:
    """Sizes and faces of a part's images, in its order; None for those that cannot be read."""
    sized: list[SizedImage | None] = []
    for image in inventory.images:
        facts, boxes = report.facts_of(image), image.boxes_xyxy[~image.ignored].astype(np.float32)
        sized.append(None if facts is None else SizedImage(*facts.frame.upright_wh, boxes))
    return sized


def write_findings(path: Path, report: Report) -> None:
    """One row a finding, in the report's order; boxes as ``x1 y1 x2 y2; …``."""
    with replaced(path) as temporary, temporary.open("w", **fix.AS_CSV) as file:
        rows = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        rows.writeheader()
        for own in report.findings:
            boxes = "; ".join(map(fix.box_text, own.boxes_xyxy))
            rows.writerow({**vars(own), "severity": BY_NAME[own.kind].severity, "boxes_xyxy": boxes})


def counts(report: Report) -> dict[str, dict[str, int]]:
    """Of each kind that was found, most severe first: ``findings``, those in ``train`` and ``val``, ``boxes``."""
    return {
        kind.name: {
            "findings": len(found), "train": (of_train := sum(own.part == "train" for own in found)),
            "val": len(found) - of_train, "boxes": sum(len(own.boxes_xyxy) for own in found),
        }
        for kind in KINDS if (found := report.of_kind(kind.name))
    }  # fmt: skip


def write_summary(path: Path, report: Report, argv: Sequence[str], level: str) -> None:
    """``doctor.json``: ``healthy``, counts by kind, facts and face sizes of each part."""
    content = {
        "title": report.title,
        "healthy": not report.errors,
        "level": level,
        "seconds": round(report.seconds, 3),
        "kinds": {
            name: {"severity": BY_NAME[name].severity, "mended_by_fix": BY_NAME[name].fixable, **row}
            for name, row in counts(report).items()
        },
        "parts": report.facts,
        "made_by": made_by(["python", "-m", "fanet_lightning.doctor", *argv]),
    }
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def print_report(report: Report) -> None:
    """Facts of the parts, and one row a kind with its first example, the worst first."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    for part, facts in report.facts.items():
        sizes = facts["face_sizes"]
        console.print(
            f"{part}: {counted(facts['images'], 'image')} ({size_text(facts['bytes'])}), "
            f"{counted(facts['faces'], 'face')}, {facts['ignored_faces']:,} ignored, "
            f"{counted(facts['images_without_faces'], 'image')} without a face; "
            f"{sizes['below_8_px'] / (sizes['faces'] or 1):.1%} of the faces below {SMALL_PIXELS:.0f} pixels",
            highlight=False,
        )
    table = Table("kind", "severity", "train", "val", "boxes", "for example", box=None, pad_edge=False)
    for name, row in counts(report).items():
        example, severity = report.of_kind(name)[0], BY_NAME[name].severity
        table.add_row(
            name, f"[{_COLORS[severity]}]{severity}[/]", f"{row['train']:,}", f"{row['val']:,}",
            f"{row['boxes']:,}" if row["boxes"] else "",
            escape(f"{example.image_id or example.path}: {example.detail}"),
        )  # fmt: skip
    if table.row_count:
        console.print(table)
