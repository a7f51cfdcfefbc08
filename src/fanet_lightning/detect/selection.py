"""Which boxes count as faces: by score, size and number. Without torch, so that the command line asks it at once."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from fanet_lightning.cli.errors import InputError, is_whole

if TYPE_CHECKING:
    from fanet_lightning.ops.structures import Detections

# A score, or a score from each size on: {0: 0.5, 64: 0.3}.
Threshold = float | Mapping[float, float]
ROTATIONS = ("none", "auto", "all")


@dataclass(frozen=True)
class Selection:
    """A function from the boxes of an image to its faces.

    Args:
        threshold: least score of 0 … 1. Or one by size, ``{0: 0.5, 64: 0.3}``: that of the largest number that a box's
            larger side reaches, pixels of the image.
        min_face: least smaller side, pixels of the image.
        max_faces: so many, the best by score.

    Raises:
        InputError: a value outside its range, or no threshold from size 0 on.
    """

    threshold: Threshold
    min_face: float = 0
    max_faces: int | None = None

    def __post_init__(self) -> None:
        by_size = self.threshold if isinstance(self.threshold, Mapping) else {0: self.threshold}
        if 0 not in by_size or not all(_within(size) and _within(score, 1) for size, score in by_size.items()):
            raise InputError(f"threshold={self.threshold}; give a score of 0 … 1, or one from each size on, as in "
                             "{0: 0.5, 64: 0.3}")  # fmt: skip
        if not _within(self.min_face):
            raise InputError(f"min_face={self.min_face}; give pixels, 0 or more")
        if self.max_faces is not None and not is_whole(self.max_faces, 1):
            raise InputError(f"max_faces={self.max_faces} is no whole number of at least 1")

    @property
    def scores(self) -> list[tuple[float, float]]:
        """(size, least score from it on), ascending."""
        by_size = self.threshold if isinstance(self.threshold, Mapping) else {0: self.threshold}
        return sorted((float(size), float(score)) for size, score in by_size.items())

    @property
    def settings(self) -> dict[str, Any]:
        """As plain values."""
        threshold = self.scores if isinstance(self.threshold, Mapping) else self.threshold
        return {"threshold": threshold, "min_face": self.min_face, "max_faces": self.max_faces}

    def above(self, found: "Detections") -> "Detections":
        """Those whose score is enough."""
        (_, least), *larger = self.scores
        kept = found.scores >= least
        sides = (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).amax(dim=1)
        for size, score in larger:
            kept = kept.where(sides < size, found.scores >= score)
        return found[kept]

    def __call__(self, found: "Detections") -> "Detections":
        """(D,) boxes, best first → the faces among them."""
        found = self.above(found)
        if self.min_face:
            found = found[(found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).amin(dim=1) >= self.min_face]
        return found if self.max_faces is None else found[: self.max_faces]


def _within(value: Any, most: float = sys.float_info.max) -> bool:
    """Whether it is a number of 0 … ``most``: numpy's are numbers too; nan is in no range."""
    return type(value) is not bool and isinstance(value, Real) and 0 <= float(value) <= most
