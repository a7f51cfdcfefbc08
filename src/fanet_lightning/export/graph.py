"""The network and what follows it as one graph: uint8 pixels in, faces out, any batch and size.

Three outputs, without padding: the faces of all images of a batch in one list, image by image, scores descending.
``boxes_xyxy`` (N, 4) float32 in pixels of the input, not clipped to it; ``scores`` (N,) float32; ``image_index`` (N,)
int64, the image 0 … B-1 of each face. They are those of :func:`fanet_lightning.ops.postprocess.detect`.
"""

import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fanet_lightning.ops.anchors import SIZES, STRIDES, boxes_of_maps
from fanet_lightning.ops.boxes import decode
from fanet_lightning.ops.postprocess import nms

# Of torch's own files: what the file says of itself.
EXTRA_FILE = "fanet_lightning.json"


class HeadsGraph(nn.Module):
    """(B, 3, H, W) uint8 RGB → ``scores`` (B, A), ``offsets`` (B, A, 4), ``anchors_cxcywh`` (A, 4), all float32.

    The anchors are computed from the shapes of the maps inside the graph, so that it holds for every input size.
    ``channels_last``: it computes in that order of memory, torch's fastest on CPUs.
    """

    def __init__(self, network: nn.Module, *, channels_last: bool) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.channels_last = channels_last

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        output = self.network(images)
        logits, offsets = output.hierarchies[-1]
        scores = torch.sigmoid(logits[..., 1] - logits[..., 0])
        return scores, offsets, boxes_of_maps(output.map_shapes, STRIDES, SIZES, images.device)


class DetectionGraph(nn.Module):
    """(B, 3, H, W) uint8 RGB → ``boxes_xyxy`` (N, 4), ``scores`` (N,), ``image_index`` (N,), see the module.

    Every step is one of tensors over the whole batch, so that tracing and ``torch.export`` record it for every B.
    ``detection``: all four settings of :func:`fanet_lightning.ops.postprocess.detect`.
    """

    def __init__(self, network: nn.Module, detection: Mapping[str, Any], *, channels_last: bool) -> None:
        super().__init__()
        self.heads = HeadsGraph(network, channels_last=channels_last)
        self.detection = dict(detection)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, offsets, anchors_cxcywh = self.heads(images)
        image, anchor = (scores >= self.detection["score_floor"]).nonzero().unbind(dim=1)
        found = scores[image, anchor]
        # Image by image, scores descending, ties in the order of their anchors.
        by_score = found.argsort(descending=True, stable=True)
        order = by_score[image[by_score].argsort(stable=True)]
        order = order[_rank(image[order]) < self.detection["top_k"]]
        image, anchor, found = image[order], anchor[order], found[order]
        boxes_xyxy = decode(offsets[image, anchor], anchors_cxcywh[anchor])
        finite = boxes_xyxy.isfinite().all(dim=1)
        image, found, boxes_xyxy = image[finite], found[finite], boxes_xyxy[finite]
        kept = _nms(boxes_xyxy, found, image, self.detection["nms_iou"])
        kept = kept[image[kept].argsort(stable=True)]
        kept = kept[_rank(image[kept]) < self.detection["keep"]]
        return boxes_xyxy[kept], found[kept], image[kept]


def _rank(image: Tensor) -> Tensor:
    """(N,) ascending → each one's place 0, 1 … among those of its image."""
    # A running count, since tracing would write the length of this one input into the graph.
    return torch.ones_like(image).cumsum(dim=0) - 1 - torch.searchsorted(image, image)


def _nms(boxes_xyxy: Tensor, scores: Tensor, image: Tensor, iou: float) -> Tensor:
    """(N, 4), (N,), (N,) → indices that NMS within each image leaves, in order of score over all images.

    Every image's boxes are moved to a place of their own, so that one NMS serves all. In float64 that costs nothing:
    the first image's stay as they are, and a shift of some millions leaves 30 bits behind the point.
    """
    wide, found = boxes_xyxy.double(), scores.double()
    # Two empty boxes with the lowest scores overlap nothing and stand at the end. torch.export takes it that NMS leaves
    # at least two boxes and refuses images with fewer; and there is always a largest coordinate.
    wide = torch.cat([wide, wide.new_zeros(2, 4)])
    found = torch.cat([found, found.new_full((2,), -1.0)])
    apart = torch.cat([image, image.new_zeros(2)]).double() * (2 * wide.abs().max() + 1)
    return nms(wide + apart[:, None], found, iou)[:-2]


def write_torch(
    path: Path, network: nn.Module, settings: Mapping[str, Any], notes: Mapping[str, str], *, scripted: bool
) -> None:
    """Write what ``torch.jit.load`` reads, or else ``torch.export.load(path).module()``, after ``import torchvision``.

    ``network``: as :func:`fanet_lightning.models.blocks.fuse` gives it, on the CPU. ``notes``: what the file says of
    itself, in its extra file :data:`EXTRA_FILE`.
    """
    import torchvision  # noqa: F401  torch.export asks it for the shapes of its NMS

    graph = DetectionGraph(network, settings, channels_last=scripted).eval()
    extra = {EXTRA_FILE: json.dumps(dict(notes))}
    jit: Any = torch.jit
    with quiet(), any_size(), torch.no_grad():
        if scripted:
            traced = jit.freeze(jit.trace(graph, example_images(), check_trace=False).eval())
            jit.save(traced, str(path), _extra_files=extra)
            return
        free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        program = torch.export.export(graph, (example_images(),), dynamic_shapes={"images": free})
        # Else the file holds the images that it was recorded with.
        program.example_inputs = None
        torch.export.save(program, path, extra_files=extra)


def example_images() -> torch.Tensor:
    """What the graphs are recorded with: two images, sides of no special ratio, maps of several cells."""
    return torch.randint(0, 256, (2, 3, 288, 352), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def any_size() -> AbstractContextManager[Any]:
    """``torch.export`` otherwise takes it that no dynamic size, and so no side of a map, is 1."""
    # A config module of torch, whose methods mypy does not see.
    shapes_config: Any = importlib.import_module("torch.fx.experimental._config")
    patched: AbstractContextManager[Any] = shapes_config.patch(backed_size_oblivious=True)
    return patched


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' notices, which tell a person nothing that they could act upon."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
