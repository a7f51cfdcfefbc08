"""Tiles: they cover an image once, and their anchors and faces are those of the whole image."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.data.transforms import MARGIN, SMALLEST_TILE_PIXELS, STRIDE
from fanet_lightning.detect import tiling as tiles
from fanet_lightning.detect.tiling import Tile, find_in_tiles, map_shapes, own_anchors, upsampling
from fanet_lightning.models.fanet import build_network
from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from fanet_lightning.ops.postprocess import detect
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput

# Where the tiles lie


@settings(max_examples=300)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(SMALLEST_TILE_PIXELS, 3 * SMALLEST_TILE_PIXELS))
def test_tiles_cover_the_image_once(height: int, width: int, tile_pixels: int) -> None:
    parts = tiles.tiles(height, width, tile_pixels)
    if height * width <= tile_pixels:
        assert parts == [(0, 0, width, height, (0, 0, width, height))]
    for tile in parts:
        assert tile.pixels == (tile.x2 - tile.x1) * (tile.y2 - tile.y1) <= tile_pixels
        core_x1, core_y1, core_x2, core_y2 = tile.core_xyxy
        for first, last, core_first, core_last, side in (
            (tile.x1, tile.x2, core_x1, core_x2, width), (tile.y1, tile.y2, core_y1, core_y2, height)
        ):  # fmt: skip
            assert 0 <= first <= core_first < core_last <= last <= side and first % STRIDE == core_first % STRIDE == 0
            # A margin on every side of the core that is not a side of the image.
            assert (first == core_first == 0) or first + MARGIN == core_first
            assert (last == core_last == side) or (last - MARGIN >= core_last and core_last % STRIDE == 0)
    # Cores do not overlap and leave nothing out: counted cell by cell.
    cells = np.zeros((-(-height // STRIDE), -(-width // STRIDE)), int)
    for tile in parts:
        x1, y1, x2, y2 = (-(-side // STRIDE) for side in tile.core_xyxy)
        cells[y1:y2, x1:x2] += 1
    assert (cells == 1).all()


def test_tiles_by_hand() -> None:
    """1,408² pixels a tile, 128 of them core: 2,000 wide is 6 tiles, 1,408 high is one."""
    parts = tiles.tiles(1408, 2000, SMALLEST_TILE_PIXELS)
    assert [(t.x1, t.x2, t.core_xyxy[0], t.core_xyxy[2]) for t in parts] == [
        (0, 1408, 0, 768), (128, 1536, 768, 896), (256, 1664, 896, 1024), (384, 1792, 1024, 1152),
        (512, 1920, 1152, 1280), (640, 2000, 1280, 2000),
    ]  # fmt: skip
    assert {(t.y1, t.y2, t.core_xyxy[1], t.core_xyxy[3]) for t in parts} == {(0, 1408, 0, 1408)}
    # Along a narrow strip a tile is longer: 1,982,464 / 100 = 19,824, as a multiple of 128 19,712.
    assert [(t.x1, t.x2) for t in tiles.tiles(100, 30_000, SMALLEST_TILE_PIXELS)] == [(0, 19_712), (18_432, 30_000)]


# Whose anchor it is


def _random_tiles(height: int, width: int, cells: int, random: np.random.Generator) -> list[Tile]:
    """Cores of ``cells`` cells each way, in tiles that reach 0 … 2 cells further."""
    parts = []
    side = cells * STRIDE
    for y in range(0, height, side):
        for x in range(0, width, side):
            left, up, right, down = random.integers(0, 3, 4) * STRIDE
            core = (x, y, min(x + side, width), min(y + side, height))
            parts.append(Tile(max(0, x - left), max(0, y - up), min(x + side + right, width),
                              min(y + side + down, height), core))  # fmt: skip
    random.shuffle(parts)  # type: ignore[arg-type]
    return parts


def _numbers(tile: Tile, whole: AnchorGrid) -> torch.Tensor:
    """Of the anchors of a tile, by their places: their numbers in the whole image, or beyond."""
    numbers = []
    for (rows, columns), (_, whole_columns), start, stride in zip(
        map_shapes(tile.y2 - tile.y1, tile.x2 - tile.x1), whole.map_shapes, whole.starts, STRIDES, strict=True
    ):
        y, x = torch.arange(rows) + tile.y1 // stride, torch.arange(columns) + tile.x1 // stride
        numbers.append((start + y[:, None] * whole_columns + x).flatten())
    return torch.cat(numbers).clamp(max=whole.count - 1)


def test_maps_of_another_network_are_refused() -> None:
    output = NetworkOutput([HeadOutput(torch.zeros(1, 9, 2), torch.zeros(1, 9, 4))], [(3, 3)])
    with pytest.raises(ValueError, match=r"\[\(3, 3\)\].* 9 "):
        own_anchors(output, Tile(0, 0, 256, 256, (0, 0, 256, 256)), AnchorGrid(map_shapes(256, 256)))


# What is found


NETWORKS: list[dict[str, Any]] = [
    {"level": 1}, {"level": 3}, {"level": 3, "own_blocks": True, "context": False}, {"name": "s3fd_fpn"},
    {"name": "s3fd_fpn", "fpn_maps": 6}, {"level": 4, "fc6": "dilated"}, {"backbone": "light", "batch_norm": True},
]  # fmt: skip


@pytest.mark.parametrize("options", NETWORKS, ids=str)
@pytest.mark.parametrize(("height", "width"), [(128, 3100), (3329, 64)])
def test_heads_are_those_of_the_whole_image(
    options: dict[str, Any], height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sides that are no multiples of 128 too: upsampling a map of odd side does not go by 2. In float64: to 1e-9."""
    torch.manual_seed(0)
    network = build_network(width=0.0625, **options).double().eval()
    blocks = torch.randint(256, (1, 3, -(-height // 8), -(-width // 8)), dtype=torch.uint8)
    images = blocks.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)[..., :height, :width].contiguous()
    whole = AnchorGrid(map_shapes(height, width))
    with torch.inference_mode():
        expected = _double_heads(network, images, monkeypatch)
        parts = tiles.tiles(height, width, min(height, width) * 1792)
        assert len(parts) > 1

        def worst(knows_its_place: bool) -> float:
            found = []
            for tile in parts:
                crop = images[:, :, tile.y1 : tile.y2, tile.x1 : tile.x2]
                upsample = upsampling(tile, height, width) if knows_its_place else None
                found.append(own_anchors(_double_heads(network, crop, monkeypatch, upsample), tile, whole))
            number = torch.cat([part.number for part in found])
            logits, offsets = (torch.cat([getattr(part, name) for part in found]) for name in ("logits", "offsets"))
            heads = expected.hierarchies[-1]
            return max(float((logits - heads.logits[0, number]).abs().max()),
                       float((offsets - heads.offsets[0, number]).abs().max()))  # fmt: skip

        assert worst(True) < 1e-9
        # The test can tell: a tile that upsamples on its own account gives other heads, where there is upsampling.
        assert options == {"level": 1} or worst(False) > 1e-4


def _double_heads(
    network: torch.nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch, upsample: Any = None
) -> NetworkOutput:
    """The heads' last step is to float32; in this test it is not."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return network(images, upsample=upsample)  # type: ignore[no-any-return]


@settings(max_examples=150)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**31))
def test_equal_scores_are_ordered_as_in_the_whole(height: int, width: int, seed: int) -> None:
    """Five scores alone, so ties everywhere: between tiles the image's numbering decides, exactly."""
    whole = AnchorGrid(map_shapes(height, width))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 5, (1, whole.count, 2), generator=generator).float()
    offsets = torch.randn(1, whole.count, 4, generator=generator) * 2
    detection = {"score_floor": 0.3, "top_k": 40, "nms_iou": 0.3, "keep": 25}
    [expected] = detect(NetworkOutput([HeadOutput(logits, offsets)], list(whole.map_shapes)), whole, **detection)
    parts = _random_tiles(height, width, 1 + seed % 3, np.random.default_rng(seed))
    queue = list(parts)

    def run(_images: torch.Tensor, _upsample: Any) -> NetworkOutput:
        tile = queue.pop(0)
        number = _numbers(tile, whole)
        shapes = map_shapes(tile.y2 - tile.y1, tile.x2 - tile.x1)
        return NetworkOutput([HeadOutput(logits[:, number], offsets[:, number])], list(shapes))

    found = find_in_tiles(run, torch.zeros(1, 3, height, width, dtype=torch.uint8), parts, detection)
    assert torch.equal(found.scores, expected.scores) and torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
