"""Videos and cameras, frame by frame: VideoReader, VideoWriter, sound.

Films and cameras, frame by frame: ``VideoReader`` reads them, ``VideoWriter`` writes a film with the same times.

    with VideoReader("film.mp4") as reader, VideoWriter("redacted.mp4", reader) as writer:
        for frame in reader:
            writer.write(redact(frame.image_rgb, detector.detect(frame.image_rgb).boxes_xyxy), frame)
    print(reader.broken, writer.notes)

Files and network streams need the package ``av`` (PyAV: FFmpeg's libraries in a wheel), cameras OpenCV alone.
"""

import contextlib
import itertools
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, counted, first_line
from fanet_lightning.cli.files import replaced
from fanet_lightning.ops.draw import checked_image

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = [
    "CameraSource",
    "FilmSource",
    "Frame",
    "SoundTracks",
    "TimedImage",
    "VideoReader",
    "VideoWriter",
    "error_reason",
    "is_address",
    "left_out_note",
    "open_input",
    "quiet_log",
    "require_av",
    "shown_address",
]


ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
# What each kind of source may read while it is opened: a playlist that somebody sent must not fetch addresses or files.
FILE_PROTOCOLS = "file"
WEB_PROTOCOLS = "http,https,httpproxy,tcp,tls,crypto"
STREAM_PROTOCOLS = {
    "rtsp": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,crypto",
    "rtsps": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,crypto",
    "rtmp": "rtmp,rtmps,tcp,tls,crypto",
    "rtmps": "rtmp,rtmps,tcp,tls,crypto",
    "rtp": "rtp,udp",
    "srt": "srt,udp",
    "tcp": "tcp",
    "udp": "udp",
}
PICTURE_FORMATS = re.compile(r"^(image2|image2pipe|\w+_pipe)$")
# FFmpeg plays text files as terminal art and follows playlists; neither is what somebody means by a film.
NO_FILMS = {"tty", "bin", "adf", "idf", "xbin", "hls", "concat", "concatf", "dash", "imf", "lavfi"}
# Containers whose header says how long the film is, so that an early end can be noticed.
LENGTH_IN_HEADER = {"mov", "mp4", "matroska", "webm", "avi", "flv", "asf"}
SHORTEST_MISSING = 0.5  # seconds of a film's end that may be missing unnoticed: headers are not exact
USUAL_RATE = Fraction(25)  # frames per second, where a stream does not say
UNSPECIFIED = 2  # FFmpeg's number for a colour matrix that is not given
HD_HEIGHT = 720
OTHER_VIDEO = "other video stream"
MICROSECONDS = 1_000_000  # PyAV gives a container's start and duration in these


class TimedImage(NamedTuple):
    """A decoded picture, (H, W, 3) uint8 RGB, upright, and its time in seconds from the film's start."""

    image_rgb: npt.NDArray[np.uint8]
    time_seconds: float


