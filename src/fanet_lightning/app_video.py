"""What the page does with a film: its first minute, frame by frame, into an MP4 that a browser plays."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.app_pictures import NO_REDACTION, rows
from fanet_lightning.errors import InputError
from fanet_lightning.media.drawing import annotate, bar_width
from fanet_lightning.media.redaction import redact

if TYPE_CHECKING:
    from fanet_lightning.detector import FaceDetector
    from fanet_lightning.protocols import Protocol

# How often the page hears how far it is.
REPORT_SECONDS = 0.5


@dataclass
class Film:
    """How far a film is, or what came of it.

    ``frames_expected`` None where the container does not say. ``out`` None until the film is whole.
    ``size_wh`` of the upright frames.
    ``faces`` per frame: ``index``, ``time_seconds`` and ``detections`` as :func:`app_pictures.detections` has them.
    """

    frames: int = 0
    frames_expected: int | None = None
    seconds: float = 0.0
    frames_per_second: float = 0.0
    size_wh: tuple[int, int] = (0, 0)
    cut: bool = False
    out: Path | None = None
    sound_kept: bool = False
    notes: list[str] = field(default_factory=list)
    faces: list[dict[str, Any]] = field(default_factory=list)

    @property
    def most_faces(self) -> int:
        """The largest number of faces in one frame."""
        return max((len(frame["detections"]) for frame in self.faces), default=0)

    @property
    def mean_faces(self) -> float:
        """Faces per frame."""
        return sum(len(frame["detections"]) for frame in self.faces) / max(1, len(self.faces))


def find_in_film(
    detector: "FaceDetector",
    path: Path,
    out: Path,
    *,
    protocol: "Protocol",
    threshold: float,
    redaction: str,
    max_seconds: float,
) -> Iterator[Film]:
    """Detect the faces of a film and write it with boxes, or redacted.

    Args:
        detector, path: the film is read from ``path``.
        out: the film that is written, ``.mp4``; nothing lies there when the iteration is given up.
        protocol: test-time protocol of every frame.
        threshold: lowest score of a face.
        redaction: ``none``, ``blur`` or ``pixelate``.
        max_seconds: frames after it are left out.

    Yields:
        The same :class:`Film`, at intervals; with ``out`` when it is done.

    Raises:
        InputError: the package av is missing, or ``path`` is no film that can be read.
    """
    from fanet_lightning.media.video import VideoReader, VideoWriter

    film = Film()
    start = reported = time.perf_counter()
    with VideoReader(path) as reader:
        film.frames_expected = expected_frames(reader.frame_count, reader.frames_per_second, max_seconds)
        width, height = film.size_wh = reader.size_wh
        added = bar_width(height, width) if redaction == NO_REDACTION else 0
        with VideoWriter(out, reader, (width + added, height)) as writer:
            for frame in reader:
                if frame.time_seconds >= max_seconds:
                    film.cut = True
                    break
                found = detector.detect(frame.image_rgb, protocol=protocol, threshold=threshold)
                boxes_xyxy, scores = found.boxes_xyxy.numpy(), found.scores.numpy()
                writer.write(_drawn(frame.image_rgb, boxes_xyxy, scores, redaction), frame)
                film.faces.append(_entry(frame.index, frame.time_seconds, boxes_xyxy, scores))
                film.frames += 1
                film.seconds = time.perf_counter() - start
                if time.perf_counter() - reported >= REPORT_SECONDS:
                    reported = time.perf_counter()
                    yield film
        film.notes = [*([reader.broken] if reader.broken else []), *writer.notes]
    if not film.frames:
        raise InputError(f"{path.name} has no frame that can be read; give another film")
    film.frames_per_second = reader.frames_per_second
    film.seconds = time.perf_counter() - start
    film.sound_kept = writer.sound_kept
    film.out = out
    yield film


def expected_frames(frame_count: int | None, frames_per_second: float, max_seconds: float) -> int | None:
    """Frames that will be processed, as far as the container says; None where it does not."""
    if frame_count is None:
        return None
    return min(frame_count, int(np.ceil(frames_per_second * max_seconds)))


def film_document(film: Film, name: str, protocol: str, threshold: float, model: str) -> dict[str, Any]:
    """The JSON of a film: the faces of every frame, boxes in pixels of the upright frame."""
    return {
        "model": model, "threshold": threshold, "protocol": protocol, "film": name,
        "box_format": "x1 y1 x2 y2, pixels of the upright frame", "cut": film.cut, "frames": film.faces,
    }  # fmt: skip


def _drawn(
    image_rgb: npt.NDArray[np.uint8],
    boxes_xyxy: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    redaction: str,
) -> npt.NDArray[np.uint8]:
    if redaction != NO_REDACTION:
        return redact(image_rgb, boxes_xyxy, redaction)
    return annotate(image_rgb, boxes_xyxy, scores)


def _entry(
    index: int, time_seconds: float, boxes_xyxy: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]
) -> dict[str, Any]:
    return {"frame": index, "time_seconds": round(time_seconds, 4), "detections": rows(boxes_xyxy, scores)}
