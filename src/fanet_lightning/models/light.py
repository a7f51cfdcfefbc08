"""Backbones for CPUs: one for training from scratch, and EfficientNet-lite0 (Tan and Le 2019) with ImageNet's weights.

The first does most of its work on shallow maps, with cross-stage partial stages (CSPNet, Wang et al. 2020) below. The
stage of stride 4, where small faces are, is not halved; SCRFD (Guo et al. 2021) found by search that shallow stages
deserve more. Its plain convolutions of few channels keep a CPU's vector units busier than depthwise ones.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.models.blocks import Backbone, ConvNorm, ConvReLU, ExtraMaps, scaled

# At width 1: channels of the stem, stride 2, and of the stages of stride 4, 8, 16 and 32.
STEM = 16
STAGES = (32, 64, 128, 160)

# EfficientNet-lite0: channels of the stem; per stage blocks, kernel, stride, expansion and channels. The original has a
# third block in the last two of these, and two more stages. Its batch normalizations add LITE0_EPSILON to the variance.
LITE0_STEM = 32
LITE0_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (2, 3, 2, 6, 80), (2, 5, 1, 6, 112))
LITE0_EPSILON = 1e-3
# The stages that end with the maps of stride 4, 8 and 16.
LITE0_MAPS = (1, 2, 4)


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


class Depthwise(ConvNorm):
    """:class:`ConvNorm` of each channel on its own."""

    def __init__(self, channels: int, kernel: int, *, stride: int) -> None:
        super().__init__(channels, channels, kernel, stride=stride, groups=channels, batch_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        # torch's CPU gradients of bf16 (2.14, oneDNN) take two to five times as long as float32's with a stride or 5×5.
        if self.training and x.device.type == "cpu" and (self.stride[0] > 1 or self.kernel_size[0] > 3):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """1×1 to more channels where ``expansion`` is above 1, depthwise, 1×1 to ``outputs`` without activation; + x."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner, 1, batch_norm=True) if expansion > 1 else None
        self.depthwise = Depthwise(inner, kernel, stride=stride)
        self.project = ConvNorm(inner, outputs, 1, batch_norm=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y  # type: ignore[no-any-return]


class Lite0Backbone(Backbone):
    """Maps of stride 4, 8 and 16 of EfficientNet-lite0, of 32 by a :class:`CspStage`, and two more.

    Padding is symmetric: with a stride, TensorFlow's windows begin one cell further right and below.

    ``width``: factor on the channels of the two added maps. Convolutions start with Xavier's initialization.
    """

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        self.stem = ConvNorm(3, LITE0_STEM, 3, stride=2, batch_norm=True)
        self.stages, inputs = nn.ModuleList(), LITE0_STEM
        for count, kernel, stride, expansion, outputs in LITE0_STAGES:
            blocks = nn.Sequential()
            for i in range(count):
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride=step, expansion=expansion))
                inputs = outputs
            self.stages.append(blocks)
        self.stage32 = CspStage(inputs, 128, batch_norm=True)
        self.extra = ExtraMaps(128, inner=64, channels=96, width=width, batch_norm=True)
        shown = (LITE0_STAGES[i][-1] for i in LITE0_MAPS)
        self.channels = (*shown, 128, self.extra.channels, self.extra.channels)

    def trained_layers(self) -> dict[str, nn.Module]:
        return {"stem": self.stem, **{f"stage{i + 1}": stage for i, stage in enumerate(self.stages)}}

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem(x), inplace=True)
        after = [x := stage(x) for stage in self.stages]
        stride32 = self.stage32(x)
        return [*(after[i] for i in LITE0_MAPS), stride32, *self.extra(stride32)]

    def weights_of(self, found: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """This backbone's state dict from timm's of ``tf_efficientnet_lite0``; None where a tensor is missing."""
        new: dict[str, Tensor | None] = {}

        def take(own: str, conv: str, norm: str) -> None:
            weight, variance = found.get(f"{conv}.weight"), found.get(f"{norm}.running_var")
            new[f"{own}.weight"], new[f"{own}.bias"] = weight, None if weight is None else torch.zeros(len(weight))
            new.update({f"{own}.bn.{p}": found.get(f"{norm}.{p}") for p in ("weight", "bias", "running_mean")})
            new[f"{own}.bn.running_var"] = None if variance is None else variance + LITE0_EPSILON - 1e-5

        take("stem", "conv_stem", "bn1")
        for i, (count, _, _, expansion, _) in enumerate(LITE0_STAGES):
            names = {"depthwise": "conv_dw", "project": "conv_pw"}
            if expansion > 1:
                names = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
            for j, (k, (layer, conv)) in product(range(count), enumerate(names.items(), start=1)):
                take(f"stages.{i}.{j}.{layer}", f"blocks.{i}.{j}.{conv}", f"blocks.{i}.{j}.bn{k}")
        return new
