"""Train, evaluate and score as a person does: the real command line, files in the real layout."""

import csv
import io
import json
import re
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
from fanet_lightning.train.module import FaceDetectionModule
from tests.train.helpers import TINY, column, command, trained

Run = tuple[Path, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One training run from an empty directory: (that directory, what the command printed)."""
    folder = tmp_path_factory.mktemp("run")
    done = command("train", "level=2", "hl=true", *TINY, "out=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_run_prints_its_epochs_its_table_and_where_everything_is(run: Run) -> None:
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
    with (folder / "run/csv/metrics.csv").open() as file:
        columns = set(csv.DictReader(file).fieldnames or [])
    parts = {f"train/h{hierarchy}/{part}" for hierarchy in (1, 2) for part in ("cls", "box")}
    others = {"train/loss", "train/grad_norm", "train/skipped_steps", "train/clipped_share", "val/ap_easy"}
    assert columns >= parts | others and "train/h3/cls" not in columns
    scores = json.loads((folder / "run/evaluation/scores.json").read_text())
    assert (scores["benchmark"], scores["protocol"], scores["images"]) == ("synthetic", "original", 3)
    assert scores["made_by"]["detection"] == {"score_floor": 0.01, "top_k": 5000, "nms_iou": 0.3, "keep": 750}
    assert set(scores["ap"]) == {"easy", "medium", "hard"} and scores["made_by"]["packages"]["torch"]
    # Plain data, which say how the network is built.
    checkpoint = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    network = checkpoint["hyper_parameters"]["network"]
    assert (network["name"], network["level"], network["hl"], network["width"]) == ("fanet", 2, True, 0.0625)
    assert network["normaliser"] == "imagenet"


@pytest.mark.slow
def test_evaluate_and_score_agree_to_the_last_digit(run: Run) -> None:
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


# Refused with the word itself.
WRONG = """
level=7 batch_size=0 optim.schedule=linear optim.name=adam optim.lr=0
optim.lr=inf optim.weight_decay=-1 optim.warmup_steps=-1 optim.final=2 optim.decay_all=maybe
optim.backbone_factor=0 freeze_epochs=0 freeze_until=conv9 gradient_clip=-1.0 gradient_clip=0.0 gradient_clip=nan
loss.lambda_cls=-3 loss.box=iou loss.negatives_per_positive=nan augment.flip=-0.5 augment.attempts=1.5 augment.hue=900
stop_after=0 checkpoint_every=0 trainer.limit_train_batches=0 trainer.limit_val_batches=0 trainer.max_steps=0
trainer.accumulate_grad_batches=0 trainer.precision=7 trainer.precision=64-true trainer.precision=bf16-true
trainer.limit_train_batches=0.01 trainer.accumulate_grad_batches=null trainer.check_val_every_n_epoch=null
data.train_images=0 ema=1.5 cache=tape
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(([word], re.escape(word)) for word in WRONG.split()),
        (["batch_size=9", "trainer=ddp"], "batch_size=9 .*devices=2"),
        (["optim=paper", "optim.momentum=1"], "optim.momentum=1"),
        (["optim=paper", "optim.gamma=0"], "optim.gamma=0"),
        (["optim=paper", "optim.milestones=[80,100]"], r"optim.milestones=\[80, 100\]"),
        (["loss.weights=[1,1,-1]"], r"loss.weights=\[1, 1, -1\]: "),
        (["loss.weights=[1,2]"], r"2.*3"),
        (["loss.assignment=atss", "loss.second_stage=true"], "loss.second_stage=true"),
        (["augment.crop=[1.0,0.3]"], r"augment.crop=\[1.0, 0.3\]: "),
        (["augment.extra=[{_target_: albumentations.GaussNose}]"], "augment.extra.*GaussNose"),
        (["augment.extra=[{_target_: albumentations.GaussNoise, strength: 2}]"], "GaussNoise.*strength"),
        (["trainer.max_epochs=3"], "trainer: .*max_epochs"),
        (["trainer.accelerator=cuda", "trainer.devices=64", "batch_size=64"], "trainer: "),
        (["weights=none.pth"], "none.pth: not a readable"),
        (["data=wider_face", "data.root=nowhere"], "nowhere.*WIDER_train.*data=synthetic"),
        (["out=/proc/nix"], "out=/proc/nix: cannot write in /proc"),
        (["also_protocols=[short641]"], "short641: .*short640"),
        *((["resume=auto", *more], "resume=auto .*out=DIR") for more in ([], ["hydra.run.dir=here"])),
        (["-m", "level=1,2", "out=here"], "out=here: .* sweep=DIR"),
        (["-m", "level=1,2", "resume=some.ckpt"], "resume=some.ckpt: "),
        (["-m", "level=1,2", "overwrite=true"], "overwrite=true: .*sweep=DIR"),
        (["-m", "level=1,2", "trainer=ddp", "trainer.num_nodes=2"], "trainer.num_nodes"),
        (["experiment=ablation", "seeds=0"], "seeds=0: "),
        *(([f"{key}=nowhere.ckpt"], "nowhere.ckpt") for key in ("init", "resume")),
        (["init=fanet_light"], "init=fanet_light.* model.*=.* give "),
        (["init=fanet_light", "model=fanet_light", "level=2"], "model.level=3.* 2; .*init_part=trunk"),
        (["init=fanet_light", "init_part=trunk"], "model.backbone=light.* vgg; .*model=fanet_light"),
        (["init=fanet_light", "init_part=trnk", "model=fanet_light"], "init_part=trnk.*trunk"),
        (["init_part=trunk"], "init_part=trunk.*init=MODEL"),
        (["init=fanet_light", "model=fanet_light", "weights=imagenet"], "init.*weights"),
    ],
)
def test_wrong_input_is_refused_in_one_line_before_anything_is_made(
    words: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train.main(words)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    if words == ["out=/proc/nix"]:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"out=file/run: .*file \(Not a directory\)"):
            train.main(["out=file/run"])


