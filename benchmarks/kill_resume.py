"""Kill −9 a training at random moments, go on with ``resume=auto``: does it end like the one that was never killed?

    python benchmarks/kill_resume.py
    python benchmarks/kill_resume.py --kills 3 --seed 7 --keep kills     # any key=value of the training may follow

First a run that nothing disturbs, twice, because a comparison is worth nothing if two such runs differ by themselves.
Then ``--kills`` runs: each is killed with its whole process group at a moment drawn from an equal share of the
undisturbed run's time, so that the moments cover everything from the imports to the evaluation, and started again
until it ends. What a kill leaves must hold no damaged checkpoint. The end must be equal bit by bit: weights, averaged
weights, optimizer, schedule, random states, metrics, AP. Exit code 1 where one is not.

One thread, ``trainer.deterministic=true``, a tiny model: the question is about states, not about speed.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = (
    "level=2", "model.width=0.0625", "input_size=64", "batch_size=4", "epochs=12", "workers=1", "data.train_images=16",
    "data.val_images=3", "trainer.accelerator=cpu", "validate_every=2", "trainer.log_every_n_steps=1",
    "optim.warmup_steps=2", "trainer.deterministic=true", "checkpoint_every=3",
)  # fmt: skip
STATES = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step",
          "epoch")  # fmt: skip
# What a clock has decided differs between any two runs.
CLOCKS = ("train/images_per_second", "train/wait_share")


@dataclass(frozen=True)
class Kill:
    """One killed run: when, what it had written by then, how many starts it took to end, and what then differed."""

    after_seconds: float
    reached: str
    starts: int
    damaged: list[str]
    differences: list[str]


@contextlib.contextmanager
def started(out: Path, words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The training command in a process group of its own, killed if it outlives the block; ``log`` gets its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fanet_lightning.train", *words, f"out={out}", "resume=auto"]
    with log.open("ab") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_to_end(out: Path, words: list[str], log: Path) -> float:
    """Start it once and wait; seconds.

    Raises:
        RuntimeError: it failed; with the end of its log.
    """
    began = time.monotonic()
    with started(out, words, log) as process:
        code = process.wait()
    if code:
        raise RuntimeError(f"{out}: exit code {code}\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
    return time.monotonic() - began


def kill_and_go_on(out: Path, words: list[str], log: Path, after_seconds: float, whole: Path) -> Kill | None:
    """Kill one run and let it end; None: it had ended before the moment came.

    Args:
        out: an empty or absent folder.
        words: key=value of the training.
        log: of all its starts.
        after_seconds: from the start of the process.
        whole: the folder of the run that was never killed.
    """
    with started(out, words, log) as process:
        try:
            process.wait(after_seconds)
            return None
        except subprocess.TimeoutExpired:
            pass  # leaving the block kills it
    reached, damaged = state_of(out)
    run_to_end(out, words, log)
    starts = json.loads((out / "run.json").read_text(encoding="utf-8"))["train"]["starts"]
    return Kill(after_seconds, reached, starts, damaged, differences(out, whole))


def state_of(out: Path) -> tuple[str, list[str]]:
    """What a kill has left, in words, and the faults of the checkpoints."""
    import torch

    if not (out / "run.json").is_file():
        return "before the run's record", []
    damaged = []
    steps: dict[str, int] = {}
    for path in sorted((out / "checkpoints").glob("*.ckpt")):
        try:
            steps[path.name] = int(torch.load(path, weights_only=True, map_location="cpu")["global_step"])
        except Exception as error:  # whatever is wrong with the file
            damaged.append(f"{path.name}: {type(error).__name__}: {error}")
    if "last.ckpt" not in steps:
        return "no checkpoint yet" if not steps else f"no last.ckpt next to {', '.join(steps)}", damaged
    scored = "scored" if list(out.glob("evaluation*/scores.json")) else "unscored"
    return f"last.ckpt at step {steps['last.ckpt']}, {scored}", damaged


def differences(run: Path, whole: Path) -> list[str]:
    """Where the end of ``run`` is not that of ``whole``: one line each, empty where they are equal."""
    import torch

    found: list[str] = []
    for name in ("last.ckpt", "best.ckpt"):
        ends = [torch.load(path / "checkpoints" / name, weights_only=True, map_location="cpu") for path in (run, whole)]
        for key in STATES:
            found += unequal(ends[0][key], ends[1][key], f"{name}: {key}")
        states = [end["callbacks"]["RandomState"] for end in ends]
        found += unequal(states[0], states[1], f"{name}: RandomState")
    rows = [metrics(path) for path in (run, whole)]
    found += unequal(rows[0], rows[1], "metrics.csv")
    records = [json.loads((path / "run.json").read_text(encoding="utf-8")) for path in (run, whole)]
    for record in records:
        for score in record["scores"].values():
            del score["images_per_second"]
    found += unequal(records[0]["scores"], records[1]["scores"], "scores")
    found += unequal(records[0]["state"], "finished", "state")
    return found


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "csv/metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


def unequal(first: Any, second: Any, where: str) -> list[str]:
    """The paths at which two nested values differ, bit for bit."""
    import torch

    if type(first) is not type(second):
        return [f"{where}: {type(first).__name__} and {type(second).__name__}"]
    if isinstance(first, torch.Tensor):
        if first.dtype == second.dtype and first.shape == second.shape:
            # Bytes, so that equal NaNs are equal and 0.0 is not -0.0.
            sides = [side.detach().contiguous().reshape(-1).view(torch.uint8) for side in (first, second)]
            return [] if torch.equal(*sides) else [f"{where}: tensors differ"]
        return [f"{where}: {first.dtype} {tuple(first.shape)} and {second.dtype} {tuple(second.shape)}"]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{where}: keys {sorted(map(str, first.keys() ^ second.keys()))}"]
        return [line for key in first for line in unequal(first[key], second[key], f"{where}.{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{where}: {len(first)} and {len(second)} entries"]
        pairs = enumerate(zip(first, second, strict=True))
        return [line for i, pair in pairs for line in unequal(*pair, f"{where}[{i}]")]
    return [] if first == second else [f"{where}: {first!r} and {second!r}"]


def moments(count: int, seconds: float, seed: int) -> list[float]:
    """One random moment in each of ``count`` equal shares of ``seconds``, in random order."""
    generator = random.Random(seed)
    drawn = [(i + generator.random()) / count * seconds for i in range(count)]
    generator.shuffle(drawn)
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the training's configuration")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="leave the runs and their logs in this folder")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        return compare(arguments, folder.absolute())


def compare(arguments: argparse.Namespace, folder: Path) -> int:
    words = [*TINY, *arguments.overrides, f"data.root={folder / 'data'}"]
    whole = folder / "whole"
    run_to_end(whole, words, folder / "whole.log")
    seconds = run_to_end(folder / "again", words, folder / "again.log")
    differ = differences(folder / "again", whole)
    same = "; ".join(differ[:3]) if differ else "yes"
    print(f"undisturbed: {seconds:.1f} s; twice the same end: {same}", flush=True)
    if differ:
        return 1
    failed = 0
    print(f"{'kill after':>10}  {'starts':>6}  {'the end':8}  reached by then", flush=True)
    for number, planned in enumerate(moments(arguments.kills, seconds, arguments.seed)):
        kill, moment = None, planned
        while kill is None:  # on a machine that has become faster the run may have ended before: earlier, then
            out = folder / f"kill{number}_{moment:.2f}"
            kill = kill_and_go_on(out, words, out.with_suffix(".log"), moment, whole)
            moment *= 0.9
        wrong = [*kill.damaged, *kill.differences]
        failed += bool(wrong)
        end = "DIFFERS" if wrong else "equal"
        print(f"{kill.after_seconds:8.2f} s  {kill.starts:6}  {end:8}  {kill.reached}", flush=True)
        for line in wrong[:5]:
            print(f"{'':20}{line}", flush=True)
    print(f"{arguments.kills - failed} of {arguments.kills} ended with the same weights and left no damaged checkpoint")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
