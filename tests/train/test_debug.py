"""``debug=``: one batch, a part of the images, ten images to overfit."""

import json
from pathlib import Path

import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.train.callbacks import FewImages
from tests.train.helpers import TINY, record_of, trained


def test_one_batch_leaves_a_record_and_nothing_else() -> None:
    trained("debug=fdr", *TINY, "level=1", "out=run")
    assert (record_of("run").state, record_of("run").train["steps"]) == ("finished", 1)
    assert not Path("run/checkpoints").exists() and not Path("run/csv").exists()


def test_a_part_of_the_images_is_trained_on_and_scored() -> None:
    trained("debug=limit", "callbacks.few_images.take=0.5", *TINY, "level=1", "out=run")
    assert record_of("run").scores["original"]["images"] == 2  # of 3
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert len(checkpoint["training_images"][0]["ids"]) == 4  # of 8


def test_what_is_not_learnt_by_heart_ends_with_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["debug=overfit", *TINY, "level=1"]
    with pytest.raises(SystemExit) as end:
        trained(*words, "out=run")
    assert end.value.code == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: cannot overfit: AP 0.0") and "images trained on" in error
    trained(*words, "out=again", "callbacks.few_images.ap=0")
    assert "overfit: AP" in capfd.readouterr().out


def test_a_run_that_ends_before_its_validation_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    trained("debug=overfit", *TINY, "validate_every=2", "level=1", "out=run", "trainer.max_steps=1")
    assert "ended before its validation" in capfd.readouterr().out and record_of("run").state == "finished"


@pytest.mark.parametrize("take", [0, -1, 1.5, float("nan")])
def test_neither_a_number_of_images_nor_a_share(take: float) -> None:
    with pytest.raises(InputError, match="take"):
        FewImages(take)


@pytest.mark.slow
def test_where_the_time_goes() -> None:
    trained("debug=profiler", *TINY, "data.train_images=40", "level=1", "out=run")
    table = Path("run/profile/fit-steps.txt").read_text()
    assert "matching and loss" in table and "aten::convolution" in table
    (trace,) = Path("run/profile").glob("*.trace.json")
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event.get("ph") == "X" and event["name"].endswith("]network") for event in events) == 3
