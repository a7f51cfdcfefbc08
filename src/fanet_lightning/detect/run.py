"""A run of detect over images and videos: what is done is skipped, the rest read, detected and written."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fanet_lightning.cli.errors import InputError, counted, first_line
from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import locked
from fanet_lightning.data.images import Image8
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.inputs import RESULT_FOLDERS, Item, Limits, Loaded, Sources, load
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
from fanet_lightning.detect.protocols import build_protocol, full_settings
from fanet_lightning.detect.selection import Selection, Threshold
from fanet_lightning.detect.stream import Progress, StreamSettings, in_threads, ready_bytes
from fanet_lightning.detect.tracking import LOW_SCORE, ByteTrack, FrameFaces, tracked
from fanet_lightning.detect.video import CONTAINERS, Frame, VideoReader, VideoWriter
from fanet_lightning.models.pretrained import DEFAULT_THRESHOLD
from fanet_lightning.ops.structures import Detections

# Images that are read, or wait to be written, for every thread; what a killed process loses is no more than these.
IMAGES_PER_THREAD = 2
# Where faces are redacted: boxes of this score and more that are below the threshold are counted. Below it the shipped
# model takes the background for faces, some 700 an image.
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

    ``images``, ``videos``: inputs, those done earlier too. ``failed``: those without results. ``fainter``,
    ``left_out``: boxes of this run that were not redacted, below the threshold and by ``min_face`` and ``max_faces``.
    """

    images: int = 0
    videos: int = 0
    frames: int = 0
    faces: int = 0
    fainter: int = 0
    left_out: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    speed: str = ""

    def fail(self, item: Item, error: InputError, progress: Progress) -> None:
        """Take note of an input that cannot be done, and tell it."""
        self.failed[item.name] = reason = " ".join(str(error).split())
        progress.say(f"error: {reason}")
        progress.advance()

    def note_left(self, boxes: Detections, above: Detections, faces: Detections) -> None:
        """Count what is not redacted of an image: all of its boxes, those above the threshold, those taken."""
        self.fainter += len(boxes.above(FAINT)) - len(above.above(FAINT))
        self.left_out += len(above) - len(faces)

    def left_lines(self, scores: Sequence[tuple[float, float]]) -> list[str]:
        """What was not redacted, in words; ``scores`` are the thresholds by size."""
        lines = []
        if self.fainter:
            what = "box was left as it is" if self.fainter == 1 else "boxes were left as they are"
            lines.append(f"{self.fainter:,} fainter {what} (scores {FAINT:g}–{max(score for _, score in scores):g})")
        if self.left_out:
            was = "was" if self.left_out == 1 else "were"
            lines.append(f"{counted(self.left_out, 'face')} {was} left by min_face or max_faces")
        return lines

    def count(self, sources: Sources, results: Results) -> None:
        """Over what is in the folder of the results now, whenever it was done."""
        images, videos = ([results.entries[item.name] for item in items if item.name in results.entries]
                          for items in (sources.images, sources.videos))  # fmt: skip
        self.images, self.videos = len(images), len(videos)
        self.frames = sum(entry["frames"] for entry in videos)
        self.faces = sum(len(entry["scores"]) for entry in images) + sum(entry["faces"] for entry in videos)

    def line(self) -> str:
        """``318 images, 1,204 faces, 2 could not be read; 12.3 images/s``."""
        parts = [counted(self.images, "image")] if self.images or not self.videos else []
        parts += [f"{counted(self.videos, 'video')} ({counted(self.frames, 'frame')})"] if self.videos else []
        parts.append(counted(self.faces, "face"))
        parts += [f"{len(self.failed):,} could not be read"] if self.failed else []
        parts += [f"{len(self.broken):,} broke off"] if self.broken else []
        return ", ".join(parts) + (f"; {self.speed}" if self.speed else "")


