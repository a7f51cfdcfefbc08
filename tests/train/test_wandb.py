"""Weights & Biases: what reaches it in a whole training, and that nothing wrong with it ends or holds up a run."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
import wandb

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import read_record
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.curves import THRESHOLDS, Curve
from fanet_lightning.train import workspace
from fanet_lightning.train.loggers import (
    CURVE_POINTS,
    WandbRun,
    WandbValidation,
    build_loggers,
    curves_chart,
    resolve_mode,
    spread,
)
from fanet_lightning.train.module import FaceDetectionModule
from tests.train.helpers import composed
from tests.train.wandb_files import OfflineRun, finished_runs, no_account, useless_server

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
    composed(*words, "stop_after=1")
    with contextlib.redirect_stdout(printed):
        composed(*words, "resume=auto")
    return folder, finished_runs(folder / "run"), printed.getvalue()


Trained = tuple[Path, list[OfflineRun], str]


def test_a_run_that_is_resumed_is_one_run_with_its_name_group_and_configuration(trained: Trained) -> None:
    folder, runs, printed = trained
    record = read_record(folder / "run")
    assert record is not None and len(runs) == 2
    for run in runs:
        assert (run.project, run.group, run.name, run.job_type, run.exit_code) == (
            "fanet_lightning", "ablation", "level2_hl_seed0", "train", 0,
        )  # fmt: skip
        switches = {key: run.config[key] for key in ("level", "context", "hl", "seed", "batch_size")}
        assert switches == {"level": 2, "context": False, "hl": True, "seed": 0, "batch_size": 4}
        assert run.config["optim"]["name"] == "adamw" and run.metrics["*"] == "trainer/global_step"
        assert run.summary["model/parameters"] == record.model["parameters"] > 100_000
        assert run.summary["model/flops_640x480"] == record.model["flops_640x480"] > 1e8
        assert run.identifier == runs[0].identifier
    assert record.wandb == {
        "id": runs[0].identifier, "project": "fanet_lightning", "mode": "offline", "folder": str(runs[1].folder),
    }  # fmt: skip
    command = next(line for line in printed.splitlines() if line.startswith("W&B: "))
    assert command == f"W&B: send this run with: wandb sync {runs[0].folder} {runs[1].folder}"


def test_every_number_is_there_at_its_step_as_in_the_csv_file(trained: Trained) -> None:
    # Two steps an epoch; the validation comes after the last of them.
    for run, steps in zip(trained[1], ([0, 1], [2, 3]), strict=True):
        for name in ("loss", "h1/cls", "h1/box", "h2/cls", "h2/box", "grad_norm", "images_per_second", "skipped_steps"):
            assert [step for step, _ in run.series(f"train/{name}")] == steps, name
        for setting in ("easy", "medium", "hard"):
            ((step, ap),) = run.series(f"val/ap_{setting}")
            assert step == steps[-1] and 0 <= ap <= 1
        assert not run.series("train/h3/cls")
    with (trained[0] / "run/csv/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/ap_hard", "lr-AdamW/pg2"):
        expected = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        found = [pair for run in trained[1] for pair in run.series(name)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def test_curves_and_the_same_images_are_at_the_step_of_their_validation(trained: Trained) -> None:
    for run, last_step in zip(trained[1], (1, 3), strict=True):
        ((step, path),) = run.series("val/pr_curves_table/path")
        assert step == last_step
        table = json.loads((run.folder / "files" / path).read_text())
        assert table["columns"] == ["step", "lineKey", "lineVal"]
        assert {row[1] for row in table["data"]} <= {"easy", "medium", "hard"}
        for number in (0, 1):
            ((step, image),) = run.series(f"images/{number}/path")
            assert step == last_step and (run.folder / "files" / image).is_file()
            boxes = run.series(f"images/{number}/boxes/ground_truth/path")
            assert json.loads((run.folder / "files" / boxes[0][1]).read_text())["box_data"]
    for key in (f"images/{number}/{what}" for number in (0, 1) for what in ("caption", "sha256")):
        values = [value for run in trained[1] for _, value in run.series(key)]
        assert len(values) == 2 and values[0] == values[1]


def test_a_training_that_raises_ends_its_run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained[0] / "data", tmp_path / "data")
    step = FaceDetectionModule.training_step

    def failing(module: FaceDetectionModule, batch: Any, index: int) -> Any:
        if module.global_step == 1:
            raise RuntimeError("the card is gone")
        return step(module, batch, index)

    words = [*TINY, "evaluate_at_end=false", "epochs=1"]
    monkeypatch.setattr(FaceDetectionModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="the card is gone"):
        composed(*words, "out=failed")
    (failed,) = finished_runs(tmp_path / "failed")
    assert wandb.run is None and failed.exit_code == 1
    assert [s for s, _ in failed.series("train/loss")] == [0]
    assert capsys.readouterr().out.count("send this run with: wandb sync") == 1


SETTINGS = {
    "project": "tests", "entity": None, "mode": "auto", "tags": ["quick"], "images": 2, "init_timeout": 2,
    "finish_timeout": 5,
}  # fmt: skip
WELL_FORMED_KEY = "a" * 40


def build(out: Path, earlier: dict[str, str] | None = None, **settings: Any) -> WandbRun:
    options = {"logger": {"wandb": {**SETTINGS, **settings}}, "group": "sweep", "name": "variant", "seed": 3}
    _, run = build_loggers(options, out, wandb_run=earlier)
    assert run is not None
    return run


@pytest.mark.parametrize(("answer", "key"), [("closed", "nonsense"), ("silent", WELL_FORMED_KEY)])
def test_what_cannot_go_online_continues_offline_and_says_so_in_one_line(
    answer: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    with useless_server(answer) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        # A busy machine may need its time to end a run offline; that is not what is asked here.
        run = build(tmp_path, {"id": "earlier1"}, finish_timeout=60)
        run.log_metrics({"loss": 2.5}, 7)
        run.finish(0)
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1, printed.err
    line = printed.err.rstrip("\n")
    assert line.startswith("warning: W&B cannot go online (") and "offline. Check WANDB_API_KEY" in line
    (kept,) = finished_runs(tmp_path)
    assert (kept.series("loss"), kept.exit_code) == ([(7, 2.5)], 0)
    assert printed.out == f"W&B: send this run with: wandb sync {kept.folder}\n"


def test_a_run_with_a_key_is_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Mock(
        spec_set=wandb.Run, id="abc", project="tests", dir=f"{tmp_path}/files", offline=False, url="http://x/abc"
    )
    monkeypatch.setenv("WANDB_API_KEY", WELL_FORMED_KEY)
    inputs: list[str] = []
    init = Mock(side_effect=lambda **_: inputs.append(sys.stdin.name) or run)
    monkeypatch.setattr(wandb, "init", init)
    built = build(tmp_path)
    built.log_metrics({"loss": 0.5}, 7)
    built.finish(0)
    assert built.record["mode"] == "online" and inputs == [os.devnull]  # so that nothing can ask
    asked = init.call_args.kwargs
    assert {key: asked[key] for key in ("mode", "group", "name")} == {
        "mode": "online", "group": "sweep", "name": "variant_seed3",
    }  # fmt: skip
    run.log.assert_called_once_with({"loss": 0.5, "trainer/global_step": 7})
    run.finish.assert_called_once_with(exit_code=0)
    assert capsys.readouterr() == ("W&B: http://x/abc\n", "")


def test_a_training_outlives_what_fails_inside_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(tmp_path)

    def broken(*_: Any) -> None:
        raise BrokenPipeError("the service has gone")

    monkeypatch.setattr(built._run, "log", broken)
    for step in range(3):
        built.log_metrics({"loss": 1.0}, step)
    built.describe({"x": 1})
    built.finish(0)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: W&B has failed (the service has gone)") and "wandb sync" in printed.out
    build(tmp_path / "second").finish(0)
    assert [run.exit_code for run in finished_runs(tmp_path / "second")] == [0]


def test_a_training_outlives_an_image_that_has_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = build(tmp_path)
    logged(ImageRecord("a", Path("not/there.jpg")), {}, 1, built)
    assert built.is_lost and capsys.readouterr().err.startswith("warning: W&B has failed (")
    built.finish(0)


def test_auto_is_online_exactly_where_a_key_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [resolve_mode(mode) for mode in ("online", "offline", "disabled")] == ["online", "offline", "disabled"]
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    assert resolve_mode("auto") == "offline"
    for host, mode in (("example.org", "offline"), ("127.0.0.1", "online"), ("{", "offline")):
        netrc.write_text(f"machine {host} login user password {WELL_FORMED_KEY}\n")
        assert resolve_mode("auto") == mode
    monkeypatch.setenv("WANDB_API_KEY", WELL_FORMED_KEY)
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("online") == "online"
    options = {"logger": {"wandb": {**SETTINGS, "mode": "auto"}}}
    assert build_loggers(options, tmp_path / "none") == ([], None) and not (tmp_path / "none").exists()


def test_every_panel_of_the_workspace_shows_something_that_runs_log(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert workspace.main(["dry_run=true", "levels=2", "images=2"]) == 0
    panels = [panel for section in json.loads(capsys.readouterr().out).values() for panel in section]
    run = trained[1][1]
    history = {key for row in run.history for key in row}
    for kind, panel in panels:
        if kind == "LinePlot":
            assert set(panel["y"]) <= history and panel["x"] == "trainer/global_step", panel
            assert "metric_regex" not in panel or any(re.match(panel["metric_regex"], key) for key in history)
        elif kind == "BarPlot":
            assert set(panel["metrics"]) <= run.summary.keys()
        elif kind == "ScatterPlot":
            assert {panel["x"], panel["y"]} <= run.summary.keys()
        elif kind == "CustomChart":
            assert f"{panel['query']['summaryTable']['tableKey']}/path" in history
        else:
            assert {f"{key}/path" for key in panel["media_keys"]} <= history
    assert len({kind for kind, _ in panels}) == 5
    for column in workspace.COLUMNS:
        where, key = column.split(":")
        assert key.split(".")[0] in (run.config if where == "config" else run.summary)


def test_the_workspace_without_its_package_or_a_key_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"wandb-workspaces .*\[dashboards\]"):
        patch.setitem(sys.modules, "wandb_workspaces", None)
        workspace.main([])
    monkeypatch.setattr(workspace, "workspace", lambda *_: None)
    with pytest.raises(InputError, match="WANDB_API_KEY"):
        workspace.main([])


def test_the_workspace_is_one_that_wandb_takes() -> None:
    pytest.importorskip("wandb_workspaces")
    panels = workspace.sections(levels=3, images=8)
    built = workspace.workspace("mine", "Ablation", "me", panels)
    written = json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    sections = written["section"]["panelBankConfig"]["sections"]
    assert [len(section["panels"]) for section in sections] == [len(several) for several in panels.values()]


def logged(record: ImageRecord, detections: dict[str, Detections], images: int, run: Any = None) -> Any:
    """The row of one validation, unless a run is given that takes it."""
    stage: Any = SimpleNamespace(
        sanity_checking=False, is_global_zero=True, global_step=40, curves={}, detections=detections,
        datamodule=SimpleNamespace(val_records=[record]),
    )  # fmt: skip
    rows: list[Any] = []
    WandbValidation(run or SimpleNamespace(log=lambda row: rows.append(row())), images).on_validation_end(stage, stage)
    return rows[0] if rows else None


def test_boxes_are_scaled_with_their_image_and_weak_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full((512, 1024, 3), (0, 0, 255), np.uint8))  # red, as OpenCV's BGR
    record = ImageRecord("event/image", path, np.array([[100, 50, 300, 150]], np.float32))
    found = Detections(
        torch.tensor([[120.0, 60, 310, 170], [0, 0, 10, 10], [4, 4, 8, 8]]), torch.tensor([0.9, 0.3, 0.29])
    )
    assert logged(ImageRecord("a", Path("not/there.jpg")), {}, 0) == {"trainer/global_step": 39}
    image = logged(record, {"event/image": found}, 4)["images/0"]
    assert image.image.size == (512, 256)
    assert image.image.getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=3)  # JPEG
    boxes = {name: layer._val for name, layer in image._boxes.items()}
    assert boxes["ground_truth"] == [
        {"position": {"minX": 50, "minY": 25, "maxX": 150, "maxY": 75}, "domain": "pixel", "class_id": 0}
    ]
    assert [box["position"] for box in boxes["predictions"]] == [
        {"minX": 60, "minY": 30, "maxX": 155, "maxY": 85},
        {"minX": 0, "minY": 0, "maxX": 5, "maxY": 5},
    ]
    assert [box["box_caption"] for box in boxes["predictions"]] == ["0.90", "0.30"]


def test_images_are_spread_evenly_from_the_first_to_the_last() -> None:
    found = [spread(*given) for given in ((10, 4), (3, 8), (5, 1), (5, 0), (0, 3))]
    assert found == [[0, 3, 6, 9], [0, 1, 2], [0], [], []]


def test_a_chart_has_few_points_of_each_curve() -> None:
    fine = np.linspace(1e-3, 1, 1000)
    nothing = Curve(np.zeros(1000), np.zeros(1000), THRESHOLDS, 0.0, 8)
    many = Curve(1 - fine / 2, fine, THRESHOLDS, 0.75, 8)
    rows = curves_chart({"nothing": nothing, "many": many}).table.data
    points = [(x, y) for x, name, y in rows if name == "many"]
    assert len(rows) == len(points) == CURVE_POINTS
    assert points[0] == (fine[0], 1 - fine[0] / 2) and points[-1] == (1.0, 0.5)
    assert points == sorted(points)
