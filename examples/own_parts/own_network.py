"""A network: a small ResNet with a feature pyramid, and this package's heads."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.models.blocks import STRIDE_NAMES, ConvReLU, Normaliser, Upsample, upsample_to
from fanet_lightning.models.heads import Heads
from fanet_lightning.ops.structures import NetworkOutput


class Residual(nn.Module):
    """(B, C, H, W) → (B, C', ⌈H / 2⌉, ⌈W / 2⌉)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = ConvReLU(inputs, outputs, 3, stride=2, batch_norm=True)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNetFpn(nn.Module):
    """Six maps of strides 4 to 128, of which the first four make a pyramid.

    Tiles of large images have margins of 640 pixels: no head may see further. These see 571.
    """

    def __init__(self, channels: int = 16, pyramid: int = 32, face_prior: float | None = None) -> None:
        super().__init__()
        widths = [channels * factor for factor in (1, 2, 4, 8, 8, 8)]
        self.normaliser = Normaliser()
        self.stem = ConvReLU(3, channels, 3, stride=2, batch_norm=True)
        self.stages = nn.ModuleList(map(Residual, [channels, *widths], widths))
        self.laterals = nn.ModuleList(nn.Conv2d(width, pyramid, 1) for width in widths[:4])
        self.smooths = nn.ModuleList(nn.Conv2d(pyramid, pyramid, 3, padding=1) for _ in widths[:4])
        self.heads = Heads([pyramid] * 4 + widths[4:], STRIDE_NAMES, face_prior=face_prior)

    def forward(
        self, images: Tensor, all_hierarchies: bool | None = None, upsample: Sequence[Upsample] | None = None
    ) -> NetworkOutput:
        """(B, 3, H, W) RGB in 0 … 255; one hierarchy, so ``all_hierarchies`` is not read. Tiles give ``upsample``."""
        maps = [self.stem(self.normaliser(images))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps[1:5], strict=True)]
        for i in (2, 1, 0):
            bring = upsample_to if upsample is None else upsample[i]
            merged[i] = merged[i] + bring(merged[i + 1], merged[i])
        maps = [*(smooth(x) for smooth, x in zip(self.smooths, merged, strict=True)), *maps[5:]]
        return NetworkOutput([self.heads(maps)], [(x.shape[-2], x.shape[-1]) for x in maps])

    def training_only(self) -> list[nn.Module]:
        """Parts that detection never runs."""
        return []
