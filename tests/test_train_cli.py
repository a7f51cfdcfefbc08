"""Train, evaluate and score as a person does: the real command line, files in the real layout."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fanet_lightning import evaluate, train
from fanet_lightning.errors import InputError

# A network and a data set so small that a run takes seconds; everything else is the default.
TINY = [
    "model.width=0.0625", "input_size=64", "batch_size=4", "epochs=2", "workers=0", "data.train_images=8",
    "data.val_images=3",
    "trainer.accelerator=cpu", "validate_every=1", "trainer.log_every_n_steps=1", "optim.warmup_steps=2",
]  # fmt: skip


def command(verb: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"fanet_lightning.{verb}", *words], cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One training run from an empty directory: (that directory, what the command printed)."""
    folder = tmp_path_factory.mktemp("run")
    done = command("train", "level=2", "hl=true", *TINY, "out=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_run_prints_its_epochs_its_table_and_where_everything_lies(
    run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = run
    lines = done.stdout.splitlines()
    assert lines[0].startswith("level2_context_hl: ")
    assert any(line.startswith("learning rate 0.0005 (optim.lr 0.0015 at batch 12") for line in lines)
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1/2", "2/2"]
    assert {line.split()[0] for line in lines} >= {"easy", "medium", "hard"}
    for path in (
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "csv/metrics.csv", "evaluation/scores.json",
        "evaluation/pr_curves.png", "evaluation/pr_curves.pdf", "evaluation/detections.png",
    ):  # fmt: skip
        assert (folder / "run" / path).is_file(), path
        assert (folder / "run" / path).stat().st_size > 100
    assert len(list((folder / "run/evaluation/predictions").rglob("*.txt"))) == 3
    assert list((folder / "run/tensorboard").glob("events.out.tfevents*"))


def test_metrics_have_the_parts_of_every_hierarchy(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    with (run[0] / "run/csv/metrics.csv").open() as file:
        columns = set(csv.DictReader(file).fieldnames or [])
    parts = {f"train/h{hierarchy}/{part}" for hierarchy in (1, 2) for part in ("cls", "box")}
    assert columns >= parts | {"train/loss", "train/grad_norm", "train/skipped_steps", "val/ap_easy", "val/ap_hard"}
    assert "train/h3/cls" not in columns


def test_scores_say_what_made_them(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    scores = json.loads((run[0] / "run/evaluation/scores.json").read_text())
    assert (scores["benchmark"], scores["protocol"], scores["images"]) == ("synthetic", "original", 3)
    assert scores["made_by"]["detection"] == {"score_floor": 0.01, "top_k": 5000, "nms_iou": 0.3, "keep": 750}
    assert set(scores["ap"]) == {"easy", "medium", "hard"}
    assert scores["made_by"]["checkpoint"].endswith("best.ckpt")
    assert scores["made_by"]["packages"]["torch"]


def test_evaluate_and_score_agree_to_the_last_digit(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder = run[0]
    again = command(
        "evaluate", "checkpoint=run/checkpoints/best.ckpt", "data.train_images=8", "data.val_images=3", "out=again",
        "device=cpu", "workers=0", cwd=folder,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    at_end = json.loads((folder / "run/evaluation/scores.json").read_text())
    evaluated = json.loads((folder / "again/scores.json").read_text())
    assert evaluated["ap"] == at_end["ap"]
    truth = next((folder / "data/synthetic").glob("*/eval_gt"))
    words = ["benchmark=wider_face", "predictions=again/predictions", f"ground_truth={truth}", "out=scored"]
    scored = command("score", *words, cwd=folder)
    assert scored.returncode == 0, scored.stderr
    assert json.loads((folder / "scored/scores.json").read_text())["ap"] == evaluated["ap"]


def test_a_checkpoint_is_plain_data_and_says_how_its_network_is_built(
    run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    checkpoint = torch.load(run[0] / "run/checkpoints/last.ckpt", weights_only=True)
    network = checkpoint["hyper_parameters"]["network"]
    assert (network["name"], network["level"], network["hl"], network["width"]) == ("fanet", 2, True, 0.0625)
    assert network["normaliser"] == "imagenet"


@pytest.mark.slow
def test_resuming_goes_on_where_the_run_stopped(
    run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """One epoch and two more give the weights of three at a stretch: optimiser, schedule, averages, draws."""
    shutil.copytree(run[0] / "data", tmp_path / "data")
    words = ["level=2", *TINY, "epochs=3", "evaluate_at_end=false", "trainer.deterministic=true"]
    whole = command("train", *words, "out=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    # The schedule is a function of the run's length: cut the same run short instead of planning a shorter one.
    first = command("train", *words, "out=cut", "stop_after=1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = command("train", *words, "out=second", "resume=cut/checkpoints/last.ckpt", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "epoch 2/3" in second.stdout and "epoch 1/3" not in second.stdout
    states = [
        torch.load(tmp_path / out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for out in ("whole", "second")
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["level=7"], r"level=7"),
        (["hl=maybe"], r"hl: Value 'maybe' is not a valid bool"),
        (["lvel=3"], r"unknown key 'lvel': did you mean 'level'\?"),
        (["level"], r"'level' is not key=value"),
        (["resume=nowhere.ckpt"], r"resume=nowhere.ckpt: no such file"),
        (["batch_size=0"], r"batch_size=0 must be at least 1"),
        (["batch_size=9", "trainer=ddp"], r"batch_size=9 is the total over devices.*devices=2"),
        (["optim.schedule=linear"], r"optim.schedule=linear is unknown; take step, cosine or constant"),
        (["trainer.accelerator=cuda", "trainer.devices=64", "batch_size=64"], r"trainer.devices=64 .* CUDA devices"),
        (["ema=1.5"], r"ema=1.5 must lie between 0 and 1"),
        (["data=wider_face", "data.root=nowhere"], r"nowhere.*WIDER_train.*data=synthetic"),
        (["loss.weights=[1,2]"], r"2.*3"),
        (["loss.box=iou"], r"loss.box=iou: choose smooth_l1 or giou"),
        (["loss.assignment=atss", "loss.second_stage=true"], r"loss.second_stage=true belongs to loss.assignment=iou"),
        (["cache=tape"], r"cache=tape"),
    ],
)
def test_wrong_input_is_refused_in_one_line_before_anything_is_made(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        train.main(words)
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out=file/run: .*file is not a folder"):
        train.main(["out=file/run"])


def test_the_command_leaves_with_2_and_one_line(tmp_path: Path) -> None:
    done = command("train", "level=7", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ") and "level=7" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_configuration_is_refused(
    run: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run[0])
    with pytest.raises(InputError, match=r"trained with level=2, this run has level=3"):
        train.main(["level=3", *TINY, "resume=run/checkpoints/last.ckpt", "out=other"])
    assert not (run[0] / "other").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "not a readable checkpoint"),
        (b"", "not a readable checkpoint"),
    ],
)
def test_evaluate_refuses_what_is_no_checkpoint(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        evaluate.main([f"checkpoint={path}"])
    with pytest.raises(InputError, match="no checkpoint at"):
        evaluate.main([f"checkpoint={tmp_path / 'none.ckpt'}"])
    with pytest.raises(InputError, match="checkpoint=… must be given"):
        evaluate.main([])


def test_a_checkpoint_with_code_inside_is_never_executed(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    path = tmp_path / "evil.ckpt"
    torch.save({"hyper_parameters": Code()}, path)
    with pytest.raises(InputError, match=r"holds code.*, which was not run"):
        evaluate.main([f"checkpoint={path}"])
    assert not (tmp_path / "executed").exists()


def test_a_wrong_word_of_a_sweep_is_refused_before_the_first_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="hl: Value 'maybe' is not a valid bool"):
        train.main(["-m", "level=1,2", "hl=maybe"])
    with pytest.raises(InputError, match=r"unknown key 'levle': did you mean 'level'\?"):
        train.main(["-m", "levle=1", "hl=true,false"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_else_is_swept_becomes_part_of_the_cells_names(tmp_path: Path) -> None:
    words = ["level=2", "context=false", "optim.lr=0.001,0.002", *TINY, "epochs=1", "evaluate_at_end=false"]
    done = command("train", "-m", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = sorted(path.parents[1].name for path in tmp_path.glob("multirun/*/*/checkpoints/best.ckpt"))
    assert cells == ["level2_hl_optim.lr_0.001_seed0", "level2_hl_optim.lr_0.002_seed0"]
    names = [json.loads(path.read_text())["name"] for path in sorted(tmp_path.glob("multirun/*/*/run.json"))]
    assert names == ["level2_hl_optim.lr_0.001", "level2_hl_optim.lr_0.002"]
