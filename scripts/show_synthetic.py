"""A grid of synthetic images with their boxes: ``python scripts/show_synthetic.py grid.png [--images 24] [--seed 0]``.

Green boxes count as easy, yellow as medium, orange as hard, grey ones in no setting, red ones are flagged invalid.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from fanet_lightning.cli.files import replaced
from fanet_lightning.data.synthetic.dataset import SETTINGS, SPLITS, counts
from fanet_lightning.data.synthetic.scenes import FaceTruth, draw_image

COLORS = {"easy": (60, 220, 80), "medium": (250, 220, 40), "hard": (255, 140, 30)}
TILE_WH = (480, 400)


def color_of(face: FaceTruth) -> tuple[int, int, int]:
    if face.invalid:
        return 255, 30, 30
    hardest_first = reversed(list(SETTINGS))
    return next((COLORS[name] for name in hardest_first if counts(face, SETTINGS[name])), (150, 150, 150))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="image file to write")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-boxes", action="store_true")
    arguments = parser.parse_args()
    rows = -(-arguments.images // arguments.columns)
    grid = np.zeros((rows * TILE_WH[1], arguments.columns * TILE_WH[0], 3), np.uint8)
    for index in range(arguments.images):
        drawn = draw_image(np.random.default_rng([arguments.seed, SPLITS.index(arguments.split), index]))
        image = drawn.image_rgb.copy()
        for face in [] if arguments.no_boxes else drawn.faces:
            x, y, w, h = face.box_xywh
            cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), color_of(face), 1)
        top, left = index // arguments.columns * TILE_WH[1], index % arguments.columns * TILE_WH[0]
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    with replaced(arguments.out) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(grid, cv2.COLOR_RGB2BGR)):
            parser.error(f"{arguments.out} cannot be written; end its name in .png or .jpg")
    print(f"{arguments.out}: {arguments.images} images")


if __name__ == "__main__":
    main()
