"""Videos, streams and cameras, frame by frame: VideoReader, and VideoWriter with the same times and sound.

Files and network streams need the package ``av`` (PyAV: FFmpeg's libraries in a wheel), cameras OpenCV alone.
"""

import contextlib
import itertools
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, check, first_line, import_extra
from fanet_lightning.data.images import Image8
from fanet_lightning.detect.inputs import STREAM_SCHEMES, without_passwords
from fanet_lightning.ops.draw import checked_image

try:
    import av
    import av.logging

    # FFmpeg's own lines stay off the screen: what matters is raised or counted.
    av.logging.set_level(None)
except ImportError:  # an extra
    av = None  # type: ignore[assignment]

__all__ = ["Frame", "VideoReader", "VideoWriter"]

# What may be read while a source is opened: a playlist that somebody sent must not fetch addresses or files.
_NETWORK_PROTOCOLS = ",".join(("http", "https", *STREAM_SCHEMES, "httpproxy", "srtp", "tls", "crypto"))
# FFmpeg plays text as terminal art, images as videos of one frame, and follows playlists to other files.
_NOT_VIDEOS = re.compile(r"tty|bin|adf|idf|xbin|hls|concatf?|dash|imf|lavfi|image2|\w+_pipe")
# Containers whose header says how long the video is, so that an early end can be noticed.
_LENGTH_IN_HEADER = {"mov", "mp4", "matroska", "webm", "flv", "asf"}
_SHORTEST_MISSING = 0.5  # seconds of a video's end that may be missing unnoticed: headers are not exact
_USUAL_RATE = 25.0  # frames per second, where a stream or a driver does not say
_FAILED_READS = 30  # frames that may be missing one after another before a camera counts as gone
_UNSPECIFIED = 2  # FFmpeg's number for a color matrix that is not given
_HD_HEIGHT = 720
_MICROSECONDS = 1_000_000  # PyAV gives a container's start and duration in these
_LOOK_AHEAD = 8  # frames decoded before they are asked for ...
_LOOK_AHEAD_BYTES = 256 * 2**20  # ... unless they are larger than this together
_PATIENCE = 2.0  # seconds that closing waits for the thread; a stream that hangs is left to its own timeout


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a video.

    Attributes:
        image_rgb: (H, W, 3) uint8, upright; all frames of a video have the size of its first one.
        time_seconds: when it is shown, from the start of the video; of a camera or stream, when it arrived.
        index: 0, 1, …; of a live source with gaps where frames were dropped.
    """

    image_rgb: Image8
    time_seconds: float
    index: int


_TimedImage = tuple[Image8, float]


class VideoReader:
    """Iterate over the frames of a video file, a network stream or a camera; a context manager, to be read once.

    A thread decodes up to 8 frames (256 MiB) ahead. A file waits for its reader; of a live source the oldest waiting
    frames are dropped and counted while the reader is busy. A video that breaks off raises nothing, for a
    ``VideoWriter`` around the loop would throw the good part away: the loop ends, and ``broken`` says where and why.

    Attributes:
        name: the source for messages: a path, an address without its password, or ``camera 0``.
        size_wh: width and height of the upright frames in pixels.
        frames_per_second: average rate; of a camera what its driver promises.
        frame_count: by the header; None for live sources and where the file does not say.
        is_live: frames come in real time and without an end (camera, RTSP).
        start_seconds: the video's own clock at its beginning; ``time_seconds`` counts from there.
        time_base: the unit, in seconds, that frame times are whole multiples of.
        broken: after the loop: one line when the source broke off before its end, else None. That a file is cut short
            is noticed where its header tells its length (mp4, mov, mkv, webm, flv).
        finished: the loop has come to the end.
        frames_skipped: damaged frames that could not be decoded and were left out.
        frames_dropped: frames of a live source that came while the reader was busy.

    Args:
        source: path of a video; ``rtsp://``, ``http://`` and other addresses; the number of a camera (0 or "0").
        timeout_seconds: how long a network source may take to answer, and to give the next frame.

    Raises:
        InputError: no such file or camera, no answer, nothing that can be shown, or the package ``av`` is missing.
    """

    def __init__(self, source: str | Path | int, *, timeout_seconds: float = 10.0) -> None:
        self.source = source
        self.frame_count: int | None = None
        self.is_live = True
        self.start_seconds = 0.0
        self.time_base = Fraction(1, 90_000)
        self.broken: str | None = None
        self.finished = False
        self.frames_skipped = self.frames_dropped = 0
        self._timeout_seconds = timeout_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._decode, name="video-reader", daemon=True)
        with contextlib.ExitStack() as opened:
            if isinstance(source, int) or (isinstance(source, str) and source.isdecimal()):
                images = self._camera_images(int(source), opened)
            else:
                images = self._stream_images(source, opened)
            # The first frame is decoded at once: its size is the video's, and a file without one is no video.
            first = next(images, None)
            self._began = time.monotonic()
            if first is None:
                raise InputError(self.broken or f"{self.name}: holds no frame that can be decoded")
            self._source = opened.pop_all()
        self._images = itertools.chain([first], images)
        height, width = first[0].shape[:2]
        self.size_wh = (width, height)
        ahead = max(1, min(_LOOK_AHEAD, _LOOK_AHEAD_BYTES // first[0].nbytes))
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(ahead)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and close the source; may be called again."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
        # Closing under a thread that waits for the network would crash; it closes the source itself.
        if not self._thread.is_alive():
            self._source.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order; RuntimeError at the first one: they were read before."""
        self._thread.start()
        while not self._stop.is_set():
            frame = self._queue.get()
            if isinstance(frame, BaseException):
                raise frame
            if frame is None:
                self.finished = True
                return
            yield frame

    def _decode(self) -> None:
        """The thread: decode until the end, or until the reader is closed."""
        try:
            for index, (image, seconds) in enumerate(self._images):
                if self.is_live:
                    seconds = time.monotonic() - self._began if index else 0.0
                if image.shape[1::-1] != self.size_wh:  # some videos change theirs midway
                    image = np.asarray(cv2.resize(image, self.size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
                if self.is_live and self._queue.full():
                    with contextlib.suppress(queue.Empty):
                        self._queue.get_nowait()
                        self.frames_dropped += 1
                self._put(Frame(image, seconds, index))
                if self._stop.is_set():
                    break
            self._put(None)
        except BaseException as error:
            self._put(error)
        if self._stop.is_set():
            self._source.close()

    def _put(self, item: Frame | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return

    def _camera_images(self, index: int, opened: contextlib.ExitStack) -> Iterator[_TimedImage]:
        """Images for as long as the camera gives any."""
        self.name = f"camera {index}"
        # Asked first, because OpenCV may crash where there is none.
        is_there = index >= 0 and (sys.platform != "linux" or Path(f"/dev/video{index}").exists())
        camera = cv2.VideoCapture(index) if is_there else None
        if camera is None or not camera.isOpened():
            raise InputError(f"{self.name}: cannot be opened; connect it, or end the program that is using it")
        opened.callback(camera.release)
        self.frames_per_second = float(camera.get(cv2.CAP_PROP_FPS)) or _USUAL_RATE
        failed = 0
        while failed < _FAILED_READS:
            read, image_bgr = camera.read()
            if read:
                failed = 0
                yield np.ascontiguousarray(image_bgr[..., ::-1], dtype=np.uint8), 0.0
            else:
                failed += 1
                time.sleep(0.01)
        self.broken = f"{self.name}: gives no more frames"

    def _stream_images(self, source: str | Path, opened: contextlib.ExitStack) -> Iterator[_TimedImage]:
        """Upright images of a file or a network stream with their times, in the order of showing."""
        self.name, scheme = without_passwords(source), _scheme(source)
        container = opened.enter_context(_open(source, self._timeout_seconds))
        formats = set(container.format.name.split(","))
        stream = container.streams.best("video")
        reason = ""
        if any(map(_NOT_VIDEOS.fullmatch, formats)):
            reason = f"not a video (FFmpeg takes it for {', '.join(formats)})"
        # The cover of a music file is a video stream too.
        elif not (stream and stream.codec_context) or stream.disposition & av.stream.Disposition.attached_pic:
            reason = "holds no moving images that this FFmpeg can decode"
        check(not reason, f"{self.name}: {reason}")
        stream.thread_type = "AUTO"
        self.frames_per_second = float(stream.average_rate or stream.guessed_rate or _USUAL_RATE)
        length = (container.duration or 0) / _MICROSECONDS
        self.is_live = scheme in STREAM_SCHEMES or (scheme != "" and length <= 0)
        self.start_seconds = (container.start_time or 0) / _MICROSECONDS
        self.time_base = Fraction(stream.time_base or self.time_base)
        if self.is_live:
            length = 0.0
        if length > 0:
            self.frame_count = stream.frames or max(1, round(length * self.frames_per_second))
        seconds = -1 / self.frames_per_second
        for decoded in self._decoded(container, stream, length, formats):
            if decoded.pts is None:
                seconds += 1 / self.frames_per_second
            else:
                seconds = float(decoded.pts * Fraction(decoded.time_base or self.time_base)) - self.start_seconds
            yield _upright(decoded), seconds

    def _decoded(self, container: Any, stream: Any, length: float, formats: set[str]) -> Iterator[Any]:
        """Decoded frames; damaged ones are counted, and an early end is written to ``broken``."""
        end, reason = 0.0, ""
        try:
            for packet in container.demux():
                if packet.pts is not None and packet.time_base:
                    own_end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    end = max(end, own_end - self.start_seconds)
                if packet.stream_index == stream.index:
                    yield from self._good_frames(stream, packet)
        except av.FFmpegError as error:
            silent = isinstance(error, av.error.ExitError)
            reason = f"nothing came for {self._timeout_seconds:g} s" if silent else _reason(error)
        unnoticed = max(_SHORTEST_MISSING, 3 / self.frames_per_second)
        if formats & _LENGTH_IN_HEADER and length - end > unnoticed:
            reason = reason or "the rest is missing or damaged"
        if reason:
            of = f" of {length:.1f} s" if length > 0 else ""
            self.broken = f"{self.name}: breaks off after {end:.1f} s{of} ({reason})"

    def _good_frames(self, stream: Any, packet: Any) -> list[Any]:
        try:
            frames = stream.decode(packet)
        except av.error.EOFError:
            return []
        except av.FFmpegError as error:
            self.frames_skipped += 1
            if isinstance(error, av.error.BlockingIOError):
                stream.codec_context.flush_buffers()  # after damage a decoder may refuse packets until then
            return []
        good = [frame for frame in frames if not frame.is_corrupt]
        self.frames_skipped += len(frames) - len(good)
        return good


def _scheme(source: str | Path) -> str:
    """``rtsp`` of ``rtsp://…``; "" of a path."""
    return source.partition("://")[0].lower() if isinstance(source, str) and "://" in source else ""


def _reason(error: BaseException) -> str:
    """What the system or FFmpeg says went wrong, without numbers and paths."""
    return str(getattr(error, "strerror", None) or first_line(error))


def _open(source: str | Path, timeout_seconds: float) -> Any:
    """Open a file or a stream, demuxer only; InputError: one line that says why it cannot be opened."""
    shown, scheme = without_passwords(source), _scheme(source)
    import_extra("av", shown, "video")
    began = time.monotonic()
    try:
        if not scheme:
            # An absolute path, because FFmpeg would take a name such as "a:b.mp4" for an address.
            return av.open(str(Path(source).absolute()), options={"protocol_whitelist": "file"})
        # RTSP over UDP loses packets, and a frame with them.
        tcp = {"rtsp_transport": "tcp"} if scheme in ("rtsp", "rtsps") else {}
        options = {"protocol_whitelist": _NETWORK_PROTOCOLS, **tcp}
        return av.open(str(source), timeout=(timeout_seconds, timeout_seconds), options=options)
    except (av.FFmpegError, OSError) as error:
        reason = _reason(error)
        # Interrupted by its timeout, FFmpeg reports whatever failed then: invalid data as often as a timeout.
        if scheme and (isinstance(error, av.error.ExitError) or time.monotonic() - began >= timeout_seconds):
            reason = f"no answer within {timeout_seconds:g} s"
        raise InputError(f"{shown}: not a video that can be read ({reason}); replace it or leave it out") from error


def _upright(frame: Any) -> Image8:
    """The frame as (H, W, 3) RGB, turned and mirrored as its display matrix says: phones record sideways."""
    # Where a video does not say which color matrix it was made with, players go by its height, and so does this.
    unsaid = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_HEIGHT
    image = np.asarray(frame.to_ndarray(format="rgb24", src_colorspace="ITU709" if unsaid else None), dtype=np.uint8)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y in 16.16 fixed point; the third of each row is projective, always 0.
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    if a == 0 and d == 0:
        image, a, d = image.transpose(1, 0, 2), c, b
    elif b or c:
        return image  # an angle that is no multiple of 90 degrees: left as it was recorded
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


# FFmpeg's name of the format, and of the encoder, by suffix.
CONTAINERS = {
    ".mp4": ("mp4", "libx264"),
    ".m4v": ("mp4", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}
# Quick settings: the encoder shares the processor with the detector. crf is near the point where no difference is seen.
_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "lag-in-frames": "0", "crf": "30", "b": "0"},
}
_OPUS_RATE = 48_000  # Opus knows only a few rates; this is its own
_BT709 = 1  # the number of this color matrix, of its primaries and its transfer curve in FFmpeg's three lists
_LIMITED_RANGE = 1


class _Sound:
    """All sound tracks of a video, read from the file a second time and written as far as the images have come.

    So nothing is held in memory but a packet. ``notes`` gets a line about a track that is encoded again.
    """

    def __init__(self, reader: VideoReader, output: Any, kind: str, notes: list[str]) -> None:
        assert not isinstance(reader.source, int)
        self._notes, self._start, self._output = notes, reader.start_seconds, output
        self._input = _open(reader.source, 10.0)
        self.close = self._input.close
        # Index of the stream → stream written, and whether it is encoded again.
        streams = [stream for stream in self._input.streams.audio if stream.codec_context is not None]
        self.tracks = {stream.index: self._track(stream, kind) for stream in streams}
        self._packets = self._demuxed(streams)
        self._waiting: Any = None

    def _track(self, stream: Any, kind: str) -> tuple[Any, bool]:
        """The counterpart of one sound track of the source."""
        name = stream.codec_context.codec.canonical_name
        # MP4 takes PCM by its specification, but common players refuse it there.
        if name in self._output.supported_codecs and not (kind == "mp4" and name.startswith("pcm_")):
            # A container may list a codec, but not this variant of it: that is encoded.
            with contextlib.suppress(ValueError, av.FFmpegError):
                return self._output.add_stream_from_template(stream), False
        encoder, rate = ("libopus", _OPUS_RATE) if kind == "webm" else ("aac", min(int(stream.rate or 48_000), 96_000))
        written = self._output.add_stream(encoder, rate=rate)
        written.codec_context.layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        self._notes.append(f"sound encoded again, {name} to {encoder.removeprefix('lib')}")
        return written, True

    def _demuxed(self, streams: list[Any]) -> Iterator[Any]:
        """Packets of these; an early end is no failure: the images ended there too."""
        try:
            # The empty packets at the end only tell decoders to flush.
            yield from (packet for packet in self._input.demux(streams) if packet.dts is not None)
        except av.FFmpegError as error:
            self._notes.append(f"the sound breaks off ({_reason(error)})")

    def copy_until(self, seconds: float) -> None:
        """Write every packet that begins before ``seconds`` from the video's start; ``inf`` for the rest."""
        while packet := self._waiting or (next(self._packets, None) if self.tracks else None):
            begins = float((packet.dts if packet.pts is None else packet.pts) * packet.time_base) - self._start
            self._waiting = packet if begins >= seconds else None
            if self._waiting:
                return
            self._write(packet)

    def _write(self, packet: Any) -> None:
        written, encoded = self.tracks[packet.stream_index]
        try:
            if not encoded:
                shift = round(self._start / packet.time_base)
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.dts -= shift
                packet.stream = written
                self._output.mux(packet)
                return
            for frame in packet.decode():
                if frame.pts is not None:
                    frame.pts -= round(self._start / frame.time_base)
                self._output.mux(written.encode(frame))
        except av.error.InvalidDataError as error:
            note = f"damaged sound is left out ({_reason(error)})"
            if note not in self._notes:
                self._notes.append(note)

    def finish(self) -> None:
        """Write what the encoders still hold."""
        for written in (written for written, encoded in self.tracks.values() if encoded):
            self._output.mux(written.encode(None))


class VideoWriter:
    """Write frames as a video; a context manager.

    ``write`` takes each frame together with the ``Frame`` it was made from: the video shows it at the same time, so a
    variable frame rate stays, and frames that were left out leave no gap in the sound. Sound tracks are copied where
    the container can hold them, else encoded again; of a live source none is kept. ``sound_kept`` and ``notes`` (one
    line each) tell after the first frame what became of it. Images of odd width or height get one more column or row
    (a copy of the last one): 4:2:0 video has even sizes.

    The video gets its name when it is whole: at the end of the ``with`` block, or by ``close()``. An exception in the
    block, Ctrl-C too, removes it; caught inside the block, with ``close(keep=True)``, it ends with the last frame.

    Args:
        path: where to; the suffix decides: ``.mp4``, ``.m4v``, ``.mov``, ``.mkv`` (H.264) or ``.webm`` (VP9).
        reader: the video that the frames come from: its rate, times and sound.

    Raises:
        InputError: no such kind of video, it cannot be written there, or the package ``av`` is missing.
        ValueError: a frame that is not (H, W, 3) uint8 or not of the first one's size, or after the end.
    """

    def __init__(self, path: str | Path, reader: VideoReader) -> None:
        import_extra("av", str(path), "video")
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        check(suffix in CONTAINERS, f"{path}: videos are written as {', '.join(CONTAINERS)}, not '{suffix}'")
        self._kind, self._encoder = CONTAINERS[suffix]
        self.notes: list[str] = []
        self.frames_written = 0
        self._reader = reader
        self._size_wh: tuple[int, int] | None = None
        # One name for all tries, so that what a killed process left is overwritten.
        self._temporary = self.path.with_name(f".{self.path.stem}.unfinished{suffix}")
        self._output: Any = None
        self._stream: Any = None
        self._sound: _Sound | None = None
        self._closed = False
        self._last_pts, self._last_seconds = -1, 0.0

    @property
    def sound_kept(self) -> bool:
        """Whether the video has the sound of its source; known after the first frame."""
        return self._sound is not None and bool(self._sound.tracks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(keep=kind is None)

    def write(self, frame_rgb: npt.NDArray[np.uint8], frame: Frame) -> None:
        """Add an image (H, W, 3) uint8, of the first one's size, to be shown when ``frame`` of the reader is."""
        image = checked_image(frame_rgb)
        height, width = image.shape[:2]
        self._size_wh = self._size_wh or (width, height)
        if self._closed or (width, height) != self._size_wh:
            has = "is closed" if self._closed else f"has {self._size_wh}"
            raise ValueError(f"{self.path}: a frame of {width}x{height}, the video {has}")
        if height % 2 or width % 2:
            padded = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            image = np.asarray(padded, dtype=np.uint8)
        with self._named_errors():
            if self._output is None:
                self._start(image.shape[1], image.shape[0])
            # Sound before the images that it belongs to, so that the container need not hold images back.
            if self._sound is not None:
                self._sound.copy_until(frame.time_seconds)
            encoded = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            # The unit of the frame times is the source's own.
            pts = max(round(frame.time_seconds / self._reader.time_base), self._last_pts + 1)
            encoded.pts, encoded.time_base = pts, self._reader.time_base
            self._output.mux(self._stream.encode(encoded))
        self._last_pts, self._last_seconds = pts, frame.time_seconds
        self.frames_written += 1

    def close(self, keep: bool = True) -> None:
        """End the video; may be called again. ``keep``: False removes what was written, else it gets its name."""
        if self._closed:
            return
        self._closed = True
        try:
            if keep and self.frames_written:
                with self._named_errors():
                    self._finish()
                    self._temporary.replace(self.path)
        finally:
            if self._sound is not None:
                self._sound.close()
            if self._output is not None:
                with contextlib.suppress(av.FFmpegError, OSError):
                    self._output.close()
                self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, av.codec.codec.UnknownCodecError, OSError) as error:
            raise InputError(f"{self.path}: cannot be written ({_reason(error)})") from error

    def _start(self, width: int, height: int) -> None:
        """Open the file and its tracks: with the first frame, because the size is known from then on."""
        reader = self._reader
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._output = av.open(str(self._temporary.absolute()), "w", format=self._kind)
        rate = Fraction(reader.frames_per_second).limit_denominator(1001)
        self._stream = self._output.add_stream(self._encoder, rate=rate, options=_OPTIONS[self._encoder])
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = reader.time_base
        context.thread_type = "AUTO"
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        if not reader.is_live:
            try:
                self._sound = _Sound(reader, self._output, self._kind, self.notes)
            except InputError as error:
                self.notes.append(f"the sound is lost: {error}")

    def _finish(self) -> None:
        """Flush the encoders, add the sound up to the end of the last frame, and write the file's index."""
        if self._sound is not None:
            # Sound may continue after the last image; a video that was cut short ends with its last frame.
            whole = self._reader.finished and self._reader.broken is None
            end = self._last_seconds + 1 / self._reader.frames_per_second
            self._sound.copy_until(float("inf") if whole else end)
        self._output.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish()
        self._output.close()
