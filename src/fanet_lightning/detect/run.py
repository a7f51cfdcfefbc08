"""A run of detect over images and videos: what is done is skipped, the rest read, detected and written."""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from rich import progress
from rich.console import Console

from fanet_lightning.cli.errors import InputError, check, counted
from fanet_lightning.cli.files import check_names_free, replaced
from fanet_lightning.cli.provenance import locked
from fanet_lightning.data.images import Image8
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.inputs import JOURNAL_FILE, RESULT_FOLDERS, Item, Sources, has_journal, load
from fanet_lightning.detect.outputs import (
    FRAMES,
    JSON_FILE,
    UNFINISHED,
    VIDEOS,
    FoundImage,
    Results,
    Saving,
    write_image,
    write_json,
    write_parts,
)
from fanet_lightning.detect.selection import Selection
from fanet_lightning.detect.stream import StreamSettings, in_threads, ready_bytes
from fanet_lightning.detect.tracking import LOW_SCORE, ByteTrack, FrameFaces, tracked
from fanet_lightning.detect.video import CONTAINERS, Frame, VideoReader, VideoWriter
from fanet_lightning.ops.structures import Detections

# Images that are read, or wait to be written, for every thread; what a killed process loses is no more than these.
IMAGES_PER_THREAD = 2
# Where faces are redacted: boxes of this score and more that were not are counted. Below it the shipped model takes
# the background for faces, some 700 an image.
FAINT = 0.15
# Frames between the network and the encoder.
FRAMES_BEHIND = 4


class Progress(progress.Progress):
    """A progress bar on a terminal; ``speed``: ``12.3 images/s``, of ``total`` or an unknown number of ``unit``."""

    def __init__(self, total: int | None, unit: str, console: Console | None = None) -> None:
        console = console or Console(stderr=True, highlight=False, markup=False, soft_wrap=True, emoji=False)
        super().__init__(
            progress.TextColumn("detecting"), progress.BarColumn(), progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[speed]}"), progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
            console=console, disable=total == 1 or not console.is_terminal,
        )  # fmt: skip
        self.unit, self.speed = unit, ""
        self.task = self.add_task("", total=total, speed="")

    def step(self) -> None:
        """One more is done."""
        [task] = self.tasks
        self.speed = f"{(task.completed + 1) / max(task.elapsed or 0.0, 1e-9):.1f} {self.unit}/s"
        self.update(self.task, advance=1, speed=self.speed)


