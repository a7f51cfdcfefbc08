"""The documentation builds without a warning, and its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'fanet-lightning[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text("utf-8") for page in tmp_path.rglob("*.html")}
    rooms = [folder.name for folder in (ROOT / "src/fanet_lightning").iterdir() if (folder / "__init__.py").is_file()]
    assert len(rooms) == 12 and {f"api/{room}.html" for room in rooms} <= pages.keys()
    assert 'id="fanet_lightning.ops.matching.match"' in pages["api/ops.html"]
    assert "fanet_lightning.ops.matching._" not in pages["api/ops.html"]
    del pages["404.html"]  # its links are absolute
    for name, text in pages.items():
        for target in set(re.findall(r'(?:href|src)="([^"#?:]+)["#?]', text)):
            assert ((tmp_path / name).parent / unquote(target)).exists(), (name, target)
