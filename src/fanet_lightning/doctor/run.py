"""The doctor: a data set examined, what was found written, a fixed copy made."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable
from fanet_lightning.cli.main import check_whole
from fanet_lightning.cli.provenance import made_by
from fanet_lightning.data.records import Inventory
from fanet_lightning.data.sources import build_source
from fanet_lightning.data.transforms import build_augment
from fanet_lightning.doctor.coverage import Coverage, SizedImage, coverage, whole_images
from fanet_lightning.doctor.examine import Examined, examine
from fanet_lightning.doctor.fix import CleanedCopy, check_copy_folder, write_cleaned_copy
from fanet_lightning.doctor.outputs import CSV_FILE, JSON_FILE, check_out, print_report, write_findings, write_summary
from fanet_lightning.doctor.page import check_page_folder, write_page

CLEANED, PAGE = "cleaned", "page"
# What a person has to see to believe is not compared beyond this: pairs of strangers begin at 12 bits.
MAX_NEAR_BITS = 16
# Characters a line where the output is no terminal.
WIDTH_OF_FILES = 160


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
    check_writable(out)
    check_out(out)
    inventories = inventories_of(data)
    if config.page:
        check_page_folder(out / PAGE, [inventory.folder for inventory in inventories])
    if config.fix:
        check_copy_folder(out / CLEANED, inventories)
    examined = examine(
        inventories,
        title=f"{data['name']} {data.get('root') or ''}".strip(),
        decode=config.images,
        near_bits=config.near_bits,
        workers=config.workers,
    )
    print_report(Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES), examined.report, inventories)
    copy = write_cleaned_copy(out / CLEANED, examined) if config.fix else None
    write_findings(out / CSV_FILE, examined.report)
    origin = made_by(["python", "-m", "fanet_lightning.doctor", *argv])
    write_summary(out / JSON_FILE, examined.report, inventories, origin, level="images" if config.images else "headers")
    if config.page:
        parts = {inventory.part: sized_images(inventory, examined) for inventory in inventories}
        coverages = coverages_of(config, parts) if config.coverage else []
        write_page(out / PAGE, examined.report, parts=parts, coverages=coverages, worst=config.worst)
    return examined, copy
