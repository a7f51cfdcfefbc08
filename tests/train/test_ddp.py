"""Two gloo ranks on the CPU, through the real command line."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.train.helpers import column, command

WORDS = [
    "level=2", "hl=true", "model.width=0.0625", "model.batch_norm=false", "input_size=64", "batch_size=4", "epochs=2",
    "workers=0", "data.train_images=8", "data.val_images=5",
    "validate_every=1", "trainer.accelerator=cpu", "optim.warmup_steps=2", "ema=null",
    # bf16, which some processors would choose, rounds batches of two otherwise than those of four.
    "trainer.precision=32-true",
]  # fmt: skip


def train(cwd: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    done = command("train", *WORDS, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_one_process_and_two_see_the_same_gradients_and_reach_the_same_ap(tmp_path: Path) -> None:
    train(tmp_path, "out=one")
    done = train(tmp_path, "out=two", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    weights = [
        torch.load(tmp_path / out / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for out in ("one", "two")
    ]
    for name, value in weights[0].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-5, msg=name)
    scores = [json.loads((tmp_path / out / "evaluation/scores.json").read_text()) for out in ("one", "two")]
    assert scores[0]["images"] == scores[1]["images"] == 5
    for setting, ap in scores[0]["ap"].items():
        assert scores[1]["ap"][setting] == pytest.approx(ap, abs=2e-3), setting
    # One output folder, one table, each epoch told once, every image counted once.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "one", "two"]
    assert sum(line.startswith("epoch ") for line in done.stdout.splitlines()) == 2
    log = (tmp_path / "two/train.log").read_text().splitlines()
    assert sum(line.startswith("epoch ") for line in log) == 2 and sum(line.startswith("$ ") for line in log) == 1
    assert column(tmp_path / "two", "val/images") == [5, 5]
