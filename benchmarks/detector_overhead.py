"""What ``FaceDetector.detect`` costs next to the model alone, what batches save, and how long imports take.

    python benchmarks/detector_overhead.py                                  # 640 × 480, one thread
    python benchmarks/detector_overhead.py --threads 2 --batches 1 2 4 8
    python benchmarks/detector_overhead.py --files FOLDER --count 64        # paths next to the model's own time

"model": normaliser, network, decoding, top-k and NMS of a tensor that lies ready, channels last. "detect": the same
pixels as a numpy array, and what it takes besides. Both sides run in this process, in turn, so that a busy moment meets
both; what is printed is the median of each side, and of the differences to "model" of the same round. Imports are timed
in processes of their own. Run it on an idle machine; on one that is shared, ``--clock cpu`` counts the time that this
process had, all its threads added up.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt


def milliseconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    work()
    return 1e3 * (clock() - start)


def in_turn(sides: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of each side's rounds; the order turns round every time, and the first round is for warming up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name in list(sides)[:: 1 if index % 2 else -1]:
            time_taken = milliseconds(sides[name], clock)
            if index:
                taken[name].append(time_taken)
    return taken


def overhead(width: int, height: int, rounds: int, clock: Callable[[], float]) -> None:
    import torch
    from PIL import Image

    from fanet_lightning import FaceDetector
    from fanet_lightning.ops.anchors import AnchorGrid
    from fanet_lightning.ops.postprocess import detect

    detector = FaceDetector.from_pretrained()
    image = example_image(width, height)
    images = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    pillow, tensor = Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1).contiguous()

    def model() -> object:
        with torch.inference_mode():
            output = detector.backend.network(images)
            return detect(output, AnchorGrid(tuple(output.map_shapes)), **detector.detection)[0]

    sides = {
        "model": model,
        "detect(array)": lambda: detector.detect(image, "original", 0.0),
        "detect(array, channel_order='bgr')": lambda: detector.detect(image, "original", 0.0, channel_order="bgr"),
        "detect(tensor)": lambda: detector.detect(tensor, "original", 0.0),
        "detect(PIL image)": lambda: detector.detect(pillow, "original", 0.0),
        "detect([array])": lambda: detector.detect([image], "original", 0.0),
    }
    found = detector.detect(image, "original", 0.0).count
    taken = in_turn(sides, rounds, clock)
    print(f"{width} × {height}, {found} faces, {torch.get_num_threads()} thread(s), {rounds} rounds; medians")
    for name, times in taken.items():
        more = statistics.median(a - b for a, b in zip(times, taken["model"], strict=True))
        ratio = statistics.median(times) / statistics.median(taken["model"])
        print(f"  {name:36} {statistics.median(times):7.2f} ms   {more:+6.2f} ms   {ratio:5.3f} × model")


def batches(width: int, height: int, sizes: list[int], rounds: int, clock: Callable[[], float]) -> None:
    import torch

    from fanet_lightning import FaceDetector

    image = example_image(width, height)
    detectors = {size: FaceDetector.from_pretrained(batch_size=size) for size in sizes}
    images = [np.roll(image, 8 * shift, axis=1) for shift in range(max(sizes))]
    sides = {f"batch_size={size}": lambda it=it: it.detect(images, "original", 0.0) for size, it in detectors.items()}
    taken = in_turn(sides, rounds, clock)
    first = statistics.median(next(iter(taken.values())))
    print(f"a list of {len(images)} images, {width} × {height}, {torch.get_num_threads()} thread(s); medians")
    for name, times in taken.items():
        middle = statistics.median(times)
        print(f"  {name:36} {middle / len(images):7.2f} ms an image   {middle / first:5.3f} × {next(iter(sides))}")


def files(folder: Path, count: int, rounds: int) -> None:
    """A list of paths next to the network's time on the same images, decoded beforehand."""
    import torch

    from fanet_lightning import FaceDetector
    from fanet_lightning.data.images import read_image_rgb

    endings = (".jpg", ".jpeg", ".png")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    paths = paths[:: max(1, len(paths) // count)][:count]
    detector = FaceDetector.from_pretrained()
    ready = [torch.from_numpy(read_image_rgb(path))[None].permute(0, 3, 1, 2) for path in paths]
    sides = {
        "model alone": lambda: [detector.backend.find(images) for images in ready],
        "one by one": lambda: [detector.detect(path, "original", 0.0) for path in paths],
        "detect(paths)": lambda: detector.detect(paths, "original", 0.0),
    }
    taken = in_turn(sides, rounds, time.perf_counter)
    model = statistics.median(taken["model alone"])
    print(f"{len(paths)} files of {folder}, {torch.get_num_threads()} thread(s), {rounds} rounds; medians")
    for name, times in taken.items():
        middle = statistics.median(times)
        print(
            f"  {name:36} {1e3 * len(paths) / middle:7.2f} images/s   {100 * model / middle:5.1f} % of the model alone"
        )


def example_image(width: int, height: int) -> npt.NDArray[np.uint8]:
    """A synthetic image with faces."""
    from fanet_lightning.data.synthetic.scenes import draw_image

    image: npt.NDArray[np.uint8] = draw_image(np.random.default_rng(0), (width, width), (height, height)).image_rgb
    return image


def imports(repeats: int) -> None:
    print(f"imports, the interpreter's start included: best and median of {repeats}")
    for code in ("pass", "import fanet_lightning", "from fanet_lightning import FaceDetector"):
        command = [sys.executable, "-c", code]
        taken = [milliseconds(lambda: subprocess.run(command, check=True)) for _ in range(repeats)]  # noqa: B023
        print(f"  {code:44} {min(taken):8.0f} {statistics.median(taken):8.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's own time")
    parser.add_argument("--batches", type=int, nargs="*", default=[], help="batch sizes to compare")
    parser.add_argument("--files", type=Path, help="a folder of images, searched through")
    parser.add_argument("--count", type=int, default=64, help="how many of them, spread over the folder")
    args = parser.parse_args()
    imports(5)
    import torch

    torch.set_num_threads(args.threads)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    print(f"{args.clock} time")
    overhead(args.width, args.height, args.rounds, clock)
    if args.batches:
        batches(args.width, args.height, args.batches, max(1, args.rounds // 8), clock)
    if args.files:
        files(args.files, args.count, max(1, args.rounds // 10))


if __name__ == "__main__":
    main()
