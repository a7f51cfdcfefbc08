"""AP of PASCAL face and AFW over resampled images.

The detections keep the boxes, the places in the ranking and the faces that the run over all images gave them: an
interval says how AP varies with the images, and not with the alignment that is fitted to them. Where an image is drawn
more than once, the copies of a detection stand together in its place.

Between two hits only the number of false positives matters, and AP is a sum over hits. So a resample needs the weights
of the hits, (T,), and one product of the weights of the images (N,) with counts (N, T).
"""

import numpy as np
import numpy.typing as npt

from fanet_lightning.scoring.bootstrap import SAMPLES, image_weights
from fanet_lightning.scoring.curves import area_under_envelope
from fanet_lightning.scoring.pascal_face import PascalFaceResult

Float = npt.NDArray[np.float64]

_HITS_AT_ONCE = 2048


def resampled_ap(result: PascalFaceResult, samples: int = SAMPLES, seed: int = 0) -> Float:
    """(B,) AP per resample; NaN where no face of it counts.

    Raises:
        ValueError: ``samples`` or the number of images below 1.
    """
    drawn = np.empty(samples)
    for part, weights in image_weights(len(result.faces_per_image), samples, seed):
        drawn[part] = weighted_ap(result, weights)
    return drawn


def weighted_ap(result: PascalFaceResult, weights: npt.ArrayLike) -> Float:
    """AP with image i taken ``weights[:, i]`` times: (B, N) whole numbers ≥ 0 → (B,), NaN where no face counts.

    Raises:
        ValueError: weights of another number of images.
    """
    times = np.asarray(weights, np.float64)
    images = len(result.faces_per_image)
    if times.ndim != 2 or times.shape[1] != images:
        raise ValueError(f"weights {times.shape} of {images} images, need (B, {images})")
    hits = np.flatnonzero(result.hit)
    wrong = np.flatnonzero(result.false_positive)
    # The hit behind each false positive; those after the last hit change nothing.
    ahead = np.searchsorted(hits, wrong)
    wrong, ahead = wrong[ahead < len(hits)], ahead[ahead < len(hits)]
    hit_weights = times[:, result.image_index[hits]]
    misses = np.empty_like(hit_weights)
    for first in range(0, len(hits), _HITS_AT_ONCE):
        last = min(first + _HITS_AT_ONCE, len(hits))
        own = slice(*np.searchsorted(ahead, (first, last)))
        counts = np.zeros((images, last - first))
        np.add.at(counts, (result.image_index[wrong[own]], ahead[own] - first), 1.0)
        misses[:, first:last] = times @ counts
    found = np.cumsum(hit_weights, axis=1)
    proposed = found + np.cumsum(misses, axis=1)
    faces = times @ result.faces_per_image
    precision = np.divide(found, proposed, out=np.zeros_like(found), where=proposed > 0)
    recall = np.divide(found, faces[:, None], out=np.zeros_like(found), where=faces[:, None] > 0)
    return np.where(faces > 0, area_under_envelope(precision, recall), np.nan)
