"""run.json, the settings that make a run the same run, and the lock."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fanet_lightning.cli.provenance import InUse, RunRecord, differing_settings, is_first_process, locked, read_record
from tests.score.helpers import refused


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    record = RunRecord(name="level2_hl", seed=3, settings={"level": 2, "model": {"width": 0.5}}, started="2026-01-01")
    record.scores["original"] = {"folder": "evaluation", "ap": {"hard": 0.5}}
    record.write(tmp_path)
    assert read_record(tmp_path) == record
    assert json.loads((tmp_path / "run.json").read_text())["version"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no run record"), ('{"version": 2}', "version 2, this package reads 1"), ("[]", "is no run record")],
)
def test_a_damaged_record_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    refused(message, read_record, tmp_path)


def test_settings_differ_where_they_change_what_is_trained() -> None:
    first = {"level": 2, "out": "a", "workers": 1, "model": {"width": 0.5}, "trainer": {"devices": 1, "max_steps": -1}}
    same = {"level": 2, "out": "b", "workers": 8, "model": {"width": 0.5}, "trainer": {"devices": 2, "max_steps": -1}}
    assert differing_settings(first, same) == []
    other = {**first, "level": 3, "model": {"width": 1.0, "batch_norm": True}, "logger": {"wandb": {"project": "x"}}}
    assert differing_settings(first, other) == [
        ("level", 2, 3), ("model.width", 0.5, 1.0), ("model.batch_norm", None, True),
    ]  # fmt: skip
    callbacks = {"ema": {"_target_": "a.B", "decay": 0.9}, "progress": {"_target_": "a.C"}}
    second = {**first, "callbacks": {"ema": {"_target_": "moved.B", "decay": 0.9}, "mine": {"_target_": "a.D"}}}
    assert differing_settings({**first, "callbacks": callbacks}, second) == []
    limit = {**callbacks, "few_images": {"_target_": "a.E", "take": 0.1}}
    assert differing_settings(second, {**first, "callbacks": limit}) == [("callbacks.few_images.take", None, 0.1)]
    assert differing_settings(first, {**first, "callbacks": limit}) == []  # of an earlier version


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fanet_lightning.cli.provenance import locked\n"
        f"with locked(Path({str(tmp_path)!r}), 'sweep'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InUse, match=rf"is in use by a sweep \(process {holder.pid} on "), locked(tmp_path, "sweep"):
        pass
    holder.kill()  # the lock falls however its holder ends
    holder.wait()
    with locked(tmp_path, "sweep", patience_seconds=5):
        pass
    holder.stdout.close()


def test_ranks_are_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert is_first_process()
    for name, value, first in (("LOCAL_RANK", "0", True), ("RANK", "2", False), ("RANK", "0", True)):
        monkeypatch.setenv(name, value)
        assert is_first_process() is first
