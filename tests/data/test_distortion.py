"""SSD's color distortion against a loop over pixels."""

import colorsys
import random

import numpy as np
import numpy.typing as npt
import pytest

from fanet_lightning.data.transforms import Strengths, TrainAugment, distort


def cut(value: float) -> float:
    return min(max(round(value), 0), 255)


def distort_pixel(
    rgb: tuple[int, int, int], brightness: float, contrast: float, saturation: float, hue: float, contrast_first: bool
) -> list[float]:
    """SSD's steps on one pixel, in floating point but for the cut to 0 … 255."""
    levels = [cut(level + brightness) for level in rgb]
    if contrast_first:
        levels = [cut(level * contrast) for level in levels]
    h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in levels))
    turned = colorsys.hsv_to_rgb((h + hue / 360) % 1.0, min(s * saturation, 1.0), v)
    levels = [level * 255 for level in turned]
    if not contrast_first:
        levels = [cut(level * contrast) for level in levels]
    return levels


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    image[0, :6] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    return image


@pytest.mark.parametrize("contrast_first", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_against_a_loop_over_pixels(image: npt.NDArray[np.uint8], seed: int, contrast_first: bool) -> None:
    rng = np.random.default_rng(seed)
    strengths = {
        "brightness": float(rng.integers(-32, 33)),
        "contrast": float(rng.uniform(0.5, 1.5)),
        "saturation": float(rng.uniform(0.5, 1.5)),
        "hue": float(rng.integers(-12, 13)) * 360 / 256,
    }
    got = distort(image, Strengths(**strengths, contrast_first=contrast_first)).astype(float)
    expected = np.array(
        [[distort_pixel(tuple(pixel), **strengths, contrast_first=contrast_first) for pixel in row] for row in image]
    )
    # Hue lies on 256 levels of 1.4°, rounded twice: up to 6 grey levels on one channel, saturation up to 2 more, and a
    # contrast that comes last enlarges both by half.
    assert np.abs(got - expected).max() <= 12
    assert np.abs(got - expected).mean() <= 0.7


def test_draws_fill_their_ranges_and_leave_out_half() -> None:
    augment = TrainAugment(saturation=(0.6, 1.4), channel_shuffle=0.25)
    rng = random.Random(0)
    draws = [augment.strengths(rng) for _ in range(4000)]
    for name, low, high, neutral in (
        ("brightness", -32, 32, 0.0),
        ("contrast", 0.5, 1.5, 1.0),
        ("saturation", 0.6, 1.4, 1.0),
        ("hue", -18, 18, 0.0),
    ):
        values = np.array([getattr(draw, name) for draw in draws])
        assert abs((values == neutral).mean() - 0.5) < 0.03, name
        drawn = values[values != neutral]
        assert low <= drawn.min() < low + (high - low) / 50 and high - (high - low) / 50 < drawn.max() <= high, name
        assert abs(drawn.mean() - (low + high) / 2) < (high - low) / 30, name
    assert abs(np.mean([draw.contrast_first for draw in draws]) - 0.5) < 0.03
    # A quarter is shuffled, and one of six orders is the usual one.
    assert abs(np.mean([draw.channels != (0, 1, 2) for draw in draws]) - 0.25 * 5 / 6) < 0.03


def test_neutral_strengths_change_nothing(image: npt.NDArray[np.uint8]) -> None:
    before = image.copy()
    assert distort(image, Strengths()) is image
    distort(image, Strengths(brightness=5, contrast=0.7, saturation=1.2, hue=9))
    assert np.array_equal(image, before)
