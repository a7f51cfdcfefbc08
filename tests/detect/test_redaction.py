"""Blurred and pixelated faces: what is changed, what is left, and that the detail is gone."""

import numpy as np
import pytest
import torch
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect.redaction import REDACTIONS, Redaction, redact, redacted_regions
from fanet_lightning.ops.structures import Detections


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixelated_slowly(image, regions):
    """One cell at a time with loops; cells of both axes end at round(i x length / count)."""
    result = image.copy()
    for left, top, right, bottom in regions:
        height, width = bottom - top, right - left
        cell = max(max(height, width) / 8, 4)
        rows, columns = max(1, int(height / cell)), max(1, int(width / cell))
        before = result.copy()
        for i, j, channel in np.ndindex(rows, columns, 3):
            y = slice(top + round(i * height / rows), top + round((i + 1) * height / rows))
            x = slice(left + round(j * width / columns), left + round((j + 1) * width / columns))
            values = before[y, x, channel].flatten().tolist()
            result[y, x, channel] = round(sum(values) / len(values))
    return result


@pytest.mark.parametrize("boxes", [
    [[10, 10, 60, 70]], [[10.4, 20.7, 33.2, 31.9]], [[-20, -20, 30, 40], [60, 50, 200, 200]],
    [[10, 10, 60, 60], [30, 30, 80, 75], [40, 40, 44, 44]], [[50, 50, 51, 51], [0, 0, 1, 1], [89, 79, 90, 80]],
    [[-500, -500, 500, 500]],
])  # fmt: skip
def test_pixelation_agrees_with_loops_over_cells(boxes):
    image = noise(80, 90)
    expected = pixelated_slowly(image, redacted_regions(boxes, 80, 90))
    np.testing.assert_array_equal(redact(image, boxes, "pixelate"), expected)


def test_blur_agrees_with_the_smoothed_and_enlarged_grid_of_means():
    image = noise(100, 100)
    given, whole = image.copy(), redact(image, [[10, 10, 90, 90]], "blur", scale=1)
    np.testing.assert_array_equal(image, given)
    outside, result = np.ones((100, 100), bool), whole[10:90, 10:90]
    outside[10:90, 10:90] = False
    np.testing.assert_array_equal(whole[outside], image[outside])  # byte for byte
    means = image[10:90, 10:90].reshape(8, 10, 8, 10, 3).mean(axis=(1, 3))
    weights = np.exp(-0.5 * (np.arange(-8, 9) / 0.8) ** 2)
    weights /= weights.sum()
    smooth = means
    for axis in (0, 1):
        padded = np.pad(smooth, [(8, 8) if a == axis else (0, 0) for a in range(3)], mode="edge")
        smooth = sum(w * np.take(padded, np.arange(8) + k, axis=axis) for k, w in enumerate(weights))
    # Linear between the centres of the cells, constant beyond the outer ones.
    places = np.clip((np.arange(80) + 0.5) / 10 - 0.5, 0, 7)
    low = np.minimum(places.astype(int), 6)
    part = places - low
    tall = smooth[low] * (1 - part)[:, None, None] + smooth[low + 1] * part[:, None, None]
    wide = tall[:, low] * (1 - part)[None, :, None] + tall[:, low + 1] * part[None, :, None]
    assert np.abs(result - wide).max() <= 2.5  # three roundings to whole numbers


def test_the_region_is_the_box_with_a_tenth_on_each_side_rounded_outwards():
    assert redacted_regions([[100, 200, 150, 260]], 1000, 1000) == [(95, 194, 155, 266)]
    assert redacted_regions([[100.5, 200, 150, 260]], 1000, 1000, scale=1) == [(100, 200, 150, 260)]
    assert redacted_regions([[-10, -10, 5, 6]], 1000, 1000) == [(0, 0, 7, 8)]
    assert redacted_regions([[990, 5, 1100, 25]], 30, 1000, scale=2) == [(935, 0, 1000, 30)]
    # A face of one pixel becomes four, at the border too; an image that is smaller is redacted whole.
    assert redacted_regions([[50, 50, 51, 51]], 100, 100, scale=1) == [(49, 49, 53, 53)]
    assert redacted_regions([[99, 0, 100, 1]], 100, 100, scale=1) == [(96, 0, 100, 4)]
    assert redacted_regions([[0, 0, 1, 1]], 3, 2) == [(0, 0, 2, 3)]


@pytest.mark.parametrize("kind", REDACTIONS)
@pytest.mark.parametrize("size", [1, 6, 17, 300])
def test_no_more_than_8_by_8_colors_of_a_face_reach_the_result(kind, size):
    """Two images whose cells have the same means give the same result: whatever else they held is lost."""
    image = noise(400, 400, seed=size)
    boxes = [[20, 20, 20 + size, 20 + size]]
    left, top, right, _ = redacted_regions(boxes, 400, 400)[0]
    other = image.copy()
    side = right - left
    count = max(1, int(side / max(side / 8, 4)))
    edges = np.round(np.linspace(0, side, count + 1)).astype(int)
    for y in range(count):
        for x in range(count):
            cell = other[top + edges[y] : top + edges[y + 1], left + edges[x] : left + edges[x + 1]]
            cell[:] = cell[::-1, ::-1].copy()  # the same pixels in another order
    assert (other != image).any()
    np.testing.assert_array_equal(redact(image, boxes, kind), redact(other, boxes, kind))


