"""What computes: torch with memory that runs out, and exported files in onnxruntime, in Python and in ``evaluate``."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fanet_lightning import FaceDetector
from fanet_lightning.cli import device as memory
from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.transforms import TestScale, TilePixels
from fanet_lightning.detect import detector as module
from fanet_lightning.detect.detector import ExportBackend
from fanet_lightning.evaluate import __main__ as evaluate_main
from fanet_lightning.models.fanet import build_network
from fanet_lightning.ops.structures import Detections, NetworkOutput
from tests.detect.helpers import PHOTOGRAPH, detector_of, light
from tests.export.exported_files import shipped_onnx

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


@pytest.mark.parametrize(("error", "tile_pixels"), [*zip(ERRORS, ("auto", "auto", 4_000_000), strict=True)], ids=str)
def test_memory_that_runs_out_makes_tiles(
    error: Exception, tile_pixels: TilePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 240 × 1,792 pixels, in place of 430,080 and more of them; the faces are the same."""
    for name in ("data.transforms", "detect.detector", "detect.tiling"):
        monkeypatch.setattr(f"fanet_lightning.{name}.SMALLEST_TILE_PIXELS", 240 * 1408)
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
    for device in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=rf"device={device}\b.*; here are cpu"):
            detector_of(nn.Identity(), device=device)
    detector = detector_of(Limited(1000, ERRORS[0]))
    image = np.zeros((2000, 3000, 3), np.uint8)
    with pytest.raises(InputError, match=r"2000 × 3000 .*out of memory.*; set protocol.tile_pixels=auto"):
        detector.detect(image, TestScale("original", tile_pixels=None))
    with pytest.raises(InputError, match=r"2000 × 3000 .*; free memory on"):
        detector.detect(image, "original")
    network = Limited(70_000, RuntimeError("expected scalar type Byte but found Float"))
    with pytest.raises(RuntimeError, match="expected scalar type"):
        detector_of(network).detect(image, "original")


def test_the_cost_of_a_pixel_and_free_memory() -> None:
    """Two convolutions, 3 → 4 and 4 → 1 channels, float32 from bytes: (3 + 4) × 4 bytes at most, three times."""

    class Two(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.float())  # type: ignore[no-any-return]

    two = Two(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1))
    assert memory.bytes_per_pixel(two, torch.device("cpu")) == 3 * 7 * 4
    first = memory.available_bytes(torch.device("cpu"))
    assert first is None or 0 < first < 2**50


# Exported files


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped_onnx(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def exported(onnx_file: Path) -> FaceDetector:
    return FaceDetector.from_onnx(onnx_file, device="cpu", threads=1)


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(found.scores) == len(expected.scores) > 0
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, atol=0.05, rtol=0)


