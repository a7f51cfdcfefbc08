"""Data structures: targets, batches, head outputs, detections and their formats.

Axis letters: B images of a batch, F faces of a batch (packed, ragged over images), L detection maps (6 for FANet),
A anchors over all maps, D detections, C channels, H and W height and width in pixels, m hierarchies.

Boxes are float ``xyxy`` in absolute pixels of the image that they belong to, 0-based, continuous (half-open):
width = x2 - x1. The +1 of the old evaluators is inside ``score`` alone.
Images are RGB uint8 until they are on the device; the network normalizes them.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fanet_lightning.cli.errors import import_extra
from fanet_lightning.ops.draw import ImageLike, annotate, upright_rgb
from fanet_lightning.score.wider_face.predictions import prediction_text

if TYPE_CHECKING:
    import supervision


class Targets(NamedTuple):
    """The faces of a batch, packed: no padding, no list per image.

    ``boxes_xyxy``  (F, 4) float32, pixels of the network's input, x2 > x1 and y2 > y1.
    ``image_index`` (F,) int64, ascending, the image 0 … B-1 that each face belongs to.
    F may be 0, and an image may have no face.
    """

    boxes_xyxy: Tensor
    image_index: Tensor


class Batch(NamedTuple):
    """A training batch: ``images`` (B, 3, H, W) uint8 RGB, its faces, and the images' names."""

    images: Tensor
    targets: Targets
    image_ids: list[str]


class EvalBatch(NamedTuple):
    """One image at test scale: ``images`` (1, 3, H, W) uint8 RGB; ``scale_xy`` (1, 2): network per original pixels."""

    images: Tensor
    scale_xy: Tensor
    image_ids: list[str]


class HeadOutput(NamedTuple):
    """What the heads of one hierarchy say: ``logits`` (B, A, 2) background, face; ``offsets`` (B, A, 4)."""

    logits: Tensor
    offsets: Tensor


class NetworkOutput(NamedTuple):
    """``hierarchies`` that have heads, the last is the detector; ``map_shapes``: the L maps' (height, width)."""

    hierarchies: list[HeadOutput]
    map_shapes: list[tuple[int, int]]


class Face(NamedTuple):
    """One detection as plain numbers: ``box_xyxy`` in pixels, ``score`` in [0, 1]."""

    box_xyxy: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The faces found in one image: ``boxes_xyxy`` (D, 4) float32, ``scores`` (D,) float32 in [0, 1], descending.

    Its length is the number of faces, so ``if faces:`` asks whether there are any. Iteration and a number as index give
    each :class:`Face`; a slice, a boolean mask or several indices give the :class:`Detections` that they choose.
    """

    boxes_xyxy: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def count(self) -> int:
        """D, the number of faces."""
        return len(self)

    def __iter__(self) -> Iterator[Face]:
        for box_xyxy, score in zip(self.boxes_xyxy.tolist(), self.scores.tolist(), strict=True):
            yield Face(tuple(box_xyxy), score)

    @overload
    def __getitem__(self, index: int) -> Face: ...

    @overload
    def __getitem__(self, index: "slice | Sequence[int] | Tensor | npt.NDArray[Any]") -> "Detections": ...

    def __getitem__(self, index: Any) -> "Face | Detections":
        if isinstance(index, SupportsIndex) and not getattr(index, "ndim", 0):  # a 0-dim tensor, as argmax gives, too
            return Face(tuple(self.boxes_xyxy[index].tolist()), float(self.scores[index]))
        return Detections(self.boxes_xyxy[index], self.scores[index])

    def __repr__(self) -> str:
        best = f", best score {float(self.scores.max()):.3f}" if len(self) else ""
        return f"Detections({len(self)} {'face' if len(self) == 1 else 'faces'}{best})"

    def above(self, threshold: float) -> "Detections":
        """Those with a score of at least ``threshold``."""
        return self[self.scores >= threshold]

    def cpu(self) -> "Detections":
        """The same on the CPU."""
        return Detections(self.boxes_xyxy.cpu(), self.scores.cpu())

    def numpy(self) -> "tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]":
        """(D, 4) boxes and (D,) scores as arrays, from any device."""
        return self.boxes_xyxy.detach().cpu().numpy(), self.scores.detach().cpu().numpy()

    def draw(self, image: ImageLike, *, bar: bool = False, labels: bool = False) -> npt.NDArray[np.uint8]:
        """The image with a box around every face; see :func:`fanet_lightning.ops.draw.annotate`.

        ``image``: (H, W, 3) uint8 RGB, or a PIL image or path, which are turned upright as detection does.
        """
        return annotate(upright_rgb(image), *self.numpy(), bar=bar, labels=labels)

    def save(self, path: str | os.PathLike[str], image: ImageLike, *, bar: bool = False, labels: bool = False) -> None:
        """Write what :meth:`draw` gives; the ending of ``path`` says in which format."""
        Image.fromarray(self.draw(image, bar=bar, labels=labels)).save(path, quality=95)

    def to_supervision(self) -> "supervision.Detections":
        """As the package supervision takes them: ``xyxy``, ``confidence``, ``class_id`` 0. InputError without it."""
        package: Any = import_extra("supervision", "to_supervision", "supervision")
        boxes_xyxy, scores = self.numpy()
        # supervision takes its arrays as they are, so they are copies: they may be changed in place.
        found: supervision.Detections = package.Detections(
            xyxy=boxes_xyxy.copy(), confidence=scores.copy(), class_id=np.zeros(len(scores), dtype=int)
        )
        return found

    def to_coco(self, image_id: int | str, category_id: int = 1) -> list[dict[str, Any]]:
        """The image's entries of a COCO result file: ``image_id``, ``category_id``, ``bbox`` xywh, ``score``."""
        boxes = self.boxes_xyxy.detach().cpu().double()
        boxes_xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
        rows = zip(boxes_xywh.tolist(), self.scores.tolist(), strict=True)
        of_image = {"image_id": image_id, "category_id": category_id}
        return [{**of_image, "bbox": box_xywh, "score": score} for box_xywh, score in rows]

    def to_wider(self, name: str) -> str:
        """The text of the image's prediction file for WIDER FACE: a name line, the count, rows ``x y w h score``.

        ``name``: of the image, without folder and ending. ValueError: a detection not finite, or with a negative side.
        """
        return prediction_text(name, *self.numpy())
