"""How long the loop waits for its loader, and what a run says of images that it could not read."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from fanet_lightning.cli.provenance import RunRecord
from fanet_lightning.data import datamodule as loader
from fanet_lightning.data.images import UnreadableImage
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.train import callbacks
from tests.data.helpers import Recorder, Shift, module_of, trainer
from tests.data.wider_files import numbered, write_wider


class FakeClock:
    """Seconds that pass where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, work: Any = None) -> Any:
        def slowed(*arguments: Any) -> Any:
            self.now += seconds
            return None if work is None else work(*arguments)

        return slowed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """That of the loader and of the callbacks."""
    clock = FakeClock()
    fake = SimpleNamespace(perf_counter=clock, monotonic=clock)
    monkeypatch.setattr(callbacks, "time", fake)
    monkeypatch.setattr(loader, "time", fake)
    return clock


def test_waiting_is_what_passes_until_a_batch_is_there(root: Path, clock: FakeClock) -> None:
    batches = module_of(root, augment=clock.takes(2.0, Shift())).train_dataloader()
    for epoch in (1, 2):
        for _ in batches:
            clock.now += 3.0  # a step, which is not waiting
        assert batches.waited_seconds == epoch * 12 * 2.0
    iterator = iter(batches)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert batches.waited_seconds == 28 * 2.0


def test_an_error_counts_as_waiting_once(broken: Path, clock: FakeClock) -> None:
    batches = module_of(broken).val_dataloader()
    batches.dataset.dataset.test_scale = clock.takes(2.0, TestScale("original"))  # type: ignore[attr-defined]
    with pytest.raises(UnreadableImage):
        list(batches)
    assert batches.waited_seconds == 2.0


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


def test_a_run_that_resumes_inside_an_epoch_counts_from_there(
    clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning does not start an epoch that it resumes with: two batches of four images in 4 s."""
    clock.now = 50_000.0  # a machine that has been up for long
    loop = SimpleNamespace(
        world_size=1, current_epoch=3, max_epochs=9, global_step=40, is_global_zero=True, should_stop=False,
        callback_metrics={}, train_dataloader=None, datamodule=None, gradient_clip_val=None,
    )  # fmt: skip
    module = SimpleNamespace(log=lambda *_, **__: None)
    report = callbacks.EpochReport()
    report.on_train_start(loop, module)  # type: ignore[arg-type]
    for index in range(2):
        clock.now += 2.0
        batch = SimpleNamespace(image_ids=["a", "b", "c", "d"])
        report.on_train_batch_end(loop, module, None, batch, index)  # type: ignore[arg-type]
    report.on_train_epoch_end(loop, module)  # type: ignore[arg-type]
    assert "epoch 4/9  step 40  2.0 images/s" in capsys.readouterr().out


def test_the_share_of_an_epoch_spent_waiting(
    root: Path, tmp_path: Path, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord("name", 0, {})
    report = [callbacks.EpochReport(), callbacks.RecordProgress(record, tmp_path)]
    data = module_of(root, augment=clock.takes(1.5, Shift()))
    logger = CSVLogger(tmp_path, name="", version="csv")
    trainer(tmp_path, callbacks=report, logger=logger, max_epochs=2).fit(Slow(clock), datamodule=data)
    # 4 samples of 1.5 s for each step of 2 s: 6 of 8 seconds.
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and all("0.5 images/s  waiting 75.0%" in line for line in lines)
    assert record.train["wait_share"] == 0.75
    assert record.train["unreadable_images"] == []
    rows = list(csv.DictReader((tmp_path / "csv/metrics.csv").open()))
    assert [float(row["train/wait_share"]) for row in rows if row["train/wait_share"]] == [0.75, 0.75]


def test_unreadable_images_are_counted_named_and_recorded(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wider(broken, "val", numbered(3))
    record = RunRecord("name", 0, {}, train={"unreadable_images": ["found/earlier"]})
    report = [callbacks.EpochReport(), callbacks.RecordProgress(record, tmp_path)]
    trainer(tmp_path, callbacks=report, max_epochs=1).fit(Recorder(), datamodule=module_of(broken))
    lines = capsys.readouterr().out.splitlines()
    names = [f"0--Parade/0_Parade_{index:03d}" for index in (2, 3, 7)]
    assert lines[0].startswith("epoch 1/1") and lines[0].endswith("3 images unreadable")
    assert lines[1] == f"3 training images could not be read: {', '.join(names)}"
    assert record.train["unreadable_images"] == [*names, "found/earlier"]
