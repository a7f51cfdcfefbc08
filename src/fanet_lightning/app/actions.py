"""What happens on the page, as functions from what its controls say to what it shows. Imports Gradio."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import gradio as gr

from fanet_lightning.app.results import (
    NO_REDACTION,
    SHOWN_SIDE,
    SHOWN_SIDE_OF_MANY,
    Picture,
    detect_picture,
    document,
    drawn,
    drawn_whole,
    film_document,
    find_in_film,
    write_jpeg,
)
from fanet_lightning.app.style import (
    detections_table,
    film_facts,
    hint,
    picture_facts,
    pictures_facts,
    problem,
    working,
)
from fanet_lightning.cli.errors import InputError

if TYPE_CHECKING:
    from fanet_lightning.app.settings import Settings
    from fanet_lightning.detect.detector import FaceDetector
    from fanet_lightning.detect.multiscale import AnyProtocol


EMPTY = "Drop a picture, paste one, or choose a file. JPEG, PNG, WebP, GIF, BMP, TIFF. Several at a time: the next tab."
EMPTY_SEVERAL = "Drop some pictures: each one's faces are counted, and one JSON holds them all."


class Actions:
    """One method for each thing that a person can do.

    Args:
        detector: who finds the faces; used by one request at a time.
        settings: limits and names.
        folder: where results are written, inside Gradio's upload folder.
    """

    def __init__(self, detector: "FaceDetector", settings: "Settings", folder: Path) -> None:
        self.detector = detector
        self.settings = settings
        self.folder = folder

    def _limits(self) -> dict[str, int]:
        return {"max_pixels": self.settings.max_pixels, "max_bytes": self.settings.max_bytes}

    def _protocol(self, name: str) -> "AnyProtocol":
        """The settings that the program was started with, where it is their name; else the protocol as it comes."""
        return self.settings.protocol if name == self.settings.protocol["name"] else name

    def _new(self, name: str) -> Path:
        """A path of its own for a result."""
        return self.folder / uuid4().hex / name

    def find(self, path: str | None, protocol: str, threshold: float, redaction: str) -> tuple[Any, ...]:
        """A picture was dropped or the protocol changed: run the network.

        Returns:
            The picture for later, then as :meth:`redraw`.
        """
        if path is None:
            return None, None, hint(EMPTY), "", None
        try:
            picture = detect_picture(
                self.detector,
                Path(path),
                Path(path).name,
                self._protocol(protocol),
                shown_side=SHOWN_SIDE,
                **self._limits(),
            )
        except InputError as error:
            return None, None, problem(error), "", None
        return picture, *self.redraw(picture, threshold, redaction)

    def redraw(self, picture: Picture | None, threshold: float, redaction: str) -> tuple[Any, ...]:
        """The threshold moved, or another redaction: filter and draw, without the network.

        Returns:
            File of the drawn picture, summary, table, JSON; nothing changes where there is no picture.
        """
        if picture is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        start = time.perf_counter()
        image_rgb = drawn(picture.shown_rgb, picture, threshold, redaction)
        seconds = time.perf_counter() - start
        shown = write_jpeg(image_rgb, self._new(f"{Path(picture.name).stem}_faces.jpg"), picture.profile)
        facts = picture_facts(picture, threshold, seconds)
        return str(shown), facts, detections_table(picture, threshold), self._document([picture], threshold)

    def _document(self, pictures: list[Picture], threshold: float, problems: list[InputError] | None = None) -> Any:
        return document(pictures, round(threshold, 4), self.settings.model_name, problems or [])

    def save_picture(self, picture: Picture | None, threshold: float, redaction: str) -> str:
        """The picture at its full size, drawn or redacted, as a file to save.

        Raises:
            gr.Error: there is none, or its upload has been deleted.
        """
        if picture is None:
            raise gr.Error("there is no picture yet: drop one first", title="Nothing to save")
        try:
            image_rgb = drawn_whole(picture, threshold, redaction, **self._limits())
            kind = "faces" if redaction == NO_REDACTION else redaction
            path = self._new(f"{Path(picture.name).stem}_{kind}.jpg")
            return str(write_jpeg(image_rgb, path, picture.profile, quality=95))
        except InputError as error:
            raise gr.Error(str(error), title="Cannot be saved") from error

    def save_json(self, content: Any, name: str = "faces") -> str:
        """What the page shows as JSON, as a file to save.

        Raises:
            gr.Error: nothing is shown.
        """
        if not content:
            raise gr.Error("there are no detections yet: drop something first", title="Nothing to save")
        images = content.get("images", [])
        path = self._new(f"{Path(images[0]['image']).stem if len(images) == 1 else name}.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return str(path)

    def find_several(
        self, paths: list[str] | None, protocol: str, threshold: float, redaction: str
    ) -> Iterator[tuple[Any, ...]]:
        """As :meth:`find` for several pictures; bad ones are named and left out.

        Yields:
            (pictures and problems for later, gallery, summary, JSON), the first ones while it is at work.
        """
        if not paths:
            yield None, [], hint(EMPTY_SEVERAL), None
            return
        if len(paths) > self.settings.max_images:
            text = f"{len(paths)} pictures are more than {self.settings.max_images} at a time; take some out"
            yield None, [], problem(text), None
            return
        pictures: list[Picture] = []
        problems: list[InputError] = []
        for number, path in enumerate(paths):
            yield gr.skip(), gr.skip(), working(number, len(paths), "pictures"), gr.skip()
            try:
                name = Path(path).name
                pictures.append(
                    detect_picture(
                        self.detector,
                        Path(path),
                        name,
                        self._protocol(protocol),
                        shown_side=SHOWN_SIDE_OF_MANY,
                        **self._limits(),
                    )
                )
            except InputError as error:
                problems.append(error)
        found = pictures, problems
        yield found, *self.redraw_several(found, threshold, redaction)

    def redraw_several(
        self, found: tuple[list[Picture], list[InputError]] | None, threshold: float, redaction: str
    ) -> tuple[Any, ...]:
        """As :meth:`redraw`: (gallery, summary, JSON)."""
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        pictures, problems = found
        gallery = []
        for picture in pictures:
            image_rgb = drawn(picture.shown_rgb, picture, threshold, redaction)
            path = write_jpeg(image_rgb, self._new(f"{Path(picture.name).stem}_faces.jpg"), picture.profile)
            count = picture.count(threshold)
            gallery.append((str(path), f"{picture.name}: {count} {'face' if count == 1 else 'faces'}"))
        summary = pictures_facts(pictures, problems, threshold)
        return gallery, summary, self._document(pictures, threshold, problems)

    def find_in_film(
        self, path: str | None, protocol: str, threshold: float, redaction: str
    ) -> Iterator[tuple[Any, ...]]:
        """A film, frame by frame.

        Yields:
            (film with boxes or redacted, summary, JSON), the first ones while it is at work.
        """
        if path is None:
            yield None, hint(f"Drop a film first. {self.film_limit()}"), None
            return
        name = Path(path).name
        out = self._new(f"{Path(name).stem}_{'faces' if redaction == NO_REDACTION else redaction}.mp4")
        out.parent.mkdir(parents=True)
        try:
            yield None, working(0, None, "frames"), None
            for film in find_in_film(
                self.detector, Path(path), out, protocol=self._protocol(protocol), threshold=threshold,
                redaction=redaction, max_seconds=self.settings.max_video_seconds,
            ):  # fmt: skip
                if film.out is None:
                    yield gr.skip(), working(film.frames, film.frames_expected, "frames"), gr.skip()
                    continue
                film.notes = [note.replace(path, name) for note in film.notes]
                content = film_document(film, name, protocol, round(threshold, 4), self.settings.model_name)
                yield str(film.out), film_facts(film, self.settings.max_video_seconds, protocol), content
        except InputError as error:
            yield None, problem(str(error).replace(path, name)), None

    def film_limit(self) -> str:
        """How much of a film is taken, in words."""
        return (
            f"Of a film the first {self.settings.max_video_seconds:g} seconds are taken, of a file "
            f"{self.settings.max_upload_mb:g} MB. Long or large films are quicker with protocol vga640."
        )
