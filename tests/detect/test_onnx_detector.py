"""``FaceDetector.from_onnx``: the Python API over onnxruntime, ``evaluate`` with an exported file, foreign files."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib import cbook

from fanet_lightning import FaceDetector
from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect import detector as onnx_detector
from fanet_lightning.detect.detector import ExportBackend
from fanet_lightning.evaluate import __main__ as evaluate_main
from fanet_lightning.ops.structures import Detections
from tests.export.exported_files import shipped_onnx

PHOTOGRAPH = Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped_onnx(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def exported(onnx_file: Path) -> FaceDetector:
    return FaceDetector.from_onnx(onnx_file, device="cpu", threads=1)


@pytest.fixture(scope="module")
def eager() -> FaceDetector:
    return FaceDetector.from_pretrained()


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(found.scores) == len(expected.scores) > 0
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, atol=0.05, rtol=0)


@pytest.mark.parametrize("protocol", [None, "original", "multiscale"])
def test_same_faces_as_the_model(protocol: str | None, exported: FaceDetector, eager: FaceDetector) -> None:
    image = cv2.resize(cv2.imread(str(PHOTOGRAPH))[:, :, ::-1], (150, 180)) if protocol == "multiscale" else PHOTOGRAPH
    if protocol == "multiscale":
        settings = {"kind": "multiscale", "max_pixels": 100_000}
        found, expected = (d.detect(image, protocol=settings, threshold=0.5) for d in (exported, eager))
    else:
        found, expected = (d.detect(image, protocol=protocol, threshold=0.3) for d in (exported, eager))
    assert_same(found, expected)


def test_several_images_of_several_kinds(exported: FaceDetector, eager: FaceDetector) -> None:
    image_rgb = cv2.imread(str(PHOTOGRAPH))[:, :, ::-1].copy()
    dark = np.zeros((96, 128, 3), np.uint8)
    images = [PHOTOGRAPH, image_rgb[:, ::-1].copy(), dark, torch.from_numpy(image_rgb.transpose(2, 0, 1).copy())]
    found, expected = (d.detect(images, threshold=0.5) for d in (exported, eager))
    assert [len(item.scores) for item in found] == [1, 1, 0, 1]
    for k in (0, 1, 3):
        assert_same(found[k], expected[k])
    together = torch.from_numpy(np.stack([image_rgb, image_rgb // 8, image_rgb[:, ::-1]]).transpose(0, 3, 1, 2).copy())
    for one, other in zip(exported.backend.find(together), eager.backend.find(together), strict=True):
        assert_same(one.detections.above(0.3), other.detections.above(0.3))


def test_it_knows_what_it_is(onnx_file: Path, exported: FaceDetector, eager: FaceDetector) -> None:
    assert isinstance(exported.backend, ExportBackend)
    assert exported.detection == eager.detection and exported.network_options == eager.network_options
    assert exported.training_images == eager.training_images
    assert exported.source == onnx_file and exported.precision == "float32"


def test_an_image_beyond_memory_is_refused(exported: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    def detect(available: int | None) -> int:
        monkeypatch.setattr(onnx_detector, "available_bytes", lambda device: available)
        return len(exported.detect([PHOTOGRAPH, PHOTOGRAPH], protocol="original", threshold=0.5))

    # 512 × 600 pixels; a pixel takes 84 bytes, and half of what there is may be taken.
    assert detect(52_000_000) == 2 and detect(None) == 2
    with pytest.raises(InputError, match="600 × 512 pixels"):
        detect(51_000_000)


def test_onnxruntime_out_of_memory_is_said() -> None:
    def call(images: np.ndarray) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : bad allocation: Failed to allocate memory\nstack" * len(images))

    backend = ExportBackend(call, {"detection": {}, "dtype": "float32"})
    with pytest.raises(InputError, match="20 × 30 pixels at test scale is too large for memory"):
        backend.run(np.zeros((2, 3, 20, 30), np.uint8))
    with pytest.raises(RuntimeError, match=r"^$"):
        backend.run(np.zeros((0, 3, 20, 30), np.uint8))


# --- foreign files --------------------------------------------------------------------------------------------------


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
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime.*fanet-lightning\[export\]"):
        FaceDetector.from_onnx(onnx_file)


# --- evaluate -------------------------------------------------------------------------------------------------------


def test_evaluate_takes_an_exported_file(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data=synthetic", "data.root=drawn", "data.train_images=1", "data.val_images=6", "workers=0"]
    assert evaluate_main.main(["checkpoint=fanet_light", "precision=32-true", "out=eager", *data]) == 0
    assert evaluate_main.main([f"checkpoint={onnx_file}", *data]) == 0
    capsys.readouterr()
    scores = [
        json.loads((Path(p) / "scores.json").read_text())
        for p in ("eager", "outputs/evaluate/synthetic_original/faces")
    ]
    assert scores[1]["ap"] == pytest.approx(scores[0]["ap"], abs=2e-3)
    assert scores[0]["ap"]["easy"] > 0.1
    assert scores[1]["made_by"]["precision"] == "float32"
    for words, message in (
        (["detection.nms_iou=0.5"], "detection.nms_iou=0.5.* 0.3"),
        (["precision=bf16-mixed"], "precision=bf16-mixed.*faces.onnx"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_main.main([f"checkpoint={onnx_file}", *data, *words])
