"""From a JPEG's bytes to faces on a CPU: where the milliseconds go, and what keeping the memory of activations saves.

    python benchmarks/light_detection.py                            # 640 × 480, one and two threads
    python benchmarks/light_detection.py --image some.jpg --checkpoint best.ckpt --train

Two processes run the same work, round by round in turn: one lets glibc hand freed memory back to the system, as it does
by itself, in the other :func:`keep_activation_memory` was called; a process cannot be switched back. Best and median of
the rounds, and pages that the system had to fault in. onnxruntime joins where it is installed (with onnx and
onnxscript). With random weights, all but some 300 anchors are pushed below the score floor, as training does. Run it on
an idle machine.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Work = dict[str, Callable[[], object]]


def example_image(args: argparse.Namespace) -> bytes:
    """The bytes of the JPEG: the given file, or blurred noise, which compresses about like a photograph."""
    import cv2

    if args.image:
        return bytes(args.image.read_bytes())
    small = np.random.default_rng(0).integers(0, 256, (args.height // 4, args.width // 4, 3)).astype(np.uint8)
    image = cv2.resize(cv2.GaussianBlur(small, (5, 5), 0), (args.width, args.height))
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def detector(args: argparse.Namespace) -> Any:
    import torch

    import fanet_lightning.detect.detector
    from fanet_lightning.cli.config import compose_config, plain
    from fanet_lightning.detect.detector import FaceDetector, TorchBackend
    from fanet_lightning.models.blocks import fuse
    from fanet_lightning.models.fanet import build_network

    # A detector keeps its memory by itself; here the worker has decided.
    fanet_lightning.detect.detector.keep_activation_memory = lambda: False  # type: ignore[assignment]
    if args.checkpoint:
        found = FaceDetector.from_checkpoint(args.checkpoint)
    else:
        torch.manual_seed(0)
        network = build_network(**plain(compose_config("train", ["model=fanet_light"]))["model"])
        _learn_to_say_no(network, args)
        found = FaceDetector(TorchBackend(fuse(network)))
    return found


def _learn_to_say_no(network: Any, args: argparse.Namespace) -> None:
    """Lower the face scores of random heads until about 300 anchors of the image pass the floor of 0.01."""
    import torch

    from fanet_lightning.data.images import decode_image_rgb

    images = torch.from_numpy(decode_image_rgb(example_image(args)).transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        logits = network.eval()(images).hierarchies[-1].logits[0]
        margin = (logits[:, 1] - logits[:, 0]).topk(300).values[-1].item()
        for head in network.heads[list(network.heads)[-1]].children():
            head.bias[-1] -= margin + 4.6  # logit of 0.01


def inference(args: argparse.Namespace) -> Work:
    import torch

    from fanet_lightning.data.images import decode_image_rgb
    from fanet_lightning.ops.anchors import AnchorGrid
    from fanet_lightning.ops.postprocess import detect

    found, content = detector(args), example_image(args)
    image = decode_image_rgb(content)
    images = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    output = found.backend.heads(images)
    grid = AnchorGrid(tuple(output.map_shapes))
    with torch.inference_mode():
        count = len(detect(output, grid)[0].scores)
    print(f"  image {image.shape[1]} × {image.shape[0]}, {len(content)} bytes; {count} faces", file=sys.stderr)

    def network() -> None:
        with torch.inference_mode():
            found.backend.heads(images)

    work: Work = {
        "JPEG → RGB": lambda: decode_image_rgb(content),
        "normaliser and network": network,
        "heads → faces": lambda: detect(output, grid, **found.detection),
        "JPEG → faces": lambda: found.detect(decode_image_rgb(content), "original", 0.0),
    }
    session = onnx(found.backend.network, images, args)
    if session is not None:

        def with_onnx() -> None:
            pixels = np.ascontiguousarray(decode_image_rgb(content).transpose(2, 0, 1))[None]
            logits, offsets = session(pixels)
            heads = type(output.hierarchies[-1])(torch.from_numpy(logits), torch.from_numpy(offsets))
            detect(output._replace(hierarchies=[heads]), grid, **found.detection)

        work["network, onnxruntime"] = lambda: session(images.numpy())
        work["JPEG → faces, onnxruntime"] = with_onnx
    return work


def onnx(
    network: Any, images: Any, args: argparse.Namespace
) -> Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] | None:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ModuleNotFoundError:
        return None
    import tempfile

    import torch

    class Raw(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            last = self.network(x).hierarchies[-1]
            return last.logits, last.offsets

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.thread
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "light.onnx")
        torch.onnx.export(Raw().eval(), (images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: tuple(session.run(None, {name: pixels}))


def training(args: argparse.Namespace) -> Work:
    import torch

    from fanet_lightning.cli.config import compose_config, plain
    from fanet_lightning.models.fanet import build_network

    torch.manual_seed(0)
    network: Any = build_network(**plain(compose_config("train", ["model=fanet_light"]))["model"])
    network.to(memory_format=torch.channels_last).train()
    images = torch.randint(0, 256, (args.batch, 3, 320, 320), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        parts = [h.logits.sum() + h.offsets.sum() for h in network(images).hierarchies]
        torch.autograd.backward(torch.stack(parts).sum())

    return {f"training step, {args.batch} × 320²": step}


def worker(args: argparse.Namespace, kept: bool, train: bool, connection: Connection) -> None:
    import cv2
    import torch

    from fanet_lightning.cli.device import keep_activation_memory

    torch.set_num_threads(args.thread)
    cv2.setNumThreads(args.thread)
    if kept and not keep_activation_memory():
        print("  this C library has no such switch: both sides are alike", file=sys.stderr)
    work = training(args) if train else inference(args)
    for run in work.values():
        run()
        run()
    connection.send(list(work))
    while (name := connection.recv()) is not None:
        faults, processor, start = _faults(), time.process_time(), time.perf_counter()
        work[name]()
        connection.send((time.perf_counter() - start, time.process_time() - processor, _faults() - faults))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def compare(args: argparse.Namespace, train: bool) -> None:
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for kept in (False, True):
        here, there = context.Pipe()
        processes.append(context.Process(target=worker, args=(args, kept, train, there)))
        processes[-1].start()
        ends.append(here)
    names, _ = (end.recv() for end in ends)
    rounds = args.train_rounds if train else args.rounds
    found: dict[str, list[list[tuple[float, float, int]]]] = {name: [[], []] for name in names}
    for _ in range(rounds):
        for name in names:
            for which, end in enumerate(ends):
                end.send(name)
                found[name][which].append(end.recv())
    for end, process in zip(ends, processes, strict=True):
        end.send(None)
        process.join()
    print(f"\n{args.thread} thread(s), {rounds} rounds: wall best / median, processor best, page faults")
    for name, sides in found.items():
        best: list[float] = []
        for label, side in zip(("handed back", "kept"), sides, strict=True):
            wall, processor = [row[0] for row in side], [row[1] for row in side]
            best.append(min(wall))
            print(
                f"  {name:28} {label:12} {min(wall) * 1e3:8.1f} / {statistics.median(wall) * 1e3:8.1f} ms "
                f"{min(processor) * 1e3:8.1f} ms {statistics.median(row[2] for row in side):8.0f}"
            )
        print(f"  {'':28} {best[0] / best[1]:5.2f} × as fast with the memory kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a JPEG; without it one is made of --width and --height")
    parser.add_argument("--checkpoint", type=Path, help="of train; without it random weights")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--train", action="store_true", help="the training step as well")
    parser.add_argument("--train-rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=12)
    args = parser.parse_args()
    for thread in args.threads:
        args.thread = thread
        compare(args, train=False)
    if args.train:
        args.thread = 1
        compare(args, train=True)


if __name__ == "__main__":
    main()
