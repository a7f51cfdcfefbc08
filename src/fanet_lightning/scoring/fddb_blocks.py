"""Blocks of FDDB's text files, annotations and detections alike: a name line, a count line, rows of numbers."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError

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
