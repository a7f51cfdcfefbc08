"""Whether an exported file finds the same faces as its model, and how fast it is.

Both run on the same pixels. Two programs add in different orders, so where two anchors compete whose scores are equal
to the seventh digit, either may win, and what it covers falls with it. So the file's faces need not be the model's own
choice, but a right one: each is an anchor of the model, box and score, no two overlap beyond the threshold of NMS, and
each face of the model is there or covered by one as good.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.detect.detector import TorchBackend
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import decode, pairwise_iou
from fanet_lightning.ops.postprocess import detect
from fanet_lightning.ops.structures import Detections

# Pixels of the input, and score.
BOX_LIMIT, SCORE_LIMIT = 0.05, 1e-4
# Overlaps of small boxes move by some 1e-5.
IOU_LIMIT = 1e-3
Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]
Run = Callable[[npt.NDArray[np.uint8]], Outputs]


@dataclass(frozen=True)
class Comparison:
    """``faces`` of the file; ``box`` and ``score``: their largest differences to the model, in pixels of the input.

    ``alone``: faces of the model that the file neither has nor covers by one as good; faces of the file that overlap.
    """

    faces: int = 0
    box: float = 0.0
    score: float = 0.0
    alone: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        box, score = max(self.box, other.box), max(self.score, other.score)
        return Comparison(self.faces + other.faces, box, score, self.alone + other.alone)

    @property
    def agrees(self) -> bool:
        """Within the limits of an exact export."""
        return self.box <= BOX_LIMIT and self.score <= SCORE_LIMIT and not self.alone


@torch.inference_mode()
def compare(backend: TorchBackend, run: Run, images: npt.NDArray[np.uint8]) -> Comparison:
    """The model as it runs in Python, with the settings of the file, and the file, on a batch (B, 3, H, W) RGB."""
    boxes_xyxy, scores, image_index = (torch.from_numpy(np.asarray(x)) for x in run(images))
    output = backend.heads(torch.from_numpy(images))
    grid = AnchorGrid(tuple((rows, columns) for rows, columns in output.map_shapes))
    logits, offsets = output.hierarchies[-1]
    anchor_scores = torch.sigmoid(logits[..., 1] - logits[..., 0])
    anchor_boxes = decode(offsets, grid.boxes_cxcywh(offsets.device))
    whole = Comparison()
    for k, eager in enumerate(detect(output, grid, **backend.detection)):
        own = image_index == k
        anchors = Detections(anchor_boxes[k], anchor_scores[k]).above(backend.detection["score_floor"] - SCORE_LIMIT)
        exported = Detections(boxes_xyxy[own], scores[own])
        whole += compare_exact(eager.cpu(), exported, anchors.cpu(), backend.detection)
    return whole


def compare_exact(
    eager: Detections, exported: Detections, anchors: Detections, detection: Mapping[str, Any]
) -> Comparison:
    """The faces of one image; ``anchors``: all of the model's at or just below the score floor."""
    if not len(anchors):
        return Comparison(len(exported), alone=len(exported))
    box = torch.cdist(exported.boxes_xyxy, anchors.boxes_xyxy, p=float("inf"))
    score = (exported.scores[:, None] - anchors.scores[None]).abs()
    nearest = torch.maximum(box / BOX_LIMIT, score / SCORE_LIMIT).argmin(dim=1, keepdim=True)
    largest_box, largest_score = (float(x.gather(1, nearest).max()) if len(exported) else 0.0 for x in (box, score))
    # Two of the file that overlap: the later one should have fallen.
    clashing = pairwise_iou(exported.boxes_xyxy, exported.boxes_xyxy).triu(1) > detection["nms_iou"] + IOU_LIMIT
    # A face of the model may be missing where one as good covers it (itself, as a rule), or where it is among the last.
    iou = pairwise_iou(eager.boxes_xyxy, exported.boxes_xyxy)
    as_good = exported.scores[None] >= eager.scores[:, None] - SCORE_LIMIT
    near = torch.cdist(eager.boxes_xyxy, exported.boxes_xyxy, p=float("inf")) <= BOX_LIMIT
    covered = (as_good & (near | (iou > detection["nms_iou"] - IOU_LIMIT))).any(dim=1)
    last = float(detection["score_floor"])
    if len(anchors) > detection["top_k"] > 0:
        last = max(last, float(anchors.scores.topk(detection["top_k"]).values[-1]))
    if len(exported) == detection["keep"] > 0:
        last = max(last, float(exported.scores[-1]))
    missing = ~covered & (eager.scores > last + SCORE_LIMIT)
    return Comparison(len(exported), largest_box, largest_score, int(missing.sum()) + int(clashing.any(dim=0).sum()))


def speeds(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median milliseconds of each, in turn, after two calls to warm up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for k in range(rounds + 2):
        for work, own in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            work()
            if k >= 2:
                own.append(time.perf_counter() - start)
    return statistics.median(seconds[0]) * 1e3, statistics.median(seconds[1]) * 1e3
