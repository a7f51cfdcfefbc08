"""Films and cameras, frame by frame: ``VideoReader`` reads them, ``VideoWriter`` writes a film with the same times.

    with VideoReader("film.mp4") as reader, VideoWriter("redacted.mp4", reader) as writer:
        for frame in reader:
            writer.write(redact(frame.image_rgb, detector.detect(frame.image_rgb).boxes_xyxy), frame)
    print(reader.broken, writer.notes)

Files and network streams need the package ``av`` (PyAV: FFmpeg's libraries in a wheel), cameras OpenCV alone.
"""

from fanet_lightning.media.video_reader import Frame, VideoReader
from fanet_lightning.media.video_writer import VideoWriter

__all__ = ["Frame", "VideoReader", "VideoWriter"]
