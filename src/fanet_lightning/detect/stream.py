"""Many images through a detector: any kind of image as an array, reading ahead, batches."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.data.images import Image8, pillow_image_rgb, read_image_rgb, read_shrunk_rgb
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.detect.protocols import Backend, PassRecord, ScaleProtocol, TwoSizes, joined
from fanet_lightning.detect.selection import ROTATIONS, Selection, Threshold
from fanet_lightning.ops.boxes import clip
from fanet_lightning.ops.structures import Detections

OneImage = str | PathLike[str] | Image.Image | npt.NDArray[np.uint8] | Tensor
# Of arrays and tensors. Files and PIL images say it themselves.
ChannelOrder = Literal["rgb", "bgr"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def is_one_image(images: object) -> bool:
    """Whether it stands for one image, good or bad; else it is a batch array or tensor, or holds several."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    single = isinstance(images, str | PathLike | Image.Image | bytes | bytearray | dict)
    return single or not isinstance(images, Iterable)


def image_rgb_of(image: OneImage, channel_order: ChannelOrder = "rgb") -> Image8:
    """(H, W, 3) uint8 RGB, C-contiguous, at least 1 × 1. An array that is so already is handed back, not copied.

    Args:
        image: a path or a PIL image, as :func:`fanet_lightning.data.images.read_image_rgb` takes it: every mode,
            upright, transparency over white. Or a uint8 array, (H, W) or (H, W, 1) gray, (H, W, 3), (H, W, 4) with
            alpha, which is laid over white. Or a uint8 tensor (H, W), (1, H, W), (3, H, W), (4, H, W) on any device.
        channel_order: of arrays and tensors.

    Raises:
        UnreadableImage: a file or a PIL image that cannot be decoded; the message names it.
        InputError: anything else, another type of numbers, a shape that is none of these, or no pixels.
    """
    if isinstance(image, str | PathLike):
        return read_image_rgb(Path(image))
    if isinstance(image, Image.Image):
        return pillow_image_rgb(image, str(getattr(image, "filename", "") or "the PIL image"))
    is_tensor = isinstance(image, Tensor)
    what = f"an image is of type {type(image).__name__}"
    if isinstance(image, np.ndarray | Tensor):
        channels = 1 if image.ndim < 3 else image.shape[0 if is_tensor else -1]
        fits = image.dtype in (torch.uint8, np.uint8) and image.ndim in (2, 3) and channels in (1, 3, 4)
        if fits and 0 not in image.shape:
            pixels: npt.NDArray[np.uint8] = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
            return _rgb_of(pixels.transpose(1, 2, 0) if is_tensor and pixels.ndim == 3 else pixels, channel_order)
        what = f"an image is a{' tensor' if is_tensor else 'n array'} {tuple(image.shape)} {image.dtype}"
    raise InputError(f"{what}; give a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W) uint8, 0 … 255")


def _rgb_of(pixels: npt.NDArray[np.uint8], channel_order: ChannelOrder) -> Image8:
    """(H, W) or (H, W, 1, 3 or 4) → (H, W, 3), C-contiguous; mostly by OpenCV, which takes a tenth of numpy's time."""
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return _converted(pixels.reshape(pixels.shape[:2]), cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 4:  # by Pillow, so that an array shows what its file does
        if channel_order == "bgr":
            pixels = _converted(pixels, cv2.COLOR_BGRA2RGBA)
        return pillow_image_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
    if channel_order == "bgr":
        return _converted(pixels, cv2.COLOR_BGR2RGB)
    if pixels.flags.c_contiguous:
        return pixels
    if pixels[..., ::-1].flags.c_contiguous:  # BGR that was turned round with [..., ::-1]
        return _converted(pixels[..., ::-1], cv2.COLOR_BGR2RGB)
    if pixels.transpose(2, 0, 1).flags.c_contiguous:  # of a tensor (3, H, W)
        return np.asarray(cv2.merge(list(pixels.transpose(2, 0, 1))), dtype=np.uint8)
    return np.ascontiguousarray(pixels)


def _converted(pixels: npt.NDArray[np.uint8], code: int) -> Image8:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), code), dtype=np.uint8)


# Decoders leave the interpreter free while they work. More threads than these outrun any network here.
READERS = min(4, os.cpu_count() or 1)
READ_AHEAD_BYTES = 256 * 2**20


