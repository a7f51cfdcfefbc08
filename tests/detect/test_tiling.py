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
from fanet_lightning.ops.structures import Detections, HeadOutput, NetworkOutput
from tests.detect.helpers import detector_of

# Where the tiles lie


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(SMALLEST_TILE_PIXELS, 3 * SMALLEST_TILE_PIXELS))
def test_tiles_cover_the_image_once(height: int, width: int, tile_pixels: int) -> None:
    parts = tiles.tiles(height, width, tile_pixels)
    if height * width <= tile_pixels:
        assert parts == [(0, 0, width, height, (0, 0, width, height))]
    for tile in parts:
        assert 0 <= tile.x1 < tile.x2 <= width and 0 <= tile.y1 < tile.y2 <= height
        assert tile.pixels == (tile.x2 - tile.x1) * (tile.y2 - tile.y1) <= tile_pixels
        assert tile.x1 % STRIDE == tile.y1 % STRIDE == 0
        # A margin on every side of the core that is not a side of the image.
        core_x1, core_y1, core_x2, core_y2 = tile.core_xyxy
        assert core_x1 % STRIDE == core_y1 % STRIDE == 0 and core_x1 < core_x2 and core_y1 < core_y2
        assert (tile.x1 == core_x1 == 0) or tile.x1 + MARGIN == core_x1
        assert (tile.y1 == core_y1 == 0) or tile.y1 + MARGIN == core_y1
        assert (tile.x2 == core_x2 == width) or (tile.x2 - MARGIN >= core_x2 and core_x2 % STRIDE == 0)
        assert (tile.y2 == core_y2 == height) or (tile.y2 - MARGIN >= core_y2 and core_y2 % STRIDE == 0)
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


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 4), st.integers(0, 2**31))
def test_each_anchor_of_the_image_comes_from_one_tile(height: int, width: int, cells: int, seed: int) -> None:
    """Tiles without a margin, and logits that are the anchors' own numbers in the whole image."""
    random = np.random.default_rng(seed)
    whole = AnchorGrid(map_shapes(height, width))
    parts = _random_tiles(height, width, cells, random)
    found = [own_anchors(_numbered(tile, whole), tile, whole) for tile in parts]
    number = torch.cat([part.number for part in found])
    assert sorted(number.tolist()) == list(range(whole.count))
    logits = torch.cat([part.logits for part in found])
    assert logits[:, 1].tolist() == number.tolist() and logits[:, 0].tolist() == (-number).tolist()
    offsets = torch.cat([part.offsets for part in found])
    assert (offsets == number[:, None]).all()
    anchors_cxcywh = torch.cat([part.anchors_cxcywh for part in found])
    assert torch.equal(anchors_cxcywh, whole.boxes_cxcywh()[number])


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


def _numbered(tile: Tile, whole: AnchorGrid) -> NetworkOutput:
    """A network's output on a tile: logits (-number, number) and offsets (number × 4), by the anchor's place."""
    shapes = map_shapes(tile.y2 - tile.y1, tile.x2 - tile.x1)
    numbers = []
    for (rows, columns), (_, whole_columns), start, stride in zip(
        shapes, whole.map_shapes, whole.starts, STRIDES, strict=True
    ):
        for row in range(rows):
            for column in range(columns):
                y, x = tile.y1 / stride + row, tile.x1 / stride + column
                numbers.append(start + y * whole_columns + x)
    number = torch.tensor(numbers, dtype=torch.float32)
    return NetworkOutput(
        [HeadOutput(torch.stack([-number, number], dim=1)[None], number[:, None].expand(-1, 4)[None])], list(shapes)
    )


def test_maps_of_another_network_are_refused() -> None:
    tile = Tile(0, 0, 256, 256, (0, 0, 256, 256))
    output = NetworkOutput([HeadOutput(torch.zeros(1, 9, 2), torch.zeros(1, 9, 4))], [(3, 3)])
    with pytest.raises(ValueError, match=r"\[\(3, 3\)\].* 9 "):
        own_anchors(output, tile, AnchorGrid(map_shapes(256, 256)))


# What is found


NETWORKS: list[dict[str, Any]] = [
    {"level": 1}, {"level": 3}, {"level": 3, "own_blocks": True, "context": False}, {"name": "s3fd_fpn"},
    {"name": "s3fd_fpn", "fpn_maps": 6},
]  # fmt: skip


def network_and_image(options: dict[str, Any], height: int, width: int) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = build_network(width=0.0625, **options).eval()
    blocks = np.random.default_rng(1).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    image = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return network, torch.from_numpy(image.transpose(2, 0, 1).copy())[None]


