"""Small data sets in WIDER FACE's official layout, for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# x y w h, then blur expression illumination invalid occlusion pose.
Row = Sequence[int]


def write_text(path: Path, faces: Mapping[str, Sequence[Row]]) -> None:
    """The official text list; an image without a row gets the count 0 and the line of zeros."""
    lines: list[str] = []
    for image_id, rows in faces.items():
        lines += [f"{image_id}.jpg", str(len(rows))]
        lines += [" ".join(map(str, row)) + " " for row in rows] or ["0 0 0 0 0 0 0 0 0 0 "]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_image(path: Path, seed: int, size_hw: tuple[int, int] = (48, 64)) -> None:
    """A smooth JPEG that differs by seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC))


def write_wider(
    root: Path, split: str, faces: Mapping[str, Sequence[Row]], size_hw: tuple[int, int] = (48, 64)
) -> None:
    """Images and text list of one split."""
    write_text(root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt", faces)
    for number, image_id in enumerate(faces):
        write_image(root / f"WIDER_{split}" / "images" / f"{image_id}.jpg", number, size_hw)


def numbered(count: int, event: str = "0--Parade") -> dict[str, list[Row]]:
    """``count`` images, the i-th with i % 3 faces; face k of image i is (i, k, 10 + i, 10 + k)."""
    return {
        f"{event}/0_Parade_{i:03d}": [(i, k, 10 + i, 10 + k, 0, 0, 0, 0, 0, 0) for k in range(i % 3)]
        for i in range(count)
    }
