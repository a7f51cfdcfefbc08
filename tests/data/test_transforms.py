"""Transforms: windows and their boxes, the whole augmentation, test scales."""

import colorsys
import hashlib
import inspect
import pickle
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import MAX_PIXELS
from fanet_lightning.data.transforms import (
    LIMITS,
    Strengths,
    TestScale,
    TrainAugment,
    Window,
    anchor_sampling_window,
    boxes_in_window,
    build_augment,
    clean_boxes,
    distort,
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


@given(random_windows, random_boxes, st.integers(8, 90), st.floats(0, 5))
def test_boxes_against_a_loop_over_faces(
    window: Window, raw: npt.NDArray[np.float32], size: int, min_face: float
) -> None:
    faces, placement = clean_boxes(raw, 70, 90), place(window, 70, 90, size)
    got = boxes_in_window(faces, window, placement, min_face)
    expected = []
    for x1, y1, x2, y2 in faces.astype(float):
        centers = (((x1 + x2) / 2, window.x), ((y1 + y2) / 2, window.y))
        if not all(start <= center < start + window.side for center, start in centers):
            continue
        assert placement is not None
        face = []
        for axis, value in ((0, x1), (1, y1), (0, x2), (1, y2)):
            (s1, s2), (t1, t2) = (side[axis::2] for side in placement)
            face.append(min(max(t1 + (value - s1) * (t2 - t1) / (s2 - s1), t1), t2))
        if min(face[2] - face[0], face[3] - face[1]) >= max(min_face, 1e-9):
            expected.append(face)
    assert got.shape == (len(expected), 4)
    assert np.allclose(got, np.array(expected).reshape(-1, 4), atol=1e-4)
    assert (got >= 0).all() and (got <= size).all() and (got[:, 2:] >= got[:, :2]).all()


@given(random_windows, st.integers(8, 90))
def test_placement_stays_close_to_the_ideal_map(window: Window, size: int) -> None:
    height, width = 70, 90
    placement = place(window, height, width, size)
    near, side = np.array([window.x, window.y]), window.side
    low, high = np.maximum(near, 0), np.minimum(near + side, (width, height))
    if placement is None:
        assert (low >= high).any()
        return
    scale = size / side
    assert placement.source[:2] == tuple(low)
    lost = (high - placement.source[2:]) * scale
    assert (lost >= 0).all() and (lost < 1 + 1e-9).all()
    ideal = np.concatenate([low - near, high - near]) * scale
    assert np.abs(placement.target - ideal).max() <= 1 + 1e-9
    assert 0 <= placement.target[0] < placement.target[2] <= size
    assert 0 <= placement.target[1] < placement.target[3] <= size


@settings(max_examples=200)
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


def test_squares_with_and_without_expansion() -> None:
    rng = random.Random(3)
    windows = [sampler().square(rng, 100, 160, boxes()) for _ in range(2000)]
    sides = np.array([window.side for window in windows])
    assert all(0 <= w.x <= 160 - w.side and 0 <= w.y <= 100 - w.side for w in windows)
    assert sides.min() == 30 and sides.max() == 100
    # One of five is the largest; the others spread evenly over 30 … 100, half of them under 65.
    assert abs((sides == 100).mean() - 0.2) < 0.04 and abs((sides < 65).mean() - 0.8 / 2) < 0.05
    # The whole image inside a larger canvas.
    draw = sampler(expand_probability=1.0, largest_square=1.0, expand_max=3.0).square
    windows = [draw(rng, 100, 100, boxes()) for _ in range(2000)]
    assert all(-200 <= w.x <= 0 and -200 <= w.y <= 0 and 100 <= w.side <= 300 for w in windows)
    assert abs(np.mean([w.side > 200 for w in windows]) - 0.5) < 0.05


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


@given(st.integers(1, 40), st.integers(1, 60), st.data())
def test_some_face_survives_whatever_the_image(height: int, width: int, data: st.DataObject) -> None:
    x = data.draw(st.floats(0, width - 0.5))
    y = data.draw(st.floats(0, height - 0.5))
    face = clean_boxes([[x, y, x + data.draw(st.floats(0.25, 60)), y + data.draw(st.floats(0.25, 60))]], height, width)
    draw = sampler(expand_probability=0.5, attempts=2)
    window = draw.square(random.Random(data.draw(st.integers(0, 99))), height, width, face)
    assert draw.keeps_a_face(window, height, width, face)


def test_anchor_scales_to_choose_from() -> None:
    """The nearest, all smaller ones and one larger."""
    for face, largest in ((3.0, 32), (23.9, 32), (24.1, 64), (130.0, 256), (500.0, 512), (5000.0, 512)):
        sizes = [size for size in (16, 32, 64, 128, 256, 512) if size <= largest]
        assert target_range(face) == [(size / 2, size * 2.0) for size in sizes]


def test_anchor_sampling_gives_the_face_an_anchor_size() -> None:
    # The root of the area is 30: nearest 32, so 16, 32 or 64 are chosen, that is 8 … 128 pixels.
    face, sizes = boxes((400, 300, 420, 345)), []
    for seed in range(500):
        x, y, side = anchor_sampling_window(random.Random(seed), 768, 1024, face, 640)
        assert x <= 400 and x + side >= 420 and y <= 300 and y + side >= 345
        if side <= 768:
            assert 0 <= x <= 1024 - side and 0 <= y <= 768 - side
        else:
            assert y <= 0 and y + side >= 768
        sizes.append(30 * 640 / side)
    assert 7.9 <= min(sizes) < 10 and 115 < max(sizes) <= 129
    # A third each for the ranges 8 … 32, 16 … 64 and 32 … 128: under 16 pixels comes a third of the first alone.
    assert abs(np.mean(np.array(sizes) < 16) - (1 / 3) * (8 / 24)) < 0.06
    # A face larger than the output: its center is held.
    large = boxes((50, 60, 950, 760))
    windows = [anchor_sampling_window(random.Random(seed), 768, 1024, large, 640) for seed in range(200)]
    assert all(x <= 500 <= x + side and y <= 410 <= y + side for x, y, side in windows)
    assert {side < 700 for _, _, side in windows} == {True, False}


# The whole augmentation: what goes in, what comes out, and what it depends on


PROJECT_ROOT = Path(__file__).resolve().parents[2]
NOTHING: dict[str, Any] = {
    "crop": (1.0, 1.0), "expand_probability": 0.0, "flip": 0.0, "distortion_probability": 0.0, "min_face": 0.0,
}  # fmt: skip
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]


