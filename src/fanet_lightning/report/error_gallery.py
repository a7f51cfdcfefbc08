"""WIDER FACE predictions by attribute and by kind of error, with a browsable gallery of the worst images."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced_folder
from fanet_lightning.data.images import UnreadableImage, read_image_rgb
from fanet_lightning.report.figures import attribute_figure, event_figure, save_figure
from fanet_lightning.report.html import render
from fanet_lightning.score.analysis.attributes import (
    AT_PRECISION,
    AttributeScores,
    print_attributes,
    score_attributes,
    write_attributes,
)
from fanet_lightning.score.analysis.error_types import ErrorTypes, FaceState, Kind, error_types
from fanet_lightning.score.analysis.lost_ap import LostAP, gain_per_image, lost_ap, print_errors, write_errors
from fanet_lightning.score.bootstrap import SAMPLES
from fanet_lightning.score.curves import POINTS, THRESHOLDS
from fanet_lightning.score.results import defined
from fanet_lightning.score.wider_face.ground_truth import ATTRIBUTE_VALUES, GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions

SUFFIXES = (".jpg", ".jpeg", ".png")
# Folder of the copies → longer side and JPEG quality: faces stay recognizable, and 200 crowded images of 1024 pixels
# stay below 15 MB, data and all.
COPIES = {"pictures": (1024, 40), "thumbnails": (192, 60)}
# Of one image the best-scored; below them are thousands of rows that no threshold in use keeps.
MAX_ROWS = 2000
INDEX_FILE, DATA_FILE, STYLE = "index.html", "data.js", "page.css"
SCRIPTS = ("model.js", "view.js", "page.js")
ERROR_PAGE = "errors"

_TEMPLATES = Path(__file__).parent / "templates"
_OWN = (INDEX_FILE, DATA_FILE, STYLE, *SCRIPTS, *COPIES)


@dataclass(frozen=True)
class Gallery:
    """What was written: ``images`` of the run's ``images_of_run`` are shown, those in ``blank`` without pixels."""

    index: Path
    images: int
    images_of_run: int
    blank: tuple[str, ...]

    def missing_line(self) -> str | None:
        """One line about the images that are blank, or None."""
        if not self.blank:
            return None
        some = ", ".join(self.blank[:3]) + (", …" if len(self.blank) > 3 else "")
        return f"{len(self.blank)} of {self.images} images on {self.index} cannot be shown: {some}"


