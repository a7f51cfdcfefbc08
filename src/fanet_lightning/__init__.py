"""Feature Agglomeration Networks for single-stage face detection (Zhang, Wu, Zhu, Hoi; arXiv 1712.00721).

Importing the package is light; torch is imported with the first name that needs it.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["FaceDetector", "InputError", "__version__"]

from fanet_lightning.errors import InputError

if TYPE_CHECKING:
    from fanet_lightning.detector import FaceDetector


def __getattr__(name: str) -> Any:
    if name == "FaceDetector":
        from fanet_lightning.detector import FaceDetector

        return FaceDetector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
