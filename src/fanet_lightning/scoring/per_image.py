"""What each image adds to the precision-recall curves: counts that resampling needs, and the file that keeps them.

A curve is made of sums over images, so counts per image are enough to rebuild it for any multiset of images.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced
from fanet_lightning.scoring.curves import POINTS, Curve, curve_from_histograms
from fanet_lightning.scoring.ground_truth import GroundTruth
from fanet_lightning.scoring.predictions import Predictions
from fanet_lightning.scoring.wider_face import judge_settings

PER_IMAGE_FILE = "per_image.npz"
_VERSION = 1
_HINT = "score the predictions again, which writes it anew"
# What zipfile, zlib and numpy let through of a damaged archive.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Rows of each image first seen at each threshold, in one setting; only entries with a row are kept.

    ``image_ids``  "event/name", N of them, none twice.
    ``starts``     (N + 1,) int64: the entries of image i are ``starts[i]`` … ``starts[i + 1]``.
    ``bins``       (E,) int64, index into :data:`fanet_lightning.scoring.curves.THRESHOLDS`, ascending in an image.
    ``proposals``  (E,) int64, rows first seen there that count in precision; not cumulated.
    ``hits``       (E,) int64, those among them that take a face; not cumulated.
    ``faces``      (N,) int64, faces of the image that count.

    Raises:
        ValueError: lengths that do not fit, an image twice, bins that do not ascend within an image or lie outside
            0 … 999, counts outside 0 ≤ hits ≤ proposals, more hits in an image than faces.
    """

    image_ids: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    bins: npt.NDArray[np.int64]
    proposals: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]
    faces: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        images, entries = len(self.image_ids), len(self.bins)
        if len(set(self.image_ids)) != images:
            raise ValueError("an image id twice")
        if self.faces.shape != (images,) or self.starts.shape != (images + 1,):
            raise ValueError(f"{images} images, but faces {self.faces.shape} and starts {self.starts.shape}")
        if self.starts[0] != 0 or self.starts[-1] != entries or (np.diff(self.starts) < 0).any():
            raise ValueError(f"starts must rise from 0 to {entries}, not from {self.starts[0]} to {self.starts[-1]}")
        if self.bins.shape != (entries,) or self.proposals.shape != (entries,) or self.hits.shape != (entries,):
            raise ValueError(f"bins {self.bins.shape}, proposals {self.proposals.shape}, hits {self.hits.shape}")
        if entries and (self.bins.min() < 0 or self.bins.max() >= POINTS):
            raise ValueError(f"bins from {self.bins.min()} to {self.bins.max()}, need 0 … {POINTS - 1}")
        images_of_entries = self.image_of_entries()
        if (np.diff(images_of_entries * POINTS + self.bins) <= 0).any():
            raise ValueError("bins do not ascend within an image")
        if (self.proposals < 0).any() or (self.hits < 0).any() or (self.hits > self.proposals).any():
            raise ValueError("counts outside 0 ≤ hits ≤ proposals")
        if (np.bincount(images_of_entries, self.hits, minlength=images) > self.faces).any():
            raise ValueError("more hits in an image than faces")

    def image_of_entries(self) -> npt.NDArray[np.int64]:
        """(E,) int64, the image that each entry belongs to."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.starts))

    def dense(
        self, first: int = 0, last: int | None = None, dtype: npt.DTypeLike = np.int64
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Proposals and hits of images ``first`` … ``last`` (excluded) as matrices (n, 1000), not cumulated."""
        last = len(self.image_ids) if last is None else last
        entries = slice(*self.starts[[first, last]].tolist())
        rows = np.repeat(np.arange(last - first), np.diff(self.starts[first : last + 1]))
        proposals, hits = np.zeros((2, last - first, POINTS), dtype)
        proposals[rows, self.bins[entries]] = self.proposals[entries]
        hits[rows, self.bins[entries]] = self.hits[entries]
        return proposals, hits


def count_images(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, ImageCounts]:
    """Counts per setting of ``ground_truth``, from the same judging as :func:`wider_face.score`.

    Scores are normalised over all rows of ``predictions``, and that stays: a curve rebuilt from some of the images
    keeps the thresholds of the whole run. So resampling asks how the AP of this detector, read at fixed thresholds,
    varies with the images, not with the two rows that happen to have the extreme scores.

    Raises:
        ValueError: the two are not about the same images in the same order.
    """
    bins, settings = judge_settings(ground_truth, predictions)
    images = len(ground_truth.image_ids)
    image_of_face = np.repeat(np.arange(images), [len(boxes) for boxes in ground_truth.boxes_xywh])
    # Image and threshold in one number; which pairs occur at all is the same for every setting.
    keys = np.repeat(np.arange(images), np.diff(predictions.starts)) * POINTS + bins
    occurs = np.zeros(images * POINTS, np.bool_)
    occurs[keys] = True
    pairs = np.flatnonzero(occurs)
    place = (np.cumsum(occurs, dtype=np.int64) - 1)[keys]
    counts = {}
    for setting, rows in settings.items():
        proposals = np.bincount(place[rows.proposals], minlength=len(pairs))
        hits = np.bincount(place[rows.hits], minlength=len(pairs))
        kept = proposals > 0
        counted = np.concatenate([np.zeros(0, np.bool_), *ground_truth.counted[setting]])
        faces = np.bincount(image_of_face[counted], minlength=images)
        starts = np.searchsorted(pairs[kept], np.arange(images + 1) * POINTS)
        counts[setting] = ImageCounts(
            ground_truth.image_ids, starts, pairs[kept] % POINTS, proposals[kept], hits[kept], faces
        )
    return counts


