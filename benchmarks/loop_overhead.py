"""What the training loop costs beyond the bare step: Lightning, logging, metrics, callbacks. To stay below 3 %.

    python benchmarks/loop_overhead.py
    python benchmarks/loop_overhead.py --device cuda --epochs 6
    python benchmarks/loop_overhead.py data.root=/data/faces level=1 hl=false     # any key=value of the training

bare  forward, loss, backward, clipping, optimizer and schedule step, averaged weights, in plain PyTorch.
full  the ``Trainer`` of the package with its callbacks, CSV and TensorBoard, and the run's record.
Both start from the same weights and get the same batches, which are made beforehand, so loading is out of the picture.
They take turns step by step inside one process: the loader that feeds the trainer takes a bare step before it hands
out a batch. Times are added up over blocks of ten steps, of which one writes metrics (``trainer.log_every_n_steps``).
At the end both sides must hold the same weights, bit for bit on a CPU: they did the same work.

Printed: medians over blocks, by the wall clock and by this process's CPU time (which other programs on the machine
disturb less), the overhead, and what the end of an epoch costs (its checkpoint, its line, its record) as a share of an
epoch.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fanet_lightning.cli.config import compose_config, plain
from fanet_lightning.cli.provenance import RunRecord
from fanet_lightning.data.sources import build_source
from fanet_lightning.ops.structures import Batch
from fanet_lightning.train.callbacks import RecordProgress, ema_callback
from fanet_lightning.train.loggers import build_loggers
from fanet_lightning.train.module import FaceDetectionModule
from fanet_lightning.train.run import attach, build_datamodule, build_module, build_trainer

BLOCK = 10


def made_batches(options: dict[str, Any], count: int) -> list[Batch]:
    """``count`` batches of the real training loader."""
    datamodule = build_datamodule(options, build_source(**options["data"]))
    datamodule.setup("fit")
    batches = []
    while len(batches) < count:
        for batch in datamodule.train_dataloader():
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


class Bare:
    """The bare step, with the same network, optimizer, schedule and averaging as the trainer's."""

    def __init__(self, options: dict[str, Any], device: str, total_steps: int) -> None:
        self.module = build_module(options).to(device).train()
        self.device, self.limit = device, options["gradient_clip"]
        self.optimizer, self.scheduler = optimizer_and_schedule(self.module, total_steps)
        averaging = ema_callback(options["ema"])._kwargs  # the same rule, by PyTorch's own class
        self.averaged = AveragedModel(self.module, use_buffers=True, **averaging)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, batch: Batch) -> None:
        images = batch.images.to(self.device)
        targets = type(batch.targets)(*(tensor.to(self.device) for tensor in batch.targets))
        output, grid = self.module(images)
        loss = self.module.loss(output, grid, targets).total
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.limit)
        self.optimizer.step()
        self.scheduler.step()
        self.averaged.update_parameters(self.module)


def optimizer_and_schedule(module: FaceDetectionModule, total_steps: int) -> tuple[Any, Any]:
    """What the module configures for its trainer, of which it asks the number of steps alone."""
    module._trainer = SimpleNamespace(estimated_stepping_batches=total_steps, accumulate_grad_batches=1)  # type: ignore[assignment]
    with contextlib.redirect_stdout(io.StringIO()):
        made: Any = module.configure_optimizers()
    module._trainer = None
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