def test_the_command_leaves_with_2_and_one_line(tmp_path: Path) -> None:
    done = command("train", "level=7", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
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
        (["callbacks=swa"], r"callbacks.ema.decay=0.998, this one has callbacks.ema.decay=null"),
        (["debug=limit"], r"callbacks.few_images.take=null, this one has callbacks.few_images.take=0.1"),
        (["epochs=3"], r"epochs=2, this one has epochs=3"),
        (["level=3"], r"level=2, this one has level=3"),
    ],
)
def test_a_checkpoint_of_other_settings_is_not_resumed(
    run: Run, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run[0])
    with pytest.raises(InputError, match=message):
        train.main(["level=2", *TINY, *words, "resume=run/checkpoints/previous.ckpt", "out=other"])
    assert not (run[0] / "other").exists()


def test_what_cannot_be_resumed_is_left_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run[0])
    before = (run[0] / "run/run.json").read_bytes()
    with pytest.raises(InputError, match="give one of them"):
        train.main(["level=2", *TINY, "resume=run/checkpoints/previous.ckpt", "out=run", "overwrite=true"])
    weights = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    torch.save({key: weights[key] for key in ("state_dict", "hyper_parameters")}, "weights.ckpt")
    with pytest.raises(InputError, match=r"it holds weights alone; init=weights.ckpt"):
        train.main(["level=2", *TINY, "out=other", "resume=weights.ckpt"])
    shutil.copytree("run/checkpoints", "bare/checkpoints")
    with pytest.raises(InputError, match=r"bare/checkpoints/last.ckpt is of a run with optim.lr=0.0015"):
        train.main(["level=2", *TINY, "optim.lr=0.1", "resume=auto", "out=bare"])
    assert [path.name for path in Path("bare").iterdir()] == ["checkpoints"]
    assert not (run[0] / "other").exists() and (run[0] / "run/run.json").read_bytes() == before


def test_what_the_terminal_shows_is_in_the_log(run: Run) -> None:
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


def test_batches_that_a_step_accumulates_count_for_the_learning_rate_and_clipped_steps_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """8 images in batches of 2, two a step: two steps at 0.004 · 4 / 12, all over a norm of 0.001."""
    words = ["level=1", *TINY, "batch_size=2", "trainer.accumulate_grad_batches=2", "optim=paper"]
    words += ["gradient_clip=0.001"]
    trained(*words, "optim.warmup_steps=0", "epochs=1", "validate_every=2", "evaluate_at_end=false", "out=run")
    shown = capsys.readouterr().out
    said = ("learning rate 0.00133333 (", "total batch of 4)", "schedule over 2 steps", "100% of steps clipped")
    assert all(text in shown for text in said) and column("run", "val/images") == [3.0]
    assert column("run", "train/clipped_share") == [1.0]
    with pytest.raises(InputError, match=r"out=run holds a run already .*finished"):
        train.main([*words, "out=run"])


def test_a_start_that_failed_costs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["level=1", *TINY, "epochs=1", "evaluate_at_end=false", "logger=none", "out=run"]

    def failing(module: FaceDetectionModule) -> None:
        raise InputError("no optimizer today")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(FaceDetectionModule, "configure_optimizers", failing)
        trained(*words, "optim.lr=0.1")
    assert json.loads(Path("run/run.json").read_text())["state"] == "failed"
    Path("run/notes.txt").write_text("mine")
    trained(*words, "resume=auto")
    record = json.loads(Path("run/run.json").read_text())
    assert (record["state"], record["train"]["starts"]) == ("finished", 1)
    assert record["settings"]["optim"]["lr"] != 0.1 and Path("run/notes.txt").read_text() == "mine"
    log = Path("run/train.log").read_text()
    assert log.count("$ ") == 2 and "no optimizer today" in log and "epoch 1/1" in log


def test_evaluate_refuses_what_is_no_checkpoint_and_runs_no_code_in_one(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    path = tmp_path / "some.ckpt"
    path.write_bytes(b"not a checkpoint")
    torch.save({"hyper_parameters": Code()}, tmp_path / "evil.ckpt")
    for words, message in (
        ([f"checkpoint={path}"], "not a readable checkpoint"),
        ([f"checkpoint={tmp_path / 'none.ckpt'}"], "no checkpoint at"),
        ([f"checkpoint={tmp_path / 'evil.ckpt'}"], "was not run"),
        ([], "checkpoint=… must be given"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_main.main(words)
    assert not (tmp_path / "executed").exists()
