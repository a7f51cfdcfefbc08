"""What reaches Weights & Biases, read back from its offline files; and that nothing it does ends or blocks a training."""

import http.server
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import wandb
from wandb_offline import OfflineRun, offline_runs, read_run

from fanet_lightning.config import compose_config
from fanet_lightning.dashboard import CURVE_POINTS, WandbValidation, curves_chart, spread
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.loggers import Loggers, build_loggers
from fanet_lightning.module import FaceDetectionModule
from fanet_lightning.run_record import read_record
from fanet_lightning.scoring.curves import THRESHOLDS, Curve
from fanet_lightning.structures import Detections
from fanet_lightning.training import train
from fanet_lightning.wandb_run import resolve_mode

TINY = [
    "level=2", "context=false", "model.width=0.0625", "input_size=64", "batch_size=4", "workers=0",
    "data.train_images=8", "data.val_images=3", "data.root=data", "trainer.accelerator=cpu", "validate_every=1",
    "trainer.log_every_n_steps=1", "optim.warmup_steps=2", "epochs=2", "logger=wandb", "logger.wandb.images=2",
]  # fmt: skip
SETTINGS = {
    "project": "tests", "entity": None, "mode": "auto", "tags": ["quick"], "images": 2, "init_timeout": 2,
    "finish_timeout": 5,
}  # fmt: skip
WELL_FORMED_KEY = "a" * 40


@pytest.fixture(autouse=True, scope="module")
def no_key() -> Iterator[pytest.MonkeyPatch]:
    """No key of the person who runs the tests, and no server of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_PROJECT", "WANDB_RUN_GROUP"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("NETRC", os.devnull)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield patch


@pytest.fixture(autouse=True)
def own_process_of_wandb() -> Iterator[None]:
    """W&B reads its environment once per process of its own."""
    wandb.teardown()
    yield
    wandb.teardown()


def build(out: Path, **settings: Any) -> Loggers:
    options = {"logger": {"wandb": {**SETTINGS, **settings}}, "group": "sweep", "name": "cell", "seed": 3}
    return build_loggers(options, out)


# A whole training in two starts


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, no_key: pytest.MonkeyPatch) -> tuple[Path, list[OfflineRun], str]:
    """(folder, its offline runs, what the second start printed): one epoch, cut off, and the other."""
    folder = tmp_path_factory.mktemp("trained")
    words = [*TINY, f"out={folder}/run", f"data.root={folder}/data", "group=ablation", "evaluate_at_end=false"]
    train(compose_config("config", [*words, "stop_after=1"]))
    done = subprocess.run(
        [sys.executable, "-m", "fanet_lightning.train", *words, "resume=auto"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, offline_runs(folder / "run"), done.stdout


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
        assert [pair for run in trained[1] for pair in run.series(name)] == pytest.approx(expected)


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


# Failures


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
        train(compose_config("config", [*words, "out=failed"]))
    assert wandb.run is None
    train(compose_config("config", [*words, "out=well", "seed=1"]))
    (failed,), (well,) = offline_runs(tmp_path / "failed"), offline_runs(tmp_path / "well")
    assert (failed.exit_code, well.exit_code) == (1, 0)
    assert failed.identifier != well.identifier and well.name == "level2_hl_seed1"
    assert [s for s, _ in failed.series("train/loss")] == [0]
    assert capsys.readouterr().out.count("send this run with: wandb sync") == 2


@contextmanager
def server(answer: str) -> Iterator[str]:
    """A server that refuses every key (``401``), one that says nothing (``silent``), or none at all (``closed``)."""
    if answer == "closed":
        yield "http://127.0.0.1:9"
    elif answer == "silent":
        with socket.create_server(("127.0.0.1", 0)) as listening:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    else:

        class Refusing(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_error(401)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None: ...

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing:
            threading.Thread(target=refusing.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{refusing.server_port}"
            refusing.shutdown()


@pytest.mark.parametrize(
    ("answer", "key"),
    [("closed", "nonsense"), ("closed", WELL_FORMED_KEY), ("silent", WELL_FORMED_KEY), ("401", WELL_FORMED_KEY)],
)
def test_what_cannot_go_online_goes_on_offline_and_says_so_in_one_line(
    answer: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    options = {"logger": {"wandb": SETTINGS}, "group": None, "name": "cell", "seed": 3}
    with server(answer) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        # The run of an earlier start: the attempt that failed must not keep its id from the one that goes on.
        built = build_loggers(options, tmp_path, resumed_step=7, wandb_run={"id": "earlier1"})
        built.loggers[0].log_metrics({"loss": 2.5}, 7)
        built.finish(0)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: W&B cannot go online (") and "goes on offline. Check WANDB_API_KEY" in line
    (run,) = offline_runs(tmp_path)
    assert (run.identifier, run.series("loss"), run.exit_code) == ("earlier1", [(7, 2.5)], 0)
    assert printed.out == f"W&B: send this run with: wandb sync {run.folder}\n"
    assert not list(tmp_path.glob("wandb/run-*"))


def test_online_without_a_key_does_not_ask_even_on_a_terminal(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from fanet_lightning.loggers import build_loggers\n"
        f"settings = {({**SETTINGS, 'mode': 'online'})!r}\n"
        "options = {'logger': {'wandb': settings}, 'group': None, 'name': 'cell', 'seed': 0}\n"
        "build_loggers(options, Path('run')).finish(0)\n"
    )
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, timeout=60
        )
        shown = os.read(controller, 100_000).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    assert done.returncode == 0
    assert "warning: W&B cannot go online (No API key configured" in shown
    assert "Enter your choice" not in shown
    assert len(offline_runs(tmp_path / "run")) == 1


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="needs Linux's /proc")
def test_a_training_outlives_the_process_of_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = build(tmp_path / "first")
    (logger,) = built.loggers
    logger.log_metrics({"loss": 1.0}, 0)
    own = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"wandb-core" in (words := _read(path).split(b"\0"))[0] and str(os.getpid()).encode() in words
    ]
    assert len(own) == 1
    os.kill(own[0], signal.SIGKILL)
    for step in range(1, 50):
        logger.log_metrics({"loss": 1.0}, step)
    built.describe({"x": 1})
    built.finish(0)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: W&B has failed (") and line.endswith("; the run goes on without it")
    assert "wandb sync" in printed.out
    again = build(tmp_path / "second")
    again.finish(0)
    assert [run.exit_code for run in offline_runs(tmp_path / "second")] == [0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended in the meantime
        return b""


# Modes


def test_auto_is_online_exactly_where_a_key_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_mode("auto") == "offline"
    assert [resolve_mode(mode) for mode in ("online", "offline", "disabled")] == ["online", "offline", "disabled"]
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    assert resolve_mode("auto") == "offline"
    netrc.write_text(f"machine example.org login user password {WELL_FORMED_KEY}\n")
    assert resolve_mode("auto") == "offline"
    netrc.write_text(f"machine 127.0.0.1:9 login user password {WELL_FORMED_KEY}\n")
    assert resolve_mode("auto") == "online"
    netrc.write_text("not a netrc file {")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", WELL_FORMED_KEY)
    assert resolve_mode("auto") == "online"
    for told, mode in (("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("online", "online")):
        monkeypatch.setenv("WANDB_MODE", told)
        assert resolve_mode("auto") == mode
    assert resolve_mode("online") == "online"


def test_disabled_makes_no_run(tmp_path: Path) -> None:
    assert build(tmp_path, mode="disabled") == Loggers()
    assert not list(tmp_path.iterdir())


def test_long_records_are_read_back_over_block_borders(tmp_path: Path) -> None:
    built = build(tmp_path)
    assert built.wandb_run is not None
    texts = [letter * (20_000 + 7 * index) for index, letter in enumerate("abcdef")]
    for text in texts:
        built.wandb_run.log({"text": text})
    built.finish(0)
    run = read_run(Path(offline_runs(tmp_path)[0].folder))
    assert [row["text"] for row in run.history] == texts
    assert (run.group, run.name, run.tags) == ("sweep", "cell_seed3", ["quick"])


# Curves and images


class Recorded:
    """Stands in for a run: keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)


