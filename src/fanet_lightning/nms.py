"""torchvision's NMS without the rest of torchvision.

``import torchvision`` brings every model of it along and torch's compiler with them: as long again as torch itself, for
the one operator that detection needs. The operator lies in a library of its own, which torch can load.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor


def _load_operator() -> None:
    if hasattr(torch.ops.torchvision, "nms"):
        return
    package = importlib.util.find_spec("torchvision")  # finds it without importing it
    folder = Path(package.origin).parent if package is not None and package.origin else Path()
    for library in sorted(folder.glob("_C*.so")):  # _C_stable.so since 0.29; none on Windows
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        except OSError:  # one that wants to be loaded by its package
            continue
    if not hasattr(torch.ops.torchvision, "nms"):
        import torchvision  # noqa: F401


def nms(boxes_xyxy: Tensor, scores: Tensor, iou: float) -> Tensor:
    """As ``torchvision.ops.nms``: (D, 4), (D,) → indices of the boxes that stand, int64, best score first.

    A box falls where its IoU with a better one that stands exceeds ``iou``.
    """
    kept: Tensor = torch.ops.torchvision.nms(boxes_xyxy, scores, iou)
    return kept


_load_operator()
