"""FDDB's detection files, read and written, and the official files of its curves.

Detections are one file per fold, ``fold-01-out.txt`` … ``fold-10-out.txt``, or joined in one file. A block per image
has its name, the number of rows, and rows ``x y w h score`` for rectangles or ``major minor angle cx cy score`` for
ellipses; the number of columns tells which. The official program wants the images in the order of its list; here any
order will do, since blocks are found by name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder
from fanet_lightning.score.fddb.ground_truth import ELLIPSE, FOLDS, LARGEST, RECTANGLE, FddbGroundTruth, read_blocks
from fanet_lightning.score.fddb.roc import Roc
from fanet_lightning.score.inputs import DetectionsByImage, ImageNames, check_complete, packed_detections

Floats = npt.NDArray[np.float64]

# All that people call them: fold-01-out.txt, FDDB-det-fold-1.txt, fddb_fold_01.txt.
_FOLD = re.compile(r"fold[-_ ]?0*(\d{1,2})(?!\d)", re.IGNORECASE)
_NO_DETECTIONS = re.compile(r"ROC|ellipseList", re.IGNORECASE)
_WRITTEN = re.compile(r"fold-\d\d-out\.txt")
_LAYOUT = "detections are fold-01-out.txt … fold-10-out.txt, or in one file"


@dataclass(frozen=True, eq=False)
class FddbPredictions:
    """The detections of N images.

    ``image_ids``    in the order of the ground truth.
    ``rows``         N arrays (D_i, 4) ``x y w h`` or, all of them, (D_i, 5) ``major minor angle cx cy``; pixels,
                     radians.
    ``scores``       N arrays (D_i,), any scale, any order.
    ``are_ellipses`` which of the two.
    ``missing``      images without a block; they count as images without a detection.

    A row with a negative side, which published results have, overlaps nothing (:meth:`has_negative_side`).
    """

    image_ids: tuple[str, ...]
    rows: tuple[Floats, ...]
    scores: tuple[Floats, ...]
    are_ellipses: bool = False
    missing: tuple[str, ...] = ()

    @classmethod
    def from_detections(cls, detections: DetectionsByImage, image_ids: Iterable[str]) -> Self:
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))``; an image that is not there has no detection.

        Raises:
            ValueError: a detection that is not finite, has a negative side or reaches beyond 1e6 pixels, or is about
                an image outside ``image_ids``.
        """
        ids = tuple(image_ids)
        rows = _as_rows(detections, ids)
        own = [rows.get(image_id, np.zeros((0, 5))) for image_id in ids]
        missing = tuple(image_id for image_id in ids if image_id not in rows)
        return cls(ids, tuple(part[:, :4] for part in own), tuple(part[:, 4] for part in own), False, missing)

    def has_negative_side(self, image: int) -> npt.NDArray[np.bool_]:
        """(D_i,): width, height or a half-axis is below 0."""
        sides = self.rows[image][:, :2] if self.are_ellipses else self.rows[image][:, 2:]
        return (sides[:, 0] < 0) | (sides[:, 1] < 0)


