"""An input's pixels: from a file or an address, with what a person should know about them."""

import io
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fanet_lightning.data.heic import heic_plug_in, is_heic
from fanet_lightning.data.images import JPEG_START, Image8, UnreadableImage, color_profile, decode_image_rgb
from fanet_lightning.media.fetching import fetch_bytes
from fanet_lightning.media.inputs import Item

# Larger images are decoded at their turn, not ahead of it, so that few of them are in memory at a time.
MOST_PIXELS_AHEAD = 2**24
# What the largest image that is decoded takes as an uncompressed file, twice over.
LARGEST_FILE_BYTES = 2**31


@dataclass(frozen=True)
class Limits:
    """Of a download: bytes, and seconds for all of it."""

    max_download_bytes: int = 50_000_000
    download_seconds: float = 60.0


class Loaded(NamedTuple):
    """``image_rgb`` (H, W, 3) uint8, upright; None for a large one, which :func:`decoded` makes of ``content``.

    ``note``: what is not obvious, e.g. that it is the first frame of an animation. ``profile``: of the pixels' colors,
    ICC; empty for sRGB.
    """

    image_rgb: Image8 | None
    content: bytes
    note: str
    profile: bytes = b""


def load(item: Item, limits: Limits, stop: threading.Event | None = None) -> Loaded:
    """Read or fetch an image and, unless it is very large, decode it. Called in threads of their own.

    Args:
        item: an image.
        limits: of downloads.
        stop: once it is set, nobody waits for a download any more.

    Raises:
        InputError: it cannot be read, fetched or decoded.
    """
    content = _content(item, limits, stop)
    note, pixels, profile = _glance(content)
    if pixels > MOST_PIXELS_AHEAD:
        return Loaded(None, content, note, profile)
    return Loaded(decode_image_rgb(content, item.text), b"", note, profile)


def decoded(loaded: Loaded, item: Item) -> Image8:
    """The pixels, (H, W, 3) uint8.

    Raises:
        InputError: a large image that cannot be decoded.
    """
    return decode_image_rgb(loaded.content, item.text) if loaded.image_rgb is None else loaded.image_rgb


def _content(item: Item, limits: Limits, stop: threading.Event | None) -> bytes:
    if not isinstance(item.location, Path):
        return fetch_bytes(str(item.location), limits.max_download_bytes, limits.download_seconds, stop)
    try:
        if item.location.is_dir():
            raise UnreadableImage(item.location, "it is a folder")
        size = item.location.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise UnreadableImage(item.location, f"{size:,} bytes are more than any image that is decoded here")
        return item.location.read_bytes()
    except OSError as error:
        raise UnreadableImage(item.location, error.strerror or type(error).__name__) from error


def _glance(content: bytes) -> tuple[str, int, bytes]:
    """A note, the number of pixels and the color profile, from the file's head; nothing where decoding will say what
    is wrong."""
    from PIL import Image

    if is_heic(content):
        heic_plug_in()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                pixels = image.size[0] * image.size[1]
                profile = color_profile(image)
                if content[:3] == JPEG_START:
                    return "", pixels, profile  # a camera's preview pictures are no animation
                frames = int(getattr(image, "n_frames", 1))
                kind = "page" if image.format == "TIFF" else "frame"
                return (f"the first of {frames} {kind}s" if frames > 1 else ""), pixels, profile
    except Exception:  # Pillow's plugins raise almost anything on damaged files
        return "", 0, b""
