"""Faces in dropped images and videos: detect once, filter and draw often.

What the page does with a picture: decode, detect once, then filter and draw as often as the slider moves.

Knows nothing of the page itself.
"""

import io
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import UnreadableImage, color_profile, decode_image_rgb, read_image_size
from fanet_lightning.detect.redaction import redact
from fanet_lightning.ops.draw import annotate, bar_width

if TYPE_CHECKING:
    from fanet_lightning.detect.detector import FaceDetector
    from fanet_lightning.detect.multiscale import AnyProtocol


Image8 = npt.NDArray[np.uint8]

# Longer side of what is shown, pixels: sharp on a large screen, drawn and encoded in some 30 ms.
SHOWN_SIDE, SHOWN_SIDE_OF_MANY = 1600, 900
NO_REDACTION = "none"
MEGABYTE = 2**20  # as browsers count


@dataclass(frozen=True)
class Picture:
    """A picture and every face that the detector reports in it, whatever the threshold.

    ``path``         the upload, as long as it is kept.
    ``shown_rgb``    (h, w, 3) uint8, upright, at most ``SHOWN_SIDE`` long: what is drawn on.
    ``boxes_xyxy``   (D, 4) float32, pixels of the upright original of ``height`` × ``width``.
    ``scores``       (D,) float32, descending.
    ``profile``      ICC, of the colors of the pixels; empty for sRGB.
    """

    name: str
    path: Path
    height: int
    width: int
    shown_rgb: Image8
    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    protocol: str
    decode_seconds: float
    network_seconds: float
    profile: bytes = b""

    def count(self, threshold: float) -> int:
        """How many faces have a score of at least ``threshold``."""
        return int((self.scores >= threshold).sum())

    @property
    def shown_scale(self) -> tuple[float, float]:
        """(x, y): pixels shown per pixel of the original."""
        return self.shown_rgb.shape[1] / self.width, self.shown_rgb.shape[0] / self.height


def read_upload(path: Path, name: str, max_pixels: int, max_bytes: int) -> Image8:
    """The pixels of an uploaded file, upright; see :func:`fanet_lightning.data.images.read_image_rgb`.

    Args:
        path: where the upload lies.
        name: what its owner calls it, for messages.
        max_pixels, max_bytes: more are refused before anything is decoded.

    Raises:
        InputError: too large, not an image, damaged, or deleted since.
    """
    if not path.is_file():
        raise InputError(f"{name} is no longer kept here; drop it again")
    if path.stat().st_size > max_bytes:
        raise InputError(
            f"{name} has {path.stat().st_size / MEGABYTE:.1f} MB; at most {max_bytes / MEGABYTE:g} MB are taken"
        )
    size = _size_by_header(path)
    if size is not None and size[0] * size[1] > max_pixels:
        raise InputError(
            f"{name} has {size[1]} × {size[0]} pixels, {size[0] * size[1] / 1e6:,.0f} million; at most "
            f"{max_pixels / 1e6:g} million are taken: shrink it first"
        )
    # The decoder's own message about a file without a size names it as its owner does.
    return decode_image_rgb(path.read_bytes(), name)


def _size_by_header(path: Path) -> tuple[int, int] | None:
    try:
        return read_image_size(path)
    except UnreadableImage:
        return None


def detect_picture(
    detector: "FaceDetector",
    path: Path,
    name: str,
    protocol: "AnyProtocol",
    *,
    max_pixels: int,
    max_bytes: int,
    shown_side: int = SHOWN_SIDE,
) -> Picture:
    """Decode an upload and run the network over it once.

    Raises:
        InputError: see :func:`read_upload`; or it does not fit into memory.
    """
    start = time.perf_counter()
    image_rgb = read_upload(path, name, max_pixels, max_bytes)
    decoded = time.perf_counter()
    found = detector.detect(image_rgb, protocol=protocol, threshold=0.0)  # the page filters
    detected = time.perf_counter()
    height, width = image_rgb.shape[:2]
    protocol_name = str(protocol["name"] if isinstance(protocol, Mapping) else protocol)
    return Picture(
        name, path, height, width, shrunk(image_rgb, shown_side), found.boxes_xyxy.numpy(), found.scores.numpy(),
        protocol_name, decoded - start, detected - decoded, _profile_of(path),
    )  # fmt: skip


