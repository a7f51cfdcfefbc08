"""Many images through a detector: reading ahead, batches, writing behind, progress.

Many images through one detector: files are read ahead, alike images run together, results come in order.

Memory is bounded whatever the number of images: by :data:`READ_AHEAD_BYTES` of pixels that wait, and besides one image
for every reading thread and, once more as many bytes, those that wait for others of their size.

Many images through a detector: reading, inference and writing overlap, in bounded memory.

Readers decode a few images ahead and writers draw and encode behind, in threads that yield to the network: decoders
and encoders let go of the interpreter, so what they do fits into the gaps that the network leaves. Nothing else is
shared between the threads; results are taken note of in the caller's thread, in the images' order.
"""

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Real
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, uint8

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.data.images import BACKGROUND, Image8, pillow_image_rgb, read_image_rgb
from fanet_lightning.data.transforms import AUTO, TestScale, TilePixels
from fanet_lightning.detect.inputs import Item, Journal, Limits, Loaded, decoded, load
from fanet_lightning.detect.multiscale import Found, MultiScale
from fanet_lightning.detect.outputs import Saving, entry_of, write_picture
from fanet_lightning.ops.boxes import clip
from fanet_lightning.ops.structures import Detections

if TYPE_CHECKING:
    from PIL.Image import Image


if TYPE_CHECKING:
    OneImage = str | PathLike[str] | Image | npt.NDArray[np.uint8] | Tensor
else:
    OneImage = Any

# Of arrays and tensors. Files and PIL images say it themselves.
ChannelOrder = Literal["rgb", "bgr"]

# Of a path, too, which has only one of the slashes left. A Windows drive is one letter.
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")
_KINDS = "a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W)"


def check_channel_order(channel_order: str) -> None:
    """
    Raises:
        InputError: neither ``rgb`` nor ``bgr``.
    """
    if channel_order not in get_args(ChannelOrder):
        raise InputError(f"channel_order={channel_order!r}; take 'rgb', or 'bgr' for what OpenCV reads")


def is_one_image(images: object) -> bool:
    """Whether it stands for one image; else it is a batch array or tensor, or holds several.

    Raises:
        InputError: neither.
    """
    if isinstance(images, str | PathLike) or _is_pillow(images):
        return True
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    if isinstance(images, bytes | bytearray | dict) or not isinstance(images, Iterable):
        raise InputError(f"images is of type {type(images).__name__}; give {_KINDS}, or a list of such")
    return False


def image_rgb_of(image: OneImage, channel_order: ChannelOrder = "rgb") -> Image8:
    """(H, W, 3) uint8 RGB, C-contiguous, at least 1 × 1. An array that is so already is handed back, not copied.

    Args:
        image: a path or a ``PIL.Image.Image``, as :func:`fanet_lightning.data.images.read_image_rgb` takes it: every
            mode, upright, transparency over white. Or an array, (H, W) or (H, W, 1) grey, (H, W, 3), (H, W, 4) with
            alpha, which is laid over white. Or a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) on any device. Both
            uint8.
        channel_order: of arrays and tensors.

    Raises:
        UnreadableImage: a file or a PIL image that cannot be decoded; the message names it.
        InputError: anything else, an address (``https://…``), another type of numbers, a shape that is none of these,
            or no pixels.
    """
    if isinstance(image, str | PathLike):
        if _ADDRESS.match(str(image)):
            raise InputError(
                f"{image} is an address; python -m fanet_lightning.detect source=URL fetches one, in Python give the "
                "picture itself: a file, a PIL image or an array"
            )
        return read_image_rgb(Path(image))
    if _is_pillow(image):
        return pillow_image_rgb(image, str(getattr(image, "filename", "") or "the PIL image"))
    if isinstance(image, Tensor):
        return _colours_of(_pixels_of(image), channel_order)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise InputError(
                "an image in an array must be (H, W, 3) uint8, not "
                f"{image.shape} {image.dtype}; {_advice(image.dtype == np.uint8, image.dtype.kind == 'f', 'array')}"
            )
        return _colours_of(image, channel_order)
    raise InputError(f"an image is of type {type(image).__name__}; give {_KINDS}")


def _is_pillow(image: object) -> bool:
    from PIL import Image

    return isinstance(image, Image.Image)


def _pixels_of(image: Tensor) -> npt.NDArray[np.uint8]:
    """(C, H, W) or (H, W) → (H, W, C) or (H, W), a view where it lies on the CPU."""
    if image.dtype != uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3, 4)):
        raise InputError(
            "an image in a tensor must be (3, H, W) uint8, not "
            f"{tuple(image.shape)} {image.dtype}; {_advice(image.dtype == uint8, image.is_floating_point(), 'tensor')}"
        )
    pixels: npt.NDArray[np.uint8] = image.detach().cpu().numpy()
    return pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0)


