"""Faces in a video, frame by frame: decoding, inference, and drawing with encoding overlap, in bounded memory."""

import json
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from fanet_lightning.errors import InputError, first_line
from fanet_lightning.files import replaced
from fanet_lightning.media.inputs import Item
from fanet_lightning.media.outputs import CROPS, FRAMES, TEXTS, VIDEOS, Saving, write_crops, write_file
from fanet_lightning.media.pipeline import FindFaces, yield_to_the_network
from fanet_lightning.media.progress import Progress
from fanet_lightning.media.video_files import OTHER_VIDEO, left_out_note
from fanet_lightning.structures import Detections

if TYPE_CHECKING:
    from fanet_lightning.media.video import Frame, VideoReader, VideoWriter

# Containers that are written; of every other one the pictures and sound go into an MP4.
CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
# Frames between the network and the encoder.
MOST_BEHIND = 4


@dataclass(frozen=True)
class FilmOptions:
    """``every``: only every so many frames, the others are neither looked at nor written. ``max_frames``: then stop."""

    every: int = 1
    max_frames: int | None = None


@dataclass
class Film:
    """What became of a video. ``broken`` says why it ended before its end; ``notes`` what was lost in writing it."""

    frames: int = 0
    faces: int = 0
    seconds: float = 0.0
    frames_per_second: float = 0.0
    size_wh: tuple[int, int] = (0, 0)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: str | None = None
    interrupted: bool = False

    def entry(self) -> dict[str, Any]:
        """As plain values, for the journal and the JSON."""
        return {
            "video": True, "frames": self.frames, "faces": self.faces, "width": self.size_wh[0],
            "height": self.size_wh[1], "frames_per_second": self.frames_per_second, "notes": self.notes,
            "broken": self.broken, "files": self.files,
        }  # fmt: skip


def film(
    item: Item, find_faces: FindFaces, out: Path, saving: Saving, options: FilmOptions, progress: Progress
) -> Film:
    """Find the faces of every frame and write the video with them, and a line of JSON for each frame.

    On Ctrl-C, or where the video breaks off, what was done until then is kept under its name.

    Args:
        item: a file, an address or a camera.
        find_faces: called in the caller's thread, one frame at a time.
        out: folder of the results.
        saving: ``images`` stands for the written video, ``json`` for the lines per frame; ``txt`` and ``crops`` are
            written for every frame in a folder of the video's name.
        options: which frames.
        progress: told of every frame.

    Raises:
        InputError: it cannot be opened, or results cannot be written.
    """
    from fanet_lightning.media.video import VideoReader

    filming = _Filming(item, find_faces, out, saving, options, progress)
    start = time.perf_counter()
    try:
        with VideoReader(item.location) as reader:
            filming.run(reader)
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror or first_line(error)}); free it") from error
    filming.film.seconds = time.perf_counter() - start
    return filming.film


class _Filming:
    def __init__(
        self, item: Item, find_faces: FindFaces, out: Path, saving: Saving, options: FilmOptions, progress: Progress
    ) -> None:
        self.film = Film()
        self._item, self._find_faces, self._out, self._saving = item, find_faces, out, saving
        self._options, self._progress = options, progress
        self._writer: VideoWriter | None = None
        self._lines: IO[str] | None = None
        self._behind: deque[Future[None]] = deque()

    def run(self, reader: "VideoReader") -> None:
        film, own = self.film, self._item
        film.frames_per_second, film.size_wh = reader.frames_per_second, reader.size_wh
        if reader.frame_count is not None:
            total = -(-reader.frame_count // self._options.every)
            self._progress.set_total(min(total, self._options.max_frames or total))
        suffix = PurePosixPath(own.name).suffix.lower()
        kept = suffix if suffix in CONTAINERS else ".mp4"
        video_name = f"{VIDEOS}/{own.stem}" + ("" if own.stem.lower().endswith(kept) else kept)
        lines_name = f"{FRAMES}/{own.stem}.jsonl"
        with ExitStack() as stack:
            if "json" in self._saving.save:
                path = stack.enter_context(replaced(self._out / lines_name))
                self._lines = stack.enter_context(path.open("w", encoding="ascii"))
                film.files.append(lines_name)
            # One thread, so that frames are written in order.
            pool = ThreadPoolExecutor(1, "write-frames", yield_to_the_network)
            try:
                self._frames(reader, pool, stack, self._out / video_name)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        if self._writer is not None:
            film.files.append(video_name)
            film.notes.extend(self._writer.notes)
        elif others := reader.left_out.get(OTHER_VIDEO):
            film.notes.append(left_out_note({OTHER_VIDEO: others}))

    def _frames(self, reader: "VideoReader", pool: ThreadPoolExecutor, stack: ExitStack, path: Path) -> None:
        film, options = self.film, self._options
        try:
            for frame in reader:
                if frame.index % options.every:
                    continue
                found = self._find_faces(frame.image_rgb)
                self._behind.append(pool.submit(self._write, reader, stack, path, frame, found))
                film.frames += 1
                film.faces += found.count
                self._progress.advance()
                self._wait(MOST_BEHIND)
                if options.max_frames is not None and film.frames >= options.max_frames:
                    break
            self._wait(0)
        except KeyboardInterrupt:
            film.interrupted = True
            self._wait(0)
        film.broken = reader.broken
        for number, what in (
            (reader.frames_skipped, "damaged frames were left out"),
            (reader.frames_dropped, "frames came while the network was busy, and were dropped"),
        ):
            if number:
                film.notes.append(f"{number:,} {what}")

    def _wait(self, most: int) -> None:
        while len(self._behind) > most:
            self._behind.popleft().result()

    def _write(self, reader: "VideoReader", stack: ExitStack, path: Path, frame: "Frame", found: Detections) -> None:
        saving, stem = self._saving, self._item.stem
        if "images" in saving.save:
            from fanet_lightning.media.video import VideoWriter

            shown = saving.shown(frame.image_rgb, found)
            if self._writer is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                size_wh = (shown.shape[1], shown.shape[0])
                self._writer = stack.enter_context(VideoWriter(path, reader, size_wh=size_wh))
            self._writer.write(shown, frame)
        if self._lines is not None:
            boxes_xyxy, scores = found.numpy()
            line = {"frame": frame.index, "time_seconds": frame.time_seconds, "boxes_xyxy": boxes_xyxy.tolist(),
                    "scores": scores.tolist()}  # fmt: skip
            self._lines.write(json.dumps(line) + "\n")
        own = f"frame_{frame.index:06d}"
        if "txt" in saving.save:
            name = f"{TEXTS}/{stem}/{own}.txt"
            write_file(self._out, name, found.to_wider(own).encode())
            self.film.files.append(name)
        if "crops" in saving.save:
            self.film.files += write_crops(self._out, f"{CROPS}/{stem}/{own}", frame.image_rgb, found, saving)
