"""``fanet reproduce``: a finished run again from its record; data, weights and versions that differ."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.train.reproduce import main
from tests.train.helpers import TINY, command, trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run`` and the data that it was trained on."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained("level=2", *TINY, "out=run")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of ``finished`` to change, and the working folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_run_repeated_is_equal_to_the_last_bit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    assert main(["run"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("bit-equal")
    assert " then, " not in printed
    assert {path: path.read_bytes() for path in before} == before
    first, second = (
        torch.load(folder / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("run", "run_again")
    )
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    with pytest.raises(InputError, match=r"out=run_again"):
        main(["run"])


@pytest.mark.slow
def test_the_threads_of_then_and_data_made_again_are_no_difference(finished: Path, tmp_path: Path) -> None:
    words, threads = [str(finished / "run"), f"out={tmp_path}/again"], {**os.environ, "OMP_NUM_THREADS": "2"}
    done = command("train.reproduce", *words, cwd=tmp_path, env=threads)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("bit-equal")
    assert json.loads((tmp_path / "again/run.json").read_text())["train"]["threads"] == 1


def test_a_changed_weight_and_another_version_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, record = folder / "run/checkpoints/last.ckpt", folder / "run/run.json"
    checkpoint = torch.load(path, weights_only=True)
    key = list(checkpoint["state_dict"])[-1]
    checkpoint["state_dict"][key].view(-1)[0] += 0.5
    torch.save(checkpoint, path)
    content = json.loads(record.read_text())
    content["made_by"]["packages"]["fanet-lightning"] = "0.0.9"
    del content["settings"]["freeze_until"]  # which came later
    record.write_text(json.dumps(content))
    assert main(["run=run", "out=other"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "fanet-lightning: 0.0.9 then, 0.1.0 now" in lines
    assert lines[-1].startswith(f"differs: {key} of last.ckpt: 1 of ") and lines[-1].endswith("by up to 0.5")


def test_other_annotations_are_refused_or_gone_on_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labels,) = folder.glob("data/synthetic/*/wider_face_split/wider_face_train_bbx_gt.txt")
    lines = labels.read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if len(line.split()) == 10 and line.split()[2] != "0")
    x, *rest = lines[row].split()
    lines[row] = " ".join([str(int(x) + 1), *rest])
    labels.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"annotations of train.*other_data=true"):
        main(["run"])
    assert not (folder / "run_again").exists()
    assert main(["run", "other_data=true"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("annotations of train: ")
    assert out[-1].startswith("differs: ") and " from step 1 on: " in out[-1]


def test_the_run_of_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(folder / "run", state="stopped")
    monkeypatch.chdir(folder / "run")
    with pytest.raises(InputError, match=r"/run is stopped"):
        main(["."])


def test_images_that_changed_moved_or_are_gone(folder: Path) -> None:
    image = next(folder.glob("data/synthetic/*/WIDER_val/images/*/*.jpg"))
    with image.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="files of val"):
        main(["run"])
    (folder / "data").rename(folder / "moved")
    with pytest.raises(InputError, match="files of val"):
        main(["run", "data.root=moved/synthetic"])
    next(folder.glob("moved/synthetic/*/WIDER_train/images/*/*.jpg")).unlink()
    with pytest.raises(InputError, match="moved/synthetic"):
        main(["run", "data.root=moved/synthetic", "other_data=true"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run), "run=run is not there"),
        (lambda run: _set(run, state="stopped"), "run=run is stopped"),
        (lambda run: _set(run, state="running"), "run=run is interrupted"),
        (lambda run: _set(run, version=2), "version 2"),
        (lambda run: _set(run, settings={"resume": None, "callbacks": {}}), r"has no .* fanet-lightning 0\.1\.0"),
        (lambda run: (run / "checkpoints/last.ckpt").unlink(), r"last\.ckpt"),
    ],
)
def test_what_is_no_finished_run_is_one_line(damage, message: str, folder: Path) -> None:  # type: ignore[no-untyped-def]
    damage(folder / "run")
    with pytest.raises(InputError, match=message) as caught:
        main(["run"])
    assert "\n" not in str(caught.value)
    assert not (folder / "run_again").exists()


def _set(run: Path, **values: object) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
