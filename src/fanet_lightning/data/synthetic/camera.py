"""What the camera adds to a drawn image: exposure, colored light, blur, noise."""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


class Shot(NamedTuple):
    """``gain_rgb`` and ``gamma`` of the exposure, ``blur`` sigma in pixels, ``motion`` length in pixels (0: none) at
    ``motion_angle``, ``noise`` sigma in grey levels, JPEG ``quality``, and whether the light is ``extreme``.
    """

    gain_rgb: tuple[float, float, float]
    gamma: float
    blur: float
    motion: int
    motion_angle: float
    noise: float
    noise_corner: tuple[int, int]
    quality: int
    extreme: bool


def random_shot(rng: np.random.Generator, *, dim: bool) -> Shot:
    """Most images are well exposed and sharp; ``dim`` ones are dark and noisy more often."""
    gain, cast, noise = rng.uniform(0.9, 1.1), np.ones(3), rng.uniform(1, 4)
    draw, extreme = rng.random(), False
    if draw < (0.2 if dim else 0.05):
        gain, noise, extreme = rng.uniform(0.32, 0.6), rng.uniform(5, 11), True
    elif draw < (0.25 if dim else 0.09):
        gain, extreme = rng.uniform(1.45, 2.0), True
    if rng.random() < (0.5 if dim else 0.1):
        cast = rng.uniform(0.55, 1.2, 3)
        extreme |= bool(cast.min() < 0.55 * cast.max())
    red, green, blue = gain * cast
    return Shot(
        gain_rgb=(float(red), float(green), float(blue)),
        gamma=float(rng.uniform(0.85, 1.2)),
        blur=float(rng.uniform(0.5, 1.3)) if rng.random() < 0.2 else 0.0,
        motion=int(rng.integers(3, 7)) if rng.random() < 0.05 else 0,
        motion_angle=float(rng.uniform(0, np.pi)),
        noise=float(noise),
        noise_corner=(int(rng.integers(_TILE)), int(rng.integers(_TILE))),
        quality=int(rng.integers(60, 96)),
        extreme=extreme,
    )


def take(image: Image, shot: Shot) -> Image:
    """The image as the camera stores it (without the JPEG), (H, W, 3) uint8."""
    levels = np.arange(256) / 255
    table = np.clip(levels[:, None] ** shot.gamma * shot.gain_rgb, 0, 1) * 255
    taken = cv2.LUT(image, np.round(table).astype(np.uint8)[None])
    if shot.blur:
        taken = cv2.GaussianBlur(taken, (0, 0), shot.blur)
    if shot.motion:
        taken = cv2.filter2D(taken, -1, _motion_kernel(shot.motion, shot.motion_angle))
    height, width = image.shape[:2]
    x, y = shot.noise_corner
    noise = _noise_tile()[y : y + height, x : x + width] * np.float32(shot.noise)
    return np.asarray(cv2.add(taken, noise, dtype=cv2.CV_8U), np.uint8)


def _motion_kernel(length: int, angle: float) -> npt.NDArray[np.float32]:
    kernel: npt.NDArray[np.float32] = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    reach = length / 2
    dx, dy = reach * np.cos(angle), reach * np.sin(angle)
    ends = [(round((length + sign * dx) * 16), round((length + sign * dy) * 16)) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
    kernel /= kernel.sum()
    return kernel


_TILE = 256


@lru_cache(maxsize=1)
def _noise_tile() -> npt.NDArray[np.float32]:
    """White noise of sigma 1, (1280, 1280, 3); to draw it again for every image would take longest of all."""
    return np.random.default_rng(7).standard_normal((1024 + _TILE, 1024 + _TILE, 3), dtype=np.float32)