@dataclass(kw_only=True)
class Run:
    """Find faces in all inputs and write what ``saving`` asks for into ``out``, by a call.

    Args:
        look: protocol, which boxes are faces, whether images are turned.
        every: of videos, look at every so many frames; the others are left out, with ``track`` interpolated.
        max_frames: of videos, write so many, then stop.
        track: give faces of videos an identity, :mod:`fanet_lightning.detect.tracking`.
        download: bytes and seconds that one may take at most.
        workers: threads that read images, and as many that write.
        resume: skip inputs that were done with the same settings; False removes all results that are there.
        settings: what results depend on next to the others, e.g. the weights' checksum.
        made_by: for the JSON.

    Attributes:
        failed: inputs without results, and ``broken``: videos that ended early, with the reason.
        left: boxes of this run's images and frames that were not selected.
        interrupted: by Ctrl-C; what was done is kept.
    """

    sources: Sources
    detector: FaceDetector
    look: StreamSettings
    out: Path
    saving: Saving
    every: int
    max_frames: int | None
    track: bool
    download: tuple[int, float]
    workers: int
    resume: bool
    settings: Mapping[str, Any]
    made_by: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.failed = dict(self.sources.failed)
        self.broken: dict[str, str] = {}
        self.left = 0
        self.interrupted = False
        self.speed = ""
        # What a video's entry in the journal must have to count as done.
        self.of_video = {"every": self.every, "max_frames": self.max_frames, "track": self.track}

    def __call__(self) -> None:
        """Do it, and print what was done.

        InputError: ``out`` is in use, or holds an input, or results of other inputs that are of other settings or would
        be overwritten; or the package that follows faces is missing.
        """
        sources, saving, out = self.sources, self.saving, self.out
        if self.track and sources.videos:
            threshold: Any = self.look.threshold
            check(not isinstance(threshold, Mapping), f"threshold={threshold}: track=true takes one number")
            ByteTrack(threshold)  # a missing package is told before anything is written
        self._check_apart()
        depends_on = {
            **self.settings, **self.look.select.settings, "rotate": self.look.rotate, "save": sorted(saving.save),
            "redact": saving.redact and saving.redact.settings, "draw": saving.draw, "bar": saving.bar,
            "scores": saving.labels,
        }  # fmt: skip
        items = [*sources.images, *sources.videos]
        with locked(out, "run of detect"), Results(out, depends_on, items, resume=self.resume) as self.results:
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
            images = [item for item in sources.images if not self.results.is_done(item)]
            videos = [
                x for x in sources.videos if not (x.state and self.results.is_done(x, {"of_video": self.of_video}))
            ]
            todo = [*images, *videos]
            print(self._opening(len(items), len(items) - len(todo)), flush=True)
            for reason in sources.failed.values():
                print(f"error: {reason}", file=sys.stderr)
            self.results.forget(todo)
            try:
                if images:
                    self._detect_images(images)
                for item in videos:
                    if not self.interrupted:
                        self._detect_video(item)
            except KeyboardInterrupt:
                self.interrupted = True
            finally:
                if "json" in saving.save:
                    done = all(item.name in self.results.entries or item.name in self.failed for item in todo)
                    complete = done and not self.interrupted
                    head = {"complete": complete, "settings": depends_on, "made_by": self.made_by}
                    write_json(out, self.results.ordered(items), self.failed, head)
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
            print(f"{self._summary()}; the results are in {out}", flush=True)
        if saving.redact is not None and self.left:
            print(f"boxes with a score of {FAINT:g} or more that were left: {self.left:,}; look for missed faces")

    def _check_apart(self) -> None:
        """Writing must not replace an input, nor what is of something else."""
        inputs = (*self.sources.images, *self.sources.videos)
        folders = {item.location.parent for item in inputs if isinstance(item.location, Path)}
        around = {place for folder in folders for place in (folder.resolve(), *folder.resolve().parents)}
        inside = around.intersection((self.out / folder).resolve() for folder in RESULT_FOLDERS)
        where = ", ".join(map(str, inside))
        check(not inside, f"out={self.out}: results are written into {where}, which contains inputs; give another out")
        if not has_journal(self.out):
            check_names_free(self.out, (*RESULT_FOLDERS, JSON_FILE, JOURNAL_FILE), "a run of detect")

    def _opening(self, count: int, done: int) -> str:
        kinds = {"image": len(self.sources.images), "video": len(self.sources.videos)}
        text = f"detecting faces in {' and '.join(counted(number, kind) for kind, number in kinds.items() if number)}"
        if self.results.refused:
            text += f"\nstarting over: the results in {self.out} are of other settings "
            text += f"({', '.join(self.results.refused)})"
        elif done:
            text += f"\nresuming: {done:,} of {counted(count, 'input')} done already; resume=false starts over"
        return text

    def _summary(self) -> str:
        """``318 images, 1,204 faces, 2 could not be read; 12.3 images/s``: of what is there, whenever it was done."""
        entries = self.results.entries
        images, videos = ([entries[item.name] for item in items if item.name in entries]
                          for items in (self.sources.images, self.sources.videos))  # fmt: skip
        parts = [counted(len(images), "image")] if images or not videos else []
        if videos:
            parts.append(f"{counted(len(videos), 'video')} ({counted(sum(x['frames'] for x in videos), 'frame')})")
        parts.append(counted(sum(len(x["scores"]) for x in images) + sum(x["faces"] for x in videos), "face"))
        parts += [f"{len(self.failed):,} could not be read"] if self.failed else []
        parts += [f"{len(self.broken):,} broke off"] if self.broken else []
        return ", ".join(parts) + (f"; {self.speed}" if self.speed else "")

    def _fail(self, item: Item, error: Exception, bar: Progress) -> None:
        """Take note of an input that cannot be done, and tell it."""
        self.failed[item.name] = reason = " ".join(str(error).split())
        bar.console.print(f"error: {reason}")
        bar.step()

    def _boxes(self, image_rgb: Image8) -> Detections:
        return self.look.boxes(self.detector.backend, [self.look.prepare(image_rgb)])[0]

    def _faces(self, image_rgb: Image8) -> Detections:
        boxes = self._boxes(image_rgb)
        faces = self.look.select(boxes)
        self.left += len(boxes.above(FAINT)) - len(faces.above(FAINT))
        return faces

    def _detect_images(self, items: Sequence[Item]) -> None:
        """Images are decoded ahead and written behind in threads, while the network works in the caller's.

        An image that cannot be read is told and counted, and the rest continues. On Ctrl-C those whose faces are found
        are still written.
        """
        most = IMAGES_PER_THREAD * self.workers
        reading = partial(load, max_bytes=self.download[0], seconds=self.download[1])
        with Progress(len(items), "images") as bar:
            loads = in_threads(items, reading, threads=self.workers, most=most, size=ready_bytes)
            written = in_threads(
                self._found_images(loads, bar), partial(write_image, self.out, saving=self.saving),
                threads=self.workers, most=most, size=lambda image, _: image.image_rgb.nbytes, name="write-images",
                finish=True,
            )  # fmt: skip
            for image, writing in written:
                try:
                    self.results.add(image.item, image.entry(writing.result()))
                except InputError as error:
                    self._fail(image.item, error, bar)
                else:
                    bar.step()
                    self.speed = bar.speed

    def _found_images(self, loads: Iterable[tuple[Item, "Future[Any]"]], bar: Progress) -> Iterator[FoundImage]:
        for item, loading in loads:
            try:
                image_rgb, profile = loading.result()
                found = FoundImage(item, image_rgb, self._faces(image_rgb), profile)
            except InputError as error:
                self._fail(item, error, bar)
            else:
                yield found

    def _detect_video(self, item: Item) -> None:
        """One video; on Ctrl-C, or where it breaks off, what was done until then is kept under its name."""
        with Progress(None, "frames") as bar:
            try:
                entry = self._detect_frames(item, bar)
            except InputError as error:
                self._fail(item, error, bar)
                return
            self.speed = bar.speed
            for note in entry["notes"]:
                bar.console.print(f"{item.text}: {note}")
            if entry["broken"]:
                bar.console.print(f"error: {entry['broken']}; the {entry['frames']:,} frames before are kept")
                self.broken[item.name] = entry["broken"]
        # A broken or interrupted one starts over the next time.
        is_whole = not (entry["broken"] or self.interrupted)
        self.results.add(item, {**entry, "of_video": self.of_video if is_whole else None})

    def _detect_frames(self, item: Item, bar: Progress) -> dict[str, Any]:
        """Write a video with the faces of its frames, and a line of JSON for each; what the journal shall say of it.

        ``images`` of ``saving`` stands for the written video, ``json`` for the lines; texts and crops are of every
        frame.
        """
        suffix = PurePosixPath(item.name).suffix.lower()
        suffix = suffix if suffix in CONTAINERS else ".mp4"
        is_named = item.stem == item.name and item.stem.lower().endswith(suffix)
        video_name = f"{VIDEOS}/{item.stem}{'' if is_named else suffix}"
        lines_name = f"{FRAMES}/{item.stem}.jsonl"
        frames = faces = 0
        identities: set[int] = set()
        lines: IO[str] | None = None
        writer: VideoWriter | None = None
        with ExitStack() as stack:
            reader = stack.enter_context(VideoReader(item.location))
            if reader.frame_count is not None:
                total = reader.frame_count if self.track else -(-reader.frame_count // self.every)
                bar.update(bar.task, total=min(total, self.max_frames or total))
            if "json" in self.saving.save:
                temporary = stack.enter_context(replaced(self.out / lines_name, self.out / UNFINISHED))
                lines = stack.enter_context(temporary.open("w", encoding="ascii"))
            if "images" in self.saving.save:
                writer = stack.enter_context(VideoWriter(self.out / video_name, reader))
            write = partial(self._write_frame, item.stem, writer, lines)
            files = [lines_name] if lines else []
            try:
                # One thread, so that frames are written in order.
                behind = in_threads(
                    self._found_in(reader), write, threads=1, most=FRAMES_BEHIND, name="write-frames", finish=True
                )
                stack.enter_context(closing(behind))  # before the writer is
                for (_, in_frame), writing in behind:
                    files += writing.result()
                    frames, faces = frames + 1, faces + len(in_frame.detections)
                    identities.update(in_frame.track_id or ())
                    if in_frame.filled is not None:
                        looked_at = ~torch.tensor(in_frame.filled, dtype=torch.bool)
                        self.left -= len(in_frame.detections[looked_at].above(FAINT))
                    bar.step()
            except KeyboardInterrupt:
                self.interrupted = True
        if writer is not None and writer.frames_written:
            files.append(video_name)
        notes = [f"{reader.frames_skipped:,} damaged frames were left out"] if reader.frames_skipped else []
        if reader.frames_dropped:
            notes.append(f"{reader.frames_dropped:,} frames came while the network was busy, and were dropped")
        return {
            "video": True, "frames": frames, "faces": faces, "width": reader.size_wh[0], "height": reader.size_wh[1],
            "frames_per_second": reader.frames_per_second, "notes": notes + (writer.notes if writer else []),
            "broken": reader.broken, "files": files, "interrupted": self.interrupted,
            **({"tracks": len(identities)} if self.track else {}),
        }  # fmt: skip

    def _found_in(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, FrameFaces]]:
        """Frames of a video → those that are written, with their faces."""
        if not self.track:
            chosen = islice((frame for frame in frames if frame.index % self.every == 0), self.max_frames)
            return ((frame, FrameFaces(self._faces(frame.image_rgb))) for frame in chosen)
        assert isinstance(self.look.threshold, float | int)
        select = Selection(min(LOW_SCORE, self.look.threshold), self.look.min_face, self.look.max_faces)

        def faces_of(image_rgb: Image8) -> Detections:
            boxes = self._boxes(image_rgb)
            self.left += len(boxes.above(FAINT))  # what is followed is taken off as it is written
            return select(boxes)

        looked_at = (
            (frame, faces_of(frame.image_rgb) if frame.index % self.every == 0 else None)
            for frame in islice(frames, self.max_frames)
        )
        return tracked(looked_at, self.look.threshold, self.every)

    def _write_frame(
        self, stem: str, writer: VideoWriter | None, lines: IO[str] | None, found: tuple[Frame, FrameFaces]
    ) -> list[str]:
        """Write one frame wherever it is wanted; the files of its own."""
        frame, (faces, track_id, filled) = found
        if writer is not None:
            numbers = [f"{number} {face.score:.2f}" if self.saving.labels else str(number)
                       for number, face in zip(track_id or (), faces, strict=False)]  # fmt: skip
            writer.write(self.saving.shown(frame.image_rgb, faces, frame.time_seconds, numbers), frame)
        if lines is not None:
            boxes_xyxy, scores = faces.numpy()
            line = {"frame": frame.index, "time_seconds": frame.time_seconds, "boxes_xyxy": boxes_xyxy.tolist(),
                    "scores": scores.tolist(),
                    **({} if track_id is None else {"track_id": track_id, "filled": filled})}  # fmt: skip
            lines.write(json.dumps(line) + "\n")
        name = f"{stem}/frame_{frame.index:06d}"
        return write_parts(self.out, name, frame.image_rgb, faces, self.saving, time_seconds=frame.time_seconds)
