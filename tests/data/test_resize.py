"""Test scales: sizes by hand, exact scales, a plain bilinear oracle."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import MAX_PIXELS
from fanet_lightning.data.transforms import TestScale


@pytest.mark.parametrize(
    ("scale", "size_hw", "expected_hw"),
    [
        (TestScale("short", 640), (768, 1024), (640, 853)),  # 1024 × 640 / 768 = 853.33
        (TestScale("short", 640), (1024, 768), (853, 640)),
        (TestScale("short", 640), (320, 320), (640, 640)),
        (TestScale("long", 640), (768, 1024), (480, 640)),
        (TestScale("long", 640), (1024, 683), (640, 427)),  # 426.875
        (TestScale("original", None), (333, 77), (333, 77)),
        (TestScale("original", None, max_long=500), (1000, 300), (500, 150)),
        (TestScale("original", None, max_long=500), (400, 300), (400, 300)),
        (TestScale("short", 1600, max_long=2150), (768, 1024), (1600, 2133)),
        (TestScale("short", 1600, max_long=2150), (500, 1024), (1050, 2150)),  # 2150 / 1024 × 500 = 1049.8
        (TestScale("long", 100), (3, 10_000), (1, 100)),
        (TestScale("short", 640), (1, 300), (21, 6400)),  # a strip: 10 × 640 / 300 = 21.33
        (TestScale("short", 640), (20, 10_000), (20, 10_000)),  # longer than 6400 already
        (TestScale("short", 640), (1000, 20_000), (640, 12_800)),  # shrunk all the same
        # 5000 × 50,000 would be 250 megapixels; √(178,956,970 / 1000) = 423.033
        (TestScale("short", 5000), (10, 100), (4230, 42_303)),
        # √(178,956,970 / 100) = 1337.748 would be rounded up to 1338 rows, so a thousandth less: 1336.41
        (TestScale("long", 400_000), (1, 100), (1336, 133_641)),
    ],
)
def test_sizes_by_hand(scale: TestScale, size_hw: tuple[int, int], expected_hw: tuple[int, int]) -> None:
    assert scale.target_size(*size_hw) == expected_hw


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 13_000), st.integers(1, 13_000), st.integers(1, 5000), st.sampled_from(["short", "long"]))
def test_no_image_outgrows_what_can_be_read(height: int, width: int, size: int, kind: Literal["short", "long"]) -> None:
    rows, columns = TestScale(kind, size).target_size(height, width)
    assert rows >= 1 and columns >= 1 and rows * columns <= MAX_PIXELS
    wanted = size / (min if kind == "short" else max)(height, width)
    wanted = min(wanted, max(1.0, 10 * size / max(height, width)))
    if height * width * wanted**2 < 0.9 * MAX_PIXELS and min(height, width) * wanted >= 4:
        assert (rows, columns) == (int(height * wanted + 0.5), int(width * wanted + 0.5))


def test_right_size_is_left_alone() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    resized, scale_xy = TestScale("short", 48)(image)
    assert resized is image and scale_xy.tolist() == [1, 1]


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel centers at half-integers, borders repeated, no antialiasing."""
    out = np.zeros((height, width, 3))
    for row, column in np.ndindex(height, width):
        y, x = (np.array([row, column]) + 0.5) * image.shape[:2] / (height, width) - 0.5
        y, x = np.clip((y, x), 0, np.array(image.shape[:2]) - 1)
        (top, left), (bottom, right) = (int(y), int(x)), (int(np.ceil(y)), int(np.ceil(x)))
        upper, lower = (image[i, left] * (1 - x + left) + image[i, right] * (x - left) for i in (top, bottom))
        out[row, column] = upper * (1 - y + top) + lower * (y - top)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(1, 30), st.integers(0, 2**31))
def test_pixels_equal_plain_bilinear_sampling(height: int, width: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized, scale_xy = TestScale("long", size)(image)
    np.testing.assert_array_equal(scale_xy, np.float32([resized.shape[1] / width, resized.shape[0] / height]))
    assert max(resized.shape[:2]) == size
    assert np.abs(resized - bilinear(image, *resized.shape[:2])).max() <= 1.5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("shortest", 640), "protocol.kind=shortest"),
        (("short", None), "protocol.size=None"),
        (("long", 0), "protocol.size=0"),
        (("original", None, 0), "protocol.max_long=0"),
        (("original", None, None, 1000), "protocol.tile_pixels=1000"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TestScale(*arguments)  # type: ignore[arg-type]
