"""What every benchmark gives: numbers by name, their resamples over images, and the curves behind them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

# measure ("ap", "discrete", …) → setting ("easy", "all", "1000", …) → number.
Values = Mapping[str, Mapping[str, float]]
# The same keys → (B,) float64, one value per resample; NaN where a resample has none.
Samples = Mapping[str, Mapping[str, npt.NDArray[np.float64]]]
_Boxes = npt.NDArray[np.float64]
# image id → boxes_xyxy (D, 4) pixels of the original image and scores (D,).
DetectionsByImage = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]


@dataclass(frozen=True, eq=False)
class Scores:
    """What one set of predictions is worth on one benchmark.

    ``benchmark``           its name as on the command line.
    ``title``               the same for people: "WIDER FACE".
    ``image_ids``           images that were scored, in their order.
    ``images_of_benchmark`` images that the whole ground truth has.
    ``faces``               setting → faces that count.
    ``values``              measure → setting → number, under the measure's name in ``scores.json``; NaN where no face
                            counts.
    ``resampled``           (samples, seed) → the same keys → (B,) values over resampled images, drawn by
                            :func:`fanet_lightning.scoring.bootstrap.image_weights`, so that two runs over the same
                            images can be paired.
    ``write_curves``        writes the curves, and what else belongs to the numbers, into a folder; each by rename.
                            Hands back what it wrote.
    ``rules``               options that the numbers depend on, for the record: labels, alignment, caps.
    ``warnings``            one line each for the person at the command line.
    """

    benchmark: str
    title: str
    image_ids: Sequence[str]
    images_of_benchmark: int
    faces: Mapping[str, int]
    values: Values
    resampled: Callable[[int, int], Samples]
    write_curves: Callable[[Path], list[Path]]
    rules: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """Names the part where it is not the whole: such a number does not compare with published ones."""
        if len(self.image_ids) == self.images_of_benchmark:
            return f"{self.title}, {len(self.image_ids):,} images"
        return f"{self.title} sample, {len(self.image_ids):,} of {self.images_of_benchmark:,} images"


# What a row's four numbers may be → boxes_xyxy.
_READINGS: Mapping[str, Callable[[_Boxes], _Boxes]] = {
    "x y w h": lambda rows: np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1),
    "x1 y1 x2 y2": lambda rows: rows,
    "cx cy w h": lambda rows: np.concatenate([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2], axis=1),
}
# A reading that puts at least every fifth of the best boxes on a face, and half as many again as the one that is meant,
# is the right one. Detectors that find little, and readings that nearly coincide, are not doubted.
_LEAST_ON_A_FACE, _CLEARLY_MORE = 0.2, 1.5
_IMAGES_LOOKED_AT = 400
# Boxes of faces that are cut by the border reach out of the image, by less than this part of its side.
_BEYOND = 0.1


def layout_warning(
    rows: Sequence[_Boxes],
    scores: Sequence[_Boxes],
    faces_xyxy: Sequence[_Boxes],
    meant: str = "x y w h",
    sizes_wh: _Boxes | None = None,
) -> str | None:
    """One line where boxes seem to be written in another layout than ``meant``, or None.

    They are fractions of the image's size, or reach out of their images, most of them; or another reading puts far more
    of the best boxes, as many in an image as it has faces, on a face (IoU of 0.5). The number is not touched.

    Args:
        rows: N images' four numbers per box as the file has them, (D_i, 4).
        scores: N times (D_i,).
        faces_xyxy: N times (F_i, 4), pixels.
        meant: the layout that the format asks for: a key of ``_READINGS``.
        sizes_wh: (N, 2) width and height of the images in pixels, NaN where unknown.
    """
    packed = np.concatenate([np.zeros((0, 4)), *rows])
    boxes_xyxy = _READINGS[meant](packed)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    has_side = (sides > 0).any(axis=1)
    total, tiny = int(has_side.sum()), int((has_side & (sides < 1).all(axis=1)).sum())
    if tiny > total / 2:
        return (
            f"{tiny:,} of {total:,} boxes are smaller than a pixel, as if they were fractions of the image's size; "
            f"write {meant} in pixels of the original image"
        )
    found, looked_at = on_faces(rows, scores, faces_xyxy, meant)
    others = [name for name in _READINGS if name != meant and is_clearly_better(looked_at, looked_at, found)]
    for name in others:
        other, _ = on_faces(rows, scores, faces_xyxy, name)
        if is_clearly_better(other, looked_at, found):
            return (
                f"the {len(packed):,} boxes seem to be {name}, not {meant}: so read {other:,} of {looked_at:,} looked "
                f"at are on a face, as {meant} {found:,}; write {meant}"
            )
    if sizes_wh is not None:
        limits = np.repeat(sizes_wh, [len(own) for own in rows], axis=0) * (1 + _BEYOND)
        outside = int((boxes_xyxy[:, 2:] > limits).any(axis=1).sum())
        if outside > len(packed) / 2:
            return (
                f"{outside:,} of {len(packed):,} boxes reach out of their image; "
                f"write {meant} in pixels of the original image"
            )
    return None


def is_clearly_better(other: int, looked_at: int, found: int) -> bool:
    """Whether another reading puts so many of the best boxes on a face that the one that is meant must be wrong."""
    return other > max(_LEAST_ON_A_FACE * looked_at, _CLEARLY_MORE * found)


def on_faces(
    rows: Sequence[_Boxes], scores: Sequence[_Boxes], faces_xyxy: Sequence[_Boxes], reading: str = "x y w h"
) -> tuple[int, int]:
    """How many of the best boxes, as many in an image as it has faces, overlap one by an IoU of 0.5; and their number.

    Of many images every second, third … is looked at: enough to tell, and no time is lost.

    Args:
        rows, scores, faces_xyxy: as in :func:`layout_warning`.
        reading: of ``rows``.
    """
    found, looked_at = 0, 0
    every = slice(None, None, max(1, len(rows) // _IMAGES_LOOKED_AT))
    for own, score, faces in zip(rows[every], scores[every], faces_xyxy[every], strict=True):
        if len(own) and len(faces):
            best = own[np.argsort(-score, kind="stable")[: len(faces)]]
            looked_at += len(best)
            boxes = _READINGS[reading](best)[:, None]
            shared = np.minimum(boxes[..., 2:], faces[:, 2:]) - np.maximum(boxes[..., :2], faces[:, :2])
            both = np.maximum(shared, 0).prod(axis=-1)
            areas = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) + (faces[:, 2:] - faces[:, :2]).prod(axis=-1)
            found += int(((both > 0) & (3 * both >= areas)).any(axis=1).sum())
    return found, looked_at


G = TypeVar("G")


class Benchmark(Protocol[G]):
    """A benchmark by its rules; options that change numbers are constructor arguments. G is its ground truth."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def read_ground_truth(self, path: Path, images: Path | None = None) -> G:
        """The official files; ``images`` is a list (:mod:`fanet_lightning.image_lists`) that restricts everything.

        Raises:
            InputError: files that are missing or do not hold what they should; an image that is not in them.
        """

    def score(self, ground_truth: G, predictions: Path, *, strict: bool = False) -> Scores:
        """Score a file or folder in the benchmark's own format.

        Images without predictions count as images without a detection and are named in a warning; with ``strict`` they
        are an error.

        Raises:
            InputError: predictions that are missing, malformed, or of unknown images.
        """

    def write_predictions(self, folder: Path, ground_truth: G, detections: DetectionsByImage) -> None:
        """Write detections of the ground truth's images in the benchmark's own format, so that ``score`` reads them.

        Raises:
            InputError: ``folder`` holds something else, or cannot be written.
        """
