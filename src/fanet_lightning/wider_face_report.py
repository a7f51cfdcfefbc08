"""WIDER FACE predictions beyond their AP: by attribute, and by kind of error with a page of the worst images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fanet_lightning.scoring.ground_truth import GroundTruth
from fanet_lightning.scoring.predictions import read_predictions

ERROR_PAGE = "errors"


def report_errors(
    ground_truth: GroundTruth,
    predictions: Path,
    out: Path | None = None,
    *,
    title: str,
    pictures: Path | None = None,
    worst: int = 200,
) -> str | None:
    """Print what each kind of error costs; write ``errors.json`` and ``errors/index.html`` into ``out`` where given.

    Args:
        ground_truth: of the images to score.
        predictions: in the official text layout, folder or ``.zip``.
        out: folder, made if need be.
        title: data and protocol, over the page.
        pictures: folder with ``event/name.jpg``; None: boxes on blank sheets.
        worst: at most so many images are on the page.

    Returns:
        One line about pictures that are missing, or None.

    Raises:
        InputError: predictions that are missing or malformed, ``pictures`` is no folder, ``out`` cannot be written.
    """
    from fanet_lightning.error_pages.page import write_error_page
    from fanet_lightning.scoring.error_report import print_errors, write_errors
    from fanet_lightning.scoring.error_types import error_types
    from fanet_lightning.scoring.lost_ap import lost_ap

    read = read_predictions(predictions, ground_truth.image_ids, known_ids=ground_truth.whole_ids)
    errors = error_types(ground_truth, read)
    print_errors(lost_ap(errors))
    if out is None:
        return None
    write_errors(out, errors)
    # The last setting is the hardest: it has all the faces of the others.
    page = write_error_page(
        out / ERROR_PAGE, ground_truth, read, title=title, setting=list(ground_truth.counted)[-1],
        images_root=pictures, images=worst, errors=errors,
    )  # fmt: skip
    print(f"written: {page.index}, the {page.images} worst of {page.images_of_run:,} images")
    return page.missing_line()


def report_by_attribute(
    ground_truth: GroundTruth,
    predictions: Path,
    out: Path | None = None,
    *,
    title: str,
    bootstrap: int = 1000,
    against: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Print AP and recall by attribute of the faces; write ``attributes.*`` into ``out`` where given.

    Args, raises: see :func:`fanet_lightning.attribute_report.report_attributes`.
    """
    from fanet_lightning.attribute_report import report_attributes

    report_attributes(
        ground_truth, predictions, out, title=title, samples=bootstrap, within=list(ground_truth.counted)[-1],
        against=against, made_by=made_by,
    )  # fmt: skip