def require_av(what: str) -> None:
    """InputError with the line to install it, where PyAV is missing."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError(f"{what}: needs the package av; pip install 'fanet-lightning[video]'") from error


def is_address(source: str | Path) -> bool:
    """Whether this is an address (``rtsp://…``) and not a path."""
    return isinstance(source, str) and ADDRESS.match(source) is not None


def shown_address(source: str | Path) -> str:
    """The source for messages and logs: without the password that camera addresses tend to hold."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", str(source)) if is_address(source) else str(source)


def open_input(source: str | Path, timeout_seconds: float) -> "InputContainer":
    """Open a film or a stream, demuxer only.

    Raises:
        InputError: one line that says why it cannot be opened.
    """
    import av

    quiet_log()
    shown = shown_address(source)
    if (match := ADDRESS.match(str(source))) and is_address(source):
        scheme = match[1].lower()
        protocols = WEB_PROTOCOLS if scheme in ("http", "https") else STREAM_PROTOCOLS.get(scheme)
        if protocols is None:
            known = ", ".join(["http", "https", *STREAM_PROTOCOLS])
            raise InputError(f"{shown}: {scheme}:// is none of {known}")
        options = {"protocol_whitelist": protocols}
        if scheme in ("rtsp", "rtsps"):
            options["rtsp_transport"] = "tcp"  # UDP loses packets, and a frame with them
        began = time.monotonic()
        try:
            return av.open(str(source), timeout=(timeout_seconds, timeout_seconds), options=options)
        except (av.FFmpegError, OSError) as error:
            # Interrupted by its timeout, FFmpeg reports whatever failed then: invalid data as often as a timeout.
            if isinstance(error, av.error.ExitError) or time.monotonic() - began >= timeout_seconds:
                line = f"{shown}: no answer within {timeout_seconds:g} s; check the address and the network"
                raise InputError(line) from error
            raise InputError(f"{shown}: cannot be opened ({error_reason(error)}); check the address") from error
    path = Path(source)
    if path.is_dir():
        raise InputError(f"{shown}: a folder, not a video file")
    if not path.exists():
        raise InputError(f"{shown}: no such file")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{shown}: the file is empty")
        # An absolute path, because FFmpeg would take a name such as "a:b.mp4" for an address.
        return av.open(str(path.absolute()), options={"protocol_whitelist": FILE_PROTOCOLS})
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{shown}: not a video that can be read ({error_reason(error)})") from error


def quiet_log() -> None:
    """Keep FFmpeg's own lines off the screen: what matters is raised or counted."""
    import av.logging

    av.logging.set_level(None)


def error_reason(error: BaseException) -> str:
    """What the system or FFmpeg says went wrong, without numbers and paths."""
    return str(getattr(error, "strerror", None) or first_line(error))


class FilmSource:
    """A film or a network stream, opened; ``images()`` decodes it once from the start.

    Attributes:
        frames_per_second: average rate of the picture track.
        frame_count: from the header, else length x rate; None for a stream.
        duration_seconds: None for a stream, and where the file does not say.
        is_live: frames come in real time and have no end.
        time_base: the unit of the frame times, in seconds.
        start_seconds: the film's own clock at its beginning; frame times are counted from there.
        sample_aspect_ratio: width / height of one pixel, 1 unless the film is anamorphic.
        is_turned: the picture track lies on its side; known after the first image, which is given upright.
        left_out: what the file holds beside this track and its sound: how many of each kind of stream.
        broken: after the last image: one line when the film breaks off before its end, else None.
        frames_skipped: damaged frames that could not be decoded.
    """

    def __init__(self, source: str | Path, timeout_seconds: float) -> None:
        require_av(shown_address(source))
        self.name = shown_address(source)
        self.broken: str | None = None
        self.frames_skipped = 0
        self.is_turned = False
        self._timeout_seconds = timeout_seconds
        self.container = open_input(source, timeout_seconds)
        try:
            self.stream = self._picture_stream()
            self.stream.thread_type = "AUTO"
        except BaseException:
            self.container.close()
            raise
        others = (s for s in self.container.streams if s.type != "audio" and s.index != self.stream.index)
        self.left_out = Counter(map(_stream_in_words, others))
        duration = self.container.duration
        self.duration_seconds = duration / MICROSECONDS if duration and duration > 0 else None
        scheme = str(source).split(":", 1)[0].lower() if is_address(source) else ""
        self.is_live = scheme in STREAM_PROTOCOLS or (bool(scheme) and self.duration_seconds is None)
        if self.is_live:
            self.duration_seconds = None
        start = self.container.start_time
        self.start_seconds = start / MICROSECONDS if start is not None else 0.0
        self.frames_per_second = float(self.stream.average_rate or self.stream.guessed_rate or USUAL_RATE)
        self.time_base = Fraction(self.stream.time_base or Fraction(1, 90_000))
        self.frame_count = self._frame_count()
        self.sample_aspect_ratio = Fraction(self.stream.sample_aspect_ratio or 1)
        if self.container.format.name == "avi" and self.stream.frames > 0 and self.duration_seconds is not None:
            # FFmpeg guesses an AVI's duration from its size where the index at the end is missing.
            self.duration_seconds = self.stream.frames / self.frames_per_second
        self._end_seconds = 0.0

    def close(self) -> None:
        """Close the file; images that were given stay valid."""
        self.container.close()

    def images(self) -> Iterator[TimedImage]:
        """Every frame that can be decoded, in the order of showing."""
        last = -1.0
        began: float | None = None
        for decoded in self._decoded():
            now = time.monotonic()
            began = now if began is None else began
            if self.is_live:
                seconds = now - began
            elif decoded.pts is None:
                seconds = last + 1 / self.frames_per_second if last >= 0 else 0.0
            else:
                seconds = float(decoded.pts * Fraction(decoded.time_base or self.time_base)) - self.start_seconds
            last = seconds
            image_rgb, self.is_turned = _upright(decoded)
            yield TimedImage(image_rgb, seconds)

    def _decoded(self) -> Iterator["VideoFrame"]:
        """Decoded frames; damaged ones are counted, and an early end is written to ``broken``."""
        import av

        packets = self.container.demux()
        while True:
            try:
                packet = next(packets, None)
            except av.error.ExitError:
                self.broken = self._broken_line(f"nothing came for {self._timeout_seconds:g} s")
                return
            except av.FFmpegError as error:
                self.broken = self._broken_line(error_reason(error))
                return
            if packet is None:
                break
            self._note_end(packet)
            if packet.stream is not self.stream and packet.stream_index != self.stream.index:
                continue
            try:
                frames = self.stream.decode(packet)
            except av.error.EOFError:
                continue
            except av.error.BlockingIOError:
                # After damage a decoder may refuse packets until it is emptied.
                self.stream.codec_context.flush_buffers()
                self.frames_skipped += 1
                continue
            except av.FFmpegError:
                self.frames_skipped += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.frames_skipped += 1
                else:
                    yield frame
        if self._ends_early():
            self.broken = self._broken_line("the rest is missing or damaged")

    def _note_end(self, packet: Any) -> None:
        if packet.pts is not None and packet.time_base:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self.start_seconds
            self._end_seconds = max(self._end_seconds, end)

    def _ends_early(self) -> bool:
        if self.is_live or self.duration_seconds is None:
            return False
        if LENGTH_IN_HEADER.isdisjoint(self.container.format.name.split(",")):
            return False
        missing = self.duration_seconds - self._end_seconds
        return missing > max(SHORTEST_MISSING, 3 / self.frames_per_second)

    def _broken_line(self, reason: str) -> str:
        of = f" of {self.duration_seconds:.1f} s" if self.duration_seconds is not None else ""
        return f"{self.name}: breaks off after {self._end_seconds:.1f} s{of} ({reason})"

    def _picture_stream(self) -> "VideoStream":
        from av.stream import Disposition

        formats = set(self.container.format.name.split(","))
        if any(PICTURE_FORMATS.match(name) for name in formats):
            raise InputError(f"{self.name}: a picture, not a video")
        if not is_address(self.name) and formats & NO_FILMS:
            raise InputError(f"{self.name}: not a video (FFmpeg takes it for {self.container.format.name})")
        # The cover of a music file is a picture track too.
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kind = "sound, but no moving pictures" if self.container.streams.audio else "no moving pictures"
            raise InputError(f"{self.name}: holds {kind}")
        best = self.container.streams.best("video")
        stream = next((s for s in streams if best is not None and s.index == best.index), streams[0])
        if stream.codec_context is None:
            raise InputError(f"{self.name}: its pictures are of a codec that this FFmpeg does not know")
        return stream

    def _frame_count(self) -> int | None:
        if self.is_live:
            return None
        if self.stream.frames > 0:
            return self.stream.frames
        if self.duration_seconds is None:
            return None
        return max(1, round(self.duration_seconds * self.frames_per_second))


def left_out_note(kinds: Mapping[str, int]) -> str:
    """``left out: 1 other video stream, 2 subtitle streams``."""
    return "left out: " + ", ".join(counted(count, kind) for kind, count in kinds.items())


def _stream_in_words(stream: "Stream") -> str:
    from av.stream import Disposition

    if stream.type == "video":
        return "cover picture" if stream.disposition & Disposition.attached_pic else OTHER_VIDEO
    return "attachment" if stream.type == "attachment" else f"{stream.type} stream"


def _upright(frame: "VideoFrame") -> tuple[npt.NDArray[np.uint8], bool]:
    """The frame as (H, W, 3) RGB, turned and mirrored as its display matrix says, and whether it lay on its side.

    Phones film sideways and write the matrix.
    """
    # Where a film does not say which colour matrix it was made with, players go by its height, and so does this.
    unsaid = frame.colorspace == UNSPECIFIED and frame.height >= HD_HEIGHT
    image = np.asarray(frame.to_ndarray(format="rgb24", src_colorspace="ITU709" if unsaid else None), dtype=np.uint8)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image, False
    # x' = a x + c y, y' = b x + d y in 16.16 fixed point; the third of each row is projective, always 0.
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()  # type: ignore[call-overload]
    turned = a == 0 and d == 0
    if turned:
        image = image.transpose(1, 0, 2)
        mirror_x, mirror_y = c < 0, b < 0
    elif b == 0 and c == 0:
        mirror_x, mirror_y = a < 0, d < 0
    else:
        return image, False  # an angle that is no multiple of 90 degrees: left as it was filmed
    return np.ascontiguousarray(image[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]), turned


USUAL_CAMERA_RATE = 30.0  # frames per second, where the driver does not say
FAILED_READS = 30  # frames that may be missing one after another before the camera counts as gone


class CameraSource:
    """A camera by its number, with the attributes of ``FilmSource``; it has no end, no length and no sound."""

    is_live = True
    frame_count: int | None = None
    duration_seconds: float | None = None
    start_seconds = 0.0
    time_base = Fraction(1, 90_000)
    sample_aspect_ratio = Fraction(1)
    is_turned = False

    def __init__(self, index: int) -> None:
        import cv2

        self.name = f"camera {index}"
        self.broken: str | None = None
        self.frames_skipped = 0
        self.left_out: dict[str, int] = {}
        # Asked first, because OpenCV's own complaint goes straight to the screen.
        device = Path(f"/dev/video{index}")
        if index < 0 or (sys.platform == "linux" and not device.exists()):
            found = sorted(str(path) for path in Path("/dev").glob("video*")) if sys.platform == "linux" else []
            known = f"there are {', '.join(found)}" if found else "no camera is connected, or this user may not see it"
            raise InputError(f"{self.name}: {device if sys.platform == 'linux' else index} is not there; {known}")
        self._capture = cv2.VideoCapture(index)
        if not self._capture.isOpened():
            self._capture.release()
            raise InputError(f"{self.name}: cannot be opened; another program may be using it, or it is no camera")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = float(rate) if 1 <= rate <= 1000 else USUAL_CAMERA_RATE

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()

    def images(self) -> Iterator[TimedImage]:
        """Frames with the time since the first one, for as long as the camera gives any."""
        failed = 0
        began: float | None = None
        while failed < FAILED_READS:
            read, image_bgr = self._capture.read()
            if not read or image_bgr is None:
                failed += 1
                time.sleep(0.01)
                continue
            self.frames_skipped += failed if began is not None else 0
            failed = 0
            now = time.monotonic()
            began = now if began is None else began
            yield TimedImage(np.ascontiguousarray(image_bgr[..., ::-1], dtype=np.uint8), now - began)
        self.broken = f"{self.name}: gives no more pictures"


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


# Codecs that a container takes by its specification, but that common players refuse there.
NOT_PLAYED = {"mp4": ("pcm_",), "mov": ()}
# Encoders of MP3 and AAC begin with a packet before time 0. AVI cannot say so: FFmpeg would move the pictures instead.
NO_TIMES_BELOW_ZERO = {"avi"}
# What sound is encoded as where it cannot be copied; Opus knows only a few rates, 48 kHz is its own.
ENCODERS = {"webm": ("libopus", "opus"), "": ("aac",)}
OPUS_RATE = 48_000


class SoundTracks:
    """All sound tracks of a film, read from the file a second time and written as far as the pictures have come.

    So nothing is held in memory but a packet, whatever the film's length. A track that the container can hold is copied
    packet by packet, unchanged; any other is encoded again; what cannot be kept at all is said in ``notes``.

    Args:
        source: the film.
        start_seconds: its clock at the beginning; times are counted from there.
        output: the container, before its first packet.
        kind: name of its format: ``mp4``, ``matroska``, ...
    """

    def __init__(self, source: "str | Path", start_seconds: float, output: "OutputContainer", kind: str) -> None:
        self.notes: list[str] = []
        self._start = start_seconds
        self._output = output
        self._from_zero = kind in NO_TIMES_BELOW_ZERO
        self._input = open_input(source, timeout_seconds=10.0)
        self._tracks: dict[int, tuple[Any, bool]] = {}  # index of the stream → (stream written, encoded again)
        self._waiting: Any = None
        for stream in self._input.streams.audio:
            self._add(stream, kind)
        self._packets: Iterator[Any] = self._demuxed() if self._tracks else iter(())

    @property
    def kept(self) -> bool:
        """Whether there is a sound track in the film that is written."""
        return bool(self._tracks)

    def copy_until(self, seconds: float) -> None:
        """Write every packet that begins before ``seconds`` from the film's start; ``inf`` for the rest."""
        while True:
            packet = self._waiting if self._waiting is not None else next(self._packets, None)
            self._waiting = None
            if packet is None:
                return
            begins = float((packet.dts if packet.pts is None else packet.pts) * packet.time_base) - self._start
            if begins >= seconds:
                self._waiting = packet
                return
            self._write(packet)

    def finish(self) -> None:
        """Write what the encoders still hold."""
        for written, encoded in self._tracks.values():
            if encoded:
                self._mux(written.encode(None))

    def close(self) -> None:
        """Close the source."""
        self._input.close()

    def _demuxed(self) -> Iterator[Any]:
        """Packets of the tracks that are kept; an early end is no failure: the pictures ended there too."""
        import av

        streams = [self._input.streams[index] for index in self._tracks]
        try:
            for packet in self._input.demux(*streams):
                if packet.dts is not None:  # the empty packets at the end only tell decoders to flush
                    yield packet
        except av.FFmpegError as error:
            self.notes.append(f"the sound breaks off ({error_reason(error)})")

    def _add(self, stream: Any, kind: str) -> None:
        """Give one sound track of the source its counterpart."""
        import av

        if stream.codec_context is None:
            self.notes.append("a sound track of an unknown codec is left out")
            return
        name = stream.codec_context.codec.canonical_name
        refused = name.startswith(NOT_PLAYED.get(kind, ())) if NOT_PLAYED.get(kind) else False
        if name in self._output.supported_codecs and not refused:
            try:
                copied = self._output.add_stream_from_template(stream)
                copied.metadata.update(stream.metadata)
                self._tracks[stream.index] = (copied, False)
                return
            except (ValueError, av.FFmpegError):
                pass  # the container lists the codec, but not this variant: encode it
        for encoder_name in ENCODERS.get(kind, ENCODERS[""]):
            if encoder_name not in av.codecs_available:
                continue
            rate = OPUS_RATE if "opus" in encoder_name else min(int(stream.rate or 48_000), 96_000)
            written: Any = self._output.add_stream(encoder_name, rate=rate)
            channels = stream.codec_context.channels
            written.codec_context.layout = "mono" if channels == 1 else "stereo"
            self._tracks[stream.index] = (written, True)
            wider = f", {channels} channels mixed to 2" if channels > 2 else ""
            self.notes.append(f"sound encoded again, {name} to {encoder_name.removeprefix('lib')}{wider}")
            return
        self.notes.append(f"the sound ({name}) is lost: .{kind} cannot hold it, and no encoder is there")

    def _write(self, packet: Any) -> None:
        import av

        written, encoded = self._tracks[packet.stream.index]
        try:
            if not encoded:
                shift = round(self._start / packet.time_base)
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.dts -= shift
                packet.stream = written
                self._mux([packet])
                return
            for frame in packet.decode():
                if frame.pts is not None:
                    frame.pts -= round(self._start / frame.time_base)
                self._mux(written.encode(frame))
        except av.error.InvalidDataError as error:
            note = f"damaged sound is left out ({error_reason(error)})"
            if note not in self.notes:
                self.notes.append(note)

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if not (self._from_zero and packet.pts is not None and packet.pts < 0):
                self._output.mux(packet)


def opened_sound(
    source: "str | Path | int", start_seconds: float, output: "OutputContainer", kind: str, notes: list[str]
) -> SoundTracks | None:
    """The sound of a film, or None with a note, where the film cannot be opened a second time."""
    if isinstance(source, int):
        return None
    try:
        return SoundTracks(source, start_seconds, output, kind)
    except InputError as error:
        notes.append(f"the sound is lost: {error}")
        return None


class _Container(NamedTuple):
    """How a suffix is written: FFmpeg's name of the format, and the encoders to try in this order."""

    kind: str
    encoders: tuple[str, ...]


CONTAINERS = {
    ".mp4": _Container("mp4", ("libx264", "mpeg4")),
    ".m4v": _Container("mp4", ("libx264", "mpeg4")),
    ".mov": _Container("mov", ("libx264", "mpeg4")),
    ".mkv": _Container("matroska", ("libx264", "mpeg4")),
    ".webm": _Container("webm", ("libvpx-vp9", "libvpx")),
    ".avi": _Container("avi", ("mpeg4",)),  # H.264 shows frames out of order, which AVI cannot say
}
# Quick settings: the encoder shares the processor with the detector. crf and qscale are near the point where no
# difference is seen; libvpx's is its own scale.
OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "mpeg4": {"qmin": "2", "qmax": "4"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "lag-in-frames": "0", "crf": "30", "b": "0"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "4M"},
}
FINEST_MPEG4 = 60_000  # MPEG-4 part 2 counts time in 16 bits; 24, 25, 30, 50 and 60 divide this
BT709 = 1  # the number of this colour matrix, of its primaries and its transfer curve in FFmpeg's three lists
LIMITED_RANGE = 1