def curve_from_counts(counts: ImageCounts, weights: npt.NDArray[np.integer] | None = None) -> Curve:
    """The curve of a multiset of images.

    Args:
        counts: of one setting.
        weights: (N,) whole numbers ≥ 0, how often each image is in; None takes each once and gives the curve of
            :func:`wider_face.score` to the last bit.

    Raises:
        ValueError: weights of another shape, negative or not whole.
    """
    if weights is None:
        proposals, hits, faces = counts.proposals, counts.hits, counts.faces
    else:
        weights = np.asarray(weights)
        if weights.shape != (len(counts.image_ids),) or weights.dtype.kind not in "iu" or (weights < 0).any():
            raise ValueError(
                f"weights {weights.dtype}{weights.shape}, need {len(counts.image_ids)} whole numbers, none negative"
            )
        weights = weights.astype(np.int64)
        repeats = np.repeat(weights, np.diff(counts.starts))
        proposals, hits = counts.proposals * repeats, counts.hits * repeats
        faces = counts.faces * weights
    return curve_from_histograms(
        np.bincount(counts.bins, proposals, minlength=POINTS),
        np.bincount(counts.bins, hits, minlength=POINTS),
        int(faces.sum()),
    )


def write_counts(path: Path, counts: Mapping[str, ImageCounts]) -> None:
    """Write the counts of all settings into one compressed ``.npz``; it appears by rename.

    Raises:
        ValueError: no setting, settings that are not about the same images, a line break in an image id.
        OSError: ``path`` cannot be written.
    """
    settings = list(counts)
    if not settings or any(counts[setting].image_ids != counts[settings[0]].image_ids for setting in settings):
        raise ValueError(f"settings {settings} are not about the same images")
    image_ids = counts[settings[0]].image_ids
    # The settings share most pairs of image and threshold: one list of pairs, then columns of small numbers.
    keys = {setting: own.image_of_entries() * POINTS + own.bins for setting, own in counts.items()}
    pairs = np.unique(np.concatenate(list(keys.values())))
    arrays: dict[str, Any] = {
        "version": np.array(_VERSION),
        "image_ids": _as_bytes(image_ids),
        "settings": _as_bytes(settings),
        "entries": _small(np.bincount(pairs // POINTS, minlength=len(image_ids))),
        # Low and high byte apart: a stream of equal bytes compresses, a stream of pairs hardly does.
        "bins_low": (pairs % POINTS % 256).astype(np.uint8),
        "bins_high": (pairs % POINTS // 256).astype(np.uint8),
    }
    for number, (setting, own) in enumerate(counts.items()):
        place = np.searchsorted(pairs, keys[setting])
        for name, values in (("proposals", own.proposals), ("hits", own.hits)):
            column = np.zeros(len(pairs), np.int64)
            column[place] = values
            arrays[f"{name}_{number}"] = _small(column)
        arrays[f"faces_{number}"] = _small(own.faces)
    # An open file: given a name, numpy would append ".npz" to one that lacks it.
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_counts(path: Path) -> dict[str, ImageCounts]:
    """Counts per setting, as :func:`write_counts` left them.

    Raises:
        InputError: the file is missing, damaged, or not one that ``write_counts`` has written.
    """
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {_HINT}") from error
    if not zipfile.is_zipfile(content):
        raise InputError(f"{path} is no .npz file, or only a part of one; {_HINT}")
    content.seek(0)
    try:
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        raise InputError(f"{path} is a damaged .npz file ({_reason(error)}); {_HINT}") from error
    if "version" not in arrays or "bins_low" not in arrays:
        raise InputError(f"{path} holds no counts per image; give the {PER_IMAGE_FILE} of an evaluation")
    if arrays["version"].tolist() != _VERSION:
        raise InputError(f"{path}: version {arrays['version']} of the file, this release reads {_VERSION}; {_HINT}")
    try:
        return _unpacked(arrays)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{path}: the counts do not fit together ({_reason(error)}); {_HINT}") from error


def _unpacked(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, ImageCounts]:
    image_ids = _as_texts(arrays["image_ids"])
    bins = arrays["bins_high"].astype(np.int64) * 256 + arrays["bins_low"]
    images_of_pairs = np.repeat(np.arange(len(image_ids)), arrays["entries"].astype(np.int64))
    counts = {}
    for number, setting in enumerate(_as_texts(arrays["settings"])):
        proposals, hits = (arrays[f"{name}_{number}"].astype(np.int64) for name in ("proposals", "hits"))
        if not proposals.shape == hits.shape == bins.shape == images_of_pairs.shape:
            raise ValueError(f"{len(bins)} bins but {len(proposals)} proposals of {setting}")
        # Hits without a proposal are kept too, for ImageCounts to refuse them.
        kept = (proposals > 0) | (hits > 0)
        entries = np.bincount(images_of_pairs[kept], minlength=len(image_ids))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(entries)])
        faces = arrays[f"faces_{number}"].astype(np.int64)
        counts[setting] = ImageCounts(image_ids, starts, bins[kept], proposals[kept], hits[kept], faces)
    return counts


def _small(values: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _as_bytes(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    if any("\n" in text for text in texts):
        raise ValueError("a name with a line break in it")
    return np.frombuffer("\n".join(texts).encode(), np.uint8)


def _as_texts(values: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    text = values.astype(np.uint8).tobytes().decode()
    return tuple(text.split("\n")) if text else ()


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
