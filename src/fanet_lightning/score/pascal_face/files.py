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

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import check_replaceable, replaced_folder
from fanet_lightning.score.inputs import DetectionsByImage, layout_of, load_mat, number_rows
from fanet_lightning.score.pascal_face.ground_truth import (
    OVERLAP,
    Float,
    PascalFaceDetections,
    PascalFaceGroundTruth,
    image_key,
)

DETECTIONS_FILE = "detections.txt"
SUFFIXES = (".txt", ".mat", ".ramananmat", ".shenmat", ".csv")
PICASA_OVERLAP = 0.1

# Beyond this no image reaches, and squares of such numbers have no exact sums.
_LARGEST_PX = 1e9


class _Table(NamedTuple):
    """``names`` as in the file, ``values`` (D, 5) score and corners, ``place`` what messages call a row, from 0."""

    names: list[str]
    values: Float
    place: Callable[[int], str]


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
    names, values, place = _READERS[path.suffix.lower()](path)
    wrong = ~np.isfinite(values[:, 0]) | ~(np.abs(values[:, 1:]) <= _LARGEST_PX).all(axis=1)
    wrong |= (values[:, 3:] < values[:, 1:3]).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{place(row)}: score and corners {values[row].tolist()} are not finite, beyond {_LARGEST_PX:g} pixels, or "
            "have x2 below x1 or y2 below y1; correct or remove the row"
        )
    keys = [image_key(name) for name in names]
    places = {image_id: i for i, image_id in enumerate(ground_truth.image_ids)}
    known = ground_truth.known_ids.union(places)
    unknown = [i for i, key in enumerate(keys) if key not in known]
    if unknown:
        raise InputError(
            f"{place(unknown[0])}: image '{keys[unknown[0]][:80]}' is not in the ground truth, nor are the images of "
            f"{len(unknown) - 1} other rows ({len({keys[i] for i in unknown})} images in all); remove them or give the "
            "ground truth they belong to"
        )
    index = np.array([places.get(key, -1) for key in keys], np.int64)
    selected = index >= 0
    values = values[selected]
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


def _rows_of(
    path: Path, fields: Callable[[str], tuple[str, str]], columns: int, layout: str, head: int = 0
) -> tuple[list[str], Float, Callable[[int], str]]:
    """A text file, whose lines after ``head`` are a name and ``columns`` numbers by ``fields``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({first_line(error)}); save it as UTF-8") from error
    lines = list(enumerate(text.split("\n"), start=1))[head:]
    found = [(number, *fields(line)) for number, line in lines if line.strip()]

    def place(row: int) -> str:
        return f"{path}:{found[row][0]}"

    return [name for _, name, _ in found], number_rows([own for *_, own in found], [columns], place, layout), place


def _read_txt(path: Path) -> _Table:
    def fields(line: str) -> tuple[str, str]:
        name, *numbers = line.split()
        return name, " ".join(numbers) or "-"

    return _Table(*_rows_of(path, fields, 5, "after the name score x1 y1 x2 y2"))


def _read_csv(path: Path) -> _Table:
    def fields(line: str) -> tuple[str, str]:
        cells = [*line.split(";"), *[""] * 11]
        return cells[2].strip(), " ".join(cells[7:11]).strip() or "-"

    names, xywh, place = _rows_of(path, fields, 4, "columns 8 to 11 with ';' between all columns", head=1)
    return _Table(names, np.column_stack([np.ones(len(xywh)), xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]), place)


def _read_mat(path: Path, scores: str = "confidence") -> _Table:
    """``ids``, ``BB`` and a score for each; those with ``del`` = 1 are left out. Without ``sc`` every score is 1."""
    content = load_mat(path, ("ids", "BB", *(() if scores == "sc" else (scores,))), "give the file that has it", None)
    with layout_of(path, "face-eval"):
        names = np.array([str(np.asarray(cell).ravel()[0]) for cell in np.asarray(content["ids"]).ravel()], np.str_)
        given = np.asarray(content.get(scores, ()), np.float64).ravel()
        own = given if len(given) or scores != "sc" else np.ones(len(names))
        values = np.column_stack([own, np.asarray(content["BB"], np.float64).reshape(4, -1).T])
        kept = np.asarray(content.get("del", np.zeros(len(names)))).ravel() != 1
        if not len(names) == len(values) == len(kept):
            raise ValueError(f"{len(names)} ids, {len(values)} boxes, {len(kept)} values in 'del'")
    rows = np.flatnonzero(kept)
    return _Table(names[rows].tolist(), values[rows], lambda row: f"{path}, detection {rows[row] + 1}")


def _read_shen(path: Path) -> _Table:
    names: list[str] = []
    rows = [np.empty((0, 5))]
    content = load_mat(path, ("DetectionResults",), "give the file that has it", None)
    with layout_of(path, "face-eval"):
        for cell in np.asarray(content["DetectionResults"]).ravel():
            image = np.asarray(cell).ravel()[0]
            rows.append(np.asarray(image["faces"], np.float64).reshape(-1, 5))
            names += [str(np.asarray(image["filename"]).ravel()[0])] * len(rows[-1])
    faces = np.concatenate(rows)
    values = np.column_stack([faces[:, 4], faces[:, :2], faces[:, :2] + faces[:, 2:4]])
    return _Table(names, values, lambda row: f"{path}, face {row + 1}")


_READERS: Mapping[str, Callable[[Path], _Table]] = {
    ".txt": _read_txt,
    ".mat": _read_mat,
    ".ramananmat": partial(_read_mat, scores="sc"),
    ".shenmat": _read_shen,
    ".csv": _read_csv,
}
