"""Faces made unrecognizable: blurred, pixelated, or covered by a color or an image.

Blur and pixelation first replace a face by the mean colors of a grid of at most 8 x 8 cells; only those means reach the
result. A blur alone could be undone by deconvolution.

What these two do not promise: 8 cells still show the color of hair and skin, and a video of a moving face shows many
different grids. Against somebody who has a list of candidates to compare with, take ``solid``, of which nothing but
place and size can be learnt, and look for the faces that were not found.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.files import file_sha256
from fanet_lightning.data.images import Image8, read_image_rgb
from fanet_lightning.ops.draw import checked_boxes, checked_image

if TYPE_CHECKING:
    from fanet_lightning.ops.structures import Detections

__all__ = ["REDACTIONS", "Redaction", "redact", "redacted_regions"]


REDACTIONS = ("blur", "pixelate", "solid")  # and image:FILE
IMAGE = "image:"
SHAPES = ("box", "ellipse")

CELLS = 8  # over the longer side of the region: about 7 over the face itself
SMALLEST_CELL = 4  # pixels: a face of a few pixels becomes one cell, so that it changes as well
BLUR_SIGMA = 0.8  # cells: hides the grid
SOLID_RGB = (0, 0, 0)
SCALE = 1.2

Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class Redaction:
    """How faces are hidden, and what else.

    Args:
        kind: ``blur``, ``pixelate``, ``solid`` (black) or ``image:FILE``, which is stretched over each face, its
            transparent parts white.
        shape: ``box``, or ``ellipse``: the one inside the scaled box, whose corners stay as they are. A face at the
            image's border, which may be cut off, gets its box all the same.
        scale: sides of what is hidden over those of the face's box, at least 1.
        regions: (R, 4) pixels of the image, hidden whether there is a face or not.
        start_seconds, end_seconds: faces in frames of a video before and after these times stay; regions do not.
    """

    kind: str = "blur"
    shape: str = "box"
    scale: float = SCALE
    regions: Sequence[Sequence[float]] = ()
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.kind.startswith(IMAGE):
            self._cover  # noqa: B018  # one that cannot be read is told before anything is hidden
        else:
            kinds = f"{', '.join(REDACTIONS)} or {IMAGE}FILE"
            check(self.kind in REDACTIONS, f"redact={self.kind} is unknown; take {kinds}")
        check(self.shape in SHAPES, f"redact_shape={self.shape} is unknown; take {' or '.join(SHAPES)}")
        fits = not isinstance(self.scale, bool) and 1 <= self.scale < np.inf
        check(fits, f"redact_scale={self.scale}; give 1 (the face's box) or more")
        for region in self.regions:
            check(_is_region(region), f"redact_regions: {region} is not x1, y1, x2, y2 with x1 < x2 and y1 < y2")
        start, end = self._times
        said = f"redact_from={self.start_seconds} redact_to={self.end_seconds}"
        check(0 <= start < end, f"{said}: give seconds, from < to")

    @property
    def _times(self) -> tuple[float, float]:
        return self.start_seconds or 0.0, np.inf if self.end_seconds is None else self.end_seconds

    @cached_property
    def _cover(self) -> Image8:
        try:
            return read_image_rgb(Path(self.kind.removeprefix(IMAGE)).expanduser())
        except InputError as error:
            raise InputError(f"redact={self.kind}: {error}") from error

    @property
    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as plain values."""
        is_image = self.kind.startswith(IMAGE)
        return {
            **asdict(self), "regions": [list(region) for region in self.regions],
            **({"sha256": file_sha256(Path(self.kind.removeprefix(IMAGE)).expanduser())} if is_image else {}),
        }  # fmt: skip

    def apply(
        self, image_rgb: npt.NDArray[np.uint8], boxes_xyxy: npt.ArrayLike, time_seconds: float | None = None
    ) -> Image8:
        """As :func:`redact`; ``time_seconds`` of a video's frame."""
        result = checked_image(image_rgb).copy()
        height, width = result.shape[:2]
        is_in_time = time_seconds is None or self._times[0] <= time_seconds <= self._times[1]
        faces = redacted_regions(boxes_xyxy if is_in_time else (), height, width, self.scale)
        todo = [(region, self.shape == "ellipse") for region in faces]
        todo += [(region, False) for region in redacted_regions(self.regions, height, width, 1)]
        for (left, top, right, bottom), is_ellipse in sorted(todo, key=lambda entry: _order(entry[0])):
            region = result[top:bottom, left:right]
            hidden = self._hidden(region)
            if is_ellipse and left > 0 and top > 0 and right < width and bottom < height:
                within = _ellipse(bottom - top, right - left)
                region[within] = hidden[within]
            else:
                region[:] = hidden
        return result

    def _hidden(self, region: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self.kind == "pixelate":
            means, heights, widths = _cell_means(region)
            return means.repeat(heights, axis=0).repeat(widths, axis=1)
        if self.kind == "blur":
            return _blurred(region)
        if self.kind == "solid":
            return np.full_like(region, SOLID_RGB)
        height, width = region.shape[:2]
        return np.asarray(cv2.resize(self._cover, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _is_region(region: Any) -> bool:
    try:
        x1, y1, x2, y2 = map(float, region)
    except (TypeError, ValueError):
        return False
    return -np.inf < x1 < x2 < np.inf and -np.inf < y1 < y2 < np.inf


def redact(
    image_rgb: npt.NDArray[np.uint8], faces: "Detections | npt.ArrayLike", kind: str = "blur", *, shape: str = "box",
    scale: float = SCALE, regions: Sequence[Sequence[float]] = (),
) -> Image8:  # fmt: skip
    """The image with every face hidden; every pixel outside the regions stays as it is, byte for byte.

    The region of a face is its box, scaled about its center (``redacted_regions``). Regions are treated from the
    smallest to the largest, each on what the ones before it left, so where faces overlap the coarser grid holds and the
    result does not depend on the order of the boxes.

    Args:
        image_rgb: (H, W, 3) uint8; left as it is: the result is a new array.
        faces: of a detector, or their boxes (D, 4), pixels of the image. Parts outside are cut off; a box wholly
            outside, or not finite, is left out.
        kind, shape, scale, regions: as of :class:`Redaction`, which a video's frames can share; InputError: one out of
            range, or an image that cannot be read.
    """
    boxes_xyxy: Any = getattr(faces, "boxes_xyxy", faces)
    return Redaction(kind, shape, scale, regions).apply(image_rgb, boxes_xyxy)


def redacted_regions(boxes_xyxy: npt.ArrayLike, height: int, width: int, scale: float = SCALE) -> list[Region]:
    """The whole-pixel rectangles (left, top, right, bottom) that ``redact`` changes, from the smallest to the largest.

    Half-open, inside the image of ``height`` × ``width``, none empty, no two equal: the scaled boxes (D, 4), rounded
    outwards and at least 4 pixels wide and high where the image has them.
    """
    boxes = checked_boxes(boxes_xyxy)
    x1, y1, x2, y2 = boxes.T
    inside = (x2 >= x1) & (y2 >= y1) & (x2 >= 0) & (y2 >= 0) & (x1 < width) & (y1 < height)
    x1, y1, x2, y2 = boxes[inside & np.isfinite(boxes).all(axis=1)].T
    left, right = _scaled(x1, x2, scale, width)
    top, bottom = _scaled(y1, y2, scale, height)
    regions = np.unique(np.stack([left, top, right, bottom], axis=1), axis=0)
    return sorted((tuple(region) for region in regions.tolist()), key=_order)


def _order(region: Region) -> tuple[int, Region]:
    left, top, right, bottom = region
    return (right - left) * (bottom - top), region


def _scaled(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], scale: float, limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """One axis of scaled boxes, (D,), rounded outwards, at least SMALLEST_CELL long, inside 0 ... limit."""
    grown = (high - low) * ((scale - 1) / 2)
    first = np.maximum(np.floor(low - grown), 0).astype(np.int64)
    last = np.minimum(np.ceil(high + grown), limit).astype(np.int64)
    least = min(SMALLEST_CELL, limit)
    missing = np.maximum(least - (last - first), 0)
    first = np.where(missing > 0, np.clip(first - missing // 2, 0, limit - least), first)
    return first, np.where(missing > 0, first + least, last)


def _ellipse(height: int, width: int) -> npt.NDArray[np.bool_]:
    """(height, width) which pixels have their center inside the ellipse of the region."""
    y = ((np.arange(height) + 0.5) / height * 2 - 1) ** 2
    x = ((np.arange(width) + 0.5) / width * 2 - 1) ** 2
    return np.asarray(y[:, None] + x[None, :] <= 1)


def _cell_means(
    region: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Mean colors (rows, columns, 3) of a region's cells, and the lengths of the cells of both axes."""
    height, width = region.shape[:2]
    if max(height, width) < 2 * SMALLEST_CELL:  # one cell, at a tenth of the time: boxes may be many thousands
        sums = region.reshape(-1, 3).sum(axis=0, dtype=np.uint32)
        return np.round(sums / (height * width)).astype(np.uint8)[None, None], np.array([height]), np.array([width])
    cell = max(max(height, width) / CELLS, SMALLEST_CELL)
    # Cells of one axis differ by at most a pixel.
    rows, columns = (np.round(np.linspace(0, side, max(1, int(side / cell + 1e-9)) + 1)).astype(np.int64)
                     for side in (height, width))  # fmt: skip
    sums = np.add.reduceat(region, rows[:-1], axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, columns[:-1], axis=1, dtype=np.uint64)
    heights, widths = np.diff(rows), np.diff(columns)
    return np.round(sums / (heights[:, None] * widths)[..., None]).astype(np.uint8), heights, widths


def _blurred(region: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The grid of means, smoothed and enlarged linearly to the region."""
    means, _, _ = _cell_means(region)
    if means.size == 3:
        return np.broadcast_to(means, region.shape)
    smooth = cv2.GaussianBlur(means, (0, 0), BLUR_SIGMA, borderType=cv2.BORDER_REPLICATE)
    height, width = region.shape[:2]
    return np.asarray(cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
