"""Metrics of a run that is cut off and resumes: every row once, whatever the moment; and how loggers go together."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fanet_lightning.cli.config import compose_config, plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.train import loggers
from fanet_lightning.train.loggers import ResumableCSVLogger, build_loggers, check_loggers
from tests.train.helpers import TINY, trained

METRICS = ("train/loss", "lr", "val/ap")


def options(**group: Any) -> dict[str, Any]:
    return {"logger": group, "group": None, "name": "variant", "seed": 0}


def rows_of(out: Path) -> list[dict[str, str]]:
    """The rows without their empty fields: which columns there are depends on what has been logged so far."""
    with (out / "csv/metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def log(logger: ResumableCSVLogger, rows: list[tuple[int, dict[str, float]]]) -> None:
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
        logger.save()


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_is_cut_off_ends_with_the_rows_of_one_that_is_not(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        (step, {name: float(rng.integers(1000)) for name in METRICS if rng.random() < 0.5} or {"lr": 1.0})
        for step in np.sort(rng.integers(0, 12, 25)).tolist()
    ]
    log(ResumableCSVLogger(tmp_path / "whole"), rows)
    checkpoint, killed = sorted(rng.integers(0, 13, 2).tolist())
    log(ResumableCSVLogger(tmp_path / "cut"), [row for row in rows if row[0] < killed])
    path = tmp_path / "cut/csv/metrics.csv"
    if path.is_file() and killed > checkpoint and rows_of(tmp_path / "cut"):
        # The kill came in the middle of a line.
        text = path.read_bytes()
        last_line = text.rstrip(b"\r\n").rfind(b"\n") + 1
        if int(rows_of(tmp_path / "cut")[-1]["step"]) >= checkpoint:
            path.write_bytes(text[: int(rng.integers(last_line, len(text)))])
    log(ResumableCSVLogger(tmp_path / "cut", checkpoint), [row for row in rows if row[0] >= checkpoint])
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


def test_a_step_that_a_kill_has_cut_short_is_not_taken_for_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "csv/metrics.csv"
    path.parent.mkdir()
    path.write_text("lr,step\r\n0.5,0\r\n0.25,1")  # of step 12
    log(ResumableCSVLogger(tmp_path, 5), [(5, {"lr": 0.125})])
    assert rows_of(tmp_path) == [{"lr": "0.5", "step": "0"}, {"lr": "0.125", "step": "5"}]
    log(ResumableCSVLogger(tmp_path), [(0, {"b": 3.0})])  # a new run
    assert rows_of(tmp_path) == [{"b": "3.0", "step": "0"}]


def test_nothing_is_lost_when_a_new_column_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = ResumableCSVLogger(tmp_path)
    log(logger, [(0, {"a": 1.0}), (1, {"a": 2.0})])
    before = rows_of(tmp_path)

    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full_disk)
    with pytest.raises(OSError, match="No space left"):
        log(logger, [(2, {"a": 3.0, "b": 4.0})])
    assert rows_of(tmp_path) == before


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("fanet_lightning.train.loggers.start_wandb", lambda *_: pytest.fail("a run of the second rank"))
    wandb = {"mode": "offline", "project": "p"}
    loggers, run = build_loggers(options(csv=True, wandb=wandb), tmp_path)
    assert [type(logger) for logger in loggers] == [ResumableCSVLogger] and run is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("resumed_step", "kept"), [(2, [0, 1]), (None, [])])
def test_tensorboard_shows_each_step_once(resumed_step: int | None, kept: list[int], tmp_path: Path) -> None:
    """None: the earlier start was killed before its first checkpoint, so everything is trained again."""
    for start, steps, value in ((None, range(4), 1.0), (resumed_step, range(resumed_step or 0, 6), 2.0)):
        (logger,), _ = build_loggers(options(tensorboard=True), tmp_path, resumed_step=start)
        for step in steps:
            logger.log_metrics({"loss": value}, step)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(step, 1.0 if step in kept else 2.0) for step in range(6)]


def test_loggers_go_together() -> None:
    for word, names in (("[csv,wandb]", {"csv", "wandb"}), ("[tensorboard,wandb]", {"csv", "tensorboard", "wandb"})):
        group = plain(compose_config("train", ["out=x", f"logger={word}"]))["logger"]
        assert {name for name, value in group.items() if value} == names


def test_mlflow_has_the_metrics_and_settings_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trained("logger=mlflow", *TINY, "level=1", "out=run", "evaluate_at_end=false")
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("fanet_lightning")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "level1_seed0")
    assert run.data.metrics["epoch"] == 1 and {"train/loss", "val/ap"} <= set(run.data.metrics)
    assert run.data.params["optim/lr"] == "0.0015"
    assert (tmp_path / "run/csv/metrics.csv").is_file()


@pytest.mark.parametrize("name", ["mlflow", "comet"])
def test_a_logger_whose_package_is_missing_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = plain(compose_config("train", ["out=x", f"logger={name}"]))["logger"]
    monkeypatch.setattr(loggers, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"fanet-lightning\[{name}\]"):
        check_loggers(group)
    with pytest.raises(InputError, match=r"logger\.mine is unknown"):
        check_loggers({"mine": True})
