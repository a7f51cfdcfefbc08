"""The whole augmentation: what goes in, what comes out, and what it depends on."""

import colorsys
import hashlib
import inspect
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.transforms import LIMITS, Strengths, TrainAugment, build_augment, distort

PROJECT_ROOT = Path(__file__).resolve().parents[2]
NOTHING: dict[str, Any] = {
    "crop": (1.0, 1.0),
    "expand_probability": 0.0,
    "flip": 0.0,
    "distortion_probability": 0.0,
    "min_face": 0.0,
}
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


@settings(max_examples=150, deadline=None)
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
    rows = []
    for drawn in (augment.draw(90, 120, faces, seed) for seed in range(400)):
        rows.append([drawn.window.side, drawn.window.x, drawn.is_flipped, *drawn.strengths[:5]])
    correlation = np.corrcoef(np.array(rows, dtype=float).T)
    correlation[0, 1] = correlation[1, 0] = 0  # a large square cannot start far to the right
    assert np.abs(correlation - np.eye(8)).max() < 0.2
    drawn = np.array(rows, dtype=float)
    assert abs(drawn[:, 2].mean() - 0.5) < 0.1
    assert (np.abs(drawn[:, 3]) <= 32).all() and drawn[:, 3].min() < -28 and drawn[:, 3].max() > 28
    assert drawn[:, 4:6].min() >= 0.5 and drawn[:, 4:6].max() <= 1.5 and drawn[:, 4:6].min() < 0.55
    assert (np.abs(drawn[:, 6]) <= 18).all() and np.abs(drawn[:, 6]).max() > 16


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


@pytest.fixture(scope="module")
def colors() -> npt.NDArray[np.uint8]:
    colors = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    colors[0, :6] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    return colors


@pytest.mark.parametrize("contrast_first", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_against_a_loop_over_pixels(colors: npt.NDArray[np.uint8], seed: int, contrast_first: bool) -> None:
    rng = np.random.default_rng(seed)
    strengths = {
        "brightness": float(rng.integers(-32, 33)),
        "contrast": float(rng.uniform(0.5, 1.5)),
        "saturation": float(rng.uniform(0.5, 1.5)),
        "hue": float(rng.integers(-12, 13)) * 360 / 256,
    }
    got = distort(colors, Strengths(**strengths, contrast_first=contrast_first)).astype(float)
    expected = np.array(
        [[distort_pixel(tuple(pixel), **strengths, contrast_first=contrast_first) for pixel in row] for row in colors]
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


def test_neutral_strengths_change_nothing(colors: npt.NDArray[np.uint8]) -> None:
    before = colors.copy()
    assert distort(colors, Strengths()) is colors
    distort(colors, Strengths(brightness=5, contrast=0.7, saturation=1.2, hue=9))
    assert np.array_equal(colors, before)


# Transforms of Albumentations


def plain_square(**changes: Any) -> TrainAugment:
    return TrainAugment(96, **{**NOTHING, **changes})


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["RandomRotate90", "D4", "SafeRotate", "Affine", "Perspective", "OneOf"]), st.integers(0, 2**63 - 1)
)
def test_boxes_and_pixels_move_together(name: str, seed: int) -> None:
    """A white rectangle on black is inside its box, and fills it as well as the transform lets it."""
    inner: Any = {"_target_": "albumentations.Affine", "rotate": [-30, 30], "scale": [0.8, 1.2], "p": 1.0}
    extra = {"Affine": inner, "OneOf": {"_target_": "albumentations.OneOf", "p": 1.0, "transforms": [inner]}}.get(
        name, {"_target_": f"albumentations.{name}", "p": 1.0}
    )
    image = np.zeros((96, 96, 3), dtype=np.uint8)
    image[30:60, 36:66] = 255
    augment = plain_square(extra=[extra])
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
    noise = [
        {"_target_": "albumentations.GaussNoise", "p": 0.5},
        {"_target_": "albumentations.RandomBrightnessContrast", "p": 0.5},
    ]
    plain, augment = TrainAugment(64), TrainAugment(64, extra=noise)
    copy = pickle.loads(pickle.dumps(augment))
    first = [augment(image, faces, seed) for seed in range(24)]
    assert [digest(*sample) for sample in first] == [digest(*copy(image, faces, seed)) for seed in range(24)]
    without = [plain(image, faces, seed) for seed in range(24)]
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
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(PROJECT_ROOT / "conf" / "augment"), version_base="1.3"):
        composed = compose(name, overrides=["+input_size=48"])
    config: Any = OmegaConf.to_container(composed, resolve=True)
    assert config.pop("input_size") == config["size"] == 48
    settings_of_class = inspect.signature(TrainAugment).parameters
    assert set(config) - {"_target_"} == set(settings_of_class)
    out, _ = build_augment(config)(photo(), [[10, 10, 60, 60]], 0)
    assert out.shape == (48, 48, 3)
    if name == "s3fd":
        for key, parameter in settings_of_class.items():
            if key != "size":
                expected = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                assert config[key] == expected, key
