"""The doctor's report as static files: tables, figures, small images."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced_folder
from fanet_lightning.data.images import Image8, UnreadableImage, read_image_rgb
from fanet_lightning.doctor.checks import Finding, Report, best_overlaps
from fanet_lightning.doctor.coverage import BUCKET_EDGES, Coverage, SizedImage, range_label
from fanet_lightning.report.figures import COLOURS, STYLE, WIDTHS_INCHES, save_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Box = tuple[float, float, float, float]

# Longer side of a picture, pixels: two columns of cards on a screen of high density.
SIDE = 480
_QUALITY = 70
# A box takes at least this share of the picture's longer side, or a part around it is cut out …
_SMALLEST_SHARE = 1 / 6
# … of at least so many pixels of the image, so that it is still seen what is there.
_SMALLEST_CUT = 96
_MAX_BOXES = 400


class Sheet(NamedTuple):
    """What is shown of an image.

    ``path``      of the image.
    ``file``      name of the JPEG, or None: ``reason`` says why there is none.
    ``view_xywh`` the part of the image's plane that the sheet shows, pixels of the image; it may reach outside.
    ``image_wh``  width and height of the image, or None.
    ``cut_xywh``  where the JPEG lies, pixels of the image.
    ``boxes_xywh``  the boxes that can be drawn.
    """

    path: Path
    file: str | None
    reason: str | None
    view_xywh: Box
    image_wh: tuple[int, int] | None
    cut_xywh: Box
    boxes_xywh: tuple[Box, ...]

    @property
    def is_cut(self) -> bool:
        """Whether a part of the image is shown in place of the whole."""
        return self.image_wh is not None and (self.cut_xywh[2], self.cut_xywh[3]) != self.image_wh


def draw_sheet(path: Path, jpeg: Path, boxes_xyxy: Sequence[Box] = ()) -> Sheet:
    """Write ``jpeg``, upright, and say where the boxes go. An image that cannot be read gives an empty sheet.

    Boxes that are not finite cannot be drawn and are left out; inverted ones are drawn between their corners.
    """
    import cv2

    boxes = tuple(_drawable(box) for box in boxes_xyxy if all(map(math.isfinite, box)))[:_MAX_BOXES]
    try:
        image = read_image_rgb(path)
    except UnreadableImage as error:
        view = _around(boxes)
        return Sheet(path, None, error.reason, view, None, view, boxes)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = _cut(boxes, width, height)
    part = _shrunk(image[y1:y2, x1:x2])
    # Not cv2.imwrite, which tells nobody when the disk is full.
    done, content = cv2.imencode(".jpg", cv2.cvtColor(part, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError(f"cannot encode a picture of {part.shape}")
    jpeg.write_bytes(content.tobytes())
    cut = (float(x1), float(y1), float(x2 - x1), float(y2 - y1))
    return Sheet(path, jpeg.name, None, _view(cut, boxes), (width, height), cut, boxes)


def _drawable(box_xyxy: Box) -> Box:
    """→ x, y, width, height, not negative."""
    x1, y1, x2, y2 = box_xyxy
    return min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)


def _extent(boxes_xywh: Sequence[Box]) -> Box:
    """x1, y1, x2, y2 around all boxes."""
    return (
        min(x for x, _, _, _ in boxes_xywh),
        min(y for _, y, _, _ in boxes_xywh),
        max(x + w for x, _, w, _ in boxes_xywh),
        max(y + h for _, y, _, h in boxes_xywh),
    )


def _around(boxes_xywh: Sequence[Box]) -> Box:
    """View of a sheet without an image."""
    if not boxes_xywh:
        return 0.0, 0.0, 640.0, 480.0
    x1, y1, x2, y2 = _extent(boxes_xywh)
    margin = max(x2 - x1, y2 - y1, 8.0) * 0.1
    return x1 - margin, y1 - margin, x2 - x1 + 2 * margin, y2 - y1 + 2 * margin


def _cut(boxes_xywh: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """The whole image, or where its boxes are small a square around them: whole pixels, within the image."""
    everything = (0, 0, width, height)
    if not boxes_xywh:
        return everything
    x1, y1, x2, y2 = _extent(boxes_xywh)
    largest = max(max(w, h) for _, _, w, h in boxes_xywh)
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    # A part that does not show the boxes shows nothing.
    if largest >= _SMALLEST_SHARE * max(width, height) or not (0 <= centre_x <= width and 0 <= centre_y <= height):
        return everything
    side = max(largest / _SMALLEST_SHARE, 1.25 * max(x2 - x1, y2 - y1), _SMALLEST_CUT)
    spans = []
    for centre, length in ((centre_x, width), (centre_y, height)):
        span = min(math.ceil(side), length)
        spans.append((min(max(math.floor(centre - side / 2), 0), length - span), span))
    (left, across), (top, down) = spans
    return left, top, left + across, top + down


def _view(cut_xywh: Box, boxes_xywh: Sequence[Box]) -> Box:
    """The cut, and beyond it what of the boxes lies outside: by half its sides at most on each of its four."""
    x, y, width, height = cut_xywh
    if not boxes_xywh:
        return cut_xywh
    x1, y1, x2, y2 = _extent(boxes_xywh)
    pad = 0.02 * max(width, height)
    left = min(max(x - x1 + pad if x1 < x else 0.0, 0.0), width / 2)
    top = min(max(y - y1 + pad if y1 < y else 0.0, 0.0), height / 2)
    right = min(max(x2 - x - width + pad if x2 > x + width else 0.0, 0.0), width / 2)
    bottom = min(max(y2 - y - height + pad if y2 > y + height else 0.0, 0.0), height / 2)
    return x - left, y - top, width + left + right, height + top + bottom


def _shrunk(image: Image8) -> Image8:
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    scale = SIDE / max(width, height)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


Parts = Mapping[str, Sequence[SizedImage | None]]
Values = npt.NDArray[np.float64]

# Four bins per octave, 1 … 2048 pixels.
SIZE_EDGES = 2.0 ** (np.arange(0, 45) / 4)
COUNT_EDGES = np.array([0, 1, 2, 3, 4, 6, 11, 21, 51, 101, np.inf])
_COUNT_LABELS = ("0", "1", "2", "3", "4–5", "6–10", "11–20", "21–50", "51–100", "> 100")
_HEAT_CELLS = 24
# With fewer faces nearly all of the 24 × 24 cells are empty, and a point each shows more.
_LEAST_HEAT_FACES = 200
# A point of a curve over fewer faces is noise.
_LEAST_FACES = 5


class SavedFigure(NamedTuple):
    """A figure on disk as ``name``.png and ``name``.pdf; ``title`` and ``note`` are for a caption."""

    name: str
    title: str
    note: str


class _Faces(NamedTuple):
    """A part's faces: ``sides`` (F, 2) width and height in pixels; ``centres_xy`` (F, 2) as shares of their image;
    ``per_image`` (N,) number of faces."""

    sides: Values
    centres_xy: Values
    per_image: npt.NDArray[np.int64]


def write_figures(folder: Path, parts: Parts, coverages: Sequence[Coverage] = ()) -> list[SavedFigure]:
    """Draw everything that there are data for into ``folder``, as PNG and PDF.

    Args:
        parts: name of a part (``train``, ``val``) → its images.
        coverages: :func:`~fanet_lightning.doctor.coverage.coverage` and ``whole_images``.
    """
    made: list[tuple[SavedFigure, Figure]] = []
    faces = {part: _faces(images) for part, images in parts.items()}
    if any(len(own.sides) for own in faces.values()):
        note = "Root of the area. Dotted: the anchors' sides. Faces far below the smallest anchor are the hard ones."
        made.append((SavedFigure("face_sizes", "Sizes of the faces", note), face_size_figure(parts, coverages)))
    for number, coverage in enumerate((own for own in coverages if len(own.face_sizes)), start=1):
        note = (
            "Left: anchors that learn a face, on average. Middle: faces that no anchor, or fewer than six, learn. "
            "Right: which map's anchors they are, after the second stage."
        )
        title = f"Anchor coverage: {coverage.title}"
        made.append((SavedFigure(f"coverage_{number}", title, note), coverage_figure(coverage)))
    if any(len(own.per_image) for own in faces.values()):
        made.append((SavedFigure("faces_per_image", "Faces per image", ""), faces_per_image_figure(parts)))
    if any(len(own.sides) for own in faces.values()):
        note = "Width over height. The anchors are squares, so a face of 1:2 overlaps none by more than 0.55."
        made.append((SavedFigure("aspect_ratios", "Shapes of the faces", note), aspect_ratio_figure(parts)))
        note = (
            "Centres of the faces as shares of their image, a point each where there are few. A grid or a hard edge in "
            "it is a fault of the labels."
        )
        made.append((SavedFigure("positions", "Where the faces lie", note), position_figure(parts)))
    note = (
        "Left: centres of the first three maps' anchors, and one anchor of each. Right: the largest overlap of a "
        "square face with any anchor, over all its positions. Under 0.35 the first stage gives it one anchor, its best."
    )
    made.append((SavedFigure("anchors", "The anchors, and what they can overlap", note), anchor_figure()))
    folder.mkdir(parents=True, exist_ok=True)
    for saved, figure in made:
        save_figure(figure, folder / saved.name)
    return [saved for saved, _ in made]


def face_size_figure(parts: Parts, coverages: Sequence[Coverage] = ()) -> "Figure":
    """Histogram of face sizes on a logarithmic axis: as labelled, per part, and as the network sees them."""
    from fanet_lightning.ops.anchors import SIZES

    curves = {f"{part}, as labelled": np.sqrt(_faces(images).sides.prod(axis=1)) for part, images in parts.items()}
    # Whole images at their own size are what the labels say already.
    curves |= {own.title: own.face_sizes.astype(np.float64) for own in coverages if "crops" in own.title}
    with _figure(1, 2.6) as (figure, (axis,)):
        for index, (name, sizes) in enumerate(curves.items()):
            if len(sizes):
                share, _ = np.histogram(sizes.clip(SIZE_EDGES[0], SIZE_EDGES[-1] - 1e-6), SIZE_EDGES)
                label = f"{name} ({len(sizes):,} faces)"
                axis.stairs(100 * share / len(sizes), SIZE_EDGES, color=COLOURS[index], linewidth=1.5, label=label)
        _mark_anchors(axis, SIZES)
        _size_axis(axis, "face size, pixels")
        axis.set_ylabel("share of the faces, %")
        axis.legend()
    return figure


def coverage_figure(coverage: Coverage) -> "Figure":
    """Anchors per face, faces that get too few, and the maps that the anchors are of, by size of the face."""
    curve = coverage.by_size(SIZE_EDGES.tolist())
    shown = curve.faces >= _LEAST_FACES
    middle = np.sqrt(curve.edges[:-1] * curve.edges[1:])[shown]
    with _figure(3, 2.9, coverage.title) as (figure, axes):
        stages = ((0, "first stage", (0, (4, 1.5))), (1, "with second stage", "solid"))
        for stage, name, dashes in stages:
            style: dict[str, Any] = {"linestyle": dashes, "linewidth": 1.4, "marker": ".", "markersize": 3}
            axes[0].plot(middle, curve.anchors_per_face[stage][shown], color=COLOURS[0], label=name, **style)
            axes[1].plot(middle, 100 * curve.few[stage][shown], color=COLOURS[1], label=f"under 6, {name}", **style)
            axes[1].plot(middle, 100 * curve.without[stage][shown], color=COLOURS[6], label=f"none, {name}", **style)
        axes[0].set(ylabel="anchors per face", ylim=(0, None))
        axes[1].set(ylabel="share of the faces, %", ylim=(-2, 102))
        table = coverage.by_size(BUCKET_EDGES)
        by_map = table.anchors_by_map[1]
        rows = np.flatnonzero(table.faces > 0)
        bottom = np.zeros(len(rows))
        for column, size in enumerate(coverage.anchor_sizes):
            heights = 100 * by_map[rows, column] / np.maximum(by_map[rows].sum(axis=1), 1e-9)
            colour = COLOURS[column % len(COLOURS)]
            axes[2].bar(np.arange(len(rows)), heights, bottom=bottom, width=0.9, color=colour, label=f"{size} px")
            bottom += heights
        axes[2].set(ylabel="share of the anchors, %", ylim=(0, 100), xlabel="face size, pixels")
        axes[2].set_xticks(
            np.arange(len(rows)), [range_label(table.edges, row) for row in rows.tolist()], rotation=90, fontsize=6.5
        )
        for axis in axes[:2]:
            _mark_anchors(axis, coverage.anchor_sizes)
            _size_axis(axis, "face size, pixels", sizes=middle, octaves=2)
        for axis, columns in zip(axes, (1, 1, 3), strict=True):
            axis.legend(fontsize=6.5, ncols=columns, loc="lower left", bbox_to_anchor=(-0.05, 1.0),
                        handlelength=1.8, columnspacing=0.9, labelspacing=0.25)  # fmt: skip
    return figure


def faces_per_image_figure(parts: Parts) -> "Figure":
    """How many faces an image has."""
    with _figure(1, 2.3) as (figure, (axis,)):
        parts = {part: images for part, images in parts.items() if any(image is not None for image in images)}
        width = 0.85 / max(len(parts), 1)
        for index, (part, images) in enumerate(parts.items()):
            counts = _faces(images).per_image
            share = 100 * np.histogram(counts, COUNT_EDGES)[0] / len(counts)
            label = f"{part} ({len(counts):,} images, {counts.mean():.1f} faces on average, {counts.max():,} at most)"
            axis.bar(
                np.arange(len(share)) + (index - (len(parts) - 1) / 2) * width,
                share,
                width,
                color=COLOURS[index],
                label=label,
            )
        axis.set_xticks(np.arange(len(_COUNT_LABELS)), _COUNT_LABELS)
        axis.set(xlabel="faces per image", ylabel="share of the images, %")
        axis.grid(axis="x", visible=False)
        axis.legend()
    return figure


def aspect_ratio_figure(parts: Parts) -> "Figure":
    """Width over height, on a logarithmic axis."""
    edges = 2.0 ** np.linspace(-3, 3, 73)
    with _figure(1, 2.3) as (figure, (axis,)):
        for index, (part, images) in enumerate(parts.items()):
            sides = _faces(images).sides
            if not len(sides):
                continue
            ratio = sides[:, 0] / sides[:, 1]
            share, _ = np.histogram(ratio.clip(edges[0], edges[-1] - 1e-9), edges)
            label = f"{part} (median {np.median(ratio):.2f})"
            axis.stairs(100 * share / len(ratio), edges, color=COLOURS[index], linewidth=1.5, label=label)
        axis.axvline(1, color="0.5", linewidth=0.8, linestyle=(0, (1, 1.5)))
        axis.locator_params(axis="y", nbins=5, integer=True)
        axis.set_xscale("log", base=2)
        ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
        axis.set_xticks(ticks, ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
        axis.set(xlabel="width : height", ylabel="share of the faces, %", xlim=(edges[0], edges[-1]))
        axis.legend()
    return figure


def position_figure(parts: Parts) -> "Figure":
    """Heat map of the faces' centres, one panel per part; a point per face where there are few."""
    parts = {part: images for part, images in parts.items() if len(_faces(images).sides)}
    with _figure(max(len(parts), 1), 2.9) as (figure, axes):
        for axis, (part, images) in zip(axes, parts.items(), strict=True):
            centres = _faces(images).centres_xy
            if len(centres) < _LEAST_HEAT_FACES:
                # Seen through, so that faces at one place are darker; not cut at the frame.
                axis.scatter(centres[:, 0], centres[:, 1], s=22, color=COLOURS[0], alpha=0.5, linewidths=0,
                             clip_on=False, zorder=3)  # fmt: skip
                axis.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", facecolor="0.96")
            else:
                cells, _, _ = np.histogram2d(centres[:, 1], centres[:, 0], _HEAT_CELLS, [[0, 1], [0, 1]])
                # Per cell of even spread, so that parts of any size and grid compare.
                picture = axis.imshow(
                    cells / max(cells.mean(), 1e-9), extent=(0, 1, 1, 0), cmap="cividis", vmin=0,
                    interpolation="nearest",
                )  # fmt: skip
                figure.colorbar(picture, ax=axis, shrink=0.8).set_label("times an even spread")
            axis.set_title(f"{part}: {len(centres):,} {'face' if len(centres) == 1 else 'faces'}", parse_math=False)
            axis.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xticklabels=["left", "", "right"])
            axis.set_yticklabels(["top", "", "bottom"])
            axis.grid(visible=False)
    return figure


