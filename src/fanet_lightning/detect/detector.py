"""FaceDetector, the Python API: from checkpoints, model folders and ONNX files.

From a checkpoint or a model given away to faces in images: the Python API.

>>> detector = FaceDetector.from_pretrained()                   # doctest: +SKIP
>>> detector.detect("holiday.jpg").boxes_xyxy                   # doctest: +SKIP
>>> detector.detect(["a.jpg", image_rgb], protocol="original", threshold=0.2)       # doctest: +SKIP
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fanet_lightning.cli.device import (
    SHARE,
    available_bytes,
    free_cached,
    is_out_of_memory,
    precision_on,
    resolve_device,
)
from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.provenance import TrainingImages, from_plain
from fanet_lightning.data.transforms import AUTO, SMALLEST_TILE_PIXELS, TilePixels
from fanet_lightning.detect.multiscale import AnyProtocol, Found, protocol_of
from fanet_lightning.detect.stream import ChannelOrder, OneImage, StreamSettings, in_image, in_order, is_one_image
from fanet_lightning.detect.tiling import PixelLimit, Tile, find_in_tiles, tiles
from fanet_lightning.models.blocks import fuse
from fanet_lightning.models.pretrained import (
    DEFAULT_MODEL,
    DEFAULT_THRESHOLD,
    is_onnx,
    keep_activation_memory,
    load_model,
    locate,
)
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.postprocess import detect
from fanet_lightning.ops.structures import Detections, NetworkOutput

INPUT_NAME, OUTPUT_NAMES = "images", ("boxes_xyxy", "scores", "image_index")
PREFIX = "fanet_lightning."
FORMAT_VERSION = 1


def read_metadata(entries: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Without the prefix; JSON parsed.

    Raises:
        InputError: they are not of this package, or of a newer version of it.
    """
    own = {key.removeprefix(PREFIX): value for key, value in entries.items() if key.startswith(PREFIX)}
    if "format_version" not in own:
        raise InputError(f"{path} is not of fanet_lightning.export; export a model with format=onnx")
    if own["format_version"] != str(FORMAT_VERSION):
        raise InputError(
            f"{path} is of format {own['format_version']}, written by fanet-lightning {own.get('package_version')}; "
            f"this version reads format {FORMAT_VERSION}: install a newer one, or export the model again"
        )
    try:
        parsed = {key: json.loads(own[key]) for key in ("detection", "network", "bytes_per_pixel")}
        read: dict[str, Any] = {**own, **parsed}
        images = json.loads(own["training_images"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: its metadata are damaged ({error}); export the model again") from error
    parts: list[TrainingImages] | None = None if images is None else from_plain(images, path)
    read["training_images"] = parts
    return read


# Images of one size that go through the network together, and their pixels in all on a CPU. There a pass of the light
# model costs some 4 ms whatever its size: one of eight 96 × 96 images takes 0.43 of its time alone, of 320 × 240
# 0.87, of 640 × 480 0.94 on a busy machine and 1.00 on an idle one (benchmarks/detector_overhead.py --batches 1 8).
BATCH_SIZE, BATCH_PIXELS_CPU = 8, 640 * 480

_T = TypeVar("_T")


class FaceDetector:
    """A trained network with its test-time settings.

    Args:
        network: what :func:`build_network` made; takes uint8 RGB.
        device: where it runs, ``cpu``, ``cuda``, ``cuda:1``, ``mps`` … or ``auto``. On a CPU the process keeps up to
            1 GiB of freed memory from then on (:mod:`fanet_lightning.models.pretrained`): a pass is a fifth faster.
        detection: keyword arguments of :func:`fanet_lightning.ops.postprocess.detect`.
        precision: ``32-true`` or ``bf16-mixed``.
        batch_size: of several images, so many that have the same size at test scale go through the network together,
            as far as memory goes. None: 8, on a CPU of 640 × 480 pixels in all at most: there small images gain by it
            (96 × 96 more than half of the time), larger ones hardly.
        source: the checkpoint or model folder that the network came from, for the record.
        network_options: what ``build_network`` made the network with, for the record.
        training_images: what it was trained on; None where that is not known.

    Raises:
        InputError: no device's name, or one that is not there; a batch size below 1.
    """

    # Pixels of all images that are computed together; None: any number.
    batch_pixels: int | None = None

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str = "cpu",
        detection: Mapping[str, Any] | None = None,
        precision: str = "32-true",
        batch_size: int | None = None,
        source: Path | None = None,
        network_options: Mapping[str, Any] | None = None,
        training_images: Sequence[TrainingImages] | None = None,
    ) -> None:
        device = resolve_device(device)
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.device = torch.device(device)
        # Where it is computed, for the record; images and faces of an export stay on the CPU all the same.
        self.runs_on = device
        if self.device.type == "cpu":
            keep_activation_memory()
        self.detection = dict(detection or {})
        self.precision = precision
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size}; give 1 or more")
        self.batch_size = batch_size or BATCH_SIZE
        self.batch_pixels = BATCH_PIXELS_CPU if batch_size is None and self.device.type == "cpu" else None
        self.source = source
        self.network_options = None if network_options is None else dict(network_options)
        self.training_images = training_images
        self._pixels = PixelLimit(self.network, self.device, autocast_bf16=precision == "bf16-mixed")

    @classmethod
    def from_checkpoint(cls, path: Path | str, **options: Any) -> Self:
        """Load a checkpoint of ``train``, or the best one in its run's folder; :meth:`from_pretrained` takes both too.

        Raises:
            InputError: see :func:`load_model`.
        """
        return cls.from_pretrained(path, **options)

    @classmethod
    def from_pretrained(cls, model: Path | str = DEFAULT_MODEL, **options: Any) -> Self:
        """Load a trained model, its batch normalisation folded into the convolutions.

        Args:
            model: the name of a shipped model, a model's folder, ``organisation/name`` on the Hugging Face hub, or a
                checkpoint or run's folder of ``train``; see :func:`fanet_lightning.models.pretrained.locate`.
            options: to the constructor.

        Raises:
            InputError: see :func:`load_model`; or a file of :mod:`fanet_lightning.export`.
        """
        if is_onnx(model):
            raise InputError(f"{model} is an exported file; FaceDetector.from_onnx({str(model)!r}) opens it")
        path = locate(model)
        loaded = load_model(path)
        options.setdefault("detection", loaded.detection)
        options = {"network_options": loaded.network_options, "training_images": loaded.training_images, **options}
        return cls(fuse(loaded.network), source=path, **options)

    @classmethod
    def from_onnx(cls, path: Path | str, **options: Any) -> "FaceDetector":
        """Open a file that ``python -m fanet_lightning.export format=onnx`` has written; onnxruntime computes.

        Args:
            path: the ``.onnx`` file.
            options: see :meth:`OnnxFaceDetector.open`.

        Raises:
            InputError: no such file, one of something else, or onnxruntime is not installed.
        """

        detector: FaceDetector = OnnxFaceDetector.open(path, **options)
        return detector

    @overload
    def detect(
        self,
        images: OneImage,
        protocol: AnyProtocol | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        *,
        channel_order: ChannelOrder = "rgb",
    ) -> Detections: ...

    @overload
    def detect(
        self,
        images: list[Any] | tuple[Any, ...] | Iterator[Any],
        protocol: AnyProtocol | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        *,
        channel_order: ChannelOrder = "rgb",
    ) -> list[Detections]: ...

    def detect(
        self,
        images: OneImage | Iterable[OneImage],
        protocol: AnyProtocol | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        *,
        channel_order: ChannelOrder = "rgb",
    ) -> Detections | list[Detections]:
        """Faces of one image, or of each of several.

        Args:
            images: one image: a path, a PIL image, a uint8 array (H, W, 3), grey (H, W) or with alpha (H, W, 4), a
                uint8 tensor (3, H, W) or (1, H, W); see :func:`fanet_lightning.detect.stream.image_rgb_of`. Or several
                of any kind and size: a list, an iterator, an array (B, H, W, 3), a tensor (B, 3, H, W). Files of a
                list are read while the network is busy with those before them.
            protocol: at which size it looks for faces: a name of ``conf/protocol`` (``original``, ``short640``,
                ``multiscale`` …), settings, a :class:`TestScale` or a :class:`MultiScale`; None is ``short640``, as on
                the command line.
            threshold: faces with a lower score are left out, as on the command line. 0.0 gives all that average
                precision needs: everything above the model's own floor, 0.01, at most 750 boxes.
            channel_order: of arrays and tensors; ``bgr`` is OpenCV's. Files and PIL images say it themselves.

        Returns:
            Boxes in pixels of the image, clipped to it, float32; scores in descending order. For several images a
            list, in their order. Each is what the image alone would give; where the network takes several at once
            (``batch_size``), to rounding: about 1e-5 of a score.

        Raises:
            InputError: an image that cannot be read or is none, an unknown protocol, or a threshold outside 0 … 1. Of
                several images the first bad one ends it all; :meth:`detect_each` goes on.
        """
        if not is_one_image(images):
            found = []
            several = cast(Iterable[Any], images)
            for _, outcome in self.detect_each(several, protocol, threshold, channel_order=channel_order):
                if isinstance(outcome, InputError):
                    raise outcome
                found.append(outcome)
            return found
        settings = StreamSettings(protocol_of(protocol), threshold, channel_order)
        return settings.detect(self, [settings.prepare(images)])[0]

    def detect_each(
        self,
        images: Iterable[OneImage],
        protocol: AnyProtocol | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        *,
        channel_order: ChannelOrder = "rgb",
    ) -> Iterator[tuple[Any, Detections | InputError]]:
        """Every image with its faces, one by one as they are found, in order; a bad one is no reason to stop.

        Args:
            images: as of :meth:`detect`, several; an iterator is asked for a few images ahead of those found, so
                arrays that it has handed out must stay as they are until their faces come out.
            protocol, threshold, channel_order: as of :meth:`detect`.

        Yields:
            The image as it was given, with its faces, or with the InputError that says what is wrong with it. Files
            are read and resized ahead in threads of their own, a few at a time, so the folder may have any size.

        Raises:
            InputError: an unknown protocol, or a threshold outside 0 … 1; before the first image is read.
        """
        settings = StreamSettings(protocol_of(protocol), threshold, channel_order)
        several = [images] if is_one_image(images) else cast(Iterable[Any], images)
        # What is wrong with the settings is said by the call, not by the first step of the iteration.
        together = partial(settings.images_together, self.batch_size, self.batch_pixels)
        return in_order(several, settings.prepare, partial(settings.detect, self), together)

    def detect_resized(
        self, images: torch.Tensor, scale_xy: torch.Tensor, height: int, width: int, tile_pixels: TilePixels = AUTO
    ) -> Found:
        """As :meth:`detect`, for an image (1, 3, h, w) uint8 that already has test scale ``scale_xy`` (1, 2)."""
        found, count = self.find(images, tile_pixels)
        return Found(in_image(found, scale_xy[0], height, width), count)

    def find_alike(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> list[Found]:
        """As :meth:`find`, for images (B, 3, h, w); as many at a time as fit into memory."""
        count, _, height, width = images.shape
        together = (self._pixels.images_together(height, width, tile_pixels) if count > 1 else None) or count
        found: list[Found] = []
        for start in range(0, count, together):
            found += self._found_alike(images[start : start + together], tile_pixels)
        return found

    def _found_alike(self, images: torch.Tensor, tile_pixels: TilePixels) -> list[Found]:
        count, _, height, width = images.shape
        if count == 1:
            return [self.find(images, tile_pixels)]
        outcome = self._tried(partial(self._find_together, images))
        if not isinstance(outcome, str):
            return [Found(detections, 1) for detections in outcome]
        free_cached(self.device)
        self._pixels.refuse_together(count * height * width)
        half = count // 2
        return self._found_alike(images[:half], tile_pixels) + self._found_alike(images[half:], tile_pixels)

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> Found:
        """Faces of one image (1, 3, h, w) uint8 in its own pixels, not clipped to it, on the CPU.

        An image of more than ``tile_pixels`` pixels (``auto``: of more than fit into memory) is computed in tiles,
        which give the same faces (:mod:`fanet_lightning.detect.tiling`). Where memory runs out all the same, tiles
        become smaller, and stay so for the images that follow.

        Raises:
            InputError: not even the smallest tile fits; or, with ``tile_pixels`` None, not the image.
        """
        height, width = images.shape[-2:]
        while True:
            parts = tiles(height, width, self._pixels.of_tile(tile_pixels))
            outcome = self._tried(partial(self._find, images, parts))
            if not isinstance(outcome, str):
                return Found(outcome, len(parts))
            free_cached(self.device)
            largest = max(part.pixels for part in parts)
            size = f"an image of {height} × {width} pixels at test scale"
            if tile_pixels is None:
                raise InputError(f"{size} does not fit into memory ({outcome}); set protocol.tile_pixels=auto")
            if largest <= SMALLEST_TILE_PIXELS:
                raise InputError(
                    f"{size} does not fit into memory, not even in tiles of {largest:,} pixels ({outcome}); free "
                    "memory on the device, or take another one"
                )
            self._pixels.refuse_tile(largest)

    def _tried(self, work: Callable[[], _T]) -> _T | str:
        """The faces, or the first line of what was said when memory ran out.

        The exception itself ends here: it would hold on to the tensors of the failed try.
        """
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return first_line(error)

    @torch.inference_mode()
    def _find(self, images: torch.Tensor, parts: Sequence[Tile]) -> Detections:
        if len(parts) > 1:
            found = find_in_tiles(self._heads, images, parts, self.detection)
        else:
            return self._find_together(images)[0]
        return Detections(found.boxes_xyxy.cpu(), found.scores.cpu())

    @torch.inference_mode()
    def _find_together(self, images: torch.Tensor) -> list[Detections]:
        output = self._heads(images)
        grid = AnchorGrid(tuple((rows, columns) for rows, columns in output.map_shapes))
        found = detect(output, grid, **self.detection)
        return [Detections(item.boxes_xyxy.cpu(), item.scores.cpu()) for item in found]

    def _heads(self, images: torch.Tensor) -> NetworkOutput:
        # In either memory format: what the normaliser makes of both is one and the same.
        images = images.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            output: NetworkOutput = self.network(images)
        return output


_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxFaceDetector(FaceDetector):
    """Everything that :class:`FaceDetector` does, but for tiles: an image is computed whole, whatever its size.

    Score floor, top-k and NMS are those in the file; ``detection`` says which.
    """

    def __init__(
        self, path: Path, session: Any, metadata: dict[str, Any], *, device: str, batch_size: int | None = None
    ) -> None:
        # The constructor of FaceDetector is for a network of torch, and there is none.
        self.session = session
        self.device = torch.device("cpu")
        self.detection = dict(metadata["detection"])
        self.precision = str(metadata["dtype"])
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size}; give 1 or more")
        self.batch_size = batch_size or 1
        self.source = path
        self.network_options = metadata["network"]
        self.training_images = metadata["training_images"]
        self.metadata = metadata
        self.runs_on = device

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        device: str = "auto",
        providers: Sequence[Any] | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> Self:
        """Open a file that ``python -m fanet_lightning.export format=onnx`` has written.

        Args:
            path: the file.
            device: ``cpu``, ``cuda``, or ``auto``: ``cuda`` where onnxruntime has it.
            providers: onnxruntime's execution providers instead, as ``InferenceSession`` takes them.
            threads: on a CPU; None takes torch's number.
            batch_size: images of one size that are computed together.

        Raises:
            InputError: no such file, one of something else, onnxruntime is missing or cannot run it as asked.
        """
        path = Path(path).expanduser()
        chosen, name = _providers(device, providers)
        session = open_session(path, chosen, threads)
        return cls(path, session, session_metadata(session, path), device=name, batch_size=batch_size)

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> Found:
        """As :meth:`FaceDetector.find`; never in tiles.

        Raises:
            InputError: the image does not fit into memory.
        """
        return self.find_alike(images, tile_pixels)[0]

    def find_alike(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> list[Found]:
        """As :meth:`find`, for images (B, 3, h, w) uint8; as many at a time as fit into memory."""
        count, _, height, width = images.shape
        limit = self._pixels_in_memory()
        if limit is not None and height * width > limit:
            raise InputError(_too_large(1, height, width, f"it holds about {limit:,}"))
        together = count if limit is None else max(1, limit // (height * width))
        return [item for part in images.split(together) for item in self._found(part)]  # type: ignore[no-untyped-call]

    def _found(self, images: torch.Tensor) -> list[Found]:
        boxes_xyxy, scores, image_index = run(self.session, np.ascontiguousarray(images.cpu().numpy()))
        ends = np.bincount(image_index, minlength=len(images)).cumsum()[:-1]
        parts = zip(np.split(boxes_xyxy, ends), np.split(scores, ends), strict=True)
        return [Found(Detections(torch.from_numpy(boxes), torch.from_numpy(own)), 1) for boxes, own in parts]

    def _pixels_in_memory(self) -> int | None:
        """None where it is not known: a GPU's memory is onnxruntime's affair."""
        available = None if self.runs_on.startswith("cuda") else available_bytes(self.device)
        return None if available is None else int(available * SHARE / self.metadata["bytes_per_pixel"])


def run(
    session: Any, images: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(B, 3, H, W) → the graph's outputs, see :mod:`fanet_lightning.export.graph`.

    Raises:
        InputError: memory runs out.
    """
    try:
        boxes_xyxy, scores, image_index = session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})
    except Exception as error:  # onnxruntime's classes have no base of their own
        text = str(error)
        if not any(word in text.lower() for word in ("bad_alloc", "alloc", "memory")):
            raise
        count, _, height, width = images.shape
        raise InputError(_too_large(count, height, width, first_line(error)[:120])) from error
    return boxes_xyxy, scores, image_index


def _too_large(count: int, height: int, width: int, reason: str) -> str:
    what = f"an image of {height} × {width} pixels" if count == 1 else f"{count} images of {height} × {width} pixels"
    return (
        f"{what} at test scale: too large for memory ({reason}); an ONNX file has no tiles: take a protocol of a "
        "smaller size, or the checkpoint itself"
    )


def open_session(path: Path, providers: Sequence[Any], threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession``.

    Raises:
        InputError: onnxruntime is missing, no such file, or no ONNX file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path}: needs the package onnxruntime; pip install 'fanet-lightning[export]'") from error
    if not path.is_file():
        raise InputError(f"no ONNX file at {path}; python -m fanet_lightning.export format=onnx writes one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3  # errors; its warnings are about operators that it moves between devices
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=list(providers))
    except Exception as error:  # as in run()
        raise InputError(
            f"{path} is no ONNX file that onnxruntime {onnxruntime.__version__} can run "
            f"({first_line(error)[:160]}); export the model again"
        ) from error
    return session


def session_metadata(session: Any, path: Path) -> dict[str, Any]:
    """What the file says of itself, see :mod:`fanet_lightning.export.metadata`.

    Raises:
        InputError: the file is of something else.
    """
    metadata = read_metadata(session.get_modelmeta().custom_metadata_map, path)
    inputs, outputs = [x.name for x in session.get_inputs()], [x.name for x in session.get_outputs()]
    if inputs != [INPUT_NAME] or outputs != list(OUTPUT_NAMES):
        raise InputError(f"{path}: input {inputs} and outputs {outputs} are not those of an export; export it again")
    return metadata


def _providers(device: str, providers: Sequence[Any] | None) -> tuple[list[Any], str]:
    """onnxruntime's providers, and what to call them."""
    if providers is not None:
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        return list(providers), names[0] if names else "cpu"
    kind = device.split(":")[0]
    if kind not in ("auto", *_PROVIDERS):
        raise InputError(f"device={device} is unknown; take auto, cpu or cuda, or give providers")
    try:
        import onnxruntime

        has_cuda = _PROVIDERS["cuda"] in onnxruntime.get_available_providers()
    except ImportError:
        has_cuda = False  # open_session says what is missing
    if kind == "cuda" and not has_cuda:
        raise InputError(f"device={device}: this onnxruntime has no CUDA; pip install onnxruntime-gpu, or device=cpu")
    if kind == "cuda" or (kind == "auto" and has_cuda):
        index = int(device.split(":")[1]) if ":" in device else 0
        return [(_PROVIDERS["cuda"], {"device_id": index}), _PROVIDERS["cpu"]], device if kind == "cuda" else "cuda"
    return [_PROVIDERS["cpu"]], "cpu"


def open_detector(checkpoint: Path | str, device: str = "auto", precision: str = "auto") -> "FaceDetector":
    """A checkpoint of ``train``, a model's folder or name, or an export (``.onnx``), on the device asked for.

    Args:
        checkpoint: see :func:`fanet_lightning.models.pretrained.locate`; ``.onnx`` is run by onnxruntime.
        device: ``auto``, ``cpu``, ``cuda`` …
        precision: ``auto``, ``32-true`` or ``bf16-mixed``; an export has its own, so nothing but ``auto``.

    Raises:
        InputError: see :func:`fanet_lightning.models.pretrained.load_model` and
            :meth:`OnnxFaceDetector.open`; or an unknown device or precision.
    """

    if is_onnx(checkpoint):
        if precision != "auto":
            raise InputError(f"precision={precision}: {checkpoint} has its own; leave it out")
        return FaceDetector.from_onnx(checkpoint, device=device)
    device = resolve_device(device)
    return FaceDetector.from_pretrained(checkpoint, device=device, precision=precision_on(precision, device))
