"""WIDER FACE's predictions: one text file per image, read, written, packed for the test server.

Predictions of a run, packed, and the official text layout: one ``event/name.txt`` per image.

A file has the image's name (with or without its event and extension), the number of rows, and rows ``x y w h score``.
Hundreds of thousands of rows are parsed in
one sweep (:mod:`predictions`); whatever that sweep doubts goes through a line-by-line parser that names the fault.

The archive that the WIDER FACE test server takes.

The site asks for one text file per image of the test split, named as the image and in a folder named as its event
(``0--Parade/0_Parade_marchingband_1_5.txt``): a name line, a count line, rows ``left top width height score``. That is
the layout of :mod:`predictions`; the archive has the event folders at its top.
"""

import math
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder
from fanet_lightning.score.inputs import (
    check_complete,
    is_same_image,
    name_parts,
    packed_detections,
)

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


_HIDDEN = (".", "__MACOSX")
_LAYOUT = "predictions lie as event/name.txt: a name line, a count line, rows x y w h score"


@dataclass(frozen=True, eq=False)
class Predictions:
    """The rows of all images, packed image by image.

    ``image_ids``  N of them, in the order of the ground truth.
    ``starts``     (N + 1,) int64: the rows of image i are ``starts[i]`` … ``starts[i + 1]``.
    ``boxes_xywh`` (R, 4) float64, pixels of the original image.
    ``scores``     (R,) float64, any scale, in any order.
    ``missing``    images without a file; they count as images without a detection.
    """

    image_ids: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    missing: tuple[str, ...] = ()

    @classmethod
    def from_detections(
        cls, detections: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], image_ids: Iterable[str]
    ) -> "Predictions":
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))``; an image that is not there has no detection.

        Raises:
            ValueError: a detection that is not finite, has a negative side, or is about an image outside ``image_ids``.
        """
        ids = tuple(image_ids)
        starts, boxes_xyxy, scores = packed_detections(detections, ids)
        missing = tuple(image_id for image_id in ids if image_id not in detections)
        return cls(ids, starts, as_xywh(boxes_xyxy), scores, missing)


def read_predictions(
    source: Path | str, image_ids: Iterable[str], *, known_ids: Collection[str] | None = None, strict: bool = False
) -> Predictions:
    """Read the files of ``image_ids`` from a folder or a ``.zip`` in the official layout.

    Files of other images in ``known_ids`` (all of the ground truth, when ``image_ids`` are a selection) are skipped.
    Files that do not end in ``.txt`` and hidden ones are no predictions.

    Raises:
        InputError: the source is missing or empty, an image has two files or is not known, a file does not hold what
            it should, or, with ``strict``, an image has no file.
    """
    source = Path(source)
    ids = tuple(image_ids)
    wanted = set(ids)
    known = wanted if known_ids is None else wanted | set(known_ids)
    if source.is_dir():
        files = read_folder(source, wanted, known)
    elif source.is_file():
        files = _read_zip(source, wanted, known)
    else:
        raise InputError(f"there are no predictions at {source}; give a folder or a .zip, {_LAYOUT}")
    missing = tuple(image_id for image_id in ids if image_id not in files)
    if strict:
        check_complete(source, missing, len(ids))
    present = [files[image_id] for image_id in ids if image_id in files]
    values, rows_per_file = parse_files(present)
    counts = np.zeros(len(ids), np.int64)
    counts[[image_id in files for image_id in ids]] = rows_per_file
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Predictions(ids, starts, values[:, :4], values[:, 4], missing)


def write_predictions(folder: Path, detections: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]) -> None:
    """Write ``image_id → (boxes_xyxy (D, 4), scores (D,))`` as the official text files, best score first.

    Boxes get two decimals, scores six. The tree is written beside ``folder`` and takes its place by rename; earlier
    predictions there are replaced, anything else is not.

    Raises:
        InputError: ``folder`` holds something else than predictions, or cannot be written.
        ValueError: an image id that is no relative path, or a detection that is not finite or has a negative side.
    """
    # Label files of other formats are .txt files as well.
    check_replaceable(
        folder, "predictions", lambda entry: all(map(_is_prediction, entry.rglob("*"))) and _is_prediction(entry)
    )
    with replaced_folder(folder) as temporary:
        for image_id, (boxes_xyxy, scores) in detections.items():
            event, _, name = image_id.rpartition("/")
            if any(step in ("", ".", "..") for step in image_id.split("/")):
                raise ValueError(f"image id '{image_id}' is no relative path, event/name in WIDER FACE")
            text = prediction_text(name, boxes_xyxy, scores)
            (temporary / event).mkdir(parents=True, exist_ok=True)
            (temporary / event / f"{name}.txt").write_text(text, encoding="utf-8")


def prediction_text(name: str, boxes_xyxy: npt.ArrayLike, scores: npt.ArrayLike) -> str:
    """The text of the file of image ``name``, boxes (D, 4) and scores (D,) best score first: two decimals and six.

    Raises:
        ValueError: a detection that is not finite or has a negative side.
    """
    _, boxes, confidence = packed_detections({name: (boxes_xyxy, scores)}, [name])
    rows = np.column_stack([as_xywh(boxes), confidence])[np.argsort(-confidence, kind="stable")]
    body = "%.2f %.2f %.2f %.2f %.6f\n" * len(rows) % tuple(rows.ravel().tolist())
    return f"{name}\n{len(rows)}\n{body}"


def read_folder(root: Path, wanted: set[str], known: set[str]) -> dict[str, PredictionFile]:
    """The files of the ``wanted`` images by image id, not parsed.

    Raises:
        InputError: a folder without predictions, with two files for an image or one of an image that is not ``known``,
            or a file that cannot be read.
    """
    try:
        listed = [place for depth in _depths(known) for place in _at_depth(root, depth)]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); change its permissions") from error
    files: dict[str, PredictionFile] = {}
    for image_id, (event_name, file_name) in _by_image(str(root), listed, known).items():
        if image_id in wanted:
            path = root / event_name / file_name
            try:
                files[image_id] = PredictionFile(str(path), image_id, path.read_bytes())
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}); mend or remove it") from error
    return files


def _depths(image_ids: Collection[str]) -> list[int]:
    """How many folders deep the images lie: one in WIDER FACE, any number in data of one's own."""
    return sorted({image_id.count("/") for image_id in image_ids})


