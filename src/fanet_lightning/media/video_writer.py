"""``VideoWriter``: a film with the frame times and the sound of the film that it was made from."""

import contextlib
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced
from fanet_lightning.media.drawing import checked_image
from fanet_lightning.media.sound import SoundTracks, opened_sound
from fanet_lightning.media.video_files import error_reason, left_out_note, quiet_log, require_av
from fanet_lightning.media.video_reader import Frame, VideoReader

if TYPE_CHECKING:
    from av.container import OutputContainer

__all__ = ["VideoWriter"]


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
