"""A detector from the words of a command line: ``checkpoint=``, ``device=``, ``precision=``."""

from pathlib import Path
from typing import TYPE_CHECKING

from fanet_lightning.errors import InputError
from fanet_lightning.precision import precision_on, resolve_device
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
