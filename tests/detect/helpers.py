"""A photograph, the shipped model, and detectors around networks that tests make themselves."""

import functools
from pathlib import Path
from typing import Any

from matplotlib import cbook
from PIL import Image
from torch import nn

from fanet_lightning import FaceDetector
from fanet_lightning.detect.detector import TorchBackend

# Grace Hopper, which comes with matplotlib: 512 × 600, one face.
PHOTOGRAPH = Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


@functools.cache
def portrait() -> Image.Image:
    """At 256 × 300; the medals at its lower border, which the shipped model takes for a face, are covered."""
    image = Image.open(PHOTOGRAPH).convert("RGB").resize((256, 300))
    image.paste((40, 40, 60), (0, 285, 256, 300))
    return image


@functools.cache
def light() -> FaceDetector:
    """The shipped model."""
    return FaceDetector.from_pretrained()


def detector_of(network: nn.Module, *, batch_size: int | None = None, **options: Any) -> FaceDetector:
    """``options``: of :class:`TorchBackend`."""
    return FaceDetector(TorchBackend(network, **options), batch_size=batch_size)