def _advice(is_uint8: bool, is_float: bool, kind: str) -> str:
    if is_float:
        cast = "image.to(torch.uint8)" if kind == "tensor" else "image.astype(np.uint8)"
        return f"bring it to 0 … 255 and round it, then {cast}"
    if not is_uint8:
        return "bring it to 8 bits a channel"
    return "channels come last" if kind == "array" else "channels come first"


def _colours_of(pixels: npt.NDArray[np.uint8], channel_order: ChannelOrder) -> Image8:
    """(H, W) or (H, W, 1, 3 or 4) → (H, W, 3), C-contiguous."""
    if 0 in pixels.shape:
        raise InputError(f"an image of shape {pixels.shape} has no pixels; leave it out")
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return _converted(pixels.reshape(pixels.shape[:2]), cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 4:
        return _over_background(pixels if channel_order == "rgb" else _converted(pixels, cv2.COLOR_BGRA2RGBA))
    if channel_order == "bgr":
        return _converted(pixels, cv2.COLOR_BGR2RGB)
    if pixels.flags.c_contiguous:
        return pixels
    if pixels[..., ::-1].flags.c_contiguous:  # BGR that was turned round with [..., ::-1]
        return _converted(pixels[..., ::-1], cv2.COLOR_BGR2RGB)
    if pixels.transpose(2, 0, 1).flags.c_contiguous:  # of a tensor (3, H, W)
        return _image8(cv2.merge(list(pixels.transpose(2, 0, 1))))
    return np.ascontiguousarray(pixels)


def _converted(pixels: npt.NDArray[np.uint8], code: int) -> Image8:
    """By OpenCV, which takes a tenth of numpy's time."""
    return _image8(cv2.cvtColor(np.ascontiguousarray(pixels), code))


def _image8(pixels: npt.NDArray[Any]) -> Image8:
    return pixels.astype(np.uint8, copy=False)


def _over_background(pixels: npt.NDArray[np.uint8]) -> Image8:
    """(H, W, 4) RGBA → (H, W, 3) by Pillow, so that an array shows what its file does."""
    from PIL import Image

    over = Image.fromarray(np.ascontiguousarray(pixels))
    ground = Image.new("RGBA", over.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
    return np.ascontiguousarray(Image.alpha_composite(ground, over).convert("RGB"), dtype=np.uint8)


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
    """What is needed of a detector: :class:`fanet_lightning.detect.detector.FaceDetector` has it."""

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
            InputError: see :func:`image_rgb_of`.
        """
        image_rgb = image_rgb_of(image, self.channel_order)
        height, width = image_rgb.shape[:2]
        if isinstance(self.protocol, MultiScale):
            return Prepared(image_rgb, np.ones(2, np.float32), height, width)
        return Prepared(*self.protocol(image_rgb), height, width)

    def detect(self, network: Network, images: Sequence[Prepared]) -> list[Detections]:
        """Faces of images that have one size at test scale.

        Raises:
            InputError: they do not fit into memory, see :meth:`fanet_lightning.detect.detector.FaceDetector.find`.
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


# Without a terminal: a line at every tenth of the work, or after so many seconds where its length is not known.
_LINE_SECONDS = 10.0


class Progress:
    """A context manager; ``say`` writes a line, above the bar while there is one.

    Args:
        total: how many there are to do; None where nobody knows.
        unit: ``images`` or ``frames``.
        quiet: no bar and no progress lines, e.g. for a single image; ``say`` still speaks.
    """

    def __init__(self, total: int | None, unit: str, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, emoji=False)
        self.done = 0
        self._total, self._unit, self._quiet = total, unit, quiet
        self._bar: Any = None
        self._task: Any = None
        self._start = self._last_line = time.perf_counter()
        self._tenth = 0

    def __enter__(self) -> Self:
        self._start = self._last_line = time.perf_counter()
        if self.console.is_terminal and not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("detecting"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        self.console.print(text)

    def set_total(self, total: int) -> None:
        """How many there are, known only now."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, speed=self.speed())
        elif not self._quiet:
            self._line()

    def speed(self) -> str:
        """``12.3 images/s`` since the block was entered."""
        return f"{self.done / max(time.perf_counter() - self._start, 1e-9):.1f} {self._unit}/s"

    def _line(self) -> None:
        if self._total:
            tenth = self.done * 10 // self._total
            if tenth > self._tenth:
                self._tenth = tenth
                self.say(f"{tenth * 10:3} %, {self.done:,} of {self._total:,} {self._unit}, {self.speed()}")
        elif time.perf_counter() - self._last_line > _LINE_SECONDS:
            self._last_line = time.perf_counter()
            self.say(f"{self.done:,} {self._unit}, {self.speed()}")


# Images that are read, or being read, before their turn, for every reader.
AHEAD_PER_READER = 2
# What waits to be drawn and written: images for every writer, and bytes of pixels. An image beyond waits for those
# before it, and what a killed process loses is no more than these.
BEHIND_PER_WRITER = 2
MOST_BYTES_BEHIND = 256 * 2**20
_NICENESS = 10

FindFaces = Callable[[Image8], Detections]
"""(H, W, 3) uint8 RGB → faces in its pixels. An InputError is about this image alone."""


@dataclass
class Outcome:
    """What became of the images of a run, those done earlier not counted."""

    done: int = 0
    faces: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Written:
    item: Item
    image_rgb: Image8
    found: Detections
    note: str
    files: "Future[list[str]]"


class ImagePipeline:
    """One run over many images.

    Args:
        find_faces: called in the caller's thread, one image at a time.
        out: folder of the results.
        saving: what is written of every image.
        journal: open; an image is added to it once its results are on disk.
        progress: told of every image, and of what cannot be read.
        limits: of downloads.
        workers: threads that read, and as many that write.
    """

    def __init__(
        self,
        find_faces: FindFaces,
        out: Path,
        saving: Saving,
        journal: Journal,
        progress: Progress,
        limits: Limits,
        workers: int = 2,
    ) -> None:
        self.outcome = Outcome()
        self._find_faces, self._out, self._saving = find_faces, out, saving
        self._journal, self._progress, self._limits, self._workers = journal, progress, limits, workers
        self._stop = threading.Event()
        self._ahead: deque[tuple[Item, Future[Loaded]]] = deque()
        self._behind: deque[_Written] = deque()

    def run(self, items: Sequence[Item]) -> Outcome:
        """Find the faces of every image.

        An image that cannot be read is told and counted, and the rest goes on. On Ctrl-C those whose faces are found
        are still written before KeyboardInterrupt goes on; ``outcome`` then says what was done.

        Raises:
            InputError: results cannot be written.
        """
        readers, writers = (
            ThreadPoolExecutor(self._workers, name, yield_to_the_network) for name in ("read-images", "write-images")
        )
        todo = deque(items)
        try:
            while todo or self._ahead:
                while todo and len(self._ahead) < self._workers * AHEAD_PER_READER:
                    item = todo.popleft()
                    self._ahead.append((item, readers.submit(load, item, self._limits, self._stop)))
                item, future = self._ahead.popleft()
                self._one(item, future, writers)
            self._settle(0)
        except KeyboardInterrupt:
            self._settle(0)
            raise
        finally:
            self._stop.set()
            for pool in (readers, writers):
                pool.shutdown(wait=False, cancel_futures=True)
        return self.outcome

    def _one(self, item: Item, future: "Future[Loaded]", writers: ThreadPoolExecutor) -> None:
        try:
            loaded = future.result()
            image_rgb = decoded(loaded, item)
            found = self._find_faces(image_rgb)
        except InputError as error:
            self._fail(item, error)
            return
        self._settle(BEHIND_PER_WRITER * self._workers - 1, MOST_BYTES_BEHIND - image_rgb.nbytes)
        if loaded.note:
            self._progress.say(f"{item.text}: {loaded.note} is used")
        files = writers.submit(write_picture, self._out, item, image_rgb, found, self._saving, loaded.profile)
        self._behind.append(_Written(item, image_rgb, found, loaded.note, files))

    def _settle(self, most: int, most_bytes: int = MOST_BYTES_BEHIND) -> None:
        """Take note of what has been written, and wait until no more than so many images and bytes are behind."""
        while self._behind:
            few = len(self._behind) <= most and self._bytes_behind() <= max(most_bytes, 0)
            if few and not self._behind[0].files.done():
                return
            written = self._behind[0]
            try:
                files = written.files.result()
            except InputError as error:
                self._behind.popleft()
                self._fail(written.item, error)
                continue
            except OSError as error:
                raise InputError(
                    f"out={self._out} cannot be written ({error.strerror or first_line(error)}); "
                    "free it, and the same command goes on"
                ) from error
            self._journal.add(written.item, entry_of(written.image_rgb, written.found, written.note, files))
            self._behind.popleft()
            self.outcome.done += 1
            self.outcome.faces += written.found.count
            self._progress.advance()

    def _bytes_behind(self) -> int:
        return sum(written.image_rgb.nbytes for written in self._behind)

    def _fail(self, item: Item, error: InputError) -> None:
        reason = " ".join(str(error).split())
        self.outcome.failed[item.name] = reason
        self._progress.say(f"error: {reason}")
        self._progress.advance()


def yield_to_the_network() -> None:
    """Lower the priority of this thread alone: on a busy machine it gets what the network's threads leave.

    The network's threads wait for one another, so one of them that loses its core to a decoder holds up all.
    """
    if sys.platform == "linux":  # elsewhere a priority is a process's, and this number is of none, or of another one
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
