"""Grids of augmented training samples with their boxes: one grid per part switched on alone, one for all.

    python scripts/show_augmentations.py                                  # synthetic faces, made on the first call
    python scripts/show_augmentations.py --root data/wider_face --split val --list test.txt --count 4

Each row is one image: its title, the original, then samples, the number of faces of each in the title. Rows differ in
their seeds, grids do not. The grids are written to --out as PNG.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import Image8, read_image_rgb
from fanet_lightning.data.records import Boxes, ImageRecord
from fanet_lightning.data.transforms import TrainAugment
from fanet_lightning.data.wider_face import load_wider_face
from fanet_lightning.ops.draw import outlined

OFF: dict[str, Any] = {
    "crop": (1.0, 1.0),
    "largest_square": 1.0,
    "expand_probability": 0.0,
    "flip": 0.0,
    "brightness": 0.0,
    "contrast": (1.0, 1.0),
    "saturation": (1.0, 1.0),
    "hue": 0.0,
    "distortion_probability": 1.0,
}
# What each grid switches on, by the constructor's names; the values are the recipe's, at full probability.
GRIDS: dict[str, dict[str, Any]] = {
    "crop": {"crop": (0.3, 1.0), "largest_square": 0.2},
    "expansion": {"expand_probability": 1.0},
    "flip": {"flip": 1.0},
    "brightness": {"brightness": 32.0},
    "contrast": {"contrast": (0.5, 1.5)},
    "saturation": {"saturation": (0.5, 1.5)},
    "hue": {"hue": 18.0},
    "channel_shuffle": {"channel_shuffle": 1.0},
    "anchor_sampling": {"anchor_sampling": 1.0},
}
BACKGROUND, INK, BOX = (250, 250, 250), (30, 30, 30), (60, 255, 60)
GAP, LINE = 6, 22


def augmentations(size: int) -> dict[str, TrainAugment]:
    """One augmentation per grid; ``recipe`` is the paper's, complete."""
    single = {name: TrainAugment(size, **(OFF | changes)) for name, changes in GRIDS.items()}
    return single | {"recipe": TrainAugment(size)}


def original_tile(image_rgb: Image8, boxes_xyxy: Boxes, size: int) -> Image8:
    """The whole image, fitted into the tile."""
    scale = size / max(image_rgb.shape[:2])
    width, height = (max(1, round(side * scale)) for side in image_rgb.shape[1::-1])
    small = cv2.resize(image_rgb, (width, height), interpolation=cv2.INTER_AREA)
    tile = np.full((size, size, 3), BACKGROUND, dtype=np.uint8)
    tile[:height, :width] = outlined(small.astype(np.uint8), boxes_xyxy * np.float32(scale), BOX)
    return tile


def grid(name: str, augment: TrainAugment, records: list[ImageRecord], draws: int) -> Image8:
    """One row per image: a line of text, the original, ``draws`` samples."""
    size = augment.size
    rows = []
    for number, record in enumerate(records):
        image = read_image_rgb(record.path)
        samples = [augment(image, record.boxes_xyxy, number * draws + i) for i in range(draws)]
        tiles = [original_tile(image, record.boxes_xyxy, size)] + [outlined(*sample, BOX) for sample in samples]
        row = np.full((LINE + size + GAP, (size + GAP) * len(tiles), 3), BACKGROUND, dtype=np.uint8)
        counts = " ".join(str(len(boxes)) for _, boxes in samples)
        title = f"{name}: {record.image_id}  {len(record.boxes_xyxy)} faces > {counts}"
        cv2.putText(row, title, (GAP, LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
        for i, tile in enumerate(tiles):
            row[LINE : LINE + size, i * (size + GAP) : i * (size + GAP) + size] = tile
        rows.append(row)
    return np.concatenate(rows)


def write_png(path: Path, image_rgb: Image8) -> None:
    """Complete or not at all."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
    temporary = path.with_suffix(".png.part")
    temporary.write_bytes(encoded.tobytes())
    temporary.replace(path)


def chosen_records(arguments: argparse.Namespace) -> list[ImageRecord]:
    """The first images with faces: of the data set at --root, or of synthetic ones."""
    if arguments.root is None:
        from fanet_lightning.data.synthetic.dataset import prepare_synthetic

        root = prepare_synthetic(Path("data/synthetic"), train_images=arguments.count * 4, val_images=1, seed=0)
        records = load_wider_face(root, "train")
    else:
        records = load_wider_face(arguments.root, arguments.split, arguments.list, arguments.annotations)
    with_faces = [record for record in records if len(record.boxes_xyxy)]
    # Spread over the list, since neighbours in it are of the same event.
    return with_faces[:: max(1, len(with_faces) // arguments.count)][: arguments.count]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="data set in WIDER FACE's layout; default: synthetic faces")
    parser.add_argument("--split", default="train", choices=["train", "val"])
    parser.add_argument("--list", type=Path, help="text file of image names within the split")
    parser.add_argument("--annotations", type=Path, help="folder or zip of annotations, if not under the root")
    parser.add_argument("--count", type=int, default=3, help="images, one per row")
    parser.add_argument("--draws", type=int, default=6, help="samples of each image")
    parser.add_argument("--size", type=int, default=320, help="side of a sample, pixels")
    parser.add_argument("--out", type=Path, default=Path("outputs/augmentations"), help="folder of the grids")
    arguments = parser.parse_args()
    try:
        records = chosen_records(arguments)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, augment in augmentations(arguments.size).items():
            path = arguments.out / f"{name}.png"
            write_png(path, grid(name, augment, records, arguments.draws))
            print(path)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
