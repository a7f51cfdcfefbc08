"""A run of detect over images and videos: what is done is skipped, the rest read, detected and written."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import locked
from fanet_lightning.data.images import Image8
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.inputs import RESULT_FOLDERS, Item, Loaded, Sources, load
from fanet_lightning.detect.outputs import (
    FRAMES,
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
from fanet_lightning.detect.stream import Progress, StreamSettings, in_threads, ready_bytes
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


FindFaces = Callable[[Image8], Detections]
"""(H, W, 3) uint8 RGB → faces in its pixels. An InputError is about this image alone."""
FindInFrames = Callable[[Iterable[Frame]], Iterator[tuple[Frame, FrameFaces]]]
"""Frames of a video → those that are written, with their faces."""


@dataclass(frozen=True)
class VideoOptions:
    """``every``: look at every so many frames; the others are left out, with ``track`` their faces are interpolated.

    ``max_frames``: write so many, then stop. ``track``: give faces an identity, :mod:`fanet_lightning.detect.tracking`.
    """

    every: int = 1
    max_frames: int | None = None
    track: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What a video's entry in the journal must have to count as done."""
        return {"film": asdict(self)}


@dataclass
class Summary:
    """What a run did.

    ``failed``: inputs without results, and ``broken``: videos that ended early, with the reason. ``left``: boxes of
    this run's images that were not redacted. ``speed``: in words.
    """

    failed: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    left: int = 0
    interrupted: bool = False
    speed: str = ""

    def fail(self, item: Item, error: Exception, progress: Progress) -> None:
        """Take note of an input that cannot be done, and tell it."""
        self.failed[item.name] = reason = " ".join(str(error).split())
        progress.say(f"error: {reason}")
        progress.advance()

    def line(self, sources: Sources, results: Results) -> str:
        """``318 images, 1,204 faces, 2 could not be read; 12.3 images/s``: of what is there, whenever it was done."""
        images, videos = ([results.entries[item.name] for item in items if item.name in results.entries]
                          for items in (sources.images, sources.videos))  # fmt: skip
        parts = [counted(len(images), "image")] if images or not videos else []
        if videos:
            parts.append(f"{counted(len(videos), 'video')} ({counted(sum(x['frames'] for x in videos), 'frame')})")
        parts.append(counted(sum(len(x["scores"]) for x in images) + sum(x["faces"] for x in videos), "face"))
        parts += [f"{len(self.failed):,} could not be read"] if self.failed else []
        parts += [f"{len(self.broken):,} broke off"] if self.broken else []
        return ", ".join(parts) + (f"; {self.speed}" if self.speed else "")


def detect_sources(
    sources: Sources,
    detector: FaceDetector,
    look: StreamSettings,
    out: Path,
    *,
    saving: Saving,
    options: VideoOptions,
    download: tuple[int, float],
    workers: int,
    resume: bool,
    settings: Mapping[str, Any],
    made_by: Mapping[str, Any],
) -> Summary:
    """Find faces in all inputs and write what ``saving`` asks for into ``out``.

    Boxes are in pixels of the upright image: what the camera noted in EXIF about its orientation is applied.

    Args:
        sources: of :func:`fanet_lightning.detect.inputs.find_sources`.
        look: protocol, which boxes are faces, whether images are turned.
        options: of videos.
        download: bytes and seconds that one may take at most.
        workers: threads that read images, and as many that write.
        resume: skip inputs that were done with the same settings; False removes all results that are there.
        settings: what results depend on next to the arguments above, e.g. the weights' checksum.
        made_by: for the JSON.

    Raises:
        InputError: ``out`` is in use, or holds results of other inputs that are of other settings or would be
            overwritten; or an input would be overwritten; or the package that follows faces is missing.
        OSError: ``out`` cannot be written.
    """
    summary = Summary(dict(sources.failed))

    def find_boxes(image_rgb: Image8) -> Detections:
        return look.boxes(detector.backend, [look.prepare(image_rgb)])[0]

    def find_faces(image_rgb: Image8) -> Detections:
        boxes = find_boxes(image_rgb)
        faces = look.select(boxes)
        summary.left += len(boxes.above(FAINT)) - len(faces.above(FAINT))
        return faces

    find_in_frames: FindInFrames = partial(_found_in_frames, find_faces=find_faces, options=options)
    if options.track and sources.videos:
        if isinstance(look.threshold, Mapping):
            raise InputError(f"threshold={look.threshold}: track=true takes one number")
        ByteTrack(look.threshold)  # a missing package is told before anything is written
        select = Selection(min(LOW_SCORE, look.threshold), look.min_face, look.max_faces)
        find_in_frames = partial(
            _followed, find_boxes=find_boxes, select=select, options=options, threshold=look.threshold
        )
    _check_apart(out, sources)
    depends_on = {
        **settings, **look.select.settings, "rotate": look.rotate, "save": sorted(saving.save),
        "redact": saving.redact and saving.redact.settings, "draw": saving.draw, "bar": saving.bar,
        "scores": saving.labels,
    }  # fmt: skip
    items = [*sources.images, *sources.videos]
    with locked(out, "run of detect"), Results(out, depends_on, items, resume=resume) as results:
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        images = [item for item in sources.images if not results.is_done(item)]
        videos = [x for x in sources.videos if not (x.state and results.is_done(x, options.settings))]
        todo = [*images, *videos]
        print(_opening(sources, results, len(items) - len(todo)), flush=True)
        for reason in sources.failed.values():
            print(f"error: {reason}", file=sys.stderr)
        results.forget(todo)
        try:
            if images:
                _detect_images(images, find_faces, results, saving, download, workers, summary)
            for item in videos:
                _detect_video(item, find_in_frames, results, saving, options, summary)
        except KeyboardInterrupt:
            summary.interrupted = True
        finally:
            if "json" in saving.save:
                done = all(item.name in results.entries or item.name in summary.failed for item in todo)
                head = {"complete": done and not summary.interrupted, "settings": depends_on, "made_by": made_by}
                write_json(out, results.ordered(items), summary.failed, head)
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        print(f"{summary.line(sources, results)}; the results are in {out}", flush=True)
    if saving.redact is not None and summary.left:
        print(f"boxes with a score of {FAINT:g} or more that were left: {summary.left:,}; look for missed faces")
    return summary


