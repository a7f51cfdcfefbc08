"""FDDB's regions: each pixel of them, against masks of whole images."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from fanet_lightning.score.fddb.ground_truth import read_fddb_ground_truth
from fanet_lightning.score.fddb.regions import ellipse_mask, iou
from tests.score import fddb_oracle as oracle

GOLDEN = Path(__file__).parents[1] / "golden" / "fddb.json"


def random_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rectangles, some with negative sides; some on whole and half pixels."""
    rows = np.column_stack([rng.uniform(-30, 70, (count, 2)), rng.uniform(-4, 70, (count, 2))])
    return np.round(rows * 2) / 2 if rng.random() < 0.3 else rows


def random_ellipses(rng: np.random.Generator, count: int) -> np.ndarray:
    axes = rng.uniform(0, 50, (count, 2)) * rng.choice([0.1, 1, 1, 1, 20], (count, 1))
    return np.column_stack([axes, rng.uniform(-7, 7, count), rng.uniform(-40, 130, (count, 2))])


def test_iou_equals_that_of_whole_masks() -> None:
    rng = np.random.default_rng(4)
    cut = 0
    for _ in range(300):
        width, height = rng.integers(1, 60, 2).tolist()
        faces, ellipses = random_ellipses(rng, rng.integers(0, 4)), random_ellipses(rng, rng.integers(0, 4))
        rows = random_rows(rng, rng.choice([0, 3, 20]))
        drawn = [oracle.ellipse_mask(face, width, height) for face in faces]
        cut += sum(bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()) for mask in drawn)
        nothing = np.zeros((height, width), np.uint8)
        rectangles = [oracle.rectangle_mask(row, width, height) if min(row[2:]) >= 0 else nothing for row in rows]
        ovals = [oracle.ellipse_mask(row, width, height) for row in ellipses]
        for others, masks in ((rows, rectangles), (ellipses, ovals)):
            found = iou(faces, others, width, height)
            assert found.shape == (len(faces), len(others))
            assert found.tolist() == [[oracle.overlap(face, mask) for mask in masks] for face in drawn]
    assert cut > 100


def check_masks(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        mask = ellipse_mask(np.array(case["ellipse"], np.float64), (0, 0, case["width"], case["height"]))
        assert (int(mask.sum()), hashlib.sha1(mask.tobytes()).hexdigest()) == (case["area"], case["sha1"])


def test_golden_masks() -> None:
    check_masks(json.loads(GOLDEN.read_text())["masks"])


def test_masks_of_the_official_program(shared_data: Path) -> None:
    expected = json.loads((shared_data / "fddb" / "fixtures.json").read_text())
    assert len(expected["ellipses"]) == 58
    check_masks(expected["ellipses"])
    truth = read_fddb_ground_truth(shared_data / "fddb")
    digest, area, count, expected = hashlib.sha1(), 0, 0, expected["all_annotations"]
    for rows, (width, height) in zip(truth.ellipses, truth.sizes_wh.tolist(), strict=True):
        for row in rows:
            mask = ellipse_mask(row, (0, 0, width, height))
            digest.update(mask.tobytes())
            area += int(mask.sum())
            count += 1
    assert (count, area) == (expected["count"], expected["total_area"])
    assert digest.hexdigest() == expected["sha1_of_all_masks_in_order"]