@pytest.mark.parametrize("options", NETWORKS, ids=str)
@pytest.mark.parametrize(("height", "width"), [(128, 3100), (3329, 64)])
def test_heads_are_those_of_the_whole_image(
    options: dict[str, Any], height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sides that are no multiples of 128 too: upsampling a map of odd side does not go by 2. In float64: to 1e-9."""
    network, images = network_and_image(options, height, width)
    network.double()
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


@pytest.mark.parametrize("options", [{"level": 3}, {"name": "s3fd_fpn"}], ids=str)
@pytest.mark.parametrize(
    "detection", [{}, {"keep": 20}, {"top_k": 50}, {"score_floor": 0.6, "nms_iou": 0.1}, {"score_floor": 1.0}], ids=str
)
def test_faces_are_those_of_the_whole_image(
    options: dict[str, Any], detection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Floor, top-k, NMS and the number kept see all tiles together: same faces, same order."""
    network, images = network_and_image(options, 96, 4001)
    detector = detector_of(network, detection={"keep": 5000, **detection})
    monkeypatch.setattr("fanet_lightning.detect.tiling.SMALLEST_TILE_PIXELS", 1)
    [(whole, one)] = detector.backend.find(images, None)
    [(tiled, several)] = detector.backend.find(images, 96 * 1536)
    assert one == 1 and several > 5
    assert _same(whole, tiled), (len(whole.scores), len(tiled.scores))


def _same(first: Detections, second: Detections) -> bool:
    """Equal up to rounding; scores that rounding may have swapped are put into one order first."""
    if len(first.scores) != len(second.scores):
        return False
    rows = []
    for found in (first, second):
        boxes = found.boxes_xyxy.double().numpy().round(1)
        rows.append(found.boxes_xyxy.double().numpy()[np.lexsort(boxes.T)])
    return bool(np.allclose(first.scores, second.scores, atol=2e-6) and np.allclose(*rows, atol=5e-3))


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**31))
def test_equal_scores_are_ordered_as_in_the_whole(height: int, width: int, seed: int) -> None:
    """Five scores alone, so ties everywhere: between tiles the image's numbering decides, exactly."""
    whole = AnchorGrid(map_shapes(height, width))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 5, (1, whole.count, 2), generator=generator).float()
    offsets = torch.randn(1, whole.count, 4, generator=generator) * 2
    detection = {"score_floor": 0.3, "top_k": 40, "nms_iou": 0.3, "keep": 25}
    expected = detect(
        NetworkOutput([HeadOutput(logits, offsets)], list(whole.map_shapes)), whole, **detection
    )[0]  # fmt: skip
    parts = _random_tiles(height, width, 1 + seed % 3, np.random.default_rng(seed))
    queue = list(parts)

    def run(_images: torch.Tensor, _upsample: Any) -> NetworkOutput:
        tile = queue.pop(0)
        number = _numbered(tile, whole).hierarchies[0].logits[0, :, 1].long().clamp(max=whole.count - 1)
        shapes = map_shapes(tile.y2 - tile.y1, tile.x2 - tile.x1)
        return NetworkOutput([HeadOutput(logits[:, number], offsets[:, number])], list(shapes))

    found = find_in_tiles(run, torch.zeros(1, 3, height, width, dtype=torch.uint8), parts, detection)
    assert torch.equal(found.scores, expected.scores) and torch.equal(found.boxes_xyxy, expected.boxes_xyxy)


# The margin


@pytest.mark.parametrize(
    "options",
    [{"level": 3}, {"level": 4, "fc6": "dilated"}, {"name": "s3fd_fpn"}, {"name": "s3fd_fpn", "fpn_maps": 6}],
)
def test_the_margin_holds_all_that_the_network_sees(options: dict[str, Any]) -> None:
    """Anchors within 64 pixels of column 1024 do not change when the image does, MARGIN pixels away."""
    torch.manual_seed(0)
    network = build_network(width=0.0625, **options).double().eval()
    image = torch.rand(1, 3, 128, 2048, dtype=torch.float64) * 255

    def heads(beyond: int) -> torch.Tensor:
        """Logits and offsets of those anchors, by map; the image is inverted ``beyond`` pixels away."""
        changed = 255 - image
        changed[..., 1024 - beyond : 1024 + beyond] = image[..., 1024 - beyond : 1024 + beyond]
        with torch.inference_mode():
            output = network(changed)
        near = (AnchorGrid(tuple(output.map_shapes)).boxes_cxcywh()[:, 0] - 1024).abs() <= 64
        return torch.cat(output.hierarchies[-1], dim=2)[0, near]

    # Far beyond the width of the image: unchanged.
    unchanged = heads(1024)
    torch.testing.assert_close(heads(MARGIN), unchanged, rtol=0, atol=1e-6)
    # The test can tell: half as far the deepest anchors, which come last, do change.
    assert (heads(MARGIN // 2) - unchanged)[-2:].abs().max() > 1e-4
