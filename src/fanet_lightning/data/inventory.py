"""What a data set's labels hold, exactly as they are written: what the doctor reads, and nobody trains on.

A source's records are clean and complete, or reading them fails. An inventory is tolerant: a label without an image, a
box without area or a row that nobody understands is in it, so that all of them can be named at once.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image that labels speak of.

    ``image_id``      as in :class:`~fanet_lightning.data.records.ImageRecord`.
    ``path``          where the image should be; it may not exist.
    ``boxes_xyxy``    (F, 4) float64, pixels of the image, as written: may be empty, inverted, outside or not finite.
    ``ignored``       (F,) bool, flagged by the annotators as no face to train on (invalid, difficult, crowd).
    ``stated_wh``     width and height as the labels state them (COCO, VOC), or None.
    ``label_path``    the file that the boxes stand in.
    ``label_line``    1-based line of the first box in it, or None where the format has no lines.
    ``written``       the image's name as the labels have it, where the file's differs; else None.
    ``turned``        whether the labels were those of the stored image, and the boxes were turned upright with it.
    """

    image_id: str
    path: Path
    boxes_xyxy: npt.NDArray[np.float64]
    ignored: npt.NDArray[np.bool_]
    stated_wh: tuple[int, int] | None = None
    label_path: Path | None = None
    label_line: int | None = None
    written: str | None = None
    turned: bool = False


@dataclass(frozen=True)
class LabelProblem:
    """Something in a label file that is no label: ``line`` 1-based or None, ``value`` as it stands there."""

    path: Path
    line: int | None
    value: str
    reason: str


@dataclass(frozen=True, eq=False)
class Inventory:
    """One part of a data set.

    ``part``        ``train`` or ``val``.
    ``folder``      the folder that the image ids are relative to.
    ``images``      in the labels' order; an image may occur twice where the labels name it twice.
    ``unlabelled``  image files under ``folder`` that no label speaks of.
    ``problems``    rows and files that could not be read as labels.
    """

    part: str
    folder: Path
    images: list[LabelledImage]
    unlabelled: list[Path] = field(default_factory=list)
    problems: list[LabelProblem] = field(default_factory=list)
