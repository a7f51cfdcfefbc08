"""Detections on PASCAL face and AFW in face-eval's formats, read, and written as ``.txt``.

========  ==================================================================================
``.txt``  ``name score x1 y1 x2 y2`` a line, the name with or without ``.jpg``
``.mat``  ``ids``, ``BB`` (4, D) x1 y1 x2 y2, ``confidence``; rows with ``del`` = 1 are left out
========  ==================================================================================
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import check_replaceable, replaced_folder
from fanet_lightning.score.inputs import DetectionsByImage, layout_of, load_mat, number_rows
from fanet_lightning.score.pascal_face.ground_truth import (
    Float,
    PascalFaceDetections,
    PascalFaceGroundTruth,
    image_key,
)

DETECTIONS_FILE = "detections.txt"
SUFFIXES = (".txt", ".mat")

# Names as in the file, (D, 5) score and corners, what messages call a row.
_Table = tuple[list[str], Float, Callable[[int], str]]


def read_detections(source: Path, ground_truth: PascalFaceGroundTruth) -> PascalFaceDetections:
    """Read a file of detections, or a folder that holds one.

    A file without rows is a run without detections. Rows of images that the ground truth knows but has not selected
    are skipped. Face-eval counts detections of unknown images as false positives; they are an error here, since all
    they have told so far is that the wrong files were given.

    Raises:
        InputError: a missing file, a folder without one or with more, a format that is not known, an unknown image, a
            number that is missing or not finite, a negative side.
    """
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if len(files) != 1:
        raise InputError(
            f"predictions: {source} is not one file of detections; give a {' or '.join(SUFFIXES)}, or its folder"
        )
    names, values, place = (_read_mat if files[0].suffix.lower() == ".mat" else _read_txt)(files[0])
    wrong = ~np.isfinite(values).all(axis=1) | (values[:, 3:] < values[:, 1:3]).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{place(row)}: score and corners {values[row].tolist()} are not finite, or have x2 below x1 or y2 below "
            "y1; correct or remove the row"
        )
    places = {image_id: i for i, image_id in enumerate(ground_truth.image_ids)}
    known = ground_truth.known_ids.union(places)
    keys = [image_key(name) for name in names]
    unknown = [i for i, key in enumerate(keys) if key not in known]
    if unknown:
        raise InputError(
            f"{place(unknown[0])}: image '{keys[unknown[0]][:80]}' is not in the ground truth, nor are the images of "
            f"{len(unknown) - 1} other rows; remove them or give the ground truth they belong to"
        )
    index = np.array([places.get(key, -1) for key in keys], np.int64)
    values = values[index >= 0]
    return PascalFaceDetections(ground_truth.image_ids, index[index >= 0], values[:, 1:], values[:, 0])


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


def _read_txt(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({first_line(error)}); save it as UTF-8") from error
    lines = [(number, line.split()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]

    def place(row: int) -> str:
        return f"{path}:{lines[row][0]}"

    numbers = [" ".join(words[1:]) or "-" for _, words in lines]
    values = number_rows(numbers, [5], place, "after the name score x1 y1 x2 y2")
    return [words[0] for _, words in lines], values, place


def _read_mat(path: Path) -> _Table:
    content = load_mat(path, ("ids", "BB", "confidence"), "give the file that has it")
    with layout_of(path, "face-eval"):
        names = np.array([str(np.asarray(cell).ravel()[0]) for cell in np.asarray(content["ids"]).ravel()], np.str_)
        boxes = np.asarray(content["BB"], np.float64).reshape(4, -1).T
        values = np.column_stack([np.asarray(content["confidence"], np.float64).ravel(), boxes])
        kept = np.asarray(content.get("del", np.zeros(len(names)))).ravel() != 1
        if not len(names) == len(values) == len(kept):
            raise ValueError(f"{len(names)} ids, {len(values)} boxes, {len(kept)} values in 'del'")
    rows = np.flatnonzero(kept)
    return names[rows].tolist(), values[rows], lambda row: f"{path}, detection {rows[row] + 1}"
