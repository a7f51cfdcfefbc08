"""Caches, waiting and bad images through the real command line."""

import re
from pathlib import Path

import pytest

from tests.data.wider_files import numbered, write_wider
from tests.train.helpers import column, command, record_of

WORDS = [
    "data=wider_face", "data.root=faces", "level=1", "hl=false", "model.width=0.0625", "model.batch_norm=false",
    "input_size=64", "batch_size=4", "epochs=2", "workers=0", "validate_every=2", "trainer.accelerator=cpu",
    "optim.warmup_steps=1", "ema=null", "evaluate_at_end=false", "logger=csv",
]  # fmt: skip


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """8 training images, of which one is empty, and 3 for validation."""
    write_wider(tmp_path / "faces", "train", numbered(8), (192, 256))
    write_wider(tmp_path / "faces", "val", numbered(3), (96, 128))
    (tmp_path / "faces/WIDER_train/images/0--Parade/0_Parade_005.jpg").write_bytes(b"")
    return tmp_path


@pytest.mark.slow
def test_two_ranks_share_one_cache_and_what_they_know_of_bad_images(faces: Path) -> None:
    ranks = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    done = command("train", *WORDS, "out=two", "cache=memory", *ranks, cwd=faces)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("cache=")]
    assert line.startswith("cache=memory: 7 of 8 images fit into ")
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2
    assert all(re.search(r"images/s  waiting \d+\.\d%  .*1 image unreadable", line) for line in epochs)
    assert "1 training image could not be read: 0--Parade/0_Parade_005" in lines
    assert "reads all files itself" not in done.stderr
    record = record_of(faces / "two").train
    assert record["unreadable_images"] == ["0--Parade/0_Parade_005"] and 0 < record["wait_share"] < 1
    _, share = column(faces / "two", "train/wait_share")
    assert share == pytest.approx(record["wait_share"], abs=1e-3)


@pytest.mark.slow
def test_a_bad_validation_image_ends_the_run_before_its_first_step(faces: Path) -> None:
    path = faces / "faces/WIDER_val/images/0--Parade/0_Parade_001.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    done = command("train", *WORDS, "out=run", cwd=faces)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "1 of 3 validation images cannot be read, the first is" in line and "cut short" in line
    assert "Traceback" not in done.stderr and "epoch 1" not in done.stdout
