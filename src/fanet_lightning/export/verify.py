"""Whether an exported file finds the same faces as the model that it was made of, and how fast it is beside it.

Both run on the same pixels. Faces of the two are paired one to one: a pair are two boxes within :data:`BOX_LIMIT` whose
scores are within :data:`SCORE_LIMIT`; what is left over is paired by overlap, so that a shifted face counts as shifted.
A face without partner is a disagreement, with one exception, a tie: two programs add in different orders, and where two
anchors compete whose scores are nearer than what is allowed, or an overlap lies on the threshold of NMS, or a score on
the floor or at the last place, either choice is right. Such a face must be among the model's own candidates, box and
score, and the reason must be found; it is then counted as a tie.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect.detector import TorchBackend
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import decode, pairwise_iou
from fanet_lightning.ops.postprocess import detect
from fanet_lightning.ops.structures import Detections

# Pixels of the input, and score.
BOX_LIMIT, SCORE_LIMIT = 0.05, 1e-4
# Scores that may differ by so much may change places; overlaps of small boxes move by some 1e-5.
TIE_SCORE, TIE_IOU = SCORE_LIMIT, 1e-3
SAME_FACE_IOU = 0.5
# Faces that a person would look at.
SHOWN = 0.3

Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]
Run = Callable[[npt.NDArray[np.uint8]], Outputs]


@dataclass(frozen=True)
class Comparison:
    """``faces`` pairs and ties; ``box`` and ``score`` the largest differences of a pair, pixels of the input and score.

    ``ties`` faces of either side that a tie explains; ``alone`` those that nothing explains.
    """

    faces: int = 0
    box: float = 0.0
    score: float = 0.0
    ties: int = 0
    alone: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.faces + other.faces, max(self.box, other.box), max(self.score, other.score), self.ties + other.ties,
            self.alone + other.alone,
        )  # fmt: skip

    @property
    def agrees(self) -> bool:
        """Within the limits of an exact export."""
        return self.box <= BOX_LIMIT and self.score <= SCORE_LIMIT and not self.alone

    def text(self, what: str) -> str:
        """The comparison in words; ``what`` was compared, in the plural."""
        ties = f", {self.ties} more decided by a tie" if self.ties else ""
        alone = f", {self.alone} found by one side alone" if self.alone else ""
        return (
            f"{self.faces:,} {what}, boxes differ by at most {self.box:.2g} px, scores by {self.score:.2g}{ties}{alone}"
        )


def compare(
    backend: TorchBackend,
    run: Run,
    images: npt.NDArray[np.uint8],
    detection: Mapping[str, Any],
    *,
    rounded: bool = False,
) -> Comparison:
    """Both sides on a batch.

    Args:
        backend: the model as it runs in Python.
        run: the exported file.
        images: (B, 3, H, W) RGB.
        detection: the four settings inside the file.
        rounded: the file's weights are rounded, so that nothing is equal: of the faces with a score of at least
            :data:`SHOWN` on either side, those that overlap are compared.
    """
    boxes_xyxy, scores, image_index = (torch.from_numpy(np.asarray(x)) for x in run(images))
    wrong = boxes_xyxy.shape != (len(scores), 4) or image_index.shape != scores.shape
    if wrong or (len(scores) and not 0 <= int(image_index.min()) <= int(image_index.max()) < len(images)):
        raise InputError(
            f"the file gives outputs of shapes {boxes_xyxy.shape}, {scores.shape}: it is of something else"
        )
    whole = Comparison()
    for k, (eager, candidates) in enumerate(_eager(backend, images, detection)):
        own = image_index == k
        exported = Detections(boxes_xyxy[own], scores[own])
        whole += (
            _compare_by_overlap(eager, exported) if rounded else _compare_one(eager, exported, candidates, detection)
        )
    return whole


@torch.inference_mode()
def _eager(
    backend: TorchBackend, images: npt.NDArray[np.uint8], detection: Mapping[str, Any]
) -> list[tuple[Detections, Detections]]:
    """Per image what is found, and all anchors at or just below the score floor, by score."""
    output = backend.heads(torch.from_numpy(images))
    grid = AnchorGrid(tuple((rows, columns) for rows, columns in output.map_shapes))
    logits, offsets = output.hierarchies[-1]
    scores = torch.sigmoid(logits[..., 1] - logits[..., 0]).cpu()
    boxes_xyxy = decode(offsets, grid.boxes_cxcywh(offsets.device)).cpu()
    found = []
    for k, item in enumerate(detect(output, grid, **detection)):
        order = (scores[k] >= detection["score_floor"] - SCORE_LIMIT).nonzero().squeeze(1)
        order = order[scores[k, order].argsort(descending=True)]
        candidates = Detections(boxes_xyxy[k, order], scores[k, order])
        found.append((item.cpu(), candidates))
    return found


def _compare_one(
    eager: Detections, exported: Detections, candidates: Detections, detection: Mapping[str, Any]
) -> Comparison:
    box = torch.cdist(eager.boxes_xyxy, exported.boxes_xyxy, p=float("inf"))
    score = (eager.scores[:, None] - exported.scores[None]).abs()
    close = torch.where((box <= BOX_LIMIT) & (score <= SCORE_LIMIT), box, float("inf"))
    pairs = _paired(close)
    left = _left(eager, exported, pairs)
    tied = _ties(left, (eager, exported), candidates, detection)
    # What neither agrees nor is a tie: the same face at another place?
    rest = [[i for i in own if (side, i) not in tied] for side, own in enumerate(left)]
    iou = pairwise_iou(eager.boxes_xyxy[rest[0]], exported.boxes_xyxy[rest[1]])
    more = _paired(torch.where(iou >= SAME_FACE_IOU, 1 - iou, float("inf")))
    pairs += [(rest[0][i], rest[1][j]) for i, j in more]
    rows, columns = [i for i, _ in pairs], [j for _, j in pairs]
    alone = sum(map(len, rest)) - 2 * len(more)
    if not pairs:
        return Comparison(ties=len(tied), alone=alone)
    largest_box, largest_score = (float(x[rows, columns].max()) for x in (box, score))
    return Comparison(len(pairs), largest_box, largest_score, len(tied), alone)


def _compare_by_overlap(eager: Detections, exported: Detections) -> Comparison:
    iou = pairwise_iou(eager.boxes_xyxy, exported.boxes_xyxy)
    pairs = _paired(torch.where(iou >= SAME_FACE_IOU, 1 - iou, float("inf")))
    left = _left(eager, exported, pairs)
    alone = sum(
        int((side.scores[own] >= SHOWN).sum()) for side, own in zip((eager, exported), left, strict=True) if own
    )
    best = [(i, j) for i, j in pairs if max(float(eager.scores[i]), float(exported.scores[j])) >= SHOWN]
    if not best:
        return Comparison(alone=alone)
    rows, columns = [i for i, _ in best], [j for _, j in best]
    box = float((eager.boxes_xyxy[rows] - exported.boxes_xyxy[columns]).abs().max())
    return Comparison(len(best), box, float((eager.scores[rows] - exported.scores[columns]).abs().max()), alone=alone)


def _paired(cost: torch.Tensor) -> list[tuple[int, int]]:
    """(N, M), inf where no pair may be → pairs, row by row each its cheapest column that is free."""
    pairs, taken = [], torch.zeros(cost.shape[1], dtype=torch.bool)
    for row, costs in enumerate(cost if cost.shape[1] else []):
        best = costs.masked_fill(taken, float("inf")).argmin()
        if not taken[best] and costs[best] < float("inf"):
            pairs.append((row, int(best)))
            taken[best] = True
    return pairs


def _left(eager: Detections, exported: Detections, pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    rows, columns = {i for i, _ in pairs}, {j for _, j in pairs}
    return (
        [i for i in range(len(eager.scores)) if i not in rows],
        [j for j in range(len(exported.scores)) if j not in columns],
    )


class _Item(NamedTuple):
    """A face without partner: which side has it, its number there, its box (1, 4) and its score."""

    side: int
    number: int
    box_xyxy: torch.Tensor
    score: float


def _ties(
    left: tuple[list[int], list[int]],
    sides: tuple[Detections, Detections],
    candidates: Detections,
    detection: Mapping[str, Any],
) -> set[tuple[int, int]]:
    """(side, number) of the faces that a tie explains, or another such face that they overlap."""
    items = [
        _Item(side, i, sides[side].boxes_xyxy[i : i + 1], float(sides[side].scores[i]))
        for side, own in enumerate(left)
        for i in own
    ]
    items = [item for item in items if bool(_known(item.box_xyxy, torch.tensor([item.score]), candidates))]
    known = [_known(side.boxes_xyxy, side.scores, candidates) for side in sides]
    standing = Detections(
        torch.cat([side.boxes_xyxy[own] for side, own in zip(sides, known, strict=True)]),
        torch.cat([side.scores[own] for side, own in zip(sides, known, strict=True)]),
    )
    tied = [item for item in items if _is_tie(item, sides[1 - item.side], standing, candidates, detection)]
    waiting = [item for item in items if item not in tied]
    added = tied
    # One tie may move others: whoever the chosen one covers falls, whoever the other one covered stands.
    while added:
        cover = torch.cat([item.box_xyxy for item in added])
        added = [
            item for item in waiting if float(pairwise_iou(item.box_xyxy, cover).max()) > detection["nms_iou"] - TIE_IOU
        ]
        waiting = [item for item in waiting if item not in added]
        tied = tied + added
    return {(item.side, item.number) for item in tied}


def _known(boxes_xyxy: torch.Tensor, scores: torch.Tensor, candidates: Detections) -> torch.Tensor:
    """(N, 4), (N,) → (N,) whether they are among the candidates, box and score."""
    near = torch.cdist(boxes_xyxy, candidates.boxes_xyxy, p=float("inf")) <= BOX_LIMIT
    return (near & ((scores[:, None] - candidates.scores[None]).abs() <= SCORE_LIMIT)).any(dim=1)


def _is_tie(
    item: _Item, other: Detections, standing: Detections, candidates: Detections, detection: Mapping[str, Any]
) -> bool:
    """``other``: the other side's faces. ``standing``: those of both sides that are among the candidates."""
    if abs(item.score - detection["score_floor"]) <= TIE_SCORE:
        return True
    top_k = detection["top_k"]
    if len(candidates.scores) > top_k and item.score <= float(candidates.scores[top_k - 1]) + TIE_SCORE:
        return True
    if len(other.scores) == detection["keep"] and item.score <= float(other.scores[-1]) + TIE_SCORE:
        return True
    # Whoever may cover it: a face as good as this one or better.
    iou = pairwise_iou(standing.boxes_xyxy, item.box_xyxy)[:, 0]
    at_threshold = (iou - detection["nms_iou"]).abs() <= TIE_IOU
    as_good = (standing.scores <= item.score + TIE_SCORE) & (iou > detection["nms_iou"])
    is_other = (standing.boxes_xyxy - item.box_xyxy).abs().amax(dim=1) > BOX_LIMIT
    return bool(((standing.scores >= item.score - TIE_SCORE) & is_other & (at_threshold | as_good)).any())


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