class VideoWriter:
    """Write frames as a film; a context manager.

    ``write`` takes each frame together with the ``Frame`` it was made from: the film shows it at the same time, so a
    variable frame rate stays, and frames that were left out leave no gap in the sound. Sound tracks are copied packet
    by packet where the container can hold them, else encoded again; of a live source none is kept. ``sound_kept`` and
    ``notes`` (one line each) tell after the first frame what became of it.

    The film is written under a temporary name in its folder and gets ``path`` when it is whole: at the end of the
    ``with`` block, or by ``close()``. An exception in the block, Ctrl-C too, removes it. To keep what is done instead,
    catch it inside the block and call ``close(keep=True)`` before going on: the film then ends with the last frame.

    Pictures of odd width or height get one more column or row (a copy of the last one): 4:2:0 video has even sizes.

    Args:
        path: where to; the suffix decides: ``.mp4``, ``.m4v``, ``.mov``, ``.mkv`` (H.264), ``.webm`` (VP9), ``.avi``
            (MPEG-4). AVI knows no times of frames, only a rate: they are rounded to it.
        reader: the film that the frames come from: its rate, times and sound.
        size_wh: width and height of the frames that will be written; by default that of the first one.

    Raises:
        InputError: no such kind of film, no encoder for it, a folder that cannot be written, a full disk, or the
            package ``av`` is missing.
        ValueError: a frame that is not (H, W, 3) uint8 or not of the film's size.
    """

    def __init__(self, path: str | Path, reader: VideoReader, size_wh: tuple[int, int] | None = None) -> None:
        require_av(str(path))
        self.path = Path(path)
        self.notes: list[str] = []
        self.frames_written = 0
        self._reader = reader
        self._size_wh = size_wh
        self._container = _container_for(self.path)
        self._encoder = _encoder_for(self.path, self._container)
        self._output: OutputContainer | None = None
        self._stream: Any = None
        self._sound: SoundTracks | None = None
        self._unfinished: contextlib.ExitStack | None = None
        self._closed = False
        # AVI cannot say which colour matrix was used: players take the older one.
        self._colours = "ITU601" if self._container.kind == "avi" else "ITU709"
        self._last_pts = -1
        self._last_seconds = 0.0

    @property
    def sound_kept(self) -> bool:
        """Whether the film has the sound of its source; known after the first frame."""
        return self._sound is not None and self._sound.kept

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=kind is None)

    def write(self, frame_rgb: npt.NDArray[np.uint8], frame: Frame) -> None:
        """Add a picture, to be shown when ``frame`` is.

        Args:
            frame_rgb: (H, W, 3) uint8, H and W those of the first one.
            frame: the frame of the reader that it was made from.
        """
        import av

        if self._closed:
            raise ValueError(f"{self.path}: the film is closed")
        image = checked_image(frame_rgb)
        height, width = image.shape[:2]
        if self._size_wh is None:
            self._size_wh = (width, height)
        if (width, height) != self._size_wh:
            raise ValueError(f"{self.path}: a frame of {width}x{height}, the film has {self._size_wh}")
        try:
            if self._output is None:
                self._start()
            assert self._output is not None
            self._keep_up(frame.time_seconds)
            picture = av.VideoFrame.from_ndarray(_even(image), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=self._colours, dst_color_range="MPEG"
            )
            pts = max(round(frame.time_seconds / self._time_base), self._last_pts + 1)
            picture.pts, picture.time_base = pts, self._time_base
            self._output.mux(self._stream.encode(picture))
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{self.path}: cannot be written ({error_reason(error)})") from error
        self._last_pts, self._last_seconds = pts, frame.time_seconds
        self.frames_written += 1

    def close(self, keep: bool = True) -> None:
        """End the film; to be called again without harm.

        Args:
            keep: False removes what was written. True gives it its name; where no frame was written there is no film.

        Raises:
            InputError: the end could not be written; nothing is left under the temporary name.
        """
        import av

        if self._closed:
            return
        self._closed = True
        if self._unfinished is None:
            return  # nothing was written
        keep = keep and self.frames_written > 0
        try:
            if keep:
                try:
                    self._finish()
                except (av.FFmpegError, OSError) as error:
                    raise InputError(f"{self.path}: cannot be written ({error_reason(error)})") from error
        except BaseException:
            self._abandon()
            raise
        if keep:
            self._unfinished.close()
        else:
            self._abandon()

    def _start(self) -> None:
        """Open the file and its tracks: with the first frame, because the size is known from then on."""
        import av

        assert self._size_wh is not None
        width, height = (side + side % 2 for side in self._size_wh)
        self._unfinished = contextlib.ExitStack()
        temporary = self._unfinished.enter_context(replaced(self.path))
        self._output = av.open(str(temporary.absolute()), "w", format=self._container.kind)
        rate = Fraction(self._reader.frames_per_second).limit_denominator(1001)
        stream: Any = self._output.add_stream(self._encoder, rate=rate, options=OPTIONS[self._encoder])
        self._time_base = _time_base_for(self._encoder, self._container.kind, self._reader.time_base, rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = self._time_base
        context.thread_type = "AUTO"
        if self._container.kind != "avi":
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
        if self._reader.sample_aspect_ratio != 1:
            context.sample_aspect_ratio = self._reader.sample_aspect_ratio
        self._stream = stream
        if self._container.kind == "avi":
            self.notes.append(f"AVI holds no times of frames: they are rounded to {float(rate):g} frames per second")
        if self._reader.left_out:
            self.notes.append(left_out_note(self._reader.left_out))
        if not self._reader.is_live:
            self._sound = opened_sound(
                self._reader.source, self._reader.start_seconds, self._output, self._container.kind, self.notes
            )
            if self._sound is not None:
                self.notes += self._sound.notes
                self._sound.notes = self.notes

    def _keep_up(self, seconds: float) -> None:
        """Sound before the pictures that it belongs to, so that the container need not hold pictures back."""
        if self._sound is not None:
            self._sound.copy_until(seconds)

    def _finish(self) -> None:
        """Flush the encoders, add the sound up to the end of the last frame, and write the file's index."""
        assert self._output is not None
        whole = self._reader.finished and self._reader.broken is None
        # Sound may go on after the last picture; a film that was cut short ends with its last frame.
        self._keep_up(float("inf") if whole else self._last_seconds + 1 / self._reader.frames_per_second)
        self._output.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish()
            self._sound.close()
        self._output.close()

    def _abandon(self) -> None:
        """Close and remove the unfinished file."""
        import av

        assert self._unfinished is not None
        if self._sound is not None:
            self._sound.close()
        if self._output is not None:
            with contextlib.suppress(av.FFmpegError, OSError):
                self._output.close()
        # ``replaced`` renames its file unless an exception passes through it.
        with contextlib.suppress(_Abandoned):
            self._unfinished.__exit__(_Abandoned, _Abandoned(), None)


class _Abandoned(Exception):
    """Tells ``replaced`` to remove the file."""


def _container_for(path: Path) -> _Container:
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        raise InputError(f"{path}: films are written as {', '.join(CONTAINERS)}, not {path.suffix or 'without suffix'}")
    return container


def _encoder_for(path: Path, container: _Container) -> str:
    import av

    quiet_log()
    encoder = next((name for name in container.encoders if name in av.codecs_available), None)
    if encoder is None:
        raise InputError(f"{path}: this build of av has no encoder {' or '.join(container.encoders)}; choose .mkv")
    return encoder


def _time_base_for(encoder: str, kind: str, source: Fraction, rate: Fraction) -> Fraction:
    """The unit of the frame times: the source's own, as far as container and encoder can hold it."""
    if kind == "avi":
        return 1 / rate
    if encoder == "mpeg4" and source.denominator > FINEST_MPEG4:
        return Fraction(1, FINEST_MPEG4)
    return source


def _even(image_rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The picture with even width and height; the last column and row are repeated where needed."""
    import cv2

    height, width = image_rgb.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return np.ascontiguousarray(image_rgb)
    padded = cv2.copyMakeBorder(image_rgb, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return np.asarray(padded, dtype=np.uint8)
