"""FaceDetector, the Python API, and what computes its faces: torch, onnxruntime or OpenVINO."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fanet_lightning.cli.device import (
    SHARE,
    available_bytes,
    free_cached,
    is_out_of_memory,
    keep_activation_memory,
    precision_on,
    resolve_device,
)
from fanet_lightning.cli.errors import InputError, check, first_line, import_extra
from fanet_lightning.cli.provenance import TrainingImages, images_of
from fanet_lightning.data.transforms import AUTO, SMALLEST_TILE_PIXELS, TilePixels
from fanet_lightning.detect.protocols import AnyProtocol, Backend, Found, protocol_of
from fanet_lightning.detect.selection import Threshold
from fanet_lightning.detect.stream import DetectOptions, OneImage, StreamSettings, is_one_image
from fanet_lightning.detect.tiling import PixelLimit, find_in_tiles, tiles
from fanet_lightning.models.blocks import Upsample, fuse
from fanet_lightning.models.pretrained import DEFAULT_MODEL, DEFAULT_THRESHOLD, is_export, load_model
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.postprocess import detect, detection_settings
from fanet_lightning.ops.structures import Detections, NetworkOutput

# Of an exported file: names of its tensors, prefix of its metadata.
INPUT_NAME, OUTPUT_NAMES = "images", ("boxes_xyxy", "scores", "image_index")
PREFIX = "fanet_lightning."
FORMAT_VERSION = 1
Call = Callable[[npt.NDArray[np.uint8]], Any]
# onnxruntime's provider for each device.
PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider", "openvino": "OpenVINOExecutionProvider",
}  # fmt: skip

# Images of one size that go through the network together, and their pixels in all on a CPU. There a pass of the light
# model costs some 4 ms whatever its size: one of eight 96 × 96 images takes 0.43 of its time alone, of 320 × 240
# 0.87, of 640 × 480 0.94 on a busy machine and 1.00 on an idle one (benchmarks/detector_overhead.py --batches 1 8).
BATCH_SIZE, BATCH_PIXELS_CPU = 8, 640 * 480


class TorchBackend:
    """A network of :func:`fanet_lightning.models.fanet.build_network`, which takes uint8 RGB, in torch.

    An image of more than ``tile_pixels`` pixels (``auto``: of more than fit into memory) is computed in tiles, which
    give the same faces (:mod:`fanet_lightning.detect.tiling`). Where memory runs out all the same, tiles become
    smaller, and stay so for the images that follow.

    Args:
        network: with trained weights; it is moved to ``device``.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` … or ``auto``; InputError: one that is not there.
        detection: keyword arguments of :func:`fanet_lightning.ops.postprocess.detect` that are not its defaults.
        precision: ``32-true``, ``bf16-mixed`` or ``auto``; InputError: another.
    """

    def __init__(
        self, network: nn.Module, *, device: str = "cpu", detection: Mapping[str, Any] | None = None,
        precision: str = "32-true",
    ) -> None:  # fmt: skip
        self.runs_on = resolve_device(device)
        self.device = torch.device(self.runs_on)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.detection = detection_settings(detection)
        self.precision = precision_on(precision, self.runs_on)
        self.batch_size = BATCH_SIZE
        self.batch_pixels = BATCH_PIXELS_CPU if self.device.type == "cpu" else None
        self._pixels = PixelLimit(self.network, self.device, autocast_bf16=self.precision == "bf16-mixed")

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> list[Found]:
        """As :meth:`Backend.find`; InputError: not the smallest tile fits, or, with ``tile_pixels`` None, the image."""
        count, _, height, width = images.shape
        parts = tiles(height, width, self._pixels.of_tile(tile_pixels)) if count == 1 else []
        together = count if count == 1 else self._pixels.images_together(height, width, tile_pixels) or count
        if together < count:
            several = (images[start : start + together] for start in range(0, count, together))
            return [found for part in several for found in self.find(part, tile_pixels)]
        try:
            with torch.inference_mode():
                if len(parts) > 1:
                    return [Found(find_in_tiles(self.heads, images, parts, self.detection).cpu(), len(parts))]
                output = self.heads(images)
                grid = AnchorGrid(tuple((rows, columns) for rows, columns in output.map_shapes))
                return [Found(faces.cpu(), 1) for faces in detect(output, grid, **self.detection)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        # Here the exception is gone, and with it the tensors of the failed try.
        free_cached(self.device)
        if count > 1:
            self._pixels.together = count * height * width // 2
            return self.find(images, tile_pixels)
        largest = max(part.pixels for part in parts)
        if tile_pixels is None or largest <= SMALLEST_TILE_PIXELS:
            remedy = "set protocol.tile_pixels=auto" if tile_pixels is None else "free memory on the device"
            raise InputError(
                f"an image of {height} × {width} pixels at test scale does not fit into memory ({reason}); {remedy}"
            )
        self._pixels.refused = largest
        return self.find(images, tile_pixels)

    def heads(self, images: torch.Tensor, upsample: Sequence[Upsample] | None = None) -> NetworkOutput:
        """What the network says of images (B, 3, h, w) uint8, on its device; ``upsample``: as of ``FANet.forward``."""
        # In either memory format: what the normaliser makes of both is one and the same.
        images = images.to(self.device)
        more = {} if upsample is None else {"upsample": upsample}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            output: NetworkOutput = self.network(images, **more)
        return output


class ExportBackend:
    """A file of ``fanet export``, in onnxruntime or in OpenVINO: images are computed whole, no tiles.

    ``call``: the file in its runtime, (B, 3, H, W) uint8 → the graph's outputs (:mod:`fanet_lightning.export.graph`).
    ``metadata``: what the file says of itself (:mod:`fanet_lightning.export.run`), ``detection`` among it.
    """

    batch_size: int = 1
    batch_pixels: int | None = None

    def __init__(self, call: Call, metadata: dict[str, Any], runs_on: str = "cpu") -> None:
        self.call, self.metadata, self.runs_on = call, metadata, runs_on
        self.detection = dict(metadata["detection"])
        self.precision = str(metadata["dtype"])

    @classmethod
    def open(
        cls, path: Path, *, device: str = "auto", providers: Sequence[Any] | None = None, threads: int | None = None
    ) -> Self:
        """Open an ONNX file, or OpenVINO's ``.xml``; arguments and errors as of :meth:`FaceDetector.from_onnx`."""
        threads = torch.get_num_threads() if threads is None else threads
        if path.suffix.lower() == ".xml":
            call, entries, runs_on = _in_openvino(path, device, threads)
        else:
            call, entries, runs_on = _in_onnxruntime(path, device, providers, threads)
        own: dict[str, Any] = {key.removeprefix(PREFIX): x for key, x in entries.items() if key.startswith(PREFIX)}
        is_own = own.get("format_version") == str(FORMAT_VERSION)
        check(is_own, f"{path} is not of this version of fanet_lightning.export; export the model again")
        own |= {key: json.loads(own[key]) for key in ("detection", "network", "bytes_per_pixel", "training_images")}
        return cls(call, own | {"training_images": images_of(own)}, runs_on)

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> list[Found]:
        """As :meth:`Backend.find`; never in tiles."""
        count, _, height, width = images.shape
        together = count
        # A GPU's memory is its runtime's affair.
        if not self.runs_on.startswith(("cuda", "directml", "gpu")):
            available = available_bytes(torch.device("cpu"))
            if available is not None:
                together = int(available * SHARE / self.metadata["bytes_per_pixel"]) // (height * width)
        check(together, _too_large(height, width))
        found = []
        for start in range(0, count, together):
            part = np.ascontiguousarray(images[start : start + together].cpu().numpy())
            boxes_xyxy, scores, index = (torch.from_numpy(x) for x in self.run(part))
            found += [Found(Detections(boxes_xyxy[index == k], scores[index == k]), 1) for k in range(len(part))]
        return found

    def run(self, images: npt.NDArray[np.uint8]) -> Any:
        """(B, 3, H, W) → the graph's outputs; InputError where memory runs out."""
        try:
            return self.call(images)
        except Exception as error:  # onnxruntime's classes have no base of their own
            if not any(word in str(error).lower() for word in ("alloc", "memory")):
                raise
            raise InputError(_too_large(*images.shape[2:])) from error


def _in_onnxruntime(
    path: Path, device: str, providers: Sequence[Any] | None, threads: int
) -> tuple[Call, Mapping[str, str], str]:
    """The file as a function, what it says of itself, and the device that it runs on."""
    onnxruntime = import_extra("onnxruntime", str(path), "export")
    here = onnxruntime.get_available_providers()
    kind, _, index = device.partition(":")
    if kind == "auto":
        kind = "cuda" if PROVIDERS["cuda"] in here else "cpu"
    own = PROVIDERS.get(kind, kind)
    asked = list(providers or [(own, {"device_id": index}) if index else own])
    wanted = asked[0] if isinstance(asked[0], str) else asked[0][0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; its warnings are about operators that it moves between devices
    first = ""
    if wanted in here:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of providers that are not there: said below
                session = onnxruntime.InferenceSession(os.fspath(path), options, providers=asked)
        except Exception as error:  # as above
            raise InputError(
                f"{path} cannot be opened by onnxruntime {onnxruntime.__version__} ({first_line(error)[:160]}); "
                "fanet export format=onnx writes one"
            ) from error
        first = session.get_providers()[0]
    # One that is listed, but whose libraries are missing, is left out without an error.
    if first != wanted and (not first or device != "auto" or providers):
        names = ", ".join(name for name, provider in PROVIDERS.items() if provider in here)
        package = f"; pip install onnxruntime-{'gpu' if kind == 'cuda' else kind}" if kind in PROVIDERS else ""
        given = f"providers={wanted}" if providers else f"device={device}"
        raise InputError(f"{given}: {wanted} does not start here; there is {names}{'' if providers else package}")
    runs_on = next((name for name, provider in PROVIDERS.items() if provider == first), first)
    return (
        lambda images: session.run(list(OUTPUT_NAMES), {INPUT_NAME: images}),
        session.get_modelmeta().custom_metadata_map,
        device if device.startswith(f"{runs_on}:") else runs_on,
    )


def _in_openvino(path: Path, device: str, threads: int) -> tuple[Call, Mapping[str, str], str]:
    """As :func:`_in_onnxruntime`."""
    openvino = import_extra("openvino", str(path), "openvino")
    core = openvino.Core()
    name = "CPU" if device == "auto" else device.upper().replace(":", ".")
    # Otherwise processors that multiply bf16 do so, and find other scores than the file's model.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if name == "CPU":
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, name, settings)
    except RuntimeError as error:
        raise InputError(
            f"{path} with its weights in {path.stem}.bin cannot be opened by OpenVINO on device={device} (here are "
            f"{', '.join(core.available_devices).lower()}); fanet export format=openvino writes one"
        ) from error
    try:
        entries = json.loads(model.get_rt_info(PREFIX.rstrip(".")).astype(str))
    except (RuntimeError, ValueError):  # of another program
        entries = {}

    def call(images: npt.NDArray[np.uint8]) -> list[Any]:
        outputs = compiled({INPUT_NAME: images})
        return [outputs[name] for name in OUTPUT_NAMES]

    return call, entries, name.lower().replace(".", ":")


def _too_large(height: int, width: int) -> str:
    return (
        f"an image of {height} × {width} pixels at test scale is too large for memory; an export has no tiles: take "
        "a protocol of a smaller size, or the checkpoint itself"
    )


class FaceDetector:
    """A trained network with its test-time settings; ``runs_on``, ``precision`` and ``detection`` of the backend.

    Args:
        backend: what computes, :class:`TorchBackend` or :class:`ExportBackend`.
        batch_size: of several images, so many in a row that have the same size at test scale go through the network
            together, as far as memory goes. None: 8, on a CPU of 640 × 480 pixels in all at most; 1 with an export.
        source, network_options, training_images: for the record: the checkpoint, model folder or file that the network
            came from, what ``build_network`` made it with, what it was trained on (None: not known).
    """

    def __init__(
        self, backend: Backend, *, batch_size: int | None = None, source: Path | None = None,
        network_options: Mapping[str, Any] | None = None, training_images: Sequence[TrainingImages] | None = None,
    ) -> None:  # fmt: skip
        check(batch_size is None or batch_size >= 1, f"batch_size={batch_size}; give 1 or more")
        self.backend = backend
        self.runs_on, self.precision, self.detection = backend.runs_on, backend.precision, backend.detection
        self.batch_size = batch_size or backend.batch_size
        # Pixels of all images that are computed together; None: any number.
        self.batch_pixels = backend.batch_pixels if batch_size is None else None
        self.source = source
        self.network_options = None if network_options is None else dict(network_options)
        self.training_images = training_images

    @classmethod
    def from_pretrained(
        cls, model: Path | str = DEFAULT_MODEL, *, device: str = "cpu", detection: Mapping[str, Any] | None = None,
        precision: str = "32-true", batch_size: int | None = None,
    ) -> Self:  # fmt: skip
        """Load a trained model, its batch normalization folded into the convolutions.

        On a CPU the process keeps up to 1 GiB of freed memory from then on
        (:func:`fanet_lightning.cli.device.keep_activation_memory`): a pass is a fifth faster.

        Args:
            model: the name of a shipped model, a model's folder, ``organisation/name`` on the Hugging Face hub, or a
                checkpoint or run's folder of ``train``; errors as of :func:`fanet_lightning.models.pretrained.locate`.
            device, precision: as of :class:`TorchBackend`.
            detection: settings in place of the model's own.
            batch_size: as of :class:`FaceDetector`.
        """
        loaded = load_model(model)
        settings = detection_settings(loaded.detection, detection)
        backend = TorchBackend(fuse(loaded.network), device=device, detection=settings, precision=precision)
        if backend.device.type == "cpu":
            keep_activation_memory()
        return cls(
            backend, batch_size=batch_size, source=loaded.source, network_options=loaded.network_options,
            training_images=loaded.training_images,
        )  # fmt: skip

    from_checkpoint = from_pretrained

    @classmethod
    def from_onnx(
        cls, path: Path | str, *, device: str = "auto", providers: Sequence[Any] | None = None,
        threads: int | None = None, batch_size: int | None = None,
    ) -> Self:  # fmt: skip
        """Open a file of ``fanet export``: ``.onnx`` in onnxruntime, ``.xml`` in OpenVINO (which computes in float32).

        Args:
            path: of OpenVINO the ``.xml``; its weights are next to it, in the ``.bin`` of the same name.
            device: of onnxruntime ``cpu``, ``cuda``, ``coreml``, ``directml`` or ``openvino``, also with a number
                (``cuda:1``), ``auto`` is ``cuda`` where onnxruntime has it, else ``cpu``. Of OpenVINO ``cpu``, ``gpu``,
                ``gpu:1``, ``npu``, ``auto`` is ``cpu``.
            providers: onnxruntime's execution providers instead, as ``InferenceSession`` takes them.
            threads: on a CPU; None takes torch's number.
            batch_size: as of :class:`FaceDetector`.

        Raises:
            InputError: no such file, one of something else, the runtime is missing or cannot run it as asked.
        """
        path = Path(path).expanduser()
        backend = ExportBackend.open(path, device=device, providers=providers, threads=threads)
        return cls(
            backend, batch_size=batch_size, source=path, network_options=backend.metadata["network"],
            training_images=backend.metadata["training_images"],
        )  # fmt: skip

    from_openvino = from_onnx

    @overload
    def detect(
        self, images: OneImage, protocol: AnyProtocol | None = None, threshold: Threshold = DEFAULT_THRESHOLD,
        **options: Unpack[DetectOptions],
    ) -> Detections: ...  # fmt: skip

    @overload
    def detect(
        self, images: list[Any] | tuple[Any, ...] | Iterator[Any], protocol: AnyProtocol | None = None,
        threshold: Threshold = DEFAULT_THRESHOLD, **options: Unpack[DetectOptions],
    ) -> list[Detections]: ...  # fmt: skip

    def detect(
        self, images: OneImage | Iterable[OneImage], protocol: AnyProtocol | None = None,
        threshold: Threshold = DEFAULT_THRESHOLD, **options: Unpack[DetectOptions],
    ) -> Detections | list[Detections]:  # fmt: skip
        """Faces of one image, or of each of several.

        Args:
            images: one image: a path, a PIL image, a uint8 array (H, W, 3), gray (H, W) or with alpha (H, W, 4), a
                uint8 tensor (3, H, W) or (1, H, W); see :func:`fanet_lightning.detect.stream.image_rgb_of`. Or several
                of any kind and size: a list, an iterator, an array (B, H, W, 3), a tensor (B, 3, H, W).
            protocol: at which size it looks for faces: a name of ``conf/protocol`` (``auto``, ``original``,
                ``multiscale`` …), settings, a :class:`TestScale`, :class:`TwoSizes` or :class:`MultiScale`; None is
                ``auto``, as on the command line.
            threshold: faces with a lower score are left out, as on the command line. 0.0 gives all that average
                precision needs: everything above the model's own floor, 0.01, at most 750 boxes. Or a score from each
                size on, ``{0: 0.5, 64: 0.3}``: see :class:`fanet_lightning.detect.selection.Selection`.
            min_face: faces whose smaller side has fewer pixels of the image are left out.
            max_faces: the best so many by score; None: all.
            rotate: ``none``; ``auto``, where no face is found, looks at the image turned by 90, 180 and 270 degrees
                too; ``all`` always does. Boxes are of the image as it was given.
            channel_order: of arrays and tensors, ``rgb``, or ``bgr``, which is OpenCV's.

        Returns:
            Boxes in pixels of the image, clipped to it, float32; scores in descending order. For several images a
            list, in their order. Each is what the image alone would give; where the network takes several at once
            (``batch_size``), to rounding: about 1e-5 of a score.

        Raises:
            InputError: an image that cannot be read or is none, an unknown protocol, or an option outside its range. Of
                several images the first bad one ends it all; :meth:`detect_each` continues.
        """
        if not is_one_image(images):
            found = []
            for _, outcome in self.detect_each(cast(Iterable[Any], images), protocol, threshold, **options):
                if isinstance(outcome, InputError):
                    raise outcome
                found.append(outcome)
            return found
        settings = StreamSettings(protocol_of(protocol), threshold, **options)
        return settings.detect(self.backend, [settings.prepare(images)])[0]

    def detect_each(
        self, images: Iterable[OneImage], protocol: AnyProtocol | None = None,
        threshold: Threshold = DEFAULT_THRESHOLD, **options: Unpack[DetectOptions],
    ) -> Iterator[tuple[Any, Detections | InputError]]:  # fmt: skip
        """Every image with its faces, one by one as they are found, in order; a bad one is no reason to stop.

        Arguments as of :meth:`detect`. Yields the image as it was given, with its faces, or with the InputError that
        says what is wrong with it. Files are read ahead in threads, a few at a time; arrays that an iterator has handed
        out must stay as they are until their faces come out. InputError by the call: a protocol or an option.
        """
        settings = StreamSettings(protocol_of(protocol), threshold, **options)
        several = [images] if is_one_image(images) else cast(Iterable[Any], images)
        # What is wrong with the settings is said by the call, not by the first step of the iteration.
        return settings.each(self.backend, several, self.batch_size, self.batch_pixels)


def open_detector(
    checkpoint: Path | str, device: str = "auto", precision: str = "auto", detection: Mapping[str, Any] | None = None
) -> FaceDetector:
    """Whatever ``checkpoint=`` names: a checkpoint of ``train``, a model's folder or name, or an export.

    Args and errors as of :meth:`FaceDetector.from_pretrained` and :meth:`FaceDetector.from_onnx`; ``device`` and
    ``precision`` may be ``auto``, and an export has its own precision and settings: InputError for others.
    """
    if not is_export(checkpoint):
        return FaceDetector.from_pretrained(checkpoint, device=device, precision=precision, detection=detection)
    detector = FaceDetector.from_onnx(checkpoint, device=device)
    refused = [] if precision == "auto" else [f"precision={precision}"]
    given = {key: value for key, value in (detection or {}).items() if value is not None}
    refused += [f"detection.{key}={value} (it is {detector.detection[key]})"
                for key, value in given.items() if value != detector.detection[key]]  # fmt: skip
    check(not refused, f"{', '.join(refused)}: {checkpoint} has its own; leave it out, or export again with it")
    return detector
