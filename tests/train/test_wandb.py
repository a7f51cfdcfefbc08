"""What reaches Weights & Biases in a whole training that is cut off once, read back from its offline files."""

import contextlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from fanet_lightning.cli.config import compose_config
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import read_record
from fanet_lightning.train.module import FaceDetectionModule
from fanet_lightning.train.run import train
from tests.train.wandb_offline import OfflineRun, finished_runs, offline_runs
from tests.train.wandb_server import no_account

TINY = [
    "level=2", "context=false", "model.width=0.0625", "input_size=64", "batch_size=4", "workers=0",
    "data.train_images=8", "data.val_images=3", "data.root=data", "trainer.accelerator=cpu", "validate_every=1",
    "trainer.log_every_n_steps=1", "optim.warmup_steps=2", "epochs=2", "logger=wandb", "logger.wandb.images=2",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def no_key() -> Iterator[None]:
    with no_account():
        yield


@pytest.fixture(autouse=True)
def own_process_of_wandb() -> Iterator[None]:
    """W&B reads its environment once per process of its own."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, no_key: None) -> tuple[Path, list[OfflineRun], str]:
    """(folder, its offline runs, what the second start printed): one epoch, cut off, and the other."""
    folder = tmp_path_factory.mktemp("trained")
    words = [*TINY, f"out={folder}/run", f"data.root={folder}/data", "group=ablation", "evaluate_at_end=false"]
    printed = io.StringIO()
    train(compose_config("train", [*words, "stop_after=1"]))
    with contextlib.redirect_stdout(printed):
        train(compose_config("train", [*words, "resume=auto"]))
    return folder, finished_runs(folder / "run"), printed.getvalue()


Trained = tuple[Path, list[OfflineRun], str]


def test_a_cell_is_named_grouped_and_configured(trained: Trained) -> None:
    run = trained[1][0]
    assert (run.project, run.group, run.name, run.job_type) == (
        "fanet_lightning", "ablation", "level2_hl_seed0", "train",
    )  # fmt: skip
    switches = {key: run.config[key] for key in ("level", "context", "hl", "seed", "batch_size")}
    assert switches == {"level": 2, "context": False, "hl": True, "seed": 0, "batch_size": 4}
    assert run.config["model"]["name"] == "fanet" and run.config["optim"]["name"] == "adamw"
    assert run.metrics["*"] == "trainer/global_step"


def test_a_run_that_goes_on_is_the_same_run(trained: Trained) -> None:
    folder, runs, printed = trained
    assert len(runs) == 2 and runs[0].identifier == runs[1].identifier
    record = read_record(folder / "run")
    assert record is not None and record.wandb == {
        "id": runs[0].identifier, "project": "fanet_lightning", "mode": "offline", "folder": str(runs[1].folder),
    }  # fmt: skip
    assert [run.exit_code for run in runs] == [0, 0]
    command = next(line for line in printed.splitlines() if line.startswith("W&B: "))
    assert command == f"W&B: send this run with: wandb sync {runs[0].folder} {runs[1].folder}"


def test_every_number_is_there_at_its_step(trained: Trained) -> None:
    first, second = trained[1]
    # Two steps an epoch; the validation comes after the last of them.
    for run, steps in ((first, [0, 1]), (second, [2, 3])):
        for name in ("loss", "h1/cls", "h1/box", "h2/cls", "h2/box", "grad_norm", "images_per_second", "skipped_steps"):
            assert [step for step, _ in run.series(f"train/{name}")] == steps, name
        assert [step for step, _ in run.series("lr-AdamW/pg1")] == steps
        for setting in ("easy", "medium", "hard"):
            ((step, ap),) = run.series(f"val/ap_{setting}")
            assert step == steps[-1] and 0 <= ap <= 1
    assert not first.series("train/h3/cls")


def test_numbers_agree_with_the_csv_file(trained: Trained) -> None:
    import csv

    with (trained[0] / "run/csv/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/ap_hard", "lr-AdamW/pg2"):
        expected = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        found = [pair for run in trained[1] for pair in run.series(name)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def test_the_summary_says_what_the_model_costs(trained: Trained) -> None:
    folder, runs, _ = trained
    record = read_record(folder / "run")
    assert record is not None
    for run in runs:
        assert run.summary["model/parameters"] == record.model["parameters"] > 100_000
        assert run.summary["model/flops_640x480"] == record.model["flops_640x480"] > 1e8


def test_curves_and_images_stand_at_the_step_of_their_validation(trained: Trained) -> None:
    for run, last_step in zip(trained[1], (1, 3), strict=True):
        ((step, path),) = run.series("val/pr_curves_table/path")
        assert step == last_step
        table = json.loads((run.folder / "files" / path).read_text())
        assert table["columns"] == ["step", "lineKey", "lineVal"]
        assert {row[1] for row in table["data"]} <= {"easy", "medium", "hard"}
        for number in (0, 1):
            ((step, image),) = run.series(f"images/{number}/path")
            assert step == last_step
            assert (run.folder / "files" / image).is_file()
            boxes = run.series(f"images/{number}/boxes/ground_truth/path")
            assert json.loads((run.folder / "files" / boxes[0][1]).read_text())["box_data"]


def test_the_images_are_the_same_in_every_validation(trained: Trained) -> None:
    for number in (0, 1):
        captions, digests = [
            [value for run in trained[1] for _, value in run.series(f"images/{number}/{what}")]
            for what in ("caption", "sha256")
        ]
        assert len(captions) == 2 and captions[0] == captions[1]
        assert digests[0] == digests[1]


def test_a_training_that_raises_ends_its_run_and_the_next_one_is_new(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained[0] / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    step = FaceDetectionModule.training_step

    def failing(module: FaceDetectionModule, batch: Any, index: int) -> Any:
        if module.global_step == 1:
            raise RuntimeError("the card is gone")
        return step(module, batch, index)

    words = [*TINY, "evaluate_at_end=false", "epochs=1"]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the card is gone"):
        patch.setattr(FaceDetectionModule, "training_step", failing)
        train(compose_config("train", [*words, "out=failed"]))
    assert wandb.run is None
    train(compose_config("train", [*words, "out=well", "seed=1"]))
    (failed,), (well,) = finished_runs(tmp_path / "failed"), finished_runs(tmp_path / "well")
    assert (failed.exit_code, well.exit_code) == (1, 0)
    assert failed.identifier != well.identifier and well.name == "level2_hl_seed1"
    assert [s for s, _ in failed.series("train/loss")] == [0]
    assert capsys.readouterr().out.count("send this run with: wandb sync") == 2


# The workspace


def workspace_script() -> Any:
    path = Path(__file__).resolve().parents[2] / "scripts/wandb_workspace.py"
    spec = importlib.util.spec_from_file_location("wandb_workspace", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_panel_of_the_workspace_shows_something_that_runs_log(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert workspace_script().main(["--dry-run", "--levels", "2", "--images", "2", "--project", "mine"]) == 0
    spec = json.loads(capsys.readouterr().out)
    run = trained[1][1]
    history = {key for row in run.history for key in row}
    panels = [panel for section in spec["sections"] for panel in section["panels"]]
    for panel in panels:
        if panel["kind"] == "line":
            assert set(panel.get("y", [])) <= history, panel
            assert "y_regex" not in panel or any(re.match(panel["y_regex"], key) for key in history)
        elif panel["kind"] == "bar":
            assert set(panel["metrics"]) <= run.summary.keys()
        elif panel["kind"] == "scatter":
            assert {panel["x"], panel["y"]} <= run.summary.keys()
        elif panel["kind"] == "curves":
            assert f"{panel['table']}/path" in history
        else:
            assert {f"{key}/path" for key in panel["keys"]} <= history
    assert {panel["kind"] for panel in panels} == {"line", "bar", "scatter", "curves", "images"}
    for column in spec["columns"]:
        where, key = column.split(":")
        assert key.split(".")[0] in (run.config if where == "config" else run.summary)
    assert (spec["project"], spec["x_axis"], spec["group_by"]) == (
        "mine",
        "trainer/global_step",
        ["Group", "config:name"],
    )


def test_the_workspace_without_its_package_or_a_key_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    script = workspace_script()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb_workspaces", None)
        with pytest.raises(
            InputError, match=r"wandb-workspaces is needed .*pip install 'fanet-lightning\[dashboards\]'"
        ):
            script.main([])
    monkeypatch.setattr(script, "workspace", lambda *_, **__: None)
    with pytest.raises(InputError, match="no W&B key is set up: set WANDB_API_KEY or run wandb login"):
        script.main([])


def test_the_workspace_is_one_that_wandb_takes() -> None:
    pytest.importorskip("wandb_workspaces")
    script = workspace_script()
    spec = script.specification("mine", "Ablation", levels=3, images=8)
    built = script.workspace(spec, "me")
    written = json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    sections = written["section"]["panelBankConfig"]["sections"]
    assert [(section["name"], len(section["panels"])) for section in sections] == [
        (section["name"], len(section["panels"])) for section in spec["sections"]
    ]
    assert sections[0]["panels"][0]["config"]["xAxis"] == "trainer/global_step"


@pytest.mark.slow
def test_two_ranks_are_one_run(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "data", tmp_path / "data")
    words = [*TINY, "out=run", "evaluate_at_end=false", "epochs=1", "trainer=ddp", "trainer.devices=2"]
    done = subprocess.run(
        [sys.executable, "-m", "fanet_lightning.train", *words],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = offline_runs(tmp_path / "run")
    assert [step for step, _ in run.series("train/loss")] == [0, 1]
    assert run.series("val/images") == [(1, 3)] and run.exit_code == 0
