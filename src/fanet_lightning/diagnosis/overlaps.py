"""How well any anchor can fit a face of a given size, wherever it lies."""

import numpy as np
import numpy.typing as npt


def best_overlaps(sizes: npt.ArrayLike, positions: int = 37) -> npt.NDArray[np.float64]:
    """Largest IoU of a square face with any anchor: (S,) sizes in pixels → (S, P) by position of its centre.

    ``positions`` per axis, evenly over the coarsest stride; P is their square. An odd number visits every phase of the
    finer strides. Far from the image's border.
    """
    from fanet_lightning.anchors import SIZES, STRIDES

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
