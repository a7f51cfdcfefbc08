"""WIDER FACE predictions by attribute and by kind of error, with a browsable gallery of the worst images."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.cli.files import check_replaceable, replaced_folder
from fanet_lightning.data.folder.parts import ImageFiles
from fanet_lightning.data.images import UnreadableImage, read_image_rgb
from fanet_lightning.report.figures import attribute_figure, save_figure
from fanet_lightning.report.html import render
from fanet_lightning.score.analysis.attributes import (
    HEIGHTS,
    AttributeScores,
    group_label,
    print_attributes,
    score_attributes,
    write_attributes,
)
from fanet_lightning.score.analysis.error_types import (
    ErrorTypes,
    FaceState,
    Kind,
    error_types,
    gain_per_image,
    print_errors,
    write_errors,
)
from fanet_lightning.score.bootstrap import SAMPLES
from fanet_lightning.score.curves import POINTS, THRESHOLDS, Floats, score_range
from fanet_lightning.score.results import ERROR_PAGE_FILES, defined
from fanet_lightning.score.wider_face.ground_truth import ATTRIBUTE_VALUES, GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions

# Folder of the copies → longer side and JPEG quality: faces stay recognizable, and 200 crowded images of 1024 pixels
# stay below 15 MB, data and all.
COPIES = {"pictures": (1024, 40), "thumbnails": (192, 60)}
# Of one image the best-scored; below them are thousands of rows that no threshold in use keeps.
MAX_ROWS = 2000
INDEX_FILE, DATA_FILE, STYLE = "index.html", "data.js", "page.css"
SCRIPTS = ("model.js", "view.js", "page.js")
ERROR_PAGE = "errors"

_TEMPLATES = Path(__file__).parent / "templates"


def write_error_gallery(
    folder: Path,
    ground_truth: GroundTruth,
    predictions: Predictions,
    *,
    title: str,
    images_root: Path | None = None,
    images: int = 200,
    errors: ErrorTypes | None = None,
) -> tuple[int, list[str]]:
    """Write the gallery into ``folder``, which appears whole or not at all; an earlier one there is replaced.

    Images come in the order of the AP that their errors cost, :func:`gain_per_image`. What ``folder`` holds
    needs nothing from outside, so it can be moved and sent.

    Args:
        ground_truth: those of its last setting count, the hardest; faces with ``attributes`` can be filtered by them.
        predictions: of the same images in the same order; ``errors``: of these, where they are at hand already.
        images_root: folder with ``event/name.jpg``, or another ending of an image. None: boxes on blank ground.
        images: at most so many images are shown, at least 1.

    Returns how many images it shows, and which of those in ``images_root`` without pixels. InputError: ``folder`` holds
    something else than a gallery; ``images_root`` has none of the images.
    """
    check_replaceable(folder, "an error gallery", ERROR_PAGE_FILES)
    errors = error_types(ground_truth, predictions) if errors is None else errors
    gains = gain_per_image(errors, list(errors.settings)[-1])
    # Where no face counts every gain is NaN, and the images stay in their order.
    shown = np.argsort(-np.nan_to_num(gains), kind="stable")[:images].tolist()
    ids = [ground_truth.image_ids[i] for i in shown]
    files = None if images_root is None else ImageFiles(images_root)
    paths = [files.folder / name if files and (name := files.find(f"{own}.jpg")[0]) else None for own in ids]
    if images_root is not None and not any(paths):
        missing = f"{images_root} has none of them, the first would be {ids[0]}.jpg"
        raise InputError(f"images of the error gallery: {missing}; give the folder with the event folders")
    with replaced_folder(folder) as temporary:
        # Numbers for names: an image may be called anything.
        names = [f"{number:04d}.jpg" for number in range(1, len(shown) + 1)]
        copies = [_copy(path, temporary, name) for path, name in zip(paths, names, strict=True)]
        content = {
            "title": title,
            **_run_content(errors, predictions.scores),
            "heights": [(key, group_label("height", key), *_digits(np.array(ends))) for key, ends in HEIGHTS.items()],
            "attributes": [(name, list(ATTRIBUTE_VALUES[name])) for name in ground_truth.attributes],
            "pictures": [
                {"gain": defined(float(gains[i])), "file": name if size else None, "reason": reason,
                 **_image_content(ground_truth, predictions, errors, i, size)}
                for i, name, (size, reason) in zip(shown, names, copies, strict=True)
            ],
        }  # fmt: skip
        # A script, since a page opened as a file may not read a .json next to it. ASCII, so no encoding can matter.
        data = json.dumps(content, separators=(",", ":"), allow_nan=False)
        (temporary / DATA_FILE).write_text(f"window.FANET_ERRORS={data};\n", encoding="ascii")
        for name in (STYLE, *SCRIPTS):
            shutil.copyfile(_TEMPLATES / name, temporary / name)
        template = _TEMPLATES / "index.html.jinja"
        page = render(template, run=content, scripts=(DATA_FILE, *SCRIPTS), style=STYLE, max_rows=MAX_ROWS)
        (temporary / INDEX_FILE).write_text(page, encoding="utf-8")
    return len(shown), [own for own, (size, _) in zip(ids, copies, strict=True) if images_root and not size]


def _copy(source: Path | None, folder: Path, name: str) -> tuple[tuple[int, int] | None, str | None]:
    """JPEG copies, upright and never enlarged: width and height of the original in pixels, or why there is none."""
    if source is None:
        return None, "not in the folder of images"
    try:
        image = Image.fromarray(read_image_rgb(source))
    except UnreadableImage as error:
        return None, f"cannot be read ({error.reason})"
    size = image.size
    for part, (side, quality) in COPIES.items():
        (folder / part).mkdir(exist_ok=True)
        image.thumbnail((side, side), reducing_gap=2.0)
        image.save(folder / part / name, "JPEG", quality=quality, optimize=True, progressive=side > 512)
    return size, None


def _run_content(errors: ErrorTypes, scores: Floats) -> dict[str, Any]:
    """Numbers of the whole run: AP, what each type of error costs; ``proposals`` and ``hits`` that reach each of 1,000
    ``thresholds``, descending in the scale of the scores; ``start`` is the threshold of the best F1."""
    setting, own = list(errors.settings.items())[-1]
    lost = errors.lost[setting]
    # The normalisation undone; see curves.first_bins.
    low, high = score_range(scores)
    thresholds = THRESHOLDS * (high - low) + low
    proposals, hits = (
        np.cumsum(np.bincount(errors.bins[rows], minlength=POINTS))
        for rows in (own.kinds < Kind.IGNORED, own.kinds == Kind.HIT)
    )
    faces = own.counted_faces
    f1 = 2 * hits / np.maximum(proposals + faces, 1)
    return {
        "setting": setting, "ap": defined(lost.ap), "dap": {name: defined(gain) for name, gain in lost.gains.items()},
        "rows": own.rows(), "faces": faces, "states": own.faces(), "images": errors.images,
        "thresholds": _digits(thresholds), "proposals": proposals.tolist(), "hits": hits.tolist(),
        "start": _digits(thresholds[[int(f1.argmax())]])[0],
    }  # fmt: skip


def _image_content(
    truth: GroundTruth, predictions: Predictions, errors: ErrorTypes, image: int, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Faces and rows of one image of ``size``, which is None without a copy of it.

    ``faces``: x, y, w, h, counts (0 or 1), score of the row that finds it, best score of a localisation error about it
    (both null where there is none), a label per attribute. ``rows``: x, y, w, h, score, kind, number of the nearest
    face in this list or -1, overlap; by descending score.
    """
    own = list(errors.settings.values())[-1]
    rows = np.arange(*predictions.starts[image : image + 2].tolist())
    rows = rows[np.argsort(-predictions.scores[rows], kind="stable")]
    first, last = np.searchsorted(errors.image_of_faces, [image, image + 1]).tolist()
    nearest = np.where(errors.nearest[rows] >= 0, errors.nearest[rows] - first, -1)
    found_at, near_at = np.full((2, last - first), -np.inf)
    for scores, kind in ((found_at, Kind.HIT), (near_at, Kind.LOCALISATION)):
        of_kind = own.kinds[rows] == kind
        np.maximum.at(scores, nearest[of_kind], predictions.scores[rows[of_kind]])
    boxes, kept = truth.boxes_xywh[image].reshape(-1, 4), rows[:MAX_ROWS]
    found_boxes = predictions.boxes_xywh[kept]
    # A blank ground that holds the boxes with a margin.
    drawn = np.concatenate([boxes, found_boxes])
    ground = np.ceil(1.02 * (drawn[:, :2] + np.maximum(drawn[:, 2:], 0)).max(axis=0, initial=0)).astype(int)
    counts = (own.states[first:last] != FaceState.UNCOUNTED).astype(int)
    labels = (values[image].tolist() for values in truth.attributes.values())
    faces = zip(*boxes.round(1).T.tolist(), counts.tolist(), _digits(found_at), _digits(near_at), *labels, strict=True)
    columns = (*found_boxes.round(1).T, own.kinds[kept], nearest[: len(kept)], errors.overlaps[kept].round(3))
    x, y, w, h, *rest = (column.tolist() for column in columns)
    return {
        "id": truth.image_ids[image],
        "size": size or ground.clip(32).tolist(),
        "rows_left_out": len(rows) - len(kept),
        "faces": list(faces),
        "rows": list(zip(x, y, w, h, _digits(predictions.scores[kept]), *rest, strict=True)),
    }


