"""Whatever is wrong with W&B's key, server or own process: a run goes on, asks nothing, and says it in one line."""

import http.server
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.sdk import wandb_setup

from fanet_lightning.train.loggers import Loggers, build_loggers
from fanet_lightning.train.wandb_run import _end_service, resolve_mode
from tests.train.wandb_offline import finished_runs, offline_runs, read_run
from tests.train.wandb_server import FakeWandb, no_account, useless_server

SETTINGS = {
    "project": "tests", "entity": None, "mode": "auto", "tags": ["quick"], "images": 2, "init_timeout": 2,
    "finish_timeout": 5,
}  # fmt: skip
WELL_FORMED_KEY = "a" * 40


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


def build(out: Path, **settings: Any) -> Loggers:
    options = {"logger": {"wandb": {**SETTINGS, **settings}}, "group": "sweep", "name": "cell", "seed": 3}
    return build_loggers(options, out)


@pytest.mark.parametrize(
    ("answer", "key"),
    [("closed", "nonsense"), ("closed", WELL_FORMED_KEY), ("silent", WELL_FORMED_KEY), ("401", WELL_FORMED_KEY)],
)
def test_what_cannot_go_online_goes_on_offline_and_says_so_in_one_line(
    answer: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    # A busy machine may need its time to end a run offline; that is not what is asked here.
    settings = {**SETTINGS, "finish_timeout": 60}
    options = {"logger": {"wandb": settings}, "group": None, "name": "cell", "seed": 3}
    with useless_server(answer) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        # The run of an earlier start: the attempt that failed must not keep its id from the one that goes on.
        built = build_loggers(options, tmp_path, resumed_step=7, wandb_run={"id": "earlier1"})
        built.loggers[0].log_metrics({"loss": 2.5}, 7)
        built.finish(0)
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1, printed.err
    line = printed.err.rstrip("\n")
    assert line.startswith("warning: W&B cannot go online (") and "goes on offline. Check WANDB_API_KEY" in line
    (run,) = finished_runs(tmp_path)
    assert (run.identifier, run.series("loss"), run.exit_code) == ("earlier1", [(7, 2.5)], 0)
    assert printed.out == f"W&B: send this run with: wandb sync {run.folder}\n"
    assert not list(tmp_path.glob("wandb/run-*"))


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeWandb) as fake:
        fake.queries, fake.rows = [], []  # type: ignore[attr-defined]
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{fake.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", WELL_FORMED_KEY)
        yield fake
        fake.shutdown()


def test_a_run_with_a_key_is_online(fake_wandb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = build(tmp_path, init_timeout=120, finish_timeout=120)
    record = built.wandb_record
    assert record is not None and record["mode"] == "online"
    for step in range(3):
        built.loggers[0].log_metrics({"loss": step / 2}, step)
    built.finish(0)
    first = next(variables for name, variables in fake_wandb.queries if name == "UpsertBucket")
    assert (first["name"], first["groupName"], first["displayName"]) == (record["id"], "sweep", "cell_seed3")
    assert json.loads(first["config"])["seed"] == {"value": 3}
    assert [(row["trainer/global_step"], row["loss"]) for row in fake_wandb.rows] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == f"W&B: http://127.0.0.1:{fake_wandb.server_port}/me/tests/runs/{record['id']}\n"


def test_a_server_that_goes_away_does_not_hold_the_run_up(
    fake_wandb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(tmp_path, init_timeout=120, finish_timeout=2)
    record = built.wandb_record
    assert record is not None and record["mode"] == "online"
    fake_wandb.shutdown()
    fake_wandb.server_close()
    built.loggers[0].log_metrics({"loss": 1.0}, 0)
    built.finish(0)
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: W&B has failed (") and line.endswith("; what it has kept can be sent later")
    assert printed.out.splitlines()[-1] == f"W&B: send this run with: wandb sync {record['folder']}"
    wandb.teardown()
    assert read_run(Path(record["folder"])).series("loss") == [(0, 1.0)]


@pytest.mark.slow
def test_online_without_a_key_does_not_ask_even_on_a_terminal(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from fanet_lightning.train.loggers import build_loggers\n"
        f"settings = { ({**SETTINGS, 'mode': 'online'})!r}\n"
        "options = {'logger': {'wandb': settings}, 'group': None, 'name': 'cell', 'seed': 0}\n"
        "build_loggers(options, Path('run')).finish(0)\n"
    )
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, timeout=300,
            env={**os.environ, "TERM": "xterm"},  # W&B would not ask on a dumb one
        )  # fmt: skip
        shown = os.read(controller, 100_000).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    assert done.returncode == 0
    assert "warning: W&B cannot go online (No API key configured" in shown
    assert "Enter your choice" not in shown
    assert len(offline_runs(tmp_path / "run")) == 1


def test_no_release_of_wandb_sees_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    seen: list[tuple[str, bool]] = []

    def refusing(*, mode: str, **_: Any) -> None:
        seen.append((mode, sys.stdin.isatty()))
        raise OSError("refused")

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(wandb, "init", refusing)
    assert build(tmp_path, mode="online") == Loggers()
    assert seen == [("online", False), ("offline", True)]
    assert sys.stdin is terminal


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize("noticed", ["while training", "at the end"])
def test_a_training_outlives_the_process_of_wandb(
    noticed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(tmp_path / "first")
    (logger,), run = built.loggers, built.wandb_run
    assert run is not None
    logger.log_metrics({"loss": 1.0}, 0)
    own = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"wandb-core" in (words := _read(path).split(b"\0"))[0] and str(os.getpid()).encode() in words
    ]
    assert len(own) == 1
    os.kill(own[0], signal.SIGKILL)
    consequence = "what it has kept can be sent later"
    if noticed == "while training":
        # The first rows still go into the connection's buffer; how many, the scheduler decides.
        deadline = time.monotonic() + 300
        while not run.is_lost and time.monotonic() < deadline:
            logger.log_metrics({"loss": 1.0}, 1)
            time.sleep(0.005)
        assert run.is_lost
        built.describe({"x": 1})
        consequence = "the run goes on without it"
    built.finish(0)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: W&B has failed (") and line.endswith(f"; {consequence}")
    assert "wandb sync" in printed.out
    again = build(tmp_path / "second")
    again.finish(0)
    assert [run.exit_code for run in finished_runs(tmp_path / "second")] == [0]


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
    (run,) = finished_runs(tmp_path)
    assert [row["text"] for row in run.history] == texts
    assert (run.group, run.name, run.tags) == ("sweep", "cell_seed3", ["quick"])


def test_a_service_that_does_not_end_is_ended() -> None:
    """Stopped, it can answer nothing; a training must not wait for it."""
    _end_service(20.0)  # one of an earlier test may be on its way out
    wandb.setup().ensure_service()
    process = wandb_setup._singleton._connection._proc._process  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    _end_service(1.0)
    assert process.poll() == -signal.SIGKILL
