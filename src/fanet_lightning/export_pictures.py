"""The real pictures that an exported file is tried on, and those that 8 bits are calibrated with."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.training_images import TrainingImages

Image8 = npt.NDArray[np.uint8]

# (height, width): an ordinary one, odd ones, one whose deepest maps are a single cell, one smaller than most anchors.
SIZES = ((600, 512), (480, 640), (217, 333), (129, 128), (33, 40))
# As many as a person waits for.
MOST_PICTURES = 20
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def batches_to_try(folder: Path | None) -> list[Image8]:
    """Batches (B, 3, H, W) RGB: pictures of several sizes one by one, a single pixel, and three together.

    ``folder``: with pictures, of which up to 20 are taken as they are; None: the photograph that comes with matplotlib,
    in five sizes.

    Raises:
        InputError: no picture in the folder, or matplotlib came without its own.
    """
    import cv2

    if folder is None:
        photograph = _photograph()
        # The face, so that small pictures show one too.
        face = photograph[20:380, 100:420]
        pictures = [
            cv2.resize(photograph if height > 200 else face, (width, height), interpolation=cv2.INTER_AREA)
            for height, width in SIZES
        ]
    else:
        from fanet_lightning.data.images import read_image_rgb

        pictures = [read_image_rgb(path) for path in spread(image_files(folder, "images"), MOST_PICTURES)]
    three = cv2.resize(pictures[0], (320, 240), interpolation=cv2.INTER_AREA)
    # The middle one is dark: it has few faces or none, and must not shift those of the others.
    together = np.stack([three, three // 16, three[:, ::-1]])
    return [*(_nchw(picture[None]) for picture in pictures), _nchw(pictures[0][None, :1, :1]), _nchw(together)]


def vga(batches: Sequence[Image8]) -> Image8:
    """The first picture at 640 × 480, (480, 640, 3): what speed is stated for."""
    import cv2

    return np.asarray(cv2.resize(batches[0][0].transpose(1, 2, 0), (640, 480), interpolation=cv2.INTER_AREA), np.uint8)


def _nchw(images: npt.NDArray[Any]) -> Image8:
    # A copy, since torch does not like pixels that cannot be written to.
    return np.array(images.transpose(0, 3, 1, 2), dtype=np.uint8, order="C")


def _photograph() -> Image8:
    from matplotlib import cbook

    from fanet_lightning.data.images import read_image_rgb

    try:
        path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
        return read_image_rgb(Path(str(path)))
    except (OSError, InputError) as error:
        raise InputError("this matplotlib comes without its photograph; give images=FOLDER with pictures") from error


def image_files(folder: Path, key: str) -> list[Path]:
    """Every picture in it and below, sorted.

    Raises:
        InputError: no folder, or no picture; names ``key``.
    """
    if not folder.is_dir():
        raise InputError(f"{key}={folder} is no folder; give one with pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise InputError(f"{key}={folder} holds no picture ({', '.join(ENDINGS)}); give another folder")
    return found


def spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many, evenly over the list."""
    count = min(most, len(paths))
    return [paths[k * len(paths) // count] for k in range(count)]


def trained_among(paths: Sequence[Path], parts: Sequence[TrainingImages] | None) -> list[Path]:
    """Those that are in the model's list of training images, by the end of their path."""
    ids = {image_id.removesuffix(".jpg") for part in parts or [] for image_id in part.image_ids}
    depths = {image_id.count("/") + 1 for image_id in ids}
    return [path for path in paths if any("/".join((*path.parts[-depth:-1], path.stem)) in ids for depth in depths)]


def calibration_pictures(paths: Sequence[Path]) -> Iterator[Image8]:
    """(H, W, 3) RGB, one by one; those that cannot be read are left out."""
    from fanet_lightning.data.images import UnreadableImage, read_image_rgb

    for path in paths:
        try:
            yield read_image_rgb(path)
        except UnreadableImage as error:
            print(f"warning: left out: {error}")
