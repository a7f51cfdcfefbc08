"""What the tests of training share: a run of seconds, and the real command line."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fanet_lightning.cli.config import canonical, compose_config, plain
from fanet_lightning.cli.provenance import RunRecord, read_record
from fanet_lightning.train import __main__ as train
from fanet_lightning.train import run

# A network and a data set so small that a run takes seconds; everything else is the default.
TINY = [
    "model.width=0.0625", "input_size=64", "batch_size=4", "epochs=2", "workers=0", "data.train_images=8",
    "data.val_images=3", "trainer.accelerator=cpu", "validate_every=1", "trainer.log_every_n_steps=1",
    "optim.warmup_steps=2",
]  # fmt: skip


def command(verb: str, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """``python -m fanet_lightning.VERB WORDS``, with the options of ``subprocess.run``."""
    return subprocess.run(_line(verb, words), **{"capture_output": True, "text": True, "timeout": 570, **options})


def start(verb: str, *words: str, **options: Any) -> "subprocess.Popen[str]":
    """The same, not waited for."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(_line(verb, words), **{**streams, **options})


def _line(verb: str, words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", f"fanet_lightning.{verb}", *words]


def record_of(folder: Path | str) -> RunRecord:
    record = read_record(Path(folder))
    assert record is not None
    return record


def column(out: Path | str, name: str) -> list[float]:
    """The values of a column of ``metrics.csv``, without its empty fields."""
    with (Path(out) / "csv/metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def composed(*words: str) -> None:
    """A run from Python, whose errors are raised as they are."""
    config = compose_config("train", words)
    canonical(config)
    run.train(run.prepare(plain(config)))


def trained(*words: str) -> None:
    """The same in this process, which has imported torch already."""
    with patch.object(sys, "argv", ["train", *words]):  # Hydra reads them there
        train.main(list(words))
