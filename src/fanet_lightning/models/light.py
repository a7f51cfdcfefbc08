"""A backbone for CPUs: most of the work on shallow maps, cross-stage partial stages (CSPNet, Wang et al. 2020) below.

The stage of stride 4, where small faces are, is not halved; SCRFD (Guo et al. 2021) found by search that shallow stages
deserve more. Plain convolutions of few channels keep a CPU's vector units busier than depthwise ones.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from fanet_lightning.models.blocks import Backbone, ConvReLU, ExtraMaps, scaled

# At width 1: channels of the stem, stride 2, and of the stages of stride 4, 8, 16 and 32.
STEM = 16
STAGES = (32, 64, 128, 160)


class ResidualBlock(nn.Module):
    """x + two 3×3 convolutions of x, each with ReLU (Darknet-53's block). (B, C, H, W) → the same."""

    def __init__(self, channels: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = ConvReLU(channels, channels, 3, batch_norm=batch_norm)
        self.conv2 = ConvReLU(channels, channels, 3, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))  # type: ignore[no-any-return]


def plain_stage(inputs: int, outputs: int, *, batch_norm: bool) -> nn.Module:
    """Halves the resolution; then all channels run through a residual block. Shapes as of :class:`CspStage`."""
    down = ConvReLU(inputs, outputs, 3, stride=2, batch_norm=batch_norm)
    blocks = nn.Sequential(ResidualBlock(outputs, batch_norm=batch_norm))
    return nn.Sequential(OrderedDict(down=down, blocks=blocks))


class CspStage(nn.Module):
    """Halves the resolution; then one half of the channels runs through a residual block, the other next to it.

    (B, C, H, W) → (B, C', ⌈H / 2⌉, ⌈W / 2⌉).
    """

    def __init__(self, inputs: int, outputs: int, *, batch_norm: bool) -> None:
        super().__init__()
        half = max(8, outputs // 2)
        self.down = ConvReLU(inputs, outputs, 3, stride=2, batch_norm=batch_norm)
        self.through = ConvReLU(outputs, half, 1, batch_norm=batch_norm)
        self.beside = ConvReLU(outputs, half, 1, batch_norm=batch_norm)
        self.blocks = nn.Sequential(ResidualBlock(half, batch_norm=batch_norm))
        self.merge = ConvReLU(2 * half, outputs, 1, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.merge(torch.cat([self.blocks(self.through(x)), self.beside(x)], dim=1))  # type: ignore[no-any-return]


class LightBackbone(Backbone):
    """Stem of stride 2, four stages to stride 32, two more maps. No L2Norm: batch normalization levels the maps.

    ``width``: factor on every layer's channels, see :func:`scaled`. ``batch_norm``: after every convolution.
    """

    def __init__(self, *, width: float = 1.0, batch_norm: bool = True) -> None:
        super().__init__()
        self.stem = ConvReLU(3, scaled(STEM, width), 3, stride=2, batch_norm=batch_norm)
        self.stages, channels = nn.ModuleList(), [scaled(c, width) for c in (STEM, *STAGES)]
        for stage, between in zip((plain_stage, CspStage, CspStage, CspStage), pairwise(channels), strict=True):
            self.stages.append(stage(*between, batch_norm=batch_norm))
        self.extra = ExtraMaps(channels[-1], inner=64, channels=96, width=width, batch_norm=batch_norm)
        self.channels = (*channels[1:], self.extra.channels, self.extra.channels)
        for layer in self.modules():
            if isinstance(layer, ConvReLU):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def trained_layers(self) -> dict[str, nn.Module]:
        return {"stem": self.stem, **dict(zip(self.map_names, self.stages, strict=False))}

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [*maps, *self.extra(x)]