def _digits(values: Floats) -> list[float | None]:
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
) -> None:
    """Print what each kind of error costs; write ``errors.json`` and ``errors/index.html`` into ``out`` where given.
    A warning says which images cannot be shown.

    Args:
        predictions: in the official text layout, folder or ``.zip``.
        title: data and protocol, over the gallery.
        pictures, worst: ``images_root`` and ``images`` of :func:`write_error_gallery`.
    """
    read = read_predictions(predictions, ground_truth.image_ids, known_ids=ground_truth.whole_ids)
    errors = error_types(ground_truth, read)
    print_errors(errors.lost)
    if out is None:
        return
    write_errors(out, errors)
    count, blank = write_error_gallery(
        out / ERROR_PAGE, ground_truth, read, title=title, images_root=pictures, images=worst, errors=errors
    )
    index = out / ERROR_PAGE / INDEX_FILE
    print(f"written: {index}, the {count} worst of {counted(errors.images, 'image')}")
    if blank:
        some = f"{', '.join(blank[:3])}{', …' if len(blank) > 3 else ''}"
        said = f"{len(blank)} of {counted(count, 'image')} on {index} cannot be shown: {some}"
        print(f"warning: {said}", file=sys.stderr)


def report_by_attribute(
    ground_truth: GroundTruth,
    predictions: Path,
    out: Path | None = None,
    *,
    title: str,
    bootstrap: int = SAMPLES,
    against: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> AttributeScores:
    """Print AP and recall by attribute of the faces; write ``attributes.*`` into ``out`` where given, and the figures
    ``attributes`` and, where the images are of several events, ``events`` (PDF, PNG).

    Args:
        predictions, against: folder or ``.zip`` in the official text layout; the second adds paired differences to it.
        title: data and protocol, over table and figures.
        bootstrap: see :func:`fanet_lightning.score.analysis.attributes.score_attributes`.

    The faces of the hardest setting count.
    """
    own, *others = (
        read_predictions(source, ground_truth.image_ids, known_ids=ground_truth.whole_ids)
        for source in (predictions, against)
        if source is not None
    )
    within = list(ground_truth.counted)[-1]
    scores = score_attributes(ground_truth, own, bootstrap, within=within, against=others[0] if others else None)
    title, other = f"{title}, {within}", None if against is None else str(against)
    print_attributes(scores, title, other)
    if out is not None:
        write_attributes(out, scores, title=title, against=other, made_by=made_by)
        save_figure(attribute_figure(scores, title), out / "attributes")
        if any(score.attribute == "event" for score in scores.groups):
            save_figure(attribute_figure(scores, title, of_events=True), out / "events")
    return scores
