"""WIDER FACE on disk: annotations and images → records.

::

    ROOT/WIDER_train/images/<event>/<name>.jpg      also WIDER_val, WIDER_test
    ROOT/wider_face_split/wider_face_{train,val}_bbx_gt.txt | .mat, wider_face_test_filelist.txt
    ROOT/wider_face_split.zip                       instead of the folder

The text has, per image, a name, a count, and so many rows ``x y w h blur expression illumination invalid occlusion
pose``. Boxes are those of the files: x1 = x, y1 = y, x2 = x + w, y2 = y + h, pixels of the stored image.
"""

import io
import shlex
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import find_listed, has_image_extension, nearest_name
from fanet_lightning.data.folder.files import ImageFiles
from fanet_lightning.data.records import (
    ATTRIBUTES,
    ImageRecord,
    LabelProblem,
    clean_record,
    label_numbers,
    label_text,
    refuse_missing,
    shown,
)
from fanet_lightning.score.wider_face.ground_truth import GroundTruth

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# x y w h and the six attributes of records.ATTRIBUTES.
COLUMNS = 10
INVALID = 4 + ATTRIBUTES.index("invalid")


class Faces(NamedTuple):
    """Of one image: boxes (F, 4), flags (F,) of the invalid ones, their lines, their (F, 6) :data:`ATTRIBUTES`."""

    boxes_xyxy: npt.NDArray[np.float64]
    invalid: npt.NDArray[np.bool_]
    lines: tuple[int, ...]
    attributes: npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """The annotations of a list in the file's order, every box as it is written there.

    ``image_ids``   N names; official relative paths without extension, or as another list has them.
    ``starts``      (N + 1,) int64: the rows of image i are ``starts[i]`` … ``starts[i + 1] - 1``.
    ``rows``        (R, 10) float64: x, y, w, h in pixels, then the six of :data:`ATTRIBUTES`.
    ``source``      the file, for messages.
    ``name_lines``  (N,), ``row_lines`` (R,): 1-based lines in it; empty where it has none.
    """

    image_ids: list[str]
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float64]
    source: str
    name_lines: tuple[int, ...] = ()
    row_lines: tuple[int, ...] = ()

    def of_image(self, index: int) -> npt.NDArray[np.float64]:
        """(F, 10), the rows of one image."""
        return self.rows[self.starts[index] : self.starts[index + 1]]

    def faces(self, index: int) -> Faces:
        """The faces of one image.

        A single row of zeros is the official way to say that there is no face.
        """
        rows, lines = self.of_image(index), self.row_lines[self.starts[index] : self.starts[index + 1]]
        if len(rows) == 1 and not rows.any():
            rows, lines = rows[:0], ()
        boxes_xyxy = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        return Faces(boxes_xyxy, rows[:, INVALID] != 0, lines, rows[:, 4:].astype(np.int8))


def read_annotations(
    source: Path,
    split: Split,
    *,
    form: Literal["txt", "mat"] | None = None,
    problems: list[LabelProblem] | None = None,
) -> AnnotationTable:
    """Read the annotations of one split.

    Args:
        source: folder with the official files (or with their folder ``wider_face_split``), or the official zip.
        split: ``test`` has names only.
        form: read the text list or the ``.mat`` file; both hold the same. By default the text, else the ``.mat``.
        problems: takes what is malformed in the text, and reading continues at the next name; None: that is an error.

    An image without a face has a single row of zeros in the official files (in the text of the training split under the
    count 0, elsewhere under the count 1; a count of 0 with no row is read as well). That row is kept here: text and
    ``.mat`` agree, and the official totals hold.

    Raises:
        InputError: nothing found, or a malformed file; names the file, the line and its text.
    """
    if split not in SPLITS:
        raise InputError(f"split={split} is unknown; take one of {', '.join(SPLITS)}")
    text_name = "wider_face_test_filelist.txt" if split == "test" else f"wider_face_{split}_bbx_gt.txt"
    names = {"txt": text_name, "mat": f"wider_face_{split}.mat"}
    for name in names.values() if form is None else [names[form]]:
        found = _find_annotations(source, name)
        if found is not None:
            if name.endswith(".mat"):
                return parse_mat(*found)
            return parse_names(*found) if split == "test" else parse_text(*found, problems)
    raise InputError(
        f"no {' or '.join(names.values())} in {source}; give the folder wider_face_split or the official "
        "wider_face_split.zip: data.annotations=PATH"
    )


def _find_annotations(source: Path, name: str) -> tuple[bytes, str] | None:
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


