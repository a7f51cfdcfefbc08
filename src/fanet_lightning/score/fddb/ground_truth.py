"""FDDB's ground truth: folds, ellipses, image sizes, and the blocks of its text files.

FDDB's ground truth: the official folds, their ellipses, and the sizes of the images.

::

    FDDB-folds/FDDB-fold-01.txt                the images of a fold, one name a line
    FDDB-folds/FDDB-fold-01-ellipseList.txt    blocks of ``major minor angle cx cy 1``
    image_sizes.json                           {"2002/08/11/big/img_591": [width, height], …}
    originalPics/2002/08/11/big/img_591.jpg    the sizes where there is no image_sizes.json
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.inputs import places_of, read_selection

RECTANGLE = ("x", "y", "width", "height", "score")
ELLIPSE = ("major half-axis", "minor half-axis", "angle", "x", "y", "score")
# No photograph is that large, and OpenCV draws nothing sensible beyond.
LARGEST = 1e6

_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COUNT = re.compile(rb"\d{1,9}")


class Block(NamedTuple):
    """One image's rows, (D, C) float64 with C the number of columns; (0, 0) without rows. ``line`` is the name's."""

    name: str
    line: int
    rows: npt.NDArray[np.float64]


def read_blocks(path: Path, *, negative_sides: bool = False) -> list[Block]:
    """The blocks of a file, in its order. Blank lines and carriage returns do not count; a name may end in ``.jpg``.

    Rows have five columns, ``x y w h score``, or six, ``major minor angle cx cy score``, the same throughout a file.
    Sides below 0 are an error unless ``negative_sides``.

    Raises:
        InputError: the file cannot be read; or the first line that does not hold what it should, by its number.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); mend or remove it") from error
    if b"\0" in text:
        raise InputError(f"{path}: byte {text.index(0)} is not plain text; save the file as UTF-8")
    numbered = enumerate(text.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    lines = [(number, line) for number, line in ((number, line.strip()) for number, line in numbered) if line]
    blocks: list[Block] = []
    place, columns = 0, 0
    while place < len(lines):
        number, name = lines[place]
        count = _count(path, lines, place)
        rows = lines[place + 2 : place + 2 + count]
        values = _rows_fast(rows, count, columns)
        if values is None or (not negative_sides and _has_negative_side(values)):
            values = _rows_carefully(path, lines[place + 1][0], rows, count, columns, negative_sides)
        columns = values.shape[1] or columns
        blocks.append(Block(_text(path, number, name), number, values))
        place += 2 + count
    return blocks


def _count(path: Path, lines: list[tuple[int, bytes]], place: int) -> int:
    number, name = lines[place]
    if all(_NUMBER.fullmatch(word) for word in name.split()):
        raise InputError(
            f"{path}:{number}: '{_shown(name)}' stands where the name of an image belongs; "
            "correct the count of the rows before it"
        )
    if place + 1 == len(lines):
        raise InputError(f"{path}:{number}: the file ends after '{_shown(name)}'; write a count line behind each name")
    number, line = lines[place + 1]
    words = line.split()
    # The official program reads the first number of the line and leaves the rest.
    if not _COUNT.fullmatch(words[0]) or len(words) >= len(RECTANGLE):
        raise InputError(f"{path}:{number}: '{_shown(line)}' is not a number of rows; write the count behind each name")
    return int(words[0])


def _rows_fast(rows: list[tuple[int, bytes]], count: int, columns: int) -> npt.NDArray[np.float64] | None:
    """The rows, or None at the slightest doubt."""
    if not count:
        return np.zeros((0, 0))
    if len(rows) != count or any(b"_" in row for _, row in rows):  # Python reads 1_000 as a number
        return None
    try:
        values = np.array([[float(word) for word in row.split()] for _, row in rows])
    except ValueError:
        return None
    if values.ndim != 2 or values.shape[1] not in ([columns] if columns else (len(RECTANGLE), len(ELLIPSE))):
        return None
    if not (np.isfinite(values).all() and (np.abs(values[:, :-1]) <= LARGEST).all()):
        return None
    return values


def _has_negative_side(values: npt.NDArray[np.float64]) -> bool:
    sides = values[:, 2:4] if values.shape[1] == len(RECTANGLE) else values[:, :2]
    return bool((sides < 0).any())


def _rows_carefully(
    path: Path, count_line: int, rows: list[tuple[int, bytes]], count: int, columns: int, negative_sides: bool
) -> npt.NDArray[np.float64]:
    values = []
    for found, (number, line) in enumerate(rows):
        words = line.split()
        if b"/" in line and not _NUMBER.fullmatch(words[0]):
            raise InputError(f"{path}:{count_line}: {count} rows are announced but {found} follow; correct the count")
        values.append(_row(path, number, line, words, columns, negative_sides))
        columns = len(words)
    if len(rows) != count:
        raise InputError(f"{path}:{count_line}: {count} rows are announced but {len(rows)} follow; correct the count")
    return np.array(values)


def _row(path: Path, number: int, line: bytes, words: list[bytes], columns: int, negative_sides: bool) -> list[float]:
    where = f"{path}:{number}"
    if b"," in line:
        raise InputError(f"{where}: '{_shown(line)}' has a comma; write 1.5, and blanks between numbers")
    if len(words) not in (len(RECTANGLE), len(ELLIPSE)):
        raise InputError(
            f"{where}: {len(words)} numbers in '{_shown(line)}'; write five, x y w h score, "
            "or six, major minor angle cx cy score"
        )
    if columns and len(words) != columns:
        raise InputError(
            f"{where}: {len(words)} numbers, but the rows before have {columns}; write rectangles or ellipses, not both"
        )
    names = RECTANGLE if len(words) == len(RECTANGLE) else ELLIPSE
    values = []
    for name, word in zip(names, words, strict=True):
        value = float(word) if _NUMBER.fullmatch(word) else math.nan
        if not math.isfinite(value):
            raise InputError(f"{where}: {name} '{_shown(word)}' is not a finite number; correct or remove the row")
        if value < 0 and not negative_sides and name in ("width", "height", "major half-axis", "minor half-axis"):
            raise InputError(f"{where}: {name} {value:g} is negative; rows are x y w h score, not corners")
        if name != "score" and abs(value) > LARGEST:
            raise InputError(f"{where}: {name} {value:g} is beyond {LARGEST:g} pixels; correct or remove the row")
        values.append(value)
    return values


def _text(path: Path, number: int, name: bytes) -> str:
    try:
        return name.decode().removesuffix(".jpg")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{number}: '{_shown(name)}' is not UTF-8 text; save the file as such") from error


def _shown(line: bytes) -> str:
    return line[:80].decode("ascii", "backslashreplace")


FOLDS = 10
FOLDS_FOLDER = "FDDB-folds"
IMAGES_FOLDER = "originalPics"
SIZES_FILE = "image_sizes.json"
_HINT = "give the folder with FDDB-fold-01-ellipseList.txt … FDDB-fold-10-ellipseList.txt"
_ELLIPSES = re.compile(r"FDDB-fold-(\d\d)-ellipseList\.txt")
_NAMES = re.compile(r"FDDB-fold-(\d\d)\.txt")


@dataclass(frozen=True, eq=False)
class FddbGroundTruth:
    """The annotated faces of the images of a run.

    ``image_ids`` official names without extension, "2002/08/11/big/img_591", N of them, none twice.
    ``folds``     (N,) int64, 1 … 10, the fold of each.
    ``ellipses``  N arrays (F_i, 5) float64 ``major minor angle cx cy``: half-axes in pixels, radians, pixels.
    ``sizes_wh``  (N, 2) int64, width and height of each image in pixels.
    ``whole_ids`` all images of the files, in the official order; None: these are all.

    Raises:
        ValueError: lengths or shapes that do not fit, an image twice, sizes below 1.
    """

    image_ids: tuple[str, ...]
    folds: npt.NDArray[np.int64]
    ellipses: Sequence[npt.NDArray[np.float64]]
    sizes_wh: npt.NDArray[np.int64]
    whole_ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        images = len(self.image_ids)
        if self.folds.shape != (images,) or len(self.ellipses) != images or self.sizes_wh.shape != (images, 2):
            raise ValueError(
                f"{images} images but folds {self.folds.shape}, ellipses of {len(self.ellipses)}, "
                f"sizes {self.sizes_wh.shape}"
            )
        if len(set(self.image_ids)) != images:
            raise ValueError("an image id stands twice")
        for image_id, rows in zip(self.image_ids, self.ellipses, strict=True):
            if rows.ndim != 2 or rows.shape[1] != 5:
                raise ValueError(f"{image_id}: ellipses of shape {rows.shape}, need (F, 5)")
        if (self.sizes_wh < 1).any():
            raise ValueError("an image without a pixel")

    @property
    def known_ids(self) -> tuple[str, ...]:
        """All images of the files, in the official order."""
        return self.image_ids if self.whole_ids is None else self.whole_ids

    @property
    def faces(self) -> npt.NDArray[np.int64]:
        """(N,) annotated faces per image."""
        return np.array([len(rows) for rows in self.ellipses], np.int64)

    def select(self, image_ids: Iterable[str]) -> Self:
        """The ground truth of these images alone, in the order given.

        Raises:
            ValueError: an image id that is not there, or one given twice.
        """
        wanted = tuple(image_ids)
        rows = places_of(wanted, self.image_ids)
        return type(self)(
            wanted, self.folds[rows], [self.ellipses[i] for i in rows], self.sizes_wh[rows], self.known_ids
        )

    def in_official_order(self) -> Self:
        """The same images, fold by fold as in the files."""
        own = set(self.image_ids)
        return self.select(image_id for image_id in self.known_ids if image_id in own)


def read_fddb_ground_truth(
    path: Path, *, images: Path | None = None, image_sizes: Path | None = None, images_root: Path | None = None
) -> FddbGroundTruth:
    """Read the folds that are in ``path``, in the order of their numbers.

    The official program clips regions to the image, so the sizes are needed. They are taken from ``image_sizes``; else
    from the images under ``images_root``; else from an ``image_sizes.json`` in the folder of the folds or its parent;
    else from the images in an ``originalPics`` there. Only the headers of images are read.

    Args:
        path: ``FDDB-folds``, or the folder that holds it.
        images: list of images that restricts everything.
        image_sizes: JSON file, image id → [width, height].
        images_root: ``originalPics``, or the folder that holds it.

    Raises:
        InputError: files that are missing or malformed, an image twice or of unknown size, a list that names an image
            which is not there, a face that lies outside its image.
    """
    folder = _folds_folder(path)
    image_ids: list[str] = []
    folds: list[int] = []
    ellipses = []
    for fold, file in _fold_files(folder):
        before = len(image_ids)
        for block in read_blocks(file):
            if block.rows.shape[1] not in (0, len(ELLIPSE)):
                raise InputError(f"{file}:{block.line}: rows of five numbers; ellipses are major minor angle cx cy 1")
            image_ids.append(block.name)
            folds.append(fold)
            ellipses.append(block.rows[:, :5].reshape(-1, 5))
        _check_names(folder / f"FDDB-fold-{fold:02d}.txt", image_ids[before:], file)
    seen: set[str] = set()
    for image_id in image_ids:
        if image_id in seen:
            raise InputError(f"{folder}: the image '{image_id}' is annotated twice; fetch the official files")
        seen.add(image_id)
    chosen = list(range(len(image_ids)))
    if images is not None:
        place = {image_id: i for i, image_id in enumerate(image_ids)}
        chosen = sorted(place[image_id] for image_id in read_selection(images, place))
    ids = tuple(image_ids[i] for i in chosen)
    sizes_wh, source = _sizes(folder, ids, image_sizes, images_root)
    truth = FddbGroundTruth(
        ids, np.array(folds, np.int64)[chosen], [ellipses[i] for i in chosen], sizes_wh, tuple(image_ids)
    )
    _check_inside(truth, source)
    return truth


def _folds_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"ground truth: {path} is not a folder; {_HINT}")
    return path / FOLDS_FOLDER if (path / FOLDS_FOLDER).is_dir() else path


