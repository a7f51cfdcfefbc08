"""Which boxes count as faces: by score, size and number. Without torch, so that the command line asks it at once."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from fanet_lightning.cli.errors import check, is_whole

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
    """

    threshold: Threshold
    min_face: float = 0
    max_faces: int | None = None

    def __post_init__(self) -> None:
        by_size = self._by_size
        check(
            0 in by_size and all(_within(size) and _within(score, 1) for size, score in by_size.items()),
            f"threshold={self.threshold}; give a score of 0 … 1, or one from each size on, as in {{0: 0.5, 64: 0.3}}",
        )
        check(_within(self.min_face), f"min_face={self.min_face}; give pixels, 0 or more")
        whole = self.max_faces is None or is_whole(self.max_faces, 1)
        check(whole, f"max_faces={self.max_faces} is no whole number of at least 1")

    @property
    def _by_size(self) -> Mapping[float, float]:
        return self.threshold if isinstance(self.threshold, Mapping) else {0: self.threshold}

    @property
    def scores(self) -> list[tuple[float, float]]:
        """(size, least score from it on), ascending."""
        return sorted((float(size), float(score)) for size, score in self._by_size.items())

    @property
    def settings(self) -> dict[str, Any]:
        """As plain values."""
        threshold = self.scores if isinstance(self.threshold, Mapping) else self.threshold
        return {"threshold": threshold, "min_face": self.min_face, "max_faces": self.max_faces}

    def __call__(self, found: "Detections") -> "Detections":
        """(D,) boxes, best first → the faces among them."""
        (_, least), *larger = self.scores
        kept, sides = found.scores >= least, found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
        for size, score in larger:
            kept = kept.where(sides.amax(dim=1) < size, found.scores >= score)
        if self.min_face:
            kept &= sides.amin(dim=1) >= self.min_face
        return found[kept] if self.max_faces is None else found[kept][: self.max_faces]


def _within(value: Any, most: float = sys.float_info.max) -> bool:
    """Whether it is a number of 0 … ``most``: numpy's are numbers too; nan is in no range."""
    return type(value) is not bool and isinstance(value, Real) and 0 <= float(value) <= most
