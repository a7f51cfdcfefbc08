"""What the error types of a run leave behind: ``errors.json`` and a table for the eye."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import replaced
from fanet_lightning.score.analysis.error_types import BACKGROUND_IOU, ErrorTypes
from fanet_lightning.score.analysis.lost_ap import TYPES, LostAP, lost_ap
from fanet_lightning.score.results import defined, prepare_out, print_rows
from fanet_lightning.score.wider_face.average_precision import MIN_IOU

ERRORS_FILE = "errors.json"
SOURCE = "TIDE (Bolya et al., ECCV 2020) under the rules of the WIDER FACE evaluation"


def write_errors(out: Path, errors: ErrorTypes) -> dict[str, Any]:
    """Write ``errors.json`` into the folder ``out``, by rename; numbers that are not defined are null.

    Per setting: ``ap``; ``dap``, the AP that is gained when the errors of a type are mended; ``special``, when all
    false positives came last and when all faces that are not found left the denominator; ``rows`` of each kind;
    ``faces`` in each state. See :mod:`error_types`.

    Returns:
        What the file holds.

    Raises:
        InputError: ``out`` cannot be written.
    """
    content = {
        "source": SOURCE,
        "min_iou": MIN_IOU,
        "background_iou": BACKGROUND_IOU,
        "images": errors.images,
        "settings": {
            setting: {
                "ap": defined(lost.ap),
                "dap": {name: defined(gain) for name, gain in lost.gains.items()},
                "special": {
                    "false_positives": defined(lost.false_positives),
                    "false_negatives": defined(lost.false_negatives),
                },
                "rows": errors.settings[setting].rows(),
                "faces": errors.settings[setting].faces(),
            }
            for setting, lost in lost_ap(errors).items()
        },
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    prepare_out(out)
    try:
        with replaced(out / ERRORS_FILE) as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror}); free it or give another folder") from error
    return content


def print_errors(lost: Mapping[str, LostAP], file: TextIO | None = None) -> None:
    """Setting, AP, and what each type of error costs, one line each."""
    rows = [[setting, _text(own.ap), *(_text(own.gains[name], "+") for name in TYPES)] for setting, own in lost.items()]
    title = "AP gained when the errors of one type alone are mended"
    print_rows(title, ["setting", "AP", *TYPES], rows, file or sys.stdout)


def _text(value: float, sign: str = "") -> str:
    return "no face" if math.isnan(value) else f"{value:{sign}.4f}"
