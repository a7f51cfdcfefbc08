"""Whatever is wrong with W&B's key, server or own process: a run goes on, asks nothing, and says it in one line."""

import http.server
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from fanet_lightning.train.loggers import Loggers, build_loggers
from fanet_lightning.train.wandb_run import resolve_mode
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
    [("closed", "nonsense"), ("closed", WELL_FORMED_KEY), ("silent", WELL_FORMED_KEY)],
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
        built = build_loggers(options, tmp_path, resumed_step=7, wandb_run={"id": "earlier1"})
        built.loggers[0].log_metrics({"loss": 2.5}, 7)
        built.finish(0)
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1, printed.err
    line = printed.err.rstrip("\n")
    assert line.startswith("warning: W&B cannot go online (") and "offline. Check WANDB_API_KEY" in line
    (run,) = finished_runs(tmp_path)
    assert (run.series("loss"), run.exit_code) == ([(7, 2.5)], 0)
    assert printed.out == f"W&B: send this run with: wandb sync {run.folder}\n"


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


def test_a_training_outlives_what_fails_inside_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(tmp_path)
    run = built.wandb_run
    assert run is not None

    def broken(*_: Any) -> None:
        raise BrokenPipeError("the service has gone")

    monkeypatch.setattr(run._run, "log", broken)
    for step in range(3):
        built.loggers[0].log_metrics({"loss": 1.0}, step)
    built.describe({"x": 1})
    built.finish(0)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: W&B has failed (the service has gone)") and "wandb sync" in printed.out
    build(tmp_path / "second").finish(0)
    assert [run.exit_code for run in finished_runs(tmp_path / "second")] == [0]


# Modes


def test_auto_is_online_exactly_where_a_key_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_mode("auto") == "offline"
    assert [resolve_mode(mode) for mode in ("online", "offline", "disabled")] == ["online", "offline", "disabled"]
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    assert resolve_mode("auto") == "offline"
    netrc.write_text(f"machine example.org login user password {WELL_FORMED_KEY}\n")
    assert resolve_mode("auto") == "offline"
    netrc.write_text(f"machine 127.0.0.1 login user password {WELL_FORMED_KEY}\n")
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
