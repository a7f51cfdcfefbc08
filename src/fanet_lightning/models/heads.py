"""The heads of one hierarchy: a 3×3 convolution per map, max-out background on the shallowest (S3FD §3.3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import init_xavier
from fanet_lightning.models.vgg import MAP_NAMES
from fanet_lightning.ops.structures import HeadOutput

# S3FD §3.3: the shallowest map has most of the anchors and of the false positives, so it predicts three
# background scores of which the highest counts.
MAXOUT_BACKGROUNDS = 3
# Lin et al. 2017 ("Focal Loss", §4.1): spread of the weights of a layer whose bias is a prior.
PRIOR_WEIGHT_STD = 0.01


class Heads(nn.Module):
    """Scores and box offsets of every anchor. ``channels``: those of the six maps; ``names``: of the layers.

    One convolution per map gives both, output channels in the order 4 offsets, background score or scores, face score.

    ``face_prior``: the softmax score of a face that every anchor starts with, up to the spread of small weights; what a
    focal loss needs, for else its thousands of negatives drown the first steps (Lin et al. 2017, §3.3). None: Xavier
    weights and no bias, so that scores start around 0.5, as the paper has it. InputError: not between 0 and 1.
    """

    def __init__(
        self, channels: Sequence[int], names: Sequence[str] = MAP_NAMES, *, face_prior: float | None = None
    ) -> None:
        super().__init__()
        if face_prior is not None and not (isinstance(face_prior, float) and 0 < face_prior < 1):
            raise InputError(f"model.face_prior={face_prior}: give a probability above 0 and below 1, or null")
        for index, (name, inputs) in enumerate(zip(names, channels, strict=True)):
            backgrounds = MAXOUT_BACKGROUNDS if index == 0 else 1
            layer = nn.Conv2d(inputs, 4 + backgrounds + 1, 3, padding=1)
            init_xavier(layer)
            if face_prior is not None:
                assert layer.bias is not None
                nn.init.normal_(layer.weight[4:], std=PRIOR_WEIGHT_STD)
                # Softmax over two scores is the sigmoid of their difference.
                nn.init.constant_(layer.bias[-1:], math.log(face_prior) - math.log1p(-face_prior))
            self.add_module(name, layer)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        """Six maps (B, C, H, W) → logits (B, A, 2), offsets (B, A, 4), float32, map by map and row by row.

        float32 under autocast too: softmax, decoding and loss need it.
        """
        logits, offsets = [], []
        for layer, x in zip(self.children(), maps, strict=True):
            # No copy in either memory format; permute and flatten would tie an export to the sizes that it saw.
            raw = layer(x).flatten(2).transpose(1, 2)
            offsets.append(raw[..., :4])
            scores = raw[..., 4:]
            if scores.shape[-1] > 2:
                scores = torch.cat([scores[..., :-1].amax(dim=-1, keepdim=True), scores[..., -1:]], dim=-1)
            logits.append(scores)
        return HeadOutput(torch.cat(logits, dim=1).float(), torch.cat(offsets, dim=1).float())
