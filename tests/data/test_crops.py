"""Windows, their resampling and the boxes that follow."""

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.data.transforms import (
    TrainAugment,
    Window,
    anchor_sampling_window,
    boxes_in_window,
    clean_boxes,
    place,
    render,
    target_range,
)

FILL = (124, 116, 104)


def boxes(*rows: tuple[float, float, float, float]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def sampler(**changes: Any) -> TrainAugment:
    return TrainAugment(64, **{"expand_probability": 0.0, "min_face": 0.0, **changes})


random_boxes = st.lists(
    st.tuples(st.floats(-20, 90), st.floats(-20, 90), st.floats(0.5, 60), st.floats(0.5, 60)), max_size=6
).map(lambda rows: boxes(*[(x, y, x + w, y + h) for x, y, w, h in rows]))
random_windows = st.builds(Window, st.integers(-150, 90), st.integers(-150, 70), st.integers(1, 300))


def test_clean_boxes_clips_and_drops() -> None:
    dirty = boxes((-5, 2, 10, 12), (3, 3, 3, 9), (9, 9, 4, 12), (95, 70, 130, 99), (100, 0, 120, 9), (np.nan, 0, 5, 5))
    assert clean_boxes(dirty, 80, 100).tolist() == [[0, 2, 10, 12], [95, 70, 100, 80]]
    assert clean_boxes([], 80, 100).shape == (0, 4)


def test_hand_computed_crop() -> None:
    """A 40-pixel window at (20, 10) in a 100 × 80 image, to 80 pixels: twice the size."""
    window = Window(20, 10, 40)
    placement = place(window, 80, 100, 80)
    assert placement == ((20, 10, 60, 50), (0, 0, 80, 80))
    faces = boxes(
        (30, 20, 40, 32),  # inside: (30-20)·2 … (32-10)·2
        (50, 40, 66, 56),  # center (58, 48) inside, cut at the window's lower right corner
        (52, 42, 70, 60),  # center (61, 51) outside
        (12, 20, 28, 30),  # center (20, 25) on the left border: belongs to the window
        (52, 20, 68, 30),  # center (60, 25) on the right border: does not
    )
    kept = boxes_in_window(faces, window, placement)
    assert kept.tolist() == [[20, 20, 40, 44], [60, 60, 80, 80], [0, 20, 16, 40]]
    assert boxes_in_window(faces, window, placement, min_face=20.5).shape == (0, 4)
    assert boxes_in_window(faces, window, placement, min_face=20.0).tolist() == [[20, 20, 40, 44], [60, 60, 80, 80]]


def test_hand_computed_expansion() -> None:
    """A window twice the image: the image fills the middle of the output at half its size."""
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    window = Window(-4, -4, 16)
    placement = place(window, 8, 8, 8)
    assert placement == ((0, 0, 8, 8), (2, 2, 6, 6))
    out = render(image, placement, 8, FILL)
    blocks = image.reshape(4, 2, 4, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(out[2:6, 2:6] - blocks).max() <= 0.5
    inside = np.zeros((8, 8), dtype=bool)
    inside[2:6, 2:6] = True
    assert (out[~inside] == FILL).all()
    assert boxes_in_window(boxes((2, 0, 6, 8)), window, placement).tolist() == [[3, 2, 5, 6]]


@given(random_windows, random_boxes, st.integers(8, 90), st.floats(0, 5))
def test_boxes_against_one_face_at_a_time(
    window: Window, raw: npt.NDArray[np.float32], size: int, min_face: float
) -> None:
    height, width = 70, 90
    faces = clean_boxes(raw, height, width)
    placement = place(window, height, width, size)
    got = boxes_in_window(faces, window, placement, min_face)
    expected = []
    for x1, y1, x2, y2 in faces.astype(float):
        center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
        if not window.x <= center_x < window.x + window.side or not window.y <= center_y < window.y + window.side:
            continue
        assert placement is not None
        face = []
        for axis, value in ((0, x1), (1, y1), (0, x2), (1, y2)):
            (s1, s2), (t1, t2) = (side[axis::2] for side in placement)
            face.append(min(max(t1 + (value - s1) * (t2 - t1) / (s2 - s1), t1), t2))
        if min(face[2] - face[0], face[3] - face[1]) >= min_face and face[2] > face[0] and face[3] > face[1]:
            expected.append(face)
    assert got.shape == (len(expected), 4)
    assert np.allclose(got, np.array(expected).reshape(-1, 4), atol=1e-4)
    assert (got >= 0).all() and (got <= size).all() and (got[:, 2:] >= got[:, :2]).all()


@given(random_windows, st.integers(8, 90))
def test_placement_stays_close_to_the_ideal_map(window: Window, size: int) -> None:
    height, width = 70, 90
    placement = place(window, height, width, size)
    low_x, high_x = max(window.x, 0), min(window.x + window.side, width)
    low_y, high_y = max(window.y, 0), min(window.y + window.side, height)
    if placement is None:
        assert low_x >= high_x or low_y >= high_y
        return
    scale = size / window.side
    assert placement.source[:2] == (low_x, low_y)
    for source_end, visible_end in zip(placement.source[2:], (high_x, high_y), strict=True):
        assert 0 <= (visible_end - source_end) * scale < 1.0 + 1e-9
    ideal = [(low_x - window.x) * scale, (low_y - window.y) * scale]
    ideal += [(high_x - window.x) * scale, (high_y - window.y) * scale]
    assert np.abs(np.array(placement.target) - ideal).max() <= 1.0 + 1e-9
    assert 0 <= placement.target[0] < placement.target[2] <= size
    assert 0 <= placement.target[1] < placement.target[3] <= size


@settings(max_examples=200, deadline=None)
@given(random_windows, st.integers(8, 90))
def test_pixels_follow_the_map_that_boxes_follow(window: Window, size: int) -> None:
    """Bilinear sampling and averages reproduce a linear image: each output pixel shows the ramp at its own place."""
    height, width = 56, 62
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.stack([4 * x, 4 * y, 2 * x + 2 * y], axis=-1).astype(np.uint8)  # exact: whole numbers after + 0.5
    placement = place(window, height, width, size)
    out = render(image, placement, size, FILL)
    assert out.shape == (size, size, 3) and out.dtype == np.uint8
    if placement is None:
        return
    (sx1, sy1, sx2, sy2), (tx1, ty1, tx2, ty2) = placement
    scale_x, scale_y = (sx2 - sx1) / (tx2 - tx1), (sy2 - sy1) / (ty2 - ty1)
    ty, tx = np.mgrid[ty1:ty2, tx1:tx2]
    # Beyond the outermost pixel centers bilinear sampling repeats the border.
    px = (sx1 + (tx - tx1 + 0.5) * scale_x).clip(sx1 + 0.5, sx2 - 0.5)
    py = (sy1 + (ty - ty1 + 0.5) * scale_y).clip(sy1 + 0.5, sy2 - 0.5)
    expected = np.stack([4 * px, 4 * py, 2 * px + 2 * py], axis=-1)
    part = out[ty1:ty2, tx1:tx2].astype(float)
    inner = part[1:-1, 1:-1] - expected[1:-1, 1:-1]  # the border of a halved image lies half a coarse pixel further in
    assert inner.size == 0 or np.abs(inner).max() <= 2.0
    outside = np.ones((size, size), dtype=bool)
    outside[ty1:ty2, tx1:tx2] = False
    assert (out[outside] == FILL).all()


@pytest.mark.parametrize("window", [Window(-10, -10, 60), Window(5, 5, 20), Window(-40, -30, 160), Window(0, 0, 40)])
def test_colors_change_once_and_not_the_fill(window: Window) -> None:
    """Whether the colors come before the resampling (fewer source pixels) or after it."""
    image = np.random.default_rng(1).integers(0, 200, (40, 40, 3), dtype=np.uint8)
    placement = place(window, 40, 40, 48)
    assert placement is not None
    calls = []

    def lighter(part: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        calls.append(part.shape[0] * part.shape[1])
        return part + np.uint8(20)

    plain, changed = (render(image, placement, 48, FILL, *recolor) for recolor in ((), (lighter,)))
    (sx1, sy1, sx2, sy2), (tx1, ty1, tx2, ty2) = placement
    assert calls == [min((sx2 - sx1) * (sy2 - sy1), (tx2 - tx1) * (ty2 - ty1))]
    difference = changed.astype(int) - plain
    assert np.abs(difference[ty1:ty2, tx1:tx2] - 20).max() <= 1  # bilinear rounding
    difference[ty1:ty2, tx1:tx2] = 0
    assert (difference == 0).all()


def test_strong_shrinking_averages_instead_of_skipping() -> None:
    """A fine chequerboard shrunk to a fifth must turn grey; bilinear alone would keep black and white pixels."""
    y, x = np.mgrid[:500, :500]
    image = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    out = render(image, place(Window(0, 0, 500), 500, 500, 100), 100, FILL)
    assert np.abs(out.astype(float) - 127.5).max() <= 2


def test_without_expansion_squares_lie_inside_and_have_the_drawn_sides() -> None:
    rng = random.Random(3)
    windows = [sampler().square(rng, 100, 160, boxes()) for _ in range(2000)]
    sides = np.array([window.side for window in windows])
    assert all(0 <= w.x <= 160 - w.side and 0 <= w.y <= 100 - w.side for w in windows)
    assert sides.min() == 30 and sides.max() == 100
    # One of five is the largest; the others spread evenly over 30 … 100, half of them under 65.
    assert abs((sides == 100).mean() - 0.2) < 0.04
    assert abs((sides < 65).mean() - 0.8 / 2) < 0.05


def test_expansion_shows_the_whole_image_inside_a_larger_canvas() -> None:
    rng = random.Random(4)
    draw = sampler(expand_probability=1.0, largest_square=1.0, expand_max=3.0).square
    sides = np.array([draw(rng, 100, 100, boxes()).side for _ in range(2000)])
    assert sides.min() >= 100 and sides.max() <= 300
    assert abs((sides > 200).mean() - 0.5) < 0.05
    rng = random.Random(5)
    assert all(-200 <= w.x <= 0 and -200 <= w.y <= 0 for w in (draw(rng, 100, 100, boxes()) for _ in range(200)))


def test_the_crop_keeps_a_face_by_trying_again() -> None:
    face = boxes((150, 90, 158, 98))
    rng = random.Random(6)
    tries, lucky = sampler(), sampler(attempts=1)
    for _ in range(300):
        window = tries.square(rng, 100, 160, face)
        assert tries.keeps_a_face(window, 100, 160, face)
    # Without a second try most squares miss the corner; then the largest square around the face is taken.
    largest = [
        np.mean([squares.square(rng, 100, 160, face).side == 100 for _ in range(500)]) for squares in (tries, lucky)
    ]
    assert largest[0] < 0.7 and largest[1] > 0.9


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.data())
def test_some_face_survives_whatever_the_image(height: int, width: int, data: st.DataObject) -> None:
    x = data.draw(st.floats(0, width - 0.5))
    y = data.draw(st.floats(0, height - 0.5))
    face = clean_boxes([[x, y, x + data.draw(st.floats(0.25, 60)), y + data.draw(st.floats(0.25, 60))]], height, width)
    draw = sampler(expand_probability=0.5, attempts=2)
    window = draw.square(random.Random(data.draw(st.integers(0, 99))), height, width, face)
    assert draw.keeps_a_face(window, height, width, face)


# Data-anchor-sampling: which sizes may be chosen, and where the window lies.


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