def write_error_gallery(
    folder: Path,
    ground_truth: GroundTruth,
    predictions: Predictions,
    *,
    title: str,
    setting: str = "hard",
    images_root: Path | None = None,
    images: int = 200,
    errors: ErrorTypes | None = None,
) -> Gallery:
    """Write the gallery into ``folder``, which appears whole or not at all; an earlier one there is replaced.

    Images come in the order of the AP that their errors cost, :func:`lost_ap.gain_per_image`.

    Args:
        folder: what it holds needs nothing from outside, so it can be moved and sent.
        ground_truth: of the images of the run. Faces with ``attributes`` can be filtered by them.
        predictions: of the same images in the same order.
        title: of the run, for the head of the page.
        setting: which faces count.
        images_root: folder with ``event/name.jpg`` (``.jpeg``, ``.png``). None: boxes on blank ground.
        images: at most so many images are shown, at least 1.
        errors: of these predictions, where they are at hand already.

    Raises:
        InputError: ``folder`` holds something else than a gallery, or cannot be written; ``images_root`` is not a
            directory, or has none of the images.
        KeyError: an unknown setting.
        ValueError: a run that :func:`error_types` refuses.
    """
    check_replaceable(folder, "an error gallery", lambda entry: entry.name in _OWN and (folder / DATA_FILE).is_file())
    errors = error_types(ground_truth, predictions) if errors is None else errors
    gains = gain_per_image(errors, setting)
    # Where no face counts every gain is NaN, and the images stay in their order.
    shown = np.argsort(-np.nan_to_num(gains), kind="stable")[:images].tolist()
    paths = {i: None if images_root is None else _find(images_root, ground_truth.image_ids[i]) for i in shown}
    if images_root is not None and not any(paths.values()):
        raise InputError(
            f"images of the error gallery: {images_root} has none of them, the first would be "
            f"{ground_truth.image_ids[shown[0]]}.jpg; give the folder with the event folders"
        )
    with replaced_folder(folder) as temporary:
        # Numbers for names: an image may be called anything.
        copies = {i: _copy(path, temporary, f"{n:04d}.jpg") for n, (i, path) in enumerate(paths.items(), start=1)}
        content = {
            "title": title,
            **_run_content(errors, predictions.scores, setting, lost_ap(errors)[setting]),
            "attributes": [(name, list(ATTRIBUTE_VALUES[name])) for name in ground_truth.attributes],
            "pictures": _image_contents(ground_truth, predictions, errors, setting, shown, gains, copies),
        }
        # A script, since a page opened as a file may not read a .json next to it. ASCII, so no encoding can matter.
        data = json.dumps(content, separators=(",", ":"), allow_nan=False)
        (temporary / DATA_FILE).write_text(f"window.FANET_ERRORS={data};\n", encoding="ascii")
        for name in (STYLE, *SCRIPTS):
            shutil.copyfile(_TEMPLATES / name, temporary / name)
        page = render(
            _TEMPLATES / "index.html.jinja", run=content, scripts=(DATA_FILE, *SCRIPTS), style=STYLE, max_rows=MAX_ROWS
        )
        (temporary / INDEX_FILE).write_text(page, encoding="utf-8")
    blank = tuple(ground_truth.image_ids[i] for i in shown if copies[i].size is None)
    return Gallery(folder / INDEX_FILE, len(shown), errors.images, () if images_root is None else blank)


class _Copy(NamedTuple):
    """Width and height of the original in pixels, or why there is no copy."""

    size: tuple[int, int] | None
    reason: str | None


def _find(images_root: Path, image_id: str) -> Path | None:
    paths = (images_root / f"{image_id}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _copy(source: Path | None, folder: Path, name: str) -> _Copy:
    """JPEG copies, upright and never enlarged. An image that cannot be read is no error: the page says so."""
    if source is None:
        return _Copy(None, "not in the folder of images")
    try:
        image = Image.fromarray(read_image_rgb(source))
    except UnreadableImage as error:
        return _Copy(None, f"cannot be read ({error.reason})")
    size = image.size
    for part, (side, quality) in COPIES.items():
        (folder / part).mkdir(exist_ok=True)
        image.thumbnail((side, side), reducing_gap=2.0)
        image.save(folder / part / name, "JPEG", quality=quality, optimize=True, progressive=side > 512)
    return _Copy(size, None)


def _run_content(errors: ErrorTypes, scores: npt.NDArray[np.float64], setting: str, lost: LostAP) -> dict[str, Any]:
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
        "ap": defined(lost.ap),
        "dap": {name: defined(gain) for name, gain in lost.gains.items()},
        "rows": own.rows(),
        "faces": faces,
        "states": own.faces(),
        "images": errors.images,
        "thresholds": _digits(thresholds),
        "proposals": proposals.tolist(),
        "hits": hits.tolist(),
        "start": _digits(thresholds[[int(f1.argmax())]])[0],
    }


def _image_contents(
    ground_truth: GroundTruth,
    predictions: Predictions,
    errors: ErrorTypes,
    setting: str,
    shown: Sequence[int],
    gains: npt.NDArray[np.float64],
    copies: Mapping[int, _Copy],
) -> list[dict[str, Any]]:
    """One entry per image of ``shown``, in that order.

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
                "gain": defined(float(gains[i])),
                "size": list(copy.size or _extent(extent)),
                "file": f"{number + 1:04d}.jpg" if copy.size else None,
                "reason": copy.reason,
                # A face begins right of or below the image, so the boxes are of an image of another size.
                "outside": copy.size is not None and bool((boxes[:, :2] >= np.array(copy.size)).any()),
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


def _extent(boxes_xywh: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Width and height of a blank ground that holds the boxes with a margin."""
    if not len(boxes_xywh):
        return 640, 480
    width, height = np.ceil((boxes_xywh[:, :2] + np.maximum(boxes_xywh[:, 2:], 0)).max(axis=0) * 1.02)
    return max(int(width), 32), max(int(height), 32)