def anchor_figure(threshold: float = 0.35) -> "Figure":
    """Where anchors stand, and the largest overlap that a square face of each size finds with them."""
    from fanet_lightning.ops.anchors import SIZES, STRIDES
    from fanet_lightning.ops.matching import SECOND_STAGE_IOU

    side = 64
    with _figure(2, 3.0) as (figure, (left, right)):
        for index, (stride, size, marker) in enumerate(zip(STRIDES[:3], SIZES[:3], (".", "o", "s"), strict=False)):
            first = (np.arange(side // stride) + 0.5) * stride
            x, y = np.meshgrid(first, first)
            label = f"{size} px, one every {stride}"
            left.scatter(x, y, s=(3, 12, 34)[index], marker=marker, facecolors="none" if index else COLOURS[0],
                         edgecolors=COLOURS[index], linewidths=0.9, label=label)  # fmt: skip
            centre = first[len(first) // 2]
            corner = centre - size / 2
            left.add_patch(_rectangle(corner, size, COLOURS[index]))
        left.set(xlim=(0, side), ylim=(side, 0), aspect="equal", xlabel="pixels", xticks=range(0, side + 1, 16))
        left.set_yticks(range(0, side + 1, 16))
        left.grid(visible=False)
        left.legend(fontsize=6.5, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=1, labelspacing=0.25)
        sizes = 2.0 ** np.linspace(1, 10, 217)
        best = best_overlaps(sizes)
        right.fill_between(sizes, best.min(axis=1), best.max(axis=1), color=COLOURS[0], alpha=0.2, linewidth=0)
        right.plot(
            sizes, best.mean(axis=1), color=COLOURS[0], linewidth=1.4, label="average over positions (all: shaded)"
        )
        right.axhline(threshold, color=COLOURS[1], linewidth=1, label=f"first stage: above {threshold:g}")
        right.axhline(SECOND_STAGE_IOU, color=COLOURS[1], linewidth=1, linestyle=(0, (4, 1.5)),
                      label=f"second stage: above {SECOND_STAGE_IOU:g}")  # fmt: skip
        _mark_anchors(right, SIZES)
        _size_axis(right, "face size, pixels", sizes=sizes)
        right.set(ylim=(0, 1), ylabel="largest IoU with an anchor")
        right.legend(fontsize=6.5, loc="lower left", bbox_to_anchor=(-0.05, 1.0), labelspacing=0.25)
    return figure


def _faces(images: Sequence[SizedImage | None]) -> _Faces:
    from fanet_lightning.data.transforms import clean_boxes

    known = [image for image in images if image is not None]
    clean = [clean_boxes(image.boxes_xyxy, image.height, image.width).astype(np.float64) for image in known]
    boxes = np.concatenate([np.zeros((0, 4)), *clean])
    sizes = [
        np.broadcast_to((image.width, image.height), (len(own), 2)) for image, own in zip(known, clean, strict=True)
    ]
    wh = np.concatenate([np.zeros((0, 2)), *sizes])
    return _Faces(
        sides=boxes[:, 2:] - boxes[:, :2],
        centres_xy=(boxes[:, :2] + boxes[:, 2:]) / 2 / wh,
        per_image=np.array([len(own) for own in clean], dtype=np.int64),
    )


@contextmanager
def _figure(count: int, height: float, title: str = "") -> "Iterator[tuple[Figure, list[Axes]]]":
    """A page-wide figure of panels side by side, laid out when the block ends."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    width = WIDTHS_INCHES["page"]
    with mpl.rc_context(
        {**STYLE, "font.size": 8, "axes.titlesize": 8.5, "legend.fontsize": 7, "legend.frameon": False}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False).ravel().tolist()
        if title:
            figure.suptitle(wrapped(title, width), fontsize=8.5, parse_math=False)
        yield figure, axes
        # Laid out here, else each file that it is written to would do it again; twice, since ticks follow the layout.
        for _ in range(2):
            if (engine := figure.get_layout_engine()) is not None:
                engine.execute(figure)
        figure.set_layout_engine("none")


def _mark_anchors(axis: "Axes", anchor_sizes: Sequence[int]) -> None:
    for size in anchor_sizes:
        axis.axvline(size, color="0.5", linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)


def _size_axis(axis: "Axes", label: str, sizes: Values = SIZE_EDGES, octaves: int = 1) -> None:
    low, high = (float(sizes.min()), float(sizes.max())) if len(sizes) else (1.0, 1024.0)
    low, high = min(low, 8.0), max(high, 64.0)
    axis.set_xscale("log", base=2)
    ticks = [2**power for power in range(0, 12, octaves) if low * 0.9 <= 2**power <= high * 1.1]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel=label, xlim=(low * 0.9, high * 1.1))


def _rectangle(corner: float, side: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((corner, corner), side, side, fill=False, edgecolor=colour, linewidth=1.4)


INDEX_FILE = "index.html"
FIGURES, THUMBNAILS = "figures", "thumbnails"
# Rows of the list of all findings; a set with more needs mending by rule, not by reading.
MAX_ROWS = 20_000

_TEMPLATES = Path(__file__).parent / "templates"
_OWN = {INDEX_FILE, FIGURES, THUMBNAILS}


def write_page(
    folder: Path,
    report: Report,
    *,
    parts: Mapping[str, Sequence[SizedImage | None]] | None = None,
    coverages: Sequence[Coverage] = (),
    worst: int = 12,
) -> Path:
    """Write the page into ``folder``, which appears whole or not at all; an earlier page there is replaced.

    The page loads nothing from elsewhere, so the folder can be moved and sent.

    Args:
        parts: ``train``, ``val`` → images with their sizes, for the figures; None: no figure.
        coverages: anchor coverage, one table and figure each.
        worst: at most so many pictures of a kind, or pairs of pictures, are shown; 0 for none.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: ``folder`` holds something else than such a page, or cannot be written.
        ValueError: ``worst`` below 0, or a finding of a kind that the report does not list.
    """
    if worst < 0:
        raise ValueError(f"worst={worst}: at least 0")
    if strangers := {finding.kind for finding in report.findings} - {kind.name for kind in report.kinds}:
        raise ValueError(f"findings of the kind '{min(strangers)}', which the report does not list")
    check_page_folder(folder)
    with replaced_folder(folder) as temporary:
        figures = write_figures(temporary / FIGURES, parts, coverages) if parts is not None else []
        content = {
            "report": report,
            "severities": _severities(report),
            "sections": _sections(temporary, report, worst),
            "figures": figures,
            "coverages": [_coverage_rows(coverage) for coverage in coverages],
            "rows": _rows(report),
            "left_out": max(0, len(report.findings) - MAX_ROWS),
        }
        (temporary / INDEX_FILE).write_text(_rendered(content), encoding="utf-8", errors="replace")
    return folder / INDEX_FILE


def check_page_folder(folder: Path, images: Sequence[Path] = ()) -> None:
    """Refuse, before any work, a folder that the page must not be written into.

    Args:
        images: the folders of the data set's images: pictures of a page in there would be taken for images.

    Raises:
        InputError: ``folder`` holds something else than such a page, or lies in one of ``images``.
    """
    check_replaceable(folder, "the doctor's page", lambda entry: entry.name in _OWN and (folder / INDEX_FILE).is_file())
    for place in images:
        if folder.resolve().is_relative_to(place.resolve()):
            raise InputError(
                f"the pictures in {folder} would lie among the images in {place} and be taken for some of them; "
                "give another out, or page=false"
            )


def _severities(report: Report) -> dict[str, int]:
    counts = {"error": 0, "warning": 0, "note": 0}
    severity = {kind.name: kind.severity for kind in report.kinds}
    for finding in report.findings:
        counts[severity[finding.kind]] += 1
    return counts


def _sections(folder: Path, report: Report, worst: int) -> list[dict[str, Any]]:
    """One entry per kind, in the report's order: its counts by part, and its worst findings with their pictures."""
    thumbnails = folder / THUMBNAILS
    thumbnails.mkdir()
    by_part: dict[str, dict[str, int]] = {}
    for finding in report.findings:
        counts = by_part.setdefault(finding.kind, {})
        counts[finding.part] = counts.get(finding.part, 0) + 1
    sections = []
    for kind in report.kinds:
        count = sum(by_part.get(kind.name, {}).values())
        shown = _worst(report.of_kind(kind.name), worst) if count else []
        cards = [
            {"finding": own, "more": more, "sheets": _sheets(thumbnails, f"{kind.name}-{number:03d}", own)}
            for number, (own, more) in enumerate(shown, start=1)
        ]
        sections.append({"kind": kind, "count": count, "by_part": by_part.get(kind.name, {}), "cards": cards})
    return sections


def _worst(findings: list[Finding], count: int) -> list[tuple[Finding, int]]:
    """The worst findings and how many more there are of the same image: one of each, or one image would fill the page.

    A finding about a label file, or of a pair, stands for itself.
    """
    groups: dict[Any, list[Finding]] = {}
    for place, finding in enumerate(findings):
        alone = not finding.image_id or finding.other_path is not None
        groups.setdefault(place if alone else (finding.part, finding.path), []).append(finding)
    return [(group[0], len(group) - 1) for group in list(groups.values())[:count]]


def _sheets(thumbnails: Path, stem: str, finding: Finding) -> list[Sheet]:
    """The picture of a finding; of a pair both. A finding about a label file has none."""
    if not finding.image_id and finding.other_path is None and finding.kind != "unlabelled_image":
        return []
    sheets = [draw_sheet(finding.path, thumbnails / f"{stem}.jpg", finding.boxes_xyxy)]
    if finding.other_path is not None:
        sheets.append(draw_sheet(finding.other_path, thumbnails / f"{stem}-other.jpg"))
    return sheets


def _rows(report: Report) -> list[list[Any]]:
    """Number of the kind, part, image or file, detail, second image, badness: what the list of findings is made of."""
    number = {kind.name: place for place, kind in enumerate(report.kinds)}
    # The most severe first, and within a kind the worst: what is left out is what matters least.
    ordered = sorted(report.findings, key=lambda finding: (number[finding.kind], -finding.badness))
    return [
        [
            number[finding.kind],
            finding.part,
            finding.image_id or str(finding.path),
            finding.detail,
            "" if finding.other_path is None else f"{finding.other_part or finding.part}: {finding.other_path}",
            finding.badness if math.isfinite(finding.badness) else None,
        ]
        for finding in ordered[:MAX_ROWS]
    ]


def _coverage_rows(coverage: Coverage) -> dict[str, Any]:
    table, overall = coverage.by_size(), coverage.overall()
    rows = []
    for source, label in [(table, None), (overall, "all")]:
        for row in range(len(source.faces)):
            if source.faces[row]:
                by_map = source.anchors_by_map[1, row]
                rows.append(
                    {
                        "label": label or range_label(source.edges, row),
                        "faces": int(source.faces[row]),
                        "anchors": source.anchors_per_face[:, row].tolist(),
                        "without": source.without[:, row].tolist(),
                        "few": source.few[:, row].tolist(),
                        "maps": (by_map / max(float(by_map.sum()), 1e-9)).tolist(),
                    }
                )
    return {"coverage": coverage, "seen": len(coverage.face_sizes), "rows": rows}


def _rendered(content: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    # Names of files may hold bytes that are no text; a page is text.
    environment.filters["text"] = lambda value: str(value).encode("utf-8", "replace").decode("utf-8")
    return environment.get_template("doctor.html.jinja").render(
        **content,
        # Valid JSON of ASCII alone, and nothing that could end the script element.
        data=json.dumps(content["rows"], allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        style=(_TEMPLATES / "doctor.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "doctor.js").read_text(encoding="utf-8"),
        max_rows=MAX_ROWS,
        figures_folder=FIGURES,
        thumbnails_folder=THUMBNAILS,
    )
