"""Videos made by PyAV for the tests: a bar of color that moves 2 pixels a frame, and a sine for sound."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

RATES = {"libopus": 48_000}
ENCODERS = {".webm": "libvpx", ".avi": "mpeg4"}


def image_at(index, size_wh=(96, 64)):
    """Frame ``index``: gray, with an orange bar of 12 pixels whose left edge is at 2 x index (modulo the width)."""
    image = np.full((size_wh[1], size_wh[0], 3), 60, np.uint8)
    left = 2 * index % size_wh[0]
    image[:, left : left + 12] = (220, 120, 30)
    return image


def sine(seconds, rate):
    return (np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate) * 8000).astype(np.int16)


def write_images(path, images, rate):
    """Write (H, W, 3) uint8 arrays as a video in which every frame can be decoded alone, without sound."""
    av = pytest.importorskip("av", reason="videos need PyAV: pip install 'fanet-lightning[video]'")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"g": "1"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))


def make_video(
    path,
    frames=50,
    size_wh=(96, 64),
    sound="aac",
    ticks=None,
    time_base=None,
    turned=None,
    options=None,
    mirrored=False,
):
    """Write a video of 25 frames a second.

    ``ticks``: time of each frame in units of ``time_base``, instead. ``turned``: degrees, counter-clockwise, by which
    players turn the images; ``mirrored``: and then mirror them. ``options``: of the container.
    """
    import av

    encoder = ENCODERS.get(path.suffix, "libx264")
    with av.open(str(path), "w", options=options or {}) as output:
        video = output.add_stream(encoder, rate=25)
        video.width, video.height = size_wh
        video.pix_fmt = "yuv420p"
        if encoder == "libx264":
            video.options = {"preset": "ultrafast", "g": "25", "crf": "18"}
        if encoder == "libvpx":
            video.options = {"deadline": "realtime", "cpu-used": "8", "b": "2M"}
            video.codec_context.thread_count = 1  # its threads spin: on a busy machine two are 20 times slower
        if time_base is not None:
            video.codec_context.time_base = time_base
        if turned is not None or mirrored:
            video.set_display_rotation(turned or 0, hflip=mirrored)
        if sound is not None:
            rate = RATES.get(sound, 44_100)
            audio = output.add_stream(sound, rate=rate)
            audio.codec_context.layout = "mono"
            samples = sine(frames / 25, rate)
            for start in range(0, len(samples), 1024):
                block = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="s16", layout="mono")
                block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
                output.mux(audio.encode(block))
            output.mux(audio.encode(None))
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(image_at(index, size_wh), format="rgb24")
            if ticks is not None:
                frame.pts, frame.time_base = ticks[index], time_base
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return path


def packets(path, kind="audio"):
    """(bytes, seconds) of every packet of the first track of that kind, in the order of the file."""
    import av

    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(bytes(p), float(p.pts * p.time_base)) for p in container.demux(stream) if p.dts is not None]


def bar_edge(image_rgb):
    """Left edge of the orange bar in pixels."""
    return int(np.argmax(image_rgb[..., 0].astype(int).mean(axis=0) > 140))


def frames_of(path):
    """(H, W, 3) uint8 RGB of every frame of a video."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def lines_of(path):
    """What ``frames/<name>.jsonl`` says of every frame."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
