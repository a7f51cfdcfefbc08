"""What an evaluation has found so far, on disk: one checksummed line per image, appended as it comes.

A process may be killed at any byte. Lines behind the first that is not whole are dropped, and those images are done
again. The first line is a fingerprint of everything that detections depend on; lines under another are not read.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fanet_lightning.errors import InputError
from fanet_lightning.files import content_if_any
from fanet_lightning.multiscale import PassRecord
from fanet_lightning.structures import Detections

if TYPE_CHECKING:
    from fanet_lightning.data.records import ImageRecord

JOURNAL_FILE = "unfinished.jsonl"
VERSION = 1


class Inferred(NamedTuple):
    """One image: its faces in pixels of the original image, the passes over it, and the seconds that it took."""

    image_id: str
    detections: Detections
    passes: list[PassRecord]
    seconds: float


def file_sha256(path: Path) -> str:
    """
    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); change its permissions") from error


@cache
def code_sha256() -> str:
    """Over every module of the package, so that a changed working copy shows, whatever its version says."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def images_sha256(records: "Sequence[ImageRecord]") -> str:
    """Over the images' ids, sizes and times of change, in their order: another list or an exchanged image shows."""
    digest = hashlib.sha256()
    for record in records:
        try:
            state = record.path.stat()
            digest.update(f"{record.image_id}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        except OSError:  # reading it will say why
            digest.update(f"{record.image_id}\0absent\n".encode())
    return digest.hexdigest()


class Journal:
    """Results of an unfinished evaluation in one file. A context manager: inside, lines are appended.

    ``done`` are the images that an earlier process left there. ``refused`` says, where there were some of another
    evaluation, which settings differ; those are overwritten.

    Args:
        path: the file; made with its first line on entry.
        fingerprint: what detections depend on, as plain values.
        image_ids: of the evaluation; lines about other images cannot be under the same fingerprint.
        resume: False overwrites what is there.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(
        self, path: Path, fingerprint: Mapping[str, Any], image_ids: Sequence[str], *, resume: bool = True
    ) -> None:
        self.path = path
        # As it comes back from a file: tuples become lists.
        self._fingerprint = json.loads(json.dumps({"version": VERSION, **fingerprint}, allow_nan=False))
        self.done: dict[str, Inferred] = {}
        self.refused: list[str] = []
        self._whole_bytes = 0
        self._file: IO[bytes] | None = None
        if resume:
            self._read(set(image_ids))

    def _read(self, image_ids: set[str]) -> None:
        content = content_if_any(self.path)
        if content is None:
            return
        position = 0
        for number, line in enumerate(content.splitlines(keepends=True)):
            value = _parse(line)
            if value is None:
                break
            if number == 0:
                self.refused = _differences(value, self._fingerprint)
                if self.refused:
                    return
            else:
                item = _from_plain(value)
                if item.image_id not in image_ids:
                    break
                self.done[item.image_id] = item
            position += len(line)
        self._whole_bytes = position

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if self._whole_bytes else "wb")
            self._file.truncate(self._whole_bytes)
            self._file.seek(self._whole_bytes)
            if not self._whole_bytes:
                self._append(self._fingerprint)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); remove it") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, item: Inferred) -> None:
        """Append an image; once this returns, killing the process does not lose it.

        Raises:
            InputError: the disk is full.
        """
        try:
            self._append(_to_plain(item))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); free the disk and go on") from error

    def _append(self, value: Any) -> None:
        if self._file is None:
            raise ValueError("the journal is not open")
        body = json.dumps(value, ensure_ascii=True, allow_nan=False).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(body), body))
        self._file.flush()

    def remove(self) -> None:
        """The evaluation has ended well."""
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> Any:
    """What a line holds; None for one that is not whole."""
    checksum, _, body = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body)


def _to_plain(item: Inferred) -> dict[str, Any]:
    found = {name: np.ascontiguousarray(value, "<f4") for name, value in item.detections._asdict().items()}
    return {
        "image_id": item.image_id,
        # The bytes themselves: what comes back is equal to the last bit.
        **{name: base64.b64encode(value.tobytes()).decode("ascii") for name, value in found.items()},
        "passes": [list(step) for step in item.passes],
        "seconds": item.seconds,
    }


def _from_plain(value: Mapping[str, Any]) -> Inferred:
    boxes, scores = (np.frombuffer(base64.b64decode(value[name]), "<f4") for name in ("boxes_xyxy", "scores"))
    found = Detections(torch.from_numpy(boxes.reshape(-1, 4).copy()), torch.from_numpy(scores.copy()))
    return Inferred(value["image_id"], found, [PassRecord(*step) for step in value["passes"]], value["seconds"])


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