def in_threads(
    items: Iterable[_T],
    work: Callable[[_T], _R],
    *,
    threads: int,
    most: int,
    size: Callable[[_T, "Future[_R]"], int] | None = None,
    name: str = "read-images",
    finish: bool = False,
) -> Generator[tuple[_T, "Future[_R]"], None, None]:
    """Every item with the future of what ``work`` made of it, in order: reading ahead, or writing behind.

    Args:
        items: asked for the next one in the caller's thread; ``work`` is called in ``threads`` others.
        most: so many items are in work, or wait to come out.
        size: bytes that one of these takes. More than ``READ_AHEAD_BYTES`` together are not begun.
        finish: on Ctrl-C while the next item is made or waited for, those that were begun still come out first.
    """
    waiting: deque[tuple[_T, Future[_R]]] = deque()

    def first() -> tuple[_T, "Future[_R]"]:
        wait([waiting[0][1]])
        return waiting.popleft()

    pool = ThreadPoolExecutor(threads, name)
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            while len(waiting) >= most or (size and waiting and sum(size(*x) for x in waiting) >= READ_AHEAD_BYTES):
                yield first()
        while waiting:
            yield first()
    except KeyboardInterrupt:
        while finish and waiting:
            yield first()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class ScaledImage(NamedTuple):
    """An image at test scale: ``pixels`` (h, w, 3) uint8 RGB; ``scale_xy`` (2,) float32, its pixels per pixel of the
    image; ``height`` and ``width`` of the image itself."""

    pixels: npt.NDArray[np.uint8]
    scale_xy: npt.NDArray[np.float32]
    height: int
    width: int


class DetectOptions(TypedDict, total=False):
    """Keyword arguments of :meth:`fanet_lightning.detect.detector.FaceDetector.detect`, which says what they mean."""

    min_face: float
    max_faces: int | None
    rotate: str
    channel_order: ChannelOrder


