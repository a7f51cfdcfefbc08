"""The doctor's report as static files: tables, figures, small images."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fanet_lightning.cli.errors import counted
from fanet_lightning.cli.files import replaced_folder
from fanet_lightning.data.images import UnreadableImage, read_image_rgb
from fanet_lightning.data.transforms import clean_boxes
from fanet_lightning.doctor.checks import BY_NAME, KINDS, Finding
from fanet_lightning.doctor.coverage import Coverage, SizedImage
from fanet_lightning.doctor.examine import Report
from fanet_lightning.ops.anchors import SIZES
from fanet_lightning.ops.draw import outlined
from fanet_lightning.report.figures import COLORS, WIDTHS_INCHES, canvas
from fanet_lightning.report.html import data_uri, render

Values = npt.NDArray[np.float64]

INDEX_FILE, THUMBNAILS = "index.html", "thumbnails"
# What a page holds; figures: of an earlier version.
OWN = (INDEX_FILE, THUMBNAILS, "figures")
# Longer side of an image, pixels: two columns of cards on a screen of high density.
SIDE = 480
_QUALITY = 70
# A box takes at least this share of the image's longer side, or a part around it is cut out …
_SMALLEST_SHARE = 1 / 6
# … of at least so many pixels of the image, so that it is still seen what is there.
_SMALLEST_CUT = 96
_MAX_BOXES = 400
_MARK = (255, 90, 31)
# Around an image where boxes leave it.
_GROUND = (223, 227, 232)

# Four bins per octave, 1 … 2048 pixels.
SIZE_EDGES = 2.0 ** (np.arange(0, 45) / 4)
_MOST_HEAT_CELLS = 24
# A point of a curve over fewer faces is noise.
_LEAST_FACES = 5
WIDTH_INCHES = WIDTHS_INCHES["page"]
_STYLE = {"font.size": 8, "axes.titlesize": 8.5, "legend.fontsize": 7, "legend.frameon": False}


def write_page(
    folder: Path,
    report: Report,
    *,
    parts: Mapping[str, Sequence[SizedImage | None]] | None = None,
    coverages: Sequence[Coverage] = (),
    worst: int = 12,
) -> Path:
    """Write ``index.html`` into ``folder``, which appears whole or not at all; an earlier one there is replaced.

    It loads nothing from elsewhere, so the folder can be moved and sent.

    Args:
        parts: ``train``, ``val`` → images with their sizes, for the figures; None: no figure.
        coverages: anchor coverage, one table and figure each.
        worst: at most so many images of a kind, or pairs of images, are shown.
    """
    counts = Counter(BY_NAME[finding.kind].severity for finding in report.findings)
    faces = {part: found for part, own in (parts or {}).items() if len((found := faces_of(own)).sides)}
    with replaced_folder(folder) as temporary:
        text = render(
            Path(__file__).parent / "templates" / "doctor.html.jinja",
            report=report,
            severities={severity: counts[severity] for severity in ("error", "warning", "note")},
            sections=_sections(temporary / THUMBNAILS, report, worst),
            sizes_figure=face_size_figure(faces, coverages) if faces else None,
            position_figure=position_figure(faces) if faces else None,
            coverages=[(own, coverage_figure(own) if len(own.face_sizes) else None) for own in coverages],
            data_uri=data_uri,
            thumbnails_folder=THUMBNAILS,
        )
        (temporary / INDEX_FILE).write_text(text, encoding="utf-8", errors="replace")
    return folder / INDEX_FILE


def _sections(thumbnails: Path, report: Report, worst: int) -> list[dict[str, Any]]:
    """One entry per kind, in the report's order: its counts by part, and its worst findings with their images."""
    thumbnails.mkdir()
    sections = []
    for kind in KINDS:
        findings = report.of_kind(kind.name)
        # One finding of an image, or one image would fill the page. One of a label file, or a pair, stands for itself.
        groups: dict[Any, list[Finding]] = {}
        for place, own in enumerate(findings):
            alone = not own.image_id or own.other_path is not None
            groups.setdefault(place if alone else (own.part, own.path), []).append(own)
        cards = []
        for number, (own, *more) in enumerate(list(groups.values())[:worst], start=1):
            stem, tiles = f"{kind.name}-{number:03d}", []
            # A finding about a label file has no image.
            if own.image_id or own.other_path is not None or kind.name == "unlabelled_image":
                tiles.append(write_tile(own.path, thumbnails / f"{stem}.jpg", own.boxes_xyxy))
            if own.other_path is not None:
                tiles.append(write_tile(own.other_path, thumbnails / f"{stem}-other.jpg"))
            cards.append({"finding": own, "more": len(more), "tiles": tiles})
        by_part = Counter(own.part for own in findings)
        sections.append({"kind": kind, "count": len(findings), "by_part": by_part, "cards": cards})
    return sections


