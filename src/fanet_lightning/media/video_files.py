"""Films and network streams as PyAV opens and decodes them; ``video_reader.py`` puts a thread and a queue around it."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError, first_line
from fanet_lightning.wording import counted

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = [
    "FilmSource",
    "TimedImage",
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
