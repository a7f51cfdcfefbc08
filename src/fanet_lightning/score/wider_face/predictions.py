"""WIDER FACE's predictions: one text file per image, read, written, packed for the test server.

A file has the image's name (with or without its event and extension), the number of rows, and rows ``x y w h score``.
The test server wants one for each image of the test split, named as the image and in a folder named as its event
(``0--Parade/0_Parade_marchingband_1_5.txt``), in an archive that has the event folders at its top.
"""

import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder, walk_files
from fanet_lightning.score.inputs import (
    DetectionsByImage,
    as_xywh,
    is_same_image,
    name_parts,
    number_rows,
    packed_detections,
    reading,
)

_LAYOUT = "predictions are a folder or .zip of event/name.txt: a name line, a count line, rows x y w h score"
# image id → what an error calls its file, and the content.
Files = Mapping[str, tuple[str, bytes]]


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
    def from_detections(cls, detections: DetectionsByImage, image_ids: Iterable[str]) -> "Predictions":
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))``; an image that is not there has no detection.
        ValueError: as :func:`fanet_lightning.score.inputs.packed_detections`."""
        ids = tuple(image_ids)
        starts, boxes_xyxy, scores = packed_detections(detections, ids)
        missing = tuple(image_id for image_id in ids if image_id not in detections)
        return cls(ids, starts, as_xywh(boxes_xyxy), scores, missing)


def read_predictions(
    source: Path | str, image_ids: Iterable[str], *, known_ids: Collection[str] | None = None
) -> Predictions:
    """Read the files of ``image_ids`` from a folder or a ``.zip`` in the official layout.

    Files of other images in ``known_ids`` (all of the ground truth, when ``image_ids`` are a selection) are skipped.
    Files that do not end in ``.txt`` and hidden ones are no predictions.

    Raises:
        InputError: the source is missing or empty, an image has two files or is not known, or a file does not hold what
            it should: with file, line and value.
    """
    ids = tuple(image_ids)
    return _parsed(_read_files(Path(source), set(ids), set(ids) if known_ids is None else {*ids, *known_ids}), ids)


def _parsed(files: Files, ids: tuple[str, ...]) -> Predictions:
    rows: list[str] = []
    counts = np.zeros(len(ids), np.int64)
    for i, image_id in enumerate(ids):
        if image_id not in files:
            continue
        where, content = files[image_id]
        with reading(where, "save the file as plain text in UTF-8"):
            name, count, *rest = [*content.decode("utf-8-sig").split("\n"), ""]
        own = [line for line in rest if line and not line.isspace()]
        # Detectors write the name, the file name, or event/name.jpg (S3FD).
        wanted = image_id.rpartition("/")[2]
        if name.strip() != wanted and not is_same_image(name, image_id):
            raise InputError(f"{where}:1: the name line says '{name.strip()[:80]}'; write '{wanted}' or rename it")
        count = count.strip()
        if not (count.isdecimal() and count.lstrip("0") == (str(len(own)) if own else "")):
            raise InputError(f"{where}:2: '{count[:80]}' rows are announced but {len(own)} follow; correct it")
        rows += own
        counts[i] = len(own)

    def place(row: int) -> str:
        i = int(np.searchsorted(np.cumsum(counts), row, side="right"))
        where, content = files[ids[i]]
        lines = enumerate(content.decode("utf-8-sig").split("\n"), start=1)
        solid = [number for number, line in lines if number > 2 and line.strip()]
        return f"{where}:{solid[row - counts[:i].sum()]}"

    values = number_rows(rows, [5], place, "x y w h score")
    negative = (values[:, 2:4] < 0).any(axis=1)
    if negative.any():
        first = int(negative.argmax())
        raise InputError(f"{place(first)}: a side of '{rows[first].strip()[:80]}' is negative; rows are x y w h score")
    missing = tuple(image_id for image_id in ids if image_id not in files)
    return Predictions(ids, np.concatenate([[0], np.cumsum(counts)]), values[:, :4], values[:, 4], missing)


def _read_files(source: Path, wanted: Collection[str], known: Collection[str]) -> Files:
    """The files of the ``wanted`` images in a folder or a ``.zip``."""
    with reading(source, _LAYOUT):
        if source.is_dir():
            found = _by_image(source, sorted(walk_files(source)), known).items()
            return {key: (str(source / path), (source / path).read_bytes()) for key, path in found if key in wanted}
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            paths = [member.filename.replace("\\", "/") for member in members]
            # Whoever packs a folder has its name at the top.
            depths = {image_id.count("/") for image_id in known}
            if not any(path.count("/") in depths for path in paths if _is_text(path)):
                paths = [path.partition("/")[2] for path in paths]
            # By path and member: an archive may hold one name twice.
            found = _by_image(source, paths, known).items()
            member = dict(zip(paths, members, strict=True))
            return {key: (f"{source}/{path}", archive.read(member[path])) for key, path in found if key in wanted}


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
    surplus = [path for image_id, path in found.items() if image_id not in known]
    if surplus or not found:
        what = f"{len(surplus)} files, the first '{surplus[0]}', are of images" if surplus else "there is no prediction"
        raise InputError(f"{source}: {what} that the ground truth does not have; give matching ones. {_LAYOUT}")
    return found


def _is_text(path: str) -> bool:
    return path.lower().endswith(".txt") and not path.startswith((".", "__MACOSX")) and "/." not in path


def write_predictions(folder: Path, detections: DetectionsByImage) -> None:
    """Write ``image_id → (boxes_xyxy (D, 4), scores (D,))`` as the official text files, best score first.

    Boxes get two decimals, scores six. Earlier predictions in ``folder`` are replaced, by rename, anything else is not.

    Raises:
        InputError: ``folder`` holds something else than predictions.
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
    ValueError: a detection that is not finite or has a negative side."""
    _, boxes, confidence = packed_detections({name: (boxes_xyxy, scores)}, [name])
    rows = np.column_stack([as_xywh(boxes), confidence])[np.argsort(-confidence, kind="stable")]
    body = "%.2f %.2f %.2f %.2f %.6f\n" * len(rows) % tuple(rows.ravel().tolist())
    return f"{name}\n{len(rows)}\n{body}"


def _is_prediction(path: Path) -> bool:
    """A folder, or a file of ours; label files of other formats are .txt files as well."""
    if path.is_dir() or path.suffix != ".txt":
        return path.is_dir()
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip() == path.stem


def write_submission(archive: Path, folder: Path, image_ids: Sequence[str]) -> Predictions:
    """Pack the predictions in ``folder`` into a ``.zip``, by rename, and return what they are.

    Equal predictions give equal archives. InputError: one of ``image_ids`` ("event/name") without a file, or a file of
    another image.
    """
    ids = tuple(sorted(image_ids))
    files = _read_files(folder, ids, ids)
    packed = _parsed(files, ids)
    if packed.missing:
        raise InputError(
            f"{folder}: {len(packed.missing)} of {len(ids)} images of the split have no file, the first is "
            f"'{packed.missing[0]}'; the server wants a file for each, with the count 0 where nothing was found"
        )
    with replaced(archive) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for image_id in ids:
            member = zipfile.ZipInfo(f"{image_id}.txt")  # of 1980
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            target.writestr(member, files[image_id][1])
    return packed
