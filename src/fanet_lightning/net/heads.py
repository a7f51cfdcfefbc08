"""The heads of one hierarchy: a 3×3 convolution per map, max-out background on the shallowest (S3FD §3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fanet_lightning.net.blocks import init_xavier
from fanet_lightning.net.vgg import MAP_NAMES
from fanet_lightning.structures import HeadOutput

# S3FD §3.3: the shallowest map has most of the anchors and of the false alarms, so it predicts three
# background scores of which the highest counts.
MAXOUT_BACKGROUNDS = 3


class Heads(nn.Module):
    """Scores and box offsets of every anchor. ``channels``: those of the six maps; ``names``: of the layers.

    One convolution per map gives both, output channels in the order 4 offsets, background score or scores, face score.
    """

    def __init__(self, channels: Sequence[int], names: Sequence[str] = MAP_NAMES) -> None:
        super().__init__()
        for index, (name, inputs) in enumerate(zip(names, channels, strict=True)):
            backgrounds = MAXOUT_BACKGROUNDS if index == 0 else 1
            layer = nn.Conv2d(inputs, 4 + backgrounds + 1, 3, padding=1)
            init_xavier(layer)
            self.add_module(name, layer)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        """Six maps (B, C, H, W) → logits (B, A, 2), offsets (B, A, 4), float32, map by map and row by row.

        float32 under autocast too: softmax, decoding and loss need it.
        """
        logits, offsets = [], []
        for layer, x in zip(self.children(), maps, strict=True):
            # No copy where the map is channels_last.
            raw = layer(x).permute(0, 2, 3, 1).flatten(1, 2)
            offsets.append(raw[..., :4])
            scores = raw[..., 4:]
            if scores.shape[-1] > 2:
                scores = torch.cat([scores[..., :-1].amax(dim=-1, keepdim=True), scores[..., -1:]], dim=-1)
            logits.append(scores)
        return HeadOutput(torch.cat(logits, dim=1).float(), torch.cat(offsets, dim=1).float())


def map_shapes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(height, width) of each map."""
    return [(x.shape[-2], x.shape[-1]) for x in maps]
