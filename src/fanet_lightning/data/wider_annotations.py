"""The official WIDER FACE annotations: text lists and ``.mat`` files, from a folder or inside the official zip."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.files import decoded_text

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# x y w h and the six attributes of records.ATTRIBUTES.
COLUMNS = 10
_ROW = "a row 'x y w h blur expression illumination invalid occlusion pose'"


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """The annotations of a split in the file's order, every box as it is written there.

    ``image_ids`` N official relative paths without extension.
    ``starts``    (N + 1,) int64: the rows of image i are ``starts[i]`` … ``starts[i + 1] - 1``.
    ``rows``      (R, 10) float64: x, y, w, h in pixels, then blur, expression, illumination, invalid, occlusion, pose.
    ``source``    the file, for messages.
    """

    image_ids: list[str]
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float64]
    source: str

    def of_image(self, index: int) -> npt.NDArray[np.float64]:
        """(F, 10), the rows of one image."""
        return self.rows[self.starts[index] : self.starts[index + 1]]


def read_annotations(source: Path, split: Split, *, form: Literal["txt", "mat"] | None = None) -> AnnotationTable:
    """Read the annotations of one split.

    Args:
        source: folder with the official files (or with their folder ``wider_face_split``), or the official zip.
        split: ``test`` has names only.
        form: read the text list or the ``.mat`` file; both hold the same. By default the text, else the ``.mat``.

    An image without a face has a single row of zeros in the official files (in the text of the training split under the
    count 0, elsewhere under the count 1; a count of 0 with no row is read as well). That row is kept here: text and
    ``.mat`` agree, and the official totals hold.

    Raises:
        InputError: nothing found, or a malformed file; names the file, the line and its text.
    """
    if split not in SPLITS:
        raise InputError(f"split={split} is unknown; take one of {', '.join(SPLITS)}")
    text_name = "wider_face_test_filelist.txt" if split == "test" else f"wider_face_{split}_bbx_gt.txt"
    readers: list[tuple[str, str, Callable[[bytes, str], AnnotationTable]]] = [
        ("txt", text_name, parse_names if split == "test" else parse_text),
        ("mat", f"wider_face_{split}.mat", parse_mat),
    ]
    wanted = [reader for reader in readers if form in (None, reader[0])]
    for _, name, parse in wanted:
        found = find_annotations(source, name)
        if found is not None:
            return parse(*found)
    names = " or ".join(name for _, name, _ in wanted)
    raise InputError(f"no {names} in {source}; give the folder wider_face_split or the official wider_face_split.zip")


def find_annotations(source: Path, name: str) -> tuple[bytes, str] | None:
    """The file's bytes and what to call it, or None."""
    if source.is_dir():
        for path in (source / name, source / "wider_face_split" / name):
            if path.is_file():
                return path.read_bytes(), str(path)
    elif source.is_file():
        try:
            with zipfile.ZipFile(source) as archive:
                for member in archive.namelist():
                    if member.rsplit("/", 1)[-1] == name and not member.startswith("__MACOSX"):
                        return archive.read(member), f"{source}:{member}"
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{source} is neither a folder nor a readable zip ({error}); fetch it again") from error
    return None


def _lines(content: bytes, source: str) -> list[str]:
    try:
        return decoded_text(content).replace("\r\n", "\n").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not text (byte {error.start}); fetch it again") from error


def _malformed(source: str, index: int, lines: list[str], expected: str) -> InputError:
    text = repr(lines[index].strip()) if index < len(lines) else "the end of the file"
    return InputError(
        f"{source}, line {index + 1}: {text} stands where {expected} is expected; mend the line or fetch it again"
    )


def _is_name(text: str) -> bool:
    event, slash, name = text.partition("/")
    return bool(event and slash and name)


def parse_text(content: bytes, source: str) -> AnnotationTable:
    """``wider_face_{train,val}_bbx_gt.txt``: per image a name line, a count line, and so many rows of ten numbers."""
    lines = _lines(content, source)
    image_ids: list[str] = []
    counts: list[int] = []
    row_indices: list[int] = []
    index = 0
    while index < len(lines):
        name = lines[index].strip()
        if not name:
            index += 1
            continue
        if not _is_name(name):
            raise _malformed(source, index, lines, "an image name event/name.jpg")
        count_text = lines[index + 1].strip() if index + 1 < len(lines) else ""
        if not (count_text.isascii() and count_text.isdigit()):
            raise _malformed(source, index + 1, lines, f"the number of faces of {name}")
        count = int(count_text)
        index += 2
        if count == 0 and index < len(lines) and _is_zeros(lines[index]):
            count = 1
        if index + count > len(lines):
            raise _malformed(source, len(lines), lines, f"row {len(lines) - index + 1} of {count} of {name}")
        for row in range(index, index + count):
            if "/" in lines[row]:  # the count is too large: say so here, not where the walk has lost its way
                raise _malformed(source, row, lines, f"row {row - index + 1} of {count} of {name}")
        image_ids.append(name.removesuffix(".jpg"))
        counts.append(count)
        row_indices.extend(range(index, index + count))
        index += count
    _check_names(image_ids, source)
    starts = np.cumsum([0, *counts], dtype=np.int64)
    return AnnotationTable(image_ids, starts, _parse_rows(lines, row_indices, source), source)


