"""The doctor's figures: sizes, shapes, places and numbers of faces, anchor coverage, anchors."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fanet_lightning.data.transforms import clean_boxes
from fanet_lightning.doctor.coverage import BUCKET_EDGES, Coverage, SizedImage, range_label
from fanet_lightning.ops.anchors import SIZES, STRIDES
from fanet_lightning.ops.matching import SECOND_STAGE_IOU
from fanet_lightning.report.figures import COLORS, WIDTHS_INCHES, canvas, save_figure, wrapped

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
_STYLE = {"font.size": 8, "axes.titlesize": 8.5, "legend.fontsize": 7, "legend.frameon": False}
# A legend above its panel.
_ABOVE: dict[str, Any] = {"fontsize": 6.5, "loc": "lower left", "labelspacing": 0.25}


class SavedFigure(NamedTuple):
    """A figure on disk as ``name``.png and ``name``.pdf; ``title`` and ``note`` are for a caption."""

    name: str
    title: str
    note: str


class Faces(NamedTuple):
    """A part's faces: ``sides`` (F, 2) width and height in pixels; ``centres_xy`` (F, 2) in normalized coordinates;
    ``per_image`` (N,) number of faces."""

    sides: Values
    centres_xy: Values
    per_image: npt.NDArray[np.int64]


Parts = Mapping[str, Faces]


def faces_of(images: Sequence[SizedImage | None]) -> Faces:
    """The faces of a part's readable images, cleaned as for training."""
    known = [image for image in images if image is not None]
    clean = [clean_boxes(image.boxes_xyxy, image.height, image.width).astype(np.float64) for image in known]
    boxes = np.concatenate([np.zeros((0, 4)), *clean])
    sizes = [np.tile((image.width, image.height), (len(own), 1)) for image, own in zip(known, clean, strict=True)]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.concatenate([np.zeros((0, 2)), *sizes])
    return Faces(boxes[:, 2:] - boxes[:, :2], centres, np.array([len(own) for own in clean], dtype=np.int64))


def write_figures(
    folder: Path, images: Mapping[str, Sequence[SizedImage | None]], coverages: Sequence[Coverage] = ()
) -> list[SavedFigure]:
    """Draw everything that there are data for into ``folder``, as PNG and PDF.

    Args:
        images: name of a part (``train``, ``val``) → its images.
        coverages: :func:`~fanet_lightning.doctor.coverage.coverage` and ``whole_images``.
    """
    parts = {part: faces_of(own) for part, own in images.items()}
    made: list[tuple[SavedFigure, Figure]] = []
    has_faces = any(len(own.sides) for own in parts.values())

    def add(name: str, title: str, note: str, figure: Figure) -> None:
        made.append((SavedFigure(name, title, note), figure))

    if has_faces:
        note = "Root of the area. Dotted: the anchors' sides. Faces far below the smallest anchor are the hard ones."
        add("face_sizes", "Sizes of the faces", note, face_size_figure(parts, coverages))
    for number, coverage in enumerate((own for own in coverages if len(own.face_sizes)), start=1):
        note = (
            "Left: anchors that learn a face, on average. Middle: faces that no anchor, or fewer than six, learn. "
            "Right: which map's anchors they are, after the second stage."
        )
        add(f"coverage_{number}", f"Anchor coverage: {coverage.title}", note, coverage_figure(coverage))
    if any(len(own.per_image) for own in parts.values()):
        add("faces_per_image", "Faces per image", "", faces_per_image_figure(parts))
    if has_faces:
        note = "Width over height. The anchors are squares, so a face of 1:2 overlaps none by more than 0.55."
        add("aspect_ratios", "Shapes of the faces", note, aspect_ratio_figure(parts))
        note = (
            "Centres of the faces in normalized coordinates, a point each where there are few. A grid or a hard edge "
            "in it is a fault of the labels."
        )
        add("positions", "Where the faces are", note, position_figure(parts))
    note = (
        "Left: centres of the first three maps' anchors, and one anchor of each. Right: the largest overlap of a "
        "square face with any anchor, over all its positions. Under 0.35 the first stage gives it one anchor, its best."
    )
    add("anchors", "The anchors, and what they can overlap", note, anchor_figure())
    folder.mkdir(parents=True, exist_ok=True)
    for saved, figure in made:
        save_figure(figure, folder / saved.name)
    return [saved for saved, _ in made]


