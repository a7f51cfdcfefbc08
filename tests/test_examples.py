"""The stand-alone example: in a process where neither torch nor this package can be imported."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib import cbook

from fanet_lightning import FaceDetector
from tests.export.exported_files import shipped_onnx

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples/detect_onnx.py"
PHOTOGRAPH = Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
BLOCKED = (
    "import runpy, sys\n"
    "for name in ('torch', 'torchvision', 'fanet_lightning', 'onnx'): sys.modules[name] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def test_detect_onnx(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    broken, absent, saved = tmp_path / "broken.jpg", tmp_path / "absent.jpg", tmp_path / "drawn"
    broken.write_text("no image")
    words = [shipped_onnx(tmp_path_factory)[0], broken, absent, PHOTOGRAPH, "--threshold", "0.6", "--save", saved]
    command = [sys.executable, "-c", BLOCKED, EXAMPLE, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    # Nothing of OpenCV's own.
    assert done.stderr == "".join(f"error: {path} cannot be read as an image\n" for path in (broken, absent))
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    expected = FaceDetector.from_pretrained().detect(PHOTOGRAPH, threshold=0.6)
    assert (found["image"], found["width"], found["height"]) == (str(PHOTOGRAPH), 512, 600)
    assert len(found["faces"]) == len(expected.scores) == 1
    # OpenCV decodes JPEG a little differently than Pillow.
    np.testing.assert_allclose(found["faces"][0]["box_xyxy"], expected.boxes_xyxy[0], atol=1.5)
    assert found["faces"][0]["score"] == pytest.approx(float(expected.scores[0]), abs=0.01)
    drawn = cv2.imread(str(saved / "grace_hopper.png"))
    x1, y1, x2, y2 = (round(v) for v in found["faces"][0]["box_xyxy"])
    assert drawn.shape == (600, 512, 3)
    # The best score is green: BGR (0, about 250, about 5) on the box's left edge, the image itself inside.
    blue, green, red = drawn[(y1 + y2) // 2, x1].astype(int)
    assert blue == 0 and green > 230 and red < 25
    original = cv2.imread(str(PHOTOGRAPH))
    np.testing.assert_array_equal(drawn[(y1 + y2) // 2, (x1 + x2) // 2], original[(y1 + y2) // 2, (x1 + x2) // 2])


def test_a_model_that_is_none_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    path = tmp_path / "text.onnx"
    path.write_text("no model")
    done = subprocess.run([sys.executable, EXAMPLE, path, PHOTOGRAPH], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {path} is no file of fanet_lightning.export: ")
