"""From a network to boxes in the original image, and what is drawn of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fanet_lightning.cli import device as memory
from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.transforms import TestScale, TilePixels
from fanet_lightning.models.fanet import build_network
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import encode
from fanet_lightning.ops.structures import HeadOutput, NetworkOutput
from tests.detect.helpers import detector_of


class OneFace(nn.Module):
    """Says that there is a face at ``box_xyxy`` of its input, with probability 0.9, and nothing else."""

    def __init__(self, box_xyxy: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.box_xyxy = torch.tensor([box_xyxy])

    def forward(self, images: torch.Tensor) -> NetworkOutput:
        height, width = images.shape[2:]
        shapes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64, 128)]
        anchors = AnchorGrid(tuple(shapes)).boxes_cxcywh()
        logits = torch.tensor([20.0, 0.0]).repeat(1, len(anchors), 1)
        logits[0, 7] = torch.tensor([0.0, float(np.log(9.0))])
        offsets = torch.zeros(1, len(anchors), 4)
        offsets[0, 7] = encode(self.box_xyxy, anchors[7:8])[0]
        return NetworkOutput([HeadOutput(logits, offsets)], shapes)


def test_boxes_come_back_in_pixels_of_the_original_image() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    detector = detector_of(OneFace((16.0, 8.0, 40.0, 48.0)))
    as_it_is = detector.detect(image, "original")
    torch.testing.assert_close(as_it_is.boxes_xyxy, torch.tensor([[16.0, 8.0, 40.0, 48.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(as_it_is.scores, torch.tensor([0.9]))
    # Shorter side 200 doubles the image, so the network's pixels are half as large.
    doubled = detector.detect(image, TestScale("short", 200))
    torch.testing.assert_close(doubled.boxes_xyxy, torch.tensor([[8.0, 4.0, 20.0, 24.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("device", ["mps", "gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(InputError, match=rf"device={device}\b.*; here are cpu"):
        detector_of(OneFace((0.0, 0.0, 8.0, 8.0)), device=device)
    assert detector_of(OneFace((0.0, 0.0, 8.0, 8.0)), device="auto").runs_on in ("cpu", "cuda")


def test_boxes_are_clipped_to_the_image() -> None:
    detector = detector_of(OneFace((-10.0, -5.0, 300.0, 60.0)))
    boxes_xyxy = detector.detect(np.zeros((50, 80, 3), np.uint8), "original").boxes_xyxy
    torch.testing.assert_close(boxes_xyxy, torch.tensor([[0.0, 0.0, 80.0, 50.0]]))


# Memory


class Limited(nn.Module):
    """A network that runs out of memory above ``pixels`` pixels, as ``error`` says it; keeps its inputs' sizes."""

    def __init__(self, pixels: int, error: Exception) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = build_network(level=1, width=0.0625)
        self.pixels, self.error = pixels, error
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: torch.Tensor, upsample: Any = None) -> NetworkOutput:
        height, width = images.shape[2:]
        self.sizes.append((height, width))
        if height * width > self.pixels:
            raise self.error
        return self.inner(images, upsample=upsample)  # type: ignore[no-any-return]


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("tile_pixels", ["auto", 4_000_000])
def test_memory_that_runs_out_makes_tiles(
    error: Exception, tile_pixels: TilePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 240 × 1,792 pixels, in place of 430,080 and more of them; the faces are the same."""
    for module in ("data.transforms", "detect.detector", "detect.tiling"):
        monkeypatch.setattr(f"fanet_lightning.{module}.SMALLEST_TILE_PIXELS", 240 * 1408)
    monkeypatch.setattr("fanet_lightning.detect.tiling.available_bytes", lambda device: None)
    image = np.random.default_rng(0).integers(0, 256, (240, 4000, 3), dtype=np.uint8)
    network = Limited(500_000, error)
    detector = detector_of(network)
    images = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    found, count = detector.backend.find(images, tile_pixels)
    # 960,000 pixels do not fit, their half does: tiles of 480,000 / 240 = 2,000 columns, as a multiple of 128 1,920.
    assert count == 5 and network.sizes == [(240, 4000), *[(240, 1920)] * 4, (240, 1440)]
    network.pixels = 10**9
    whole, one = detector.backend.find(images, None)
    assert one == 1 and len(whole.scores) > 100
    torch.testing.assert_close(found.boxes_xyxy, whole.boxes_xyxy, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.scores, whole.scores, atol=1e-5, rtol=0)
    # What did not fit once is not tried again.
    network.sizes.clear()
    assert detector.backend.find(images, tile_pixels)[1] == 5 and network.sizes[0] == (240, 1920)


def test_memory_is_asked_before_it_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that takes 100 bytes a pixel, and 100 million bytes are free, of which it may take half."""
    monkeypatch.setattr("fanet_lightning.detect.tiling.bytes_per_pixel", lambda *_, **__: 100.0)
    for module in ("data.transforms", "detect.detector", "detect.tiling"):
        monkeypatch.setattr(f"fanet_lightning.{module}.SMALLEST_TILE_PIXELS", 128 * 1408)
    monkeypatch.setattr("fanet_lightning.detect.tiling.available_bytes", lambda device: 100_000_000)
    detector = detector_of(Limited(500_000, MemoryError()))
    assert detector.backend.find(torch.zeros(1, 3, 128, 3906, dtype=torch.uint8))[1] == 1  # 499,968 pixels
    assert detector.backend.find(torch.zeros(1, 3, 128, 3907, dtype=torch.uint8))[1] == 2  # 500,096
    assert detector.backend.find(torch.zeros(1, 3, 128, 3900, dtype=torch.uint8), 400_000)[1] == 2


def test_what_does_not_fit_says_what_to_do() -> None:
    detector = detector_of(Limited(1000, ERRORS[0]))
    with pytest.raises(
        InputError,
        match=r"an image of 2000 × 3000 pixels at test scale does not fit into memory \(CUDA out of memory. Tried to "
        r"allocate 20.00 GiB\); set protocol.tile_pixels=auto",
    ):
        detector.detect(np.zeros((2000, 3000, 3), np.uint8), TestScale("original", tile_pixels=None))
    with pytest.raises(InputError, match=r"2000 × 3000 .*; free memory on"):
        detector.detect(np.zeros((2000, 3000, 3), np.uint8), "original")


def test_another_error_is_no_lack_of_memory() -> None:
    network = Limited(70_000, RuntimeError("expected scalar type Byte but found Float"))
    with pytest.raises(RuntimeError, match="expected scalar type"):
        detector_of(network).detect(np.zeros((500, 600, 3), np.uint8), "original")
    assert network.sizes[-1] == (500, 600) and len(network.sizes) == 2  # the first is the probe of what a pixel takes


def test_the_cost_of_a_pixel_by_hand() -> None:
    """Two convolutions, 3 → 4 and 4 → 1 channels, float32 from bytes: (3 + 4) × 4 bytes at most, three times."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(images.float()))  # type: ignore[no-any-return]

    assert memory.bytes_per_pixel(Two(), torch.device("cpu")) == 3 * 7 * 4


def test_free_memory_is_the_least_of_what_limits_it(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       32000000 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n")
    assert memory._system_bytes(info) == 20_000_000 * 1024
    assert memory._container_bytes(tmp_path) is None
    for name, value in (("memory.max", "max\n"), ("memory.current", "700\n"), ("memory.stat", "inactive_file 200\n")):
        (tmp_path / name).write_text(value)
    assert memory._container_bytes(tmp_path) is None  # no limit
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._container_bytes(tmp_path) == 1000 - 700 + 200
    first = memory.available_bytes(torch.device("cpu"))
    assert first is None or 0 < first < 2**50