def _is_zeros(line: str) -> bool:
    fields = line.split()
    return len(fields) == COLUMNS and all(field == "0" for field in fields)


def _parse_rows(lines: list[str], indices: list[int], source: str) -> npt.NDArray[np.float64]:
    if not indices:
        return np.zeros((0, COLUMNS))
    try:
        rows = np.loadtxt([lines[index] for index in indices], dtype=np.float64, comments=None, ndmin=2)
    except ValueError:
        rows = np.zeros((0, 0))
    sound = rows.shape == (len(indices), COLUMNS) and bool(np.isfinite(rows).all())
    if sound and (np.abs(rows[:, 4:]) <= 127).all() and (rows[:, 4:] == np.round(rows[:, 4:])).all():
        return rows
    for index in indices:
        if not _is_row(lines[index]):
            raise _malformed(source, index, lines, _ROW)
    raise ValueError(f"{source}: numpy refused rows that are well formed one by one")


def _is_row(line: str) -> bool:
    if "_" in line:  # Python's float reads 1_000, numpy's reader does not
        return False
    try:
        numbers = [float(field) for field in line.split()]
    except ValueError:
        return False
    attributes = numbers[4:]
    return (
        len(numbers) == COLUMNS
        and bool(np.isfinite(numbers).all())
        and all(abs(value) <= 127 and value == round(value) for value in attributes)
    )


def parse_names(content: bytes, source: str) -> AnnotationTable:
    """``wider_face_test_filelist.txt``: names alone."""
    lines = _lines(content, source)
    image_ids = []
    for index, line in enumerate(lines):
        name = line.strip()
        if name and not _is_name(name):
            raise _malformed(source, index, lines, "an image name event/name.jpg")
        if name:
            image_ids.append(name.removesuffix(".jpg"))
    _check_names(image_ids, source)
    return _names_only(image_ids, source)


def _names_only(image_ids: list[str], source: str) -> AnnotationTable:
    return AnnotationTable(image_ids, np.zeros(len(image_ids) + 1, dtype=np.int64), np.zeros((0, COLUMNS)), source)


def parse_mat(content: bytes, source: str) -> AnnotationTable:
    """``wider_face_{train,val,test}.mat``: nested cells, event by event; the test file has no boxes."""
    from scipy.io import loadmat

    labels = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
    try:
        contents: dict[str, Any] = loadmat(io.BytesIO(content))
        events, files = contents["event_list"], contents["file_list"]
        image_ids = [
            f"{events[event, 0][0]}/{files[event, 0][image, 0][0]}".removesuffix(".jpg")
            for event in range(len(events))
            for image in range(len(files[event, 0]))
        ]
        _check_names(image_ids, source)
        if "face_bbx_list" not in contents:
            return _names_only(image_ids, source)
        columns = [contents["face_bbx_list"], *(contents[f"{label}_label_list"] for label in labels)]
        per_image = [
            np.concatenate([column[event, 0][image, 0].astype(np.float64) for column in columns], axis=1)
            for event in range(len(events))
            for image in range(len(files[event, 0]))
        ]
    except InputError:
        raise
    except Exception as error:  # scipy raises almost anything on a damaged file
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{source} is not an official annotation file ({reason}); fetch it again") from error
    rows = np.concatenate([np.zeros((0, COLUMNS)), *per_image])
    if rows.shape[1] != COLUMNS or not np.isfinite(rows).all():
        raise InputError(f"{source} holds boxes that are not four finite numbers; fetch it again")
    # The text has a zero where these files have a negative side (three boxes of train and val).
    rows[:, 2:4] = np.maximum(rows[:, 2:4], 0)
    return AnnotationTable(image_ids, np.cumsum([0, *map(len, per_image)], dtype=np.int64), rows, source)


def _check_names(image_ids: list[str], source: str) -> None:
    if not image_ids:
        raise InputError(f"{source} names no image; fetch it again")
    if len(set(image_ids)) != len(image_ids):
        seen: set[str] = set()
        twice = next(name for name in image_ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"{source} has the image {twice} twice; keep one of its records")