def parse_text(content: bytes, source: str, problems: list[LabelProblem] | None = None) -> AnnotationTable:
    """``wider_face_{train,val}_bbx_gt.txt``; ``problems`` as for :func:`read_annotations`."""
    table, found = parse_list(label_text(content, source), source, (COLUMNS,))
    if problems is not None:
        problems += found
    else:
        for index, name in enumerate(table.image_ids):
            if "/" not in name.strip("/"):
                reason = "stands where an image name event/name.jpg is expected"
                found.append(LabelProblem(Path(source), table.name_lines[index], name, reason))
        if found:
            first = min(found, key=lambda problem: problem.line or 0)
            raise InputError(f"{source}, line {first.line}: {first.value!r} {first.reason}; fix it or fetch it again")
    return _named(replace(table, image_ids=[name.removesuffix(".jpg") for name in table.image_ids]), problems is None)


def parse_list(
    text: str, source: str, widths: tuple[int, ...] = (4, COLUMNS)
) -> tuple[AnnotationTable, list[LabelProblem]]:
    """Read a list tolerantly: what is not understood becomes a problem, and reading continues at the next name.

    Args:
        text: the file's content.
        source: the file, for the problems.
        widths: how many numbers a row may have; attributes that are not there are 0.
    """
    lines = [line.strip() for line in text.splitlines()]
    numbers = [label_numbers(line) for line in lines]
    names = [index for index in range(len(lines)) if numbers[index] is None and _is_name(lines, index)]
    problems: list[LabelProblem] = []

    def problem(index: int, reason: str) -> None:
        problems.append(LabelProblem(Path(source), index + 1, shown(lines[index]), reason))

    stray = next((index for index in range(names[0] if names else len(lines)) if lines[index]), None)
    if stray is not None:
        problem(stray, "stands where an image's name is expected")
    rows: list[list[float]] = []
    row_lines: list[int] = []
    starts = [0]
    for begin, end in zip(names, [*names[1:], len(lines)][: len(names)], strict=True):
        body, name = [index for index in range(begin + 1, end) if lines[index]], lines[begin]
        count = None
        if not body:
            problem(begin, "has no number of faces after it")
        elif not _is_count(lines[body[0]]):
            problem(body[0], f"stands where the number of faces of {name} is expected")
        else:
            count = int(lines[body.pop(0)])
        sound = []
        for index in body:
            row = numbers[index]
            if row is None or len(row) not in widths:
                problem(index, f"is no row of {' or '.join(map(str, widths))} numbers 'x y w h …'")
            elif not all(abs(value) <= 127 and value == round(value) for value in row[4:]):
                problem(index, "has attributes that are no small whole numbers")
            else:
                sound.append(index)
        empty = len(body) == len(sound) == 1 and not any(numbers[body[0]] or ())
        if count not in (None, len(body)) and not (count == 0 and empty):
            following = next(index for index in range(begin + 1, end) if lines[index])
            problem(following, f"faces are said of {name}, and {len(body)} rows follow; correct the number")
        rows += [[*(numbers[index] or ()), *[0.0] * COLUMNS][:COLUMNS] for index in sound]
        row_lines += [index + 1 for index in sound]
        starts.append(len(rows))
    table = AnnotationTable(
        [lines[index] for index in names], np.array(starts, np.int64), np.array(rows, np.float64).reshape(-1, COLUMNS),
        source, tuple(index + 1 for index in names), tuple(row_lines),
    )  # fmt: skip
    return table, problems


