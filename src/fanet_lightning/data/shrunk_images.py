"""Large images shrunk once, on disk (``cache=disk``): a data set of its own, made from another one.

Photographs of 12 megapixels take ten times as long to decode as WIDER FACE's, to be shown at a few hundred pixels.
Their copies decode as fast as WIDER's.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock

from fanet_lightning.data.image_cache import GIB
from fanet_lightning.data.images import Image8, UnreadableImage, read_image_rgb, read_image_size
from fanet_lightning.data.over_files import over_files
from fanet_lightning.data.records import Boxes, ImageRecord
from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced

# A part of every copy's name: raise it when copies would come out differently.
VERSION = 1
QUALITY = 95
# Above what a JPEG of quality 95 takes of a grainy photograph, bytes a pixel.
BYTES_PER_PIXEL = 1.0
# `replaced` asks for the process's umask, which is not safe in several threads at once.
_WRITING = threading.Lock()


def shrunk_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at ``side``, rounded, or as it is where it is no longer than that."""
    scale = side / min(height, width)
    if scale >= 1:
        return height, width
    return max(side, round(height * scale)), max(side, round(width * scale))


def shrink(image: Image8, side: int) -> Image8:
    """(H, W, 3) → shorter side ``side``, each pixel the mean of the area that it stands for."""
    height, width = shrunk_size(image.shape[0], image.shape[1], side)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def copy_path(folder: Path, original: Path, side: int) -> Path:
    """Where the copy of an image lies: named by the image's path, size and time of change, and by ``side``.

    Raises:
        OSError: there is no such image.
    """
    stat = original.stat()
    key = f"{VERSION}\0{original.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{side}\0{QUALITY}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
    return folder / name[:2] / f"{name}.jpg"


def shrunk_records(records: Sequence[ImageRecord], folder: Path, side: int) -> tuple[list[ImageRecord], str]:
    """The records with every larger image replaced by a copy whose shorter side is ``side``, and one line on that.

    Boxes are scaled by the exact ratio of the sizes. Copies are JPEGs of quality 95. Images that are no larger stay as
    they are, and so do those that cannot be read (training names them). What an earlier run has made is used if it is
    whole; a changed original gets a new copy, and the old one stays until the folder is emptied by hand.

    Copies appear by rename. Of several processes one makes them and the others wait, on other machines too where they
    share the folder; after a kill the next one goes on.

    Args:
        records: of the original images.
        folder: for the copies; made if need be.
        side: pixels.

    Raises:
        InputError: the folder cannot be written, or there is not enough space for the copies.
    """
    sizes: list[tuple[int, int] | None] = over_files(lambda i: _size(records[i].path), len(records))
    larger = [i for i, size in enumerate(sizes) if size is not None and min(size) > side]
    originals = {i: sizes[i] or (0, 0) for i in larger}
    targets = {i: shrunk_size(*originals[i], side) for i in larger}
    copies: dict[int, Path] = {}
    for i in larger:
        try:
            copies[i] = copy_path(folder, records[i].path, side)
        except OSError:  # it was there a moment ago
            continue
    start = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            missing = _missing(copies, targets)
            if missing:
                _check_space(folder, sum(targets[i][0] * targets[i][1] for i in missing))
                _remove_unfinished(folder)
                over_files(lambda k: _make(records[missing[k]].path, copies[missing[k]], side), len(missing))
            absent = set(_missing(copies, targets)) if missing else set()
    except OSError as error:
        raise InputError(
            f"cache_dir={folder} cannot be written ({error.strerror or error}); free the disk, or give another "
            "cache_dir"
        ) from error
    line = (
        f"cache=disk: {len(copies) - len(absent):,} of {len(records):,} images are shown as copies with a shorter side "
        f"of {side:,} pixels from {folder}, {len(missing) - len(absent):,} of them made now"
        + (f" in {time.monotonic() - start:.0f} s" if missing else "")
    )
    return [
        _shrunk(record, copies[i], originals[i], targets[i]) if i in copies and i not in absent else record
        for i, record in enumerate(records)
    ], line


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return read_image_size(path)
    except UnreadableImage:
        return None


def _missing(copies: dict[int, Path], targets: dict[int, tuple[int, int]]) -> list[int]:
    indices = list(copies)
    whole = over_files(lambda k: _is_whole(copies[indices[k]], targets[indices[k]]), len(indices))
    return [index for index, is_whole in zip(indices, whole, strict=True) if not is_whole]


def _is_whole(copy: Path, target: tuple[int, int]) -> bool:
    try:
        with copy.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            return file.read() == b"\xff\xd9" and read_image_size(copy) == target
    except (OSError, UnreadableImage):
        return False


def _check_space(folder: Path, pixels: int) -> None:
    free, needed = shutil.disk_usage(folder).free, int(pixels * BYTES_PER_PIXEL)
    if needed > free:
        raise InputError(
            f"cache_dir={folder}: the copies may take {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free; give a "
            "smaller cache_side, or another cache_dir"
        )


def _remove_unfinished(folder: Path) -> None:
    """What a killed process has left; the lock is held, so nobody is writing them."""
    for path in folder.glob("??/.*.jpg"):
        path.unlink(missing_ok=True)


def _make(original: Path, copy: Path, side: int) -> None:
    try:
        image = read_image_rgb(original)
    except UnreadableImage:
        return
    bgr = cv2.cvtColor(shrink(image, side), cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    with _WRITING, replaced(copy) as path:
        path.write_bytes(encoded.tobytes())


def _shrunk(record: ImageRecord, copy: Path, original: tuple[int, int], target: tuple[int, int]) -> ImageRecord:
    scale_xyxy = np.tile(np.array(target[::-1]) / np.array(original[::-1]), 2)

    def scaled(boxes_xyxy: Boxes) -> Boxes:
        boxes: Boxes = (boxes_xyxy * scale_xyxy).astype(np.float32)
        return boxes

    boxes = scaled(record.boxes_xyxy)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # a sliver's sides may round to the same number
    return replace(
        record,
        path=copy,
        boxes_xyxy=boxes[has_area],
        attributes={name: values[has_area] for name, values in record.attributes.items()},
        ignored_xyxy=np.concatenate([scaled(record.ignored_xyxy), boxes[~has_area]]),
    )
