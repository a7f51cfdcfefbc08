"""CPU time of a training from the command to the end of its first step, beyond importing torch and Lightning.

    python benchmarks/start.py [--rounds 5] [key=value of train …]

User and system time of the process (``time.process_time``), so that other work on the machine counts little; medians of
the rounds. Data are made or read before; samples are loaded in the process.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytorch_lightning import Callback

IMPORTS = "import torch, pytorch_lightning"
PARTS = (
    "importing the package and Hydra, reading the words, composing",
    "checks, network, source, record, loggers, FLOPs",
    "reading annotations, checking validation images, optimizer, digest",
    "loading the first batch",
    "the first step",
)


class FirstStep(Callback):
    """Prints the CPU time so far at the beginning of each part but the first, and ends the process after a step."""

    def __init__(self) -> None:
        self.times = [time.process_time()]

    def _mark(self, *_: object, **__: object) -> None:
        self.times.append(time.process_time())

    setup = on_train_start = on_train_batch_start = _mark  # type: ignore[assignment]

    def on_train_batch_end(self, *_: object) -> None:
        self._mark()
        print("times", *self.times, flush=True)
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options, words = parser.parse_known_args()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }

    def seconds(*command: str) -> list[float]:
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
        return [float(word) for word in done.stdout.splitlines()[-1].split()[1:]]

    with tempfile.TemporaryDirectory() as folder:
        train = ["-m", "fanet_lightning.train", "workers=0", f"out={folder}", "overwrite=true", *words]
        train.append("callbacks.stop._target_=start.FirstStep")
        seconds(*train)  # synthetic faces are drawn now
        rows = []
        for _ in range(options.rounds):
            imports = seconds("-c", f"{IMPORTS}; import time; print('times', time.process_time())")
            rows.append([*imports, *seconds(*train)])
    parts = [[later - before for before, later in itertools.pairwise(row)] for row in rows]
    print(f"{IMPORTS}: {statistics.median(row[0] for row in rows):.2f} s")
    for name, column in zip(PARTS, zip(*parts, strict=True), strict=True):
        print(f"{statistics.median(column):6.2f} s  {name}")
    total = [row[-1] - row[0] for row in rows]
    print(f"{statistics.median(total):6.2f} s  together ({min(total):.2f} … {max(total):.2f}), {options.rounds} rounds")


if __name__ == "__main__":
    main()
