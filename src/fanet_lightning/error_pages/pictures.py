"""Copies of pictures, small enough to be sent along."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

LONGER_SIDE = 1024
THUMBNAIL_SIDE = 192
SUFFIXES = (".jpg", ".jpeg", ".png")

# Faces stay recognisable, and 200 crowded pictures of 1024 px stay below 15 MB, data and all.
_QUALITY = 40
_THUMBNAIL_QUALITY = 60


class Copy(NamedTuple):
    """Width and height of the original in pixels, or why there is no copy."""

    size: tuple[int, int] | None
    reason: str | None


def find_image(images_root: Path, image_id: str) -> Path | None:
    """``images_root/event/name`` with the first of :data:`SUFFIXES` that is there, or None."""
    paths = (images_root / f"{image_id}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def write_copy(images_root: Path, image_id: str, picture: Path, thumbnail: Path) -> Copy:
    """Write two JPEG copies, upright and never enlarged, the longer side at most 1024 px and 192 px.

    A picture that is missing or cannot be decoded whole is no error: the page says so and draws on a blank sheet.
    """
    from PIL import Image, ImageOps

    source = find_image(images_root, image_id)
    if source is None:
        return Copy(None, "not in the folder of images")
    try:
        with warnings.catch_warnings():
            # Above 89 megapixels Pillow warns, above 179 it refuses, which is caught below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as opened:
                upright = ImageOps.exif_transpose(opened)
                size = upright.size
                copy = _on_white(upright)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Copy(None, f"cannot be read ({type(error).__name__})")
    copy.thumbnail((LONGER_SIDE, LONGER_SIDE), reducing_gap=2.0)
    copy.save(picture, "JPEG", quality=_QUALITY, optimize=True, progressive=True)
    copy.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=2.0)
    copy.save(thumbnail, "JPEG", quality=_THUMBNAIL_QUALITY, optimize=True)
    return Copy(size, None)


def _on_white(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