def face_size_figure(parts: Parts, coverages: Sequence[Coverage] = ()) -> Figure:
    """Histogram of face sizes on a logarithmic axis: as labelled, per part, and as the network sees them."""
    curves = {f"{part}, as labelled": np.sqrt(own.sides.prod(axis=1)) for part, own in parts.items()}
    # Whole images at their own size are what the labels say already.
    curves |= {own.title: own.face_sizes.astype(np.float64) for own in coverages if "crops" in own.title}
    with _panels(1, 2.6) as (figure, (axis,)):
        for index, (name, sizes) in enumerate(curves.items()):
            _histogram(axis, sizes, SIZE_EDGES, index, f"{name} ({len(sizes):,} faces)")
        _size_axis(axis, SIZE_EDGES, SIZES)
        axis.set_ylabel("share of the faces, %")
        axis.legend()
    return figure


def coverage_figure(coverage: Coverage) -> Figure:
    """Anchors per face, faces that get too few, and the maps that the anchors are of, by size of the face."""
    curve = coverage.by_size(SIZE_EDGES.tolist())
    shown = curve.faces >= _LEAST_FACES
    middle = np.sqrt(curve.edges[:-1] * curve.edges[1:])[shown]
    with _panels(3, 2.9) as (figure, axes):
        figure.suptitle(wrapped(coverage.title, WIDTHS_INCHES["page"]), fontsize=8.5, parse_math=False)
        for stage, name, dashes in ((0, "first stage", (0, (4, 1.5))), (1, "with second stage", "solid")):
            style: dict[str, Any] = {"linestyle": dashes, "linewidth": 1.4, "marker": ".", "markersize": 3}
            axes[0].plot(middle, curve.anchors_per_face[stage][shown], color=COLORS[0], label=name, **style)
            axes[1].plot(middle, 100 * curve.few[stage][shown], color=COLORS[1], label=f"under 6, {name}", **style)
            axes[1].plot(middle, 100 * curve.without[stage][shown], color=COLORS[6], label=f"none, {name}", **style)
        axes[0].set(ylabel="anchors per face", ylim=(0, None))
        axes[1].set(ylabel="share of the faces, %", ylim=(-2, 102))
        for axis in axes[:2]:
            _size_axis(axis, middle, coverage.anchor_sizes, octaves=2)
        table = coverage.by_size(BUCKET_EDGES)
        rows = np.flatnonzero(table.faces > 0)
        by_map = table.anchors_by_map[1, rows]
        heights = 100 * by_map / np.maximum(by_map.sum(axis=1, keepdims=True), 1e-9)
        bottoms = heights.cumsum(axis=1) - heights
        for column, size in enumerate(coverage.anchor_sizes):
            axes[2].bar(np.arange(len(rows)), heights[:, column], bottom=bottoms[:, column], width=0.9,
                        color=COLORS[column % len(COLORS)], label=f"{size} px")  # fmt: skip
        axes[2].set(ylabel="share of the anchors, %", ylim=(0, 100), xlabel="face size, pixels")
        labels = [range_label(table.edges, row) for row in rows.tolist()]
        axes[2].set_xticks(np.arange(len(rows)), labels, rotation=90, fontsize=6.5)
        for axis, columns in zip(axes, (1, 1, 3), strict=True):
            axis.legend(ncols=columns, bbox_to_anchor=(-0.05, 1.0), handlelength=1.8, columnspacing=0.9, **_ABOVE)
    return figure