def marked_image(height: int, width: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Six solid rectangles on black, each in a color of its own, and their boxes."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    faces = []
    for i, color in enumerate(COLORS):
        x1, y1 = (i % 3) * width // 3 + width // 20, (i // 3) * height // 2 + height // 20
        x2, y2 = x1 + width // (6 + i), y1 + height // (5 + i)
        image[y1:y2, x1:x2] = color
        faces.append((x1, y1, x2, y2))
    return image, np.array(faces, dtype=np.float32)


def photo(height: int = 90, width: int = 120) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def digest(image: npt.NDArray[np.uint8], faces: npt.NDArray[np.float32]) -> str:
    return hashlib.sha256(image.tobytes() + faces.tobytes()).hexdigest()


def test_a_square_image_comes_back_and_a_flip_mirrors_it() -> None:
    image, faces = photo(64, 64), np.array([[3, 5, 40, 60], [0, 0, 64, 64]], dtype=np.float32)
    out, boxes = TrainAugment(64, **NOTHING)(image, faces, seed=5)
    assert np.array_equal(out, image) and np.allclose(boxes, faces, atol=1e-4)
    assert boxes.dtype == np.float32 and out.dtype == np.uint8
    flip = TrainAugment(64, **{**NOTHING, "flip": 1.0})
    once, boxes = flip(image, faces, seed=0)
    assert np.array_equal(once, image[:, ::-1]) and np.allclose(boxes, [[24, 5, 61, 60], [0, 0, 64, 64]], atol=1e-4)
    twice, again = flip(once, boxes, seed=1)
    assert np.array_equal(twice, image) and np.allclose(again, faces, atol=1e-4)


@pytest.mark.parametrize("size", [128, 320])
@pytest.mark.parametrize("shape", [(768, 1024), (301, 217), (60, 90)])
@pytest.mark.parametrize("anchor_sampling", [0.0, 1.0])
def test_boxes_sit_where_the_pixels_are(shape: tuple[int, int], size: int, anchor_sampling: float) -> None:
    """Each rectangle is found by its color in the output and compared with its box, to a pixel."""
    image, faces = marked_image(*shape)
    augment = TrainAugment(size, distortion_probability=0.0, anchor_sampling=anchor_sampling, fill=(0, 0, 0))
    compared = 0
    for seed in range(12):
        out, boxes = augment(image, faces, seed)
        for x1, y1, x2, y2 in boxes:
            if min(x2 - x1, y2 - y1) < 6:
                continue
            color = out[int((y1 + y2) / 2), int((x1 + x2) / 2)].astype(int)
            assert np.abs(np.array(COLORS) - color).max(axis=1).min() <= 2
            mask = np.abs(out.astype(int) - color).max(axis=2) < 128
            columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert np.abs(np.array(found) - [x1, y1, x2, y2]).max() <= 1.0
            compared += 1
    assert compared >= 12


raw_boxes = st.lists(st.tuples(*[st.floats(-300, 400, width=32)] * 4), max_size=8)


@settings(max_examples=150)
@given(st.integers(1, 200), st.integers(1, 200), raw_boxes, st.integers(0, 2**63 - 1), st.sampled_from([0.0, 1.0]))
def test_any_image_and_any_boxes(
    height: int, width: int, raw: list[tuple[float, ...]], seed: int, anchor_sampling: float
) -> None:
    size = 48
    faces = np.array(raw, dtype=np.float32).reshape(-1, 4)
    image = np.full((height, width, 3), 99, dtype=np.uint8)
    out, boxes = TrainAugment(size, anchor_sampling=anchor_sampling, min_face=1.5)(image, faces, seed)
    assert out.shape == (size, size, 3) and out.dtype == np.uint8 and out.flags.c_contiguous
    assert boxes.dtype == np.float32 and boxes.shape[1] == 4 and len(boxes) <= len(faces)
    assert (boxes >= 0).all() and (boxes <= size).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1.5 - 1e-3).all()


