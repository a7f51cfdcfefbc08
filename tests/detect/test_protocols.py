"""The multi-scale protocol: its passes by hand, what comes back from them, tiles, and a whole evaluation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.transforms import AUTO, TestScale, TilePixels
from fanet_lightning.detect.protocols import (
    Found,
    MultiScale,
    Pass,
    TwoSizes,
    build_protocol,
    full_settings,
    protocol_names,
    protocol_of,
    protocol_settings,
)
from fanet_lightning.models.fanet import build_network
from fanet_lightning.ops.boxes import pairwise_iou
from fanet_lightning.ops.structures import Detections
from tests.detect.helpers import PHOTOGRAPH, detector_of, light


class Fixed:
    """Finds the same boxes, in normalized coordinates, in every input; its n-th call speaks of n tiles."""

    def __init__(self, *shares_xyxy: tuple[float, float, float, float]) -> None:
        self.shares = torch.tensor(shares_xyxy).reshape(-1, 4)
        self.sizes: list[tuple[int, int]] = []
        self.detection = {"nms_iou": 0.3, "keep": 750}

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> list[Found]:
        assert images.dtype == torch.uint8 and images.shape[:2] == (1, 3)
        height, width = images.shape[2:]
        self.sizes.append((height, width))
        assert tile_pixels == AUTO
        scores = torch.full((len(self.shares),), 0.5)
        return [Found(Detections(self.shares * torch.tensor([width, height] * 2), scores), len(self.sizes))]


# The passes

BIG, SMALL = {"larger_over": 30.0}, {"smaller_under": 100.0}


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (9.0, [Pass(1), Pass(1, flip=True), Pass(0.5, **BIG), *(Pass(s, **SMALL) for s in (2, 4, 8, 9))]),
        (3.0, [Pass(1), Pass(1, flip=True), Pass(0.5, **BIG), Pass(2, **SMALL), Pass(3, **SMALL)]),
        (2.0, [Pass(1), Pass(1, flip=True), Pass(0.5, **BIG), Pass(2, **SMALL)]),
        (1.0, [Pass(1), Pass(1, flip=True), Pass(0.5, **BIG), Pass(0.75, **BIG)]),
        (0.75, [Pass(0.75), Pass(0.75, flip=True), Pass(0.5, **BIG), Pass(0.625, **BIG)]),
        (0.5, [Pass(0.5), Pass(0.5, flip=True), Pass(0.25, **BIG), Pass(0.375, **BIG)]),
    ],
)
def test_passes_by_hand(largest: float, expected: list[Pass]) -> None:
    """400 × 100 pixels, and a largest pass of ``largest``² times as many: both square roots are exact."""
    assert MultiScale(max_pixels=int(40_000 * largest**2)).scales(400, 100) == expected


# What comes back


def test_passes_keep_the_sizes_that_they_are_trusted_with() -> None:
    """512 × 512 pixels at 1, its mirror, 1/2 (larger side above 30) and 2 (smaller side below 100)."""
    protocol, image = MultiScale(max_pixels=1024**2), np.zeros((512, 512, 3), np.uint8)
    for (width, height), expected in {
        (30, 30): [1, 1, 0, 1], (31, 12): [1, 1, 1, 1], (12, 31): [1, 1, 1, 1], (100, 200): [1, 1, 1, 0],
        (99, 200): [1, 1, 1, 1], (200, 99): [1, 1, 1, 1],
    }.items():  # fmt: skip
        finder = Fixed((0.0, 0.0, width / 512, height / 512))
        _, records = protocol.detect(finder, image)
        assert [record.boxes for record in records] == expected, (width, height)
        assert finder.sizes == [(512, 512), (512, 512), (256, 256), (1024, 1024)]
    assert [(r.scale, r.flip, r.height, r.width, r.tiles) for r in records] == [
        (1, False, 512, 512, 1), (1, True, 512, 512, 2), (0.5, False, 256, 256, 3), (2, False, 1024, 1024, 4),
    ]  # fmt: skip


@settings(max_examples=50)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([500, 2000, 9000]))
def test_boxes_come_back_by_the_exact_ratio_of_sizes(height: int, width: int, max_pixels: int) -> None:
    """Whatever the rounding of sides, the whole input is the whole image, in all passes: one box after the vote."""
    found, records = MultiScale(max_pixels=max_pixels).detect(
        Fixed((0.0, 0.0, 1.0, 1.0)), np.zeros((height, width, 3), np.uint8)
    )
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[0.0, 0.0, width, height]]), rtol=1e-6, atol=1e-4)
    assert records[0].boxes == records[1].boxes == 1


def test_the_vote_has_the_protocols_settings_and_its_boxes_are_clipped() -> None:
    finder, image = Fixed((0.1, 0.1, 0.2, 0.2)), np.zeros((100, 100, 3), np.uint8)
    protocol = MultiScale(max_pixels=10_000)  # the face and its mirror, one pass each
    wide = Fixed((0.1, 0.1, 0.7, 0.2))  # mirror images with IoU 1/3
    for changes, found, count in (({}, finder, 2), ({"keep": 1}, finder, 1), ({"keep_singles": False}, finder, 0),
                                  ({}, wide, 1), ({"vote_iou": 0.6}, wide, 2)):  # fmt: skip
        assert len(replace(protocol, **changes).detect(found, image)[0].scores) == count  # type: ignore[arg-type]
    # The mirror image's box is (0.5 … 1.5): IoU 0, a face of its own.
    clipped, _ = protocol.detect(Fixed((-0.5, 0.25, 0.5, 1.5)), image)  # type: ignore[arg-type]
    assert clipped.boxes_xyxy.tolist() == [[0, 25, 50, 100], [50, 25, 100, 100]]


def test_the_detector_takes_several_scales_as_it_takes_one() -> None:
    torch.manual_seed(0)
    detector = detector_of(build_network(level=2, width=0.0625), detection={"keep": 20})
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    protocol = MultiScale(max_pixels=20_000)
    found, (expected, records) = detector.detect(image, protocol, 0.0), protocol.detect(detector.backend, image)
    assert len(found.scores) and len(records) == 4 and (found.scores.diff() <= 0).all()
    assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy) and torch.equal(found.scores, expected.scores)
    assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy <= torch.tensor([96, 64] * 2)).all()


# Two sizes


@pytest.mark.parametrize(
    ("height", "width", "first", "second"),
    [
        (683, 1024, (683, 1024), (384, 576)),
        (3000, 4000, (768, 1024), (384, 512)),
        (60, 80, (240, 320), (144, 192)),  # fourfold, then 0.6
        (400, 600, (480, 720), (288, 432)),
        (1, 300, (4, 1200), (2, 720)),
    ],
)
def test_the_sizes_of_a_photo(height: int, width: int, first: tuple[int, int], second: tuple[int, int]) -> None:
    finder = Fixed()
    found, records = TwoSizes().detect(finder, np.zeros((height, width, 3), np.uint8))  # type: ignore[arg-type]
    assert finder.sizes == [first, second] and len(found) == 0
    assert [(record.height, record.width, record.tiles) for record in records] == [(*first, 1), (*second, 2)]


def test_each_size_keeps_the_faces_that_it_sees_best() -> None:
    """1,000 × 500 pixels, looked at as they are and at 768 × 384: sides of 0.1, 0.3 and 0.04 of the shorter one."""
    finder = Fixed((0.0, 0.0, 0.02, 0.04), (0.5, 0.0, 0.55, 0.1), (-0.1, 0.5, 0.2, 0.9))
    found, records = TwoSizes().detect(finder, np.zeros((500, 1000, 3), np.uint8))  # type: ignore[arg-type]
    # 20 × 20 by the first alone, 50 × 50 by both and once, 200 × 200 by the second alone.
    assert [record.boxes for record in records] == [2, 2]
    expected = [[0, 0, 20, 20], [0, 250, 200, 450], [500, 0, 550, 50]]
    np.testing.assert_allclose(sorted(found.boxes_xyxy.tolist()), expected, atol=1e-3)


# Settings


def test_the_protocols_files_are_read() -> None:
    expected = {
        "multiscale": MultiScale(), "multiscale_quick": MultiScale(max_pixels=1_000_000), "auto": TwoSizes(),
        "short640": TestScale("short", 640),
    }  # fmt: skip
    assert {name: protocol_of(name) for name in expected} == expected
    assert all(protocol_settings(name)["name"] == name for name in protocol_names())


def test_a_number_is_stored_with_all_its_settings() -> None:
    assert full_settings({"name": "mine", "kind": "multiscale", "keep": 10}) == {
        "name": "mine", "kind": "multiscale", "max_pixels": 3721808, "tile_pixels": "auto", "vote_iou": 0.3, "keep": 10,
        "keep_singles": True,
    }  # fmt: skip
    short = {"name": "short640", "kind": "short", "size": 640, "max_long": None}
    assert full_settings(short) == {**short, "tile_pixels": "auto"}
    assert build_protocol(full_settings({"name": "a", "kind": "multiscale"})) == MultiScale()


def test_mistakes_in_the_settings() -> None:
    for kind, options, message in (
        ("multiscale", {"max_pixels": 0}, "protocol.max_pixels=0"),
        ("multiscale", {"tile_pixels": 1_000_000}, "protocol.tile_pixels=1000000.*1982464"),
        ("multiscale", {"vote_iou": 0}, "protocol.vote_iou=0"),
        ("multiscale", {"keep": True}, "protocol.keep=True"),
        ("multiscale", {"size": 640}, r"protocol\.size.*max_pixels"),
        ("two_sizes", {"min_short": 1.5}, "protocol.min_short=1.5"),
    ):
        with pytest.raises(InputError, match=message):
            build_protocol({"name": "mine", "kind": kind, **options})  # type: ignore[dict-item]


def test_a_photo_that_the_decoder_shrinks_shows_the_same_faces(tmp_path: Path) -> None:
    one = Image.open(PHOTOGRAPH).convert("RGB").resize((1024, 1200))
    photo = Image.new("RGB", (2 * 1024 + 1, 1200 + 1), "gray")
    photo.paste(one, (0, 0))
    photo.paste(one.resize((400, 470)), (1300, 333))
    photo.save(tmp_path / "a.jpg", quality=92)
    shrunk, whole = light().detect(tmp_path / "a.jpg"), light().detect(read_image_rgb(tmp_path / "a.jpg"))
    assert len(shrunk) == len(whole) == 2
    assert float(pairwise_iou(shrunk.boxes_xyxy, whole.boxes_xyxy).amax(dim=1).min()) > 0.9
    torch.testing.assert_close(shrunk.scores, whole.scores, atol=0.05, rtol=0)
    assert float(shrunk.boxes_xyxy.max()) > 1200  # pixels of the whole photo
