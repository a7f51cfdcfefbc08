"""Image files: can they be read, how large and how turned are they, and what do they look like from afar."""

import hashlib
import io
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError

# Side of the grey thumbnail that images are compared by; 32 is what the perceptual hash was defined on.
THUMBNAIL_PIXELS = 32
# Standard deviation of the grey levels below which an image shows nothing: JPEG noise of a single colour stays below.
BLANK_DEVIATION = 2.0
_CHUNK = 16
# JPEG and PNG.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n")


@dataclass(frozen=True, eq=False)
class FileFacts:
    """What one image file is.

    ``length``       bytes of content.
    ``digest``       of its content, 16 bytes; equal files have equal ones. b"" where it cannot be read.
    ``width``, ``height``  pixels as stored; 0 where unknown.
    ``orientation``  EXIF 1 … 8; 1 where there is none.
    ``trouble``      name of the :class:`~fanet_lightning.diagnosis.findings.Kind` that keeps it from being read, or "".
    ``reason``       of that trouble, in words.
    ``thumbnail``    (32, 32) uint8 grey, upright, squeezed to a square; None where it was not decoded.
    ``blank``        whether it shows one colour alone; False where it was not decoded.
    ``damage``       what the JPEG decoder found fault with and went on; "" where nothing, or where it was not decoded.
    """

    path: Path
    length: int = 0
    digest: bytes = b""
    width: int = 0
    height: int = 0
    orientation: int = 1
    trouble: str = ""
    reason: str = ""
    thumbnail: npt.NDArray[np.uint8] | None = None
    blank: bool = False
    damage: str = ""

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height once the camera's orientation is applied, as training and scoring read the image."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def examine_file(path: Path, decode: bool) -> FileFacts:
    """Read one file; ``decode``: its pixels too, with the reader that training uses."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return FileFacts(path, trouble="unreadable", reason=error.strerror or type(error).__name__)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    if not content:
        return FileFacts(path, digest=digest, trouble="empty_file", reason="0 bytes")
    width, height, orientation, trouble, reason = _header(content)
    thumbnail, blank, damage = None, False, ""
    if not trouble and decode:
        with _decoder_remarks() as remarks:
            thumbnail, blank, trouble, reason = _look(content, path)
        damage = "" if trouble else "; ".join(dict.fromkeys(remarks))
    return FileFacts(path, len(content), digest, width, height, orientation, trouble, reason, thumbnail, blank, damage)


@contextmanager
def _decoder_remarks() -> Iterator[list[str]]:
    """Lines that libjpeg writes to the standard error stream inside the block; filled when the block ends.

    It reports damage that it can go on after (a segment that ends early, a lost restart marker) in no other way, and
    OpenCV does not look. Other lines are passed on.
    """
    remarks: list[str] = []
    try:
        kept = os.dup(2)
    except OSError:  # a process without that stream
        yield remarks
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield remarks
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if "JPEG" in line:
                    remarks.append(line.strip())
                elif line:
                    print(line, file=sys.stderr)


def _header(content: bytes) -> tuple[int, int, int, str, str]:
    """Stored width and height, orientation, trouble and its reason, without decoding."""
    from PIL import Image, UnidentifiedImageError

    from fanet_lightning.data.images import pillow_frame

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                width, height, orientation = pillow_frame(image)
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        if content.startswith(_MAGIC) and not any(start in content for start in (b"\xff\xda", b"IDAT")):
            return 0, 0, 1, "truncated", f"ends inside its header, after {len(content):,} bytes"
        if isinstance(error, UnidentifiedImageError):
            return 0, 0, 1, "not_image", f"begins with {content[:8]!r}"
        return 0, 0, 1, "unreadable", " ".join(str(error).split()) or type(error).__name__
    if content.startswith(b"\xff\xd8\xff") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        # Compressed data never look like a marker, so the last scan was not closed.
        return width, height, orientation, "truncated", f"a JPEG without its end marker, {len(content):,} bytes"
    return width, height, orientation, "", ""


def _look(content: bytes, path: Path) -> tuple[npt.NDArray[np.uint8] | None, bool, str, str]:
    """Thumbnail, blankness, trouble and its reason."""
    import cv2

    from fanet_lightning.data.images import UnreadableImage, decode_image_rgb

    try:
        grey = cv2.cvtColor(decode_image_rgb(content, path), cv2.COLOR_RGB2GRAY)
    except UnreadableImage as error:
        cut = "truncated" in error.reason or "cut short" in error.reason
        return None, False, "truncated" if cut else "unreadable", error.reason
    side = (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    thumbnail = np.asarray(cv2.resize(grey, side, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    _, deviation = cv2.meanStdDev(grey)
    return thumbnail, float(np.asarray(deviation).item()) < BLANK_DEVIATION, "", ""


def _examine_chunk(paths: Sequence[Path], decode: bool) -> list[FileFacts]:
    import cv2

    cv2.setNumThreads(1)  # as many processes as cores already; restored nowhere, since the process is ours alone
    return [examine_file(path, decode) for path in paths]


def examine_files(
    paths: Iterable[Path], *, decode: bool, workers: int = 1, progress: Callable[[int], None] | None = None
) -> dict[Path, FileFacts]:
    """Every file once, in ``workers`` processes.

    Args:
        paths: image files; repeated ones are read once.
        decode: read the pixels too, else headers and content hashes alone.
        workers: processes; 1 stays in this one.
        progress: called with the number of files done since the last call.

    Raises:
        InputError: a worker process was killed.
    """
    distinct = list(dict.fromkeys(paths))
    facts: dict[Path, FileFacts] = {}
    if workers <= 1:
        for path in distinct:
            facts[path] = examine_file(path, decode)
            if progress is not None:
                progress(1)
        return facts
    chunks = [distinct[start : start + _CHUNK] for start in range(0, len(distinct), _CHUNK)]
    # spawn: a fork of a process in which libraries run threads may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_examine_chunk, chunk, decode) for chunk in chunks]
        try:
            for job in as_completed(jobs):
                done = job.result()
                facts.update((fact.path, fact) for fact in done)
                if progress is not None:
                    progress(len(done))
        except BrokenProcessPool as error:
            raise InputError("a process that reads images was killed, likely for memory; try workers=1") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {path: facts[path] for path in distinct}
