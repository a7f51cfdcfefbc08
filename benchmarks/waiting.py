"""What the loader gives, what the training step asks for, and the share of an epoch that is spent waiting.

    python benchmarks/waiting.py                                    # JPEGs of its own, 1024 × 768, loader alone
    python benchmarks/waiting.py --images data/wider_face/WIDER_val/images --workers 0 1 2
    python benchmarks/waiting.py --step-ms 50                       # a step that takes so long, e.g. an accelerator's

For each number of workers, epochs of the real training loader (``FaceDataModule``: read, decode, augment, stack, hand
over):
  images/s         by the wall clock, with nothing to do between batches: the most that a device could be fed.
  ms CPU an image  of all processes: workers and main. 1000 / that is what one core gives; a machine of n cores gives
                   up to n times as many, if nothing else runs on it.
  waiting          of the epoch, where each step takes ``--step-ms`` (the main process sleeps, as it does while an
                   accelerator works): what ``train/wait_share`` shows.
The first epoch starts the workers and is not counted. Memory for the caches is warm after it, too.
"""

import argparse
import contextlib
import io
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import torch

from fanet_lightning.data.datamodule import FaceDataModule
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.transforms import TrainAugment
from samples import made_images, records_for


class Given:
    """These records and nothing else."""

    name = "given"

    def __init__(self, records: list[ImageRecord]) -> None:
        self._records = records

    def train(self) -> list[ImageRecord]:
        return self._records


def cpu_seconds(of: int) -> float:
    usage = resource.getrusage(of)
    return usage.ru_utime + usage.ru_stime


def one_epoch(loader: Any, epoch: int, step_seconds: float) -> tuple[int, float, float]:
    """Images, wall seconds, and the share of them that the loop waited."""
    loader.sampler.set_epoch(epoch)
    waited, start, images = loader.waited_seconds, time.perf_counter(), 0
    for batch in loader:
        images += len(batch.images)
        if step_seconds:
            time.sleep(step_seconds)
    seconds = time.perf_counter() - start
    return images, seconds, (loader.waited_seconds - waited) / seconds


def measure(records: list[ImageRecord], workers: int, arguments: argparse.Namespace) -> str:
    children, main = cpu_seconds(resource.RUSAGE_CHILDREN), cpu_seconds(resource.RUSAGE_SELF)
    module: Any = FaceDataModule(
        Given(records),  # type: ignore[arg-type]
        batch_size=arguments.batch_size, input_size=arguments.size, workers=workers,
        augment=TrainAugment(arguments.size), cache=arguments.cache,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        loader = module.train_dataloader()
    one_epoch(loader, 0, 0.0)
    speeds, shares, images = [], [], 0
    if workers == 0:
        main = cpu_seconds(resource.RUSAGE_SELF)
    for epoch in range(1, arguments.epochs + 1):
        count, seconds, _ = one_epoch(loader, epoch, 0.0)
        images += count
        speeds.append(count / seconds)
        if arguments.step_ms:
            count, _, share = one_epoch(loader, epoch, arguments.step_ms / 1e3)
            images += count
            shares.append(share)
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # their CPU time is known when they have ended
        images += count  # they have had the first epoch as well
    cpu = cpu_seconds(resource.RUSAGE_CHILDREN) - children + cpu_seconds(resource.RUSAGE_SELF) - main
    waiting = f"  waiting {min(shares):7.2%} … {max(shares):.2%}" if shares else ""
    per_image = cpu / images
    return (
        f"  workers={workers:<3}{max(speeds):7.1f} images/s  {per_image * 1e3:6.2f} ms CPU an image, "
        f"{1 / per_image:6.1f} per second and core{waiting}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEGs; default: made ones")
    parser.add_argument("--count", type=int, default=120, help="images of an epoch")
    parser.add_argument("--width", type=int, default=1024, help="of the made images, pixels")
    parser.add_argument("--epochs", type=int, default=3, help="that are counted")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--step-ms", type=float, default=0.0, help="what a training step takes")
    parser.add_argument("--cache", choices=["memory"])
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if arguments.images is None:
            paths = made_images(scratch, arguments.count, arguments.width)
        else:
            found = sorted(arguments.images.rglob("*.jpg"))
            paths = found[:: max(1, len(found) // arguments.count)][: arguments.count]
        if len(paths) < arguments.batch_size:
            parser.error(f"{len(paths)} images are fewer than a batch of {arguments.batch_size}")
        step = f", a step of {arguments.step_ms:g} ms" if arguments.step_ms else ""
        print(f"{len(paths)} images to {arguments.size} x {arguments.size}, batches of {arguments.batch_size}{step}, "
              f"cache={arguments.cache or 'null'}, {len(os.sched_getaffinity(0))} cores")  # fmt: skip
        for workers in arguments.workers:
            print(measure(records_for(paths, 12), workers, arguments), flush=True)


if __name__ == "__main__":
    main()
