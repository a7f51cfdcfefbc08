"""Data structures: targets, batches, head outputs, detections and their formats.

What travels between the parts, and the conventions that all of them share.

Axis letters: B images of a batch, F faces of a batch (packed, ragged over images), L detection maps
(6 for FANet), A anchors over all maps, D detections, C channels, H and W height and width in pixels,
m hierarchies.

Boxes are float ``xyxy`` in absolute pixels of the image that they belong to, 0-based, continuous
(half-open): width = x2 - x1. The +1 of the old evaluators lives inside ``scoring`` alone.
Images are RGB uint8 until they are on the device; the network normalises them.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fanet_lightning.cli.errors import InputError

if TYPE_CHECKING:
    import supervision


def supervision_detections(
    boxes_xyxy: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]
) -> "supervision.Detections":
    """(D, 4), (D,) → ``supervision.Detections`` of one class, number 0.

    Raises:
        InputError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise InputError(
            "to_supervision: needs the package supervision; pip install 'fanet-lightning[supervision]'"
        ) from error
    # supervision takes its arrays as they are, so they are copies: they may be changed in place.
    return supervision.Detections(
        xyxy=boxes_xyxy.copy(), confidence=scores.copy(), class_id=np.zeros(len(scores), dtype=int)
    )


def coco_results(
    boxes_xyxy: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], *, image_id: int | str, category_id: int
) -> list[dict[str, Any]]:
    """(D, 4), (D,) → entries of a COCO result file, boxes as ``[x, y, width, height]`` in pixels."""
    boxes = boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box_xywh, "score": score}
        for box_xywh, score in zip(boxes.tolist(), scores.tolist(), strict=True)
    ]


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
    """One image at test scale.

    ``images``   (1, 3, H, W) uint8 RGB, already resized to the protocol's scale.
    ``scale_xy`` (1, 2) float32: network pixels per pixel of the original image, (x, y).
    ``size_hw``  (1, 2) int64: height and width of the original image.
    """

    images: Tensor
    scale_xy: Tensor
    size_hw: Tensor
    image_ids: list[str]


class HeadOutput(NamedTuple):
    """What the heads of one hierarchy say: ``logits`` (B, A, 2) background, face; ``offsets`` (B, A, 4)."""

    logits: Tensor
    offsets: Tensor


class NetworkOutput(NamedTuple):
    """``hierarchies``: one entry per hierarchy that has heads, the last one is the detector.

    ``map_shapes``: the L maps' (height, width), from which the anchors follow.
    """

    hierarchies: list[HeadOutput]
    map_shapes: list[tuple[int, int]]


class Detections(NamedTuple):
    """The faces found in one image: ``boxes_xyxy`` (D, 4) float32, ``scores`` (D,) float32 in [0, 1], descending.

    ``len`` and iteration are the tuple's: two tensors, so ``len(faces)`` is always 2 and ``if faces:`` always true,
    with no face in the image as well. The number of faces is :attr:`count`: ``if faces.count:``.
    """

    boxes_xyxy: Tensor
    scores: Tensor

    # A tuple has a method of this name; nobody counts tensors in it.
    @property
    def count(self) -> int:  # type: ignore[override]
        """D, the number of faces."""
        return len(self.scores)

    def above(self, threshold: float) -> "Detections":
        """Those with a score of at least ``threshold``."""
        passed = self.scores >= threshold
        return Detections(self.boxes_xyxy[passed], self.scores[passed])

    def numpy(self) -> "tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]":
        """(D, 4) boxes and (D,) scores as arrays, from any device."""
        return self.boxes_xyxy.detach().cpu().numpy(), self.scores.detach().cpu().numpy()

    def to_supervision(self) -> "supervision.Detections":
        """As the package supervision draws, tracks and counts them: ``xyxy``, ``confidence``, ``class_id`` 0.

        Raises:
            InputError: supervision is not installed.
        """

        return supervision_detections(*self.numpy())

    def to_coco(self, image_id: int | str, category_id: int = 1) -> list[dict[str, Any]]:
        """The image's entries of a COCO result file: ``image_id``, ``category_id``, ``bbox`` [x, y, w, h], ``score``.

        Plain numbers that ``json`` writes, with all the digits that float32 has; best score first.
        """

        return coco_results(*self.numpy(), image_id=image_id, category_id=category_id)

    def to_wider(self, name: str) -> str:
        """The text of the image's prediction file for WIDER FACE: a name line, the count, rows ``x y w h score``.

        Args:
            name: of the image, without folder and ending, ``0_Parade_marchingband_1_849``.

        Raises:
            ValueError: a detection that is not finite or has a negative side.
        """
        from fanet_lightning.score.wider_face.predictions import prediction_text

        return prediction_text(name, *self.numpy())