def _detect_images(
    items: Sequence[Item],
    find_faces: FindFaces,
    results: Results,
    saving: Saving,
    download: tuple[int, float],
    workers: int,
    summary: Summary,
) -> None:
    """Images are decoded ahead and written behind in threads, while the network works in the caller's.

    An image that cannot be read is told and counted, and the rest continues. On Ctrl-C those whose faces are found are
    still written.
    """
    most = IMAGES_PER_THREAD * workers
    with Progress(len(items), "images") as progress:
        reading = partial(load, max_bytes=download[0], seconds=download[1])
        loads = in_threads(items, reading, threads=workers, most=most, size=ready_bytes)
        found = _found_images(loads, find_faces, summary, progress)
        written = in_threads(
            found, partial(write_image, results.out, saving=saving), threads=workers, most=most,
            size=lambda image, _: image.image_rgb.nbytes, name="write-images", finish=True,
        )  # fmt: skip
        for image, writing in written:
            try:
                files = writing.result()
            except InputError as error:
                summary.fail(image.item, error, progress)
                continue
            results.add(image.item, image.entry(files))
            progress.advance()
            summary.speed = progress.speed()


def _found_images(
    loads: Iterable[tuple[Item, "Future[Loaded]"]], find_faces: FindFaces, summary: Summary, progress: Progress
) -> Iterator[FoundImage]:
    for item, loading in loads:
        try:
            image_rgb, profile = loading.result()
            faces = find_faces(image_rgb)
        except InputError as error:
            summary.fail(item, error, progress)
            continue
        yield FoundImage(item, image_rgb, faces, profile)


def _detect_video(
    item: Item, find_in_frames: FindInFrames, results: Results, saving: Saving, options: VideoOptions, summary: Summary
) -> None:
    """One video; on Ctrl-C, or where it breaks off, what was done until then is kept under its name."""
    with Progress(None, "frames") as progress:
        try:
            entry = _detect_frames(item, find_in_frames, results.out, saving, options, progress)
        except InputError as error:
            summary.fail(item, error, progress)
            return
        summary.speed = progress.speed()
        for note in entry["notes"]:
            progress.say(f"{item.text}: {note}")
        if entry["broken"]:
            progress.say(f"error: {entry['broken']}; the {entry['frames']:,} frames before are kept")
            summary.broken[item.name] = entry["broken"]
    # A broken or interrupted one starts over the next time.
    complete = not (entry["broken"] or entry["interrupted"])
    results.add(item, {**entry, **(options.settings if complete else {"film": None})})
    if entry["interrupted"]:
        raise KeyboardInterrupt


def _found_in_frames(
    frames: Iterable[Frame], find_faces: FindFaces, options: VideoOptions
) -> Iterator[tuple[Frame, FrameFaces]]:
    chosen = islice((frame for frame in frames if frame.index % options.every == 0), options.max_frames)
    return ((frame, FrameFaces(find_faces(frame.image_rgb))) for frame in chosen)


def _followed(
    frames: Iterable[Frame], find_boxes: FindFaces, select: Selection, options: VideoOptions, threshold: float
) -> Iterator[tuple[Frame, FrameFaces]]:
    looked_at = (
        (frame, select(find_boxes(frame.image_rgb)) if frame.index % options.every == 0 else None)
        for frame in islice(frames, options.max_frames)
    )
    return tracked(looked_at, threshold, options.every)


