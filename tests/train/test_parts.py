"""Parts by ``_target_``: optimizer, scheduler, callbacks, logger, loss and network of somebody's own."""

import json
import sys
from pathlib import Path

import pytest

from fanet_lightning.cli.config import read_words
from fanet_lightning.cli.errors import InputError
from tests.train.helpers import TINY, command

OWN = """
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from fanet_lightning.models.fanet import FANet
from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss

class Says(Callback):
    def __init__(self, word, times=1):
        self.text = word * times
    def on_train_end(self, trainer, module):
        optimizer, (scheduler,) = trainer.optimizers[0], [c.scheduler for c in trainer.lr_scheduler_configs]
        print(self.text, type(optimizer).__name__, optimizer.defaults["betas"], type(scheduler).__name__)
        print(type(module.network).__name__, type(module.loss).__name__, module.loss.factor, trainer.current_epoch)

class Loss(HierarchicalLoss):
    def __init__(self, factor: float = 1.0, lambda_cls: float = 3.0):
        super().__init__(lambda_cls=lambda_cls)
        self.factor = factor

class Network(FANet):
    pass
"""
WORDS = [
    "callbacks.says._target_=own.Says", "callbacks.says.word=hi", "+callbacks.says.times=2",
    "optim.optimizer._target_=torch.optim.NAdam", "+optim.optimizer.betas=[0.8,0.9]",
    "optim.scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "optim.scheduler.max_lr=0.001",
    "loss._target_=own.Loss", "+loss.factor=2.5", "model._target_=own.Network",
]  # fmt: skip


@pytest.mark.slow
def test_own_parts_train_resume_and_are_evaluated(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    logger = ["+logger.more._target_=pytorch_lightning.loggers.CSVLogger", "logger.more.save_dir=more"]
    words = [*TINY, *WORDS, *logger, "level=2", "out=run"]
    done = command("train", *words, "stop_after=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hihi NAdam [0.8, 0.9] OneCycleLR" in done.stdout and "Network Loss 2.5" in done.stdout
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
    monkeypatch.delitem(sys.modules, "own", raising=False)  # of another test's folder
    config = read_words("train", WORDS).config()
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
