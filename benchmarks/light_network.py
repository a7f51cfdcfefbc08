"""The light network on a CPU: every way to run it, beside networks that it was chosen over. One image, one process.

    python benchmarks/light_network.py                  # 640 × 480, one and two threads
    python benchmarks/light_network.py --compile --train

Rounds are interleaved, so that a busy moment meets every side; best and median are printed. Ratios are of the best.
"fused" has batch normalisation folded in; "depthwise" is the same network with every 3×3 convolution of the trunk split
into a depthwise and a 1×1 one; onnxruntime joins where it is installed (with onnx and onnxscript). Run it on an idle
machine.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fanet_lightning.cli.config import compose_config, plain
from fanet_lightning.models.blocks import ConvReLU, fuse
from fanet_lightning.models.fanet import build_network, flops, inference_parameters


class Separable(nn.Sequential):
    """A 3×3 convolution as depthwise 3×3 and 1×1, each with batch normalisation and ReLU (MobileNet's)."""

    def __init__(self, layer: ConvReLU) -> None:
        depthwise = ConvReLU(layer.in_channels, layer.in_channels, 3, stride=layer.stride[0], batch_norm=True)
        depthwise.weight = nn.Parameter(depthwise.weight[:, :1].clone())
        depthwise.groups = layer.in_channels
        super().__init__(depthwise, ConvReLU(layer.in_channels, layer.out_channels, 1, batch_norm=True))


def configured(*overrides: str) -> Any:
    torch.manual_seed(0)
    return build_network(**plain(compose_config("train", list(overrides)))["model"])


def depthwise() -> Any:
    network = configured("model=fanet_light")
    for module in list(network.trunk.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvReLU) and child.kernel_size == (3, 3) and child.in_channels > 3:
                setattr(module, name, Separable(child))
    return network


def networks() -> dict[str, Any]:
    """Every side, with a network to count by."""
    return {
        "fanet_light": configured("model=fanet_light"),
        "fanet_light, depthwise": depthwise(),
        "fanet, width 0.125": configured("model=fanet"),
        "fanet, width 0.25": configured("model=fanet", "model.width=0.25"),
        "s3fd_fpn, width 0.125": configured("model=s3fd_fpn"),
    }


def interleaved(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call. One call each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def onnx_session(network: nn.Module, images: Tensor, threads: int) -> Callable[[], object] | None:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ModuleNotFoundError:
        return None

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            last = self.network(x).hierarchies[-1]
            return last.logits, last.offsets

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "light.onnx")
        torch.onnx.export(Raw().eval(), (images.contiguous(),), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.contiguous().numpy()}
    return lambda: session.run(None, feed)


def inference(args: argparse.Namespace, threads: int) -> None:
    torch.set_num_threads(threads)
    height, width = args.height, args.width
    images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    runs: dict[str, tuple[Any, Any]] = {}
    for name, network in networks().items():
        network = network.to(memory_format=torch.channels_last).eval()
        runs[f"{name}, fused"] = (network, fuse(network))
        if name == "fanet_light":
            runs[name] = (network, network)
            if args.compile:
                compiled = fuse(network)
                compiled.compile()
                runs[f"{name}, fused, compiled"] = (network, compiled)
    sides: dict[str, Callable[[], object]] = {name: functools.partial(run, images) for name, (_, run) in runs.items()}
    session = onnx_session(runs["fanet_light, fused"][1], images, threads)
    if session is not None:
        sides["fanet_light, fused, onnxruntime"] = session
        runs["fanet_light, fused, onnxruntime"] = runs["fanet_light, fused"]
    with torch.inference_mode():
        seconds = interleaved(sides, args.rounds)
    base = min(seconds["fanet_light, fused"])
    print(f"\nforward, {width} × {height}, {threads} thread(s): best and median of {args.rounds} rounds")
    for name, times in seconds.items():
        count = flops(runs[name][0], height, width)
        print(
            f"  {name:36} {min(times) * 1e3:7.1f} {statistics.median(times) * 1e3:7.1f} ms  {count / 1e9:6.2f} GFLOP "
            f"{count / min(times) / 1e9:6.0f} GFLOP/s  {inference_parameters(runs[name][0]) / 1e6:5.2f} M  "
            f"{min(times) / base:5.2f} × fanet_light"
        )


def training(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (8, 3, 320, 320), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)

    def step(network: Any) -> None:
        network.zero_grad(set_to_none=True)
        parts = [h.logits.sum() + h.offsets.sum() for h in network(images).hierarchies]
        torch.autograd.backward(torch.stack(parts).sum())

    built = {name: x.to(memory_format=torch.channels_last).train() for name, x in networks().items()}
    sides = {name: functools.partial(step, network) for name, network in built.items()}
    seconds = interleaved(sides, args.train_rounds)
    base = min(seconds["fanet_light"])
    print("\ntraining step, 8 images of 320 × 320, 1 thread: forward of all hierarchies, backward")
    for name, times in seconds.items():
        print(f"  {name:36} {8 / min(times):6.1f} images/s  {min(times) / base:5.2f} × fanet_light's time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--train-rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well; takes a minute")
    parser.add_argument("--train", action="store_true", help="the training step as well")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for threads in args.threads:
        inference(args, threads)
    if args.train:
        training(args)


if __name__ == "__main__":
    main()
