"""FDDB's regions: each pixel of them, against masks of whole images."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.score.fddb.ground_truth import read_fddb_ground_truth
from fanet_lightning.score.fddb.regions import (
    ellipse_region,
    iou_with_ellipses,
    iou_with_rectangles,
    rectangle_pixels,
)
from tests.score import fddb_oracle as oracle

GOLDEN = Path(__file__).parents[1] / "golden" / "fddb.json"


def ellipse_mask(ellipse: Sequence[float] | np.ndarray, width: int, height: int) -> np.ndarray:
    """The pixels of a region as a mask of the whole image, (height, width) uint8, 0 or 1."""
    region = ellipse_region(ellipse, width, height)
    mask = np.zeros((height, width), np.uint8)
    rows, columns = region.mask.shape
    mask[region.top : region.top + rows, region.left : region.left + columns] = region.mask
    return mask


coordinate = st.floats(-30, 60, width=32) | st.integers(-60, 120).map(lambda twice: twice / 2)


@settings(max_examples=300, deadline=None)
@given(coordinate, coordinate, st.floats(-40, 40), st.floats(-40, 40), st.integers(1, 30), st.integers(1, 30))
def test_rectangle_equals_its_mask(x: float, y: float, w: float, h: float, width: int, height: int) -> None:
    mask = np.zeros((height, width), np.uint8)
    x1, y1, x2, y2 = rectangle_pixels([(x, y, w, h)], width, height)[0].tolist()
    mask[y1 : max(y2 + 1, 0), x1 : max(x2 + 1, 0)] = 1
    assert np.array_equal(mask, oracle.rectangle_mask((x, y, w, h), width, height))


def random_ellipse(rng: np.random.Generator) -> list[float]:
    axes = rng.uniform(0, 50, 2) * rng.choice([0.1, 1, 1, 1, 20])
    return [*axes, rng.uniform(-7, 7), *rng.uniform(-40, 130, 2)]


def test_window_equals_the_whole_image_to_the_pixel() -> None:
    rng = np.random.default_rng(3)
    cut = 0
    for _ in range(3000):
        width, height = rng.integers(1, 100, 2).tolist()
        ellipse = random_ellipse(rng)
        whole = oracle.ellipse_mask(ellipse, width, height)
        assert np.array_equal(ellipse_mask(ellipse, width, height), whole), (ellipse, width, height)
        region = ellipse_region(ellipse, width, height)
        assert region.area == whole.sum()
        cut += bool(whole.any() and (whole[0].any() or whole[-1].any() or whole[:, 0].any() or whole[:, -1].any()))
    assert cut > 1000


def test_iou_equals_that_of_whole_masks() -> None:
    rng = np.random.default_rng(4)
    for _ in range(150):
        width, height = rng.integers(1, 40, 2).tolist()
        faces = np.array([random_ellipse(rng) for _ in range(rng.integers(0, 4))]).reshape(-1, 5)
        ellipses = np.array([random_ellipse(rng) for _ in range(rng.integers(0, 4))]).reshape(-1, 5)
        count = rng.choice([0, 3, 16, 17, 20])  # few are counted one by one, more are summed
        rows = np.column_stack([rng.uniform(-30, 70, (count, 2)), rng.uniform(0, 70, (count, 2))])
        drawn = [oracle.ellipse_mask(face, width, height) for face in faces]
        for found, others in (
            (
                iou_with_rectangles(faces, rows, width, height),
                [oracle.rectangle_mask(row, width, height) for row in rows],
            ),
            (
                iou_with_ellipses(faces, ellipses, width, height),
                [oracle.ellipse_mask(row, width, height) for row in ellipses],
            ),
        ):
            expected = [[oracle.overlap(face, other) for other in others] for face in drawn]
            assert found.shape == (len(faces), len(others))
            assert found.tolist() == expected


def test_golden_masks() -> None:
    for case in json.loads(GOLDEN.read_text())["masks"]:
        mask = ellipse_mask(case["ellipse"], case["width"], case["height"])
        assert int(mask.sum()) == case["area"]
        assert hashlib.sha1(mask.tobytes()).hexdigest() == case["sha1"]


def test_masks_of_the_official_program(shared_data: Path) -> None:
    cases = json.loads((shared_data / "fddb" / "fixtures.json").read_text())["ellipses"]
    assert len(cases) == 58
    for case in cases:
        mask = ellipse_mask(case["ellipse"], case["width"], case["height"])
        assert (int(mask.sum()), hashlib.sha1(mask.tobytes()).hexdigest()) == (case["area"], case["sha1"])


def test_masks_of_all_faces(shared_data: Path) -> None:
    expected = json.loads((shared_data / "fddb" / "fixtures.json").read_text())["all_annotations"]
    truth = read_fddb_ground_truth(shared_data / "fddb")
    digest, area, count = hashlib.sha1(), 0, 0
    for rows, (width, height) in zip(truth.ellipses, truth.sizes_wh.tolist(), strict=True):
        for row in rows:
            mask = ellipse_mask(row, width, height)
            digest.update(mask.tobytes())
            area += int(mask.sum())
            count += 1
    assert (count, area) == (expected["count"], expected["total_area"])
    assert digest.hexdigest() == expected["sha1_of_all_masks_in_order"]
