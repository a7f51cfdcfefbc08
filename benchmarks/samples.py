"""Training samples a second and core: this package's path next to a stock Albumentations composition.

    python benchmarks/samples.py                                    # JPEGs of its own, 1024 × 768
    python benchmarks/samples.py --images data/wider_face/WIDER_val/images --count 200
    python benchmarks/samples.py --caches 1024 4000                 # JPEGs of these widths, with and without a cache

One process, one thread. Both sides turn the same files into 640 × 640 samples with their boxes:
  ours   ``TrainDataset``: decoding, expansion + square crop + resizing as one resampling, colors on the visible part
         where it has fewer pixels, flip, uint8 tensor; the device normalizes.
  stock  the paper's order with the library's own transforms: PIL decoding, a ColorJitter for each of SSD's four color
         steps with SSD's probability of one half, CropAndPad (a real canvas), RandomResizedCrop (square), flip,
         Normalize, float tensor. Nothing keeps a face in the crop.
  stock, one ColorJitter       the same with the colors as they are usually written: all four steps on every image.
  stock, our decoding, uint8   the same without PIL and without Normalize: what the resampling and the colors gain.
Times are this process's CPU time, so another program on the machine disturbs them little; files are read from the page
cache. Passes alternate and the fastest of each side counts.

``--caches`` compares ``cache=null`` and ``memory`` (decoded images, after the first epoch; every sample is checked to
be equal to the last bit), and shows what decoding to a half, a quarter or an eighth of the size inside the decoder
would save.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image

from fanet_lightning.data.datamodule import SampleKey, TrainDataset, memory_cache
from fanet_lightning.data.images import Image8, read_image_rgb, read_image_size
from fanet_lightning.data.records import Boxes, ImageRecord
from fanet_lightning.data.transforms import TrainAugment, clean_boxes

MEAN_RGB = (124, 116, 104)


def made_images(folder: Path, count: int, width: int = 1024) -> list[Path]:
    """Photograph-like JPEGs, 4:3: blobs of several sizes and a little grain, quality 85."""
    rng = np.random.default_rng(0)
    height = width * 3 // 4
    paths = []
    for i in range(count):
        image = np.zeros((height, width, 3), dtype=np.float32)
        for cells in (4, 16, 64):
            coarse = rng.uniform(0, 255, (cells * 3 // 4, cells, 3)).astype(np.float32)
            image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / 3
        image += rng.normal(0, 4, image.shape)
        path = folder / f"{i:04d}.jpg"
        buffer = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        path.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths


def records_for(paths: list[Path], faces: int) -> list[ImageRecord]:
    """Each image with ``faces`` random boxes of 8 to 200 pixels: the samples' cost hardly depends on where they are."""
    rng = np.random.default_rng(1)
    records = []
    for path in paths:
        with Image.open(path) as image:
            width, height = image.size
        sides = np.exp(rng.uniform(np.log(8), np.log(200), (faces, 1)))
        corners = rng.uniform(0, 1, (faces, 2)) * np.maximum([width, height] - sides, 1)
        boxes = clean_boxes(np.concatenate([corners, corners + sides], axis=1), height, width)
        records.append(ImageRecord(f"{path.parent.name}/{path.stem}", path, boxes))
    return records


def stock_composition(size: int, *, one_jitter: bool = False, normalise: bool = True) -> A.Compose:
    steps = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}
    neutral = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0)}
    single = [A.ColorJitter(**(neutral | {name: limits}), p=0.5) for name, limits in steps.items()]
    return A.Compose(
        [
            *([A.ColorJitter(**steps, p=1.0)] if one_jitter else single),
            A.CropAndPad(percent=(0.0, 1.5), keep_size=False, fill=MEAN_RGB, p=0.5),
            # A square of 0.3 … 1 of the shorter side of a 4:3 image, as shares of the area.
            A.RandomResizedCrop((size, size), scale=(0.09 * 0.75, 0.75), ratio=(1.0, 1.0)),
            A.HorizontalFlip(p=0.5),
            *([A.Normalize()] if normalise else []),
            ToTensorV2(),
        ],
        bbox_params=A.BboxParams("pascal_voc", clip=True, filter_invalid_bboxes=True, min_visibility=0.5),
    )


def stock_sample(compose: A.Compose, image: Image8, boxes: Boxes) -> tuple[torch.Tensor, torch.Tensor]:
    sample = compose(image=image, bboxes=boxes)
    return sample["image"], torch.as_tensor(np.asarray(sample["bboxes"], dtype=np.float32).reshape(-1, 4))