def _detect_frames(
    item: Item, find_in_frames: FindInFrames, out: Path, saving: Saving, options: VideoOptions, progress: Progress
) -> dict[str, Any]:
    """Write a video with the faces of its frames, and a line of JSON for each; what the journal shall say of it.

    ``images`` of ``saving`` stands for the written video, ``json`` for the lines; texts and crops are of every frame.
    """
    suffix = PurePosixPath(item.name).suffix.lower()
    suffix = suffix if suffix in CONTAINERS else ".mp4"
    video_name = f"{VIDEOS}/{item.stem}" + ("" if item.stem.lower().endswith(suffix) else suffix)
    lines_name = f"{FRAMES}/{item.stem}.jsonl"
    frames = faces = 0
    identities: set[int] = set()
    interrupted = False
    lines: IO[str] | None = None
    writer: VideoWriter | None = None
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(item.location))
        if reader.frame_count is not None:
            total = reader.frame_count if options.track else -(-reader.frame_count // options.every)
            progress.expect(min(total, options.max_frames or total))
        if "json" in saving.save:
            temporary = stack.enter_context(replaced(out / lines_name, out / UNFINISHED))
            lines = stack.enter_context(temporary.open("w", encoding="ascii"))
        if "images" in saving.save:
            writer = stack.enter_context(VideoWriter(out / video_name, reader))
        write = partial(_write_frame, out, item.stem, saving, writer, lines)
        files = [lines_name] if lines else []
        try:
            # One thread, so that frames are written in order.
            behind = in_threads(
                find_in_frames(reader), write, threads=1, most=FRAMES_BEHIND, name="write-frames", finish=True
            )
            for (_, in_frame), writing in behind:
                files += writing.result()
                frames, faces = frames + 1, faces + len(in_frame.detections)
                identities.update(in_frame.track_id or ())
                progress.advance()
        except KeyboardInterrupt:
            interrupted = True
    if writer is not None and writer.frames_written:
        files.append(video_name)
    notes = [f"{reader.frames_skipped:,} damaged frames were left out"] if reader.frames_skipped else []
    if reader.frames_dropped:
        notes.append(f"{reader.frames_dropped:,} frames came while the network was busy, and were dropped")
    return {
        "video": True, "frames": frames, "faces": faces, "width": reader.size_wh[0], "height": reader.size_wh[1],
        "frames_per_second": reader.frames_per_second, "notes": notes + (writer.notes if writer else []),
        "broken": reader.broken, "files": files, "interrupted": interrupted,
        **({"tracks": len(identities)} if options.track else {}),
    }  # fmt: skip


def _write_frame(
    out: Path,
    stem: str,
    saving: Saving,
    writer: VideoWriter | None,
    lines: IO[str] | None,
    found: tuple[Frame, FrameFaces],
) -> list[str]:
    """Write one frame wherever it is wanted; the files of its own."""
    frame, (faces, track_id, filled) = found
    if writer is not None:
        numbers = [f"{number} {face.score:.2f}" if saving.labels else str(number)
                   for number, face in zip(track_id or (), faces, strict=False)]  # fmt: skip
        writer.write(saving.shown(frame.image_rgb, faces, frame.time_seconds, numbers), frame)
    if lines is not None:
        boxes_xyxy, scores = faces.numpy()
        line = {"frame": frame.index, "time_seconds": frame.time_seconds, "boxes_xyxy": boxes_xyxy.tolist(),
                "scores": scores.tolist(),
                **({} if track_id is None else {"track_id": track_id, "filled": filled})}  # fmt: skip
        lines.write(json.dumps(line) + "\n")
    name = f"{stem}/frame_{frame.index:06d}"
    return write_parts(out, name, frame.image_rgb, faces, saving, time_seconds=frame.time_seconds)


def _opening(sources: Sources, results: Results, done: int) -> str:
    things = [counted(len(sources.images), "image")] if sources.images else []
    things += [counted(len(sources.videos), "video")] if sources.videos else []
    text = f"detecting faces in {' and '.join(things)}"
    if results.refused:
        text += f"\nstarting over: the results in {results.out} are of other settings ({', '.join(results.refused)})"
    elif done:
        text += f"\nresuming: {done:,} of {counted(len(sources.images) + len(sources.videos), 'input')} done already; "
        text += "resume=false starts over"
    return text


def _check_apart(out: Path, sources: Sources) -> None:
    """Writing must not replace an input."""
    places = {(out / folder).resolve() for folder in RESULT_FOLDERS}
    folders = {item.location.parent.resolve() for item in (*sources.images, *sources.videos)
               if isinstance(item.location, Path)}  # fmt: skip
    for folder in folders:
        for place in places.intersection((folder, *folder.parents)):
            raise InputError(f"out={out}: results are written into {place}, which contains inputs; give another out")
