"""Callbacks of the group by one word each, and those of one's own that raise or cannot be made."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.train import __main__ as train
from fanet_lightning.train.callbacks import StochasticAverage
from tests.train.helpers import TINY, column, record_of, trained

RAISES = """
from pytorch_lightning import Callback

class Raises(Callback):
    def __init__(self, epoch):
        self.epoch = epoch
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            raise ValueError("this went wrong")
"""


def test_a_callback_that_raises_is_one_line_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raising.py").write_text(RAISES)
    monkeypatch.syspath_prepend(tmp_path)
    words = [*TINY, "level=1", "out=run", "evaluate_at_end=false"]
    with pytest.raises(SystemExit) as end:
        trained(*words, "callbacks.mine._target_=raising.Raises", "callbacks.mine.epoch=1")
    error = capfd.readouterr().err
    assert end.value.code == 2 and "Traceback" not in error
    assert "error: raising.Raises (raising.py:9): ValueError: this went wrong" in error
    record = record_of("run")
    assert (record.state, record.train["epoch"]) == ("failed", 1)
    trained(*words, "resume=auto")
    assert (record_of("run").state, record_of("run").train["starts"]) == ("finished", 2)


def test_callbacks_by_one_word_each_go_together_and_resume(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["callbacks=[early_stopping,top_k,lr_finder,swa]", "callbacks.lr_finder.num_training_steps=16", *TINY]
    words += ["epochs=4", "data.train_images=32", "trainer.accumulate_grad_batches=2", "level=1", "out=run"]
    words += ["evaluate_at_end=false"]
    trained(*words, "stop_after=3")
    output = capfd.readouterr().out
    found = re.search(r"learning rate found: \S+ \(optim\.lr=(\S+)\)", output)
    assert found is not None and "scaled to a total batch of 8), cosine schedule over 16 steps" in output
    names = {path.name for path in Path("run/checkpoints").iterdir()}
    assert {"best.ckpt", "last.ckpt"} < names and sum(name.startswith("epoch00") for name in names) == 3
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["optim"]["lr"] == pytest.approx(float(found[1]), rel=0.01)
    assert checkpoint["global_step"] == 12
    rate = re.search(r"learning rate found: (\S+)", output)
    assert rate is not None and column("run", "lr-AdamW/pg1")[0] == pytest.approx(
        float(rate[1]) / 2, rel=0.01
    )  # warm-up
    trained(*words, "resume=auto")
    assert (record_of("run").state, record_of("run").train["steps"]) == ("finished", 16)
    output = capfd.readouterr().out
    assert "learning rate found" not in output
    again = re.search(r"learning rate (\S+) \(", output)
    assert again is not None and float(again[1]) == pytest.approx(float(rate[1]), rel=0.01)


def test_two_averages_of_the_weights_are_refused() -> None:
    with pytest.raises(InputError, match="ema and swa"):
        train.main([*TINY, "level=1", "out=run", "callbacks=[swa,top_k]"])
    assert not Path("run").exists()


def test_stochastic_averaging_is_the_mean_of_the_last_weights() -> None:
    averaging, trainer = StochasticAverage(start=0.5), SimpleNamespace(estimated_stepping_batches=4)
    averaging.on_train_start(trainer, None)  # type: ignore[arg-type]
    mean = torch.tensor([1.0])
    seen = []
    for step, weight in ((1, 2.0), (2, 4.0), (3, 10.0)):  # the first of the four steps is copied by torch
        averaging._average([mean], [torch.tensor([weight])], step)
        seen.append(mean.item())
    assert seen == [2.0, 4.0, 7.0]
    with pytest.raises(InputError, match="start"):
        StochasticAverage(start=1)
