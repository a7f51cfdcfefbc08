"""One 640 × 480 image on a CPU: plain eager float32 next to FaceDetector, onnxruntime, torch.compile, bf16 and int8.

    python benchmarks/export_speed.py                      # the paper's VGG16 network, level 3, and the light one
    python benchmarks/export_speed.py --threads 1 --rounds 20 --networks fanet_light

All sides run in one process on the same weights and pixels, pixels to faces, in turn, round by round. "Plain eager" is
the network as it is built, in evaluation mode, memory in torch's usual order, batch normalisation where there is some,
and postprocess.detect. Printed are best and median of the rounds, the ratio to plain eager, and the share that the
network's operations reach of this machine's measured rate of float32 matrix products (2048³, between the rounds). With
random weights all but some 300 anchors are pushed below the score floor, as training does. Run it on an idle machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {"score_floor": 0.01, "top_k": 5000, "nms_iou": 0.3, "keep": 750}
GEMM_SIDE = 2048


def photograph(width: int, height: int) -> Any:
    """(1, 3, H, W) uint8: the photograph that comes with matplotlib."""
    import cv2
    import torch

    from fanet_lightning.export.run import batches_to_try

    image = cv2.resize(batches_to_try(None)[0][0].transpose(1, 2, 0), (width, height))
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def network_of(name: str, images: Any) -> Any:
    """``fanet``: the paper's, VGG16 at full width with the context module; ``fanet_light``: the shipped one."""
    import torch

    from fanet_lightning.models.fanet import build_network
    from fanet_lightning.models.pretrained import load_model

    if name == "fanet_light":
        return load_model(name).network
    torch.manual_seed(0)
    network = build_network(level=3, context=True, width=1.0).eval()
    with torch.no_grad():
        logits = network(images).hierarchies[-1].logits[0]
        margin = (logits[:, 1] - logits[:, 0]).topk(300).values[-1].item()
        for head in network.heads["3"].children():
            head.bias[-1] -= margin + 4.6  # minus the logit of 0.01
    return network


def sides(network: Any, images: Any, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What runs, by name; each gives the boxes."""
    import copy

    import torch

    from fanet_lightning.detect.detector import ExportBackend, TorchBackend
    from fanet_lightning.export.onnx_graph import onnx_model
    from fanet_lightning.models.blocks import fuse
    from fanet_lightning.ops.anchors import AnchorGrid
    from fanet_lightning.ops.postprocess import detect

    plain = copy.deepcopy(network)
    detector = TorchBackend(fuse(network), detection=SETTINGS)

    def eager(run: Callable[[Any], Any]) -> Any:
        with torch.inference_mode():
            output = run(images)
            return detect(output, AnchorGrid(tuple(output.map_shapes)), **SETTINGS)[0].boxes_xyxy

    found: dict[str, Callable[[], Any]] = {
        "plain eager": lambda: eager(plain),
        "FaceDetector": lambda: detector.find(images)[0].detections.boxes_xyxy,
    }
    pixels = images.numpy()
    for dtype in ("float32", "int8"):
        calibration = [pixels[0].transpose(1, 2, 0)] if dtype == "int8" else []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            model = onnx_model(fuse(network), SETTINGS, {}, dtype=dtype, calibration=calibration)
            path.write_bytes(model.SerializeToString())
            backend = ExportBackend.open(path, device="cpu", threads=args.threads)
        found[f"onnxruntime {dtype}"] = partial(_boxes, backend, pixels)
    bf16 = TorchBackend(fuse(network), detection=SETTINGS, precision="bf16-mixed")
    if args.bf16:
        found["FaceDetector bf16"] = lambda: bf16.find(images)[0].detections.boxes_xyxy
    if args.compile:
        compiled = torch.compile(fuse(network).to(memory_format=torch.channels_last))
        found["torch.compile"] = lambda: eager(compiled)
    return found


def _boxes(backend: Any, pixels: Any) -> Any:
    return backend.run(pixels)[0]


def matrix_product(side: int) -> Callable[[], Any]:
    import torch

    first, second = torch.randn(side, side), torch.randn(side, side)
    return lambda: first @ second


def compare(name: str, args: argparse.Namespace) -> None:
    from fanet_lightning.models.fanet import flops

    images = photograph(args.width, args.height)
    network = network_of(name, images)
    operations = flops(network, args.height, args.width)
    work = sides(network, images, args)
    product = matrix_product(GEMM_SIDE)
    counts = {}
    for side, run in work.items():
        counts[side] = len(run())
        run()
    product()
    seconds: dict[str, list[float]] = {side: [] for side in [*work, "product"]}
    for _ in range(args.rounds):
        for side, run in [*work.items(), ("product", product)]:
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
    rate = 2 * GEMM_SIDE**3 / min(seconds["product"])
    print(
        f"\n{name}, {args.width} × {args.height}, {operations / 1e9:.1f} GFLOP, {args.threads} thread(s), "
        f"{args.rounds} rounds; matrix product {rate / 1e9:.0f} GFLOP/s"
    )
    plain = seconds["plain eager"]
    for side in work:
        own = seconds[side]
        print(
            f"  {side:20} {min(own) * 1e3:8.1f} / {statistics.median(own) * 1e3:8.1f} ms best / median, "
            f"{min(plain) / min(own):5.2f} / {statistics.median(plain) / statistics.median(own):5.2f} × plain eager, "
            f"{operations / min(own) / rate:5.1%} of the matrix product, {counts[side]} faces"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=["fanet", "fanet_light"], default=["fanet", "fanet_light"])
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false", help="for processors that only emulate it")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    for name in args.networks:
        compare(name, args)


if __name__ == "__main__":
    main()
