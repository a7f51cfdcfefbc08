"""A detector from the words of a command line: ``checkpoint=``, ``device=``, ``precision=``."""

from pathlib import Path
from typing import TYPE_CHECKING

from fanet_lightning.errors import InputError
from fanet_lightning.pretrained import is_onnx

if TYPE_CHECKING:
    from fanet_lightning.detector import FaceDetector


def open_detector(checkpoint: Path | str, device: str = "auto", precision: str = "auto") -> "FaceDetector":
    """A checkpoint of ``train``, a model's folder or name, or an export (``.onnx``), on the device asked for.

    Args:
        checkpoint: see :func:`fanet_lightning.pretrained.locate`; ``.onnx`` is run by onnxruntime.
        device: ``auto``, ``cpu``, ``cuda`` …
        precision: ``auto``, ``32-true`` or ``bf16-mixed``; an export has its own, so nothing but ``auto``.

    Raises:
        InputError: see :func:`fanet_lightning.model_loading.load_model` and
            :meth:`fanet_lightning.onnx_detector.OnnxFaceDetector.open`; or an unknown device or precision.
    """
    from fanet_lightning.detector import FaceDetector

    if is_onnx(checkpoint):
        if precision != "auto":
            raise InputError(f"precision={precision}: {checkpoint} has its own; leave it out")
        return FaceDetector.from_onnx(checkpoint, device=device)
    device = resolve_device(device)
    return FaceDetector.from_pretrained(checkpoint, device=device, precision=precision_on(precision, device))


def resolve_device(device: str) -> str:
    """``auto`` → ``cuda`` where there is one, else ``cpu``; anything else stays.

    Raises:
        InputError: no device's name, or a device that this machine, or this PyTorch, has not.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(str(device)).type
    except RuntimeError as error:
        raise InputError(f"device={device} is no device name; take auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={device}: no CUDA device is available; take device=cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device={device}: this machine, or this PyTorch, has no such device; take device=cpu"
        ) from error
    return device


def precision_on(precision: str, device: str) -> str:
    """``auto`` → what the device is good at (:func:`fanet_lightning.precision.resolve_precision`).

    Raises:
        InputError: an unknown precision.
    """
    from fanet_lightning.precision import resolve_precision

    if precision not in ("auto", "32-true", "bf16-mixed"):
        raise InputError(f"precision={precision} is unknown; take auto, 32-true or bf16-mixed")
    return resolve_precision(precision, device.split(":")[0])


def device_name(device: str) -> str:
    """The device in words, for the record: the GPU's name, or the CPU's threads and architecture."""
    import platform

    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} {'thread' if threads == 1 else 'threads'}, {platform.machine()}"
