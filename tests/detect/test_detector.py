"""The torch backend: devices, and memory that runs out."""

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
from fanet_lightning.ops.structures import NetworkOutput
from tests.detect.helpers import detector_of


def test_a_device_that_is_not_there_is_named() -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=rf"device={device}\b.*; here are cpu"):
            detector_of(nn.Identity(), device=device)


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
    # Known or not: a network that takes 100 bytes a pixel, of 192 million bytes of which it may take half.
    monkeypatch.setattr("fanet_lightning.detect.tiling.bytes_per_pixel", lambda *_, **__: 100.0)
    available = None if isinstance(error, MemoryError) else 192_000_000
    monkeypatch.setattr("fanet_lightning.detect.tiling.available_bytes", lambda device: available)
    image = np.random.default_rng(0).integers(0, 256, (240, 4000, 3), dtype=np.uint8)
    network = Limited(500_000, error)
    detector = detector_of(network)
    images = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    [(found, count)] = detector.backend.find(images, tile_pixels)
    # 960,000 pixels do not fit, their half does: tiles of 480,000 / 240 = 2,000 columns, as a multiple of 128 1,920.
    assert count == 5 and network.sizes == [(240, 4000), *[(240, 1920)] * 4, (240, 1440)]
    network.pixels = 10**9
    [(whole, one)] = detector.backend.find(images, None)
    assert one == 1 and len(whole.scores) > 100
    torch.testing.assert_close(found.boxes_xyxy, whole.boxes_xyxy, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.scores, whole.scores, atol=1e-5, rtol=0)
    # What did not fit once is not tried again.
    network.sizes.clear()
    assert detector.backend.find(images, tile_pixels)[0].tiles == 5 and network.sizes[0] == (240, 1920)


def test_what_does_not_fit_says_what_to_do() -> None:
    detector = detector_of(Limited(1000, ERRORS[0]))
    image = np.zeros((2000, 3000, 3), np.uint8)
    with pytest.raises(InputError, match=r"2000 × 3000 .*out of memory.*; set protocol.tile_pixels=auto"):
        detector.detect(image, TestScale("original", tile_pixels=None))
    with pytest.raises(InputError, match=r"2000 × 3000 .*; free memory on"):
        detector.detect(image, "original")
    network = Limited(70_000, RuntimeError("expected scalar type Byte but found Float"))
    with pytest.raises(RuntimeError, match="expected scalar type"):
        detector_of(network).detect(image, "original")


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
