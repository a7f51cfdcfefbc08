"""Grids of images to look at: ``fanet show augmentations`` and ``fanet show synthetic``.

    fanet show augmentations --root data/wider_face --split val --list test.txt --count 4     # default: synthetic faces
    fanet show synthetic grid.png --images 24

``augmentations``: one grid per part switched on alone, one for all. Each row is one image: its title, the original,
then samples, the number of faces of each in the title. Rows differ in their seeds, grids do not.

``synthetic``: boxes count as easy (green), medium (yellow), hard (orange), in no setting (gray) or are invalid (red).
"""

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.files import replaced
from fanet_lightning.data.images import Image8, read_image_rgb
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.synthetic.dataset import SETTINGS, SPLITS, counts, prepare_synthetic
from fanet_lightning.data.synthetic.scenes import draw_image
from fanet_lightning.data.transforms import TestScale, TrainAugment, check_numbers
from fanet_lightning.data.wider_face import load_wider_face
from fanet_lightning.ops.draw import outlined

OFF: dict[str, Any] = {
    "crop": (1.0, 1.0), "largest_square": 1.0, "expand_probability": 0.0, "flip": 0.0, "brightness": 0.0,
    "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0, "distortion_probability": 1.0,
}  # fmt: skip
# What each grid switches on, by the constructor's names; the values are the recipe's, at full probability.
GRIDS: dict[str, dict[str, Any]] = {
    "crop": {"crop": (0.3, 1.0), "largest_square": 0.2}, "expansion": {"expand_probability": 1.0},
    "brightness": {"brightness": 32.0}, "contrast": {"contrast": (0.5, 1.5)}, "saturation": {"saturation": (0.5, 1.5)},
    "hue": {"hue": 18.0}, **{name: {name: 1.0} for name in ("flip", "channel_shuffle", "anchor_sampling")},
}  # fmt: skip
BACKGROUND, INK, BOX = (250, 250, 250), (30, 30, 30), (60, 255, 60)
GAP, LINE = 6, 22
COLORS = {
    "easy": (60, 220, 80), "medium": (250, 220, 40), "hard": (255, 140, 30), "none": (150, 150, 150),
    "invalid": (255, 30, 30),
}  # fmt: skip
TILE_WH = (480, 400)


def augmentation_grid(name: str, augment: TrainAugment, records: list[ImageRecord], draws: int) -> Image8:
    """One row per image: a line of text, the original, ``draws`` samples. (H, W, 3) uint8 RGB."""
    size = augment.size
    rows = []
    for number, record in enumerate(records):
        image = read_image_rgb(record.path)
        samples = [augment(image, record.boxes_xyxy, number * draws + i) for i in range(draws)]
        # The whole image, fitted into the first tile.
        small, scale_xy = TestScale("long", size)(image)
        tiles = [outlined(small, record.boxes_xyxy * np.tile(scale_xy, 2), BOX)]
        tiles += [outlined(*sample, BOX) for sample in samples]
        row = np.full((LINE + size + GAP, (size + GAP) * len(tiles), 3), BACKGROUND, dtype=np.uint8)
        faces = " ".join(str(len(boxes)) for _, boxes in samples)
        title = f"{name}: {record.image_id}  {len(record.boxes_xyxy)} faces > {faces}"
        cv2.putText(row, title, (GAP, LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
        for i, tile in enumerate(tiles):
            left = i * (size + GAP)
            row[LINE : LINE + tile.shape[0], left : left + tile.shape[1]] = tile
        rows.append(row)
    return np.concatenate(rows)


def _chosen_records(options: argparse.Namespace) -> list[ImageRecord]:
    """The first images with faces: of the data set at --root, or of synthetic ones."""
    if options.root is None:
        if options.list is not None or options.split != "train":
            raise InputError("--split and --list are of a data set; give its --root")
        root = prepare_synthetic(Path("data/synthetic"), train_images=options.count * 4, val_images=1, seed=0)
        records = load_wider_face(root, "train")
    else:
        records = load_wider_face(options.root, options.split, options.list)
    with_faces = [record for record in records if len(record.boxes_xyxy)]
    check(with_faces, "none of the images has a face")
    # Spread over the list, since neighbors in it are of the same event.
    return with_faces[:: max(1, len(with_faces) // options.count)][: options.count]


def synthetic_grid(images: int, columns: int, split: str, seed: int) -> Image8:
    """The first images of a split with boxes in the colors of their settings. (H, W, 3) uint8 RGB."""
    grid = np.zeros((-(-images // columns) * TILE_WH[1], columns * TILE_WH[0], 3), np.uint8)
    for index in range(images):
        drawn = draw_image(np.random.default_rng([seed, SPLITS.index(split), index]))
        image = drawn.image_rgb.copy()
        for face in drawn.faces:
            x, y, w, h = face.box_xywh
            hardest = next((name for name in ("easy", "medium", "hard") if counts(face, SETTINGS[name])), "none")
            color = COLORS["invalid" if face.invalid else hardest]
            cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), color, 1)
        top, left = index // columns * TILE_WH[1], index % columns * TILE_WH[0]
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid


def _write(path: Path, image_rgb: Image8) -> None:
    check(cv2.haveImageWriter(path.name), f"{path} cannot be written; end its name in .png or .jpg")
    with replaced(path) as temporary:
        written = cv2.imwrite(str(temporary), cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
        check(written, f"{path}: an image of {image_rgb.shape[1]} × {image_rgb.shape[0]} pixels is too large for it")
    print(path)


def main(argv: list[str]) -> int:
    """``fanet show``."""
    parser = argparse.ArgumentParser(
        prog="fanet show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    augmented = commands.add_parser("augmentations", help="what the training augmentation makes of images")
    augmented.add_argument("--root", type=Path, help="data set in WIDER FACE's layout; default: synthetic faces")
    augmented.add_argument("--split", default="train", choices=["train", "val"])
    augmented.add_argument("--list", type=Path, help="text file of image names within the split")
    augmented.add_argument("--count", type=int, default=3, help="images, one per row")
    augmented.add_argument("--draws", type=int, default=6, help="samples of each image")
    augmented.add_argument("--size", type=int, default=320, help="side of a sample, pixels")
    augmented.add_argument("--out", type=Path, default=Path("outputs/augmentations"), help="folder of the grids")
    synthetic = commands.add_parser("synthetic", help="synthetic images with their boxes")
    synthetic.add_argument("out", type=Path, help="image file to write")
    synthetic.add_argument("--images", type=int, default=24)
    synthetic.add_argument("--columns", type=int, default=6)
    synthetic.add_argument("--split", choices=SPLITS, default="train")
    synthetic.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for key, number in vars(options).items():
        if isinstance(number, int):
            check_numbers(f"--{key}", number, 1, key != "seed", 1 << 31)
    if options.what == "synthetic":
        _write(options.out, synthetic_grid(options.images, options.columns, options.split, options.seed))
        return 0
    records = _chosen_records(options)
    for name, changes in (*GRIDS.items(), ("recipe", None)):
        augment = TrainAugment(options.size, **({} if changes is None else OFF | changes))
        _write(options.out / f"{name}.png", augmentation_grid(name, augment, records, options.draws))
    return 0


if __name__ == "__main__":
    cli.run(main)
