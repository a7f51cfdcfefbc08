"""A run of detect over images and videos: what is done is skipped, the rest read, detected, written."""

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from fanet_lightning.cli.errors import InputError, counted, first_line
from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import HOLDER_FILE, LOCK_FILE, locked
from fanet_lightning.detect.inputs import JOURNAL_FILE, RESULT_FOLDERS, Item, Journal, Limits, Sources, state_of
from fanet_lightning.detect.multiscale import LARGE_SHORTER_SIDE, build_protocol, full_settings, too_large_for
from fanet_lightning.detect.outputs import (
    CROPS,
    FRAMES,
    JSON_FILE,
    TEXTS,
    UNFINISHED,
    VIDEOS,
    Saving,
    remove_unlisted,
    write_crops,
    write_file,
    write_json,
)
from fanet_lightning.detect.stream import FindFaces, ImagePipeline, Progress, yield_to_the_network
from fanet_lightning.detect.video import OTHER_VIDEO, left_out_note
from fanet_lightning.models.pretrained import DEFAULT_PROTOCOL, DEFAULT_THRESHOLD
from fanet_lightning.ops.structures import Detections

if TYPE_CHECKING:
    from fanet_lightning.detect.detector import FaceDetector
    from fanet_lightning.detect.video import Frame, VideoReader, VideoWriter


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
    from fanet_lightning.detect.video import VideoReader

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
            from fanet_lightning.detect.video import VideoWriter

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


@dataclass
class Summary:
    """What a run did. ``images``, ``videos``: inputs, those done earlier too. ``failed``: those without results."""

    images: int = 0
    videos: int = 0
    frames: int = 0
    faces: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    def line(self, speed: str) -> str:
        """``318 images, 1,204 faces, 2 could not be read; 12.3 images/s``."""
        parts = []
        if self.images or not self.videos:
            parts.append(counted(self.images, "image"))
        if self.videos:
            parts.append(f"{counted(self.videos, 'video')} ({counted(self.frames, 'frame')})")
        parts.append(counted(self.faces, "face"))
        if self.failed:
            parts.append(f"{len(self.failed):,} could not be read")
        if self.broken:
            parts.append(f"{len(self.broken):,} broke off")
        return ", ".join(parts) + (f"; {speed}" if speed else "")


def detect_sources(
    sources: Sources,
    detector: "FaceDetector",
    protocol: Mapping[str, Any],
    out: Path,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    saving: Saving | None = None,
    film_options: FilmOptions | None = None,
    limits: Limits | None = None,
    workers: int = 2,
    resume: bool = True,
    made_by: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    stated: Sequence[str] = (),
) -> Summary:
    """Find faces in all inputs and write what ``saving`` asks for into ``out``.

    Boxes are in pixels of the upright picture: what the camera noted in EXIF about its orientation is applied.

    Args:
        sources: of :func:`fanet_lightning.detect.inputs.find_sources`.
        detector: any :class:`FaceDetector`.
        protocol: ``name`` and what :func:`fanet_lightning.detect.multiscale.build_protocol` reads.
        out: folder, made if need be; where no input gives results, nothing is left of it.
        threshold: faces with a lower score are left out.
        saving: default: pictures with boxes, and the JSON.
        film_options: which frames of videos.
        limits: of downloads.
        workers: threads that read images, and as many that write.
        resume: skip inputs that were done with the same settings; False removes all results that lie there.
        made_by: for the JSON.
        settings: what results depend on besides the arguments above, e.g. the weights' checksum.
        stated: the sources, of :func:`fanet_lightning.detect.inputs.stated_sources`.

    Returns:
        Numbers of inputs and faces; what failed, with the reason of each; whether Ctrl-C ended it.

    Raises:
        InputError: ``out`` is in use, cannot be written, or holds results of other inputs that are of other settings or
            would be overwritten; or an input would be overwritten.
    """
    saving, limits = saving or Saving(), limits or Limits()
    scale = build_protocol(protocol)
    _check_apart(out, sources)
    depends_on = {
        "protocol": full_settings(protocol), "threshold": threshold, "save": sorted(saving.save),
        "redact": saving.redact, "draw": saving.draw, "bar": saving.bar, **(settings or {}),
    }  # fmt: skip
    items = [*sources.images, *sources.videos]
    with _nothing_left_of_nothing(out), locked(out, "run of detect"):
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        with Journal(out, depends_on, items, resume=resume, sources=stated) as journal:
            if journal.begins_anew:
                (out / JSON_FILE).unlink(missing_ok=True)  # it is about what has been removed
            run = _Run(journal, out, saving, limits, film_options or FilmOptions(), workers)
            try:
                run.all(sources, lambda image_rgb: detector.detect(image_rgb, scale, threshold))
            finally:
                if "json" in saving.save and (journal.existed or journal.entries):
                    run.write_json(sources, {"settings": depends_on, "made_by": dict(made_by or {})})
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        if not journal.existed and not journal.entries:
            journal.path.unlink(missing_ok=True)
    _hint_at_size(protocol, run.done_now)
    return run.summary