def test_a_sample_depends_on_its_seed_alone() -> None:
    image, faces = marked_image(90, 120)
    augment = TrainAugment(64)
    first = [digest(*augment(image, faces, seed)) for seed in range(12)]
    backwards = [digest(*augment(image, faces, seed)) for seed in reversed(range(12))]
    random.seed(0)
    copy = pickle.loads(pickle.dumps(augment))
    elsewhere = [digest(*copy(image, faces, seed)) for seed in range(12)]
    assert first == backwards[::-1] == elsewhere
    assert len(set(first)) == 12


def test_the_draws_of_the_parts_are_independent() -> None:
    """Seeding each part by itself would start all at the same draws, tying crop, flip and colors together."""
    _, faces = marked_image(90, 120)
    augment = TrainAugment(32, expand_probability=0.0, largest_square=0.0, distortion_probability=1.0)
    drawn = [augment.draw(90, 120, faces, seed) for seed in range(400)]
    rows = np.array([[own.window.side, own.window.x, own.is_flipped, *own.strengths[:5]] for own in drawn], float)
    correlation = np.corrcoef(rows.T)
    correlation[0, 1] = correlation[1, 0] = 0  # a large square cannot start far to the right
    assert np.abs(correlation - np.eye(8)).max() < 0.2 and abs(rows[:, 2].mean() - 0.5) < 0.1


