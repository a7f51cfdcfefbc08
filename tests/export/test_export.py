"""Exported files: the same faces as the model in every runtime, any size and batch; what is refused, and why."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fanet_lightning import FaceDetector
from fanet_lightning.cli.provenance import TrainingImages
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.detect.detector import open_detector
from fanet_lightning.export import __main__ as export_main
from fanet_lightning.export import graph as export_graph
from fanet_lightning.export import run as export
from fanet_lightning.export.graph import DetectionGraph
from fanet_lightning.export.onnx_graph import _faces_model, _float32_below
from fanet_lightning.export.verify import Comparison, compare_exact
from fanet_lightning.models.fanet import build_network
from fanet_lightning.models.pretrained import Model, write_model
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import decode
from fanet_lightning.ops.postprocess import detect
from fanet_lightning.ops.structures import Detections, HeadOutput, NetworkOutput
from tests.detect.helpers import PHOTOGRAPH, light
from tests.export.exported_files import shipped_onnx
from tests.score.helpers import refused

SETTINGS = {"score_floor": 0.01, "top_k": 5000, "nms_iou": 0.3, "keep": 750}
LINE = r"compared with (\S+) on .*: ([\d,]+) boxes [^,]*, boxes differ by at most (\S+) px, scores by (\S+)\n"


@pytest.fixture(scope="session")
def onnx_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return shipped_onnx(tmp_path_factory)


def assert_agrees(printed: str, runtime: str, more_than: int) -> None:
    """The verb's line: runtime, faces, pixels and score."""
    [(named, faces, box, score)] = re.findall(LINE, printed)
    assert named == runtime and int(faces.replace(",", "")) > more_than
    assert float(box) <= 0.05 and float(score) <= 1e-4


def test_onnx_agrees_with_the_model_and_says_how_fast_it_is(onnx_export: tuple[Path, str]) -> None:
    path, printed = onnx_export
    assert_agrees(printed, "onnxruntime", 1000)  # at these five sizes the shipped model finds some thousand boxes
    assert " boxes above the floor of 0.01, " in printed and f"written: {path}" in printed
    assert re.search(r"640×480, \d+ threads?, median of 2: the model [\d.]+ ms, onnxruntime [\d.]+ ms", printed)


def test_onnx_says_what_it_is(onnx_export: tuple[Path, str]) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    path, _ = onnx_export
    assert [entry.name for entry in path.parent.iterdir()] == ["faces.onnx"]  # one file, nothing next to it
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [entry.domain for entry in model.opset_import] == [""]  # standard operators alone
    (images,) = model.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    props = {entry.key.removeprefix("fanet_lightning."): entry.value for entry in model.metadata_props}
    assert "uint8 RGB" in props["input"] and "boxes_xyxy" in props["outputs"]
    assert json.loads(props["detection"]) == SETTINGS
    assert props["name"] == "fanet_light" and props["dtype"] == "float32" and "research-only" in props["license"]
    assert len(props["model_sha256"]) == 64 and len(json.loads(props["training_images"])[0]["ids"]) == 2195
    content = path.read_bytes()
    assert b"site-packages" not in content and str(Path.cwd()).encode() not in content


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (129, 128), (128, 129), (255, 31)])
def test_onnx_holds_for_odd_sizes_and_batches(size_hw: tuple[int, int], onnx_export: tuple[Path, str]) -> None:
    image = cv2.resize(cv2.imread(str(PHOTOGRAPH))[:, :, ::-1], size_hw[::-1])
    images = np.stack([image, image[:, ::-1], 255 - image]).transpose(0, 3, 1, 2)
    boxes_xyxy, scores, index = export.runner(onnx_export[0], "onnx")(np.ascontiguousarray(images))
    assert index.tolist() == sorted(index.tolist())
    for k, single in enumerate(images):
        alone = light().backend.find(torch.from_numpy(single.copy())[None])[0].detections
        np.testing.assert_allclose(scores[index == k], alone.scores.numpy(), atol=1e-5)
        np.testing.assert_allclose(boxes_xyxy[index == k].sum(), alone.boxes_xyxy.numpy().sum(), rtol=1e-4, atol=0.01)


