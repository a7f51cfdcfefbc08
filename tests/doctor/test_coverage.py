"""Anchor coverage: the crops are training's own, and every face has the anchors that a slow count gives it."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.data.datamodule import SampleKey, TrainDataset
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.transforms import TrainAugment
from fanet_lightning.doctor.coverage import Coverage, SizedImage, coverage, whole_images
from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from fanet_lightning.ops.matching import window_side
from fanet_lightning.ops.structures import Targets
from tests.ops.oracles import match_slowly

POLICIES: list[dict[str, Any]] = [
    {},
    {"anchor_sampling": 0.5, "expand_probability": 0.0, "min_face": 6.0},
    {"crop": (0.15, 0.6), "largest_square": 0.1, "expand_max": 2.0, "expand_probability": 0.9, "flip": 1.0},
    {"channel_shuffle": 1.0, "distortion_probability": 1.0, "flip": 0.0, "attempts": 2},
]


def random_image(random: np.random.Generator, smallest: int = 40, largest: int = 260) -> SizedImage:
    """Faces of 1 … 100 pixels, some reaching outside, some without area."""
    width, height = random.integers(smallest, largest, 2).tolist()
    faces = int(random.integers(0, 7))
    corner = random.uniform(-20, max(width, height), (faces, 2))
    sides = 100 ** random.uniform(0, 1, (faces, 2)) * random.choice([0, 1, 1, 1, 1], (faces, 1))
    return SizedImage(width, height, np.concatenate([corner, corner + sides], axis=1).astype(np.float32))


def slow_counts(
    size_hw: tuple[int, int], faces: npt.NDArray[np.float32], threshold: float
) -> tuple[list[float], list[list[int]]]:
    """One image: face sizes, and [stage][face] the anchors that the oracle gives them."""
    grid = AnchorGrid(tuple((math.ceil(size_hw[0] / s), math.ceil(size_hw[1] / s)) for s in STRIDES))
    targets = Targets(torch.from_numpy(faces), torch.zeros(len(faces), dtype=torch.int64))
    counts = []
    for second_stage in (False, True):
        (owners,), _ = match_slowly(grid, targets, 1, window_side(grid, threshold), threshold, 8, second_stage)
        counts.append([list(owners).count(face) for face in range(len(faces))])
    return [math.sqrt((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in faces.astype(float).tolist()], counts


def as_rows(sizes: Any, anchors: Any) -> list[tuple[Any, ...]]:
    """One row per face, in an order that hangs neither on the images' nor on the sizes' last digit."""
    return sorted((before, after, float(size)) for size, before, after in zip(sizes, *anchors, strict=True))


def assert_faces(found: Coverage, expected: list[tuple[Any, ...]]) -> None:
    """The same anchors for the same faces; sizes are of float32 boxes, computed in either precision."""
    rows, expected = as_rows(found.face_sizes, found.anchors.tolist()), sorted(expected)
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in expected], rel=1e-5)


@settings(max_examples=200)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.sampled_from(POLICIES), st.sampled_from([48, 64, 320]))
def test_boxes_without_pixels_are_the_augmentations_own(
    seed: int, case: int, policy: dict[str, Any], size: int
) -> None:
    width, height, faces = random_image(np.random.default_rng(case))
    augment = TrainAugment(size, **policy)
    _, with_pixels = augment(np.zeros((height, width, 3), np.uint8), faces, seed)
    without = augment.boxes(height, width, faces, seed)
    assert without.dtype == np.float32
    assert np.array_equal(without, with_pixels)  # to the last bit


@pytest.mark.parametrize("policy", POLICIES)
def test_coverage_is_that_of_the_trained_samples(policy: dict[str, Any], tmp_path: Path) -> None:
    """Two epochs over images on disk, one of them damaged: dataset, then a slow count of every face's anchors."""
    random = np.random.default_rng(5)
    images: list[SizedImage | None] = [random_image(random) for _ in range(9)]
    records = []
    for number, image in enumerate(images):
        assert image is not None
        path = tmp_path / f"{number}.png"
        assert cv2.imwrite(str(path), np.zeros((image.height, image.width, 3), np.uint8))
        sides = (image.boxes_xyxy[:, 2:] > image.boxes_xyxy[:, :2]).all(axis=1)
        records.append(ImageRecord(str(number), path, image.boxes_xyxy[sides]))
    for damaged in (4, 8):  # after the last comes the first
        records[damaged].path.write_bytes(b"no image")
        images[damaged] = None
    augment = TrainAugment(160, **policy)
    dataset = TrainDataset(records, augment, seed=7)
    expected, empty, seen = [], 0, 0
    for epoch in range(2):
        for index in range(len(records)):
            faces = dataset[SampleKey(epoch, index)].boxes_xyxy.numpy()
            empty += len(faces) == 0
            seen += len(faces)
            if len(faces):
                expected += as_rows(*slow_counts((160, 160), faces, 0.35))
    found = coverage(images, augment, passes=2, seed=7)
    assert_faces(found, expected)
    assert (found.samples, found.empty_samples, len(found.face_sizes)) == (18, empty, seen)
    assert seen > 15 and found.labelled_faces >= seen
    once, other = (coverage(images, augment, seed=seed) for seed in (7, 8))
    assert once.face_sizes.tolist() != other.face_sizes.tolist()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.35, 0.5]))
def test_whole_images_against_a_slow_count(case: int, threshold: float) -> None:
    random = np.random.default_rng(case)
    # Of few widths and heights, so that some images share a grid.
    images = [random_image(random) for _ in range(6)]
    images = [
        SizedImage(image.width // 60 * 60 + 60, image.height // 90 * 90 + 90, image.boxes_xyxy) for image in images
    ]
    found = whole_images([None, *images], threshold=threshold)
    expected = []
    for image in images:
        clipped = image.boxes_xyxy.clip(0, [image.width, image.height] * 2)
        clipped = clipped[(clipped[:, 2:] > clipped[:, :2]).all(axis=1)]
        if len(clipped):
            expected += as_rows(*slow_counts((image.height, image.width), clipped, threshold))
    assert_faces(found, expected)
    assert (found.samples, found.labelled_faces) == (6, len(expected))


@pytest.mark.parametrize("case", range(12))
def test_the_table_against_a_loop(case: int) -> None:
    random = np.random.default_rng(case)
    faces, edges = int(random.integers(0, 60)), (0.0, 8.0, 64.0, math.inf) if case % 2 else (3.0, 10.0, 11.0, 90.0)
    sizes = (2 ** random.uniform(0, 9, faces)).astype(np.float32)
    own = Coverage("", 0.35, sizes, random.integers(0, 9, (2, faces)), 1, 0, faces)
    table = own.by_size(edges)
    for k, (low, high) in enumerate(pairwise(edges)):
        members = [i for i, size in enumerate(own.face_sizes.tolist()) if low <= size < high]
        assert table.faces[k] == len(members)
        for stage in range(2):
            totals = [int(own.anchors[stage, i]) for i in members]
            sums = (sum(totals), totals.count(0), sum(total < 6 for total in totals))
            found = [column[stage, k] for column in (table.anchors_per_face, table.without, table.few)]
            expected = [one / len(members) if members else math.nan for one in sums]
            assert found == pytest.approx(expected, nan_ok=True)
