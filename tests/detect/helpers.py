"""Detectors around networks that tests make themselves."""

from typing import Any

from torch import nn

from fanet_lightning import FaceDetector
from fanet_lightning.detect.detector import TorchBackend


def detector_of(network: nn.Module, *, batch_size: int | None = None, **options: Any) -> FaceDetector:
    """``options``: of :class:`TorchBackend`."""
    return FaceDetector(TorchBackend(network, **options), batch_size=batch_size)
