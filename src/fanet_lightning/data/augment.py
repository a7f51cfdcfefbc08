"""The training augmentation, as one Albumentations composition behind one class (FANet §3.5).

Expansion, square crop, resizing and filling are one resampling; SSD's colour distortion works on the visible part,
before or after it, where there are fewer pixels; then comes the flip. The area around an expanded image keeps the mean
colour, as in SSD, which distorts before it expands. Normalisation is the network's.
"""

import math
import os
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer version

import albumentations as A
import numpy as np
import numpy.typing as npt

from fanet_lightning.data.anchor_sampling import anchor_sampling_window
from fanet_lightning.data.crops import (
    Placement,
    SquareSampler,
    Window,
    boxes_in_window,
    clean_boxes,
    place,
    render,
)
from fanet_lightning.data.distortion import DistortionSampler, Strengths, distort
from fanet_lightning.data.images import Image8
from fanet_lightning.data.records import Boxes
from fanet_lightning.errors import InputError


class Drawn(NamedTuple):
    """What a sample's seed decides, but for the flip; ``kept_xyxy`` (F', 4) in output pixels."""

    window: Window
    placement: Placement | None
    kept_xyxy: Boxes
    strengths: Strengths


class FaceCrop(A.DualTransform):  # type: ignore[misc]
    """Expansion, square crop (or, with probability ``anchor_sampling``, data-anchor-sampling), resizing and colours."""

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.BBOXES)

    def __init__(
        self,
        square: SquareSampler,
        distortion: DistortionSampler,
        anchor_sampling: float,
        fill_rgb: tuple[int, int, int],
    ) -> None:
        super().__init__(p=1.0)
        self.square = square
        self.distortion = distortion
        self.anchor_sampling = anchor_sampling
        self.fill_rgb = fill_rgb

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window and the strengths; the boxes are in Albumentations' own format, shares of the image."""
        height, width = params["shape"][:2]
        drawn = self.draw(self.py_random, height, width, data["bboxes"])
        return drawn._asdict()

    def draw(self, rng: random.Random, height: int, width: int, shares: npt.NDArray[np.float64]) -> Drawn:
        """All draws of one sample, from the image's size and its boxes alone; no pixel is looked at."""
        boxes_xyxy = clean_boxes(shares * _corners(width, height), height, width)
        window = self._window(rng, height, width, boxes_xyxy)
        placement = place(window, height, width, self.square.size)
        kept_xyxy = boxes_in_window(boxes_xyxy, window, placement, self.square.min_face)
        return Drawn(window, placement, kept_xyxy, self.distortion.draw(rng))

    def _window(self, rng: random.Random, height: int, width: int, boxes_xyxy: Boxes) -> Window:
        if rng.random() < self.anchor_sampling and len(boxes_xyxy):
            window = anchor_sampling_window(rng, height, width, boxes_xyxy, self.square.size)
            if self.square.keeps_a_face(window, height, width, boxes_xyxy):
                return window
        return self.square.draw(rng, height, width, boxes_xyxy)

    def apply(self, img: Image8, placement: Placement | None, strengths: Strengths, **params: Any) -> Image8:
        return render(img, placement, self.square.size, self.fill_rgb, lambda part: distort(part, strengths))

    def apply_to_bboxes(
        self, bboxes: npt.NDArray[np.float64], kept_xyxy: Boxes, **params: Any
    ) -> npt.NDArray[np.float64]:
        return kept_xyxy / _corners(self.square.size, self.square.size)


