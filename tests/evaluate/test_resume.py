"""An evaluation killed in the middle (SIGKILL, half a line written) and started again, against one that ran through."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fanet_lightning
from fanet_lightning.cli.config import config_dir
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


@pytest.mark.slow
def test_other_settings_start_over(folder: Path) -> None:
    command = words(folder, "other")
    assert run(["-c", KILLED.format(images=4), *command]).returncode == -signal.SIGKILL
    done = run(["-m", "fanet_lightning.evaluate", *command, "detection.keep=40"])
    assert done.returncode == 0, done.stderr
    assert "starting over: " in done.stdout and "is of other settings (detection)" in done.stdout
    assert "resuming" not in done.stdout
    rows = [int(path.read_text().splitlines()[1]) for path in (folder / "other/predictions").rglob("*.txt")]
    assert len(rows) == IMAGES and max(rows) <= 40


@pytest.mark.slow
def test_other_code_starts_over(folder: Path, tmp_path: Path) -> None:
    """A word changed in any module, here one that no detection depends on; what is no code does not count."""
    package = Path(fanet_lightning.__file__).parent
    copied = tmp_path / "src" / "fanet_lightning"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copytree(config_dir(), tmp_path / "conf")
    command, path = words(folder, "code"), str(tmp_path / "src")
    killed = run(["-c", KILLED.format(images=4), *command], PYTHONPATH=path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (copied / "notes.txt").write_text("no code")
    killed = run(["-c", KILLED.format(images=2), *command], PYTHONPATH=path)
    assert killed.returncode == -signal.SIGKILL and "3 images" in killed.stdout, killed.stdout
    changed = next(copied.rglob("report.py"), copied / "report/__main__.py")
    changed.write_text(changed.read_text() + "# a word\n")
    done = run(["-m", "fanet_lightning.evaluate", *command], PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "(code)" in done.stdout and "3 images" not in done.stdout
