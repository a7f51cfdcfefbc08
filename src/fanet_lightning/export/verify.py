"""Whether an exported file finds the same faces as its model, and how fast it is.

Both run on the same pixels, and their faces are paired one to one: first those within :data:`BOX_LIMIT` and
:data:`SCORE_LIMIT`, then by overlap what is left. Two programs add in different orders, so where two anchors compete
whose scores are equal to the seventh digit, or an overlap is at the threshold of NMS, either choice is right: one face
in a thousand may be beyond the limits or alone, but none that a person would look at may be alone.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect.detector import TorchBackend
from fanet_lightning.ops.boxes import pairwise_iou
from fanet_lightning.ops.structures import Detections

# Pixels of the input, and score.
BOX_LIMIT, SCORE_LIMIT = 0.05, 1e-4
SAME_FACE_IOU = 0.5
# Faces beyond the limits that choices between equals may leave: so many, or one in so many.
FEW, ONE_IN = 2, 1000
# Faces that a person would look at.
SHOWN = 0.3

Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]
Run = Callable[[npt.NDArray[np.uint8]], Outputs]


@dataclass(frozen=True)
class Comparison:
    """``faces`` pairs; ``box`` and ``score`` the largest differences of a pair, pixels of the input and score.

    ``apart`` pairs beyond the limits; ``alone`` faces of either side without a partner; ``lost`` those of them with a
    score of at least :data:`SHOWN`.
    """

    faces: int = 0
    box: float = 0.0
    score: float = 0.0
    apart: int = 0
    alone: int = 0
    lost: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.faces + other.faces, max(self.box, other.box), max(self.score, other.score), self.apart + other.apart,
            self.alone + other.alone, self.lost + other.lost,
        )  # fmt: skip

    @property
    def agrees(self) -> bool:
        """Within the limits of an exact export."""
        return not self.lost and self.apart + self.alone <= max(FEW, self.faces // ONE_IN)

    def text(self, what: str) -> str:
        """The comparison in words; ``what`` was compared, in the plural."""
        alone = f", {self.alone} found by one side alone" if self.alone else ""
        return f"{self.faces:,} {what}, boxes differ by at most {self.box:.2g} px, scores by {self.score:.2g}{alone}"


def compare(backend: TorchBackend, run: Run, images: npt.NDArray[np.uint8], *, least_score: float = 0.0) -> Comparison:
    """Both sides on a batch.

    Args:
        backend: the model as it runs in Python, with the settings of the file.
        run: the exported file.
        images: (B, 3, H, W) RGB.
        least_score: pairs count where one of the two has it, faces alone where they have it.

    Raises:
        InputError: the file gives something else than faces.
    """
    boxes_xyxy, scores, image_index = (torch.from_numpy(np.asarray(x)) for x in run(images))
    wrong = boxes_xyxy.shape != (len(scores), 4) or image_index.shape != scores.shape
    if wrong or not bool(((image_index >= 0) & (image_index < len(images))).all()):
        raise InputError(f"the file gives outputs of shapes {boxes_xyxy.shape}, {scores.shape}: no faces of the images")
    whole = Comparison()
    for k, eager in enumerate(backend.find_alike(torch.from_numpy(images), None)):
        own = image_index == k
        whole += compare_faces(eager.detections, Detections(boxes_xyxy[own], scores[own]), least_score)
    return whole


def compare_faces(eager: Detections, exported: Detections, least_score: float = 0.0) -> Comparison:
    """The faces of one image, found by both sides."""
    box = torch.cdist(eager.boxes_xyxy, exported.boxes_xyxy, p=float("inf"))
    score = (eager.scores[:, None] - exported.scores[None]).abs()
    iou = pairwise_iou(eager.boxes_xyxy, exported.boxes_xyxy)
    close = (box <= BOX_LIMIT) & (score <= SCORE_LIMIT)
    # Below -1: those within the limits come before all others, whatever their overlap.
    pairs = _paired(torch.where(close, box - 2, torch.where(iou >= SAME_FACE_IOU, 1 - iou, float("inf"))))
    rows, columns = pairs.unbind(dim=1)
    alone = torch.ones(len(eager), dtype=torch.bool), torch.ones(len(exported), dtype=torch.bool)
    alone[0][rows], alone[1][columns] = False, False
    left = torch.cat([eager.scores[alone[0]], exported.scores[alone[1]]])
    counted = torch.maximum(eager.scores[rows], exported.scores[columns]) >= least_score
    rows, columns = rows[counted], columns[counted]
    boxes, scores = box[rows, columns], score[rows, columns]
    return Comparison(
        len(rows), float(boxes.max()) if len(rows) else 0.0, float(scores.max()) if len(rows) else 0.0,
        int((~close[rows, columns]).sum()), int((left >= least_score).sum()), int((left >= SHOWN).sum()),
    )  # fmt: skip


def _paired(cost: torch.Tensor) -> torch.Tensor:
    """(N, M), inf where no pair may be → (P, 2) row and column of each pair, the cheapest first."""
    columns = max(1, cost.shape[1])
    order = cost.flatten().argsort(stable=True)[: int(cost.isfinite().sum())]
    pairs, taken = [], (set[int](), set[int]())
    for row, column in zip((order // columns).tolist(), (order % columns).tolist(), strict=True):
        if row not in taken[0] and column not in taken[1]:
            pairs.append((row, column))
            taken[0].add(row)
            taken[1].add(column)
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


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