def faces_per_image_figure(parts: Parts) -> Figure:
    """How many faces an image has."""
    shown = {part: own.per_image for part, own in parts.items() if len(own.per_image)}
    width = 0.85 / max(len(shown), 1)
    with _panels(1, 2.3) as (figure, (axis,)):
        for index, (part, counts) in enumerate(shown.items()):
            share = 100 * np.histogram(counts, COUNT_EDGES)[0] / len(counts)
            places = np.arange(len(share)) + (index - (len(shown) - 1) / 2) * width
            label = f"{part} ({len(counts):,} images, {counts.mean():.1f} faces on average, {counts.max():,} at most)"
            axis.bar(places, share, width, color=COLORS[index], label=label)
        axis.set_xticks(np.arange(len(_COUNT_LABELS)), _COUNT_LABELS)
        axis.set(xlabel="faces per image", ylabel="share of the images, %")
        axis.grid(axis="x", visible=False)
        axis.legend()
    return figure


def aspect_ratio_figure(parts: Parts) -> Figure:
    """Width over height, on a logarithmic axis."""
    edges = 2.0 ** np.linspace(-3, 3, 73)
    with _panels(1, 2.3) as (figure, (axis,)):
        for index, (part, own) in enumerate(parts.items()):
            if len(own.sides):
                ratios = own.sides[:, 0] / own.sides[:, 1]
                _histogram(axis, ratios, edges, index, f"{part} (median {np.median(ratios):.2f})")
        axis.axvline(1, color="0.5", linewidth=0.8, linestyle=(0, (1, 1.5)))
        axis.locator_params(axis="y", nbins=5, integer=True)
        axis.set_xscale("log", base=2)
        axis.set_xticks(2.0 ** np.arange(-3, 4), ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
        axis.set(xlabel="width : height", ylabel="share of the faces, %", xlim=(edges[0], edges[-1]))
        axis.legend()
    return figure


def position_figure(parts: Parts) -> Figure:
    """Heat map of the faces' centres, one panel per part; a point per face where there are few."""
    shown = {part: own.centres_xy for part, own in parts.items() if len(own.centres_xy)}
    with _panels(max(len(shown), 1), 2.9) as (figure, axes):
        for axis, (part, centres) in zip(axes, shown.items(), strict=True):
            if len(centres) < _LEAST_HEAT_FACES:
                # Seen through, so that faces at one place are darker; not cut at the frame.
                axis.scatter(
                    centres[:, 0],
                    centres[:, 1],
                    s=22,
                    color=COLORS[0],
                    alpha=0.5,
                    linewidths=0,
                    clip_on=False,
                    zorder=3,
                )
                axis.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", facecolor="0.96")
            else:
                cells, _, _ = np.histogram2d(centres[:, 1], centres[:, 0], _HEAT_CELLS, [[0, 1], [0, 1]])
                # Per cell of even spread, so that parts of any size and grid compare.
                heat = axis.imshow(cells / max(cells.mean(), 1e-9), extent=(0, 1, 1, 0), cmap="cividis", vmin=0,
                                   interpolation="nearest")  # fmt: skip
                figure.colorbar(heat, ax=axis, shrink=0.8).set_label("times an even spread")
            axis.set_title(f"{part}: {len(centres):,} {'face' if len(centres) == 1 else 'faces'}", parse_math=False)
            axis.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xticklabels=["left", "", "right"])
            axis.set_yticklabels(["top", "", "bottom"])
            axis.grid(visible=False)
    return figure


