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
from fanet_lightning.score.fddb.ground_truth import ELLIPSE, RECTANGLE, FddbGroundTruth, read_blocks
from fanet_lightning.score.fddb.roc import Roc
from fanet_lightning.score.inputs import DetectionsByImage, ImageNames, as_xywh, check_complete, packed_detections

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
            ValueError: a detection that is not finite, has a negative side, or is about an image outside
                ``image_ids``.
        """
        ids = tuple(image_ids)
        starts, boxes_xyxy, scores = packed_detections(detections, ids)
        rows, values = (np.split(part, starts[1:-1])[: len(ids)] for part in (as_xywh(boxes_xyxy), scores))
        missing = tuple(image_id for image_id in ids if image_id not in detections)
        return cls(ids, tuple(rows), tuple(values), False, missing)

    def has_negative_side(self, image: int) -> npt.NDArray[np.bool_]:
        """(D_i,): width, height or a half-axis is below 0."""
        sides = self.rows[image][:, :2] if self.are_ellipses else self.rows[image][:, 2:]
        return (sides[:, 0] < 0) | (sides[:, 1] < 0)


def read_fddb_predictions(source: Path, ground_truth: FddbGroundTruth, *, strict: bool = False) -> FddbPredictions:
    """Read the detections of the ground truth's images from a folder of fold files or from one file.

    In a folder the files with ``fold-NUMBER`` in their name are read; without any, its only ``.txt``. Curves
    (``…ROC.txt``) and ellipse lists are left aside. Blocks of images outside a selection are skipped.

    Raises:
        InputError: the source is missing or empty, an image has two blocks or is not known, rectangles and ellipses
            are mixed, a line does not hold what it should, or, with ``strict``, an image has no block.
    """
    known = ImageNames(ground_truth.known_ids)
    found: dict[str, Floats] = {}
    columns = 0
    for path in _files(source):
        for block in read_blocks(path):
            place = f"{path}:{block.line}"
            meant = known.find(block.name)
            if len(meant) != 1:
                raise InputError(f"{place}: the ground truth does not have '{block.name}'; remove it")
            if meant[0] in found:
                raise InputError(f"{place}: '{meant[0]}' has a block already; keep one")
            found[meant[0]] = block.rows
            if len(block.rows):
                if columns not in (0, block.rows.shape[1]):
                    raise InputError(f"{place}: some rows have {columns} numbers, these not; take one kind for all")
                columns = block.rows.shape[1]
    missing = tuple(image_id for image_id in ground_truth.image_ids if image_id not in found)
    if strict:
        check_complete(source, missing, len(ground_truth.image_ids))
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
    if not source.is_dir():
        return [source]
    texts = [
        entry
        for entry in sorted(source.iterdir())
        if entry.suffix.lower() == ".txt" and not entry.name.startswith(".") and not _NO_DETECTIONS.search(entry.name)
    ]
    folds = [path for path in texts if _FOLD.search(path.name)]
    if not folds and len(texts) != 1:
        raise InputError(f"{source}: {len(texts)} files could be the predictions; {_LAYOUT}")
    return folds or texts


def write_fddb_detections(folder: Path, ground_truth: FddbGroundTruth, detections: DetectionsByImage) -> None:
    """Write one file per fold, its images in the official order, best score first.

    Coordinates get four decimals, a score six. An image that ``detections`` lacks gets no block and is missing when the
    files are read. The official program wants all images. The folder takes its place by rename.

    Raises:
        InputError: ``folder`` holds something else than such files, or cannot be written.
        ValueError: a detection that is not finite, has a negative side, or is of an image outside ``ground_truth``.
    """
    ordered = ground_truth.in_official_order()
    packed = FddbPredictions.from_detections(detections, ordered.image_ids)
    check_replaceable(folder, "predictions", lambda entry: _WRITTEN.fullmatch(entry.name) is not None)
    texts: dict[int, str] = {}
    for image, (image_id, fold) in enumerate(zip(ordered.image_ids, ordered.folds.tolist(), strict=True)):
        if image_id in detections:
            rows = np.column_stack([packed.rows[image], packed.scores[image]])
            rows = rows[np.argsort(-rows[:, -1], kind="stable")]
            body = "%.4f %.4f %.4f %.4f %.6f\n" * len(rows) % tuple(rows.ravel().tolist())
            texts[fold] = f"{texts.get(fold, '')}{image_id}\n{len(rows)}\n{body}"
    with replaced_folder(folder) as temporary:
        for fold, text in texts.items():
            (temporary / f"fold-{fold:02d}-out.txt").write_text(text, encoding="utf-8")


def write_roc(roc: Roc, folder: Path) -> list[Path]:
    """Write ``DiscROC.txt``, lines ``rate false_positives threshold``, and ``ContROC.txt`` without the threshold:
    lowest threshold first, six significant digits, as the official program."""
    columns = {
        "DiscROC.txt": np.column_stack([roc.rate_discrete, roc.false_positives, roc.thresholds]),
        "ContROC.txt": np.column_stack([roc.rate_continuous, roc.false_positives]),
    }
    paths = []
    for name, values in columns.items():
        paths.append(folder / name)
        line = " ".join(["%g"] * values.shape[1]) + "\n"
        with replaced(paths[-1]) as temporary:
            temporary.write_text(line * len(values) % tuple(values.ravel().tolist()), encoding="utf-8")
    return paths
