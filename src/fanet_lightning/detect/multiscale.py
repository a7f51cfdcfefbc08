"""Test protocols: one scale, or a flip and a pyramid of scales with box voting; protocols by name.

The multi-scale test is that of the paper's last row, after S3FD's test script (sfzhang15/SFD,
sfd_test_code/WIDER_FACE/wider_test.py), which FANet's numbers follow. What is done differently, and why, is in
:class:`MultiScale`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.cli.errors import InputError, is_whole
from fanet_lightning.data.transforms import AUTO, TestScale, TilePixels, check_tile_pixels
from fanet_lightning.ops.boxes import clip
from fanet_lightning.ops.postprocess import box_vote
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
    ``larger_over``    keep boxes whose larger side is above it, pixels of the original image; None keeps all.
    ``smaller_under``  keep boxes whose smaller side is below it.
    """

    scale: float
    flip: bool = False
    larger_over: float | None = None
    smaller_under: float | None = None


class PassRecord(NamedTuple):
    """What a pass did: the size the network saw, in how many tiles, and how many boxes it gave to the vote."""

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
    """What computes faces: :class:`fanet_lightning.detect.detector.TorchBackend` or ``OnnxBackend``.

    ``runs_on``       the device, ``cpu``, ``cuda:1`` …; ``precision`` there.
    ``detection``     all four settings of :func:`fanet_lightning.ops.postprocess.detect`.
    ``batch_size``    how many images of one size it takes at once unless told otherwise, and of how many pixels in all
                      at most: ``batch_pixels``, None: any number.
    """

    runs_on: str
    precision: str
    detection: dict[str, Any]
    batch_size: int
    batch_pixels: int | None

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> Found:
        """Faces of one image (1, 3, h, w) uint8 RGB in its own pixels, not clipped to it, on the CPU.

        Raises:
            InputError: the image does not fit into memory.
        """

    def find_alike(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> list[Found]:
        """As :meth:`find`, for images (B, 3, h, w); as many at a time as fit into memory."""


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
        max_pixels: pixels of the largest pass. Part of the protocol, so that numbers do not depend on the machine.
        tile_pixels: a pass with more pixels is computed in overlapping tiles of at most so many; ``auto``: one that
            does not fit into memory; None: never. The faces are the same (:mod:`fanet_lightning.detect.tiling`).
        vote_iou, keep, keep_singles: see :func:`fanet_lightning.ops.postprocess.box_vote`.

    Raises:
        InputError: a value outside its range.
    """

    max_pixels: int = MAX_PIXELS
    tile_pixels: TilePixels = AUTO
    vote_iou: float = 0.3
    keep: int = 750
    keep_singles: bool = True

    def __post_init__(self) -> None:
        for name, good, hint in (
            ("max_pixels", is_whole(self.max_pixels, 1), "the pixels of the largest pass, at least 1"),
            ("keep", is_whole(self.keep, 0), "how many boxes come out, at least 0"),
            ("vote_iou", isinstance(self.vote_iou, int | float) and 0 < self.vote_iou <= 1, "an overlap above 0 and at "
             "most 1"),
            ("keep_singles", isinstance(self.keep_singles, bool), "true or false"),
        ):  # fmt: skip
            if not good:
                raise InputError(f"protocol.{name}={getattr(self, name)}; give {hint}")
        check_tile_pixels(self.tile_pixels)

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
        """Faces of one image, (H, W, 3) uint8 RGB, and what each pass did.

        Boxes in pixels of the image, clipped to it, float32; scores in descending order.

        Raises:
            InputError: a pass does not fit into memory, see :meth:`Backend.find`.
        """
        height, width = image_rgb.shape[:2]
        found, records = [], []
        for step in self.scales(height, width):
            detections, record = self._run(backend, image_rgb, step)
            found.append(detections)
            records.append(record)
        voted = box_vote(
            torch.cat([item.boxes_xyxy for item in found]),
            torch.cat([item.scores for item in found]),
            iou=self.vote_iou,
            keep=self.keep,
            keep_singles=self.keep_singles,
        )
        return Detections(clip(voted.boxes_xyxy, height, width), voted.scores), records

    def _run(self, backend: Backend, image_rgb: npt.NDArray[np.uint8], step: Pass) -> tuple[Detections, PassRecord]:
        height, width = image_rgb.shape[:2]
        # The rounding of TestScale. The limit holds for the scale; rounded sides may pass it by a pixel each.
        rows, columns = max(1, int(height * step.scale + 0.5)), max(1, int(width * step.scale + 0.5))
        image = image_rgb
        if (rows, columns) != (height, width):
            image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
        if step.flip:
            image = image[:, ::-1]
        detections, tiles = backend.find(torch.from_numpy(image.transpose(2, 0, 1).copy())[None], self.tile_pixels)
        ratio = torch.tensor([columns / width, rows / height] * 2, dtype=torch.float32)
        boxes_xyxy, scores = detections.boxes_xyxy / ratio, detections.scores
        if step.flip:
            x1, y1, x2, y2 = boxes_xyxy.unbind(dim=1)
            boxes_xyxy = torch.stack([width - x2, y1, width - x1, y2], dim=1)
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        kept = torch.ones(len(scores), dtype=torch.bool)
        if step.larger_over is not None:
            kept &= sides.amax(dim=1) > step.larger_over
        if step.smaller_under is not None:
            kept &= sides.amin(dim=1) < step.smaller_under
        record = PassRecord(step.scale, step.flip, rows, columns, tiles, int(kept.sum()))
        return Detections(boxes_xyxy[kept], scores[kept]), record


# One scale, or what looks at an image several times and has a method ``detect``.
ScaleProtocol = TestScale | MultiScale
AnyProtocol = str | Mapping[str, Any] | ScaleProtocol
# The latter by their ``kind``; every other kind is one of TestScale's own.
KINDS: dict[str, type[MultiScale]] = {"multiscale": MultiScale}

# pretrained.DEFAULT_PROTOCOL, without the time that Hydra takes to be imported.
DEFAULT_SCALE = TestScale("short", 640)
# Where the shorter side is longer, faces may well be larger than those of the training, some 400 pixels at most.
LARGE_SHORTER_SIDE = 1000


def build_protocol(settings: Mapping[str, Any]) -> ScaleProtocol:
    """A protocol from its settings, ``conf/protocol/*.yaml`` as plain containers; ``name`` is not read.

    Raises:
        InputError: an unknown key or a value outside its range.
    """
    options = {key: value for key, value in settings.items() if key != "name"}
    kind: type[TestScale] | type[MultiScale] = TestScale
    if options.get("kind") in KINDS:
        kind = KINDS[options.pop("kind")]
    known = [field.name for field in fields(kind)]
    for key in options:
        if key not in known:
            raise InputError(f"protocol.{key} is unknown; protocol {settings.get('name')} takes {', '.join(known)}")
    return kind(**options)


def full_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every default filled in: what a number is stored with."""
    protocol = build_protocol(settings)
    kind = {} if isinstance(protocol, TestScale) else {"kind": settings["kind"]}
    return {"name": settings.get("name"), **kind, **asdict(protocol)}


def too_large_for(protocol: object, width: int, height: int) -> bool:
    """Whether faces in an image of this size are probably missed, because ``protocol`` (its name) leaves it so."""
    return protocol == "original" and min(width, height) > LARGE_SHORTER_SIDE


def protocol_of(protocol: AnyProtocol | None) -> ScaleProtocol:
    """The test scale, or scales, that is meant; None is :data:`models.pretrained.DEFAULT_PROTOCOL`.

    Args:
        protocol: a name (:func:`protocol_names`), settings as in ``conf/protocol/*.yaml``, or a protocol.

    Raises:
        InputError: an unknown name or setting, a value outside its range, or an object of another kind.
    """
    if protocol is None:
        return DEFAULT_SCALE
    if isinstance(protocol, ScaleProtocol):
        return protocol
    if isinstance(protocol, str):
        return protocol_named(protocol)
    if isinstance(protocol, Mapping):
        return build_protocol(protocol)
    raise InputError(f"protocol is of type {type(protocol).__name__}; give a name, settings, TestScale or MultiScale")


@lru_cache(maxsize=64)
def protocol_named(name: str) -> ScaleProtocol:
    """A protocol of ``conf/protocol`` by its name; raises as :func:`protocol_settings`."""
    return build_protocol(protocol_settings(name))


def protocol_settings(name: str) -> dict[str, Any]:
    """What ``conf/protocol/<name>.yaml`` holds.

    Raises:
        InputError: there is none of that name; the message lists them.
    """
    # Hydra, which comes with it, takes a fifth of a second to import.
    from omegaconf import OmegaConf

    from fanet_lightning.cli.config import config_dir

    if name not in protocol_names():
        raise InputError(f"protocol={name}: there is no such option; take one of {', '.join(protocol_names())}")
    settings: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "protocol" / f"{name}.yaml"), resolve=True)
    return dict(settings)


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package, sorted."""
    from fanet_lightning.cli.config import config_dir

    return sorted(path.stem for path in (config_dir() / "protocol").glob("*.yaml"))
