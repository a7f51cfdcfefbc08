"""WIDER FACE's predictions: one text file per image, read, written, packed for the test server.

A file has the image's name (with or without its event and extension), the number of rows, and rows ``x y w h score``.
The test server wants one for each image of the test split, named as the image and in a folder named as its event
(``0--Parade/0_Parade_marchingband_1_5.txt``), in an archive that has the event folders at its top.
"""

import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder, walk_files
from fanet_lightning.score.inputs import (
    as_xywh,
    check_complete,
    is_same_image,
    name_parts,
    number_rows,
    packed_detections,
)

_LAYOUT = "predictions are event/name.txt: a name line, a count line, rows x y w h score"


class PredictionFile(NamedTuple):
    """``where`` is what an error calls the file; ``text`` is its content, undecoded."""

    where: str
    image_id: str
    text: bytes


def parse_files(files: Sequence[PredictionFile]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Files → values (R, 5) ``x y w h score`` in file order, and the number of rows of each file.

    Raises:
        InputError: a fault, with file, line and value.
    """
    rows: list[str] = []
    counts = []
    for file in files:
        name, count, *rest = _lines(file)
        own = [line for line in rest if line and not line.isspace()]
        # Detectors write the name, the file name, or event/name.jpg (S3FD).
        wanted = file.image_id.rpartition("/")[2]
        if name.strip() != wanted and not is_same_image(name, file.image_id):
            raise InputError(f"{file.where}:1: the name line says '{name.strip()[:80]}'; write '{wanted}' or rename it")
        count = count.strip()
        if not (count.isdecimal() and len(count) < 10 and int(count) == len(own)):
            raise InputError(f"{file.where}:2: '{count[:80]}' rows are announced but {len(own)} follow; correct it")
        rows += own
        counts.append(len(own))

    def place(row: int) -> str:
        number = int(np.searchsorted(np.cumsum(counts), row, side="right"))
        solid = [line for line, text in enumerate(_lines(files[number]), start=1) if line > 2 and text.strip()]
        return f"{files[number].where}:{solid[row - sum(counts[:number])]}"

    values = number_rows(rows, [5], place, "x y w h score")
    negative = (values[:, 2:4] < 0).any(axis=1)
    if negative.any():
        first = int(negative.argmax())
        raise InputError(f"{place(first)}: a side of '{rows[first].strip()[:80]}' is negative; rows are x y w h score")
    return values, np.array(counts, np.int64)


def _lines(file: PredictionFile) -> list[str]:
    """Two at least."""
    try:
        lines = file.text.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file.where}: byte {error.start} is not UTF-8 text; save the file as plain text") from error
    return lines if len(lines) > 1 else [*lines, ""]


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
    files = read_files(source, wanted, wanted if known_ids is None else wanted | set(known_ids))
    missing = tuple(image_id for image_id in ids if image_id not in files)
    if strict:
        check_complete(source, missing, len(ids))
    values, rows_per_file = parse_files([files[image_id] for image_id in ids if image_id in files])
    counts = np.zeros(len(ids), np.int64)
    counts[[image_id in files for image_id in ids]] = rows_per_file
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Predictions(ids, starts, values[:, :4], values[:, 4], missing)


def write_predictions(folder: Path, detections: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]) -> None:
    """Write ``image_id → (boxes_xyxy (D, 4), scores (D,))`` as the official text files, best score first.

    Boxes get two decimals, scores six. The tree is written next to ``folder`` and takes its place by rename; earlier
    predictions there are replaced, anything else is not.

    Raises:
        InputError: ``folder`` holds something else than predictions, or cannot be written.
        ValueError: an image id that is no relative path, or a detection that is not finite or has a negative side.
    """
    check_replaceable(folder, "predictions", lambda entry: all(map(_is_prediction, (entry, *entry.rglob("*")))))
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


def read_files(source: Path, wanted: Collection[str], known: Collection[str]) -> dict[str, PredictionFile]:
    """The files of the ``wanted`` images in a folder or a ``.zip``, by image id, not parsed.

    Raises:
        InputError: a source without predictions, with two files for an image or one of an image that is not ``known``,
            or that cannot be read.
    """
    try:
        if source.is_dir():
            found = _by_image(source, sorted(walk_files(source)), known)
            return {
                image_id: PredictionFile(str(source / path), image_id, (source / path).read_bytes())
                for image_id, path in found.items()
                if image_id in wanted
            }
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            paths = [member.filename.replace("\\", "/") for member in members]
            # Whoever packs a folder has its name at the top.
            depths = {image_id.count("/") for image_id in known}
            if not any(path.count("/") in depths for path in paths if _is_text(path)):
                paths = [path.partition("/")[2] for path in paths]
            # By path and member: an archive may hold one name twice.
            found = _by_image(source, paths, known)
            place = dict(zip(paths, members, strict=True))
            return {
                image_id: PredictionFile(f"{source}/{path}", image_id, archive.read(place[path]))
                for image_id, path in found.items()
                if image_id in wanted
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"{source} is not a readable .zip ({error}); pack it again or give the folder") from error
    except OSError as error:
        reason = f"predictions: {error.filename or source} cannot be read ({error.strerror})"
        raise InputError(f"{reason}; give a folder or a .zip, {_LAYOUT}") from error


def _by_image(source: Path, paths: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """The path of each image's file; images are as many folders deep as those that are known."""
    depths = {image_id.count("/") for image_id in known}
    found: dict[str, str] = {}
    for path in paths:
        if path.count("/") in depths and _is_text(path):
            event, slash, name = path.rpartition("/")
            image_id = path[:-4] if path[:-4] in known else event + slash + name_parts(name[:-4])[-1]
            if image_id in found:
                raise InputError(f"{source}: two files for '{image_id}', {found[image_id]} and {path}; remove one")
            found[image_id] = path
    if not found:
        raise InputError(f"{source}: there are no predictions in it; give what holds the event folders, {_LAYOUT}")
    surplus = [path for image_id, path in found.items() if image_id not in known]
    if surplus:
        raise InputError(
            f"{source}: {len(surplus)} files are of images that the ground truth does not have, the first is "
            f"'{surplus[0]}'; remove them or give the ground truth they belong to"
        )
    return found


def _is_text(path: str) -> bool:
    return path.lower().endswith(".txt") and not path.startswith((".", "__MACOSX")) and "/." not in path


def _is_prediction(path: Path) -> bool:
    """A folder, or a file of ours; label files of other formats are .txt files as well."""
    if path.is_dir():
        return True
    try:
        with path.open(encoding="utf-8") as file:
            return path.suffix == ".txt" and file.readline().strip() == path.stem
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
    files = read_files(folder, ids, ids)
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