@pytest.mark.parametrize(
    "changes",
    [
        *({name: high + 1} for name, (_, high) in LIMITS.items() if not isinstance(getattr(TrainAugment, name), tuple)),
        *({"crop": crop} for crop in [(0.0, 1.0), (0.9, 0.3), (0.3,), 0.3]),
        {"flip": float("nan")}, {"hue": "much"}, {"min_face": True}, {"fill": (1, 2, 256)}, {"attempts": 2.5},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"augment\.{next(iter(changes))}="):
        TrainAugment(**changes)


# SSD's color distortion against a loop over pixels


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


@pytest.mark.parametrize("contrast_first", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_loop_over_pixels(seed: int, contrast_first: bool) -> None:
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    colors[0, :6] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    brightness, hue = float(rng.integers(-32, 33)), float(rng.integers(-12, 13)) * 360 / 256
    own = Strengths(brightness, float(rng.uniform(0.5, 1.5)), float(rng.uniform(0.5, 1.5)), hue, contrast_first)
    got = distort(colors, own).astype(float)
    expected = np.array([[distort_pixel(tuple(pixel), *own[:5]) for pixel in row] for row in colors])
    # Hue lies on 256 levels of 1.4°, rounded twice: up to 6 grey levels on one channel, saturation up to 2 more, and a
    # contrast that comes last enlarges both by half.
    assert np.abs(got - expected).max() <= 12 and np.abs(got - expected).mean() <= 0.7


def test_draws_fill_their_ranges_and_leave_out_half() -> None:
    augment = TrainAugment(saturation=(0.6, 1.4), channel_shuffle=0.25)
    rng = random.Random(0)
    draws = [augment.strengths(rng) for _ in range(4000)]
    ranges = {"brightness": (-32, 32, 0), "contrast": (0.5, 1.5, 1), "saturation": (0.6, 1.4, 1), "hue": (-18, 18, 0)}
    for name, (low, high, neutral) in ranges.items():
        values = np.array([getattr(draw, name) for draw in draws])
        assert abs((values == neutral).mean() - 0.5) < 0.03, name
        drawn = values[values != neutral]
        assert low <= drawn.min() < low + (high - low) / 50 and high - (high - low) / 50 < drawn.max() <= high, name
        assert abs(drawn.mean() - (low + high) / 2) < (high - low) / 30, name
    assert abs(np.mean([draw.contrast_first for draw in draws]) - 0.5) < 0.03
    # A quarter is shuffled, and one of six orders is the usual one.
    assert abs(np.mean([draw.channels != (0, 1, 2) for draw in draws]) - 0.25 * 5 / 6) < 0.03


# Transforms of Albumentations


@settings(max_examples=60)
@given(st.sampled_from(["RandomRotate90", "D4", "SafeRotate", "Affine", "OneOf"]), st.integers(0, 2**63 - 1))
def test_boxes_and_pixels_move_together(name: str, seed: int) -> None:
    """A white rectangle on black is inside its box, and fills it as well as the transform lets it."""
    inner: Any = {"_target_": "albumentations.Affine", "rotate": [-30, 30], "scale": [0.8, 1.2], "p": 1.0}
    extra = {"Affine": inner, "OneOf": {"_target_": "albumentations.OneOf", "p": 1.0, "transforms": [inner]}}.get(
        name, {"_target_": f"albumentations.{name}", "p": 1.0}
    )
    image = np.zeros((96, 96, 3), dtype=np.uint8)
    image[30:60, 36:66] = 255
    augment = TrainAugment(96, **NOTHING, extra=[extra])
    out, boxes = augment(image, [[36, 30, 66, 60]], seed)
    assert np.array_equal(boxes, augment.boxes(96, 96, [[36, 30, 66, 60]], seed))
    if not len(boxes):  # its center has left the image
        return
    x1, y1, x2, y2 = boxes[0]
    rows, columns = np.nonzero(out[..., 0] > 200)
    assert len(boxes) == 1 and (boxes >= 0).all() and (boxes <= 96).all()
    assert columns.min() >= x1 - 2 and columns.max() + 1 <= x2 + 2 and rows.min() >= y1 - 2 and rows.max() + 1 <= y2 + 2
    assert x2 - x1 < 80 and y2 - y1 < 80


def test_extra_draws_follow_the_seed_and_leave_the_others_as_they_are() -> None:
    image, faces = marked_image(90, 120)
    names = ("GaussNoise", "RandomBrightnessContrast")
    augment = TrainAugment(64, extra=[{"_target_": f"albumentations.{name}", "p": 0.5} for name in names])
    copy, plain = pickle.loads(pickle.dumps(augment)), TrainAugment(64)
    first, again, without = ([own(image, faces, seed) for seed in range(24)] for own in (augment, copy, plain))
    assert [digest(*sample) for sample in first] == [digest(*sample) for sample in again]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, without, strict=True))
    same = [np.array_equal(a[0], b[0]) for a, b in zip(first, without, strict=True)]
    assert 1 <= sum(same) <= 14  # neither is applied to a quarter


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"_target_": "albumentations.GausNoise"}, "GausNoise"),
        ({"_target_": "albumentations.GaussNoise", "strength": 3}, "strength"),
        ({"_target_": "albumentations.RandomCrop", "height": 8, "width": 8}, "size"),
        ({"_target_": "albumentations.Normalize"}, "type"),
        ({"_target_": "albumentations.MaskDropout"}, "MaskDropout"),
        ("GaussNoise", "no transform"),
    ],
)
def test_transforms_that_do_not_work_are_named(item: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        TrainAugment(32, extra=[item])
    assert str(error.value).startswith("augment.extra: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["s3fd", "anchor_sampling", "none"])
def test_configurations_build_and_name_every_setting(name: str) -> None:
    with initialize_config_dir(str(PROJECT_ROOT / "conf" / "augment"), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose(name, overrides=["+input_size=48"]), resolve=True)
    assert config.pop("input_size") == config["size"] == 48
    defaults = {key: parameter.default for key, parameter in inspect.signature(TrainAugment).parameters.items()}
    assert set(config) - {"_target_"} == set(defaults)
    out, _ = build_augment(config)(photo(), [[10, 10, 60, 60]], 0)
    assert out.shape == (48, 48, 3)
    if name == "s3fd":
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
        assert config == {**plain, "size": 48, "_target_": config["_target_"]}


# Test scales


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


@settings(max_examples=300)
@given(st.integers(1, 13_000), st.integers(1, 13_000), st.integers(1, 5000), st.sampled_from(["short", "long"]))
def test_no_image_outgrows_what_can_be_read(height: int, width: int, size: int, kind: Literal["short", "long"]) -> None:
    rows, columns = TestScale(kind, size).target_size(height, width)
    assert rows >= 1 and columns >= 1 and rows * columns <= MAX_PIXELS
    wanted = size / (min if kind == "short" else max)(height, width)
    wanted = min(wanted, max(1.0, 10 * size / max(height, width)))
    if height * width * wanted**2 < 0.9 * MAX_PIXELS and min(height, width) * wanted >= 4:
        assert (rows, columns) == (int(height * wanted + 0.5), int(width * wanted + 0.5))


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


@settings(max_examples=25)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(1, 30), st.integers(0, 2**31))
def test_pixels_equal_plain_bilinear_sampling(height: int, width: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized, scale_xy = TestScale("long", size)(image)
    np.testing.assert_array_equal(scale_xy, np.float32([resized.shape[1] / width, resized.shape[0] / height]))
    assert max(resized.shape[:2]) == size
    assert np.abs(resized - bilinear(image, *resized.shape[:2])).max() <= 1.5


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("kind=shortest", ("shortest", 640)),
        ("size=None", ("short", None)),
        ("size=0", ("long", 0)),
        ("max_long=0", ("original", None, 0)),
        ("tile_pixels=1000", ("original", None, None, 1000)),
    ],
)
def test_mistakes(key: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match=f"protocol.{key}"):
        TestScale(*arguments)