def test_an_exported_file_finds_the_faces_of_its_model(onnx_file: Path, exported: FaceDetector) -> None:
    image_rgb, eager = read_image_rgb(PHOTOGRAPH), light()
    small = cv2.resize(image_rgb, (150, 180), interpolation=cv2.INTER_AREA)
    for image, protocol in ((PHOTOGRAPH, None), (PHOTOGRAPH, "original"),
                            (small, {"kind": "multiscale", "max_pixels": 100_000})):  # fmt: skip
        assert_same(*(d.detect(image, protocol, 0.3) for d in (exported, eager)))  # type: ignore[call-overload]
    # Several images, of several kinds, and a batch.
    dark = np.zeros((96, 128, 3), np.uint8)
    images = [PHOTOGRAPH, image_rgb[:, ::-1].copy(), dark, torch.from_numpy(image_rgb.transpose(2, 0, 1).copy())]
    found, expected = (d.detect(images, threshold=0.5) for d in (exported, eager))
    assert [len(item.scores) for item in found] == [1, 1, 0, 1]
    for k in (0, 1, 3):
        assert_same(found[k], expected[k])
    together = torch.from_numpy(np.stack([image_rgb, image_rgb // 8, image_rgb[:, ::-1]]).transpose(0, 3, 1, 2).copy())
    for one, other in zip(exported.backend.find(together), eager.backend.find(together), strict=True):
        assert_same(one.detections.above(0.3), other.detections.above(0.3))
    assert exported.detection == eager.detection and exported.network_options == eager.network_options
    assert exported.training_images == eager.training_images
    assert exported.source == onnx_file and exported.precision == "float32"


def test_an_image_beyond_memory_is_refused(exported: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    def detect(available: int | None) -> int:
        monkeypatch.setattr(module, "available_bytes", lambda device: available)
        return len(exported.detect([PHOTOGRAPH, PHOTOGRAPH], protocol="original", threshold=0.5))

    # 512 × 600 pixels; a pixel takes 84 bytes, and half of what there is may be taken.
    assert detect(52_000_000) == 2 and detect(None) == 2
    with pytest.raises(InputError, match="600 × 512 pixels"):
        detect(51_000_000)

    def call(images: np.ndarray) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : bad allocation: Failed to allocate memory\nstack" * len(images))

    backend = ExportBackend(call, {"detection": {}, "dtype": "float32"})
    with pytest.raises(InputError, match="20 × 30 pixels at test scale is too large for memory"):
        backend.run(np.zeros((2, 3, 20, 30), np.uint8))
    with pytest.raises(RuntimeError, match=r"^$"):
        backend.run(np.zeros((0, 3, 20, 30), np.uint8))


def test_files_of_something_else(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    (tmp_path / "text.onnx").write_text("<html>not found</html>")
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[n] x) => (float[n] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
    for name, message in (("text", "onnxruntime"), ("absent", "onnxruntime"), ("relu", r"fanet_lightning\.export")):
        with pytest.raises(InputError, match=rf"{name}\.onnx.*{message}") as raised:
            FaceDetector.from_onnx(tmp_path / f"{name}.onnx")
        assert "\n" not in str(raised.value)


def test_refused_options(onnx_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device, way_out in (("tpu", "cpu"), ("cuda", "onnxruntime-gpu"), ("cuda:1", "onnxruntime-gpu"),
                            ("directml", "onnxruntime-directml")):  # fmt: skip
        with pytest.raises(InputError, match=rf"device={device}: .*{way_out}") as raised:
            FaceDetector.from_onnx(onnx_file, device=device)
        assert "\n" not in str(raised.value)
    assert "EP Error" not in capfd.readouterr().out  # onnxruntime's own, of providers that it does not know
    with pytest.raises(InputError, match=r"^providers=NpuExecutionProvider: .*there is cpu$"):
        FaceDetector.from_onnx(onnx_file, providers=[("NpuExecutionProvider", {}), "CPUExecutionProvider"])
    # A provider that is listed, but whose libraries are missing, is left out by onnxruntime without an error.
    listed = ["CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(InputError, match=r"CoreMLExecutionProvider"):
        FaceDetector.from_onnx(onnx_file, device="coreml")
    assert FaceDetector.from_onnx(onnx_file, device="auto").runs_on == "cpu"
    assert FaceDetector.from_onnx(onnx_file, providers=["CPUExecutionProvider"]).runs_on == "cpu"


def test_evaluate_takes_an_exported_file(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data=synthetic", "data.root=drawn", "data.train_images=1", "data.val_images=6", "workers=0"]
    assert evaluate_main.main(["checkpoint=fanet_light", "precision=32-true", "out=eager", *data]) == 0
    assert evaluate_main.main([f"checkpoint={onnx_file}", *data]) == 0
    expected, scores = (json.loads((Path(folder) / "scores.json").read_text())
                        for folder in ("eager", "outputs/evaluate/synthetic_original/faces"))  # fmt: skip
    assert scores["ap"] == pytest.approx(expected["ap"], abs=2e-3) and scores["ap"]["easy"] > 0.1
    assert scores["made_by"]["precision"] == "float32"
    for word, message in (("detection.nms_iou=0.5", "detection.nms_iou=0.5.* 0.3"),
                          ("precision=bf16-mixed", "precision=bf16-mixed.*faces.onnx")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            evaluate_main.main([f"checkpoint={onnx_file}", *data, word])
