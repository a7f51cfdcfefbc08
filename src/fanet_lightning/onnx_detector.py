"""A detector that runs an exported ONNX file through onnxruntime, with the Python API of :class:`FaceDetector`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.detector import FaceDetector
from fanet_lightning.errors import InputError, first_line
from fanet_lightning.export_metadata import INPUT_NAME, OUTPUT_NAMES, read_metadata
from fanet_lightning.memory import SHARE, available_bytes
from fanet_lightning.multiscale import Found
from fanet_lightning.structures import Detections
from fanet_lightning.tiles import AUTO, TilePixels

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
    """(B, 3, H, W) → the graph's outputs, see :mod:`fanet_lightning.export_graph`.

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
    """What the file says of itself, see :mod:`fanet_lightning.export_metadata`.

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
