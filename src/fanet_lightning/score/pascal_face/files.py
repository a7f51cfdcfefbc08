"""Detections on PASCAL face and AFW in the formats that face-eval reads, and written in the first of them.

==================  ====================================================================================================
``.txt``            ``name score x1 y1 x2 y2`` a line, the name with or without ``.jpg``
``.mat``            ``ids``, ``BB`` (4, D) x1 y1 x2 y2, ``confidence``; rows with ``del`` = 1 are left out
``.ramananmat``     ``ids``, ``BB`` (4, D), ``sc``; without ``sc`` every score is 1
``.shenmat``        ``DetectionResults``: per image ``filename`` with a Windows path and ``faces`` x y w h score
``.csv``            Picasa: ``;`` between columns, a header line, name in column 3, x y w h in 8 to 11; every score is 1
==================  ====================================================================================================

A file whose name up to the first dot is ``Picasa`` is matched at an overlap of 0.1 instead of 0.5: so does face-eval,
for that program's faces are far smaller than the annotated ones.
"""

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import check_replaceable, replaced_folder
from fanet_lightning.score.inputs import DetectionsByImage
from fanet_lightning.score.pascal_face.ground_truth import (
    OVERLAP,
    Float,
    PascalFaceDetections,
    PascalFaceGroundTruth,
    image_key,
    load_mat,
)

DETECTIONS_FILE = "detections.txt"
SUFFIXES = (".txt", ".mat", ".ramananmat", ".shenmat", ".csv")
PICASA_OVERLAP = 0.1

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ROW = re.compile(r"(\S+)" + rf"\s+({_NUMBER.pattern})" * 5)
# Beyond this no image reaches, and squares of such numbers have no exact sums.
_LARGEST_PX = 1e9


class _Table(NamedTuple):
    """``names`` up to the first dot, ``values`` (D, 5) score x1 y1 x2 y2, ``places`` of the rows for messages."""

    names: list[str]
    values: Float
    places: list[str]


def read_detections(source: Path, ground_truth: PascalFaceGroundTruth) -> PascalFaceDetections:
    """Read a file of detections, or a folder that holds one.

    A file without rows is a run without detections. Rows of images that the ground truth knows but has not selected
    are skipped. Face-eval counts detections of unknown images as false positives; they are an error here, since all
    they have told so far is that the wrong files were given.

    Raises:
        InputError: a missing file, a folder without one or with more, a format that is not known, an unknown image, a
            number that is missing, not finite or beyond 1e9, a negative side.
    """
    path = _file_of(source)
    table = _READERS[path.suffix.lower()](path)
    _check_values(path, table)
    place = {image_id: i for i, image_id in enumerate(ground_truth.image_ids)}
    known = ground_truth.known_ids.union(place)
    unknown = [i for i, name in enumerate(table.names) if name not in known]
    if unknown:
        first = unknown[0]
        images = len({table.names[i] for i in unknown})
        raise InputError(
            f"{path}, {table.places[first]}: image '{table.names[first][:80]}' is not in the ground truth, nor are the "
            f"images of {len(unknown) - 1} other rows ({images} images in all); remove them or give the ground truth "
            "they belong to"
        )
    index = np.array([place.get(name, -1) for name in table.names], np.int64)
    selected = index >= 0
    values = table.values[selected]
    overlap = PICASA_OVERLAP if image_key(path.name) == "Picasa" else OVERLAP
    layout = "x y w h" if path.suffix.lower() in (".csv", ".shenmat") else "x1 y1 x2 y2"
    return PascalFaceDetections(ground_truth.image_ids, index[selected], values[:, 1:], values[:, 0], overlap, layout)


def write_detections(folder: Path, detections: DetectionsByImage, image_ids: Iterable[str]) -> Path:
    """Write ``image_id → (boxes_xyxy (D, 4), scores (D,))`` as ``detections.txt`` in ``folder``, best score first.

    Scores get nine digits, which float32 survives, boxes three decimals. Among equal scores the order of ``image_ids``
    decides, then that of the rows; so reading the file gives the same order again.

    Raises:
        InputError: ``folder`` holds something else, or cannot be written.
        ValueError: detections that are not finite, have a negative side, or are about other images.
    """
    check_replaceable(folder, "predictions", lambda entry: entry.name == DETECTIONS_FILE)
    packed = PascalFaceDetections.from_detections(detections, image_ids)
    order = np.argsort(-packed.scores, kind="stable")
    names = [packed.image_ids[i] for i in packed.image_index[order]]
    rows = np.column_stack([packed.scores, packed.boxes_xyxy])[order].tolist()
    lines = [
        f"{name} {score:.9g} {x1:.3f} {y1:.3f} {x2:.3f} {y2:.3f}\n"
        for name, (score, x1, y1, x2, y2) in zip(names, rows, strict=True)
    ]
    with replaced_folder(folder) as temporary:
        (temporary / DETECTIONS_FILE).write_text("".join(lines), encoding="utf-8")
    return folder / DETECTIONS_FILE


def _file_of(source: Path) -> Path:
    layout = f"give a file of detections ({', '.join(SUFFIXES)}) or a folder that holds one"
    if source.is_dir():
        files = sorted(
            entry
            for entry in source.iterdir()
            if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        )
        if not files:
            raise InputError(f"predictions: {source} holds no file of detections; {layout}")
        if len(files) > 1:
            raise InputError(
                f"predictions: {source} holds {len(files)} files of detections, {files[0].name} and {files[1].name} "
                "among them; give the one to score"
            )
        return files[0]
    if not source.is_file():
        raise InputError(f"predictions: there is no {source}; {layout}")
    if source.suffix.lower() not in SUFFIXES:
        raise InputError(f"predictions: {source.name} is in no format that is known; {layout}")
    return source


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text; save the file as plain text") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); change its permissions") from error


