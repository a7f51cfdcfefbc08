"""WIDER FACE on disk: annotations and images → records.

WIDER FACE in its official layout: annotations and images → records.

::

    ROOT/WIDER_train/images/<event>/<name>.jpg      also WIDER_val, WIDER_test
    ROOT/wider_face_split/wider_face_{train,val}_bbx_gt.txt | .mat, wider_face_test_filelist.txt
    ROOT/wider_face_split.zip                       instead of the folder

Boxes are those of the files: ``x y w h`` → x1 = x, y1 = y, x2 = x + w, y2 = y + h, pixels of the stored image.
"""

import io
import os
import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import decoded_text, find_listed, nearest_name
from fanet_lightning.data.records import ATTRIBUTES, ImageRecord
from fanet_lightning.score.wider_face.ground_truth import GroundTruth

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


SCRIPT = "python scripts/download_wider_face.py"
WAYS_ON = "set data.root to where it is, or take data=synthetic"


def load_wider_face(
    root: Path, split: Split, images: Path | None = None, annotations: Path | None = None
) -> list[ImageRecord]:
    """The records of a split, or of a list of images within it, each image checked to be on disk.

    Args:
        root: the folder that holds ``WIDER_{split}``.
        split: where the annotations and images come from. A list within val can serve for training as well.
        images: text file of images, one a line (:func:`~fanet_lightning.cli.files.find_listed`). Its order is kept.
            A relative path that does not exist is looked for under ``root`` too.
        annotations: folder or zip of the official annotations; by default ``root/wider_face_split``, else
            ``root/wider_face_split.zip``.

    Raises:
        InputError: a missing folder or image, a malformed annotation line, or a listed name that the split does not
            have.
    """
    root = Path(root)
    if split not in SPLITS:
        raise InputError(f"split={split} is unknown; take one of {', '.join(SPLITS)}")
    folder = root / f"WIDER_{split}" / "images"
    source = Path(annotations) if annotations is not None else default_annotations(root)
    if not folder.is_dir():
        raise InputError(
            f"no WIDER FACE here: {folder} is no folder (expected {folder}/<event>/<name>.jpg)"
            f"{_other_case(folder, root)}; get WIDER FACE with {fetch_command(root, split)}, {WAYS_ON}"
        )
    if not source.exists():
        raise InputError(
            f"no WIDER FACE annotations here: {source} does not exist{_other_case(source, root)} (expected a folder "
            f"with wider_face_{split}_bbx_gt.txt, or the official wider_face_split.zip: data.annotations=PATH); "
            f"get them with {fetch_command(root, 'annotations')}, {WAYS_ON}"
        )
    table = read_annotations(source, split)
    chosen = list(range(len(table.image_ids)))
    if images is not None:
        list_path = listed_path(Path(images), root)
        position = {image_id: index for index, image_id in enumerate(table.image_ids)}
        chosen = []
        for line, written, image_id in find_listed(list_path, position, folder=folder, root=root):
            if image_id is None:
                near = nearest_name(written, position)
                raise InputError(
                    f"{list_path}, line {line}: {written} is not among the {len(position)} images of the {split} "
                    f"split ({table.source}); correct the name{f' ({near}?)' if near else ''}, or name the split "
                    "that has it"
                )
            chosen.append(position[image_id])
    whole = f"the {split} split" if images is None else "the list"
    image_ids = [table.image_ids[index] for index in chosen]
    elsewhere = _require_on_disk(image_ids, folder, whole, fetch_command(root, split))
    return records_of(table, folder, chosen, elsewhere)


def default_annotations(root: Path) -> Path:
    """The folder of the annotations under ``root``, or the official zip where there is no folder."""
    folder, archive = root / "wider_face_split", root / "wider_face_split.zip"
    return archive if archive.is_file() and not folder.is_dir() else folder


def listed_path(path: Path, root: Path) -> Path:
    """Where a list of images lies: as it is written, else under ``root``."""
    return root / path if not path.exists() and (root / path).exists() else path