def anchor_figure() -> Figure:
    """Where anchors stand, and the largest overlap that a square face of each size finds with them."""
    side = 64
    with _panels(2, 3.0) as (figure, (left, right)):
        for index, (stride, size, marker) in enumerate(zip(STRIDES[:3], SIZES[:3], (".", "o", "s"), strict=False)):
            first = (np.arange(side // stride) + 0.5) * stride
            x, y = np.meshgrid(first, first)
            left.scatter(x, y, s=(3, 12, 34)[index], marker=marker,
                         facecolors="none" if index else COLORS[0], edgecolors=COLORS[index], linewidths=0.9,
                         label=f"{size} px, one every {stride}")  # fmt: skip
            corner = first[len(first) // 2] - size / 2
            left.add_patch(Rectangle((corner, corner), size, size, fill=False, edgecolor=COLORS[index], linewidth=1.4))
        left.set(xlim=(0, side), ylim=(side, 0), aspect="equal", xlabel="pixels", xticks=range(0, side + 1, 16))
        left.set_yticks(range(0, side + 1, 16))
        left.grid(visible=False)
        left.legend(bbox_to_anchor=(-0.02, 1.0), **_ABOVE)
        sizes = 2.0 ** np.linspace(1, 10, 217)
        best = best_overlaps(sizes)
        right.fill_between(sizes, best.min(axis=1), best.max(axis=1), color=COLORS[0], alpha=0.2, linewidth=0)
        label = "average over positions (all: shaded)"
        right.plot(sizes, best.mean(axis=1), color=COLORS[0], linewidth=1.4, label=label)
        right.axhline(0.35, color=COLORS[1], linewidth=1, label="first stage: above 0.35")
        right.axhline(SECOND_STAGE_IOU, color=COLORS[1], linewidth=1, linestyle=(0, (4, 1.5)),
                      label=f"second stage: above {SECOND_STAGE_IOU:g}")  # fmt: skip
        _size_axis(right, sizes, SIZES)
        right.set(ylim=(0, 1), ylabel="largest IoU with an anchor")
        right.legend(bbox_to_anchor=(-0.05, 1.0), **_ABOVE)
    return figure


def best_overlaps(sizes: npt.ArrayLike, positions: int = 37) -> Values:
    """Largest IoU of a square face with any anchor: (S,) sizes in pixels → (S, P) by position of its centre.

    ``positions`` per axis, evenly over the coarsest stride; P is their square. An odd number visits every phase of the
    finer strides. Far from the image's border.
    """
    face = np.asarray(sizes, dtype=np.float64)[:, None]
    axis = (np.arange(positions) + 0.5) * STRIDES[-1] / positions
    best = np.zeros((len(face), positions * positions))
    for stride, size in zip(STRIDES, SIZES, strict=True):
        # Of one map the anchor nearest in x and y overlaps most, as all are of one size.
        offset = np.abs(axis - (np.floor(axis / stride) + 0.5) * stride)
        overlap = np.clip(np.minimum((face + size) / 2 - offset, np.minimum(face, size)), 0, None)
        intersection = (overlap[:, :, None] * overlap[:, None, :]).reshape(len(face), -1)
        best = np.maximum(best, intersection / (face**2 + size**2 - intersection))
    return best


def _panels(count: int, height: float) -> AbstractContextManager[tuple[Figure, list[Axes]]]:
    """Side by side over the width of a page."""
    return canvas((WIDTHS_INCHES["page"], height), columns=count, style=_STYLE)


def _histogram(axis: Axes, values: Values, edges: Values, index: int, label: str) -> None:
    if len(values):
        share, _ = np.histogram(values.clip(edges[0], edges[-1] - 1e-6), edges)
        axis.stairs(100 * share / len(values), edges, color=COLORS[index], linewidth=1.5, label=label)


def _size_axis(axis: Axes, sizes: Values, anchor_sizes: Sequence[int], octaves: int = 1) -> None:
    """A logarithmic axis of face sizes, with the anchors' sides dotted."""
    for size in anchor_sizes:
        axis.axvline(size, color="0.5", linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    low, high = min([*sizes.tolist(), 8.0]), max([*sizes.tolist(), 64.0])
    axis.set_xscale("log", base=2)
    ticks = [2**power for power in range(0, 12, octaves) if low * 0.9 <= 2**power <= high * 1.1]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel="face size, pixels", xlim=(low * 0.9, high * 1.1))
