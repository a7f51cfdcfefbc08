"""``python -m fanet_lightning.doctor data=…``: what is wrong with images and labels, and a mended copy of them."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning import cli
from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fanet_lightning.data.inventory import Inventory
    from fanet_lightning.diagnosis.cleaned_copy import CleanedCopy
    from fanet_lightning.diagnosis.coverage import Coverage, SizedImage
    from fanet_lightning.diagnosis.examine import Examined

USAGE = """python -m fanet_lightning.doctor data=wider_face data.root=DIR [out=DIR] [images=false] [fix=true]

Reads every image and label and says what is wrong. Written to out: page/index.html with figures, findings.csv,
doctor.json; with fix=true also cleaned/, a mended copy in WIDER FACE's layout, with changes.csv.
Exit code: 0 no errors found (warnings and notes may be), 1 errors found, 2 the doctor could not be run."""

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

    from fanet_lightning.diagnosis.coverage import SizedImage

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
    from hydra.utils import instantiate

    from fanet_lightning.config import plain
    from fanet_lightning.diagnosis.coverage import coverage, whole_images

    images = parts.get("train") or next(iter(parts.values()))
    if not any(image is not None and len(image.boxes_xyxy) for image in images):
        return []
    augment = instantiate(plain(config)["augment"], _convert_="all")
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

    from fanet_lightning.config import plain
    from fanet_lightning.diagnosis.cleaned_copy import check_copy_folder, write_cleaned_copy
    from fanet_lightning.diagnosis.examine import examine
    from fanet_lightning.diagnosis.outputs import (
        CSV_FILE,
        JSON_FILE,
        check_out,
        print_report,
        write_findings,
        write_summary,
    )  # fmt: skip
    from fanet_lightning.diagnosis.page import check_page_folder, write_page
    from fanet_lightning.scoring.results import made_by

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
    for key in ("images", "fix", "page", "coverage"):
        if not isinstance(config[key], bool):
            raise InputError(f"{key}={config[key]} is neither true nor false")
    least = {"near_bits": 0, "workers": 0, "worst": 1, "passes": 1, "input_size": 1, "seed": 0}
    for key, smallest in least.items():
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < smallest:
            raise InputError(f"{key}={config[key]} is no whole number of at least {smallest}")
    if config.near_bits > MAX_NEAR_BITS:
        raise InputError(f"near_bits={config.near_bits}: above {MAX_NEAR_BITS} most pairs are strangers; give less")
    if isinstance(config.threshold, bool) or not isinstance(config.threshold, float) or not 0 < config.threshold < 1:
        raise InputError(f"threshold={config.threshold} is no overlap between 0 and 1")


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("doctor", argv, USAGE)
    if config is None:
        return HEALTHY
    from fanet_lightning.diagnosis.outputs import CSV_FILE, errors_of

    examined, copy = diagnose(config, argv)
    report = examined.report
    out = Path(str(config.out)) if config.out is not None else Path("outputs") / "doctor" / str(config.data.name)
    if copy is not None:
        print(f"cleaned: {copy.folder}, {_sum(copy.images, 'images')}, {_sum(copy.boxes, 'boxes')}, "
              f"{len(copy.changes):,} changes in {copy.folder / 'changes.csv'}")  # fmt: skip
        for remark in copy.remarks:
            print(f"note: {remark}")
    for part, made in ((PAGE, config.page), (CLEANED, config.fix)):
        if not made and (out / part).exists():
            print(f"note: {out / part} is left from an earlier examination")
    errors = errors_of(report)
    verdict = f"{len(errors):,} errors" if errors else "no errors"
    written = out / PAGE / "index.html" if config.page else out / CSV_FILE
    print(f"{verdict}, {len(report.findings):,} findings in {report.seconds:.1f} s; written: {written}")
    return ERRORS_FOUND if errors else HEALTHY


def _sum(counts: dict[str, int], what: str) -> str:
    return " + ".join(f"{count:,} {part}" for part, count in counts.items()) + f" {what}"


if __name__ == "__main__":
    cli.run(main)
