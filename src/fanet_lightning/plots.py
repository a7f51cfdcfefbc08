"""Figures: precision-recall curves, and sheets of detections coloured by confidence (paper, figures 4, 8, 9)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.files import replaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fanet_lightning.scoring.curves import Curve

# Vector text stays text in the PDF, so that a paper's fonts and searches work.
STYLE: dict[Any, Any] = {"pdf.fonttype": 42, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True,
         "grid.color": "0.9", "axes.axisbelow": True}  # fmt: skip


def precision_recall_figure(runs: Mapping[str, Mapping[str, "Curve"]], title: str = "") -> "Figure":
    """One panel per setting, one line per run, AP in the legend.

    Args:
        runs: name of a run → setting → curve.
        title: protocol and data, so that the numbers are never without them.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(setting for curves in runs.values() for setting in curves))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * max(len(settings), 1), 3.2), layout="constrained")
        axes = figure.subplots(1, max(len(settings), 1), sharey=True, squeeze=False)[0]
        for axis, setting in zip(axes, settings, strict=True):
            for name, curves in runs.items():
                if setting in curves:
                    curve = curves[setting]
                    axis.plot(curve.recall, curve.precision, linewidth=1.5, label=f"{name} {curve.ap:.3f}")
            axis.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", title=setting)
            axis.legend(loc="lower left", frameon=False)
        axes[0].set_ylabel("precision")
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def save_figure(figure: "Figure", stem: Path) -> list[Path]:
    """Write ``stem``.pdf (vector, for papers) and ``stem``.png (for looking); each appears by rename."""
    paths = []
    for suffix in (".pdf", ".png"):
        path = stem.with_suffix(suffix)
        with replaced(path) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=160)
        paths.append(path)
    return paths


def draw_detections(
    image_rgb: npt.NDArray[np.uint8],
    boxes_xyxy: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating],
    faces_xyxy: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.uint8]:
    """The image with its boxes, colour = confidence in matplotlib's ``turbo``; annotated faces as thin white boxes.

    Args:
        image_rgb: (H, W, 3) uint8.
        boxes_xyxy: (D, 4) pixels.
        scores: (D,) in [0, 1].
        faces_xyxy: (F, 4) pixels, or None.
    """
    import cv2
    import matplotlib as mpl

    drawn = np.ascontiguousarray(image_rgb).copy()
    colours = (mpl.colormaps["turbo"](np.clip(scores, 0, 1))[:, :3] * 255).round().astype(int)
    thickness = max(1, round(max(image_rgb.shape[:2]) / 500))
    for box in faces_xyxy if faces_xyxy is not None else []:
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), (255, 255, 255), 1)
    # Ascending, so that confident boxes lie on top.
    for index in np.argsort(scores):
        x1, y1, x2, y2 = (round(float(v)) for v in boxes_xyxy[index])
        cv2.rectangle(drawn, (x1, y1), (x2, y2), colours[index].tolist(), thickness)
    return drawn


def detection_sheet(
    images_rgb: Sequence[npt.NDArray[np.uint8]], titles: Sequence[str], caption: str, columns: int = 3
) -> "Figure":
    """Drawn images in a grid with the colour bar of confidence at the right."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows = max(1, -(-len(images_rgb) // columns))
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(4.0 * columns + 0.8, 3.0 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, image, title in zip(axes.flat, images_rgb, titles, strict=False):
            axis.imshow(image)
            axis.set_title(title, fontsize=7)
        bar = ScalarMappable(Normalize(0, 1), "turbo")
        figure.colorbar(bar, ax=axes, fraction=0.02, pad=0.01, label="confidence")
        figure.suptitle(caption, fontsize=9)
    return figure
