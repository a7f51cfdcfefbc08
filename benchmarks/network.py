"""Forward time and training memory of the networks, next to what the machine can do at most.

    python benchmarks/network.py --width 0.25 --size 640x480 640x640
    python benchmarks/network.py --device cuda --batch 12 --size 640x640 --train

Every precision that the device is fast in runs in this process on the same images; the ratios are against plain
float32. "of matmul" is the share of the matrix-product rate that was measured here in the same precision; above 100 %
the convolutions save multiplications (Winograd). Memory of the training step (forward, sum of all outputs, backward)
is measured in a process of its own per precision. Run it on an idle machine.
"""

import argparse
import contextlib
import functools
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fanet_lightning.models.fanet import Network, build_network, flops, inference_parameters


class Mode(NamedTuple):
    """One way to run: ``dtype`` None is float32 without autocast."""

    name: str
    channels_last: bool
    dtype: torch.dtype | None


MODES = (
    Mode("float32", False, None),
    Mode("float32 channels_last", True, None),
    Mode("bfloat16", False, torch.bfloat16),
    Mode("bfloat16 channels_last", True, torch.bfloat16),
)


def autocast(mode: Mode, device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, dtype=mode.dtype) if mode.dtype else contextlib.nullcontext()


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Median over ``repeats`` calls after two to warm up."""
    times = []
    for i in range(repeats + 2):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large matrix product: what a convolution could reach at best.

    The product grows until it takes 50 ms, since some processors have no bfloat16 and need seconds for a small one.
    """
    n, rate = 128, 0.0
    while n < 16384:
        n *= 2
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        seconds = median_seconds(functools.partial(torch.matmul, a, b), device, 3)
        rate = max(rate, 2 * n**3 / seconds)
        if seconds > 0.05:
            break
    return rate


def worthwhile(peaks: dict[torch.dtype, float], everything: bool) -> list[Mode]:
    """The modes to measure: without bfloat16 where its matrix product is the slower one, unless all are asked for."""
    if everything or peaks[torch.bfloat16] > peaks[torch.float32]:
        return list(MODES)
    print("  bfloat16 is slower than float32 on this device: left out, --all-modes measures it")
    return [mode for mode in MODES if mode.dtype is None]


def prepare(args: argparse.Namespace, mode: Mode) -> Network:
    torch.manual_seed(0)
    network = build_network(
        args.model, level=args.level, context=not args.no_context, hl=not args.no_hl, width=args.width
    ).to(args.device)
    if mode.channels_last:
        network.to(memory_format=torch.channels_last)
    return network


def random_images(args: argparse.Namespace, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (args.batch, 3, height, width), dtype=torch.uint8, device=args.device)


def forward_times(args: argparse.Namespace, peaks: dict[torch.dtype, float], modes: list[Mode]) -> None:
    print("\nforward (last hierarchy's heads)")
    for height, width in args.size:
        images = random_images(args, height, width)
        reference = None
        for mode in modes:
            network = prepare(args, mode).eval()
            if args.compile:
                network.compile()
            with torch.inference_mode(), autocast(mode, args.device):
                seconds = median_seconds(functools.partial(network, images), args.device, args.repeats)
            reference = reference or seconds
            rate = args.batch * flops(network, height, width) / seconds
            share = rate / peaks[mode.dtype or torch.float32]
            print(
                f"  {width}x{height} {mode.name:24} {seconds * 1e3:9.1f} ms  {args.batch / seconds:8.2f} images/s  "
                f"{rate / 1e9:8.0f} GFLOP/s  {share:5.0%} of matmul  {reference / seconds:5.2f}x"
            )


def training_step(args: argparse.Namespace, mode: Mode) -> tuple[float, float]:
    """(seconds, peak bytes beyond what was held before the network was built)."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # A first convolution loads the libraries, which are not the network's memory.
    warm = torch.nn.Conv2d(3, 8, 3).to(args.device)(torch.zeros(1, 3, 32, 32, device=args.device))
    torch.autograd.backward(warm.sum())
    before = _held_bytes(args.device)
    network = prepare(args, mode).train()
    images = random_images(args, *args.size[-1])

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with autocast(mode, args.device):
            out = network(images)
        torch.autograd.backward(torch.stack([h.logits.sum() + h.offsets.sum() for h in out.hierarchies]).sum())

    seconds = median_seconds(step, args.device, args.train_repeats)
    return seconds, _peak_bytes(args.device) - before


def _held_bytes(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _memory("VmRSS")


def _peak_bytes(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _memory("VmHWM")


def _memory(field: str) -> int:
    """Resident bytes now (``VmRSS``) or at most (``VmHWM``).

    Linux's own count where there is one: ``getrusage`` starts a new process with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def training_memory(args: argparse.Namespace, modes: list[Mode]) -> None:
    height, width = args.size[-1]
    print(f"\ntraining step, batch {args.batch}, {width}x{height}: forward, sum of all outputs, backward")
    reference = None
    for mode in modes:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, peak = pool.submit(training_step, args, mode).result()
        reference = reference or (seconds, peak)
        print(
            f"  {mode.name:24} {seconds * 1e3:9.1f} ms  {args.batch / seconds:8.2f} images/s  {peak / 2**20:8.0f} MiB  "
            f"{reference[0] / seconds:5.2f}x as fast  {peak / reference[1]:5.2f}x the memory"
        )


def size(text: str) -> tuple[int, int]:
    """``640x480``, width x height, → (480, 640)."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give width x height, as in 640x480") from None
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fanet", choices=["fanet", "s3fd_fpn"])
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--no-context", action="store_true")
    parser.add_argument("--no-hl", action="store_true")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=size, nargs="+", default=[(480, 640), (640, 640)], help="width x height")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--train-repeats", type=int, default=2)
    parser.add_argument("--train", action="store_true", help="measure the training step too, at the last size")
    parser.add_argument("--all-modes", action="store_true", help="bfloat16 even where the device has none")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward pass")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    network = prepare(args, MODES[0])
    print(f"{args.model} level={args.level} width={args.width}, {inference_parameters(network):,} parameters")
    print(f"{name}, torch {torch.__version__}")
    for height, width in args.size:
        print(f"  {width}x{height}: {flops(network, height, width) / 1e9:.1f} GFLOP an image")
    peaks = {dtype: peak_rate(dtype, args.device) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, rate in peaks.items():
        print(f"  matrix product {str(dtype).removeprefix('torch.')}: {rate / 1e9:.0f} GFLOP/s")
    modes = worthwhile(peaks, args.all_modes)
    forward_times(args, peaks, modes)
    if args.train:
        training_memory(args, modes)


if __name__ == "__main__":
    main()