def read_with_pil(path: Path) -> Image8:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def fastest(sides: dict[str, Callable[[int], Any]], count: int, passes: int) -> dict[str, float]:
    """Seconds an image of each side: passes over all images alternate, the fastest pass counts."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(passes):
        for name, sample in sides.items():
            start = time.process_time()
            for index in range(count):
                sample(index)
            times[name].append((time.process_time() - start) / count)
    return {name: min(values) for name, values in times.items()}


def caches(paths: list[Path], arguments: argparse.Namespace) -> None:
    """Samples a second without a cache and from memory; and decoding at reduced size."""
    records, augment = records_for(paths, arguments.faces), TrainAugment(arguments.size)
    height, width = read_image_size(paths[0])
    cache = memory_cache(paths, None)
    datasets = {
        "null": TrainDataset(records, augment),
        "memory": TrainDataset(records, augment, cache=cache),
    }
    for index in range(len(paths)):
        key = SampleKey(0, index)
        for _ in range(2):  # decoded, then from memory
            one, two = datasets["null"][key], datasets["memory"][key]
            if not torch.equal(one.image, two.image) or not torch.equal(one.boxes_xyxy, two.boxes_xyxy):
                raise SystemExit(f"cache=memory changes sample {index}")
    sides = {name: (lambda i, d=dataset: d[SampleKey(epoch=0, index=i)]) for name, dataset in datasets.items()}
    seconds = fastest(sides, len(paths), arguments.passes)
    print(f"{len(paths)} images of {width} x {height} to {arguments.size} x {arguments.size}, one thread")
    for name, value in seconds.items():
        print(
            f"  cache={name:<10}{1 / value:7.1f} images/s {1e3 * value:8.2f} ms   {seconds['null'] / value:5.2f} x null"
        )
    print(f"  memory: {3 * width * height / 1e6:.1f} MB an image")
    contents = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]
    flags = {"1": cv2.IMREAD_COLOR, "1/2": cv2.IMREAD_REDUCED_COLOR_2, "1/4": cv2.IMREAD_REDUCED_COLOR_4,
             "1/8": cv2.IMREAD_REDUCED_COLOR_8}  # fmt: skip
    decoding = fastest({n: (lambda i, f=f: cv2.imdecode(contents[i], f)) for n, f in flags.items()}, len(paths), 3)
    print("  decoding at " + ", ".join(f"{name}: {1e3 * value:.1f} ms" for name, value in decoding.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEGs; default: made ones")
    parser.add_argument("--count", type=int, default=100, help="images of a pass")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--faces", type=int, default=12, help="boxes of an image; WIDER FACE has 12 on average")
    parser.add_argument("--caches", type=int, nargs="*", metavar="WIDTH", help="compare the caches at these widths")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for width in arguments.caches or ():
            folder = Path(scratch) / str(width)
            folder.mkdir()
            caches(made_images(folder, arguments.count, width), arguments)
        if arguments.caches:
            return
        if arguments.images is None:
            paths = made_images(Path(scratch), arguments.count)
        else:
            found = sorted(arguments.images.rglob("*.jpg"))
            paths = found[:: max(1, len(found) // arguments.count)][: arguments.count]
        if not paths:
            parser.error(f"no *.jpg under {arguments.images}")
        run(paths, arguments)


def run(paths: list[Path], arguments: argparse.Namespace) -> None:
    records = records_for(paths, arguments.faces)
    augment = TrainAugment(arguments.size)
    dataset = TrainDataset(records, augment)
    stock = stock_composition(arguments.size)
    one_jitter = stock_composition(arguments.size, one_jitter=True)
    plain = stock_composition(arguments.size, normalise=False)
    sides: dict[str, Callable[[int], Any]] = {
        "ours": lambda i: dataset[SampleKey(epoch=0, index=i)],
        "stock": lambda i: stock_sample(stock, read_with_pil(records[i].path), records[i].boxes_xyxy),
        "stock, one ColorJitter": lambda i: stock_sample(
            one_jitter, read_with_pil(records[i].path), records[i].boxes_xyxy
        ),
        "stock, our decoding, uint8": lambda i: stock_sample(
            plain, read_image_rgb(records[i].path), records[i].boxes_xyxy
        ),
    }
    fastest(sides, min(len(records), 10), 1)
    seconds = fastest(sides, len(records), arguments.passes)
    print(f"{len(records)} images, {arguments.faces} faces each, to {arguments.size} x {arguments.size}, one thread")
    for name, value in seconds.items():
        print(f"  {name:<32}{1 / value:7.1f} images/s {1e3 * value:8.2f} ms   {value / seconds['ours']:5.2f} x ours")


if __name__ == "__main__":
    main()
