"""Small sets in the layouts of PASCAL face and AFW, and detections in the formats of face-eval, for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from tests.data.wider_files import write_image

CORRECTED = "Annotations_Face_PASCALLayout_large_fixed.mat"
ORIGINAL = "Annotations_Face_PASCALLayout_large.mat"
AFW_CORRECTED = "new_annotations_AFW.mat"

Rows = Mapping[str, Sequence[Sequence[float]]]


def write_annotations(path: Path, faces: Rows, columns: int = 6, dtype: Any = np.int64) -> Path:
    """File name → rows x1 y1 x2 y2 flag (6 columns), or x1 y1 x2 y2 (4), as a struct array ``Annotations``."""
    fields = [("imgname", object), ("imgsize", object), ("objects", object)]
    annotations = np.empty((len(faces), 1), dtype=fields + ([("flags", object)] if columns == 6 else []))
    for i, (name, rows) in enumerate(faces.items()):
        own = [[*row[:4], 0, row[4] if len(row) > 4 else 0][:columns] for row in rows]
        annotations["imgname"][i, 0] = name
        annotations["imgsize"][i, 0] = np.array([[480, 640, 3]], np.uint16)
        annotations["objects"][i, 0] = np.array(own, dtype).reshape(len(own), columns) if own else np.empty((0, 0))
        if columns == 6:
            annotations["flags"][i, 0] = np.zeros((1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"Annotations": annotations})
    return path


def write_images(folder: Path, names: Sequence[str], size_hw: tuple[int, int] = (48, 64)) -> None:
    for i, name in enumerate(names):
        write_image(folder / name, i, size_hw)
