"""Test protocols: one scale, two for photos, or a flip and a pyramid of scales with box voting; protocols by name.

The multi-scale test is that of the paper's last row, after S3FD's test script (sfzhang15/SFD,
sfd_test_code/WIDER_FACE/wider_test.py), which FANet's numbers follow. What is done differently, and why, is in
:class:`MultiScale`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.cli.errors import check, is_whole
from fanet_lightning.data.transforms import AUTO, SINGLE_KINDS, TestScale, TilePixels, check_tile_pixels
from fanet_lightning.ops.boxes import clip
from fanet_lightning.ops.postprocess import box_vote, nms
from fanet_lightning.ops.structures import Detections

# The script: what Caffe could address, 2³¹ bytes at 577 bytes a pixel. Copies of it elsewhere divide by 200.
MAX_PIXELS = 0x7FFFFFFF // 577
# The script's limits, pixels of the original image: a shrunk pass is trusted with faces whose larger side is above the
# first, an enlarged one with faces whose smaller side is below the second.
LARGER_OVER, SMALLER_UNDER = 30.0, 100.0


@dataclass(frozen=True)
class Pass:
    """One run of the network over an image.

    ``scale``          network pixels per pixel of the original image, before sides are rounded.
    ``flip``           over the mirrored image.
    ``larger_over``    keep boxes whose larger side is above it, pixels of the original image.
    ``smaller_under``  keep boxes whose smaller side is below it.
    """

    scale: float
    flip: bool = False
    larger_over: float = -math.inf
    smaller_under: float = math.inf


class PassRecord(NamedTuple):
    """What a pass did: size that the network saw, tiles, boxes that it kept."""

    scale: float
    flip: bool
    height: int
    width: int
    tiles: int
    boxes: int


class Found(NamedTuple):
    """Faces, and in how many tiles the network saw the image; 1 is the whole."""

    detections: Detections
    tiles: int


class Backend(Protocol):
    """What computes faces: :class:`fanet_lightning.detect.detector.TorchBackend` or ``ExportBackend``.

    ``runs_on``       the device, as torch or the export's runtime calls it.
    ``precision``     ``32-true`` or ``bf16-mixed``; of an export its ``dtype``.
    ``detection``     all four settings of :func:`fanet_lightning.ops.postprocess.detect`.
    ``batch_size``    images of one size at once, unless told otherwise; ``batch_pixels``: in all, None: any number.
    """

    runs_on: str
    precision: str
    detection: dict[str, Any]
    batch_size: int
    batch_pixels: int | None

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> list[Found]:
        """Faces of each of the images (B, 3, h, w) uint8 RGB, in its own pixels, not clipped to it, on the CPU.

        As many at a time as fit into memory; InputError: not even one does.
        """


@dataclass(frozen=True)
class MultiScale:
    """Several passes over one image, and a vote over all that they found.

    With m = √(max_pixels / (H · W)), the largest enlargement, the passes are: min(1, m); the same mirrored; a shrunk
    one at 1/2 (at m/2 where m < 3/4); enlarged ones at 2, 4, 8 … below m and at m itself (where m ≤ 1 instead of them
    one midway between the shrunk pass and m, which keeps what a shrunk pass keeps).

    Unlike the script: no 1 is added to sides, neither in the two limits on size nor in the vote's IoU; boxes go back by
    the exact ratio of sizes, not by the scale before rounding, and are clipped to the image after the vote; detections
    that no other agrees with stay; the score floor, top-k and NMS of a pass are the detector's (0.01, 5,000 and 0.3
    unless told otherwise; the script's network file says 0.05).

    Args:
        max_pixels: of the largest pass. Part of the protocol, so that numbers do not depend on the machine.
        tile_pixels: as of :class:`TestScale`, for each pass.
        vote_iou, keep, keep_singles: see :func:`fanet_lightning.ops.postprocess.box_vote`.
    """

    max_pixels: int = MAX_PIXELS
    tile_pixels: TilePixels = AUTO
    vote_iou: float = 0.3
    keep: int = 750
    keep_singles: bool = True

    def __post_init__(self) -> None:
        _check(self, max_pixels=1, keep=0)
        fits = isinstance(self.vote_iou, int | float) and 0 < self.vote_iou <= 1
        check(fits, f"protocol.vote_iou={self.vote_iou}; give an overlap above 0 and at most 1")

    def scales(self, height: int, width: int) -> list[Pass]:
        """The passes over an image of this size, in the script's order."""
        largest = float((self.max_pixels / (height * width)) ** 0.5)
        base = min(1.0, largest)
        shrunk = 0.5 if largest >= 0.75 else 0.5 * largest
        passes = [Pass(base), Pass(base, flip=True), Pass(shrunk, larger_over=LARGER_OVER)]
        if largest <= 1:
            return [*passes, Pass((shrunk + largest) / 2, larger_over=LARGER_OVER)]
        scale = 2.0
        while scale < largest:
            passes.append(Pass(scale, smaller_under=SMALLER_UNDER))
            scale *= 2
        return [*passes, Pass(largest, smaller_under=SMALLER_UNDER)]

    def detect(self, backend: Backend, image_rgb: npt.NDArray[np.uint8]) -> tuple[Detections, list[PassRecord]]:
        """Faces of one image, (H, W, 3) uint8 RGB, clipped to it, best first, and what each pass did.

        InputError: a pass does not fit into memory, see :meth:`Backend.find`.
        """
        height, width = image_rgb.shape[:2]
        steps = self.scales(height, width)
        found, records = zip(*(run_pass(backend, image_rgb, step, self.tile_pixels) for step in steps), strict=True)
        boxes_xyxy, scores = torch.cat([x.boxes_xyxy for x in found]), torch.cat([x.scores for x in found])
        voted = box_vote(boxes_xyxy, scores, iou=self.vote_iou, keep=self.keep, keep_singles=self.keep_singles)
        return Detections(clip(voted.boxes_xyxy, height, width), voted.scores), list(records)