def detect_sources(
    sources: Sources,
    detector: FaceDetector,
    protocol: Mapping[str, Any],
    out: Path,
    *,
    threshold: Threshold = DEFAULT_THRESHOLD,
    min_face: float = 0,
    max_faces: int | None = None,
    rotate: str = "none",
    saving: Saving | None = None,
    video_options: VideoOptions | None = None,
    limits: Limits | None = None,
    workers: int = 2,
    resume: bool = True,
    made_by: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    stated: Sequence[str] = (),
) -> Summary:
    """Find faces in all inputs and write what ``saving`` asks for into ``out``.

    Boxes are in pixels of the upright image: what the camera noted in EXIF about its orientation is applied.

    Args:
        sources: of :func:`fanet_lightning.detect.inputs.find_sources`.
        detector: any :class:`FaceDetector`.
        protocol: ``name`` and what :func:`fanet_lightning.detect.protocols.build_protocol` reads.
        out: folder, made if need be.
        threshold, min_face, max_faces, rotate: as of :meth:`FaceDetector.detect`.
        saving: default: images with boxes, and the JSON.
        video_options: which frames of videos.
        limits: of downloads.
        workers: threads that read images, and as many that write.
        resume: skip inputs that were done with the same settings; False removes all results that are there.
        made_by: for the JSON.
        settings: what results depend on next to the arguments above, e.g. the weights' checksum.
        stated: the sources, of :func:`fanet_lightning.detect.inputs.stated_sources`.

    Returns:
        Numbers of inputs and faces; what failed, with the reason of each; whether Ctrl-C ended it.

    Raises:
        InputError: ``out`` is in use, cannot be written, or holds results of other inputs that are of other settings or
            would be overwritten; or an input would be overwritten; or the package that follows faces is missing.
    """
    saving, limits, options = saving or Saving(), limits or Limits(), video_options or VideoOptions()
    summary = Summary(failed=dict(sources.failed))
    look = StreamSettings(build_protocol(protocol), threshold, min_face, max_faces, rotate)

    def find_boxes(image_rgb: Image8) -> Detections:
        return look.boxes(detector.backend, [look.prepare(image_rgb)])[0]

    def find_faces(image_rgb: Image8) -> Detections:
        boxes = find_boxes(image_rgb)
        faces = look.select(boxes)
        if saving.redact is not None:
            summary.note_left(boxes, look.select.above(boxes), faces)
        return faces

    find_in_frames: FindInFrames = partial(_found_in_frames, find_faces=find_faces, options=options)
    if options.track and sources.videos:
        if isinstance(threshold, Mapping):
            raise InputError(f"threshold={threshold}: track=true takes one number")
        ByteTrack(threshold)  # told before anything is written
        select = Selection(min(LOW_SCORE, threshold), min_face, max_faces)
        find_in_frames = partial(_followed, find_boxes=find_boxes, select=select, options=options, threshold=threshold)
    _check_apart(out, sources)
    depends_on = {
        "protocol": full_settings(protocol), **look.select.settings, "rotate": rotate, "save": sorted(saving.save),
        "redact": saving.redact and saving.redact.settings, "draw": saving.draw, "bar": saving.bar,
        "scores": saving.labels, **(settings or {}),
    }  # fmt: skip
    items = [*sources.images, *sources.videos]
    with _writing(out), locked(out, "run of detect"):
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        with Results(out, depends_on, items, resume=resume, sources=stated) as results:
            images = [item for item in sources.images if not results.is_done(item)]
            videos = [x for x in sources.videos if not (x.state and results.is_done(x, options.settings))]
            todo = [*images, *videos]
            print(_opening(sources, results, len(items) - len(todo)), flush=True)
            for reason in sources.failed.values():
                print(f"error: {reason}", file=sys.stderr)
            results.forget(todo)
            try:
                if images:
                    _detect_images(images, find_faces, results, saving, limits, workers, summary)
                for item in videos:
                    _detect_video(item, find_in_frames, results, saving, options, summary)
            except KeyboardInterrupt:
                summary.interrupted = True
            finally:
                if "json" in saving.save:
                    done = all(item.name in results.entries or item.name in summary.failed for item in todo)
                    head = {"complete": done and not summary.interrupted, "settings": depends_on,
                            "made_by": dict(made_by or {})}  # fmt: skip
                    write_json(out, results.ordered(items), summary.failed, head)
            summary.count(sources, results)
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    print(f"{summary.line()}; the results are in {out}", flush=True)
    for text in summary.left_lines(look.select.scores):
        print(text, flush=True)
    return summary


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """What cannot be read is an InputError by then, so an OSError is about writing."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InputError(f"out={out} cannot be written ({reason}); free it, and the same command resumes") from error


def _detect_images(
    items: Sequence[Item],
    find_faces: FindFaces,
    results: Results,
    saving: Saving,
    limits: Limits,
    workers: int,
    summary: Summary,
) -> None:
    """Images are decoded ahead and written behind in threads, while the network works in the caller's.

    An image that cannot be read is told and counted, and the rest continues. On Ctrl-C those whose faces are found are
    still written.
    """
    most = IMAGES_PER_THREAD * workers
    with Progress(len(items), "images", quiet=len(items) == 1) as progress:
        loads = in_threads(items, partial(load, limits=limits), threads=workers, most=most, size=ready_bytes)
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
            image_rgb, note, profile = loading.result()
            faces = find_faces(image_rgb)
        except InputError as error:
            summary.fail(item, error, progress)
            continue
        if note:
            progress.say(f"{item.text}: {note} is used")
        yield FoundImage(item, image_rgb, faces, note, profile)


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
    frames: Iterable[Frame],
    find_boxes: FindFaces,
    select: Selection,
    options: VideoOptions,
    threshold: float,
) -> Iterator[tuple[Frame, FrameFaces]]:
    def looked_at() -> Iterator[tuple[Frame, Detections | None]]:
        for frame in islice(frames, options.max_frames):
            boxes = find_boxes(frame.image_rgb) if frame.index % options.every == 0 else None
            yield frame, None if boxes is None else select(boxes)

    return tracked(looked_at(), threshold, options.every)


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
            progress.total = min(total, options.max_frames or total)
        if "json" in saving.save:
            temporary = stack.enter_context(replaced(out / lines_name, out / UNFINISHED))
            lines = stack.enter_context(temporary.open("w", encoding="ascii"))
        if "images" in saving.save:
            writer = stack.enter_context(VideoWriter(out / video_name, reader))
        found = find_in_frames(reader)
        write = partial(_write_frame, out, item.stem, saving, writer, lines)
        files = [lines_name] if lines else []
        try:
            # One thread, so that frames are written in order.
            behind = in_threads(found, write, threads=1, most=FRAMES_BEHIND, name="write-frames", finish=True)
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
    if sources.ignored:
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(sources.ignored.items()))
        text += f" ({counted(sum(sources.ignored.values()), 'other file')} ignored; {kinds})"
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
