"""SSD's photometric distortion (SSD §2.2, after Howard 2013) on uint8, with at most one HSV round trip."""

import random
from typing import Any, NamedTuple

import cv2
import numpy as np

from fanet_lightning.data.images import Image8


class Strengths(NamedTuple):
    """What one image undergoes; the defaults change nothing.

    ``brightness``      added to every channel, grey levels.
    ``contrast``        factor on every channel (SSD scales about black, not about the mean).
    ``saturation``      factor on HSV saturation, cut at full saturation.
    ``hue``             degrees added to HSV hue.
    ``contrast_first``  contrast before the HSV steps; else after them.
    ``channels``        the order in which red, green and blue come out.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True
    channels: tuple[int, int, int] = (0, 1, 2)


class DistortionSampler(NamedTuple):
    """Draws strengths: each of the four steps with ``probability``, evenly from its range; either order alike."""

    brightness: float
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: float
    probability: float
    channel_shuffle: float

    def draw(self, rng: random.Random) -> Strengths:
        """One image's strengths."""

        def drawn(low: float, high: float, neutral: float) -> float:
            return rng.uniform(low, high) if rng.random() < self.probability else neutral

        return Strengths(
            brightness=drawn(-self.brightness, self.brightness, 0.0),
            contrast=drawn(*self.contrast, 1.0),
            saturation=drawn(*self.saturation, 1.0),
            hue=drawn(-self.hue, self.hue, 0.0),
            contrast_first=rng.random() < 0.5,
            channels=_shuffled(rng) if rng.random() < self.channel_shuffle else (0, 1, 2),
        )


def distort(image_rgb: Image8, strengths: Strengths) -> Image8:
    """Brightness, then contrast, saturation and hue; or contrast last; then the channel order. (H, W, 3) uint8 RGB.

    Every step rounds and cuts to 0 … 255, as the original does on 8-bit images. Steps at their neutral value are
    skipped; with all of them neutral the image comes back as it is, not copied.
    """
    image = image_rgb
    if strengths.brightness != 0.0:
        level = float(round(strengths.brightness))
        per_channel: Any = (level, level, level, 0.0)  # cv2's typing knows arrays only
        image = cv2.add(image, per_channel).astype(np.uint8, copy=False)
    if strengths.contrast_first and strengths.contrast != 1.0:
        image = _scale(image, strengths.contrast)
    if strengths.saturation != 1.0 or strengths.hue != 0.0:
        image = _shift_hsv(image, strengths.saturation, strengths.hue)
    if not strengths.contrast_first and strengths.contrast != 1.0:
        image = _scale(image, strengths.contrast)
    if strengths.channels != (0, 1, 2):
        image = np.ascontiguousarray(image[..., list(strengths.channels)])
    return image


def _scale(image: Image8, factor: float) -> Image8:
    return cv2.convertScaleAbs(image, alpha=factor).astype(np.uint8, copy=False)


def _shift_hsv(image_rgb: Image8, saturation: float, hue: float) -> Image8:
    # The FULL variants spread 360° over 256 levels, 1.4° each; the plain ones over 180. So uint8 wraps as hue must.
    h, s, v = cv2.split(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2HSV_FULL))
    turned = h.astype(np.uint8, copy=False) + np.uint8(round(hue * 256 / 360) % 256)
    turned -= turned >> 7  # cv2 comes with 256 levels to the circle and goes back with 255: times 255/256, rounded
    hsv = cv2.merge((turned, cv2.convertScaleAbs(s, alpha=saturation), v))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL).astype(np.uint8, copy=False)


def _shuffled(rng: random.Random) -> tuple[int, int, int]:
    first, second, third = rng.sample(range(3), 3)
    return first, second, third
