"""Data-anchor-sampling: which sizes may be chosen, and where the window lies."""

import random

import numpy as np
import pytest

from fanet_lightning.data.transforms import anchor_sampling_window, target_range


@pytest.mark.parametrize(
    ("face", "sizes"),
    [
        (3.0, [16, 32]),  # nearest 16, and one larger
        (23.9, [16, 32]),
        (24.1, [16, 32, 64]),
        (130.0, [16, 32, 64, 128, 256]),
        (500.0, [16, 32, 64, 128, 256, 512]),  # nothing larger than the last
        (5000.0, [16, 32, 64, 128, 256, 512]),
    ],
)
def test_anchor_scales_to_choose_from(face: float, sizes: list[int]) -> None:
    assert target_range(face, (16, 32, 64, 128, 256, 512)) == [(size / 2, size * 2.0) for size in sizes]


def test_anchor_sampling_gives_the_face_an_anchor_size() -> None:
    # The root of the area is 30: nearest 32, so 16, 32 or 64 are chosen, that is 8 … 128 pixels.
    face = np.array([(400, 300, 420, 345)], dtype=np.float32)
    sizes = []
    for seed in range(500):
        window = anchor_sampling_window(random.Random(seed), 768, 1024, face, 640)
        assert window.x <= 400 and window.x + window.side >= 420
        assert window.y <= 300 and window.y + window.side >= 345
        if window.side <= 768:
            assert 0 <= window.x <= 1024 - window.side and 0 <= window.y <= 768 - window.side
        else:
            assert window.y <= 0 and window.y + window.side >= 768
        sizes.append(30 * 640 / window.side)
    assert min(sizes) < 10 and max(sizes) > 115
    assert min(sizes) >= 7.9 and max(sizes) <= 129
    # A third each for the ranges 8 … 32, 16 … 64 and 32 … 128: under 16 pixels comes a third of the first alone.
    below_16 = (1 / 3) * (8 / 24)
    assert abs(np.mean(np.array(sizes) < 16) - below_16) < 0.06


def test_anchor_sampling_of_a_face_larger_than_the_output_holds_its_centre() -> None:
    face = np.array([(50, 60, 950, 760)], dtype=np.float32)
    sides = set()
    for seed in range(200):
        window = anchor_sampling_window(random.Random(seed), 768, 1024, face, 640)
        assert window.x <= 500 <= window.x + window.side and window.y <= 410 <= window.y + window.side
        sides.add(window.side < 700)
    assert sides == {True, False}


def test_anchor_sampling_without_faces_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one face, got 0"):
        anchor_sampling_window(random.Random(0), 10, 10, np.zeros((0, 4), dtype=np.float32), 64)