def records_of(
    table: AnnotationTable, folder: Path, chosen: list[int] | None = None, paths: Mapping[str, Path] | None = None
) -> list[ImageRecord]:
    """The records of the chosen images (default: all), usable faces apart from the flagged and the empty ones.

    ``paths`` says by image id where the images are that are not at ``folder/<image id>.jpg``.
    """
    records = []
    for index in range(len(table.image_ids)) if chosen is None else chosen:
        rows = table.of_image(index)
        boxes_xyxy = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1).astype(np.float32)
        codes = rows[:, 4:].astype(np.int8)
        # After rounding to float32 a sliver of a box may have no side left, so the sides are taken there.
        usable = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1) & (codes[:, ATTRIBUTES.index("invalid")] == 0)
        image_id = table.image_ids[index]
        records.append(
            ImageRecord(
                image_id=image_id,
                path=(paths or {}).get(image_id, folder / f"{image_id}.jpg"),
                boxes_xyxy=boxes_xyxy[usable],
                attributes={name: codes[usable, column] for column, name in enumerate(ATTRIBUTES)},
                ignored_xyxy=boxes_xyxy[~usable],
            )
        )
    return records


def fetch_command(root: Path, part: str) -> str:
    """The line that fetches a part (``train``, ``annotations``, ``ground_truth``, …), in quotes, for messages."""
    return f"'{SCRIPT} --root {shlex.quote(str(root))} --parts {part}'"


def _other_case(path: Path, root: Path) -> str:
    """A remark where ``path`` is there in another letter case, else nothing."""
    place = root
    for name in path.relative_to(root).parts if path.is_relative_to(root) else ():
        if not (place / name).exists():
            for variant in _variants(_names(place), name):
                return f"; {place / variant} differs in letter case, rename it to {name}"
            return ""
        place = place / name
    return ""


def _variants(names: Sequence[str], name: str) -> list[str]:
    """Those of ``names`` that are ``name`` in any letter case, itself first."""
    return sorted((other for other in names if other.lower() == name.lower()), key=lambda other: (other != name, other))


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def _require_on_disk(image_ids: list[str], folder: Path, whole: str, command: str) -> dict[str, Path]:
    """The paths of those images whose event folder or file has another letter case than the annotations.

    One listing per event folder: fast on network drives, where a stat per image is not.
    """
    listings: dict[str, tuple[str, set[str], dict[str, list[str]]]] = {}
    events: list[str] | None = None
    elsewhere: dict[str, Path] = {}
    missing = []
    for image_id in image_ids:
        event, _, name = image_id.rpartition("/")
        if event not in listings:
            actual, names = event, _names(folder / event)
            if not names:
                events = _names(folder) if events is None else events
                actual = _only(folder, event, _variants(events, event)) or event
                names = _names(folder / actual)
            by_lower: dict[str, list[str]] = {}
            for other in names:
                by_lower.setdefault(other.lower(), []).append(other)
            listings[event] = (actual, set(names), by_lower)
        actual, present, by_lower = listings[event]
        file = f"{name}.jpg"
        if file not in present:
            file = _only(folder / actual, file, by_lower.get(file.lower(), [])) or ""
        if not file:
            missing.append(image_id)
        elif actual != event or file != f"{name}.jpg":
            elsewhere[image_id] = folder / actual / file
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(image_ids)} images of {whole} are missing, the first is "
            f"{folder / missing[0]}.jpg; complete the folder with {command}, or name those at hand with "
            "data.val.images=LIST or data.train.images=LIST"
        )
    return elsewhere


def _only(folder: Path, name: str, variants: list[str]) -> str | None:
    """The one name of ``variants``, None where there is none.

    Raises:
        InputError: several; nobody can know which of them is meant.
    """
    if len(variants) > 1:
        raise InputError(
            f"{folder}: {' and '.join(sorted(variants)[:2])} differ from {name} in letter case alone; keep one of them"
        )
    return variants[0] if variants else None


def all_usable_faces(records: list[ImageRecord]) -> GroundTruth:
    """Usable faces count; ignored ones stay in, so that a detection on one is no false positive."""
    boxes_xywh, counted = [], []
    for record in records:
        boxes = np.concatenate([record.boxes_xyxy, record.ignored_xyxy]).astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        boxes_xywh.append(boxes)
        counted.append(np.arange(len(boxes)) < len(record.boxes_xyxy))
    return GroundTruth(tuple(record.image_id for record in records), boxes_xywh, {"all": counted})
