"""Two processes on the CPU (gloo) beside one: images a second of the real training command.

    python benchmarks/ddp_scaling.py
    python benchmarks/ddp_scaling.py --rounds 3 model.width=0.25        # any key=value of the training

one process, 1 thread     the reference.
one process, 2 threads    the same cores as two ranks, given to PyTorch's operators instead.
two ranks, 1 thread each  trainer=ddp trainer.devices=2; the batch and the learning rate stay the same in total.
Each is started as a person starts it, in turn, ``--rounds`` times; the loaders run beside them on the same cores.
Speed is the run's own images a second of each epoch but the first (``csv/metrics.csv``), the median over all rounds.
All three see the same images in the same order.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Side:
    name: str
    threads: int
    words: tuple[str, ...] = ()


SIDES = (
    Side("one process, 1 thread", 1),
    Side("one process, 2 threads", 2),
    Side("two ranks, 1 thread each", 1, ("trainer=ddp", "trainer.devices=2")),
)


def run(side: Side, words: list[str], out: Path) -> list[float]:
    """One training; images a second over each epoch but the first.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    # MKL and OpenMP alike; a launcher's variables would turn the run into a rank.
    environment = {**os.environ, "OMP_NUM_THREADS": str(side.threads), "MKL_NUM_THREADS": str(side.threads)}
    command = [sys.executable, "-m", "fanet_lightning.train", *words, *side.words, f"out={out}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side.name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    devices = json.loads((out / "run.json").read_text(encoding="utf-8"))["train"]["devices"]
    wanted = 2 if side.words else 1
    if devices != wanted:
        raise RuntimeError(f"{side.name}: trained on {devices} devices")
    last: dict[int, float] = {}
    with (out / "csv/metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("train/images_per_second"):
                last[int(row["epoch"])] = float(row["train/images_per_second"])
    return [speed for epoch, speed in sorted(last.items()) if epoch > 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the training's configuration")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="the first one warms up")
    parser.add_argument("--images", type=int, default=80, help="per epoch")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error("--epochs takes at least 2: the first one is not counted")
    measured: dict[str, list[float]] = {side.name: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"data.root={folder}/data", f"data.train_images={arguments.images}", "data.val_images=2",
            f"epochs={arguments.epochs}", f"validate_every={arguments.epochs}", "trainer.accelerator=cpu",
            "trainer.precision=32-true", "trainer.log_every_n_steps=1", "evaluate_at_end=false", "logger=csv",
            "optim.warmup_steps=4", *arguments.overrides,
        ]  # fmt: skip
        for number in range(arguments.rounds):
            for i, side in enumerate(SIDES):
                speeds = run(side, words, Path(folder) / f"run{number}_{i}")
                measured[side.name] += speeds
                print(f"round {number + 1}: {side.name:26}", *(f"{speed:.2f}" for speed in speeds), flush=True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {' '.join(arguments.overrides) or 'default model'}")
    reference = None
    for side in SIDES:
        speeds = measured[side.name]
        speed = statistics.median(speeds)
        reference = reference or speed
        spread = f"{min(speeds):.2f} … {max(speeds):.2f}"
        print(f"  {side.name:26} {speed:7.2f} images/s ({spread})  {speed / reference:5.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