def test_openvino(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    out = tmp_path / "new/faces.xml"
    words = ["format=openvino", f"out={out}", "rounds=1"]
    assert export_main.main(words) == 0
    assert_agrees(capsys.readouterr().out, "OpenVINO", 1000)
    assert {path.name for path in out.parent.iterdir()} == {"faces.xml", "faces.bin"}
    assert b"site-packages" not in out.read_bytes() and str(tmp_path).encode() not in out.read_bytes()
    exported = open_detector(out)
    assert exported.runs_on == "cpu" and exported.training_images == light().training_images
    found, alone = (each.detect(PHOTOGRAPH, threshold=0.3) for each in (exported, light()))
    torch.testing.assert_close(found.scores, alone.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes_xyxy, alone.boxes_xyxy, atol=0.05, rtol=0)
    images = [np.zeros((40, 50, 3), np.uint8), PHOTOGRAPH]
    assert [len(faces) for faces in FaceDetector.from_openvino(out, threads=1).detect(images)] == [0, 1]
    refused(r"device=tpu.*cpu", FaceDetector.from_openvino, out, device="tpu")
    refused(r"faces\.xml is there already", export_main.main, words)
    out.with_suffix(".bin").unlink()
    for path in (out, tmp_path / "absent.xml"):
        refused(rf"{path.stem}\.bin", open_detector, path)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("form", ["torchscript", pytest.param("torch_export", marks=pytest.mark.slow)])
def test_files_of_torch(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, floor = tmp_path / "new/faces.pt", "detection.score_floor=0.5"
    assert export_main.main([f"format={form}", f"out={out}", "rounds=1", floor]) == 0
    printed = capsys.readouterr().out
    assert "import torchvision before loading it" in printed
    assert_agrees(printed, form.replace("torchscript", "torch.jit").replace("torch_", "torch."), 4)
    notes = {"fanet_lightning.json": ""}
    if form == "torchscript":
        module: Any = torch.jit.load(str(out), _extra_files=notes)
    else:
        module = torch.export.load(out, extra_files=notes).module()
    entries = json.loads(notes["fanet_lightning.json"])
    assert json.loads(entries["fanet_lightning.detection"])["score_floor"] == 0.5
    assert "torchvision" in entries["fanet_lightning.needs"] and "uint8 RGB" in entries["fanet_lightning.input"]
    image = torch.from_numpy(read_image_rgb(PHOTOGRAPH)).permute(2, 0, 1)[None].contiguous()
    boxes_xyxy, scores, index = module(torch.cat([image, image.flip(3)]))
    alone = light().detect(PHOTOGRAPH, "original")
    assert index.bincount()[0] == len(alone) and len(index.unique()) == 2
    torch.testing.assert_close(scores[index == 0], alone.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes_xyxy[index == 0], alone.boxes_xyxy, atol=0.05, rtol=0)
    # No face at all, which a graph that takes NMS to leave some would refuse.
    assert [len(x) for x in module(torch.zeros((2, 3, 64, 100), dtype=torch.uint8))] == [0, 0, 0]
    assert len(module(image[:, :, :1, :1])[1]) == 0


@pytest.mark.slow
def test_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str], onnx_export: tuple[Path, str]) -> None:
    out, images = tmp_path / "int8.onnx", tmp_path / "images"
    images.mkdir()
    for side in (200, 300, 400):
        cv2.imwrite(str(images / f"{side}.png"), cv2.resize(cv2.imread(str(PHOTOGRAPH)), (side, side)))
    assert export_main.main(["dtype=int8", f"calibration={images}", f"out={out}", "rounds=1"]) == 0
    assert "int8 finds other faces" in capsys.readouterr().out
    assert out.stat().st_size < 0.4 * onnx_export[0].stat().st_size
    found, expected = (FaceDetector.from_onnx(path).detect(PHOTOGRAPH) for path in (out, onnx_export[0]))
    assert len(found.scores) == 1
    assert (found.boxes_xyxy - expected.boxes_xyxy).abs().max() < 8  # of a face 200 pixels high


@pytest.mark.slow
def test_other_networks_and_opset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    options = {"name": "s3fd_fpn", "width": 0.0625, "batch_norm": True, "normaliser": "caffe"}
    torch.manual_seed(0)
    network = build_network(**options).eval()
    with torch.no_grad():
        for head in network.heads.children():
            # Boxes near their anchors: of the thousands of pixels that random offsets give, 0.05 are not much.
            head.weight[:4] *= 0.02
    folder, out = tmp_path / "small", tmp_path / "small.onnx"
    folder.mkdir()
    write_model(folder, Model(network, options, {}, [TrainingImages("synthetic", None, ("a",))]), {})
    words = [f"checkpoint={folder}", f"out={out}", "rounds=1", "opset=18", "detection.nms_iou=0.5"]
    assert export_main.main(words) == 0
    assert_agrees(capsys.readouterr().out, "onnxruntime", 1000)
    model = onnx.load(out)
    assert model.opset_import[0].version == 18
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert props["fanet_lightning.license"] == "mit"
    assert json.loads(props["fanet_lightning.detection"])["nms_iou"] == 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("fault", ["nms", "boxes", "scores"])
