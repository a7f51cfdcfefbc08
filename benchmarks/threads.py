"""How many threads training should have: images a second with one, with a core each, and as it chooses itself.

    python benchmarks/threads.py                      # the step at two widths, then the command: minutes
    python benchmarks/threads.py --rounds 1 --seconds 1 --commands 0
    python benchmarks/threads.py --ranks model.width=0.25              # any key=value of the training

Each is measured alone and beside a neighbor: a Python loop that keeps a core busy. The two cases and the numbers of
threads take turns, so that what else the machine does disturbs all alike.

the step     forward, loss, backward and optimizer of one process, on one batch: the default network, and the full
             width at crops of 128 pixels.
the command  ``python -m fanet_lightning.train`` as a person starts it, with its loader; its own images a second of
             each epoch but the first (``csv/metrics.csv``). ``--ranks`` adds two ranks
             of a thread each (``trainer=ddp``).
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fanet_lightning.cli import main as cli  # noqa: F401  as the command does: before torch, which reads the environment then
from fanet_lightning.cli.config import compose_config, plain
from fanet_lightning.cli.cores import free_cores, usable_cores

# The number of threads → images a second of each measurement; alone and beside a neighbor.
Speeds = dict[tuple[bool, str], list[float]]
CHOSEN = "chosen"
NETWORKS = ([], ["model.width=1.0", "input_size=128", "batch_size=2"])


@contextmanager
def neighbor(busy: bool) -> Iterator[None]:
    """A process that never waits, where one is wanted."""
    loop = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if loop is not None:
            loop.kill()
            loop.wait()


def steps(words: list[str], folder: Path, rounds: int, seconds: float) -> Speeds:
    """Training steps of this process, one number of threads after the other."""
    import torch

    from fanet_lightning.cli.device import resolve_precision
    from loop_overhead import Bare, made_batches

    data = [f"out={folder / 'run'}", f"data.root={folder / 'data'}", "data.train_images=16", "data.val_images=2"]
    options = plain(compose_config("train", [*data, "workers=0", *words]))
    batch = made_batches(options, 1)[0]
    half = resolve_precision(options["trainer"]["precision"], "cpu") == "bf16-mixed"
    bare, found = Bare(options, "cpu", 10**6), defaultdict(list)
    for _ in range(rounds):
        for busy in (False, True):
            for name in ("1", str(usable_cores()), CHOSEN):
                with neighbor(busy):
                    time.sleep(0.1)
                    torch.set_num_threads(free_cores()[0] if name == CHOSEN else int(name))
                    with torch.autocast("cpu", torch.bfloat16, enabled=half):
                        bare.step(batch)  # threads start with the first
                        start, count = time.perf_counter(), 0
                        while time.perf_counter() - start < seconds:
                            bare.step(batch)
                            count += 1
                    found[busy, name].append(count * len(batch.images) / (time.perf_counter() - start))
    return found


def commands(words: list[str], folder: Path, rounds: int, ranks: bool) -> Speeds:
    """Whole trainings, one after the other.

    Raises:
        RuntimeError: one failed; with the end of what it printed.
    """
    sides = {"1": ["threads=1"], str(usable_cores()): [f"threads={usable_cores()}"], CHOSEN: []}
    if ranks:
        sides["2 ranks"] = ["threads=1", "trainer=ddp", "trainer.devices=2"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    found = defaultdict(list)
    for number in range(rounds):
        for busy in (False, True):
            for name, own in sides.items():
                out = folder / f"run_{number}_{busy}_{name}".replace(" ", "_")
                command = [sys.executable, "-m", "fanet_lightning.train", *words, *own, f"out={out}"]
                with neighbor(busy):
                    done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{' '.join(own)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
                print(f"  {'beside' if busy else 'alone'}: {done.stdout.splitlines()[0]}", flush=True)
                found[busy, name] += speeds_of(out)
    return found


def speeds_of(run: Path) -> list[float]:
    last: dict[int, float] = {}
    with (run / "csv/metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("train/images_per_second"):
                last[int(row["epoch"])] = float(row["train/images_per_second"])
    return [speed for epoch, speed in sorted(last.items()) if epoch > 0]


def report(what: str, found: Speeds) -> None:
    medians = {key: statistics.median(speeds) for key, speeds in found.items()}
    one = medians[False, "1"]
    print(what)
    for (busy, name), median in medians.items():
        where, speeds = "beside a neighbor" if busy else "alone", found[busy, name]
        words = f"{name} thread(s)" if name.isdigit() else name
        spread = f"({min(speeds):.1f} … {max(speeds):.1f})"
        print(f"  {where:18} {words:13}{median:7.1f} images/s {spread:16} {median / one:.2f} × one thread alone")
    best = max(median for (busy, _), median in medians.items() if not busy)
    print(f"  chosen, alone: {medians[False, CHOSEN] / best:.2f} × the best (to be 0.75 or more); beside a neighbor: "
          f"{medians[True, CHOSEN] / one:.2f} × one thread alone (to be 0.5 or more)", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the training's configuration")
    parser.add_argument("--rounds", type=int, default=5, help="of steps")
    parser.add_argument("--seconds", type=float, default=2.0, help="of steps, each time")
    parser.add_argument("--commands", type=int, default=1, metavar="ROUNDS", help="of whole trainings")
    parser.add_argument("--images", type=int, default=64, help="of an epoch of the command")
    parser.add_argument("--epochs", type=int, default=3, help="of the command; the first warms up")
    parser.add_argument("--ranks", action="store_true", help="two ranks as well")
    arguments = parser.parse_args()
    print(
        f"{usable_cores()} cores, load {os.getloadavg()[0]:.1f}, spins {os.environ.get('GOMP_SPINCOUNT')}", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for words in NETWORKS if arguments.rounds else ():
            words = [*words, *arguments.overrides]
            report(
                f"the step, {' '.join(words) or 'default'}", steps(words, folder, arguments.rounds, arguments.seconds)
            )
        if arguments.commands:
            words = [
                f"data.root={folder}/data", f"data.train_images={arguments.images}", "data.val_images=2",
                f"epochs={arguments.epochs}", f"validate_every={arguments.epochs}", "trainer.accelerator=cpu",
                "trainer.log_every_n_steps=1", "evaluate_at_end=false", "logger=csv", "optim.warmup_steps=4",
                *arguments.overrides,
            ]  # fmt: skip
            found = commands(words, folder, arguments.commands, arguments.ranks)
            report(f"the command, {' '.join(arguments.overrides) or 'default'}", found)


if __name__ == "__main__":
    main()
