"""FDDB's ground truth: folds, ellipses, image sizes, and the blocks of its text files.

::

    FDDB-folds/FDDB-fold-01-ellipseList.txt    blocks of ``major minor angle cx cy 1``
    image_sizes.json                           {"2002/08/11/big/img_591": [width, height], …}
    originalPics/2002/08/11/big/img_591.jpg    the sizes where there is no image_sizes.json
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.curves import Floats, Ints
from fanet_lightning.score.inputs import SelectableImages, number_rows, read_selection, reading

RECTANGLE = ("x", "y", "width", "height", "score")
ELLIPSE = ("major half-axis", "minor half-axis", "angle", "x", "y", "score")
# No photograph is that large, and OpenCV draws nothing sensible beyond.
LARGEST = 1e6


class Block(NamedTuple):
    """One image's rows, (D, C) float64 with C the number of columns; (0, 0) without rows. ``line`` is the name's."""

    name: str
    line: int
    rows: Floats


def read_blocks(path: Path) -> list[Block]:
    """The blocks of a file, in its order. Blank lines and carriage returns do not count; a name may end in ``.jpg``.

    Rows have five columns, ``x y w h score``, or six, ``major minor angle cx cy score``, the same throughout a file.
    """
    with reading(path, "give a text file"):
        text = path.read_text(encoding="utf-8-sig")
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    blocks: list[tuple[str, int, int]] = []
    rows: list[tuple[int, str]] = []
    place = 0
    while place < len(lines):
        number, name = lines[place]
        # The official program reads the first number of the line and leaves the rest.
        words = lines[place + 1][1].split() if place + 1 < len(lines) else [""]
        count = int(words[0]) if words[0].isdecimal() and len(words[0]) < 10 and len(words) < len(RECTANGLE) else -1
        own = lines[place + 2 : place + 2 + max(count, 0)]
        if len(name.split()) >= len(RECTANGLE) or len(own) != count or any("/" in line for _, line in own):
            raise InputError(
                f"{path}:{number}: '{name[:80]}' should be the name of an image, the next line the number of its rows, "
                f"and as many rows should follow; correct the name or the number"
            )
        blocks.append((name.removesuffix(".jpg"), number, len(own)))
        rows += own
        place += 2 + count
    values = number_rows(
        [line for _, line in rows],
        [len(RECTANGLE), len(ELLIPSE)],
        lambda row: f"{path}:{rows[row][0]}",
        f"x y w h score or major minor angle cx cy score, all below {LARGEST:g} pixels",
        lambda values: (np.abs(values[:, :-1]) > LARGEST).any(axis=1),
    )
    starts = np.cumsum([count for *_, count in blocks])
    return [Block(name, number, own) for (name, number, _), own in zip(blocks, np.split(values, starts), strict=False)]


FOLDS = 10
FOLDS_FOLDER = "FDDB-folds"
IMAGES_FOLDER = "originalPics"
SIZES_FILE = "image_sizes.json"


@dataclass(frozen=True, eq=False)
class FddbGroundTruth(SelectableImages):
    """The annotated faces of the images of a run.

    ``image_ids`` official names without extension, "2002/08/11/big/img_591", N of them, none twice.
    ``folds``     (N,) int64, 1 … 10, the fold of each.
    ``ellipses``  N arrays (F_i, 5) float64 ``major minor angle cx cy``: half-axes in pixels, radians, pixels.
    ``sizes_wh``  (N, 2) int64, width and height of each image in pixels.
    ``whole_ids`` all images of the files, in the official order; None: these are all.
    """

    image_ids: tuple[str, ...]
    folds: Ints
    ellipses: Sequence[Floats]
    sizes_wh: Ints
    whole_ids: tuple[str, ...] | None = None
    per_image = ("folds", "ellipses", "sizes_wh")

    @property
    def faces(self) -> Ints:
        """(N,) annotated faces per image."""
        return np.array([len(rows) for rows in self.ellipses], np.int64)

    def in_official_order(self) -> Self:
        """The same images, fold by fold as in the files."""
        own = set(self.image_ids)
        return self.select(image_id for image_id in self.known_ids if image_id in own)


def read_fddb_ground_truth(
    path: Path, images: Path | None = None, image_sizes: Path | None = None, images_root: Path | None = None
) -> FddbGroundTruth:
    """Read the folds that are in ``path`` (``FDDB-folds``, or the folder that holds it), in the order of their numbers.

    The official program clips regions to the image, so the sizes are needed: of the JSON file ``image_sizes``, image
    id → [width, height]; else of the images under ``images_root`` (``originalPics``, or the folder that holds it); else
    of an ``image_sizes.json`` in the folder of the folds or its parent; else of the images in an ``originalPics``
    there. ``images`` is a list that restricts everything. InputError: files that are missing or malformed, an image
    twice or of unknown size, a list that names an image which is not there, a face that is outside its image.
    """
    folder = path / FOLDS_FOLDER if (path / FOLDS_FOLDER).is_dir() else path
    read: dict[str, tuple[int, Floats]] = {}
    for fold in range(1, FOLDS + 1):
        file = folder / f"FDDB-fold-{fold:02d}-ellipseList.txt"
        for block in read_blocks(file) if file.is_file() else ():
            if block.name in read or (len(block.rows) and block.rows.shape[1] != len(ELLIPSE)):
                raise InputError(f"{file}:{block.line}: an image twice, or rows that are no major minor angle cx cy 1")
            read[block.name] = fold, block.rows.reshape(-1, len(ELLIPSE))[:, :5]
    if not read:
        raise InputError(
            f"ground truth: {folder} has no ellipse lists of the folds 1 … {FOLDS}; give the folder with "
            "FDDB-fold-01-ellipseList.txt … FDDB-fold-10-ellipseList.txt"
        )
    chosen = set(read if images is None else read_selection(images, read))
    ids = tuple(image_id for image_id in read if image_id in chosen)
    near = (folder, folder.parent)
    if image_sizes is None and images_root is None:
        image_sizes = next((place / SIZES_FILE for place in near if (place / SIZES_FILE).is_file()), None)
        images_root = next((place for place in near if (place / IMAGES_FOLDER).is_dir()), None)
    if image_sizes is not None:
        with reading(image_sizes, "give image ids with [width, height] in pixels"):
            content = json.loads(image_sizes.read_text(encoding="utf-8-sig"))
            sizes = np.array([content[image_id] for image_id in ids]).reshape(-1, 2)
            if sizes.dtype.kind != "i" or (sizes < 1).any():
                raise ValueError("sizes that are no whole numbers above 0")
    elif images_root is not None:
        root = images_root / IMAGES_FOLDER if (images_root / IMAGES_FOLDER).is_dir() else images_root
        sizes = np.zeros((len(ids), 2))
        for place, file in enumerate(root / f"{image_id}.jpg" for image_id in ids):
            with reading(file, "complete the folder, or name image_sizes=FILE"), Image.open(file) as image:
                sizes[place] = image.size
    else:
        raise InputError(
            f"ground truth: neither {SIZES_FILE} nor {IMAGES_FOLDER}, for the sizes of the images, is in {folder} or "
            "next to it; put one there, or name it (benchmark.image_sizes=FILE or benchmark.images_root=DIR)"
        )
    folds, ellipses = [read[own][0] for own in ids], [read[own][1] for own in ids]
    truth = FddbGroundTruth(ids, np.array(folds, np.int64), ellipses, sizes.astype(np.int64), tuple(read))
    # A face without a pixel can never be found: then the sizes are of other images, or height and width swapped.
    for image_id, rows, (width, height) in zip(ids, truth.ellipses, truth.sizes_wh, strict=True):
        reach = rows[:, :2].max(axis=1, initial=0) + 1
        low, high = (rows[:, 3:] + sign * reach[:, None] for sign in (-1, 1))
        if (high < 0).any() or (low > [width, height]).any():
            raise InputError(
                f"{image_sizes or images_root}: a face of '{image_id}' is outside its {width} × {height} pixels; "
                "give the images' width and height, in this order"
            )
    return truth
