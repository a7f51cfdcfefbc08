"""What travels between the parts, and the conventions that all of them share.

Axis letters: B images of a batch, F faces of a batch (packed, ragged over images), L detection maps
(6 for FANet), A anchors over all maps, D detections, C channels, H and W height and width in pixels,
m hierarchies.

Boxes are float ``xyxy`` in absolute pixels of the image that they belong to, 0-based, continuous
(half-open): width = x2 - x1. The +1 of the old evaluators lives inside ``scoring`` alone.
Images are RGB uint8 until they are on the device; the network normalises them.
"""

from typing import NamedTuple

from torch import Tensor


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
    """The faces found in one image: ``boxes_xyxy`` (D, 4) float32, ``scores`` (D,) float32 in [0, 1], descending."""

    boxes_xyxy: Tensor
    scores: Tensor
