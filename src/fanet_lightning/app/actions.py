"""What happens on the page, as functions from what its controls say to what it shows. Imports Gradio."""

import json
import math
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr

from fanet_lightning.app.results import (
    BOX_FORMAT,
    NO_REDACTION,
    SHOWN_SIDE,
    SHOWN_SIDE_OF_MANY,
    PageImage,
    detect_image,
    document,
    read_upload,
    rows,
    shown,
    write_jpeg,
)
from fanet_lightning.app.settings import Settings
from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.protocols import AnyProtocol
from fanet_lightning.detect.video import VideoReader, VideoWriter

EMPTY = "Drop an image, paste one, choose a file, or take one with the camera. Several at a time: the next tab."
EMPTY_SEVERAL = "Drop some images: each one's faces are counted, and one JSON holds them all."
# The table's columns; the score first, where a phone shows it.
COLUMNS = ("face", "score", "x1", "y1", "x2", "y2", "width", "height")
# How often the page hears how far a video is.
REPORT_SECONDS = 0.5


def hint(text: str) -> str:
    """What to do next, or what is to be known of a result."""
    return f'<p class="note" role="status">{escape(text)}</p>'


def problem(error: InputError | str) -> str:
    """What went wrong, read out at once by screen readers."""
    return f'<p class="problem" role="alert">{escape(" ".join(str(error).split()))}</p>'


def working(done: int, total: int | None, what: str) -> str:
    """A progress bar, without a value where the total is not known."""
    value = "" if total is None else f' value="{done}" max="{max(total, 1)}"'
    text = f"{done:,} {what}" if total is None else f"{done:,} of {total:,} {what}"
    return f'<div class="working"><progress aria-label="Progress"{value}></progress><p class="note">{text}</p></div>'


def facts(items: dict[str, str]) -> str:
    """Names and values side by side, the first one large."""
    cells = "".join(
        f"<div{'' if number else ' class=main'}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for number, (name, value) in enumerate(items.items())
    )
    return f'<dl class="facts" role="status" aria-label="Result">{cells}</dl>'


