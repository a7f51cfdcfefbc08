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
    if count == {images}:
        size = os.fstat(self._file.fileno()).st_size
        whole(self, value)
        os.ftruncate(self._file.fileno(), (size + os.fstat(self._file.fileno()).st_size) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, value)
runner.Journal.append = append
sys.exit(evaluate.main(sys.argv[1:]))
"""
IMAGES = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("resume") / "a.ckpt", 2, {}).parent


def words(folder: Path, out: str, *more: str) -> list[str]:
    return [
        f"checkpoint={folder / 'a.ckpt'}", f"data.root={folder / 'data'}", "data.train_images=1",
        f"data.val_images={IMAGES}", "data.image_width=[160,200]", "data.image_height=[120,160]", f"out={folder / out}",
        "device=cpu", *more,
    ]  # fmt: skip


def run(arguments: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip


def results(out: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    """Every predicted file and scores.json without what tells of this very process."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "predictions").rglob("*.txt"))}
    scores = json.loads((out / "scores.json").read_text())
    for key in ("command", "git_commit", "images_per_second"):
        scores["made_by"].pop(key)
    return files, scores


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["original", "multiscale_quick"])
def test_killed_and_started_again_gives_the_same(folder: Path, protocol: str) -> None:
    """Killed twice: at the third image, then two further on; two threads read images."""
    plain, killed = f"plain_{protocol}", f"killed_{protocol}"
    options = [f"protocol={protocol}", "detection.keep=50"]
    if protocol != "original":
        options += ["protocol.max_pixels=100000", "protocol.keep=50"]
    assert run(["-m", "fanet_lightning.evaluate", *words(folder, plain, *options)]).returncode == 0
    command = words(folder, killed, *options, "workers=2")
    for images in (3, 3):
        done = run(["-c", KILLED.format(images=images), *command])
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (folder / killed / "scores.json").exists()
    done = run(["-m", "fanet_lightning.evaluate", *command])
    assert done.returncode == 0, done.stderr
    assert "resuming: 4 images are done already; resume=false starts over" in done.stdout
    files, scores = results(folder / killed)
    assert len(files) == IMAGES and sum(map(len, files.values())) > 1000
    expected_files, expected_scores = results(folder / plain)
    assert files == expected_files and scores == expected_scores
    assert (folder / killed / "scales.json").read_bytes() == (folder / plain / "scales.json").read_bytes()
    assert not list((folder / killed).glob("unfinished*"))