class Stage:
    """What the callback reads of a trainer and of a module."""

    sanity_checking, is_global_zero, global_step = False, True, 40

    def __init__(self, records: list[ImageRecord], detections: dict[str, Detections]) -> None:
        self.datamodule, self.val_records = self, records
        self.detections, self.curves = detections, {}


def test_boxes_are_scaled_with_their_image_and_weak_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full((512, 1024, 3), (0, 0, 255), np.uint8))  # red, as OpenCV's BGR
    record = ImageRecord("event/image", path, np.array([[100, 50, 300, 150]], np.float32))
    found = Detections(
        torch.tensor([[120.0, 60, 310, 170], [0, 0, 10, 10], [4, 4, 8, 8]]), torch.tensor([0.9, 0.3, 0.29])
    )
    stage, run = Stage([record], {"event/image": found}), Recorded()
    WandbValidation(run, 4).on_validation_end(stage, stage)  # type: ignore[arg-type]
    (row,) = run.rows
    assert row["trainer/global_step"] == 39
    image = row["images/0"]
    assert (image.image.size, image.image.getpixel((5, 5))) == ((512, 256), (255, 0, 0))
    boxes = {name: layer._val for name, layer in image._boxes.items()}
    assert boxes["ground_truth"] == [
        {"position": {"minX": 50, "minY": 25, "maxX": 150, "maxY": 75}, "domain": "pixel", "class_id": 0}
    ]
    assert [box["position"] for box in boxes["predictions"]] == [
        {"minX": 60, "minY": 30, "maxX": 155, "maxY": 85},
        {"minX": 0, "minY": 0, "maxX": 5, "maxY": 5},
    ]
    assert [box["box_caption"] for box in boxes["predictions"]] == ["0.90", "0.30"]


def test_no_images_are_read_when_none_are_wanted() -> None:
    stage, run = Stage([ImageRecord("a", Path("not/there.jpg"))], {}), Recorded()
    WandbValidation(run, 0).on_validation_end(stage, stage)  # type: ignore[arg-type]
    assert run.rows == [{"trainer/global_step": 39}]


def test_images_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(5, 1) == [0]
    assert spread(5, 0) == spread(0, 3) == []


def test_a_chart_keeps_each_point_of_a_curve_once() -> None:
    recall, precision = np.zeros(1000), np.zeros(1000)
    recall[10:500], precision[10:500] = 0.25, 1.0
    recall[500:], precision[500:] = 0.5, 0.75
    few = Curve(precision, recall, THRESHOLDS, 0.4375, 8)
    nothing = Curve(np.zeros(1000), np.zeros(1000), THRESHOLDS, 0.0, 8)
    fine = np.linspace(1e-3, 1, 1000)
    many = Curve(1 - fine / 2, fine, THRESHOLDS, 0.75, 8)
    rows = curves_chart({"few": few, "nothing": nothing, "many": many}).table.data
    assert [row for row in rows if row[1] != "many"] == [[0.25, "few", 1.0], [0.5, "few", 0.75]]
    points = [(x, y) for x, name, y in rows if name == "many"]
    assert len(points) == CURVE_POINTS
    assert points[0] == (fine[0], 1 - fine[0] / 2) and points[-1] == (1.0, 0.5)
    assert points == sorted(points)