class TrainAugment:
    """``augment(image_rgb, boxes_xyxy, seed)`` → a square training sample. Picklable; every draw follows from ``seed``.

    Args:
        size: side S of the output, pixels.
        crop: smallest and largest side of the square crop over the image's shorter side.
        largest_square: probability of the largest square instead (S3FD §3.4: one patch of five).
        expand_max, expand_probability: SSD's expansion, up to this factor in either direction.
        flip: probability of the horizontal flip.
        brightness: grey levels, ±. contrast, saturation: ranges of the factors. hue: degrees, ±.
        distortion_probability: of each of the four. channel_shuffle: probability of a random channel order.
        anchor_sampling: probability of data-anchor-sampling in place of the square crop; 0 is FANet.
        min_face: faces whose shorter side is under this many output pixels are dropped.
        fill: RGB of the area outside the image, the mean colour of ImageNet.
        attempts: squares tried until one keeps a face; then the largest square around a face is taken.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        size: int = 640,
        *,
        crop: Sequence[float] = (0.3, 1.0),
        largest_square: float = 0.2,
        expand_max: float = 4.0,
        expand_probability: float = 0.5,
        flip: float = 0.5,
        brightness: float = 32.0,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: float = 18.0,
        distortion_probability: float = 0.5,
        channel_shuffle: float = 0.0,
        anchor_sampling: float = 0.0,
        min_face: float = 2.0,
        fill: Sequence[int] = (124, 116, 104),
        attempts: int = 50,
    ) -> None:
        probabilities = {
            "largest_square": largest_square,
            "expand_probability": expand_probability,
            "flip": flip,
            "distortion_probability": distortion_probability,
            "channel_shuffle": channel_shuffle,
            "anchor_sampling": anchor_sampling,
        }
        for name, value in probabilities.items():
            _require(0 <= value <= 1, name, value, "give a probability, 0 … 1")
        for name, whole in (("size", size), ("attempts", attempts)):
            _require(whole >= 1, name, whole, "give a whole number of at least 1")
        for name, value in (("brightness", brightness), ("hue", hue), ("min_face", min_face)):
            _require(value >= 0 and math.isfinite(value), name, value, "give a number of at least 0")
        _require(expand_max >= 1 and math.isfinite(expand_max), "expand_max", expand_max, "give a factor of at least 1")
        _require(
            len(fill) == 3 and all(0 <= v <= 255 for v in fill), "fill", list(fill), "give red, green and blue, 0 … 255"
        )
        crop_range = _range("crop", crop)
        _require(crop_range[0] > 0 and crop_range[1] <= 1, "crop", list(crop), "give two shares in (0, 1], low ≤ high")
        self.size = size
        square = SquareSampler(size, crop_range, largest_square, expand_max, expand_probability, min_face, attempts)
        distortion = DistortionSampler(
            brightness,
            _range("contrast", contrast),
            _range("saturation", saturation),
            hue,
            distortion_probability,
            channel_shuffle,
        )
        fill_rgb = (int(fill[0]), int(fill[1]), int(fill[2]))
        # No bbox_params: what its processor does is done here, faster and without rounding shares to float32.
        self._crop, self._flip = FaceCrop(square, distortion, anchor_sampling, fill_rgb), flip
        self.compose = A.Compose([self._crop, A.HorizontalFlip(p=flip)])

    def __call__(self, image_rgb: Image8, boxes_xyxy: npt.ArrayLike, seed: int) -> tuple[Image8, Boxes]:
        """Augment one image.

        Args:
            image_rgb: (H, W, 3) uint8, not changed.
            boxes_xyxy: (F, 4) pixels of this image. Boxes may reach outside or be empty: they are clipped or dropped.
            seed: at least 0. The same seed gives the same sample in every process.

        Returns:
            ``image`` (S, S, 3) uint8 RGB and ``boxes_xyxy`` (F', 4) float32 in its pixels, F' ≤ F, within 0 … S.

        Raises:
            ValueError: not an RGB uint8 image, or a negative seed.
        """
        if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8 or image_rgb.size == 0:
            raise ValueError(f"expected a (H, W, 3) uint8 image, got {image_rgb.shape} {image_rgb.dtype}")
        if seed < 0:
            raise ValueError(f"the seed must be at least 0, got {seed}")
        height, width = image_rgb.shape[:2]
        shares = clean_boxes(boxes_xyxy, height, width) / _corners(width, height)
        # One stream for all transforms: Compose.set_random_seed would start every transform at the same draws, and so
        # tie, say, the crop's size to the flip.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        sample = self.compose(image=image_rgb, bboxes=shares)
        return sample["image"], self._to_pixels(sample["bboxes"])

    def boxes(self, height: int, width: int, boxes_xyxy: npt.ArrayLike, seed: int) -> Boxes:
        """The boxes that ``augment(image, boxes_xyxy, seed)`` returns for an image of this size, to the last bit.

        No image is needed and none is resampled, which takes a ninth of the time (``benchmarks/coverage.py``).
        """
        shares = clean_boxes(boxes_xyxy, height, width) / _corners(width, height)
        rng = random.Random(seed)
        rng.random()  # Compose's own, whether to run at all
        shares = self._crop.draw(rng, height, width, shares).kept_xyxy / _corners(self.size, self.size)
        if rng.random() < self._flip:
            # As Albumentations computes it; mirrored in pixels the last bits would differ.
            shares[:, [0, 2]] = 1 - shares[:, [2, 0]]
        return self._to_pixels(shares)

    def _to_pixels(self, shares: npt.NDArray[np.float64]) -> Boxes:
        return clean_boxes(shares * _corners(self.size, self.size), self.size, self.size)


def _corners(width: int, height: int) -> npt.NDArray[np.float64]:
    """What shares of the image are multiplied with to become pixels."""
    return np.array([width, height, width, height], dtype=np.float64)


def _range(name: str, values: Sequence[float]) -> tuple[float, float]:
    good = len(values) == 2 and 0 <= values[0] <= values[1] < math.inf
    _require(good, name, list(values), "give two numbers of at least 0, low ≤ high")
    return float(values[0]), float(values[1])


def _require(good: bool, name: str, value: object, remedy: str) -> None:
    if not good:
        raise InputError(f"augment.{name}={value}: {remedy}")