def write_tile(path: Path, jpeg: Path, boxes_xyxy: Sequence[tuple[float, ...]] = ()) -> dict[str, Any]:
    """Write ``jpeg``, upright, with the boxes drawn: its ``path``, and its size as ``caption``, or the ``reason`` why
    it cannot be read. Boxes that are not finite are left out; inverted ones are drawn between their corners."""
    try:
        image = read_image_rgb(path)
    except UnreadableImage as error:
        return {"path": path, "file": None, "reason": error.reason, "caption": ""}
    height, width = image.shape[:2]
    corners = np.array([box for box in boxes_xyxy if all(map(math.isfinite, box))][:_MAX_BOXES]).reshape(-1, 2, 2)
    boxes = np.sort(corners, axis=1).reshape(-1, 4)
    left, top, right, bottom = view_of(boxes, width, height)
    part = cv2.copyMakeBorder(
        image[max(top, 0) : bottom, max(left, 0) : right], max(-top, 0), max(bottom - height, 0), max(-left, 0),
        max(right - width, 0), cv2.BORDER_CONSTANT, value=_GROUND,
    )  # fmt: skip
    scale = min(1.0, SIDE / max(part.shape))
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    shrunk = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    boxes = (boxes - [left, top, left, top]) * scale
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)  # those without area are seen too
    drawn = cv2.cvtColor(outlined(shrunk, boxes, _MARK, max(2, max(size) // 160)), cv2.COLOR_RGB2BGR)
    # Not cv2.imwrite, which does not tell when the disk is full.
    jpeg.write_bytes(cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())
    is_cut = right - left < width or bottom - top < height
    return {"path": path, "file": jpeg.name, "caption": f"{'a part of ' if is_cut else ''}{width} × {height} px"}


def view_of(boxes_xyxy: Values, width: int, height: int) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of what a tile shows of an image, pixels: the image and what of the boxes is outside, by half its
    sides at most on each of its four; or where its boxes are small a square around them."""
    if not len(boxes_xyxy):
        return 0, 0, width, height
    image, low, high = np.array([width, height]), boxes_xyxy[:, :2].min(axis=0), boxes_xyxy[:, 2:].max(axis=0)
    margin = 0.02 * image.max()
    start = -np.where(low < 0, np.minimum(np.ceil(margin - low), image // 2), 0)
    end = image + np.where(high > image, np.minimum(np.ceil(high - image + margin), image // 2), 0)
    largest = float((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max())
    centre = (low + high) / 2
    if (centre >= 0).all() and (centre <= image).all() and largest < _SMALLEST_SHARE * image.max():
        side = math.ceil(max(largest / _SMALLEST_SHARE, 1.25 * (high - low).max(), _SMALLEST_CUT))
        shown = np.minimum(side, end - start)
        start = np.clip(np.floor(centre - side / 2), start, end - shown)
        end = start + shown
    left, top, right, bottom = (int(value) for value in (*start, *end))
    return left, top, right, bottom


class Faces(NamedTuple):
    """A part's faces: ``sides`` (F, 2) width and height in pixels; ``centres_xy`` (F, 2) in normalized coordinates."""

    sides: Values
    centres_xy: Values


Parts = Mapping[str, Faces]


def faces_of(images: Sequence[SizedImage | None]) -> Faces:
    """The faces of a part's readable images, cleaned as for training."""
    known = [image for image in images if image is not None]
    clean = [clean_boxes(image.boxes_xyxy, image.height, image.width).astype(np.float64) for image in known]
    low, high = np.split(np.concatenate([np.zeros((0, 4)), *clean]), 2, axis=1)
    sizes = np.array([(image.width, image.height) for image in known]).reshape(-1, 2)
    return Faces(high - low, (low + high) / 2 / np.repeat(sizes, [*map(len, clean)], axis=0))


def face_size_figure(parts: Parts, coverages: Sequence[Coverage] = ()) -> Figure:
    """Histogram of face sizes on a logarithmic axis: as labelled, per part, and as the network sees them."""
    curves = {f"{part}, as labelled": np.sqrt(own.sides.prod(axis=1)) for part, own in parts.items()}
    # Whole images at their own size are what the labels say already.
    curves |= {own.title: own.face_sizes.astype(np.float64) for own in coverages if "crops" in own.title}
    with canvas((WIDTH_INCHES, 2.6), style=_STYLE) as (figure, (axis,)):
        for (name, sizes), color in zip(curves.items(), COLORS, strict=False):
            share, _ = np.histogram(sizes.clip(SIZE_EDGES[0], SIZE_EDGES[-1] - 1e-6), SIZE_EDGES)
            label = f"{name} ({len(sizes):,} faces)"
            axis.stairs(100 * share / max(1, len(sizes)), SIZE_EDGES, color=color, linewidth=1.5, label=label)
        _size_axis(axis, SIZE_EDGES)
        axis.set_ylabel("share of the faces, %")
        axis.legend()
    return figure


def coverage_figure(coverage: Coverage) -> Figure:
    """Anchors per face, and faces that get too few, by size of the face."""
    curve = coverage.by_size(SIZE_EDGES.tolist())
    shown = curve.faces >= _LEAST_FACES
    middle = np.sqrt(curve.edges[:-1] * curve.edges[1:])[shown]
    with canvas((WIDTH_INCHES, 2.9), columns=2, style=_STYLE) as (figure, axes):
        for stage, name, dashes in ((0, "first stage", (0, (4, 1.5))), (1, "with second stage", "solid")):
            style: dict[str, Any] = {"linestyle": dashes, "linewidth": 1.4, "marker": ".", "markersize": 3}
            axes[0].plot(middle, curve.anchors_per_face[stage][shown], color=COLORS[0], label=name, **style)
            axes[1].plot(middle, 100 * curve.few[stage][shown], color=COLORS[1], label=f"under 6, {name}", **style)
            axes[1].plot(middle, 100 * curve.without[stage][shown], color=COLORS[6], label=f"none, {name}", **style)
        axes[0].set(ylabel="anchors per face", ylim=(0, None))
        axes[1].set(ylabel="share of the faces, %", ylim=(-2, 102))
        for axis in axes:
            _size_axis(axis, middle)
            axis.legend(bbox_to_anchor=(-0.05, 1.0), loc="lower left", ncols=2 if axis is axes[1] else 1)
    return figure


def position_figure(parts: Parts) -> Figure:
    """Heat map of the faces' centres, one panel per part; coarser where there are few faces."""
    with canvas((WIDTH_INCHES, 2.9), columns=len(parts), style=_STYLE) as (figure, axes):
        for axis, (part, own) in zip(axes, parts.items(), strict=True):
            centres = own.centres_xy
            number = min(max(round(len(centres) ** 0.5 / 2), 4), _MOST_HEAT_CELLS)
            cells, _, _ = np.histogram2d(centres[:, 1], centres[:, 0], number, [[0, 1], [0, 1]])
            # Per cell of even spread, so that parts of any size and grid compare.
            heat = axis.imshow(cells / cells.mean(), extent=(0, 1, 1, 0), cmap="cividis", vmin=0,
                               interpolation="nearest")  # fmt: skip
            figure.colorbar(heat, ax=axis, shrink=0.8).set_label("times an even spread")
            axis.set_title(f"{part}: {counted(len(centres), 'face')}", parse_math=False)
            axis.set_xticks([0, 1], ["left", "right"])
            axis.set_yticks([0, 1], ["top", "bottom"])
            axis.grid(visible=False)
    return figure


def _size_axis(axis: Axes, sizes: Values) -> None:
    """A logarithmic axis of face sizes, with the anchors' sides dotted."""
    for size in SIZES:
        axis.axvline(size, color="0.5", linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    low, high = min([*sizes.tolist(), 8.0]), max([*sizes.tolist(), 64.0])
    axis.set_xscale("log", base=2)
    ticks = [2**power for power in range(12) if low * 0.9 <= 2**power <= high * 1.1]
    axis.set_xticks(ticks, [*map(str, ticks)])
    axis.set(xlabel="face size, pixels", xlim=(low * 0.9, high * 1.1))
