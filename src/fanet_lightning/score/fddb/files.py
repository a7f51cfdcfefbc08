"""FDDB's detection files, read and written, and the official files of its curves.

Detections lie as one file per fold, ``fold-01-out.txt`` … ``fold-10-out.txt``, or joined in one file. A block per image
has its name, the number of rows, and rows ``x y w h score`` for rectangles or ``major minor angle cx cy score`` for
ellipses; the number of columns tells which. The official program wants the images in the order of its list; here any
order will do, since blocks are found by name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder
from fanet_lightning.score.fddb.ground_truth import ELLIPSE, FOLDS, LARGEST, RECTANGLE, FddbGroundTruth, read_blocks
from fanet_lightning.score.fddb.roc import Roc
from fanet_lightning.score.inputs import ImageNames

Floats = npt.NDArray[np.float64]

# All that people call them: fold-01-out.txt, FDDB-det-fold-1.txt, fddb_fold_01.txt.
_FOLD = re.compile(r"fold[-_ ]?0*(\d{1,2})(?!\d)", re.IGNORECASE)
_NO_DETECTIONS = re.compile(r"ROC|ellipseList", re.IGNORECASE)
_WRITTEN = re.compile(r"fold-\d\d-out\.txt")
_LAYOUT = "detections lie as fold-01-out.txt … fold-10-out.txt, or in one file"


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
    def from_detections(
        cls, detections: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], image_ids: Iterable[str]
    ) -> Self:
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

    def missing_line(self) -> str | None:
        """One line about the images without a block, or None."""
        if not self.missing:
            return None
        some = ", ".join(self.missing[:3]) + (", …" if len(self.missing) > 3 else "")
        return f"{len(self.missing)} of {len(self.image_ids)} images have no predictions and count as empty: {some}"


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
            own = block.rows.shape[1]
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
    if missing and strict:
        raise InputError(
            f"{source}: {len(missing)} of {len(wanted)} images have no block, the first is '{missing[0]}'; "
            "add them, or leave strict=true out and they count as empty"
        )
    columns = columns or len(RECTANGLE)
    nothing = np.zeros((0, columns))
    rows = [found.get(image_id, nothing).reshape(-1, columns) for image_id in ground_truth.image_ids]
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


def write_fddb_predictions(
    folder: Path, ground_truth: FddbGroundTruth, rows: Mapping[str, npt.ArrayLike], *, strict: bool = False
) -> None:
    """Write one file per fold, its images in the official order, best score first.

    Coordinates get four decimals, an angle and a score six. An image that ``rows`` lacks gets no block and is missing
    when the files are read; one without detections belongs in ``rows`` with none. The official program wants all
    images: ``strict`` insists on them. The folder takes its place by rename.

    Args:
        rows: image id → (D, 5) ``x y w h score`` or (D, 6) ``major minor angle cx cy score``.

    Raises:
        InputError: ``folder`` holds something else than such files, or cannot be written.
        ValueError: rows of an image outside ``ground_truth``, of another shape, or that cannot be read back: not
            finite, a negative side, beyond 1e6 pixels; with ``strict``, an image without rows.
    """
    checked = {image_id: _checked(image_id, own) for image_id, own in rows.items()}
    outside = [image_id for image_id in checked if image_id not in set(ground_truth.image_ids)]
    if outside:
        raise ValueError(f"detections of {len(outside)} images outside the run, the first is '{outside[0]}'")
    if strict and len(checked) < len(ground_truth.image_ids):
        raise ValueError(f"rows of {len(checked)} of {len(ground_truth.image_ids)} images")
    check_replaceable(folder, "predictions", lambda entry: _WRITTEN.fullmatch(entry.name) is not None)
    ordered = ground_truth.in_official_order()
    with replaced_folder(folder) as temporary:
        for fold in np.unique(ordered.folds).tolist():
            ids = [ordered.image_ids[i] for i in np.flatnonzero(ordered.folds == fold)]
            blocks = "".join(_block(image_id, checked[image_id]) for image_id in ids if image_id in checked)
            if blocks:
                (temporary / f"fold-{fold:02d}-out.txt").write_text(blocks, encoding="utf-8")


def write_fddb_detections(
    folder: Path, ground_truth: FddbGroundTruth, detections: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
) -> None:
    """As :func:`write_fddb_predictions`, from ``image_id → (boxes_xyxy (D, 4), scores (D,))``."""
    write_fddb_predictions(folder, ground_truth, _as_rows(detections, ground_truth.image_ids))


def _block(image_id: str, rows: Floats) -> str:
    ordered = rows[np.argsort(-rows[:, -1], kind="stable")]
    pattern = "%.4f %.4f %.4f %.4f %.6f\n" if rows.shape[1] == len(RECTANGLE) else "%.4f %.4f %.6f %.4f %.4f %.6f\n"
    return f"{image_id}\n{len(rows)}\n" + pattern * len(rows) % tuple(ordered.ravel().tolist())


def _as_rows(
    detections: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], image_ids: tuple[str, ...]
) -> dict[str, Floats]:
    inside = set(image_ids)
    rows = {}
    for image_id, (boxes_xyxy, scores) in detections.items():
        if image_id not in inside:
            raise ValueError(f"detections of '{image_id}', which is outside the run")
        boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
        confidence = np.asarray(scores, np.float64).reshape(-1)
        if len(boxes) != len(confidence):
            raise ValueError(f"{image_id}: {len(boxes)} boxes but {len(confidence)} scores")
        with np.errstate(invalid="ignore"):
            own = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], confidence])
        rows[image_id] = _checked(image_id, own)
    return rows


def _checked(image_id: str, rows: npt.ArrayLike) -> Floats:
    own = np.asarray(rows, np.float64)
    if own.ndim != 2 or own.shape[1] not in (len(RECTANGLE), len(ELLIPSE)):
        raise ValueError(f"{image_id}: rows of shape {own.shape}, need (D, 5) or (D, 6)")
    sides = own[:, 2:4] if own.shape[1] == len(RECTANGLE) else own[:, :2]
    if not np.isfinite(own).all() or (sides < 0).any() or (np.abs(own[:, :-1]) > LARGEST).any():
        raise ValueError(f"{image_id}: a detection that is not finite, has a negative side, or is beyond 1e6 pixels")
    return own


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