def duration(seconds: float) -> str:
    """``35 ms``, ``4.2 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


class Actions:
    """One method for each thing that a person can do; results are written in ``folder``, inside Gradio's uploads."""

    def __init__(self, detector: FaceDetector, settings: Settings, folder: Path) -> None:
        self.detector, self.settings, self.folder = detector, settings, folder
        # The settings that the program was started with, where their name is chosen; else the protocol as it comes.
        self._protocols: dict[str, AnyProtocol] = {settings.protocol["name"]: settings.protocol}

    def _new(self, name: str, ending: str) -> Path:
        """A path of its own for a result that is made of ``name``, in a folder that exists."""
        folder = self.folder / uuid4().hex
        folder.mkdir(parents=True)
        return folder / f"{Path(name).stem}{ending}"

    def _detected(self, path: str, protocol: str, side: int) -> PageImage:
        chosen = self._protocols.get(protocol, protocol)
        return detect_image(self.detector, Path(path), chosen, max_pixels=self.settings.max_pixels, shown_side=side)

    def _shown(self, image: PageImage, threshold: float, redaction: str) -> str:
        """A file of the image, drawn or redacted at the size of the page."""
        image_rgb = image.drawn(image.shown_rgb, threshold, redaction)
        return str(write_jpeg(image_rgb, self._new(image.name, "_faces.jpg"), image.profile))

    def find(self, path: str | None, protocol: str, threshold: float, redaction: str) -> tuple[Any, ...]:
        """An image was dropped or the protocol changed: the image for later, then as :meth:`redraw`."""
        try:
            image = None if path is None else self._detected(path, protocol, SHOWN_SIDE)
        except InputError as error:
            return None, None, problem(error), [], None
        return image, *(self.redraw(image, threshold, redaction) if image else (None, hint(EMPTY), [], None))

    def redraw(self, image: PageImage | None, threshold: float, redaction: str) -> tuple[Any, ...]:
        """The threshold moved, or another redaction: file of the drawn image, summary, table, JSON."""
        if image is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        summary = facts({
            f"score {threshold:.2f} or more": counted(image.count(threshold), "face"),
            "size": f"{image.width:,} × {image.height:,} px", "network": duration(image.network_seconds),
        })  # fmt: skip
        content = document([image], threshold, self.settings.model_name)
        table = [
            [number, f"{face['score']:.4f}", *(f"{face[key]:.2f}" for key in COLUMNS[2:])]
            for number, face in enumerate(content["images"][0]["detections"], start=1)
        ]
        return self._shown(image, threshold, redaction), summary, table, content

    def save_image(self, image: PageImage | None, threshold: float, redaction: str) -> str | None:
        """The image at its full size, drawn or redacted; None, and a warning: there is none, or none any more."""
        if image is None:
            gr.Warning("There is no image yet: drop one first.")
            return None
        try:
            image_rgb, profile = read_upload(image.path, self.settings.max_pixels)
            path = self._new(image.name, f"_{'faces' if redaction == NO_REDACTION else redaction}.jpg")
            return str(write_jpeg(image.drawn(image_rgb, threshold, redaction), path, profile, quality=95))
        except (InputError, OSError) as error:  # OSError: more than 65,500 pixels wide or high, which JPEG has not
            gr.Warning(str(error))
            return None

    def save_json(self, content: Any) -> str | None:
        """What the page shows as JSON, as a file to save."""
        if not content:
            gr.Warning("There are no detections yet: drop something first.")
            return None
        images = content.get("images", [])
        path = self._new(images[0]["image"] if len(images) == 1 else "faces", ".json")
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return str(path)

    def find_several(
        self, paths: list[str] | None, protocol: str, threshold: float, redaction: str
    ) -> Iterator[tuple[Any, ...]]:
        """As :meth:`find` for several images: what is for later, gallery, summary, JSON; bad ones are named."""
        most = self.settings.max_images
        if not paths or len(paths) > most:
            text = f"{len(paths or ())} images are more than {most} at a time; take some out"
            yield None, [], problem(text) if paths else hint(EMPTY_SEVERAL), None
            return
        images, problems = list[PageImage](), list[InputError]()
        for number, path in enumerate(paths):
            yield gr.skip(), gr.skip(), working(number, len(paths), "images"), gr.skip()
            try:
                images.append(self._detected(path, protocol, SHOWN_SIDE_OF_MANY))
            except InputError as error:
                problems.append(error)
        yield (images, problems), *self.redraw_several((images, problems), threshold, redaction)

    def redraw_several(
        self, found: tuple[list[PageImage], list[InputError]] | None, threshold: float, redaction: str
    ) -> tuple[Any, ...]:
        """As :meth:`redraw`: (gallery, summary, JSON)."""
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        images, problems = found
        counts = [image.count(threshold) for image in images]
        gallery = [
            (self._shown(image, threshold, redaction), f"{image.name}: {counted(count, 'face')}")
            for image, count in zip(images, counts, strict=True)
        ]
        summary = facts({
            f"score {threshold:.2f} or more": counted(sum(counts), "face"), "images": f"{len(images):,}",
            "without a face": f"{counts.count(0):,}",
            "network": duration(sum(image.network_seconds for image in images)),
        })  # fmt: skip
        content = document(images, threshold, self.settings.model_name, problems)
        return gallery, "".join(map(problem, problems)) + summary, content

    def find_in_video(
        self, path: str | None, protocol: str, threshold: float, redaction: str
    ) -> Iterator[tuple[Any, ...]]:
        """Video with boxes or redacted, summary, JSON; nothing is left where the iteration is given up."""
        if path is None:
            yield None, hint("Drop a video first."), None
            return
        name, limit = Path(path).name, self.settings.max_video_seconds
        out = self._new(name, f"_{'faces' if redaction == NO_REDACTION else redaction}.mp4")
        frames, notes = list[dict[str, Any]](), list[str]()
        start = reported = time.perf_counter()
        chosen = self._protocols.get(protocol, protocol)
        yield None, working(0, None, "frames"), None
        try:
            with VideoReader(path) as reader, VideoWriter(out, reader) as writer:
                rate, total = reader.frames_per_second, reader.frame_count
                expected = None if total is None else min(total, math.ceil(rate * limit))
                for frame in reader:
                    if frame.time_seconds >= limit:
                        notes = [f"Only the first {limit:g} seconds; max_video_seconds=… of the program takes more."]
                        break
                    faces = self.detector.detect(frame.image_rgb, chosen, threshold)
                    writer.write(shown(frame.image_rgb, faces, redaction), frame)
                    frames.append({
                        "frame": frame.index, "time_seconds": round(frame.time_seconds, 4), "detections": rows(faces)
                    })  # fmt: skip
                    if time.perf_counter() - reported >= REPORT_SECONDS:
                        reported = time.perf_counter()
                        yield gr.skip(), working(len(frames), expected, "frames"), gr.skip()
        except InputError as error:
            yield None, problem(str(error).replace(path, name)), None
            return
        content = {
            "model": self.settings.model_name, "threshold": round(threshold, 4), "protocol": protocol, "video": name,
            "box_format": BOX_FORMAT, "cut": bool(notes), "frames": frames,
        }  # fmt: skip
        notes += [note.replace(path, name) for note in (*filter(None, [reader.broken]), *writer.notes)]
        summary = facts({
            "most in one frame": counted(max((len(frame["detections"]) for frame in frames), default=0), "face"),
            "frames": f"{len(frames):,} at {rate:.4g}/s", "took": duration(time.perf_counter() - start),
            "sound": "kept" if writer.sound_kept else "none",
        })  # fmt: skip
        yield str(out), summary + "".join(map(hint, notes)), content
