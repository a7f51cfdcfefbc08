"""Boxes drawn by ``ops/draw.py`` next to a matplotlib figure per image, and videos read and written, one process.

    OMP_NUM_THREADS=1 python benchmarks/drawing.py [--boxes 50] [--frames 250] [--repeats 5]

Prints the time per image of 1024x768 with its color bar, both ways, and their ratio; then the frames per second of a
video of 640x480 (H.264, a noisy moving picture, sound): decoded alone, drawn, redacted, and all of it with encoding.
The fastest of the repeats counts. The video part needs the package av.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fanet_lightning.detect.redaction import redact
from fanet_lightning.ops.draw import annotate

SIZE_WH = (1024, 768)
VIDEO_WH = (640, 480)


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run, after one that is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def with_a_figure(image: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The same picture as a matplotlib figure: image, rectangles, color bar, rendered to an array."""
    height, width = image.shape[:2]
    figure = Figure(figsize=((width + 120) / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, width / (width + 120), 1))
    axis.set_axis_off()
    axis.imshow(image, aspect="auto")
    colors = mpl.colormaps["turbo"](scores)
    for (x1, y1, x2, y2), color in zip(boxes[np.argsort(scores)], colors[np.argsort(scores)], strict=True):
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=2))
    bar = figure.add_axes((width / (width + 120) + 0.02, 0.03, 0.02, 0.94))
    figure.colorbar(ScalarMappable(Normalize(0, 1), "turbo"), cax=bar, label="confidence")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def random_boxes(count: int, size_wh: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    corners = rng.uniform((0, 0), np.array(size_wh) - 60, (count, 2))
    return np.hstack([corners, corners + rng.uniform(10, 120, (count, 1))])


def noisy_video(path: Path, frames: int, rng: np.random.Generator) -> None:
    """A blurred noise picture that drifts, with some grain: about as hard to code as a street that is filmed."""
    import av

    width, height = VIDEO_WH
    large = cv2.GaussianBlur(rng.integers(0, 256, (height * 2, width * 2, 3), dtype=np.uint8), (0, 0), 4)
    large = cv2.normalize(large, None, 0, 235, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        video.width, video.height = width, height
        audio = output.add_stream("aac", rate=44_100)
        audio.codec_context.layout = "mono"
        for index in range(frames):
            part = large[index % height :, index * 2 % width :][:height, :width]
            grain = rng.integers(0, 9, part.shape, dtype=np.uint8)
            output.mux(video.encode(av.VideoFrame.from_ndarray(cv2.add(part, grain), format="rgb24")))
            samples = (np.sin(np.arange(1764) / 1764 * 2 * np.pi * 17) * 8000).astype(np.int16)
            block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            block.sample_rate, block.pts = 44_100, index * 1764
            output.mux(audio.encode(block))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--boxes", type=int, default=50)
    parser.add_argument("--frames", type=int, default=250, help="length of the video; 0 leaves the video part out")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIZE_WH[1], SIZE_WH[0], 3), dtype=np.uint8)
    boxes, scores = random_boxes(options.boxes, SIZE_WH, rng), rng.uniform(0, 1, options.boxes)

    ours = fastest(lambda: annotate(image, boxes, scores), options.repeats * 10)
    labelled = fastest(lambda: annotate(image, boxes, scores, labels=True), options.repeats * 10)
    figure = fastest(lambda: with_a_figure(image, boxes, scores), options.repeats)
    blurred = fastest(lambda: redact(image, boxes, "blur"), options.repeats)
    pixelated = fastest(lambda: redact(image, boxes, "pixelate"), options.repeats)
    print(f"{SIZE_WH[0]}x{SIZE_WH[1]}, {options.boxes} boxes and color bar: figure {figure * 1e3:.1f} ms, "
          f"annotate {ours * 1e3:.2f} ms, {figure / ours:.0f} times faster")  # fmt: skip
    print(f"with a label at every face {labelled * 1e3:.2f} ms")
    print(f"the same faces blurred {blurred * 1e3:.2f} ms, pixelated {pixelated * 1e3:.2f} ms")
    print(f"  (a JPEG of the picture takes {fastest(lambda: jpeg(image), options.repeats) * 1e3:.1f} ms)")
    if options.frames:
        videos(options.frames, options.repeats, rng)


def jpeg(image: np.ndarray) -> bytes:
    return io.BytesIO(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()).getvalue()


def videos(frames: int, repeats: int, rng: np.random.Generator) -> None:
    from fanet_lightning.detect.video import VideoReader, VideoWriter

    boxes, scores = random_boxes(5, VIDEO_WH, rng), np.linspace(0.5, 1, 5)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "video.mp4", Path(folder) / "written.mp4"
        noisy_video(source, frames, rng)

        def read(draw: Callable[[np.ndarray], object]) -> None:
            with VideoReader(source) as reader:
                for frame in reader:
                    draw(frame.image_rgb)

        def written(draw: Callable[[np.ndarray], np.ndarray]) -> None:
            with VideoReader(source) as reader, VideoWriter(target, reader) as writer:
                for frame in reader:
                    writer.write(draw(frame.image_rgb), frame)

        video = f"video of {VIDEO_WH[0]}x{VIDEO_WH[1]}, {frames} frames"
        rates = {
            "read": fastest(lambda: read(lambda image: image), repeats),
            "read and drawn": fastest(lambda: read(lambda image: annotate(image, boxes, scores)), repeats),
            "read and blurred": fastest(lambda: read(lambda image: redact(image, boxes)), repeats),
            "read and written": fastest(lambda: written(lambda image: image), repeats),
            "read, drawn and written": fastest(lambda: written(lambda image: annotate(image, boxes, scores)), repeats),
        }
        for what, taken in rates.items():
            print(f"{video}, {what}: {frames / taken:.0f} frames/s")


if __name__ == "__main__":
    main()
