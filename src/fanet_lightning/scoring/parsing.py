"""Text of prediction files → numbers: one fast sweep over all files, and a careful parser that finds the fault."""

import math
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.scoring.selection import is_same_image

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Nine digits: Python refuses to convert thousands of them, and no image has a billion rows.
_COUNT = re.compile(r"\d{1,9}", re.ASCII)
_NEWLINE, _BLANK = 10, 32


class PredictionFile(NamedTuple):
    """``where`` is what an error calls the file; ``text`` is its content, undecoded."""

    where: str
    image_id: str
    text: bytes


def parse_files(files: Sequence[PredictionFile]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Files → values (R, 5) ``x y w h score`` in file order, and the number of rows of each file.

    Raises:
        InputError: the first fault, with file, line and value.
    """
    parsed = _parse_fast(files)
    if parsed is not None:
        return parsed
    arrays = [parse_carefully(file) for file in files]
    return np.concatenate([np.empty((0, 5)), *arrays]), np.array([len(array) for array in arrays], np.int64)


def _parse_fast(files: Sequence[PredictionFile]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]] | None:
    """All files at once, or None at the slightest doubt. Whatever it accepts, the careful parser reads the same."""
    bodies, declared = [], []
    for file in files:
        # Two splits only, so that the rows are not cut into pieces.
        name, _, rest = file.text.partition(b"\n")
        count, _, body = rest.partition(b"\n")
        if not _is_named(name.decode("utf-8", "replace"), file.image_id):
            return None
        count = count.strip()
        if not (count.isdigit() and len(count) <= 9):
            return None
        declared.append(int(count))
        bodies.append(body)
    text = b"\n".join([*bodies, b""])
    characters = np.frombuffer(text, np.uint8)
    solid = characters > _BLANK
    # Ends of numbers: the last character of all is a line feed, so each number has a blank after it.
    ends = np.flatnonzero(solid[:-1] & ~solid[1:])
    lines = np.flatnonzero(characters == _NEWLINE)
    numbers_per_line = np.diff(np.searchsorted(ends, lines), prepend=0)
    row_lines = lines[numbers_per_line > 0]
    if (numbers_per_line[numbers_per_line > 0] != 5).any():
        return None
    file_ends = np.cumsum([len(body) + 1 for body in bodies], dtype=np.int64)
    rows_per_file = np.diff(np.searchsorted(row_lines, file_ends), prepend=0)
    if not np.array_equal(rows_per_file, np.array(declared, np.int64)):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            numbers = np.fromstring(text.decode("ascii"), sep=" ")
        except (ValueError, DeprecationWarning):
            return None
    # As many numbers as words, so no word was cut into two ("1-2") and none was left out.
    if len(numbers) != len(ends):
        return None
    values = numbers.reshape(-1, 5)
    if not (np.isfinite(values).all() and (values[:, 2:4] >= 0).all()):
        return None
    return values, rows_per_file


def parse_carefully(file: PredictionFile) -> npt.NDArray[np.float64]:
    """One file, line by line → (D, 5).

    Raises:
        InputError: the first fault, with file, line and value.
    """
    name = file.image_id.rpartition("/")[2]
    try:
        lines = file.text.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file.where}: byte {error.start} is not UTF-8 text; save the file as plain text") from error
    if not _is_named(lines[0], file.image_id):
        found = lines[0].strip()[:80]
        raise InputError(f"{file.where}:1: the name line says '{found}'; write '{name}' or rename the file")
    count = lines[1].strip() if len(lines) > 1 else ""
    if not _COUNT.fullmatch(count):
        raise InputError(f"{file.where}:2: '{count[:80]}' is not a number of rows; write how many rows follow")
    rows = [_row(file.where, number, line.split()) for number, line in enumerate(lines[2:], 3) if line.strip()]
    if len(rows) != int(count):
        raise InputError(f"{file.where}:2: {count} rows are announced but {len(rows)} follow; correct the count")
    return np.array(rows, np.float64).reshape(-1, 5)


def _is_named(line: str, image_id: str) -> bool:
    """Detectors write the name, the file name, or ``event/name.jpg`` (S3FD)."""
    line = line.strip()
    return line == image_id.rpartition("/")[2] or is_same_image(line, image_id)


def _row(where: str, number: int, words: list[str]) -> list[float]:
    for word in words:
        if "," in word:
            raise InputError(f"{where}:{number}: '{word[:80]}' has a comma; write 1.5, and blanks between numbers")
    if len(words) != 5:
        row = " ".join(words)[:80]
        raise InputError(f"{where}:{number}: {len(words)} numbers in '{row}'; write five, x y w h score")
    values = []
    for word in words:
        value = float(word) if _NUMBER.fullmatch(word) else math.nan
        if not math.isfinite(value):
            raise InputError(f"{where}:{number}: '{word[:80]}' is not a finite number; correct or remove the row")
        values.append(value)
    for side, value in (("width", values[2]), ("height", values[3])):
        if value < 0:
            raise InputError(f"{where}:{number}: {side} {value:g} is negative; rows are x y w h score, not corners")
    return values
