"""What happens on the page, as functions from what its controls say to what it shows. Imports Gradio."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr

from fanet_lightning.app.markup import (
    detections_table,
    faces,
    hint,
    image_facts,
    images_facts,
    problem,
    video_facts,
    working,
)
from fanet_lightning.app.results import (
    NO_REDACTION,
    SHOWN_SIDE,
    SHOWN_SIDE_OF_MANY,
    PageImage,
    detect_image,
    document,
    drawn,
    drawn_whole,
    find_in_video,
    video_document,
    write_jpeg,
)
from fanet_lightning.app.serving import Settings
from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.multiscale import AnyProtocol

EMPTY = "Drop an image, paste one, or choose a file. JPEG, PNG, WebP, GIF, BMP, TIFF. Several at a time: the next tab."
EMPTY_SEVERAL = "Drop some images: each one's faces are counted, and one JSON holds them all."


class Actions:
    """One method for each thing that a person can do.

    Args:
        detector: who finds the faces; used by one request at a time.
        settings: limits and names.
        folder: where results are written, inside Gradio's upload folder.
    """

    def __init__(self, detector: FaceDetector, settings: Settings, folder: Path) -> None:
        self.detector = detector
        self.settings = settings
        self.folder = folder

    def _protocol(self, name: str) -> AnyProtocol:
        """The settings that the program was started with, where it is their name; else the protocol as it comes."""
        return self.settings.protocol if name == self.settings.protocol["name"] else name

    def _new(self, name: str) -> Path:
        """A path of its own for a result, in a folder that exists."""
        folder = self.folder / uuid4().hex
        folder.mkdir(parents=True)
        return folder / name

    def _detected(self, path: str, protocol: str, shown_side: int) -> PageImage:
        return detect_image(
            self.detector, Path(path), Path(path).name, self._protocol(protocol),
            max_pixels=self.settings.max_pixels, shown_side=shown_side,
        )  # fmt: skip

    def _shown(self, image: PageImage, threshold: float, redaction: str) -> str:
        """A file of the image, drawn or redacted at the size of the page."""
        image_rgb = drawn(image.shown_rgb, image, threshold, redaction)
        return str(write_jpeg(image_rgb, self._new(f"{Path(image.name).stem}_faces.jpg"), image.profile))

    def _document(self, images: list[PageImage], threshold: float, problems: list[InputError] | None = None) -> Any:
        return document(images, round(threshold, 4), self.settings.model_name, problems or [])

    def find(self, path: str | None, protocol: str, threshold: float, redaction: str) -> tuple[Any, ...]:
        """An image was dropped or the protocol changed: run the network.

        Returns:
            The image for later, then as :meth:`redraw`.
        """
        if path is None:
            return None, None, hint(EMPTY), "", None
        try:
            image = self._detected(path, protocol, SHOWN_SIDE)
        except InputError as error:
            return None, None, problem(error), "", None
        return image, *self.redraw(image, threshold, redaction)

    def redraw(self, image: PageImage | None, threshold: float, redaction: str) -> tuple[Any, ...]:
        """The threshold moved, or another redaction: filter and draw, without the network.

        Returns:
            File of the drawn image, summary, table, JSON; nothing changes where there is no image.
        """
        if image is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        shown = self._shown(image, threshold, redaction)
        table = detections_table(image, threshold)
        return shown, image_facts(image, threshold), table, self._document([image], threshold)

    def save_image(self, image: PageImage | None, threshold: float, redaction: str) -> str:
        """The image at its full size, drawn or redacted, as a file to save.

        Raises:
            gr.Error: there is none, or its upload has been deleted.
        """
        if image is None:
            raise gr.Error("there is no image yet: drop one first", title="Nothing to save")
        kind = "faces" if redaction == NO_REDACTION else redaction
        try:
            image_rgb = drawn_whole(image, threshold, redaction, self.settings.max_pixels)
            path = self._new(f"{Path(image.name).stem}_{kind}.jpg")
            return str(write_jpeg(image_rgb, path, image.profile, quality=95))
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
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return str(path)

    def find_several(
        self, paths: list[str] | None, protocol: str, threshold: float, redaction: str
    ) -> Iterator[tuple[Any, ...]]:
        """As :meth:`find` for several images; bad ones are named and left out.

        Yields:
            (images and problems for later, gallery, summary, JSON), the first ones while it is at work.
        """
        if not paths:
            yield None, [], hint(EMPTY_SEVERAL), None
            return
        if len(paths) > self.settings.max_images:
            text = f"{len(paths)} images are more than {self.settings.max_images} at a time; take some out"
            yield None, [], problem(text), None
            return
        images: list[PageImage] = []
        problems: list[InputError] = []
        for number, path in enumerate(paths):
            yield gr.skip(), gr.skip(), working(number, len(paths), "images"), gr.skip()
            try:
                images.append(self._detected(path, protocol, SHOWN_SIDE_OF_MANY))
            except InputError as error:
                problems.append(error)
        found = images, problems
        yield found, *self.redraw_several(found, threshold, redaction)

    def redraw_several(
        self, found: tuple[list[PageImage], list[InputError]] | None, threshold: float, redaction: str
    ) -> tuple[Any, ...]:
        """As :meth:`redraw`: (gallery, summary, JSON)."""
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        images, problems = found
        gallery = [
            (self._shown(image, threshold, redaction), f"{image.name}: {faces(image.count(threshold))}")
            for image in images
        ]
        return gallery, images_facts(images, problems, threshold), self._document(images, threshold, problems)

    def find_in_video(
        self, path: str | None, protocol: str, threshold: float, redaction: str
    ) -> Iterator[tuple[Any, ...]]:
        """A video, frame by frame.

        Yields:
            (video with boxes or redacted, summary, JSON), the first ones while it is at work.
        """
        if path is None:
            yield None, hint(f"Drop a video first. {self.video_limit()}"), None
            return
        name, limit = Path(path).name, self.settings.max_video_seconds
        out = self._new(f"{Path(name).stem}_{'faces' if redaction == NO_REDACTION else redaction}.mp4")
        try:
            yield None, working(0, None, "frames"), None
            for video in find_in_video(
                self.detector, Path(path), out, protocol=self._protocol(protocol), threshold=threshold,
                redaction=redaction, max_seconds=limit,
            ):  # fmt: skip
                if video.out is None:
                    yield gr.skip(), working(len(video.faces), video.frames_expected, "frames"), gr.skip()
                    continue
                video.notes = [note.replace(path, name) for note in video.notes]
                content = video_document(video, name, protocol, round(threshold, 4), self.settings.model_name)
                yield str(video.out), video_facts(video, limit), content
        except InputError as error:
            yield None, problem(str(error).replace(path, name)), None

    def video_limit(self) -> str:
        """How much of a video is taken, in words."""
        return (
            f"Of a video the first {self.settings.max_video_seconds:g} seconds are taken, of a file "
            f"{self.settings.max_upload_mb:g} MB. Long or large videos are quicker with protocol vga640."
        )
