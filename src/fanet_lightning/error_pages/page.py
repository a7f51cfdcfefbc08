"""A run's errors as a folder of static files: ``index.html``, its data, and copies of the worst pictures."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fanet_lightning.error_pages.content import MAX_ROWS, attribute_names, image_contents, run_content
from fanet_lightning.error_pages.pictures import Copy, find_image, write_copy
from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced_folder
from fanet_lightning.scoring.error_types import ErrorTypes, error_types
from fanet_lightning.scoring.ground_truth import GroundTruth
from fanet_lightning.scoring.lost_ap import gain_per_image, lost_ap
from fanet_lightning.scoring.predictions import Predictions

INDEX_FILE = "index.html"
DATA_FILE = "data.js"
SCRIPTS = ("model.js", "view.js", "page.js")
STYLE = "page.css"
PICTURES, THUMBNAILS = "pictures", "thumbnails"

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class ErrorPage:
    """What was written: ``images`` of the run's ``images_of_run`` are shown, ``without_picture`` of them blank."""

    index: Path
    images: int
    images_of_run: int
    without_picture: tuple[str, ...]

    def missing_line(self) -> str | None:
        """One line about the images without a picture, or None."""
        if not self.without_picture:
            return None
        some = ", ".join(self.without_picture[:3]) + (", …" if len(self.without_picture) > 3 else "")
        return f"{len(self.without_picture)} of {self.images} images on {self.index} have no picture: {some}"


def write_error_page(
    folder: Path,
    ground_truth: GroundTruth,
    predictions: Predictions,
    *,
    title: str,
    setting: str = "hard",
    images_root: Path | None = None,
    images: int = 200,
    errors: ErrorTypes | None = None,
) -> ErrorPage:
    """Write the page into ``folder``, which appears whole or not at all; an earlier page there is replaced.

    Pictures come in the order of the AP that their errors cost, :func:`lost_ap.gain_per_image`.

    Args:
        folder: of the page; what it holds needs nothing from outside, so it can be moved and sent.
        ground_truth: of the images of the run. Faces with ``attributes`` can be filtered by them.
        predictions: of the same images in the same order.
        title: of the run, for the head of the page.
        setting: which faces count.
        images_root: folder with ``event/name.jpg`` (``.jpeg``, ``.png``). None: no pictures, boxes on blank sheets.
        images: at most so many pictures are shown.
        errors: of these predictions, where they are at hand already.

    Raises:
        InputError: ``folder`` holds something else than such a page, or cannot be written; ``images_root`` is no
            folder.
        ValueError: an unknown setting, ``images`` below 1, or a run that :func:`error_types` refuses.
    """
    if setting not in ground_truth.counted:
        raise ValueError(f"setting '{setting}' is none of {', '.join(ground_truth.counted)}")
    if images < 1:
        raise ValueError(f"{images} images, need at least 1")
    if images_root is not None and not images_root.is_dir():
        raise InputError(
            f"images of the error page: {images_root} is not a folder; give the one with the event folders"
        )
    if folder.exists() and not _is_replaceable(folder):
        raise InputError(f"{folder} holds something else than a page of errors; give an empty or new folder")
    errors = error_types(ground_truth, predictions) if errors is None else errors
    gains = gain_per_image(errors, setting)
    # Where no face counts every gain is NaN, and the images stay in their order.
    shown = np.argsort(-np.nan_to_num(gains), kind="stable")[:images].tolist()
    if images_root is not None and not any(find_image(images_root, ground_truth.image_ids[i]) for i in shown):
        raise InputError(
            f"images of the error page: {images_root} has none of them, the first would be "
            f"{images_root / ground_truth.image_ids[shown[0]]}.jpg; give the folder with the event folders"
        )
    try:
        with replaced_folder(folder) as temporary:
            copies = _copies(temporary, ground_truth, images_root, shown)
            content = {
                "title": title,
                **run_content(errors, predictions.scores, setting, lost_ap(errors)[setting]),
                "attributes": attribute_names(ground_truth),
                "pictures": image_contents(ground_truth, predictions, errors, setting, shown, gains, copies),
            }
            _write_files(temporary, content)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); free it or give another folder") from error
    blank = tuple(ground_truth.image_ids[i] for i in shown if copies[i].size is None)
    return ErrorPage(folder / INDEX_FILE, len(shown), errors.images, blank if images_root is not None else ())


def _copies(folder: Path, ground_truth: GroundTruth, images_root: Path | None, shown: list[int]) -> dict[int, Copy]:
    if images_root is None:
        return dict.fromkeys(shown, Copy(None, "the page was written without pictures"))
    pictures, thumbnails = folder / PICTURES, folder / THUMBNAILS
    pictures.mkdir()
    thumbnails.mkdir()
    # Numbers for names: an image may be called anything.
    return {
        i: write_copy(images_root, ground_truth.image_ids[i], pictures / f"{n:04d}.jpg", thumbnails / f"{n:04d}.jpg")
        for n, i in enumerate(shown, start=1)
    }


def _write_files(folder: Path, content: dict[str, Any]) -> None:
    import jinja2

    # A script, since a page opened as a file may not read a .json beside it. ASCII alone, so no encoding can matter.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False)
    (folder / DATA_FILE).write_text(f"window.FANET_ERRORS={data};\n", encoding="ascii")
    for name in (STYLE, *SCRIPTS):
        shutil.copyfile(_TEMPLATES / name, folder / name)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("index.html.jinja").render(
        run=content, scripts=(DATA_FILE, *SCRIPTS), style=STYLE, max_rows=MAX_ROWS
    )
    (folder / INDEX_FILE).write_text(page, encoding="utf-8")


def _is_replaceable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    return not names or ({INDEX_FILE, DATA_FILE} <= names and names <= _OWN)


_OWN = {INDEX_FILE, DATA_FILE, STYLE, *SCRIPTS, PICTURES, THUMBNAILS}
