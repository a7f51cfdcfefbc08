"""The sound of a film, taken over into the film that is written, in step with its pictures."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fanet_lightning.errors import InputError
from fanet_lightning.media.video_files import error_reason, open_input

if TYPE_CHECKING:
    from pathlib import Path

    from av.container import OutputContainer

__all__ = ["SoundTracks"]

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
