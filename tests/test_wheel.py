"""The wheel works from an empty directory, with its configuration inside."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds, as an installation would unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    command = [sys.executable, *wheel, str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_all_files_are_inside(site: Path, tmp_path: Path) -> None:
    program = (
        "import numpy as np, fanet_lightning; from fanet_lightning.cli.config import config_dir; print(config_dir()); "
        "detector = fanet_lightning.FaceDetector.from_pretrained(); print(detector.source); "
        "detector.detect(np.zeros((64, 64, 3), np.uint8))"
    )
    done = run(site, tmp_path, "-c", program)
    package = site / "fanet_lightning"
    conf, model = map(Path, done.stdout.splitlines())
    assert (done.returncode, conf, model.parent) == (0, package / "conf", package / "models/shipped"), done.stderr
    for name in ("py.typed", "score/wider_face/published_curves/wider_face.npz", "report/templates/index.html.jinja"):
        assert (package / name).is_file()
    assert [path for path in site.iterdir() if path.is_dir() and "dist-info" not in path.name] == [package]


@pytest.mark.slow
def test_verbs_run_from_an_empty_directory(site: Path, tmp_path: Path) -> None:
    for words in ("score", "evaluate", "workspace", "download wider_face", "show synthetic"):
        done = run(site, tmp_path, "-m", "fanet_lightning", *words.split(), "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.removeprefix("usage: ").startswith(f"fanet {words}")


@pytest.mark.slow
def test_examples_of_own_parts_run_on_the_wheel(site: Path, tmp_path: Path) -> None:
    """Every command of their README in an empty directory, and their checkpoint in one that lacks the network."""
    for path in (ROOT / "examples/own_parts").glob("*.py"):
        shutil.copy(path, tmp_path)
    (block,) = re.findall(
        r"```console\n(.*?)```", (ROOT / "examples/own_parts/README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    verbs = [words[1].removeprefix("fanet_lightning.") for words in commands]
    assert verbs == ["train", "evaluate", "evaluate", "detect", "export"]
    commands[0] += ["data.drawn=[6,2]", "epochs=1", "workers=0", "trainer.accelerator=cpu"]
    commands[4] += ["rounds=1"]
    for words in commands:
        done = run(site, tmp_path, *words)
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "run/evaluation/scores.json").is_file() and (tmp_path / "own.onnx").is_file()
    away = tmp_path / "away"
    away.mkdir()
    for verb in ("evaluate", "detect source=../faces/images", "export"):
        done = run(site, away, "-m", *f"fanet_lightning.{verb} checkpoint=../run".split())
        assert done.returncode == 2 and re.fullmatch(
            r"error: .*best\.ckpt: model\._target_=own_network\.ResNetFpn .*PYTHONPATH\n", done.stderr
        ), done.stderr
    assert list(away.iterdir()) == []
    done = run(site, away, "-m", "fanet_lightning.detect", "checkpoint=../own.onnx", "source=../faces/images")
    assert done.returncode == 0, done.stderr