def _hint_at_size(protocol: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> None:
    name = protocol.get("name")
    large = [bool(entry.get("video")) for entry in entries if too_large_for(name, entry["width"], entry["height"])]
    if large:
        kinds = ((len(large) - sum(large), "image"), (sum(large), "video"))
        number = " and ".join(counted(count, kind) for count, kind in kinds if count)
        print(f"{number} {'is' if len(large) == 1 else 'are'} larger than {LARGE_SHORTER_SIDE:,} pixels on the shorter "
              f"side: with protocol={name} faces over some 400 pixels are missed; try protocol={DEFAULT_PROTOCOL}",
              file=sys.stderr)  # fmt: skip


@contextmanager
def _nothing_left_of_nothing(out: Path) -> Iterator[None]:
    """Remove the lock's files, and the folders that were made, where no journal was left: nothing has been written."""
    made = [place for place in (out, *out.parents) if not place.exists()]
    before = {name for name in (LOCK_FILE, HOLDER_FILE) if (out / name).exists()}
    try:
        yield
    finally:
        if not (out / JOURNAL_FILE).exists():
            with suppress(OSError):  # a folder that holds something else stays
                for name in {LOCK_FILE, HOLDER_FILE} - before:
                    (out / name).unlink(missing_ok=True)
                for place in made:
                    place.rmdir()


class _Run:
    def __init__(
        self, journal: Journal, out: Path, saving: Saving, limits: Limits, film: FilmOptions, workers: int
    ) -> None:
        self.summary = Summary()
        self.done_now: list[dict[str, Any]] = []
        self._journal, self._out, self._saving, self._limits = journal, out, saving, limits
        self._film, self._workers = film, workers
        self._speed = ""  # nothing is said where nothing was done
        self._film_settings = {"every": film.every, "max_frames": film.max_frames}

    def all(self, sources: Sources, find_faces: FindFaces) -> None:
        images = [item for item in sources.images if not self._journal.is_done(item)]
        videos = [item for item in sources.videos if not self._is_done(item)]
        print(self._opening(sources, len(images) + len(videos)), flush=True)
        for reason in sources.failed.values():
            print(f"error: {reason}", file=sys.stderr)
        self.summary.failed |= sources.failed
        for item in (*images, *videos):
            self._journal.forget(item)
        if self._journal.existed:
            remove_unlisted(self._out, (*images, *videos))
        try:
            if images:
                self._images(images, find_faces)
            for item in videos:
                self._video(item, find_faces)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        entries = self._journal.entries
        self.done_now = [entries[item.name] for item in (*images, *videos) if item.name in entries]
        self._count(sources)
        print(self._closing(), flush=True)

    def _is_done(self, item: Item) -> bool:
        return state_of(item) is not None and self._journal.is_done(item, {"film": self._film_settings})

    def _images(self, items: Sequence[Item], find_faces: FindFaces) -> None:
        with Progress(len(items), "images", quiet=len(items) == 1) as progress:
            pipeline = ImagePipeline(
                find_faces, self._out, self._saving, self._journal, progress, self._limits, self._workers
            )
            try:
                pipeline.run(items)
            finally:
                self.summary.failed |= pipeline.outcome.failed
                self._speed = progress.speed() if pipeline.outcome.done else ""

    def _video(self, item: Item, find_faces: FindFaces) -> None:
        with Progress(None, "frames") as progress:
            try:
                done = film(item, find_faces, self._out, self._saving, self._film, progress)
            except InputError as error:
                reason = " ".join(str(error).split())
                progress.say(f"error: {reason}")
                self.summary.failed[item.name] = reason
                return
            self._speed = progress.speed()
            for note in done.notes:
                progress.say(f"{item.text}: {note}")
            if done.broken:
                progress.say(f"error: {done.broken}; the {done.frames:,} frames before are kept")
                self.summary.broken[item.name] = done.broken
        # A broken or interrupted one is begun anew the next time.
        complete = not (done.broken or done.interrupted)
        film_settings = self._film_settings if complete else None
        self._journal.add(item, {**done.entry(), "film": film_settings, "interrupted": done.interrupted})
        if done.interrupted:
            raise KeyboardInterrupt

    def _count(self, sources: Sources) -> None:
        """Over what lies in ``out`` now, whenever it was done."""
        own = self.summary
        for item in sources.images:
            entry = self._journal.entries.get(item.name)
            own.images += entry is not None
            own.faces += len(entry["scores"]) if entry is not None else 0
        for item in sources.videos:
            entry = self._journal.entries.get(item.name)
            own.videos += entry is not None
            own.frames += entry["frames"] if entry is not None else 0
            own.faces += entry["faces"] if entry is not None else 0

    def _opening(self, sources: Sources, missing: int) -> str:
        total = len(sources.images) + len(sources.videos)
        things = [counted(len(sources.images), "image")] if sources.images else []
        things += [counted(len(sources.videos), "video")] if sources.videos else []
        lines = [f"detecting faces in {' and '.join(things)}"]
        if sources.ignored:
            kinds = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(sources.ignored.items()))
            lines[0] += f" ({counted(sum(sources.ignored.values()), 'other file')} ignored; {kinds})"
        if sources.repeated:
            lines[0] += f" ({sources.repeated:,} given twice)"
        if sources.results:
            lines[0] += f" ({counted(sources.results, 'folder')} of results skipped)"
        if self._journal.refused:
            lines.append(f"beginning anew: the results in {self._out} are of other settings "
                         f"({', '.join(self._journal.refused)})")  # fmt: skip
        elif missing < total:
            done = total - missing
            lines.append(f"going on: {_are_done(done, total)} already; resume=false begins anew")
        return "\n".join(lines)

    def _closing(self) -> str:
        where = f"; the results lie in {self._out}" if self.summary.images or self.summary.videos else ""
        return self.summary.line(self._speed) + where

    def write_json(self, sources: Sources, head: Mapping[str, Any]) -> None:
        """Of everything that lies in ``out``: this run's inputs in their order, then those of earlier runs."""
        entries = list(self._in_order((*sources.images, *sources.videos)))
        images = (entry for entry in entries if not entry.get("video"))
        videos = [_video_entry(entry) for entry in entries if entry.get("video")]
        tried = len(self.summary.failed) + self.summary.images + self.summary.videos
        inputs = len(sources.images) + len(sources.videos) + len(sources.failed)
        complete = not self.summary.interrupted and tried == inputs
        write_json(self._out, images, videos, self.summary.failed, {"complete": complete, **head})

    def _in_order(self, items: Iterable[Item]) -> Iterator[dict[str, Any]]:
        entries, own = self._journal.entries, [item.name for item in items]
        yield from (entries[name] for name in own if name in entries)
        earlier = (entry for name, entry in entries.items() if name not in set(own))
        yield from (entry for entry in earlier if self._journal.is_whole(entry))


def _are_done(done: int, total: int) -> str:
    """``it is done``, ``1 of them is done``, ``3 of them are done``."""
    if total == 1:
        return "it is done"
    return f"{done:,} of them {'is' if done == 1 else 'are'} done"


def _video_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON says of a video; texts and crops of its frames may be a hundred thousand files."""
    left_out = ("state", "film", "video", "files")
    files = [name for name in entry["files"] if name.startswith((f"{VIDEOS}/", f"{FRAMES}/"))]
    return {**{key: value for key, value in entry.items() if key not in left_out}, "files": files}


def _check_apart(out: Path, sources: Sources) -> None:
    """Writing must not replace an input."""
    places = {(out / folder).resolve() for folder in RESULT_FOLDERS}
    folders = {item.location.parent.resolve() for item in (*sources.images, *sources.videos)
               if isinstance(item.location, Path)}  # fmt: skip
    for folder in folders:
        for place in (folder, *folder.parents):
            if place in places:
                raise InputError(f"out={out}: results are written into {place}, where inputs lie; give another out")
