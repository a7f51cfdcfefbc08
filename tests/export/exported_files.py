"""The shipped model as an ONNX file, written once for all test processes by the verb itself."""

import contextlib
import io
import os
from pathlib import Path

import pytest
from filelock import FileLock

from fanet_lightning.export import __main__ as export_main


def shipped_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file and what ``export`` printed."""
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    path, printed = root / "exported" / "faces.onnx", root / "exported.txt"
    with FileLock(root / "exported.lock"):
        if not printed.exists():
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                code = export_main.main(["checkpoint=fanet_light", "format=onnx", f"out={path}", "rounds=2"])
            assert code == 0, text.getvalue()
            printed.write_text(text.getvalue(), encoding="utf-8")
    return path, printed.read_text(encoding="utf-8")
