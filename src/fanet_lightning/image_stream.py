"""Many images through one detector: files are read ahead, alike images run together, results come in order.

Memory is bounded whatever the number of images: by :data:`READ_AHEAD_BYTES` of pixels that wait, and besides one image
for every reading thread and, once more as many bytes, those that wait for others of their size.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.boxes import clip
from fanet_lightning.data.resize import TestScale
from fanet_lightning.errors import InputError
from fanet_lightning.image_inputs import ChannelOrder, check_channel_order, image_rgb_of
from fanet_lightning.multiscale import Found, MultiScale
from fanet_lightning.structures import Detections
from fanet_lightning.tiles import AUTO, TilePixels

# Decoders leave the interpreter free while they work. More threads than these outrun any network here.
READERS = min(4, os.cpu_count() or 1)
READ_AHEAD_BYTES = 256 * 2**20
# Where images run together, so many times a batch may wait to find others of their size.
BATCHES_WAITING = 4


class Prepared(NamedTuple):
    """An image at test scale: ``pixels`` (h, w, 3) uint8 RGB; ``scale_xy`` (2,) float32, its pixels per pixel of the
    image; ``height`` and ``width`` of the image itself."""

    pixels: npt.NDArray[np.uint8]
    scale_xy: npt.NDArray[np.float32]
    height: int
    width: int


class Network(Protocol):
    """What is needed of a detector: :class:`fanet_lightning.detector.FaceDetector` has it."""

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> Found:
        """(1, 3, h, w) uint8 RGB → faces in its pixels, on the CPU."""

    def find_alike(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> list[Found]:
        """(B, 3, h, w) uint8 RGB → faces of each."""


@dataclass(frozen=True)
class StreamSettings:
    """What a call asks for, the same for all of its images.

    Raises:
        InputError: ``threshold`` outside 0 … 1, or a ``channel_order`` that is neither ``rgb`` nor ``bgr``.
    """

    protocol: TestScale | MultiScale
    threshold: float
    channel_order: ChannelOrder

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)
        check_channel_order(self.channel_order)

    def images_together(self, most: int, most_pixels: int | None, image: Prepared) -> int:
        """How many images of this one's size go through the network at once, at least 1."""
        if isinstance(self.protocol, MultiScale):  # each has several sizes
            return 1
        height, width = image.pixels.shape[:2]
        return most if most_pixels is None else max(1, min(most, most_pixels // (height * width)))

    def prepare(self, image: Any) -> Prepared:
        """Read and resize one image; several scales start from the image as it is.

        Raises:
            InputError: see :func:`fanet_lightning.image_inputs.image_rgb_of`.
        """
        image_rgb = image_rgb_of(image, self.channel_order)
        height, width = image_rgb.shape[:2]
        if isinstance(self.protocol, MultiScale):
            return Prepared(image_rgb, np.ones(2, np.float32), height, width)
        return Prepared(*self.protocol(image_rgb), height, width)

    def detect(self, network: Network, images: Sequence[Prepared]) -> list[Detections]:
        """Faces of images that have one size at test scale.

        Raises:
            InputError: they do not fit into memory, see :meth:`fanet_lightning.detector.FaceDetector.find`.
        """
        if isinstance(self.protocol, MultiScale):
            found = [self.protocol.detect(network, image.pixels)[0] for image in images]
        else:
            faces = network.find_alike(network_input(images), self.protocol.tile_pixels)
            found = [
                in_image(item.detections, torch.from_numpy(image.scale_xy), image.height, image.width)
                for item, image in zip(faces, images, strict=True)
            ]
        return [item.above(self.threshold) for item in found] if self.threshold else found


def _check_threshold(value: object) -> None:
    # numpy's numbers are numbers too; nan is in no range.
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InputError(f"threshold={value}; give a score of 0 … 1")


def in_image(found: Detections, scale_xy: torch.Tensor, height: int, width: int) -> Detections:
    """Boxes in network pixels → in pixels of the image, clipped to it; ``scale_xy`` (2,)."""
    boxes_xyxy = found.boxes_xyxy / scale_xy.to(found.boxes_xyxy.dtype).repeat(2)
    return Detections(clip(boxes_xyxy, height, width), found.scores)


def network_input(images: Iterable[Prepared]) -> torch.Tensor:
    """(B, 3, h, w) uint8 of images that have one size, channels last in memory. A single one is not copied."""
    pixels = [image.pixels for image in images]
    if len(pixels) > 1:
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    # torch warns of arrays that are read-only, as Pillow's are, and refuses a side of length 1 that runs backwards.
    usable = pixels[0].flags.writeable and min(pixels[0].strides) > 0
    return torch.from_numpy(pixels[0] if usable else pixels[0].copy())[None].permute(0, 3, 1, 2)


@dataclass
class _Waiting:
    """An image between its reading and its turn: ``outcome`` once it is known; so many of its size run ``together``."""

    image: Any
    prepared: Prepared | None
    outcome: Detections | InputError | None
    together: int

    @property
    def bytes(self) -> int:
        return 0 if self.prepared is None else self.prepared.pixels.nbytes


def in_order(
    images: Iterable[Any],
    prepare_one: Callable[[Any], Prepared],
    detect_alike: Callable[[list[Prepared]], list[Detections]],
    images_together: Callable[[Prepared], int],
) -> Iterator[tuple[Any, Detections | InputError]]:
    """Every image with its faces, or with what is wrong with it, in the images' order.

    Args:
        images: asked for the next one as reading goes on, in the caller's thread.
        prepare_one: called in other threads.
        detect_alike: the faces of some images that have one size; called in the caller's thread.
        images_together: how many of the size of a given one ``detect_alike`` shall be given. Where it is 1, the faces
            of an image come out before the next one is waited for.
    """
    read = read_ahead(images, prepare_one, 2 * READERS)
    waiting: deque[_Waiting] = deque()
    more = True
    try:
        while True:
            while more and _more_may_wait(waiting):
                image, prepared = next(read, (None, None))
                if prepared is None:
                    more = False
                elif isinstance(prepared, InputError):
                    waiting.append(_Waiting(image, None, prepared, 1))
                else:
                    waiting.append(_Waiting(image, prepared, None, images_together(prepared)))
            if not waiting:
                return
            first = waiting[0]
            if first.outcome is None:
                _detect_like(first, waiting, detect_alike)
            waiting.popleft()
            assert first.outcome is not None
            yield first.image, first.outcome
    finally:
        read.close()


def _more_may_wait(waiting: Sequence[_Waiting]) -> bool:
    """Whether the first of those that wait has use for more."""
    if not waiting:
        return True
    if waiting[0].outcome is not None or waiting[0].together == 1:
        return False
    return len(waiting) < BATCHES_WAITING * waiting[0].together and sum(x.bytes for x in waiting) < READ_AHEAD_BYTES


def _detect_like(
    first: _Waiting, waiting: Iterable[_Waiting], detect_alike: Callable[[list[Prepared]], list[Detections]]
) -> None:
    """Give ``first``, and the next ones of its size, their outcome."""
    assert first.prepared is not None
    shape = first.prepared.pixels.shape
    alike = [x for x in waiting if x.prepared is not None and x.prepared.pixels.shape == shape]
    alike = alike[: first.together]
    outcomes: list[Any]
    try:
        outcomes = list(detect_alike([x.prepared for x in alike if x.prepared is not None]))
    except InputError as error:  # one that does not fit into memory: nor do the others of its size
        outcomes = [error] * len(alike)
    for item, outcome in zip(alike, outcomes, strict=True):
        item.prepared, item.outcome = None, outcome


def read_ahead(
    images: Iterable[Any], prepare_one: Callable[[Any], Prepared], most: int
) -> Generator[tuple[Any, Prepared | InputError], None, None]:
    """Every image with its pixels, or what is wrong with it, in order; at most ``most`` wait or are being read."""

    def attempt(image: Any) -> Prepared | InputError:
        try:
            return prepare_one(image)
        except InputError as error:
            return error

    source = iter(images)
    waiting: deque[tuple[Any, Future[Prepared | InputError]]] = deque()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read-images")
    try:
        more = True
        while True:
            while more and len(waiting) < most and (not waiting or _ready_bytes(waiting) < READ_AHEAD_BYTES):
                try:
                    image = next(source)
                except StopIteration:
                    more = False
                else:
                    waiting.append((image, pool.submit(attempt, image)))
            if not waiting:
                return
            image, future = waiting.popleft()
            yield image, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ready_bytes(waiting: Iterable[tuple[Any, "Future[Prepared | InputError]"]]) -> int:
    done = [future.result() for _, future in waiting if future.done()]
    return sum(item.pixels.nbytes for item in done if not isinstance(item, InputError))