def _profile_of(path: Path) -> bytes:
    """Of a file that has been decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF blocks
            with Image.open(path) as image:
                return color_profile(image)
    except Exception:  # a file that OpenCV alone can read
        return b""


def shrunk(image_rgb: Image8, longest: int) -> Image8:
    """The picture with its longer side at ``longest`` pixels at most, never enlarged, no side below 1."""
    import cv2

    height, width = image_rgb.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image_rgb
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def drawn(image_rgb: Image8, picture: Picture, threshold: float, redaction: str) -> Image8:
    """``image_rgb``, the picture at any size, with the boxes of its faces and the colour bar; or redacted, without.

    Args:
        image_rgb: (h, w, 3) uint8.
        picture: whose faces are drawn.
        threshold: lowest score of a face that counts.
        redaction: ``none``, ``blur`` or ``pixelate``.
    """
    height, width = image_rgb.shape[:2]
    keep = picture.scores >= threshold
    scale = np.array([width / picture.width, height / picture.height] * 2, dtype=np.float32)
    boxes_xyxy = picture.boxes_xyxy[keep] * scale
    if redaction != NO_REDACTION:
        return redact(image_rgb, boxes_xyxy, redaction)
    return annotate(image_rgb, boxes_xyxy, picture.scores[keep])


def drawn_whole(picture: Picture, threshold: float, redaction: str, max_pixels: int, max_bytes: int) -> Image8:
    """As :func:`drawn`, at the size of the original, which is decoded again.

    Raises:
        InputError: see :func:`read_upload`.
    """
    image_rgb = read_upload(picture.path, picture.name, max_pixels, max_bytes)
    return drawn(image_rgb, picture, threshold, redaction)


def detections(picture: Picture, threshold: float) -> list[dict[str, float]]:
    """The faces with a score of at least ``threshold``, best first; see :func:`rows`."""
    keep = picture.scores >= threshold
    return rows(picture.boxes_xyxy[keep], picture.scores[keep])


def rows(boxes_xyxy: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> list[dict[str, float]]:
    """Faces as plain numbers: pixels with two decimals, scores with four.

    Args:
        boxes_xyxy: (D, 4).
        scores: (D,).
    """
    return [
        {
            "x1": round(x1, 2), "y1": round(y1, 2), "x2": round(x2, 2), "y2": round(y2, 2),
            "width": round(x2 - x1, 2), "height": round(y2 - y1, 2), "score": round(score, 4),
        }
        for (x1, y1, x2, y2), score in zip(boxes_xyxy.tolist(), scores.tolist(), strict=True)
    ]  # fmt: skip


def document(
    pictures: Sequence[Picture], threshold: float, model: str, problems: Sequence[InputError] = ()
) -> dict[str, Any]:
    """The JSON of the page: boxes in pixels of the upright picture, continuous (width = x2 − x1)."""
    images = [
        {
            "image": picture.name,
            "width": picture.width,
            "height": picture.height,
            "protocol": picture.protocol,
            "faces": picture.count(threshold),
            "detections": detections(picture, threshold),
        }
        for picture in pictures
    ]
    head = {"model": model, "threshold": threshold, "box_format": "x1 y1 x2 y2, pixels of the upright picture"}
    return {**head, "images": images, **({"problems": [str(problem) for problem in problems]} if problems else {})}


def write_jpeg(image_rgb: Image8, path: Path, profile: bytes, quality: int = 92) -> Path:
    """The picture as a JPEG, in color at full resolution (4:4:4): thin colored frames stay sharp."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    try:
        Image.fromarray(image_rgb).save(content, "JPEG", quality=quality, subsampling=0, icc_profile=profile)
    except (OSError, ValueError) as error:  # more than 65,500 pixels wide or high is beyond the format
        height, width = image_rgb.shape[:2]
        raise InputError(f"a picture of {width} × {height} pixels cannot be written as JPEG") from error
    path.write_bytes(content.getvalue())
    return path


# How often the page hears how far it is.
REPORT_SECONDS = 0.5


@dataclass
class Film:
    """How far a film is, or what came of it.

    ``frames_expected`` None where the container does not say. ``out`` None until the film is whole.
    ``size_wh`` of the upright frames.
    ``faces`` per frame: ``index``, ``time_seconds`` and ``detections`` as :func:`detections` has them.
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
    protocol: "AnyProtocol",
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
    from fanet_lightning.detect.video import VideoReader, VideoWriter

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
                boxes_xyxy, scores = found.numpy()
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
