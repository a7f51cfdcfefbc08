"""The size at which an image is tested: shorter side, longer side, or its own."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.data.images import MAX_PIXELS
from fanet_lightning.errors import InputError
from fanet_lightning.tiles import AUTO, TilePixels, check_tile_pixels

# Longer side of a strip that was enlarged, in shorter sides asked for. WIDER FACE's images are at most 6 times as long.
LONGEST_STRIP = 10


class Resized(NamedTuple):
    """``image`` (H', W', 3) uint8 and ``scale_xy`` (2,) float32, the exact ratio of the sizes along x and y."""

    image: npt.NDArray[np.uint8]
    scale_xy: npt.NDArray[np.float32]


@dataclass(frozen=True)
class TestScale:
    """Resizes an image to a protocol's scale, aspect kept to the pixel; it also enlarges.

    ``kind``: ``short`` sets the shorter side to ``size``, ``long`` the longer one, ``original`` neither (``size`` is
        not read).
    ``max_long``: the longer side ends at most here; the scale is lowered where need be (RetinaFace's 1600/2150 rule).
    ``tile_pixels``: a resized image with more pixels is computed in overlapping tiles; ``auto``: one that does not fit
        into memory; None: never (:mod:`fanet_lightning.tiled_heads`: the faces are the same). Nothing is resized by it.

    A strip is enlarged until its longer side is ten times the size asked for: 1 × 300 pixels at a shorter side of 640
    would be 123 megapixels. And no image becomes larger than what can be read (179 megapixels).

    Sides are rounded to the nearest pixel, so the two scales differ by a trifle: both are handed back.
    Bilinear without antialiasing both ways, as in the evaluation programs of S3FD and RetinaFace, which numbers are
    compared to.
    """

    # Not a test case, whatever its name begins with.
    __test__ = False

    kind: Literal["short", "long", "original"] = "short"
    size: int | None = 640
    max_long: int | None = None
    tile_pixels: TilePixels = AUTO

    def __post_init__(self) -> None:
        if self.kind not in ("short", "long", "original"):
            raise InputError(f"protocol.kind={self.kind} is unknown; take short, long or original")
        for key in ("size", "max_long"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InputError(f"protocol.{key}={value}; give a whole number of pixels")
        if self.kind != "original" and (self.size is None or self.size < 1):
            raise InputError(
                f"protocol.size={self.size} with protocol.kind={self.kind}; give a side of at least 1 pixel"
            )
        if self.max_long is not None and self.max_long < 1:
            raise InputError(f"protocol.max_long={self.max_long}; give a side of at least 1 pixel, or null")
        check_tile_pixels(self.tile_pixels)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the resized image, at least 1 × 1."""
        scale = 1.0
        if self.kind != "original":
            assert self.size is not None
            scale = self.size / (min if self.kind == "short" else max)(height, width)
            scale = min(scale, max(1.0, LONGEST_STRIP * self.size / max(height, width)))
        if self.max_long is not None:
            scale = min(scale, self.max_long / max(height, width))
        # Sides are rounded up by half a pixel at most, which on a thin strip is much.
        while scale > 1 and max(1, int(height * scale + 0.5)) * max(1, int(width * scale + 0.5)) > MAX_PIXELS:
            scale = max(1.0, min(scale * 0.999, (MAX_PIXELS / (height * width)) ** 0.5))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def __call__(self, image: npt.NDArray[np.uint8]) -> Resized:
        """``image`` (H, W, 3) uint8; an image that has its size already is handed back as it is."""
        height, width = image.shape[:2]
        new_height, new_width = self.target_size(height, width)
        scale_xy = np.array([new_width / width, new_height / height], dtype=np.float32)
        if (new_height, new_width) == (height, width):
            return Resized(image, scale_xy)
        resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        return Resized(resized.astype(np.uint8, copy=False), scale_xy)
