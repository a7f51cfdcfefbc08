"""An evaluation killed in the middle (SIGKILL, half a line written) and started again, against one that ran through."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluate.helpers import write_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")

# A process that kills itself while it writes down its n-th image: half of the line is on disk.
KILLED = """
import os, signal, sys
from fanet_lightning.evaluate import __main__ as evaluate
from fanet_lightning.evaluate import runner
whole = runner.Journal.append
count = 0
def append(self, value):
    global count
    count += "image_id" in value
    if count == 3:
        size = os.fstat(self._file.fileno()).st_size
        whole(self, value)
        os.ftruncate(self._file.fileno(), (size + os.fstat(self._file.fileno()).st_size) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, value)
runner.Journal.append = append
sys.exit(evaluate.main(sys.argv[1:]))
"""
IMAGES = 7


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300)


def results(out: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    """Every predicted file and scores.json without what tells of this very process."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "predictions").rglob("*.txt"))}
    scores = json.loads((out / "scores.json").read_text())
    for key in ("command", "git_commit", "images_per_second"):
        scores["made_by"].pop(key)
    return files, scores


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same(tmp_path: Path) -> None:
    """Killed twice: at the third image, then two further on; two threads read images."""
    words = [
        f"checkpoint={write_checkpoint(tmp_path / 'a.ckpt', 2, {})}", f"data.root={tmp_path / 'data'}",
        "data.train_images=1", f"data.val_images={IMAGES}", "data.image_width=[160,200]", "data.image_height=[120,160]",
        "device=cpu", "detection.keep=50", "protocol=multiscale_quick", "protocol.max_pixels=100000",
        "protocol.keep=50",
    ]  # fmt: skip
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    assert run("-m", "fanet_lightning.evaluate", *words, f"out={plain}").returncode == 0
    words += [f"out={killed}", "workers=2"]
    for _ in range(2):
        done = run("-c", KILLED, *words)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (killed / "scores.json").exists()
    done = run("-m", "fanet_lightning.evaluate", *words)
    assert done.returncode == 0, done.stderr
    assert "resuming: 4 images done already; resume=false starts over" in done.stdout
    files, scores = results(killed)
    assert len(files) == IMAGES and sum(map(len, files.values())) > 1000
    assert (files, scores) == results(plain)
    assert (killed / "scales.json").read_bytes() == (plain / "scales.json").read_bytes()
    assert not list(killed.glob("unfinished*"))
