"""WIDER FACE predictions by attribute and by kind of error, with a browsable page of the worst images."""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced_folder
from fanet_lightning.report.figures import attribute_figure, event_figure, save_figure
from fanet_lightning.score.analysis.attributes import (
    AT_PRECISION,
    AttributeScores,
    print_attributes,
    score_attributes,
    write_attributes,
)
from fanet_lightning.score.analysis.error_types import ErrorTypes, FaceState, Kind, error_types
from fanet_lightning.score.analysis.lost_ap import LostAP, gain_per_image, lost_ap
from fanet_lightning.score.bootstrap import SAMPLES
from fanet_lightning.score.curves import POINTS, THRESHOLDS
from fanet_lightning.score.wider_face.ground_truth import ATTRIBUTE_VALUES, GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions

if TYPE_CHECKING:
    from PIL import Image


LONGER_SIDE = 1024
THUMBNAIL_SIDE = 192
SUFFIXES = (".jpg", ".jpeg", ".png")

# Faces stay recognisable, and 200 crowded pictures of 1024 px stay below 15 MB, data and all.
_QUALITY = 40
_THUMBNAIL_QUALITY = 60


class Copy(NamedTuple):
    """Width and height of the original in pixels, or why there is no copy."""

    size: tuple[int, int] | None
    reason: str | None


def find_image(images_root: Path, image_id: str) -> Path | None:
    """``images_root/event/name`` with the first of :data:`SUFFIXES` that is there, or None."""
    paths = (images_root / f"{image_id}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def write_copy(images_root: Path, image_id: str, picture: Path, thumbnail: Path) -> Copy:
    """Write two JPEG copies, upright and never enlarged, the longer side at most 1024 px and 192 px.

    A picture that is missing or cannot be decoded whole is no error: the page says so and draws on a blank sheet.
    """
    from PIL import Image, ImageOps

    source = find_image(images_root, image_id)
    if source is None:
        return Copy(None, "not in the folder of images")
    try:
        with warnings.catch_warnings():
            # Above 89 megapixels Pillow warns, above 179 it refuses, which is caught below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as opened:
                upright = ImageOps.exif_transpose(opened)
                size = upright.size
                copy = _on_white(upright)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Copy(None, f"cannot be read ({type(error).__name__})")
    copy.thumbnail((LONGER_SIDE, LONGER_SIDE), reducing_gap=2.0)
    copy.save(picture, "JPEG", quality=_QUALITY, optimize=True, progressive=True)
    copy.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=2.0)
    copy.save(thumbnail, "JPEG", quality=_THUMBNAIL_QUALITY, optimize=True)
    return Copy(size, None)