def _at_depth(folder: Path, depth: int, place: str = "") -> Iterator[tuple[str, str]]:
    """The (folder, name) of all files so many folders below ``folder``."""
    with os.scandir(folder) as entries:
        listed = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in listed:
        if depth and is_folder:
            yield from _at_depth(folder / name, depth - 1, f"{place}/{name}" if place else name)
        elif not depth and not is_folder:
            yield place, name


def _read_zip(path: Path, wanted: set[str], known: set[str]) -> dict[str, PredictionFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            members: dict[tuple[str, str], zipfile.ZipInfo] = {}
            listed = []
            depths = _depths(known)
            packed = [
                (PurePosixPath(member.filename.replace("\\", "/")).parts, member)
                for member in archive.infolist()
                if not member.is_dir()
            ]
            texts = [parts for parts, _ in packed if _is_text(parts[-1]) and not parts[0].startswith(_HIDDEN)]
            # Whoever packs a folder has its name at the top.
            is_folder = not any(len(parts) - 1 in depths for parts in texts) and len({parts[0] for parts in texts}) == 1
            for parts, member in packed:
                steps = parts[is_folder:]
                if len(steps) - 1 in depths:
                    place = ("/".join(steps[:-1]), steps[-1])
                    members[place] = member
                    listed.append(place)
            return {
                image_id: PredictionFile(f"{path}/{_joined(*place)}", image_id, archive.read(members[place]))
                for image_id, place in _by_image(str(path), listed, known).items()
                if image_id in wanted
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise InputError(f"{path} is not a readable .zip ({error}); pack it again or give the folder") from error


def _by_image(source: str, listed: list[tuple[str, str]], known: set[str]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    surplus = []
    for event, name in listed:
        if not _is_text(name) or event.startswith(_HIDDEN):
            continue
        image_id = _joined(event, name[:-4])
        if image_id not in known:
            image_id = _joined(event, name_parts(name[:-4])[-1])
        if image_id in found:
            raise InputError(f"{source}: two files for image '{image_id}', {found[image_id][1]} and {name}; remove one")
        found[image_id] = (event, name)
        if image_id not in known:
            surplus.append(_joined(event, name))
    if not found:
        raise InputError(f"{source}: there are no predictions in it; give what holds the event folders, {_LAYOUT}")
    if surplus:
        raise InputError(
            f"{source}: {len(surplus)} files are of images that the ground truth does not have, the first is "
            f"'{surplus[0]}'; remove them or give the ground truth they belong to"
        )
    return found


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt") and not name.startswith(".")


def _joined(event: str, name: str) -> str:
    return f"{event}/{name}" if event else name


def as_xywh(boxes_xyxy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(R, 4) → (R, 4) ``x y w h``."""
    return np.column_stack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]])


def _is_prediction(path: Path) -> bool:
    """A folder, or a file of ours."""
    if path.is_dir():
        return True
    if path.suffix != ".txt" or not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().strip() == path.stem
    except (OSError, UnicodeDecodeError):
        return False


# The earliest that a zip can hold: equal predictions give equal archives.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_submission(archive: Path, folder: Path, image_ids: Sequence[str]) -> Predictions:
    """Pack the predictions in ``folder`` and read the archive back.

    Args:
        archive: a ``.zip``; appears by rename, when it has been read back and holds what the folder holds.
        folder: predictions in the official layout.
        image_ids: every image that the archive must have a file for, ``event/name``.

    Returns:
        What the archive holds.

    Raises:
        InputError: an image without a file, a file of another image, or the archive cannot be written.
    """
    ids = sorted(image_ids)
    expected = read_predictions(folder, ids)
    if expected.missing:
        raise InputError(
            f"{folder}: {len(expected.missing)} of {len(ids)} images of the split have no file, the first is "
            f"'{expected.missing[0]}'; the server wants a file for each, with the count 0 where nothing was found"
        )
    files = read_folder(folder, set(ids), set(ids))
    try:
        with replaced(archive) as temporary:
            with zipfile.ZipFile(temporary, "w") as target:
                for image_id in ids:
                    member = zipfile.ZipInfo(f"{image_id}.txt", _TIME)
                    member.compress_type = zipfile.ZIP_DEFLATED
                    member.external_attr = 0o644 << 16
                    target.writestr(member, files[image_id].text)
            written = read_predictions(temporary, ids, strict=True)
            if not all(
                np.array_equal(getattr(written, name), getattr(expected, name))
                for name in ("starts", "boxes_xywh", "scores")
            ):
                raise InputError(f"{archive} does not read back as {folder}; the disk may be faulty, try another one")
    except OSError as error:
        raise InputError(f"{archive} cannot be written ({error.strerror}); free the disk") from error
    return written