def _check(protocol: "MultiScale | TwoSizes", **least: int) -> None:
    """Whole numbers of at least so much, and ``tile_pixels``."""
    for name, smallest in least.items():
        value = getattr(protocol, name)
        check(is_whole(value, smallest), f"protocol.{name}={value}; give a whole number, at least {smallest}")
    check_tile_pixels(protocol.tile_pixels)


def run_pass(
    backend: Backend, image_rgb: npt.NDArray[np.uint8], step: Pass, tile_pixels: TilePixels
) -> tuple[Detections, PassRecord]:
    """What one pass over (H, W, 3) keeps, in pixels of this image and not clipped to it, and what it did."""
    height, width = image_rgb.shape[:2]
    image = resized(image_rgb, step.scale)
    rows, columns = image.shape[:2]
    if step.flip:
        image = image[:, ::-1]
    [(detections, tiles)] = backend.find(torch.from_numpy(image.transpose(2, 0, 1).copy())[None], tile_pixels)
    ratio = torch.tensor([columns / width, rows / height] * 2, dtype=torch.float32)
    boxes_xyxy, scores = detections.boxes_xyxy / ratio, detections.scores
    if step.flip:
        x1, y1, x2, y2 = boxes_xyxy.unbind(dim=1)
        boxes_xyxy = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    kept = (sides.amax(dim=1) > step.larger_over) & (sides.amin(dim=1) < step.smaller_under)
    record = PassRecord(step.scale, step.flip, rows, columns, tiles, int(kept.sum()))
    return Detections(boxes_xyxy[kept], scores[kept]), record


def joined(backend: Backend, parts: Sequence[Detections]) -> Detections:
    """What several looks at one image found, in the same pixels: one NMS, with the backend's settings."""
    boxes_xyxy, scores = torch.cat([x.boxes_xyxy for x in parts]), torch.cat([x.scores for x in parts])
    kept = nms(boxes_xyxy, scores, backend.detection["nms_iou"])[: backend.detection["keep"]]
    return Detections(boxes_xyxy[kept], scores[kept])