def test_a_file_that_disagrees_is_not_kept(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nms, rank = export_graph._nms, export_graph._rank
    name, faulty = {
        "nms": ("_nms", lambda boxes, scores, image, iou: nms(boxes, scores, image, 0.4)),
        "boxes": ("decode", lambda *args: decode(*args) + 0.07),
        "scores": ("_rank", lambda image: rank(image) + 1),  # the last one falls off
    }[fault]
    monkeypatch.setattr(export_graph, name, faulty)
    # Small ones do: a fault of the graph shows everywhere.
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), cv2.resize(cv2.imread(str(PHOTOGRAPH)), (170, 200)))
    out = tmp_path / "out/faces.pt"
    out.parent.mkdir()
    out.write_text("an older file")
    words = ["format=torchscript", f"out={out}", "rounds=1", "overwrite=true", f"images={images}"]
    refused(r"torch\.jit does not find the same faces", export_main.main, [*words, "detection.keep=50"])
    assert f"on images of {images}: " in capsys.readouterr().out
    assert [entry.name for entry in out.parent.iterdir()] == ["faces.pt"] and out.read_text() == "an older file"


SHAPES = [(12, 10), (6, 5), (3, 3), (2, 2), (1, 1), (1, 1)]


def hard_output(seed: int) -> NetworkOutput:
    """Two images, many equal scores, some at the floor, offsets that are not finite, boxes that coincide."""
    generator = torch.Generator().manual_seed(seed)
    count = AnchorGrid(tuple(SHAPES)).count
    margin = torch.randint(-3, 4, (2, count), generator=generator).float() * 2
    margin[:, ::7] = torch.logit(torch.tensor(0.01))
    offsets = torch.randn((2, count, 4), generator=generator)
    offsets[0, 3], offsets[1, 5, 2], offsets[1, 6, 0] = torch.nan, torch.inf, -torch.inf
    margin[0, 3] = margin[1, 5] = margin[1, 6] = 9.0
    offsets[:, 20:24] = 0
    logits = torch.stack([torch.zeros_like(margin), margin], dim=-1)
    return NetworkOutput([HeadOutput(logits, offsets)], SHAPES)


CASES = [{}, {"top_k": 40}, {"keep": 7}, {"score_floor": 0.6, "nms_iou": 0.7}, {"score_floor": 0.0, "nms_iou": 0.0},
         {"score_floor": 1.0}]  # fmt: skip


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_graph_is_postprocess(runtime: str, changes: dict[str, Any]) -> None:
    settings = SETTINGS | changes
    for seed in range(4):
        output = hard_output(seed)
        if runtime == "torch":
            network = nn.Identity()
            network.forward = lambda _, said=output: said  # type: ignore[method-assign]
            graph = DetectionGraph(network, settings, channels_last=False)
            boxes_xyxy, scores, index = graph(torch.zeros((2, 3, 48, 40), dtype=torch.uint8))
        else:
            boxes_xyxy, scores, index = map(torch.from_numpy, run_faces(output, settings))
        for k, expected in enumerate(detect(output, AnchorGrid(tuple(SHAPES)), **settings)):
            # Equal scores too come in the order of their anchors, so the boxes stand row by row.
            assert torch.equal(scores[index == k], expected.scores)
            torch.testing.assert_close(boxes_xyxy[index == k], expected.boxes_xyxy, atol=1e-4, rtol=1e-6)
        assert index.tolist() == sorted(index.tolist())


def run_faces(output: NetworkOutput, settings: dict[str, Any]) -> list[Any]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    model = _faces_model(SimpleNamespace(ir_version=10), 20, settings).SerializeToString()
    logits, offsets = output.hierarchies[-1]
    given = {
        "in_scores": torch.sigmoid(logits[..., 1] - logits[..., 0]), "in_offsets": offsets,
        "in_anchors": AnchorGrid(tuple(output.map_shapes)).boxes_cxcywh(),
    }  # fmt: skip
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {name: value.numpy() for name, value in given.items()})
    return found


def test_nms_threshold_means_the_same_in_float32() -> None:
    """Two boxes of IoU exactly 1/4 in binary: at threshold 0.25 both stand, just below it one falls."""
    assert _float32_below(0.25) == 0.25
    # float32's neighbour of 0.3 lies above it, so an IoU of exactly that neighbour exceeds 0.3.
    assert float(np.float32(0.3)) > 0.3 > _float32_below(0.3)
    assert np.nextafter(np.float32(_float32_below(0.3)), np.float32(1)) == np.float32(0.3)


def faces(*rows: tuple[float, float, float, float, float]) -> Detections:
    """x1, y1, x2, y2, score."""
    table = torch.tensor(rows).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4])


