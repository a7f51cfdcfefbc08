"""Faces in dropped images: detect once, filter and draw often; and the page's JSON. Knows nothing of Gradio."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fanet_lightning.app.settings import LOWEST_THRESHOLD
from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import Image8, decode_image_rgb, glance
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.outputs import Saving
from fanet_lightning.detect.protocols import AnyProtocol
from fanet_lightning.detect.redaction import Redaction
from fanet_lightning.ops.structures import Detections

# Longer side of what is shown, pixels: sharp on a large screen, drawn and encoded in some 30 ms.
SHOWN_SIDE, SHOWN_SIDE_OF_MANY = 1600, 900
NO_REDACTION = "none"
BOX_FORMAT = "x1 y1 x2 y2, pixels of the upright image"


@dataclass(frozen=True)
class PageImage:
    """An image and every face in it that the slider can ask for.

    ``path``       the upload, as long as it is kept.
    ``shown_rgb``  (h, w, 3) uint8, upright, at most ``SHOWN_SIDE`` long: what is drawn on.
    ``faces``      in pixels of the upright original of ``height`` × ``width``.
    ``profile``    ICC, of the colors of the pixels; empty for sRGB.
    """

    path: Path
    height: int
    width: int
    shown_rgb: Image8
    faces: Detections
    protocol: str
    network_seconds: float
    profile: bytes = b""

    @property
    def name(self) -> str:
        return self.path.name

    def count(self, threshold: float) -> int:
        return len(self.faces.above(threshold))

    def drawn(self, image_rgb: Image8, threshold: float, redaction: str) -> Image8:
        """As :func:`shown`: ``image_rgb``, this image at any size, with its faces of at least ``threshold``."""
        height, width = image_rgb.shape[:2]
        faces = self.faces.above(threshold)
        scale = faces.boxes_xyxy.new_tensor([width / self.width, height / self.height]).repeat(2)
        return shown(image_rgb, Detections(faces.boxes_xyxy * scale, faces.scores), redaction)


def read_upload(path: Path, max_pixels: int) -> tuple[Image8, bytes]:
    """The pixels of an uploaded file, upright, and their ICC profile.

    InputError: too large (which is known before anything is decoded), not an image, damaged, or deleted since.
    """
    if not path.is_file():
        raise InputError(f"{path.name} is no longer kept here; drop it again")
    pixels, profile = glance(content := path.read_bytes())
    if pixels > max_pixels:
        size, most = f"{pixels / 1e6:,.0f} million pixels", f"{max_pixels / 1e6:g} million"
        raise InputError(f"{path.name} has {size}; at most {most} are taken: shrink it first")
    return decode_image_rgb(content, path.name), profile


def detect_image(
    detector: FaceDetector, path: Path, protocol: AnyProtocol, *, max_pixels: int, shown_side: int = SHOWN_SIDE
) -> PageImage:
    """Decode an upload and run the network over it once; raises as :func:`read_upload`."""
    image_rgb, profile = read_upload(path, max_pixels)
    start = time.perf_counter()
    faces = detector.detect(image_rgb, protocol=protocol, threshold=LOWEST_THRESHOLD)  # the slider filters
    seconds = time.perf_counter() - start
    height, width = image_rgb.shape[:2]
    small = Image.fromarray(image_rgb)
    small.thumbnail((shown_side, shown_side))
    name = str(protocol["name"] if isinstance(protocol, Mapping) else protocol)
    return PageImage(path, height, width, np.array(small), faces, name, seconds, profile)


def shown(image_rgb: Image8, faces: Detections, redaction: str) -> Image8:
    """(h, w, 3) uint8 with the boxes of its faces; or redacted by ``blur``, ``pixelate`` or ``solid``, without."""
    redact = None if redaction == NO_REDACTION else Redaction(redaction)
    return Saving(redact=redact, draw=redact is None).shown(image_rgb, faces)


def rows(faces: Detections) -> list[dict[str, float]]:
    """Faces as plain numbers, best first: pixels with two decimals, scores with four."""
    pixels = (({"x1": x1, "y1": y1, "x2": x2, "y2": y2, "width": x2 - x1, "height": y2 - y1}, score)
              for (x1, y1, x2, y2), score in faces)  # fmt: skip
    return [{**{key: round(own, 2) for key, own in box.items()}, "score": round(score, 4)} for box, score in pixels]


def document(
    images: Sequence[PageImage], threshold: float, model: str, problems: Sequence[InputError] = ()
) -> dict[str, Any]:
    """The JSON of the page: boxes in pixels of the upright image, continuous (width = x2 − x1)."""
    listed = [
        {
            "image": image.name, "width": image.width, "height": image.height, "protocol": image.protocol,
            "faces": image.count(threshold), "detections": rows(image.faces.above(threshold)),
        }
        for image in images
    ]  # fmt: skip
    head = {"model": model, "threshold": round(threshold, 4), "box_format": BOX_FORMAT}
    return {**head, "images": listed, **({"problems": [str(problem) for problem in problems]} if problems else {})}


def write_jpeg(image_rgb: Image8, path: Path, profile: bytes, quality: int = 92) -> Path:
    """The image as a JPEG, in color at full resolution (4:4:4): thin colored frames stay sharp."""
    Image.fromarray(image_rgb).save(path, "JPEG", quality=quality, subsampling=0, icc_profile=profile)
    return path
