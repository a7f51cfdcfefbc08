"""The figures, and sheets of detections coloured by confidence (paper, figures 4, 8, 9)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fanet_lightning.curve_plots import precision_recall_figure
from fanet_lightning.figure_style import STYLE, save_figure
from fanet_lightning.media.drawing import confidence_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STYLE", "detection_sheet", "draw_detections", "precision_recall_figure", "save_figure"]


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

    drawn = np.ascontiguousarray(image_rgb).copy()
    colours = confidence_colours(scores)
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