def read_fddb_predictions(source: Path, ground_truth: FddbGroundTruth, *, strict: bool = False) -> FddbPredictions:
    """Read the detections of the ground truth's images from a folder of fold files or from one file.

    In a folder the files with ``fold-NUMBER`` in their name are read; without any, its only ``.txt``. Curves
    (``…ROC.txt``) and ellipse lists are left aside. Blocks of images outside a selection are skipped.

    Raises:
        InputError: the source is missing or empty, two files are of one fold, an image has two blocks or is not known,
            rectangles and ellipses are mixed, a line does not hold what it should, or, with ``strict``, an image has
            no block or a row has a negative side.
    """
    known, wanted = ImageNames(ground_truth.known_ids), set(ground_truth.image_ids)
    places: dict[str, str] = {}
    found: dict[str, Floats] = {}
    unknown = []
    columns, first = 0, ""
    for path in _files(source):
        blocks = read_blocks(path, negative_sides=not strict)
        if not blocks:
            raise InputError(f"{path} is empty; write a block for each image, its name and the count 0 where none")
        for block in blocks:
            place = f"{path}:{block.line}"
            meant = known.find(block.name)
            image_id = meant[0] if len(meant) == 1 else block.name
            if image_id in places:
                raise InputError(f"{place}: '{image_id}' has a block at {places[image_id]} already; keep one")
            places[image_id] = place
            if len(meant) != 1:
                unknown.append(image_id)
                continue
            own = block.rows.shape[1] if len(block.rows) else 0
            if columns and own not in (0, columns):
                raise InputError(f"{place}: rows of {own} numbers, but {first} has {columns}; take one kind for all")
            if own and not columns:
                columns, first = own, place
            if image_id in wanted:
                found[image_id] = block.rows
    if unknown:
        raise InputError(
            f"{places[unknown[0]]}: the ground truth does not have '{unknown[0]}'"
            + (f", nor {len(unknown) - 1} others" if len(unknown) > 1 else "")
            + "; remove them or give the ground truth they belong to"
        )
    missing = tuple(image_id for image_id in ground_truth.image_ids if image_id not in found)
    if strict:
        check_complete(source, missing, len(wanted))
    columns = columns or len(RECTANGLE)
    rows = [found.get(image_id, np.zeros(0)).reshape(-1, columns) for image_id in ground_truth.image_ids]
    return FddbPredictions(
        ground_truth.image_ids,
        tuple(own[:, :-1] for own in rows),
        tuple(own[:, -1] for own in rows),
        columns == len(ELLIPSE),
        missing,
    )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"predictions: there is no {source}; {_LAYOUT}")
    texts = [
        entry
        for entry in sorted(source.iterdir())
        if entry.suffix.lower() == ".txt" and not entry.name.startswith(".") and not _NO_DETECTIONS.search(entry.name)
    ]
    folds: dict[int, Path] = {}
    for path in texts:
        named = _FOLD.search(path.name)
        if not named:
            continue
        fold = int(named[1])
        if not 1 <= fold <= FOLDS:
            raise InputError(f"{path}: FDDB has the folds 1 … {FOLDS}; remove or rename the file")
        if fold in folds:
            raise InputError(f"{source}: two files of fold {fold}, {folds[fold].name} and {path.name}; remove one")
        folds[fold] = path
    if folds:
        return [folds[fold] for fold in sorted(folds)]
    if len(texts) != 1:
        raise InputError(f"{source}: {len(texts)} files could be the predictions; {_LAYOUT}")
    return texts


def write_fddb_detections(folder: Path, ground_truth: FddbGroundTruth, detections: DetectionsByImage) -> None:
    """Write one file per fold, its images in the official order, best score first.

    Coordinates get four decimals, a score six. An image that ``detections`` lacks gets no block and is missing when the
    files are read. The official program wants all images. The folder takes its place by rename.

    Raises:
        InputError: ``folder`` holds something else than such files, or cannot be written.
        ValueError: a detection that is not finite, has a negative side, reaches beyond 1e6 pixels, or is of an image
            outside ``ground_truth``.
    """
    rows = _as_rows(detections, ground_truth.image_ids)
    check_replaceable(folder, "predictions", lambda entry: _WRITTEN.fullmatch(entry.name) is not None)
    ordered = ground_truth.in_official_order()
    with replaced_folder(folder) as temporary:
        for fold in np.unique(ordered.folds).tolist():
            ids = [ordered.image_ids[i] for i in np.flatnonzero(ordered.folds == fold)]
            blocks = "".join(_block(image_id, rows[image_id]) for image_id in ids if image_id in rows)
            if blocks:
                (temporary / f"fold-{fold:02d}-out.txt").write_text(blocks, encoding="utf-8")


def _block(image_id: str, rows: Floats) -> str:
    ordered = rows[np.argsort(-rows[:, -1], kind="stable")]
    return f"{image_id}\n{len(rows)}\n" + "%.4f %.4f %.4f %.4f %.6f\n" * len(rows) % tuple(ordered.ravel().tolist())


def _as_rows(detections: DetectionsByImage, image_ids: tuple[str, ...]) -> dict[str, Floats]:
    """Image id → (D, 5) ``x y w h score``."""
    starts, boxes_xyxy, scores = packed_detections(detections, image_ids)
    if (np.abs(boxes_xyxy) > LARGEST).any():
        raise ValueError(f"a detection reaches beyond {LARGEST:g} pixels")
    rows = np.column_stack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], scores])
    own = zip(image_ids, np.split(rows, starts[1:-1]), strict=True) if image_ids else ()
    return {image_id: part for image_id, part in own if image_id in detections}


def write_roc(roc: Roc, folder: Path, prefix: str = "") -> list[Path]:
    """Write ``<prefix>DiscROC.txt``, lines ``rate false_positives threshold``, and ``<prefix>ContROC.txt`` without the
    threshold: lowest threshold first, six significant digits, as the official program."""
    columns = {
        "DiscROC.txt": np.column_stack([roc.rate_discrete, roc.false_positives, roc.thresholds]),
        "ContROC.txt": np.column_stack([roc.rate_continuous, roc.false_positives]),
    }
    paths = []
    for name, values in columns.items():
        paths.append(folder / f"{prefix}{name}")
        line = " ".join(["%g"] * values.shape[1]) + "\n"
        with replaced(paths[-1]) as temporary:
            temporary.write_text(line * len(values) % tuple(values.ravel().tolist()), encoding="utf-8")
    return paths
