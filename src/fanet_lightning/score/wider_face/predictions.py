"""WIDER FACE's predictions: one text file per image, read, written, packed for the test server.

A file has the image's name (with or without its event and extension), the number of rows, and rows ``x y w h score``.
The test server wants one for each image of the test split, named as the image and in a folder named as its event
(``0--Parade/0_Parade_marchingband_1_5.txt``), in an archive that has the event folders at its top.
"""

import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder, walk_files
from fanet_lightning.score.curves import Floats, Ints
from fanet_lightning.score.inputs import (
    DetectionsByImage,
    as_xywh,
    is_same_image,
    missing_warning,
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
    starts: Ints
    boxes_xywh: Floats
    scores: Floats
    missing: tuple[str, ...] = ()

    @classmethod
    def from_detections(cls, detections: DetectionsByImage, image_ids: Iterable[str]) -> "Predictions":
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))``; an image that is not there has no detection.
        ValueError: as :func:`fanet_lightning.score.inputs.packed_detections`."""
        ids = tuple(image_ids)
        starts, boxes_xyxy, scores = packed_detections(detections, ids)
        missing = tuple(image_id for image_id in ids if image_id not in detections)
        return cls(ids, starts, as_xywh(boxes_xyxy), scores, missing)

    @property
    def image_of_rows(self) -> Ints:
        """(R,) the place of the image of each row."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.starts))


def read_predictions(
    source: Path | str, image_ids: Iterable[str], *, known_ids: Collection[str] | None = None
) -> Predictions:
    """Read the files of ``image_ids`` from a folder or a ``.zip`` in the official layout.

    Files of other images in ``known_ids`` (all of the ground truth, when ``image_ids`` are a selection) are skipped.
    Files that do not end in ``.txt`` and hidden ones are no predictions. InputError: the source is missing or empty, an
    image has two files or is not known, or a file does not hold what it should: with file, line and value.
    """
    ids = tuple(image_ids)
    return _parsed(_read_files(Path(source), set(ids), {*ids, *(known_ids or ())}), ids)


def _parsed(files: Files, ids: tuple[str, ...]) -> Predictions:
    rows: list[str] = []
    counts = np.zeros(len(ids), np.int64)
    for i, image_id in enumerate(ids):
        if image_id not in files:
            continue
        where, content = files[image_id]
        with reading(where, "save the file as plain text in UTF-8"):
            name, count, *rest = (line.strip() for line in [*content.decode("utf-8-sig").split("\n"), ""])
        own = [line for line in rest if line]
        # Detectors write the name, the file name, or event/name.jpg (S3FD).
        wanted, wrong = image_id.rpartition("/")[2], ""
        if name != wanted and not is_same_image(name, image_id):
            wrong = f"1: the name line says '{name[:80]}'; write '{wanted}' or rename it"
        elif not (count.isdecimal() and count.lstrip("0") == (str(len(own)) if own else "")):
            wrong = f"2: '{count[:80]}' rows are announced but {len(own)} follow; correct it"
        if wrong:
            raise InputError(f"{where}:{wrong}")
        rows += own
        counts[i] = len(own)

    def place(row: int) -> str:
        i = int(np.searchsorted(np.cumsum(counts), row, side="right"))
        where, content = files[ids[i]]
        lines = enumerate(content.decode("utf-8-sig").split("\n"), start=1)
        solid = [number for number, line in lines if number > 2 and line.strip()]
        return f"{where}:{solid[row - counts[:i].sum()]}"

    layout = "x y w h score, no side negative"
    values = number_rows(rows, [5], place, layout, lambda values: (values[:, 2:4] < 0).any(axis=1))
    missing = tuple(image_id for image_id in ids if image_id not in files)
    return Predictions(ids, np.concatenate([[0], np.cumsum(counts)]), values[:, :4], values[:, 4], missing)


def _read_files(source: Path, wanted: Collection[str], known: Collection[str]) -> Files:
    """The files of the ``wanted`` images in a folder or a ``.zip``, as many folders deep as those ``known`` are."""
    depths = {image_id.count("/") for image_id in known}
    with reading(source, _LAYOUT), ExitStack() as stack:
        if source.is_dir():
            files = [(path, (source / path).read_bytes) for path in sorted(walk_files(source))]
        else:
            archive = stack.enter_context(zipfile.ZipFile(source))
            members = [(own.filename.replace("\\", "/"), partial(archive.read, own)) for own in archive.infolist()]
            files = [own for own in members if not own[0].startswith((".", "__MACOSX")) and "/." not in own[0]]
        files = [own for own in files if own[0].lower().endswith(".txt")]
        # Whoever packs a folder has its name at the top.
        if not source.is_dir() and not any(path.count("/") in depths for path, _ in files):
            files = [(path.partition("/")[2], read) for path, read in files]
        found: dict[str, tuple[str, Callable[[], bytes]]] = {}
        wrong = ""
        for path, read in files:
            if path.count("/") in depths:
                event, slash, name = path.rpartition("/")
                image_id = path[:-4] if path[:-4] in known else event + slash + name_parts(name[:-4])[-1]
                if image_id in found:
                    wrong = f"two files for '{image_id}', {found[image_id][0]} and {path}; remove one"
                found[image_id] = path, read
        surplus = [path for image_id, (path, _) in found.items() if image_id not in known]
        if surplus:
            wrong = f"{len(surplus)} files, the first '{surplus[0]}', are of images that the ground truth does not have"
        if wrong or not found:
            raise InputError(f"{source}: {wrong or 'no file of an image is in it'}; {_LAYOUT}")
        return {key: (f"{source}/{path}", read()) for key, (path, read) in found.items() if key in wanted}


def write_predictions(folder: Path, detections: DetectionsByImage) -> None:
    """Write ``image_id → (boxes_xyxy (D, 4), scores (D,))`` as the official text files, best score first.

    Boxes get two decimals, scores six. Earlier predictions in ``folder`` are replaced, by rename. InputError: it holds
    something else. ValueError: a detection that is not finite or has a negative side.
    """
    check_replaceable(folder, "predictions", lambda entry: all(map(_is_prediction, (entry, *entry.rglob("*")))))
    with replaced_folder(folder) as temporary:
        for image_id, (boxes_xyxy, scores) in detections.items():
            path = temporary / f"{image_id}.txt"
            text = prediction_text(path.stem, boxes_xyxy, scores)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


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

    Equal predictions give equal archives. InputError: one of ``image_ids`` without a file, a file of another image.
    """
    ids = tuple(sorted(image_ids))
    files = _read_files(folder, ids, ids)
    packed = _parsed(files, ids)
    missing_warning(packed.missing, len(ids), folder)
    with replaced(archive) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for image_id in ids:
            member = zipfile.ZipInfo(f"{image_id}.txt")  # of 1980
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            target.writestr(member, files[image_id][1])
    return packed