@pytest.mark.parametrize("kind", REDACTIONS)
def test_the_order_of_faces_does_not_matter_and_coarse_cells_win(kind):
    image = noise(200, 200)
    boxes = np.array([[20, 20, 180, 180], [60, 60, 80, 80], [100, 100, 199, 150], [60, 60, 80, 80]], float)
    result = redact(image, boxes, kind)
    np.testing.assert_array_equal(redact(image, boxes[::-1], kind), result)
    # The small face inside the large one does not bring its own, finer cells back.
    large = redact(redact(image, boxes[[1]], kind), boxes[[0]], kind)
    np.testing.assert_array_equal(redact(image, boxes[:2], kind), large)


@pytest.mark.parametrize("kind", REDACTIONS)
def test_boxes_outside_empty_and_not_finite_change_nothing(kind):
    image = noise(50, 50)
    boxes = [[60, 0, 70, 10], [-30, 0, -10, 10], [0, 55, 10, 70], [9, 9, 5, 5], [np.nan, 1, 2, 3], [0, 0, np.inf, 5]]
    for none in (boxes, []):
        np.testing.assert_array_equal(redact(image, none, kind), image)


def test_a_solid_mask_says_nothing_of_what_was_there():
    expected = np.zeros((50, 60), bool)
    expected[9:21, 9:21] = expected[4:8, 39:43] = True
    for image in (noise(50, 60), np.full((50, 60, 3), 255, np.uint8)):
        result = redact(image, [[10, 10, 20, 20], [40, 5, 41, 6]], "solid")
        np.testing.assert_array_equal(result, np.where(expected[..., None], 0, image))


def test_an_ellipse_leaves_the_corners_of_the_scaled_box_but_at_the_border():
    image = np.full((60, 80, 3), 200, np.uint8)
    hidden = (redact(image, [[30, 20, 50, 40]], "solid", shape="ellipse", scale=1.5) == 0).all(axis=2)
    y, x = np.mgrid[:60, :80] + 0.5
    np.testing.assert_array_equal(hidden, (x - 40) ** 2 + (y - 30) ** 2 <= 15**2)
    assert (redact(image, [[-10, 20, 10, 40]], "solid", shape="ellipse")[18:42, :12] == 0).all()


def test_an_image_is_stretched_over_the_face(tmp_path):
    cover = np.repeat(np.array([[[255, 0, 0, 255], [0, 0, 0, 0]]], np.uint8), 2, axis=0)
    Image.fromarray(cover).save(tmp_path / "a.png")
    result = redact(noise(50, 50), [[10, 10, 30, 40]], f"image:{tmp_path / 'a.png'}", scale=1)
    assert (result[10:40, 10:20] == (255, 0, 0)).all() and (result[10:40, 20:30] == 255).all()
    (tmp_path / "b.png").write_bytes(b"no image")
    for name in ("b.png", "c.png"):
        with pytest.raises(InputError, match=rf"redact=image:.*{name}"):
            redact(noise(9, 9), [], f"image:{tmp_path / name}")


def test_regions_are_hidden_always_and_faces_within_the_time():
    image = noise(40, 40)
    how = Redaction("solid", "ellipse", 3, [[0, 0, 5, 6]], start_seconds=1.0, end_seconds=2.0)
    for seconds, is_hidden in ((None, True), (0.99, False), (1.0, True), (2.0, True), (2.01, False)):
        result = how.apply(image, [[18, 18, 22, 22]], seconds)
        assert (result[:6, :5] == 0).all()
        assert (result[20, 20] == 0).all() == is_hidden
    np.testing.assert_array_equal(how.apply(image, [], 0.0)[6:], image[6:])
    found = Detections(torch.tensor([[18.0, 18, 22, 22]]), torch.tensor([0.9]))
    np.testing.assert_array_equal(redact(image, found, "blur"), redact(image, found.boxes_xyxy, "blur"))


@pytest.mark.parametrize("settings, key", [
    ({"kind": "mosaic"}, "redact="), ({"shape": "star"}, "redact_shape"), ({"scale": np.nan}, "redact_scale"),
    ({"regions": [[1, 2, 3]]}, "redact_regions"), ({"regions": [[1, 2, 1, 5]]}, "redact_regions"),
    ({"regions": [7]}, "redact_regions"), ({"regions": [["a", 1, 2, 3]]}, "redact_regions"),
    ({"start_seconds": 3, "end_seconds": 3}, "redact_from"), ({"start_seconds": -1}, "redact_from"),
])  # fmt: skip
def test_wrong_settings_are_named(settings, key):
    with pytest.raises(InputError, match=key):
        Redaction(**settings)
