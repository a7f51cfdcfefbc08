"""Tiles: what they cover by hand and by property, and that a network finds in them what the whole picture has."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning import multiscale, tiles
from fanet_lightning.anchors import AnchorGrid
from fanet_lightning.boxes import decode
from fanet_lightning.multiscale import MultiScale, Pass
from fanet_lightning.net.build import build_network
from fanet_lightning.structures import Detections
from fanet_lightning.tiles import MARGIN, SMALLEST_TILE_PIXELS, STRIDE


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(SMALLEST_TILE_PIXELS, 3 * SMALLEST_TILE_PIXELS))
def test_tiles_cover_the_picture_once(height: int, width: int, tile_pixels: int) -> None:
    parts = tiles.tiles(height, width, tile_pixels)
    if height * width <= tile_pixels:
        assert parts == [(0, 0, width, height, (-math.inf, -math.inf, math.inf, math.inf))]
    for tile in parts:
        assert 0 <= tile.x1 < tile.x2 <= width and 0 <= tile.y1 < tile.y2 <= height
        assert (tile.x2 - tile.x1) * (tile.y2 - tile.y1) <= tile_pixels
        assert tile.x1 % STRIDE == tile.y1 % STRIDE == 0
        # A margin on every side of the core that is not a side of the picture.
        core_x1, core_y1, core_x2, core_y2 = tile.core_xyxy
        assert (tile.x1 == 0 and core_x1 == -math.inf) or tile.x1 + MARGIN == core_x1
        assert (tile.y1 == 0 and core_y1 == -math.inf) or tile.y1 + MARGIN == core_y1
        assert (tile.x2 == width and core_x2 == math.inf) or tile.x2 - MARGIN >= core_x2
        assert (tile.y2 == height and core_y2 == math.inf) or tile.y2 - MARGIN >= core_y2
    # Every point, those outside too, belongs to exactly one core: at the cores' edges is where it could fail.
    xs = sorted({-5.0, 0.0, width + 5.0} | {x for t in parts for x in t.core_xyxy[::2] if math.isfinite(x)})
    ys = sorted({-5.0, 0.0, height + 5.0} | {y for t in parts for y in t.core_xyxy[1::2] if math.isfinite(y)})
    for x in xs:
        for y in ys:
            owners = [t for t in parts if t.core_xyxy[0] <= x < t.core_xyxy[2] and t.core_xyxy[1] <= y < t.core_xyxy[3]]
            assert len(owners) == 1, (x, y)


def test_tiles_by_hand() -> None:
    """1,408² pixels a tile, 128 of them core: 2,000 wide is 6 tiles, 1,408 high is one."""
    inf = math.inf
    parts = tiles.tiles(1408, 2000, SMALLEST_TILE_PIXELS)
    assert [(t.x1, t.x2, t.core_xyxy[0], t.core_xyxy[2]) for t in parts] == [
        (0, 1408, -inf, 768), (128, 1536, 768, 896), (256, 1664, 896, 1024), (384, 1792, 1024, 1152),
        (512, 1920, 1152, 1280), (640, 2000, 1280, inf),
    ]  # fmt: skip
    assert {(t.y1, t.y2) for t in parts} == {(0, 1408)}
    # Along a narrow strip a tile is longer: 1,982,464 / 100 = 19,824, as a multiple of 128 19,712.
    assert [(t.x1, t.x2) for t in tiles.tiles(100, 30_000, SMALLEST_TILE_PIXELS)] == [(0, 19_712), (18_432, 30_000)]
    with pytest.raises(ValueError, match="tile_pixels=1000"):
        tiles.tiles(10, 10, 1000)


class AboveThresholds:
    """Boxes of a network whose logit exceeds a threshold per map; top-k and NMS would look at the whole input."""

    def __init__(self, level: int) -> None:
        torch.manual_seed(level)
        self.network = build_network(level=level, width=0.0625).eval()
        self.thresholds = torch.zeros(6, dtype=torch.float64)

    @torch.inference_mode()
    def anchors(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes, logits and map of every anchor."""
        output = self.network(images)
        grid = AnchorGrid(tuple(output.map_shapes))
        ((logits, offsets),) = output.hierarchies
        counts = torch.tensor([rows * columns for rows, columns in output.map_shapes])
        boxes_xyxy = decode(offsets[0], grid.boxes_cxcywh())
        return boxes_xyxy, logits[0].double().diff(dim=1)[:, 0], torch.arange(6).repeat_interleave(counts)

    def choose_thresholds(self, images: torch.Tensor) -> None:
        """Each in the widest gap within the middle third of the map's best 300 logits: rounding decides nothing."""
        _, logits, maps = self.anchors(images)
        for index in range(6):
            best = logits[maps == index].sort(descending=True).values[:300]
            best = best[len(best) // 3 : 2 * len(best) // 3]
            gap = int((best[:-1] - best[1:]).argmax())
            self.thresholds[index] = (best[gap] + best[gap + 1]) / 2

    def find(self, images: torch.Tensor) -> Detections:
        boxes_xyxy, logits, maps = self.anchors(images)
        chosen = logits > self.thresholds[maps]
        return Detections(boxes_xyxy[chosen], logits[chosen].sigmoid())


def both_ways(finder: AboveThresholds, image: np.ndarray) -> list[torch.Tensor]:
    """Boxes and scores, in one order, of the pass at scale 1: of the whole picture and of its two tiles."""
    found = []
    for limit in (None, 128 * 4992):
        protocol = MultiScale(max_pixels=image.shape[0] * image.shape[1], tile_pixels=limit)
        detections, record = protocol._run(finder, image, Pass(1.0))
        assert record.tiles == (1 if limit is None else 2)
        rows = torch.cat([detections.boxes_xyxy.double(), detections.scores[:, None].double()], dim=1)
        found.append(rows[rows[:, -1].argsort()])
    return found


@pytest.mark.parametrize(("level", "turned"), [(1, False), (3, True)])
def test_tiles_find_what_the_whole_picture_has(level: int, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At sides that are multiples of 128 to the last digits; with no margin they do not."""
    random = np.random.default_rng(level)
    blocks = random.integers(0, 256, (8, 496, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    image = np.ascontiguousarray(blocks.transpose(1, 0, 2) if turned else blocks)
    finder = AboveThresholds(level)
    finder.choose_thresholds(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    # Smaller tiles than a person may ask for, to stay quick.
    for module in (tiles, multiscale):
        monkeypatch.setattr(module, "SMALLEST_TILE_PIXELS", 1)
    whole, tiled = both_ways(finder, image)
    assert 400 < len(whole) == len(tiled)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=2e-3)
    monkeypatch.setattr(tiles, "MARGIN", 0)
    whole, tiled = both_ways(finder, image)
    assert len(whole) != len(tiled) or not torch.allclose(tiled, whole, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize(
    "options",
    [{"level": 3}, {"level": 4, "fc6": "dilated"}, {"name": "s3fd_fpn"}, {"name": "s3fd_fpn", "fpn_maps": 6}],
)
def test_the_margin_holds_all_that_the_network_sees(options: dict[str, Any]) -> None:
    """Anchors within 64 pixels of column 1024 do not change when the picture does, MARGIN pixels away."""
    torch.manual_seed(0)
    network = build_network(width=0.0625, **options).double().eval()
    picture = torch.rand(1, 3, 128, 2048, dtype=torch.float64) * 255

    def heads(beyond: int) -> torch.Tensor:
        """Logits and offsets of those anchors, by map; the picture is inverted ``beyond`` pixels away."""
        changed = 255 - picture
        changed[..., 1024 - beyond : 1024 + beyond] = picture[..., 1024 - beyond : 1024 + beyond]
        with torch.inference_mode():
            output = network(changed)
        near = (AnchorGrid(tuple(output.map_shapes)).boxes_cxcywh()[:, 0] - 1024).abs() <= 64
        return torch.cat(output.hierarchies[-1], dim=2)[0, near]

    # Far beyond the width of the picture: unchanged.
    unchanged = heads(1024)
    torch.testing.assert_close(heads(MARGIN), unchanged, rtol=0, atol=1e-6)
    # The test can tell: half as far the deepest anchors, which come last, do change.
    assert (heads(MARGIN // 2) - unchanged)[-2:].abs().max() > 1e-4