def _fold_files(folder: Path) -> list[tuple[int, Path]]:
    found, named = {}, set()
    for entry in folder.iterdir():
        ellipses, names = _ELLIPSES.fullmatch(entry.name), _NAMES.fullmatch(entry.name)
        if ellipses:
            found[int(ellipses[1])] = entry
        elif names:
            named.add(int(names[1]))
    if not found:
        raise InputError(f"ground truth: there are no ellipse lists in {folder}; {_HINT}")
    outside = [fold for fold in found if not 1 <= fold <= FOLDS]
    if outside:
        raise InputError(f"{found[outside[0]]}: FDDB has the folds 1 … {FOLDS}; remove or rename the file")
    without = sorted(named - set(found))
    if without:
        raise InputError(f"ground truth: {folder / f'FDDB-fold-{without[0]:02d}-ellipseList.txt'} is missing; fetch it")
    return sorted(found.items())


def _check_names(path: Path, image_ids: list[str], ellipses: Path) -> None:
    """The list of a fold, where it is there, names the images of its ellipse list in the same order."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); fetch the official files") from error
    if [line.strip() for line in lines if line.strip()] != image_ids:
        raise InputError(f"{path} and {ellipses.name} name different images; use files of one release")


def _sizes(
    folder: Path, ids: tuple[str, ...], image_sizes: Path | None, images_root: Path | None
) -> tuple[npt.NDArray[np.int64], Path]:
    """(N, 2) width and height, and where they come from."""
    near = (folder, folder.parent)
    if image_sizes is None and images_root is None:
        image_sizes = next((place / SIZES_FILE for place in near if (place / SIZES_FILE).is_file()), None)
        images_root = next((place for place in near if (place / IMAGES_FOLDER).is_dir()), None)
    if image_sizes is not None:
        return _sizes_of_file(image_sizes, ids), image_sizes
    if images_root is not None:
        root = images_root / IMAGES_FOLDER if (images_root / IMAGES_FOLDER).is_dir() else images_root
        return _sizes_of_images(root, ids), root
    raise InputError(
        f"ground truth: the sizes of the images are needed and neither {SIZES_FILE} nor {IMAGES_FOLDER} is in {folder} "
        "or beside it; put one there, or name it (benchmark.image_sizes=FILE or "
        "benchmark.images_root=DIR; with evaluate data.image_sizes=FILE)"
    )


def _sizes_of_file(path: Path, ids: tuple[str, ...]) -> npt.NDArray[np.int64]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise InputError(f"{path} cannot be read ({reason}); give image ids with [width, height]") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no table; give image ids with [width, height]")
    sizes = np.zeros((len(ids), 2), np.int64)
    for place, image_id in enumerate(ids):
        size = content.get(image_id)
        if size is None:
            raise InputError(f"{path}: the size of the image '{image_id}' is missing; add its [width, height]")
        whole = isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
        if not whole or not all(1 <= side <= LARGEST for side in size):
            raise InputError(
                f"{path}: the size of '{image_id}' is {str(size)[:80]}; give its [width, height] in pixels"
            )
        sizes[place] = size
    return sizes


def _sizes_of_images(root: Path, ids: tuple[str, ...]) -> npt.NDArray[np.int64]:
    from PIL import Image

    sizes = np.zeros((len(ids), 2), np.int64)
    failed: list[tuple[Path, str]] = []
    for place, image_id in enumerate(ids):
        path = root / f"{image_id}.jpg"
        try:
            with Image.open(path) as image:
                sizes[place] = image.size
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL lets SyntaxError through
            failed.append((path, getattr(error, "strerror", None) or "not an image"))
    if failed:
        raise InputError(
            f"the sizes of the images are needed and {len(failed)} of {len(ids)} cannot be read, the first is "
            f"{failed[0][0]} ({failed[0][1]}); complete the folder, name those at hand with a list of images, "
            "or give the sizes (benchmark.image_sizes=FILE)"
        )
    return sizes


def _check_inside(truth: FddbGroundTruth, source: Path) -> None:
    """A face without a pixel can never be found: then the sizes are of other images, or height and width swapped."""
    for image_id, rows, (width, height) in zip(truth.image_ids, truth.ellipses, truth.sizes_wh, strict=True):
        reach = rows[:, :2].max(axis=1, initial=0) + 1
        low, high = (rows[:, 3:] + sign * reach[:, None] for sign in (-1, 1))
        if (high < 0).any() or (low > [width, height]).any():
            raise InputError(
                f"{source}: a face of '{image_id}' lies outside its {width} × {height} pixels; "
                "give the images' width and height, in this order"
            )