def _read_txt(path: Path) -> _Table:
    names, rows, places = [], [], []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        row = _ROW.fullmatch(line)
        if row is None:
            raise InputError(f"{path}:{number}: {_fault(line.split(), 'name score x1 y1 x2 y2')}")
        name, *numbers = row.groups()
        names.append(image_key(name))
        rows.append([float(word) for word in numbers])
        places.append(f"line {number}")
    return _Table(names, np.array(rows, np.float64).reshape(-1, 5), places)


def _fault(words: list[str], layout: str) -> str:
    """What is wrong with a row, a name and then numbers."""
    for word in words[1:]:
        if "," in word:
            return f"'{word[:80]}' has a comma; write 1.5, and blanks between numbers"
    if len(words) != 6:
        return f"{len(words)} words in '{' '.join(words)[:80]}'; write six, {layout}"
    word = next(word for word in words[1:] if not _NUMBER.fullmatch(word))
    return f"'{word[:80]}' is not a finite number; correct or remove the row"


def _read_csv(path: Path) -> _Table:
    names, rows, places = [], [], []
    for number, cells in enumerate(csv.reader(_read_text(path).splitlines(), delimiter=";"), start=1):
        if number == 1 or not cells:
            continue
        if len(cells) < 11:
            raise InputError(f"{path}:{number}: {len(cells)} columns; Picasa's files have eleven with ';' between them")
        for cell in cells[7:11]:
            if not _NUMBER.fullmatch(cell.strip()):
                raise InputError(f"{path}:{number}: '{cell[:80]}' is not a finite number; correct or remove the row")
        x, y, width, height = (float(cell) for cell in cells[7:11])
        names.append(image_key(cells[2].strip()))
        rows.append([1.0, x, y, x + width, y + height])
        places.append(f"line {number}")
    return _Table(names, np.array(rows, np.float64).reshape(-1, 5), places)


def _read_mat(path: Path) -> _Table:
    content = load_mat(path, ("ids", "BB", "confidence"))
    table = _columns(path, content, "confidence")
    if "del" not in content:
        return table
    deleted = np.asarray(content["del"]).ravel()
    if len(deleted) != len(table.names):
        raise InputError(f"{path}: {len(deleted)} values in 'del' for {len(table.names)} ids; write one per detection")
    rows = np.flatnonzero(deleted != 1)
    return _Table([table.names[i] for i in rows], table.values[rows], [table.places[i] for i in rows])


def _read_ramanan(path: Path) -> _Table:
    content = load_mat(path, ("ids", "BB"))
    return _columns(path, content, "sc" if np.size(content.get("sc", ())) else None)


def _columns(path: Path, content: dict[str, Any], score: str | None) -> _Table:
    try:
        names = [str(np.asarray(cell).ravel()[0]) for cell in np.asarray(content["ids"]).ravel()]
        boxes = np.asarray(content["BB"], np.float64).reshape(4, -1)
        scores = np.ones(len(names)) if score is None else np.asarray(content[score], np.float64).ravel()
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} has not the layout of face-eval ({first_line(error)}); see its format") from error
    if not len(names) == boxes.shape[1] == len(scores):
        raise InputError(
            f"{path}: {len(names)} ids, {boxes.shape[1]} boxes and {len(scores)} scores; write as many of each"
        )
    values = np.column_stack([scores, boxes.T])
    return _Table([image_key(name) for name in names], values, [f"detection {i + 1}" for i in range(len(names))])


def _read_shen(path: Path) -> _Table:
    names: list[str] = []
    rows, places = [np.empty((0, 5))], []
    try:
        for number, cell in enumerate(np.asarray(load_mat(path, ("DetectionResults",))["DetectionResults"]).ravel()):
            image = np.asarray(cell).ravel()[0]
            name = image_key(str(np.asarray(image["filename"]).ravel()[0]))
            faces = np.asarray(image["faces"], np.float64).reshape(-1, 5)
            rows.append(np.column_stack([faces[:, 4], faces[:, :2], faces[:, :2] + faces[:, 2:4]]))
            names += [name] * len(faces)
            places += [f"image {number + 1}"] * len(faces)
    except InputError:
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} has not the layout of face-eval ({first_line(error)}); see its format") from error
    return _Table(names, np.concatenate(rows), places)


def _check_values(path: Path, table: _Table) -> None:
    values = table.values
    usable = np.isfinite(values[:, 0]) & (np.abs(values[:, 1:]) <= _LARGEST_PX).all(axis=1)
    if not usable.all():
        first = int(np.flatnonzero(~usable)[0])
        finite = np.isfinite(values[first])
        value = values[first][~finite][0] if not finite.all() else values[first, 1:][np.abs(values[first, 1:]).argmax()]
        reason = f"no pixel coordinate (beyond {_LARGEST_PX:g})" if math.isfinite(value) else "not a finite number"
        raise InputError(f"{path}, {table.places[first]}: {value:g} is {reason}; correct or remove the row")
    for low, high, side in ((1, 3, "x"), (2, 4, "y")):
        below = np.flatnonzero(values[:, high] < values[:, low])
        if len(below):
            first = int(below[0])
            raise InputError(
                f"{path}, {table.places[first]}: {side}2 = {values[first, high]:g} is below {side}1 = "
                f"{values[first, low]:g}; rows hold corners, not width and height"
            )


_READERS = {
    ".txt": _read_txt,
    ".mat": _read_mat,
    ".ramananmat": _read_ramanan,
    ".shenmat": _read_shen,
    ".csv": _read_csv,
}
