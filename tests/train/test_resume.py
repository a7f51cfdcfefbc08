"""Runs that are cut off, by hand, a full disk, a damaged file: they resume, and end as if nothing had happened."""

import csv
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.utils._pytree import tree_flatten

from fanet_lightning.cli.provenance import state_now
from fanet_lightning.train import run as training
from tests.train.helpers import command, composed, record_of, start

TINY = [
    "level=2", "model.width=0.0625", "input_size=64", "batch_size=4", "epochs=4", "workers=1", "data.train_images=16",
    "data.val_images=3", "trainer.accelerator=cpu", "validate_every=2", "trainer.log_every_n_steps=1",
    "optim.warmup_steps=2", "trainer.deterministic=true", "evaluate_at_end=false", "data.root=data", "out=run",
]  # fmt: skip
# What a clock has decided differs between two runs.
CLOCKS = {"train/images_per_second", "train/wait_share"}


def train(*words: str, cwd: Path, **options: Any) -> str:
    """Its stdout and stderr; ends well unless it is given ``code``."""
    code = options.pop("code", 0)
    done = command("train", *TINY, *words, cwd=cwd, **options)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def assert_same_end(run: Path, whole: Path, lost_rows: int = 0) -> None:
    """Weights, averages, optimizer, schedule, random states: bit for bit; and the logs.

    ``lost_rows``: a kill in the instant between a checkpoint inside an epoch and the log of its step loses that row.
    """
    ends = [torch.load(path / "checkpoints/last.ckpt", weights_only=True) for path in (run, whole)]
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    found, expected = (tree_flatten([*map(end.get, keys), end["callbacks"]["RandomState"]]) for end in ends)
    assert found[1] == expected[1]
    for a, b in zip(found[0], expected[0], strict=True):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
    logs = []
    for path in (run, whole):
        with (path / "csv/metrics.csv").open() as file:
            logs.append([{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)])
    assert [row for row in logs[1] if row in logs[0]] == logs[0]
    assert len(logs[1]) - len(logs[0]) <= lost_rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never cut off."""
    folder = tmp_path_factory.mktemp("whole")
    train(cwd=folder)
    return folder / "run"


@pytest.mark.slow
def test_threads_of_a_new_run_and_of_one_that_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their number decides the last bits: a run that resumes takes that of before, whatever the load is now."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(training, "free_cores", lambda: (1, "2 cores, 1 busy"))
    tiny = [*TINY, "workers=0", "validate_every=4", "data.train_images=4", "data.val_images=1", "logger=csv"]

    def trained(*words: str) -> str:
        """The first line; the record has the number that torch has."""
        composed(*tiny, *words)
        assert json.loads(Path("run/run.json").read_text())["train"]["threads"] == torch.get_num_threads()
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("level2"))

    threads = torch.get_num_threads()
    try:
        assert trained("stop_after=1").endswith(", 1 thread (2 cores, 1 busy)")
        record = Path("run/run.json")
        record.write_text(json.dumps(json.loads(record.read_text()) | {"train": {"threads": 2}}))
        assert trained("resume=auto", "stop_after=2").endswith(", 2 threads (as before)")
        last = trained("resume=run/checkpoints/last.ckpt", "out=other", "stop_after=3")
        assert last.endswith(", 2 threads (as before)")
        assert trained("resume=auto", "stop_after=3", "threads=1").endswith(", 1 thread")
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")  # torch has read it
        assert trained("resume=auto", "stop_after=4").endswith(", 2 threads (OMP_NUM_THREADS)")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_killed_again_and_again_inside_epochs_it_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """A checkpoint every 3 steps, epochs of 4: the kills fall between the two and inside epochs."""
    for kill in range(4):
        words = [*TINY, "resume=auto", "checkpoint_every=3"]
        process = start("train", *words, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
        metrics = tmp_path / "run/checkpoints/last.ckpt"
        before, deadline = metrics.stat().st_mtime_ns if metrics.exists() else 0, time.monotonic() + 300
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_mtime_ns == before):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05 * kill)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    train("resume=auto", "checkpoint_every=3", cwd=tmp_path)
    assert_same_end(tmp_path / "run", whole, lost_rows=4)
    record = record_of("run")
    assert record.state == "finished" and record.train["starts"] >= 3


def as_in_a_terminal() -> None:
    # A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_end_says_how_to_resume(
    whole: Path, tmp_path: Path, kind: signal.Signals, code: int
) -> None:
    """Ctrl-C, and what kill and schedulers send: to the whole group of processes, as a terminal does."""
    options = {"stderr": subprocess.PIPE, "start_new_session": True, "preexec_fn": as_in_a_terminal}
    process = start("train", *TINY, "resume=auto", cwd=tmp_path, **options)
    is_sent = False
    for line in process.stdout:
        if line.startswith("epoch 1/") and not is_sent:
            os.killpg(process.pid, kind)
            is_sent = True
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    lines = [line for line in said.splitlines() if "kept" in line or line == "interrupted"]
    expected = [f"{tmp_path / 'run'} is kept as its last checkpoint has it; resume=auto resumes from there"]
    assert lines == expected + (["interrupted"] if kind == signal.SIGINT else [])
    record = record_of("run")
    assert state_now(tmp_path / "run", record) == "interrupted" and record.error is None
    assert record.train.get("epoch", 0) < 4
    train("resume=auto", cwd=tmp_path)
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_port_in_use_is_named_and_no_rank_is_left_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = command("train", *TINY, "trainer=ddp", "trainer.devices=2", cwd=tmp_path, env=environment)
    assert done.returncode != 0
    assert port in done.stderr and "Traceback" not in done.stderr
    # The pipes are closed only when every process that holds them has ended: the second rank is gone.


def test_scores_of_an_earlier_end_are_not_those_of_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its last evaluation, a run that was scored at an earlier stop has no scores until it is resumed."""
    words = [*TINY, "workers=0", "data.train_images=4", "evaluate_at_end=true", "validate_every=3", "resume=auto"]
    composed(*words, "stop_after=3")
    assert record_of("run").scores
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_evaluate", Mock(side_effect=KeyboardInterrupt))
        composed(*words)
    assert not record_of("run").scores
    composed(*words)
    assert record_of("run").scores and record_of("run").state == "finished"
