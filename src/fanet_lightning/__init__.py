"""Feature Agglomeration Networks for single-stage face detection (Zhang, Wu, Zhu, Hoi; arXiv 1712.00721).

Importing the package is light; torch is imported with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fanet_lightning.cli.errors import InputError

if TYPE_CHECKING:
    from fanet_lightning.detect.detector import FaceDetector
    from fanet_lightning.evaluate.metrics import CocoAP, FddbRoc, PascalFaceAP, WiderFaceAP
    from fanet_lightning.ops.structures import Detections

__version__ = "0.1.0"
__all__ = [
    "CocoAP",
    "Detections",
    "FaceDetector",
    "FddbRoc",
    "InputError",
    "PascalFaceAP",
    "WiderFaceAP",
    "__version__",
]

# Imported with the first use.
_LAZY = {
    "CocoAP": "fanet_lightning.evaluate.metrics",
    "Detections": "fanet_lightning.ops.structures",
    "FaceDetector": "fanet_lightning.detect.detector",
    "FddbRoc": "fanet_lightning.evaluate.metrics",
    "PascalFaceAP": "fanet_lightning.evaluate.metrics",
    "WiderFaceAP": "fanet_lightning.evaluate.metrics",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
