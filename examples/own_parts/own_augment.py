"""An augmentation: a transform of Albumentations on the finished crop."""

from typing import Any

import numpy as np
import numpy.typing as npt
from albumentations import ImageOnlyTransform


class Dusk(ImageOnlyTransform):
    """Less light, of blue the least: ``loss`` is the range of what red and green lose, 0 … 1."""

    def __init__(self, loss: tuple[float, float] = (0.2, 0.7), p: float = 0.5) -> None:
        super().__init__(p=p)
        self.loss = loss

    def get_params(self) -> dict[str, Any]:
        # Of py_random and random_generator alone: then samples depend on (seed, epoch, image) and nothing else.
        return {"loss": self.py_random.uniform(*self.loss)}

    def apply(self, img: npt.NDArray[np.uint8], loss: float, **params: Any) -> npt.NDArray[np.uint8]:
        return (img * (1 - loss * np.array([1, 1, 0.5]))).astype(np.uint8)
