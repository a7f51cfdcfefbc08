"""One run of ``detect`` over all its inputs: what is done already is skipped, the rest goes through the pipelines."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.errors import InputError
from fanet_lightning.media.filming import FilmOptions, film
from fanet_lightning.media.inputs import RESULT_FOLDERS, Item
from fanet_lightning.media.journal import Journal, state_of
from fanet_lightning.media.loading import Limits
from fanet_lightning.media.outputs import FRAMES, UNFINISHED, VIDEOS, Saving, write_json
from fanet_lightning.media.pipeline import FindFaces, ImagePipeline
from fanet_lightning.media.progress import Progress
from fanet_lightning.media.sources import Sources
from fanet_lightning.multiscale import build_protocol, full_settings
from fanet_lightning.run_record import locked

if TYPE_CHECKING:
    from fanet_lightning.detector import FaceDetector


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
            parts.append(_counted(self.images, "image"))
        if self.videos:
            parts.append(f"{_counted(self.videos, 'video')} ({_counted(self.frames, 'frame')})")
        parts.append(_counted(self.faces, "face"))
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
    threshold: float = 0.5,
    saving: Saving | None = None,
    film_options: FilmOptions | None = None,
    limits: Limits | None = None,
    workers: int = 2,
    resume: bool = True,
    made_by: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Find faces in all inputs and write what ``saving`` asks for into ``out``.

    Boxes are in pixels of the upright picture: what the camera noted in EXIF about its orientation is applied.

    Args:
        sources: of :func:`fanet_lightning.media.sources.find_sources`.
        detector: any :class:`FaceDetector`.
        protocol: ``name`` and what :func:`fanet_lightning.multiscale.build_protocol` reads.
        out: folder, made if need be.
        threshold: faces with a lower score are left out.
        saving: default: pictures with boxes, and the JSON.
        film_options: which frames of videos.
        limits: of downloads.
        workers: threads that read images, and as many that write.
        resume: skip inputs that were done with the same settings.
        made_by: for the JSON.
        settings: what results depend on besides the arguments above, e.g. the weights' checksum.

    Returns:
        Numbers of inputs and faces; what failed, with the reason of each; whether Ctrl-C ended it.

    Raises:
        InputError: ``out`` is in use, would overwrite an input, or cannot be written.
    """
    saving, limits = saving or Saving(), limits or Limits()
    scale = build_protocol(protocol)
    _check_apart(out, sources)
    depends_on = {
        "protocol": full_settings(protocol), "threshold": threshold, "save": sorted(saving.save),
        "redact": saving.redact, "draw": saving.draw, "bar": saving.bar, **(settings or {}),
    }  # fmt: skip
    with locked(out, "run of detect"):
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        names = [item.name for item in (*sources.images, *sources.videos)]
        with Journal(out, depends_on, names, resume=resume) as journal:
            run = _Run(journal, out, saving, limits, film_options or FilmOptions(), workers)
            try:
                run.all(sources, lambda image_rgb: detector.detect(image_rgb, scale, threshold))
            finally:
                if "json" in saving.save:
                    run.write_json(sources, {"settings": depends_on, "made_by": dict(made_by or {})})
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return run.summary


class _Run:
    def __init__(
        self, journal: Journal, out: Path, saving: Saving, limits: Limits, film: FilmOptions, workers: int
    ) -> None:
        self.summary = Summary()
        self._journal, self._out, self._saving, self._limits = journal, out, saving, limits
        self._film, self._workers = film, workers
        self._speed = ""  # nothing is said where nothing was done
        self._film_settings = {"every": film.every, "max_frames": film.max_frames}

    def all(self, sources: Sources, find_faces: FindFaces) -> None:
        images = [item for item in sources.images if not self._journal.is_done(item)]
        videos = [item for item in sources.videos if not self._is_done(item)]
        print(self._opening(sources, len(images) + len(videos)), flush=True)
        for item in (*images, *videos):
            self._journal.forget(item)
        try:
            if images:
                self._images(images, find_faces)
            for item in videos:
                self._video(item, find_faces)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        self._count(sources)
        print(self._closing(sources), flush=True)

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
        things = [_counted(len(sources.images), "image")] if sources.images else []
        things += [_counted(len(sources.videos), "video")] if sources.videos else []
        lines = [f"detecting faces in {' and '.join(things)}"]
        if sources.ignored:
            lines[0] += f" ({_counted(sources.ignored, 'other file')} ignored)"
        if sources.repeated:
            lines[0] += f" ({sources.repeated:,} given twice)"
        if self._journal.refused:
            lines.append(f"beginning anew: the results in {self._out} are of other settings "
                         f"({', '.join(self._journal.refused)})")  # fmt: skip
        elif missing < total:
            lines.append(f"going on: {total - missing:,} of them are done already; resume=false begins anew")
        return "\n".join(lines)

    def _closing(self, sources: Sources) -> str:
        return f"{self.summary.line(self._speed)}; the results lie in {self._out}"

    def write_json(self, sources: Sources, head: Mapping[str, Any]) -> None:
        entries = self._journal.entries
        images = (entries[item.name] for item in sources.images if item.name in entries)
        videos = [_video_entry(entries[item.name]) for item in sources.videos if item.name in entries]
        tried = len(self.summary.failed) + self.summary.images + self.summary.videos
        complete = not self.summary.interrupted and tried == len(sources.images) + len(sources.videos)
        write_json(self._out, images, videos, self.summary.failed, {"complete": complete, **head})


def _video_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON says of a video; texts and crops of its frames may be a hundred thousand files."""
    left_out = ("state", "film", "video", "files")
    files = [name for name in entry["files"] if name.startswith((f"{VIDEOS}/", f"{FRAMES}/"))]
    return {**{key: value for key, value in entry.items() if key not in left_out}, "files": files}


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _check_apart(out: Path, sources: Sources) -> None:
    """Writing must not replace an input."""
    places = {(out / folder).resolve() for folder in RESULT_FOLDERS}
    folders = {item.location.parent.resolve() for item in (*sources.images, *sources.videos)
               if isinstance(item.location, Path)}  # fmt: skip
    for folder in folders:
        for place in (folder, *folder.parents):
            if place in places:
                raise InputError(f"out={out}: results are written into {place}, where inputs lie; give another out")