@dataclass(frozen=True)
class StreamSettings:
    """What a call asks for, the same for all of its images; InputError: a value outside its range."""

    protocol: ScaleProtocol
    threshold: Threshold
    min_face: float = 0
    max_faces: int | None = None
    rotate: str = "none"
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        self.select  # noqa: B018  # its ranges
        for key, choices in (("rotate", ROTATIONS), ("channel_order", ("rgb", "bgr"))):
            value = getattr(self, key)
            check(value in choices, f"{key}={value} is unknown; take {', '.join(choices)}")

    @cached_property
    def select(self) -> Selection:
        """The faces among the boxes of an image."""
        return Selection(self.threshold, self.min_face, self.max_faces)

    def prepare(self, image: Any) -> ScaledImage:
        """Read and resize one image; several scales start from the image as it is. Raises as :func:`image_rgb_of`."""
        if isinstance(self.protocol, TwoSizes) and isinstance(image, str | PathLike):
            # It sees 1,024 × 768 pixels at most: of a photo, the decoder gives a quarter of the pixels or fewer.
            image_rgb, height, width = read_shrunk_rgb(Path(image), self.protocol.first_scale)
            shrunk = np.array([image_rgb.shape[1] / width, image_rgb.shape[0] / height], np.float32)
            return ScaledImage(image_rgb, shrunk, height, width)
        image_rgb = image_rgb_of(image, self.channel_order)
        height, width = image_rgb.shape[:2]
        if isinstance(self.protocol, TestScale):
            return ScaledImage(*self.protocol(image_rgb), height, width)
        return ScaledImage(image_rgb, np.ones(2, np.float32), height, width)

    def detect(self, network: Backend, images: Sequence[ScaledImage]) -> list[Detections]:
        """Faces of images that have one size at test scale; InputError: they do not fit into memory."""
        return [self.select(boxes) for boxes in self.boxes(network, images)]

    def boxes(self, network: Backend, images: Sequence[ScaledImage]) -> list[Detections]:
        """As :meth:`detect`, but all boxes that the network gives, whatever is selected of them."""
        found = [boxes for boxes, _ in found_in(self.protocol, network, images)]
        turned = {
            n: [boxes] for n, boxes in enumerate(found)
            if self.rotate == "all" or (self.rotate == "auto" and not self.select(boxes))
        }  # fmt: skip
        for turns in (1, 2, 3) if turned else ():
            looks = found_in(self.protocol, network, [_turned(images[n], turns) for n in turned])
            for (n, parts), (item, _) in zip(turned.items(), looks, strict=True):
                boxes_xyxy = turned_back(item.boxes_xyxy, turns, images[n].height, images[n].width)
                parts.append(Detections(boxes_xyxy, item.scores))
        for n, parts in turned.items():
            found[n] = joined(network, parts)
        return found

    def each(
        self, network: Backend, images: Iterable[Any], batch_size: int, batch_pixels: int | None
    ) -> Iterator[tuple[Any, Detections | InputError]]:
        """Every image with its faces, or with what is wrong with it, in the images' order; memory is bounded.

        Images are read in other threads. Those of one size that follow each other go through the network together, at
        most ``batch_size`` with ``batch_pixels`` in all. Where that is one, its faces come out before the next goes
        through; up to twice :data:`READERS` images are asked for ahead.
        """
        alike: list[tuple[Any, ScaledImage]] = []

        def found() -> Iterator[tuple[Any, Detections | InputError]]:
            given, prepared = [image for image, _ in alike], [ready for _, ready in alike]
            alike.clear()
            try:
                yield from zip(given, self.detect(network, prepared) if prepared else [], strict=True)
            except InputError as error:  # one that does not fit into memory: nor do the others of its size
                yield from ((image, error) for image in given)

        with closing(in_threads(images, self.prepare, threads=READERS, most=2 * READERS, size=ready_bytes)) as read:
            for image, future in read:
                try:
                    prepared = future.result()
                except InputError as error:
                    yield from found()
                    yield image, error
                    continue
                height, width = prepared.pixels.shape[:2]
                if alike and alike[0][1].pixels.shape != prepared.pixels.shape:
                    yield from found()
                alike.append((image, prepared))
                # Other protocols look at an image in several sizes.
                most = batch_size if isinstance(self.protocol, TestScale) else 1
                if batch_pixels is not None:
                    most = min(most, batch_pixels // (height * width))
                if len(alike) >= most or len(alike) * prepared.pixels.nbytes >= READ_AHEAD_BYTES:
                    yield from found()
            yield from found()


def _turned(image: ScaledImage, turns: int) -> ScaledImage:
    """The image after so many quarter turns, counter-clockwise."""
    pixels = np.ascontiguousarray(np.rot90(image.pixels, turns))
    if turns % 2 == 0:
        return image._replace(pixels=pixels)
    return ScaledImage(pixels, image.scale_xy[::-1].copy(), image.width, image.height)


def turned_back(boxes_xyxy: Tensor, turns: int, height: int, width: int) -> Tensor:
    """(D, 4) boxes of an image that was turned by so many quarters counter-clockwise → of the image, height × width."""
    for turn in range(turns, 0, -1):
        limit = width if turn % 2 else height  # the height of the image as it is turned here
        x1, y1, x2, y2 = boxes_xyxy.unbind(dim=1)
        boxes_xyxy = torch.stack([limit - y2, x1, limit - y1, x2], dim=1)
    return boxes_xyxy


def found_in(
    protocol: ScaleProtocol, backend: Backend, images: Sequence[ScaledImage]
) -> list[tuple[Detections, list[PassRecord]]]:
    """All boxes of images that have one size at test scale, clipped to them, and what each pass over them did.

    Boxes in pixels of the image itself, scales of the records relative to it. InputError: see :meth:`Backend.find`.
    """
    results = []
    if isinstance(protocol, TestScale):
        found = backend.find(network_input(images), protocol.tile_pixels)
        for image, (faces, tiles) in zip(images, found, strict=True):
            rows, columns = image.pixels.shape[:2]
            results.append((faces, [PassRecord(rows / image.height, False, rows, columns, tiles, len(faces))]))
    else:
        for image in images:
            faces, records = protocol.detect(backend, image.pixels)
            # The decoder may have shrunk the pixels already.
            results.append((faces, [x._replace(scale=x.scale * float(image.scale_xy[1])) for x in records]))
    return [(in_image(faces, image), records) for image, (faces, records) in zip(images, results, strict=True)]


def in_image(found: Detections, image: ScaledImage) -> Detections:
    """Boxes in pixels of the prepared image → in pixels of the image itself, clipped to it."""
    boxes_xyxy = found.boxes_xyxy / torch.from_numpy(image.scale_xy).to(found.boxes_xyxy.dtype).repeat(2)
    return Detections(clip(boxes_xyxy, image.height, image.width), found.scores)


def network_input(images: Iterable[ScaledImage]) -> torch.Tensor:
    """(B, 3, h, w) uint8 of images that have one size, channels last in memory. A single one is not copied."""
    pixels = [image.pixels for image in images]
    if len(pixels) > 1:
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    # torch warns of arrays that are read-only, as Pillow's are, and refuses a side of length 1 that runs backwards.
    usable = pixels[0].flags.writeable and min(pixels[0].strides) > 0
    return torch.from_numpy(pixels[0] if usable else pixels[0].copy())[None].permute(0, 3, 1, 2)


def ready_bytes(_: Any, future: "Future[Any]") -> int:
    """What the arrays of a tuple take that has been read ahead, for :func:`in_threads`."""
    if not future.done() or future.exception() is not None:
        return 0
    return sum(value.nbytes for value in future.result() if isinstance(value, np.ndarray))
