"""Parts by ``_target_``: optimizer, scheduler, callbacks, logger, loss and network of somebody's own."""

import json
import re
from pathlib import Path

import pytest

from fanet_lightning.cli.config import read_words
from fanet_lightning.cli.errors import InputError
from tests.train.helpers import TINY, command

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Change or add a part")[2].partition("\n## ")[0]
# The file of the section, and the words of its table.
OWN = SECTION.partition("```python\n")[2].partition("```")[0]
WORDS = [
    word
    for row in re.findall(r"^\| (?!part|data set|-)[^|]+ \| `([^`]+)`", SECTION, re.MULTILINE)
    for word in re.split(r" (?=[+\w.]+=)", row)
]


@pytest.mark.slow
def test_the_parts_of_the_readme_train_resume_and_are_evaluated(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert len(WORDS) == 12
    words = [*TINY, *WORDS, "level=2", "out=run"]
    done = command("train", *words, "stop_after=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "done NAdam Network 2.5" in done.stdout and "OneCycleLR schedule" in done.stdout
    assert list((tmp_path / "more").rglob("metrics.csv"))
    done = command("train", *words, "resume=auto", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/evaluation/scores.json").read_text())["images"] == 3


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_is_then_finished(tmp_path: Path) -> None:
    words = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optim.lr=1e-20", "ema=null"]
    done = command("train", *TINY, *words, "level=1", "epochs=20", "evaluate_at_end=false", "out=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["state"] == "finished" and record["train"]["epoch"] < 20


def test_arguments_are_checked_against_the_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = read_words("train", [*WORDS, "+callbacks.says.times=2"]).config()
    assert (config.callbacks.says.times, list(config.optim.optimizer.betas), config.loss.factor) == (2, [0.8, 0.9], 2.5)
    for words, key in (
        (["callbacks.says._target_=own.Says", "callbacks.says.banana=1"], r"callbacks\.says\.banana"),
        (["callbacks.says.times=1"], r"callbacks\.says\.times"),
        (["callbacks.says._target_=nowhere.Says", "callbacks.says.times=1"], "nowhere"),
        (["optim.optimizer._target_=torch.optim.NAdam", "optim.optimizer.banana=1"], r"optim\.optimizer\.banana"),
        (["optim.optimizer=adam"], r"optim\.optimizer=adam"),
        (["loss._target_=own.Loss", "loss.threshold=0.4"], r"loss\.threshold"),
        (["loss.factor=2"], r"loss\.factor"),
    ):
        with pytest.raises(InputError, match=key):
            read_words("train", words)