def is_list(text: str) -> bool:
    """Whether a text begins with a name and a count."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][:2]
    return len(lines) == 2 and label_numbers(lines[0]) is None and _is_name(lines, 0) and _is_count(lines[1])


def _is_name(lines: list[str], index: int) -> bool:
    """Of what is no number, a name ends like an image; anything else is one if a count follows."""
    return has_image_extension(lines[index]) or (index + 1 < len(lines) and _is_count(lines[index + 1]))


def _is_count(line: str) -> bool:
    return line.isascii() and line.isdigit()


def parse_names(content: bytes, source: str) -> AnnotationTable:
    """``wider_face_test_filelist.txt``: names alone."""
    lines = [line.strip() for line in label_text(content, source).splitlines() if line.strip()]
    for name in lines:
        if "/" not in name:
            raise InputError(
                f"{source}: {name!r} stands where an image name event/name.jpg is expected; fetch it again"
            )
    return _named(_names_only([name.removesuffix(".jpg") for name in lines], source))


def _names_only(image_ids: list[str], source: str) -> AnnotationTable:
    return AnnotationTable(image_ids, np.zeros(len(image_ids) + 1, dtype=np.int64), np.zeros((0, COLUMNS)), source)


def parse_mat(content: bytes, source: str) -> AnnotationTable:
    """``wider_face_{train,val,test}.mat``: nested cells, event by event; the test file has no boxes."""
    from scipy.io import loadmat

    try:
        contents: dict[str, Any] = loadmat(io.BytesIO(content))
        events, files = contents["event_list"], contents["file_list"]
        places = [(event, image) for event in range(len(events)) for image in range(len(files[event, 0]))]
        image_ids = [f"{events[e, 0][0]}/{files[e, 0][i, 0][0]}".removesuffix(".jpg") for e, i in places]
        if "face_bbx_list" not in contents:
            return _named(_names_only(image_ids, source))
        columns = [contents["face_bbx_list"], *(contents[f"{label}_label_list"] for label in ATTRIBUTES)]
        per_image = [np.concatenate([own[e, 0][i, 0].astype(np.float64) for own in columns], 1) for e, i in places]
        rows = np.concatenate([np.zeros((0, COLUMNS)), *per_image])
    except InputError:
        raise
    except Exception as error:  # scipy raises almost anything on a damaged file
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{source} is not an official annotation file ({reason}); fetch it again") from error
    # The text has a zero where these files have a negative side (three boxes of train and val).
    rows[:, 2:4] = np.maximum(rows[:, 2:4], 0)
    return _named(AnnotationTable(image_ids, np.cumsum([0, *map(len, per_image)], dtype=np.int64), rows, source))


def _named(table: AnnotationTable, strict: bool = True) -> AnnotationTable:
    """The table, found to have images, each of them once, and finite boxes."""
    if strict and not table.image_ids:
        raise InputError(f"{table.source} names no image; fetch it again")
    if strict and len(set(table.image_ids)) != len(table.image_ids):
        twice = next(name for name, count in Counter(table.image_ids).items() if count > 1)
        raise InputError(f"{table.source} has the image {twice} twice; keep one of its records")
    if strict and not np.isfinite(table.rows).all():
        row = int(np.flatnonzero(~np.isfinite(table.rows).all(axis=1))[0])
        where = f", line {table.row_lines[row]}" if table.row_lines else ""
        raise InputError(f"{table.source}{where}: {table.rows[row, :4]} are not finite; fetch it again")
    return table


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
    folder = root / f"WIDER_{split}" / "images"
    source = Path(annotations) if annotations is not None else default_annotations(root)
    if not folder.is_dir():
        raise InputError(
            f"no WIDER FACE here: {folder} is not a directory (expected {folder}/<event>/<name>.jpg); get WIDER FACE "
            f"with {fetch_command(root, split)}, {WAYS_ON}"
        )
    if not source.exists():
        raise InputError(
            f"no WIDER FACE annotations here: {source} does not exist (expected a folder "
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
    files = ImageFiles(folder)
    paths, missing = {}, []
    for index in chosen:
        image_id = table.image_ids[index]
        found = files.find(f"{image_id}.jpg")
        if found.reason:
            raise InputError(f"{folder}: {image_id}.jpg {found.reason}")
        if found.name is None:
            missing.append(folder / f"{image_id}.jpg")
        else:
            paths[image_id] = folder / found.name
    refuse_missing(
        missing,
        len(chosen),
        f"the {split} split" if images is None else "the list",
        f"complete the folder with {fetch_command(root, split)}, or name those at hand with data.val.images=LIST or "
        "data.train.images=LIST",
    )
    return records_of(table, folder, chosen, paths)


def default_annotations(root: Path) -> Path:
    """The folder of the annotations under ``root``, or the official zip where there is no folder."""
    folder, archive = root / "wider_face_split", root / "wider_face_split.zip"
    return archive if archive.is_file() and not folder.is_dir() else folder


def listed_path(path: Path, root: Path) -> Path:
    """Where a list of images is: as it is written, else under ``root``."""
    return root / path if not path.exists() and (root / path).exists() else path


def records_of(
    table: AnnotationTable, folder: Path, chosen: list[int] | None = None, paths: Mapping[str, Path] | None = None
) -> list[ImageRecord]:
    """The records of the chosen images (default: all), usable faces apart from the flagged and the empty ones.

    ``paths`` says by image id where the images are that are not at ``folder/<image id>.jpg``.
    """
    records = []
    for index in range(len(table.image_ids)) if chosen is None else chosen:
        rows, image_id = table.of_image(index), table.image_ids[index]
        boxes_xyxy = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        codes = rows[:, 4:].astype(np.int8)
        attributes = {name: codes[:, column] for column, name in enumerate(ATTRIBUTES)}
        path = (paths or {}).get(image_id, folder / f"{image_id}.jpg")
        records.append(clean_record(image_id, path, boxes_xyxy, rows[:, INVALID] != 0, attributes))
    return records


def fetch_command(root: Path, part: str) -> str:
    """The line that fetches a part (``train``, ``annotations``, ``ground_truth``, …), in quotes, for messages."""
    return f"'fanet download wider_face --root {shlex.quote(str(root))} --parts {part}'"


def all_usable_faces(records: list[ImageRecord]) -> GroundTruth:
    """Usable faces count; ignored ones stay in, so that a detection on one is no false positive."""
    boxes_xywh, counted = [], []
    for record in records:
        boxes = np.concatenate([record.boxes_xyxy, record.ignored_xyxy]).astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        boxes_xywh.append(boxes)
        counted.append(np.arange(len(boxes)) < len(record.boxes_xyxy))
    return GroundTruth(tuple(record.image_id for record in records), boxes_xywh, {"all": counted})
