"""Train, evaluate and score as a person does: the real command line, files in the real layout."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import TerminalLog
from fanet_lightning.evaluate import __main__ as evaluate_main
from fanet_lightning.train import __main__ as train

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
    assert columns >= parts | {
        "train/loss",
        "train/grad_norm",
        "train/skipped_steps",
        "train/clipped_share",
        "val/ap_easy",
        "val/ap_hard",
    }
    assert "train/h3/cls" not in columns


def test_scores_say_what_made_them(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    scores = json.loads((run[0] / "run/evaluation/scores.json").read_text())
    assert (scores["benchmark"], scores["protocol"], scores["images"]) == ("synthetic", "original", 3)
    assert scores["made_by"]["detection"] == {"score_floor": 0.01, "top_k": 5000, "nms_iou": 0.3, "keep": 750}
    assert set(scores["ap"]) == {"easy", "medium", "hard"}
    assert scores["made_by"]["checkpoint"].endswith("best.ckpt")
    assert scores["made_by"]["packages"]["torch"]


@pytest.mark.slow
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
        (["hl=maybe"], "hl=maybe"),
        (["lvel=3"], r"unknown key 'lvel': did you mean 'level'\?"),
        (["level"], r"'level' is not key=value"),
        (["resume=nowhere.ckpt"], r"resume=nowhere.ckpt: no such file"),
        (["batch_size=0"], r"batch_size=0: give a whole number of at least 1"),
        (["batch_size=9", "trainer=ddp"], r"batch_size=9 is the total over devices.*devices=2"),
        (["optim.schedule=linear"], "optim.schedule=linear"),
        (["optim.name=adam"], "optim.name=adam"),
        (["optim.lr=0"], "optim.lr=0"),
        (["optim.lr=-1e-3"], "optim.lr=-0.001"),
        (["optim.lr=nan"], "optim.lr=nan"),
        (["optim.lr=inf"], "optim.lr=inf"),
        (["optim.lr=fast"], "optim.lr=fast"),
        (["optim.weight_decay=-1"], "optim.weight_decay=-1"),
        (["optim.warmup_steps=-1"], "optim.warmup_steps=-1"),
        (["optim.final=2"], "optim.final=2"),
        (["optim.decay_all=maybe"], "optim.decay_all=maybe"),
        (["optim=paper", "optim.momentum=1"], r"optim.momentum=1: .*below 1"),
        (["optim=paper", "optim.gamma=0"], r"optim.gamma=0: .*above 0"),
        (["optim=paper", "optim.milestones=[80,100]"], r"optim.milestones=\[80, 100\]: .*below 1"),
        (["optim.backbone_factor=0"], r"optim.backbone_factor=0"),
        (["freeze_epochs=0"], r"freeze_epochs=0"),
        (["freeze_until=conv9"], r"freeze_until=conv9: .*conv1_1, .*conv_fc7"),
        (["gradient_clip=-1"], r"gradient_clip=-1.0: .*above 0 or null"),
        (["gradient_clip=0"], r"gradient_clip=0.0: .*above 0 or null"),
        (["gradient_clip=-1"], "gradient_clip=-1"),
        (["gradient_clip=0"], "gradient_clip=0"),
        (["gradient_clip=nan"], "gradient_clip=nan"),
        (["loss.lambda_cls=-3"], "loss.lambda_cls=-3"),
        (["loss.negatives_per_positive=nan"], "loss.negatives_per_positive=nan"),
        (["loss.weights=[1,1,-1]"], r"loss.weights=\[1, 1, -1\]: "),
        (["loss.weights=[1,1,0]"], r"loss.weights=\[1, 1, 0\]: .*the detector"),
        (["augment.crop=[1.0,0.3]"], r"augment.crop=\[1.0, 0.3\]: "),
        (["augment.flip=-0.5"], "augment.flip=-0.5"),
        (["augment.attempts=1.5"], "augment.attempts=1.5"),
        (["augment.hue=900"], r"augment.hue=900"),
        (["augment.extra=[{_target_: albumentations.GaussNose}]"], "did you mean albumentations.GaussNoise"),
        (["augment.extra=[{_target_: albumentations.GaussNoise, strength: 2}]"], "GaussNoise.*strength"),
        (["stop_after=0"], r"stop_after=0: "),
        (["stop_after=0"], "stop_after=0"),
        (["trainer.limit_train_batches=0"], r"trainer.limit_train_batches=0: "),
        (["trainer.limit_val_batches=0"], r"trainer.limit_val_batches=0: .*whole validation set"),
        (["trainer.max_steps=0"], r"trainer.max_steps=0: "),
        (["trainer.accumulate_grad_batches=0"], r"trainer.accumulate_grad_batches=0: "),
        (["trainer.precision=7"], r"trainer.precision=7"),
        (["trainer.precision=64-true"], r"trainer.precision=64-true"),
        (["trainer.precision=bf16-true"], r"trainer.precision=bf16-true"),
        (["trainer.max_epochs=3"], r"trainer.max_epochs .*give epochs="),
        (["trainer.fast_dev_run=true"], r"trainer.fast_dev_run .*give stop_after=1"),
        (["trainer.callbacks=[a]"], "trainer.callbacks "),
        (["trainer.detect_anomaly=maybe"], r"trainer.detect_anomaly=maybe: give true or false"),
        (["data.train_images=0"], r"data.train_images=0: "),
        (["weights=none.pth", "model.width=1.0"], r"weights=none.pth: no such file"),
        (["trainer.accelerator=cuda", "trainer.devices=64", "batch_size=64"], r"trainer.devices=64 .* CUDA devices"),
        (["ema=1.5"], "ema=1.5"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=0.1"], r"optim.lr=0.0015, this one has optim.lr=0.1; .*init=run/checkpoints/previous.ckpt"),
        (["optim=scratch"], r"optim.name=adamw, this one has optim.name=sgd"),
        (["batch_size=2"], r"batch_size=4, this one has batch_size=2"),
        (["augment=s3fd"], r"augment.crop=\[0.35, 1.0\], this one has augment.crop=\[0.3, 1.0\]"),
        (["data.train_images=7"], r"data.train_images=8, this one has data.train_images=7"),
        (["loss=atss"], r"loss.assignment=iou, this one has loss.assignment=atss"),
        (["ema=null"], r"ema=0.998, this one has ema=null"),
        (["epochs=3"], r"epochs=2, this one has epochs=3"),
        (["level=3"], r"level=2, this one has level=3"),
    ],
)
def test_a_checkpoint_of_other_settings_is_not_gone_on_from(
    run: tuple[Path, subprocess.CompletedProcess[str]], words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run[0])
    with pytest.raises(InputError, match=message):
        train.main(["level=2", *TINY, *words, "resume=run/checkpoints/previous.ckpt", "out=other"])
    if words[0].startswith(("optim", "batch_size", "loss")):  # a checkpoint of earlier versions knows these, too
        checkpoint = torch.load("run/checkpoints/previous.ckpt", weights_only=True)
        del checkpoint["settings"]
        torch.save(checkpoint, "alone.ckpt")
        with pytest.raises(InputError, match=message.split(";")[0]):
            train.main(["level=2", *TINY, *words, "resume=alone.ckpt", "out=other"])
    assert not (run[0] / "other").exists()


def test_where_nothing_is_left_to_train_nothing_is_made(
    run: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run[0])
    before = (run[0] / "run/run.json").read_bytes()
    for words, message in (
        (["resume=run/checkpoints/last.ckpt"], "has epochs=2 behind it, so nothing is left to train"),
        (["resume=run/checkpoints/previous.ckpt", "stop_after=1"], "has stop_after=1 behind it"),
        (["resume=run/checkpoints/last.ckpt", "out=run"], "has epochs=2 behind it"),
        (["resume=run/checkpoints/previous.ckpt", "out=run", "overwrite=true"], "give one of them"),
    ):
        with pytest.raises(InputError, match=message):
            train.main(["level=2", *TINY, "out=other", *words])
    weights = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    torch.save({key: weights[key] for key in ("state_dict", "hyper_parameters")}, "weights.ckpt")
    with pytest.raises(InputError, match=r"it holds weights alone; init=weights.ckpt"):
        train.main(["level=2", *TINY, "out=other", "resume=weights.ckpt"])
    shutil.copytree("run/checkpoints", "bare/checkpoints")
    with pytest.raises(InputError, match=r"bare/checkpoints/last.ckpt is of a run with optim.lr=0.0015"):
        train.main(["level=2", *TINY, "optim.lr=0.1", "resume=auto", "out=bare"])
    assert [path.name for path in Path("bare").iterdir()] == ["checkpoints"]
    assert not (run[0] / "other").exists() and (run[0] / "run/run.json").read_bytes() == before


def test_what_the_terminal_shows_is_in_the_log(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = run
    command_line, *lines = (folder / "run/train.log").read_text().splitlines()
    assert command_line.startswith("$ ") and command_line.endswith(" out=run")
    assert [line for line in lines if line in done.stdout.splitlines()] == done.stdout.splitlines()
    assert set(lines) == {*done.stdout.splitlines(), *done.stderr.splitlines()}


def test_a_progress_bar_leaves_the_log_what_it_leaves_on_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    with TerminalLog() as log:
        print("before")
        log.begin(tmp_path / "train.log")
        for step in range(5000):
            print(f"\r\x1b[2Kstep {step} \x1b[32m━━━━\x1b[0m", end="")
        print("\r\x1b[2Kepoch 1/2")
        print("windows\r")
        print("warning: odd", file=sys.stderr)
        print("\rstep 1", end="")
    assert (tmp_path / "train.log").read_text().splitlines()[1:] == [
        "before", "epoch 1/2", "windows", "warning: odd", "step 1"
    ]  # fmt: skip
    assert terminal.getvalue().count("━━━━") == 5000


def trained(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *words])  # Hydra reads them there
    train.main(list(words))


def test_batches_that_a_step_accumulates_count_for_the_learning_rate_and_clipped_steps_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 images in batches of 2, two a step: two steps at 0.004 · 4 / 12, all over a norm of 0.001."""
    monkeypatch.chdir(tmp_path)
    words = [
        "level=1",
        *TINY,
        "batch_size=2",
        "trainer.accumulate_grad_batches=2",
        "optim=paper",
        "gradient_clip=0.001",
    ]
    trained(monkeypatch, *words, "optim.warmup_steps=0", "epochs=1", "evaluate_at_end=false", "out=run")
    shown = capsys.readouterr().out
    assert "learning rate 0.00133333 (" in shown and "total batch of 4, 2 batches of 2 a step)" in shown
    assert "schedule over 2 steps" in shown
    assert "100% of steps clipped" in shown and shown.count("warning: the gradient of 100% of this epoch's steps") == 1
    with (tmp_path / "run/csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train/clipped_share"]) for row in rows if row["train/clipped_share"]] == [1.0]
    with pytest.raises(InputError, match=r"out=run holds a run already .*finished"):
        train.main([*words, "out=run"])