def resized(
    image_rgb: npt.NDArray[np.uint8], scale: float, interpolation: int = cv2.INTER_LINEAR
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) with both sides multiplied and rounded as by :class:`TestScale`, which may pass a limit by a pixel."""
    height, width = image_rgb.shape[:2]
    rows, columns = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    if (rows, columns) == (height, width):
        return image_rgb
    return cv2.resize(image_rgb, (columns, rows), interpolation=interpolation).astype(np.uint8, copy=False)


ENLARGED_AT_MOST = 4.0
SECOND_SHORTER_SIDE, SECOND_SHARE = 384, 0.6
FIRST_SMALLER_UNDER, SECOND_LARGER_OVER = 150.0, 48.0


@dataclass(frozen=True)
class TwoSizes:
    """Photos of any size: one pass for small faces, one over a smaller copy for large ones, one NMS. Not the paper's.

    The image is brought to at most ``max_pixels``, then enlarged until its shorter side has ``min_short`` pixels, at
    most fourfold and within ``max_pixels``. The first pass sees it so and keeps boxes whose smaller side is below 150
    of its pixels; the second sees it at a shorter side of 384, or at 0.6 of the first where that is less, and keeps
    boxes whose larger side is above 48 of the first's pixels. So the cost is bounded, whatever the photo. Shrinking
    averages over areas; NMS and ``keep`` are the detector's.

    Sizes and limits were chosen with the shipped model on images set aside from the training: docs/experiments.md,
    section 11.
    """

    max_pixels: int = 1024 * 768
    min_short: int = 480
    tile_pixels: TilePixels = AUTO

    def __post_init__(self) -> None:
        _check(self, max_pixels=1, min_short=1)

    def first_scale(self, height: int, width: int) -> float:
        """Pixels of the first pass per pixel of an image of this size."""
        largest = (self.max_pixels / (height * width)) ** 0.5
        wanted = min(ENLARGED_AT_MOST, max(1.0, self.min_short / min(height, width)))
        return float(min(wanted, largest))

    def detect(self, backend: Backend, image_rgb: npt.NDArray[np.uint8]) -> tuple[Detections, list[PassRecord]]:
        """As :meth:`MultiScale.detect`; the scales of the records are in pixels per pixel of the image."""
        height, width = image_rgb.shape[:2]
        scale = self.first_scale(height, width)
        # By pairs of pixels first: averaging over other areas takes OpenCV twenty times as long.
        while scale <= 0.5 and min(image_rgb.shape[:2]) > 1:
            even = image_rgb[: image_rgb.shape[0] // 2 * 2, : image_rgb.shape[1] // 2 * 2]
            image_rgb, scale = resized(even, 0.5, cv2.INTER_AREA), scale * 2
        first = resized(image_rgb, scale, cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        ratio = min(SECOND_SHARE, SECOND_SHORTER_SIDE / min(first.shape[:2]))
        second = resized(first, ratio, cv2.INTER_AREA)
        up = torch.tensor([first.shape[1] / second.shape[1], first.shape[0] / second.shape[0]] * 2)
        small, record = run_pass(backend, first, Pass(1.0, smaller_under=FIRST_SMALLER_UNDER), self.tile_pixels)
        limit = SECOND_LARGER_OVER / float(up.max())
        large, second_record = run_pass(backend, second, Pass(1.0, larger_over=limit), self.tile_pixels)
        faces = joined(backend, [small, Detections(large.boxes_xyxy * up, large.scores)])
        to_image = torch.tensor([width / first.shape[1], height / first.shape[0]] * 2)
        found = Detections(clip(faces.boxes_xyxy * to_image, height, width), faces.scores)
        return found, [x._replace(scale=x.height / height) for x in (record, second_record)]


# One scale, or what looks at an image several times and has a method ``detect``.
ScaleProtocol = TestScale | TwoSizes | MultiScale
AnyProtocol = str | Mapping[str, Any] | ScaleProtocol
# The latter by their ``kind``; every other kind is one of TestScale's own.
KINDS: dict[str, type[TwoSizes] | type[MultiScale]] = {"two_sizes": TwoSizes, "multiscale": MultiScale}

# pretrained.DEFAULT_PROTOCOL, without the time that Hydra takes to be imported.
DEFAULT_SCALE = TwoSizes()


def build_protocol(settings: Mapping[str, Any]) -> ScaleProtocol:
    """A protocol from its settings, ``conf/protocol/*.yaml`` as plain containers; ``name`` is not read.

    With ``_target_`` an object of that class, derived from one of them, which gets those of the settings that it takes.
    InputError: an unknown key, a value outside its range, a ``_target_`` that is no protocol.
    """
    if settings.get("_target_") is not None:
        from fanet_lightning.cli.config import own  # with Hydra, see DEFAULT_SCALE

        # The kinds of several sizes name the package's classes, which it stands in for.
        taken = {key: value for key, value in settings.items() if key != "kind" or value not in KINDS}
        found: ScaleProtocol = own("protocol", taken, (TestScale, *KINDS.values()))
        return found
    options = {key: value for key, value in settings.items() if key != "name"}
    kinds = (*SINGLE_KINDS, *KINDS)
    check(options.get("kind", "short") in kinds, f"protocol.kind={options.get('kind')}: take {', '.join(kinds)}")
    kind: type[ScaleProtocol] = KINDS.get(options.get("kind", ""), TestScale)
    if kind is not TestScale:
        del options["kind"]
    known = [field.name for field in fields(kind)]
    for key in options:
        check(key in known, f"protocol.{key} is unknown; protocol {settings.get('name')} takes {', '.join(known)}")
    return kind(**options)


def full_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every default filled in: what a number is stored with."""
    key = "_target_" if settings.get("_target_") else "kind"
    kind = {key: settings[key]} if key in settings else {}
    return {"name": settings.get("name"), **kind, **asdict(build_protocol(settings))}


def protocol_of(protocol: AnyProtocol | None) -> ScaleProtocol:
    """The protocol of a name of ``conf/protocol``, of settings as in its files, or itself; InputError: neither.

    None is :data:`models.pretrained.DEFAULT_PROTOCOL`.
    """
    if protocol is None:
        return DEFAULT_SCALE
    if isinstance(protocol, ScaleProtocol):
        return protocol
    return build_protocol(protocol) if isinstance(protocol, Mapping) else protocol_named(str(protocol))


@lru_cache(maxsize=64)
def protocol_named(name: str) -> ScaleProtocol:
    """A protocol of ``conf/protocol`` by its name; raises as :func:`protocol_settings`."""
    return build_protocol(protocol_settings(name))


def protocol_settings(name: str) -> dict[str, Any]:
    """What ``conf/protocol/<name>.yaml`` holds; InputError: there is none of that name, the message lists them."""
    # Hydra, which comes with it, takes a fifth of a second to import.
    from omegaconf import OmegaConf

    from fanet_lightning.cli.config import config_dir

    names = protocol_names()
    check(name in names, f"protocol={name}: there is no such option; take one of {', '.join(names)}")
    settings: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "protocol" / f"{name}.yaml"), resolve=True)
    return dict(settings)


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package, sorted."""
    from fanet_lightning.cli.config import config_dir

    return sorted(path.stem for path in (config_dir() / "protocol").glob("*.yaml"))