class Clock:
    """Wall seconds and CPU seconds of this process; on CUDA after the device has finished."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __call__(self) -> np.ndarray:
        if self.cuda:
            torch.cuda.synchronize()
        return np.array([time.perf_counter(), time.process_time()])


class TakingTurns:
    """A loader for the trainer that takes a bare step before each of the trainer's, and times both.

    ``blocks``: (bare, full) of each block of ``BLOCK`` pairs, as (wall, CPU) seconds; ``ends``: of the last step of an
    epoch together with the end of the epoch.
    """

    def __init__(self, batches: list[Batch], bare: Bare, clock: Clock) -> None:
        self.batches, self.bare_side, self.clock = batches, bare, clock
        self.blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self.ends: list[np.ndarray] = []
        self._since: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if self._since is not None:
            self.ends.append(self.clock() - self._since)
        bare, full = np.zeros(2), np.zeros(2)
        for number, batch in enumerate(self.batches):
            if number:
                full += self.clock() - self._since
            if number % BLOCK == 0 and number:
                self.blocks.append((bare, full))
                bare, full = np.zeros(2), np.zeros(2)
            start = self.clock()
            self.bare_side.step(batch)
            bare += self.clock() - start
            self._since = self.clock()
            yield batch


def fit(options: dict[str, Any], out: Path, module: FaceDetectionModule, loader: Any) -> None:
    """The trainer of the package, without validation: that is no overhead of the steps."""
    record = RunRecord(name=options["name"], seed=0, settings=options)
    trainer = build_trainer(options, out)
    attach(trainer, build_loggers(options, out)[0], [RecordProgress(record, out)])
    trainer.fit(module, train_dataloaders=loader)


def same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the training's configuration")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50, help=f"per epoch, a multiple of {BLOCK}")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="of the CPU")
    arguments = parser.parse_args()
    if arguments.steps % BLOCK or arguments.steps < 2 * BLOCK or arguments.epochs < 2:
        parser.error(f"--steps takes a multiple of {BLOCK} from {2 * BLOCK}, --epochs at least 2")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        return compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> int:
    fixed = [
        f"out={folder / 'run'}", f"data.root={folder / 'data'}", f"epochs={arguments.epochs}", "workers=0",
        "trainer.limit_val_batches=0", f"trainer.accelerator={arguments.device}",
        f"trainer.log_every_n_steps={BLOCK}", "trainer.precision=32-true",
    ]  # fmt: skip
    options = plain(compose_config("train", [*fixed, *arguments.overrides]))
    batches = made_batches(options, arguments.steps)
    total_steps = arguments.epochs * arguments.steps
    torch.manual_seed(0)
    bare = Bare(options, arguments.device, total_steps)
    torch.manual_seed(0)
    module = build_module(options)
    loader = TakingTurns(batches, bare, Clock(arguments.device))
    fit(options, folder / "run", module, loader)

    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{options['name']}, width {options['model']['width']}, {options['input_size']}², batch "
          f"{options['batch_size']}, {where}, torch {torch.__version__}")  # fmt: skip
    # `fit` leaves the averaged weights in the module.
    agree = same_weights(dict(bare.averaged.module.state_dict()), dict(module.cpu().to(arguments.device).state_dict()))
    print(f"both sides end with the same averaged weights: {agree}")
    report(loader, arguments.steps)
    return 0 if agree or arguments.device == "cuda" else 1


def report(loader: TakingTurns, steps: int) -> None:
    """The first epoch warms both sides up."""
    # The last step of an epoch cannot be told from the epoch's end: its block is not among the blocks.
    kept = loader.blocks[steps // BLOCK - 1 :]
    bare, full = (np.array(side) / BLOCK * 1e3 for side in zip(*kept, strict=True))
    for i, name in enumerate(("wall clock", "CPU time")):
        b, f = np.median(bare[:, i]), np.median(full[:, i])
        ratios = full[:, i] / bare[:, i] - 1
        low, high = np.percentile(ratios, [25, 75])
        end = np.median([seconds[i] for seconds in loader.ends]) * 1e3 - f
        print(
            f"  {name}  bare {b:7.2f} ms  full {f:7.2f} ms a step; overhead per block of {BLOCK}: median "
            f"{np.median(ratios):+.2%}, quartiles {low:+.2%} {high:+.2%}, {len(ratios)} blocks; end of an epoch "
            f"{end:.0f} ms, {end / (b * steps):.2%} of {steps} bare steps"
        )


if __name__ == "__main__":
    sys.exit(main())