def test_a_start_that_failed_costs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["level=1", *TINY, "epochs=1", "evaluate_at_end=false", "logger=none", "out=run"]
    with pytest.raises(SystemExit):
        trained(monkeypatch, *words, "trainer.limit_train_batches=0.01")
    assert json.loads(Path("run/run.json").read_text())["state"] == "failed"
    Path("run/notes.txt").write_text("mine")
    trained(monkeypatch, *words, "resume=auto")
    record = json.loads(Path("run/run.json").read_text())
    assert (record["state"], record["train"]["starts"]) == ("finished", 1)
    assert record["settings"]["trainer"]["limit_train_batches"] is None
    assert Path("run/notes.txt").read_text() == "mine"
    log = Path("run/train.log").read_text()
    assert log.count("$ ") == 2 and "limit_train_batches" in log and "epoch 1/1" in log


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
        evaluate_main.main([f"checkpoint={path}"])
    with pytest.raises(InputError, match="no checkpoint at"):
        evaluate_main.main([f"checkpoint={tmp_path / 'none.ckpt'}"])
    with pytest.raises(InputError, match="checkpoint=… must be given"):
        evaluate_main.main([])


def test_a_checkpoint_with_code_inside_is_never_executed(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    path = tmp_path / "evil.ckpt"
    torch.save({"hyper_parameters": Code()}, path)
    with pytest.raises(InputError, match=r"holds code.*, which was not run"):
        evaluate_main.main([f"checkpoint={path}"])
    assert not (tmp_path / "executed").exists()


def test_a_wrong_word_of_a_sweep_is_refused_before_the_first_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="hl=maybe"):
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
