"""``VideoReader``: the frames of a film, a network stream or a camera, decoded ahead in a thread."""

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.media.camera import CameraSource
from fanet_lightning.media.video_files import FilmSource, TimedImage

__all__ = ["Frame", "VideoReader"]

LOOK_AHEAD = 8  # frames decoded before they are asked for ...
LOOK_AHEAD_BYTES = 256 * 2**20  # ... unless they are larger than this together
PATIENCE = 2.0  # seconds that closing waits for the thread; a stream that hangs is left to its own timeout


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a film.

    Attributes:
        image_rgb: (H, W, 3) uint8, upright; all frames of a film have the size of its first one.
        time_seconds: when it is shown, from the start of the film; of a camera or stream, when it arrived.
        index: 0, 1, …; of a live source with gaps where frames were dropped.
    """

    image_rgb: npt.NDArray[np.uint8]
    time_seconds: float
    index: int


class VideoReader:
    """Iterate over the frames of a film file, a network stream or a camera; a context manager, to be read once.

    A thread decodes up to 8 frames (256 MiB) ahead. A film waits for its reader; a live source (``is_live``) does not:
    while the reader is busy its oldest waiting frames are dropped and counted, so what is given is always recent.

    A film that breaks off raises nothing: all its good frames are given, the loop ends, and ``broken`` says in one line
    where and why. (Raised, it would look to a ``VideoWriter`` around the loop like any failure, and the good part would
    be thrown away.) A file that is cut short is noticed where its header tells its length (mp4, mov, mkv, webm, avi,
    flv); a transport stream (.ts) has no end that could be missed.

    Args:
        source: path of a film; ``rtsp://``, ``http://`` and other addresses; the number of a camera (0 or "0").
        timeout_seconds: how long a network source may take to answer, and to give the next frame.

    Raises:
        InputError: there is no such file or camera, no answer, or nothing in it that can be shown; or, for films and
            streams, the package ``av`` is missing.
    """

    def __init__(self, source: str | Path | int, *, timeout_seconds: float = 10.0) -> None:
        self.source = source
        self._source: FilmSource | CameraSource
        if isinstance(source, int) or (isinstance(source, str) and source.isascii() and source.isdigit()):
            self._source = CameraSource(int(source))
        else:
            self._source = FilmSource(source, timeout_seconds)
        self.frames_dropped = 0
        self.finished = False
        self._began = False
        self._stop = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._queue: deque[Frame | None] = deque()
        self._changed = threading.Condition()
        try:
            # The first frame is decoded at once: its size is the film's, and a file without one is no film.
            self._images = self._source.images()
            first = next(self._images, None)
            if first is None:
                raise InputError(self._source.broken or f"{self.name}: holds no frame that can be decoded")
        except BaseException:
            self._source.close()
            raise
        self._first: TimedImage = first
        height, width = first.image_rgb.shape[:2]
        self._size_wh = (width, height)
        self._ahead = max(1, min(LOOK_AHEAD, LOOK_AHEAD_BYTES // first.image_rgb.nbytes))

    @property
    def name(self) -> str:
        """The source for messages: a path, an address without its password, or ``camera 0``."""
        return self._source.name

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the upright frames in pixels."""
        return self._size_wh

    @property
    def frames_per_second(self) -> float:
        """Average rate; of a camera what its driver promises."""
        return self._source.frames_per_second

    @property
    def frame_count(self) -> int | None:
        """Frames by the header or, where it has no such figure, length x rate; None for live sources."""
        return self._source.frame_count

    @property
    def duration_seconds(self) -> float | None:
        """Length by the header; None for live sources and where the file does not say."""
        return self._source.duration_seconds

    @property
    def is_live(self) -> bool:
        """Whether frames come in real time and without an end (camera, RTSP)."""
        return self._source.is_live

    @property
    def start_seconds(self) -> float:
        """The film's own clock at its beginning; ``time_seconds`` counts from there."""
        return self._source.start_seconds

    @property
    def time_base(self) -> Fraction:
        """The unit, in seconds, that frame times are whole multiples of."""
        return self._source.time_base

    @property
    def sample_aspect_ratio(self) -> Fraction:
        """Width / height of one pixel of an upright frame."""
        ratio = self._source.sample_aspect_ratio
        return 1 / ratio if self._source.is_turned else ratio

    @property
    def left_out(self) -> Mapping[str, int]:
        """Streams beside the one that is shown and its sound, by kind; nobody looks at them or writes them."""
        return self._source.left_out

    @property
    def broken(self) -> str | None:
        """After the loop: one line when the source broke off before its end, else None."""
        return self._source.broken

    @property
    def frames_skipped(self) -> int:
        """Damaged frames that could not be decoded and were left out."""
        return self._source.frames_skipped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and close the source; to be called again without harm."""
        with self._changed:
            self._stop = True
            self._queue.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                return  # closing under a thread that waits for the network would crash; it closes the source itself
        self._source.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order.

        Raises:
            RuntimeError: they were read before.
        """
        if self._began:
            raise RuntimeError(f"{self.name}: a film is read once; open it again")
        self._began = True
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        self._thread = threading.Thread(target=self._decode, name="video-reader", daemon=True)
        self._thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stop)
                if self._stop:
                    return
                frame = self._queue.popleft()
                self._changed.notify_all()
            if frame is None:
                if self._failure is not None:
                    raise self._failure
                self.finished = True
                return
            yield frame

    def _decode(self) -> None:
        """The thread: decode until the end, or until the reader is closed."""
        try:
            for index, image in enumerate(itertools.chain([self._first], self._images)):
                frame = Frame(_sized(image.image_rgb, self._size_wh), image.time_seconds, index)
                if not self._put(frame):
                    break
        except BaseException as error:
            self._failure = error
        with self._changed:
            if self._stop:
                self._source.close()
            self._queue.append(None)
            self._changed.notify_all()

    def _put(self, frame: Frame) -> bool:
        """Hand a frame over; False when the reader has been closed."""
        with self._changed:
            if self.is_live and len(self._queue) >= self._ahead:
                self._queue.popleft()
                self.frames_dropped += 1
            self._changed.wait_for(lambda: len(self._queue) < self._ahead or self._stop)
            if not self._stop:
                self._queue.append(frame)
                self._changed.notify_all()
            return not self._stop


def _sized(image_rgb: npt.NDArray[np.uint8], size_wh: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The picture in the film's size: some films change theirs midway."""
    if image_rgb.shape[1::-1] == size_wh:
        return image_rgb
    import cv2

    return np.asarray(cv2.resize(image_rgb, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