TWO_ROWS = (0, 0, 20, 20, 0.9), (100, 0, 120, 20, 0.5)
TWO = faces(*TWO_ROWS)
OTHER = (104, 0, 124, 20)  # of the second one: overlap 2 / 3
COVERED = (0, 10.769, 20, 30.769, 0.4)  # overlaps the first one by 0.30003


@pytest.mark.parametrize(("exported", "anchors", "expected"), [
    (TWO, TWO, Comparison(2)),
    # A face moved by a tenth of a pixel, and one whose score differs.
    (faces((0.1, 0, 20, 20, 0.9), (100, 0, 120, 20, 0.502)), TWO, Comparison(2, 0.1, 0.002)),
    # One is missing; nothing covers it.
    (TWO[:1], TWO, Comparison(1, alone=1)),
    # One too many, of which the model knows nothing; and one that it has at the score floor.
    (faces(*TWO_ROWS, (50, 0, 60, 9, 0.0100001)), TWO, Comparison(3, 60, 0.49)),
    (faces(*TWO_ROWS, (50, 0, 60, 9, 0.0100001)), faces(*TWO_ROWS, (50, 0, 60, 9, 0.0099999)), Comparison(3)),
    # Two anchors on one face, equal to the seventh digit: either may win, not both, and not the worse of two.
    (faces(TWO_ROWS[0], (*OTHER, 0.5000001)), faces(*TWO_ROWS, (*OTHER, 0.4999999)), Comparison(2)),
    (faces(*TWO_ROWS, (*OTHER, 0.5)), faces(*TWO_ROWS, (*OTHER, 0.5)), Comparison(3, alone=1)),
    (faces(TWO_ROWS[0], (*OTHER, 0.45)), faces(*TWO_ROWS, (*OTHER, 0.45)), Comparison(2, alone=1)),
    # An overlap at the threshold: it falls or stands.
    (faces(*TWO_ROWS, COVERED), faces(*TWO_ROWS, COVERED), Comparison(3)),
    (faces(), TWO, Comparison(alone=2)), (TWO, faces(), Comparison(2, alone=2)),
])  # fmt: skip
def test_comparison(exported: Detections, anchors: Detections, expected: Comparison) -> None:
    found = compare_exact(TWO, exported, anchors, SETTINGS)
    assert (found.faces, found.alone) == (expected.faces, expected.alone)
    assert (found.box, found.score) == pytest.approx((expected.box, expected.score), abs=1e-3)
    assert found.agrees == (expected.box < 0.05 and expected.score < 1e-4 and not expected.alone)


def test_the_last_faces_may_be_others() -> None:
    """At the number kept, and at the anchors that NMS looks at, equal scores are cut off somewhere."""
    rows = [(30 * k, 0, 30 * k + 20, 20, 0.2) for k in range(4)]
    for settings in ({"keep": 3}, {"top_k": 3}):
        settings = SETTINGS | settings
        assert compare_exact(faces(*rows[:3]), faces(*rows[1:]), faces(*rows), settings).agrees
        assert not compare_exact(faces(*rows[:3]), faces(*rows[:2]), faces(*rows), SETTINGS).agrees


def test_the_license_of_a_card_that_somebody_wrote(tmp_path: Path) -> None:
    unknown, mine = (
        "other: on the terms of the training images (unknown)",
        "---\nlicense: other\nlicense_name: a\n---\n",
    )
    for text, said in {"A detector.": unknown, "| a |\n|---|\n| [ |": unknown, mine: "other a"}.items():
        (tmp_path / "README.md").write_text(text)
        assert export.terms(tmp_path, Model(nn.Identity(), {}, {}, None, tmp_path)) == said  # type: ignore[arg-type]


@pytest.mark.parametrize(("words", "message"), [
    ("format=tflite", "format=tflite"), ("format=torchscript dtype=int8 calibration=.", "dtype=int8"),
    ("dtype=int8", "calibration=FOLDER"), ("opset=9", "opset=9; give 18 … 23"), ("rounds=0", "rounds=0"),
    ("detection.nms_iou=3", "detection.nms_iou=3"), ("checkpoint=fanet_lite", "fanet_lite"),
    ("images=nowhere", "images=nowhere"), ("out=taken.onnx", "out=taken.onnx"),
    ("out=folder overwrite=true", "out=folder"), ("format=openvino out=faces.onnx", ".xml"),
])  # fmt: skip
def test_refused(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken.onnx").write_text("mine")
    refused(re.escape(message), export_main.main, words.split())
    assert (tmp_path / "taken.onnx").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    needed = r"needs the package onnxscript; pip install 'fanet-lightning\[export\]'"
    refused(needed, export_main.main, ["out=x.onnx"])
