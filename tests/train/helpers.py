"""What the tests of training share: a run of seconds, and the real command line."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fanet_lightning.train import __main__ as train

# A network and a data set so small that a run takes seconds; everything else is the default.
TINY = [
    "model.width=0.0625", "input_size=64", "batch_size=4", "epochs=2", "workers=0", "data.train_images=8",
    "data.val_images=3", "trainer.accelerator=cpu", "validate_every=1", "trainer.log_every_n_steps=1",
    "optim.warmup_steps=2",
]  # fmt: skip


def command(verb: str, *words: str, cwd: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """``python -m fanet_lightning.VERB WORDS`` in ``cwd``."""
    return subprocess.run(
        [sys.executable, "-m", f"fanet_lightning.{verb}", *words],
        **{"cwd": cwd, "capture_output": True, "text": True, "timeout": 570, **options},
    )  # fmt: skip


def trained(*words: str) -> None:
    """The same in this process, which has imported torch already."""
    with patch.object(sys, "argv", ["train", *words]):  # Hydra reads them there
        train.main(list(words))