def _tenths(boxes: npt.NDArray[np.float64]) -> list[list[float]]:
    return [[int(side) if side == int(side) else side for side in box] for box in np.round(boxes, 1).tolist()]


def _digits(values: npt.NDArray[np.float64]) -> list[float | None]:
    """Six significant digits; null where there is no value."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


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
        title: data and protocol, over the gallery.
        pictures: folder with ``event/name.jpg``; None: boxes on blank ground.
        worst: at most so many images are in the gallery.

    Returns:
        One line about images that cannot be shown, or None.

    Raises:
        InputError: predictions that are missing or malformed, ``pictures`` without the images, ``out`` cannot be
            written.
    """
    read = read_predictions(predictions, ground_truth.image_ids, known_ids=ground_truth.whole_ids)
    errors = error_types(ground_truth, read)
    print_errors(lost_ap(errors))
    if out is None:
        return None
    write_errors(out, errors)
    # The last setting is the hardest: it has all the faces of the others.
    gallery = write_error_gallery(
        out / ERROR_PAGE, ground_truth, read, title=title, setting=list(ground_truth.counted)[-1],
        images_root=pictures, images=worst, errors=errors,
    )  # fmt: skip
    print(f"written: {gallery.index}, the {gallery.images} worst of {gallery.images_of_run:,} images")
    return gallery.missing_line()


def report_by_attribute(
    ground_truth: GroundTruth,
    predictions: Path,
    out: Path | None = None,
    *,
    title: str,
    bootstrap: int = SAMPLES,
    within: str | None = None,
    at_precision: float = AT_PRECISION,
    against: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> AttributeScores:
    """Print AP and recall by attribute of the faces; write ``attributes.*`` into ``out`` where given, and the figures
    ``attributes`` and ``events`` (PDF, PNG).

    Args:
        ground_truth: of the images to score; a selection is scored as such.
        predictions: folder or ``.zip`` in the official text layout; no file of an image: no detection in it.
        out: folder, made if need be. An earlier ``events`` figure is removed where the images are of one event.
        title: data and protocol, over table and figures.
        bootstrap, at_precision: see :func:`fanet_lightning.score.analysis.attributes.score_attributes`.
        within: which faces count; None: those of the hardest setting.
        against: other predictions for the same images; adds the paired differences to them.
        made_by: see :func:`fanet_lightning.cli.provenance.made_by`.

    Raises:
        InputError: predictions that are missing or malformed, no such setting, numbers out of range, ``out`` cannot be
            written.
    """
    own, *others = (
        read_predictions(source, ground_truth.image_ids, known_ids=ground_truth.whole_ids)
        for source in (predictions, against)
        if source is not None
    )
    within = within or list(ground_truth.counted)[-1]
    scores = score_attributes(
        ground_truth, own, bootstrap, within=within, at_precision=at_precision, against=others[0] if others else None
    )
    other = None if against is None else str(against)
    print_attributes(scores, f"{title}, {within}", other)
    if out is not None:
        write_attribute_report(out, scores, title=f"{title}, {within}", against=other, made_by=made_by)
    return scores


def write_attribute_report(
    out: Path,
    scores: AttributeScores,
    *,
    title: str,
    against: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> list[Path]:
    """What :func:`report_by_attribute` writes; returns the files.

    Raises:
        InputError: ``out`` cannot be written.
    """
    paths = write_attributes(out, scores, title=title, against=against, made_by=made_by)
    figures = {"attributes": attribute_figure(scores, title)}
    if any(score.attribute == "event" for score in scores.groups):
        figures["events"] = event_figure(scores, title)
    else:
        for suffix in (".pdf", ".png"):
            (out / f"events{suffix}").unlink(missing_ok=True)
    for name, figure in figures.items():
        paths += save_figure(figure, out / name)
    return paths
