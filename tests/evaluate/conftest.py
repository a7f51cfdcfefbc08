"""Untrained networks that call everything a face: what is tested is the way, not the number."""

from pathlib import Path

import pytest

from fanet_lightning.detect.detector import FaceDetector, open_detector
from tests.evaluate.helpers import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "a.ckpt", 2, {"keep": 30})


@pytest.fixture(scope="module")
def detector(checkpoint: Path) -> FaceDetector:
    return open_detector(checkpoint, "cpu")
