"""A folder of images through ``detect``, next to the network alone on the same images already decoded.

    OMP_NUM_THREADS=2 python benchmarks/detect_folder.py --images WIDER_val/images --list test.txt --threads 2
    python benchmarks/detect_folder.py --images photos/ --full --count 24

Three sides take turns over the same portions of images, in one process:

  pure      ``FaceDetector.detect`` on images in memory; reading and decoding them is not timed
  in turn   read, decode, detect, draw and write one image after another
  detect    what the command line does: reading, inference and writing overlap

The share asked for is pure ÷ detect ≥ 0.90. On as many cores as the network has threads nothing can be hidden for
free: decoding, drawing and encoding take processor time that the network would use, so processor times are printed too.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def detector_of(args: argparse.Namespace) -> Any:
    import torch

    from fanet_lightning.detect.detector import FaceDetector, TorchBackend

    if not args.full:
        return FaceDetector.from_pretrained(args.checkpoint, precision=args.precision)
    from fanet_lightning.cli.config import compose_config, plain
    from fanet_lightning.models.blocks import fuse
    from fanet_lightning.models.fanet import build_network

    torch.manual_seed(0)
    words = ["model=fanet", "model.width=1.0", "model.batch_norm=false"]
    network: Any = fuse(build_network(**plain(compose_config("train", words))["model"]).eval())
    # Random heads see faces everywhere; drawing them would be the work of no real image.
    for head in network.heads[list(network.heads)[-1]].children():
        head.bias.data[-1] -= 20.0
    return FaceDetector(TorchBackend(network, precision=args.precision))


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of all processors."""
    start, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--list", type=Path, help="names in that folder, one a line; without it all of its images")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--portion", type=int, default=80, help="images a turn")
    parser.add_argument("--threads", type=int, default=2, help="of the network")
    parser.add_argument("--workers", type=int, default=2, help="threads that read, and as many that write")
    parser.add_argument("--checkpoint", default="fanet_light")
    parser.add_argument("--full", action="store_true", help="the full VGG16 network with random weights instead")
    parser.add_argument("--protocol", default="original")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--save", default="images,json")
    parser.add_argument("--no-in-turn", action="store_true", help="leave that side out")
    args = parser.parse_args()

    import torch

    from fanet_lightning.cli.config import compose_config, plain
    from fanet_lightning.detect.inputs import Item, Limits, Sources, find_sources, load
    from fanet_lightning.detect.multiscale import build_protocol
    from fanet_lightning.detect.outputs import FoundImage, Saving, write_image
    from fanet_lightning.detect.run import detect_sources

    torch.set_num_threads(args.threads)
    if args.list:
        names = [line.strip() for line in args.list.read_text().splitlines() if line.strip()]
        items = [Item(args.images / name, name, name.rsplit(".", 1)[0]) for name in names]
    else:
        items = find_sources([str(args.images)]).images
    items = items[: args.count]
    detector, saving = detector_of(args), Saving(tuple(args.save.split(",")))
    protocol = plain(compose_config("detect", [f"protocol={args.protocol}"]))["protocol"]
    scale = build_protocol(protocol)

    def read(item: Item) -> Any:
        return load(item, Limits()).image_rgb

    first = read(items[0])
    for _ in range(2):
        detector.detect(first, scale, 0.5)

    sides = ["pure", "detect"] if args.no_in_turn else ["pure", "in turn", "detect"]
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for turn, start in enumerate(range(0, len(items), args.portion)):
        own = items[start : start + args.portion]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)

            def pure(own: list[Item] = own) -> tuple[float, float]:
                spent = []
                for item in own:
                    image = read(item)
                    spent.append(timed(lambda image=image: detector.detect(image, scale, 0.5)))
                return sum(wall for wall, _ in spent), sum(processor for _, processor in spent)

            def in_turn(own: list[Item] = own, out: Path = out) -> tuple[float, float]:
                def all_of_them() -> None:
                    for item in own:
                        image = read(item)
                        write_image(out / "turn", FoundImage(item, image, detector.detect(image, scale, 0.5)), saving)

                return timed(all_of_them)

            def whole(own: list[Item] = own, out: Path = out) -> tuple[float, float]:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    return timed(
                        lambda: detect_sources(
                            Sources(own, []), detector, protocol, out / "whole", saving=saving, workers=args.workers
                        )
                    )

            actions = {"pure": pure, "in turn": in_turn, "detect": whole}
            # Each side goes first as often as the others.
            order = sides[turn % len(sides) :] + sides[: turn % len(sides)]
            for side in order:
                found[side].append(actions[side]())
        line = "  ".join(f"{side} {found[side][-1][0]:.2f} s" for side in sides)
        print(f"  images {start + 1} … {start + len(own)}: {line}", file=sys.stderr)

    name = "VGG16, random weights" if args.full else args.checkpoint
    print(f"{len(items)} images, {name}, {args.protocol}, {args.precision}, {args.threads} threads, "
          f"{args.workers} workers, save={args.save}")  # fmt: skip
    walls = {side: sum(wall for wall, _ in found[side]) for side in sides}
    for side in sides:
        processor = sum(seconds for _, seconds in found[side])
        print(f"  {side:8} {walls[side]:8.2f} s  {walls[side] / len(items) * 1e3:7.1f} ms an image  "
              f"processors {processor / len(items) * 1e3:7.1f} ms an image")  # fmt: skip
    for side in sides[1:]:
        shares = [p[0] / w[0] for p, w in zip(found["pure"], found[side], strict=True)]
        print(
            f"  pure ÷ {side}: {walls['pure'] / walls[side]:.3f} (median of portions {statistics.median(shares):.3f})"
        )


if __name__ == "__main__":
    main()