def _on_white(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


# Of one picture the best-scored; below them are thousands of rows that no threshold in use keeps.
MAX_ROWS = 2000


def run_content(errors: ErrorTypes, scores: npt.NDArray[np.float64], setting: str, lost: LostAP) -> dict[str, Any]:
    """Numbers of the whole run: AP, what each type of error costs, counts at 1,000 thresholds, where to start.

    ``thresholds`` are in the scale of the rows' scores, descending; ``proposals`` and ``hits`` count the rows that
    reach them. ``start`` is the threshold of the best F1.
    """
    own = errors.settings[setting]
    # The scale of the normalisation, undone; see curves.normalise_scores.
    low, high = min(1.0, float(scores.min(initial=1.0))), max(0.0, float(scores.max(initial=0.0)))
    thresholds = THRESHOLDS * (high - low) + low if high > low else np.full(POINTS, low)
    proposals, hits = (
        np.cumsum(np.bincount(errors.bins[rows], minlength=POINTS))
        for rows in (own.kinds < Kind.IGNORED, own.kinds == Kind.HIT)
    )
    faces = own.counted_faces
    f1 = 2 * hits / np.maximum(proposals + faces, 1)
    return {
        "setting": setting,
        "ap": _defined(lost.ap),
        "dap": {name: _defined(gain) for name, gain in lost.gains.items()},
        "rows": own.rows(),
        "faces": faces,
        "states": own.faces(),
        "images": errors.images,
        "thresholds": _digits(thresholds),
        "proposals": proposals.tolist(),
        "hits": hits.tolist(),
        "start": _digits(thresholds[[int(f1.argmax())]])[0],
    }


def image_contents(
    ground_truth: GroundTruth,
    predictions: Predictions,
    errors: ErrorTypes,
    setting: str,
    shown: Sequence[int],
    gains: npt.NDArray[np.float64],
    copies: Mapping[int, Copy],
) -> list[dict[str, Any]]:
    """One entry per picture of ``shown``, in that order.

    ``faces`` are lists x, y, w, h, counts (0 or 1), score of the row that finds it, best score of a localisation error
    about it (both null where there is none), then a label per attribute. ``rows`` are lists x, y, w, h, score, kind,
    number of the nearest face in this list or -1, overlap; by descending score.
    """
    own = errors.settings[setting]
    total = len(errors.image_of_faces)
    found_at, near_at = np.full((2, total), -np.inf)
    for scores, kind in ((found_at, Kind.HIT), (near_at, Kind.LOCALISATION)):
        rows = own.kinds == kind
        np.maximum.at(scores, errors.nearest[rows], predictions.scores[rows])
    first_faces = np.searchsorted(errors.image_of_faces, np.arange(errors.images + 1))
    contents = []
    for number, i in enumerate(shown):
        rows = np.arange(*predictions.starts[i : i + 2].tolist())
        rows = rows[np.argsort(-predictions.scores[rows], kind="stable")]
        kept = rows[:MAX_ROWS]
        first, last = first_faces[i : i + 2].tolist()
        boxes = ground_truth.boxes_xywh[i]
        nearest = np.where(errors.nearest[kept] >= 0, errors.nearest[kept] - first, -1)
        copy = copies[i]
        extent = np.concatenate([boxes, predictions.boxes_xywh[kept]]).reshape(-1, 4)
        contents.append(
            {
                "id": ground_truth.image_ids[i],
                "gain": _defined(float(gains[i])),
                "size": list(copy.size or _extent(extent)),
                "file": f"{number + 1:04d}.jpg" if copy.size else None,
                "reason": copy.reason,
                "outside": copy.size is not None and _outside(boxes, copy.size),
                "rows_left_out": len(rows) - len(kept),
                "faces": [
                    [*box, int(state != FaceState.UNCOUNTED), *at]
                    for box, state, *at in zip(
                        _tenths(boxes),
                        own.states[first:last].tolist(),
                        _digits(found_at[first:last]),
                        _digits(near_at[first:last]),
                        *(labels[i].tolist() for labels in ground_truth.attributes.values()),
                        strict=True,
                    )
                ],
                "rows": [
                    [*box, *rest]
                    for box, *rest in zip(
                        _tenths(predictions.boxes_xywh[kept]),
                        _digits(predictions.scores[kept]),
                        own.kinds[kept].tolist(),
                        nearest.tolist(),
                        np.round(errors.overlaps[kept], 3).tolist(),
                        strict=True,
                    )
                ],
            }
        )
    return contents


def attribute_names(ground_truth: GroundTruth) -> list[tuple[str, list[str]]]:
    """Attributes that the faces have labels of, with the names of the labels, in the order of the faces' lists."""
    return [(name, list(ATTRIBUTE_VALUES[name])) for name in ground_truth.attributes]


def _extent(boxes_xywh: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Width and height of a blank sheet that holds the boxes with a margin."""
    if not len(boxes_xywh):
        return 640, 480
    width, height = np.ceil((boxes_xywh[:, :2] + np.maximum(boxes_xywh[:, 2:], 0)).max(axis=0) * 1.02)
    return max(int(width), 32), max(int(height), 32)


def _outside(boxes_xywh: npt.NDArray[np.float64], size: tuple[int, int]) -> bool:
    """A face begins right of or below the picture, so the boxes are of a picture of another size."""
    return bool((boxes_xywh[:, :2] >= np.array(size)).any())


def _tenths(boxes: npt.NDArray[np.float64]) -> list[list[float]]:
    return [[int(side) if side == int(side) else side for side in box] for box in np.round(boxes, 1).tolist()]


def _digits(values: npt.NDArray[np.float64]) -> list[float | None]:
    """Six significant digits; null where there is no value."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None


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
    check_replaceable(folder, "an error gallery", lambda entry: entry.name in _OWN and (folder / DATA_FILE).is_file())
    errors = error_types(ground_truth, predictions) if errors is None else errors
    gains = gain_per_image(errors, setting)
    # Where no face counts every gain is NaN, and the images stay in their order.
    shown = np.argsort(-np.nan_to_num(gains), kind="stable")[:images].tolist()
    if images_root is not None and not any(find_image(images_root, ground_truth.image_ids[i]) for i in shown):
        raise InputError(
            f"images of the error page: {images_root} has none of them, the first would be "
            f"{images_root / ground_truth.image_ids[shown[0]]}.jpg; give the folder with the event folders"
        )
    with replaced_folder(folder) as temporary:
        copies = _copies(temporary, ground_truth, images_root, shown)
        content = {
            "title": title,
            **run_content(errors, predictions.scores, setting, lost_ap(errors)[setting]),
            "attributes": attribute_names(ground_truth),
            "pictures": image_contents(ground_truth, predictions, errors, setting, shown, gains, copies),
        }
        _write_files(temporary, content)
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


_OWN = {INDEX_FILE, DATA_FILE, STYLE, *SCRIPTS, PICTURES, THUMBNAILS}


def report_attributes(
    ground_truth: GroundTruth,
    predictions: Path,
    out: Path | None = None,
    *,
    title: str = "WIDER FACE",
    samples: int = SAMPLES,
    seed: int = 0,
    within: str = "hard",
    at_precision: float = AT_PRECISION,
    against: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> AttributeScores:
    """Print the table of a folder or ``.zip`` of predictions, and write everything into ``out`` where it is given.

    Args:
        ground_truth: of the images to score; a selection is scored as such.
        predictions: in the official text layout; an image without a file counts as one without a detection.
        out: folder of :func:`write_report`.
        title: data and protocol, over table and figures.
        samples, seed, within, at_precision: see :func:`fanet_lightning.score.analysis.attributes.score_attributes`.
        against: other predictions for the same images; adds the paired differences to them.
        made_by: see :func:`fanet_lightning.cli.provenance.made_by`.

    Raises:
        InputError: predictions that are missing or malformed, no such setting, numbers out of range, ``out`` cannot be
            written.
    """
    if not 0 < at_precision <= 1:
        raise InputError(f"at_precision={at_precision} is no precision; give a number above 0, at most 1")
    if samples < 0:
        raise InputError(f"bootstrap={samples} is no number of resamples; give one above 0, or 0 for no intervals")
    scores = score_attributes(
        ground_truth,
        _read(predictions, ground_truth),
        samples,
        seed,
        within=within,
        at_precision=at_precision,
        against=None if against is None else _read(against, ground_truth),
    )
    other = None if against is None else str(against)
    title = f"{title}, {within}"
    print_attributes(scores, title, other)
    if out is not None:
        write_report(out, scores, title=title, against=other, made_by=made_by)
    return scores


def write_report(
    out: Path,
    scores: AttributeScores,
    *,
    title: str,
    against: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> list[Path]:
    """``attributes.json``, ``.csv``, ``.md`` and the figures ``attributes`` and ``events`` (PDF, PNG) in ``out``.

    An ``events`` figure of an earlier report is removed where the images are of one event.

    Args:
        out: folder, made if need be.
        scores: of a run.
        title: data, protocol and setting.
        against: name of the other run.
        made_by: see :func:`fanet_lightning.cli.provenance.made_by`.

    Returns:
        What was written.

    Raises:
        InputError: ``out`` cannot be written.
    """
    paths = write_attributes(out, scores, title=title, against=against, made_by=made_by)
    figures = {"attributes": attribute_figure(scores, title)}
    if any(score.attribute == "event" for score in scores.groups):
        figures["events"] = event_figure(scores, title)
    try:
        for name, figure in figures.items():
            paths += save_figure(figure, out / name)
        if "events" not in figures:
            for suffix in (".pdf", ".png"):
                (out / f"events{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror}); free it or give another folder") from error
    return paths


def _read(source: Path, ground_truth: GroundTruth) -> Predictions:
    return read_predictions(source, ground_truth.image_ids, known_ids=ground_truth.whole_ids)


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
    from fanet_lightning.score.analysis.error_report import print_errors, write_errors

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

    Args, raises: see :func:`report_attributes`.
    """

    report_attributes(
        ground_truth, predictions, out, title=title, samples=bootstrap, within=list(ground_truth.counted)[-1],
        against=against, made_by=made_by,
    )  # fmt: skip
