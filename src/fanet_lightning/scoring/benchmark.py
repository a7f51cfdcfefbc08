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
