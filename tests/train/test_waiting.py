"""What a run says of how long it waits for its loader, and of images that it could not read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from fanet_lightning.cli.provenance import RunRecord
from fanet_lightning.data import datamodule
from fanet_lightning.train import callbacks
from tests.data.helpers import FakeClock, Recorder, Shift, module_of, trainer
from tests.data.wider_files import numbered, write_wider
from tests.train.helpers import column


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """That of the loader and of the callbacks."""
    clock = FakeClock(monkeypatch, datamodule)
    monkeypatch.setattr(callbacks, "time", clock)
    return clock


class Slow(Recorder):
    """A step of 2 s and a validation image of 50 s by a clock of the test's."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.skipped_steps = 0

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        self.clock.now += 2.0
        return super().training_step(batch, batch_index)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.clock.now += 50.0


def test_the_share_of_an_epoch_spent_waiting(
    tmp_path: Path, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wider(tmp_path, "train", numbered(13))
    write_wider(tmp_path, "val", numbered(5))
    record = RunRecord("name", 0, {})
    report = [callbacks.EpochReport(record=record, folder=tmp_path)]
    data = module_of(tmp_path, augment=clock.takes(1.5, Shift()))
    logger = CSVLogger(tmp_path, name="", version="csv")
    trainer(tmp_path, callbacks=report, logger=logger, max_epochs=2).fit(Slow(clock), datamodule=data)
    # 4 samples of 1.5 s for each step of 2 s: 6 of 8 seconds.
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and all("0.5 images/s  waiting 75.0%" in line for line in lines)
    assert record.train["wait_share"] == 0.75
    assert record.train["unreadable_images"] == []
    assert column(tmp_path, "train/wait_share") == [0.75, 0.75]


def test_unreadable_images_are_counted_named_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wider(tmp_path, "train", numbered(8))
    write_wider(tmp_path, "val", numbered(3))
    names = [f"0--Parade/0_Parade_{index:03d}" for index in (2, 3, 7)]
    for name in names:
        (tmp_path / "WIDER_train" / "images" / f"{name}.jpg").write_bytes(b"")
    record = RunRecord("name", 0, {}, train={"unreadable_images": ["found/earlier"]})
    report = [callbacks.EpochReport(record=record, folder=tmp_path)]
    trainer(tmp_path, callbacks=report, max_epochs=1).fit(Recorder(), datamodule=module_of(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 1/1") and lines[0].endswith("3 images unreadable")
    assert lines[1] == f"3 training images could not be read: {', '.join(names)}"
    assert record.train["unreadable_images"] == [*names, "found/earlier"]
