"""From head outputs to faces (FANet §3.3, eq. 3): probability, floor, top-k, decoding, NMS; and box voting.

NMS is torchvision's operator without the rest of torchvision, whose import takes as long again as torch itself.
"""

import contextlib
import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fanet_lightning.cli.errors import InputError, is_whole
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import decode
from fanet_lightning.ops.structures import Detections, NetworkOutput


def _load_operator() -> None:
    if hasattr(torch.ops.torchvision, "nms"):
        return
    package = importlib.util.find_spec("torchvision")  # finds it without importing it
    folder = Path(package.origin).parent if package is not None and package.origin else Path()
    for library in sorted(folder.glob("_C*.so")):  # _C_stable.so since 0.29; none on Windows
        with contextlib.suppress(OSError):  # one that wants to be loaded by its package
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    if not hasattr(torch.ops.torchvision, "nms"):
        import torchvision  # noqa: F401


_load_operator()


def nms(boxes_xyxy: Tensor, scores: Tensor, iou: float) -> Tensor:
    """``torchvision.ops.nms``: (D, 4), (D,) → indices of the boxes that stand, int64, best score first."""
    kept: Tensor = torch.ops.torchvision.nms(boxes_xyxy, scores, iou)
    return kept


@torch.no_grad()
def detect(
    output: NetworkOutput, grid: AnchorGrid, *, score_floor: float = 0.01, top_k: int = 5000, nms_iou: float = 0.3,
    keep: int = 750,
) -> list[Detections]:  # fmt: skip
    """The faces of each image, B entries. Boxes in pixels of the network's input, not clipped to it.

    A score is the softmax probability of a face. Anchors with a score below ``score_floor`` are dropped, of the others
    the ``top_k`` best go to NMS (a box falls where its IoU with a better one that stands exceeds ``nms_iou``), and at
    most ``keep`` come out. The defaults are S3FD's. At equal scores the lower anchor number comes first. Scores and
    boxes that are not finite never come out. All in float32. ValueError: heads and grid differ in number of anchors.
    """
    logits, offsets = output.hierarchies[-1].logits.float(), output.hierarchies[-1].offsets
    if logits.shape[1] != grid.count:
        raise ValueError(f"heads for {logits.shape[1]} anchors, a grid of {grid.count}")
    anchors_cxcywh = grid.boxes_cxcywh(logits.device)
    # Softmax over two classes is the sigmoid of their difference.
    scores = torch.sigmoid(logits[..., 1] - logits[..., 0])
    found = []
    for image_scores, image_offsets in zip(scores, offsets, strict=True):
        passed = (image_scores >= score_floor).nonzero().squeeze(1)
        best = passed[image_scores[passed].argsort(descending=True, stable=True)[:top_k]]
        boxes_xyxy = decode(image_offsets[best].float(), anchors_cxcywh[best])
        finite = boxes_xyxy.isfinite().all(dim=1)
        best, boxes_xyxy = best[finite], boxes_xyxy[finite]
        # What stands among the best boxes does not depend on those behind them, and time grows with the square of their
        # number; so the best are tried alone first. A young network, whose every anchor passes, is through after them.
        for first in (2 * keep, len(best)):
            kept = nms(boxes_xyxy[:first], image_scores[best[:first]], nms_iou)[:keep]
            if len(kept) == keep or first >= len(best):
                break
        found.append(Detections(boxes_xyxy[kept], image_scores[best[kept]]))
    return found


# What :func:`detect` does where nothing else is asked for.
DETECTION_DEFAULTS: dict[str, float | int] = {
    name: parameter.default
    for name, parameter in inspect.signature(detect).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def detection_settings(*changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """All four settings of :func:`detect`: its defaults, and each of ``changes`` (but None) over what is before it.

    InputError: a value outside its range.
    """
    settings: dict[str, Any] = dict(DETECTION_DEFAULTS)
    for changed in changes:
        settings |= {key: value for key, value in (changed or {}).items() if value is not None}
    for key, value in settings.items():
        counts = key in ("top_k", "keep")
        if not (is_whole(value, 1) if counts else type(value) in (int, float) and 0 <= value <= 1):
            raise InputError(f"detection.{key}={value}; give {'a whole number above 0' if counts else 'one of 0 … 1'}")
    return settings


@torch.no_grad()
def box_vote(
    boxes_xyxy: Tensor, scores: Tensor, *, iou: float = 0.3, keep: int = 750, keep_singles: bool = True
) -> Detections:
    """Merge detections of one face, found in several passes, into one (Gidaris and Komodakis 2015, §5; S3FD's test).

    The best detection left takes all others left whose IoU with it is at least ``iou``. They become their mean box,
    weighted by score, and their best score; then the next one. This is ``bbox_vote`` of S3FD's ``wider_test.py`` but
    for three points: boxes are continuous (the script adds 1 to every side), a detection that nothing else agrees with
    stays (``keep_singles=False`` drops it, as the script does), and ties go to the lower index (there to the higher).

    ``boxes_xyxy`` (D, 4) in any order, pixels, x2 ≥ x1, y2 ≥ y1; ``scores`` (D,), ≥ 0, below 1e-12 they weigh 1e-12.
    ``iou``: least overlap with the leader, in (0, 1]. At most ``keep`` come out, float32 on the device of
    ``boxes_xyxy``, scores descending. Computed on the CPU in float64.
    """
    boxes, weights = boxes_xyxy.detach().cpu().double().numpy(), scores.detach().cpu().double().numpy()
    shares = np.maximum(weights, 1e-12)
    # So little that it is lost in every area but 0: the union of two empty boxes must not be 0.
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + 1e-300
    left = np.argsort(-weights, kind="stable")
    merged: list[Any] = []
    best: list[float] = []
    while len(left) and len(merged) < keep:
        leader, others = boxes[left[0]], boxes[left]
        sides = np.minimum(leader[2:], others[:, 2:]) - np.maximum(leader[:2], others[:, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        taken = shared / (areas[left[0]] + areas[left] - shared) >= iou
        taken[0] = True
        group, score = left[taken], weights[left[0]]
        left = left[~taken]
        if keep_singles or len(group) > 1:
            merged.append(shares[group] @ boxes[group] / shares[group].sum() if len(group) > 1 else leader)
            best.append(score)
    return Detections(
        torch.tensor(np.array(merged).reshape(-1, 4), dtype=torch.float32, device=boxes_xyxy.device),
        torch.tensor(best, dtype=torch.float32, device=scores.device),
    )
