"""Anchor coverage of a data set: by geometry in batches, next to the plain ways to the same numbers.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --images 2018 --root DIR --list train.txt

crops     the boxes of one epoch's training crops. ours: ``TrainAugment.boxes``, from sizes and boxes alone. plain: the
          augmentation itself on pixels that are in memory already, its images thrown away. Decoding is in neither.
anchors   anchors per face of these crops, before and after the second stage. ours: ``coverage``, its drawing of crops
          included. plain: per crop the dense matcher of SSD-style code, IoU of every face with every anchor, and a
          Python loop over faces for the second stage.
Both sides run in this process and give the same boxes; the anchors agree but for conflicts between faces, which dense
matchers leave to chance ("agree": share of the faces with equal counts). The plain sides take the first ``--plain``
images alone, and their time is scaled up. Times are seconds of the processor, so that other work on the machine does
not count; with more than one thread they are sums over threads.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from fanet_lightning.data.transforms import TrainAugment, sample_seed
from fanet_lightning.doctor.coverage import SizedImage, coverage, whole_images
from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, pairwise_iou

THRESHOLD, SECOND, ENOUGH = 0.35, 0.1, 6


def drawn_images(count: int) -> list[SizedImage]:
    """1,024 pixels wide, a geometric number of faces of log-uniform size."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        height, faces = int(random.integers(400, 1400)), min(int(random.geometric(0.08)), 400)
        corner = random.uniform(0, 1, (faces, 2)) * [1000, height - 20]
        width = 4 * 100 ** random.uniform(0, 1, (faces, 1))
        boxes = np.concatenate([corner, corner + width * [1.0, 1.25]], axis=1)
        images.append(SizedImage(1024, height, boxes.astype(np.float32)))
    return images


def images_of_list(root: Path, names: Path) -> list[SizedImage]:
    from PIL import Image

    from fanet_lightning.data.wider_face import load_wider_face

    images = []
    for record in load_wider_face(root, "val", images=names):
        with Image.open(record.path) as opened:
            images.append(SizedImage(*opened.size, record.boxes_xyxy))
    return images


def dense_counts(anchors_xyxy: torch.Tensor, boxes_xyxy: np.ndarray) -> np.ndarray:
    """One crop: (F, 4) → (2, F) anchors per face, before and after the second stage."""
    iou = pairwise_iou(torch.from_numpy(boxes_xyxy), anchors_xyxy)
    best_anchor = iou.max(dim=1).indices
    overlap, face = iou.max(dim=0)
    overlap[best_anchor] = 2
    for number in range(len(best_anchor)):
        face[best_anchor[number]] = number
    face[overlap <= THRESHOLD] = -1
    counts = [np.bincount(face[face >= 0].numpy(), minlength=len(boxes_xyxy))]
    for number in range(len(boxes_xyxy)):
        if int((face == number).sum()) < ENOUGH:
            free = torch.where(face < 0, iou[number], 0)
            values, places = free.topk(ENOUGH)
            face[places[values > SECOND]] = number
    counts.append(np.bincount(face[face >= 0].numpy(), minlength=len(boxes_xyxy)))
    return np.stack(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2018, help="synthetic images, where no list is given")
    parser.add_argument("--root", type=Path, help="folder of WIDER FACE")
    parser.add_argument("--list", type=Path, help="text file of image names of its val split")
    parser.add_argument("--size", type=int, default=640, help="side of the training crop, pixels")
    parser.add_argument("--plain", type=int, default=100, help="images that the plain sides take")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = images_of_list(arguments.root, arguments.list) if arguments.list else drawn_images(arguments.images)
    augment = TrainAugment(arguments.size)
    some = images[: arguments.plain]
    scale = len(images) / len(some)
    print(f"{len(images)} images, {sum(len(i.boxes_xyxy) for i in images)} faces, crops of {arguments.size} pixels")
    coverage(some, augment)  # warm

    start = time.process_time()
    ours = [augment.boxes(i.height, i.width, i.boxes_xyxy, sample_seed(0, 0, n)) for n, i in enumerate(images)]
    drawing = time.process_time() - start
    plain_drawing = 0.0
    for number, image in enumerate(some):
        pixels = np.full((image.height, image.width, 3), 99, dtype=np.uint8)
        start = time.process_time()
        _, boxes = augment(pixels, image.boxes_xyxy, sample_seed(0, 0, number))
        plain_drawing += time.process_time() - start
        assert np.array_equal(boxes, ours[number])
    print(row("crops", drawing, plain_drawing * scale))

    start = time.process_time()
    coverage(images, augment)
    matching = time.process_time() - start
    anchors_xyxy = cxcywh_to_xyxy(
        AnchorGrid(tuple((-(-arguments.size // s), -(-arguments.size // s)) for s in STRIDES)).boxes_cxcywh()
    )
    start = time.process_time()
    dense = np.concatenate([dense_counts(anchors_xyxy, boxes) for boxes in ours[: len(some)] if len(boxes)], axis=1)
    plain_matching = time.process_time() - start
    agree = (coverage(some, augment).anchors.sum(axis=2) == dense).mean(axis=1)
    print(row("anchors", matching, plain_matching * scale) + f"   agree {agree[0]:.1%} before, {agree[1]:.1%} after")

    start = time.process_time()
    whole_images(images)
    print(f"whole images at their own size: {time.process_time() - start:.2f} s")


def row(name: str, ours: float, plain: float) -> str:
    return f"{name:<9} ours {ours:7.2f} s   plain {plain:8.2f} s   {plain / ours:6.1f} times"


if __name__ == "__main__":
    main()
