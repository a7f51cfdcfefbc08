"""The doctor: a data set examined, what was found written, a fixed copy made."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fanet_lightning.data.records import Inventory
    from fanet_lightning.doctor.coverage import Coverage, SizedImage
    from fanet_lightning.doctor.examine import Examined
    from fanet_lightning.doctor.fix import CleanedCopy


CLEANED, PAGE = "cleaned", "page"
# What a person has to see to believe is not compared beyond this: pairs of strangers begin at 12 bits.
MAX_NEAR_BITS = 16
# Characters a line where the output is no terminal.
WIDTH_OF_FILES = 160
HEALTHY, ERRORS_FOUND = 0, 1


def inventories_of(options: dict[str, Any]) -> "list[Inventory]":
    """The labels of a ``data`` group of the configuration, as written.

    Raises:
        InputError: an unknown source, one that the doctor cannot read, or nothing to read.
    """
    from fanet_lightning.data.sources import build_source

    source = build_source(**options)
    source.prepare()
    read: Callable[[], list[Inventory]] | None = getattr(source, "inventories", None)
    if read is None:
        raise InputError(f"data={source.name}: the doctor cannot read it; take wider_face, folder or synthetic")
    found = read()
    if not any(inventory.images for inventory in found):
        problem = next((problem for inventory in found for problem in inventory.problems), None)
        reason = f": {problem.path} {problem.reason}" if problem is not None else ""
        raise InputError(f"data={source.name}: the labels name no image{reason}; set data.root or data.format")
    return found


def sized_images(inventory: "Inventory", examined: "Examined") -> "list[SizedImage | None]":
    """Sizes and usable faces of a part's images, in its order; None for those that cannot be read."""
    import numpy as np

    from fanet_lightning.doctor.coverage import SizedImage

    sized: list[SizedImage | None] = []
    for image in inventory.images:
        facts = examined.facts_of(image)
        if facts is None:
            sized.append(None)
            continue
        boxes = image.boxes_xyxy[~image.ignored]
        usable = boxes[np.isfinite(boxes).all(axis=1)].astype(np.float32)
        usable = usable[(usable[:, 2:] > usable[:, :2]).all(axis=1)]
        sized.append(SizedImage(*facts.upright_wh, usable))
    return sized


def coverages_of(config: "DictConfig", parts: "dict[str, list[SizedImage | None]]") -> "list[Coverage]":
    """Anchor coverage of the training crops, and of whole images, of the training part or what there is."""
    from fanet_lightning.cli.config import plain
    from fanet_lightning.data.transforms import build_augment
    from fanet_lightning.doctor.coverage import coverage, whole_images

    images = parts.get("train") or next(iter(parts.values()))
    if not any(image is not None and len(image.boxes_xyxy) for image in images):
        return []
    augment = build_augment(plain(config)["augment"])
    threshold = float(config.threshold)
    return [
        coverage(images, augment, passes=config.passes, seed=config.seed, threshold=threshold),
        whole_images(images, threshold=threshold),
    ]


def diagnose(config: "DictConfig", argv: Sequence[str] = ()) -> "tuple[Examined, CleanedCopy | None]":
    """Examine the data set of a composed configuration, print and write everything.

    Returns:
        What was found, and the mended copy where ``fix`` asks for one.

    Raises:
        InputError: bad keys, data that cannot be read at all, or ``out`` that cannot be written.
    """
    from rich.console import Console

    from fanet_lightning.cli.config import plain
    from fanet_lightning.cli.provenance import made_by
    from fanet_lightning.doctor.examine import examine
    from fanet_lightning.doctor.fix import check_copy_folder, write_cleaned_copy
    from fanet_lightning.doctor.outputs import (  # fmt: skip
        CSV_FILE,
        JSON_FILE,
        check_out,
        print_report,
        write_findings,
        write_summary,
    )
    from fanet_lightning.doctor.page import check_page_folder, write_page

    _check_values(config)
    data = plain(config)["data"]
    out = Path(str(config.out)) if config.out is not None else Path("outputs") / "doctor" / str(data["name"])
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
        on_start=_progress_bar if sys.stderr.isatty() else None,
    )
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    print_report(console, examined.report, inventories)
    copy = None
    if config.fix:
        copy = write_cleaned_copy(out / CLEANED, examined)
    level = "images" if config.images else "headers"
    write_findings(out / CSV_FILE, examined.report)
    write_summary(
        out / JSON_FILE, examined.report, inventories, made_by(["python", "-m", "fanet_lightning.doctor", *argv]), level
    )
    if config.page:
        parts = {inventory.part: sized_images(inventory, examined) for inventory in inventories}
        coverages = coverages_of(config, parts) if config.coverage else []
        write_page(out / PAGE, examined.report, parts=parts, coverages=coverages, worst=config.worst)
    return examined, copy


def _progress_bar(total: int) -> Callable[[int], None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("reading images"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=total)
    done = 0
    bar.start()

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.advance(task, count)
        if done >= total:
            bar.stop()

    return advance


def _check_values(config: "DictConfig") -> None:
    least = {"near_bits": 0, "workers": 0, "worst": 1, "passes": 1, "input_size": 1, "seed": 0}
    for key, smallest in least.items():
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < smallest:
            raise InputError(f"{key}={config[key]} is no whole number of at least {smallest}")
    if config.near_bits > MAX_NEAR_BITS:
        raise InputError(f"near_bits={config.near_bits}: above {MAX_NEAR_BITS} most pairs are strangers; give less")
    if isinstance(config.threshold, bool) or not isinstance(config.threshold, float) or not 0 < config.threshold < 1:
        raise InputError(f"threshold={config.threshold} is no overlap between 0 and 1")
