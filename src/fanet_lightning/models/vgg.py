"""VGG16 as S3FD uses it (S3FD §3.1, paper §3.1): the backbone that gives the six maps of level 1."""

import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import Backbone, ConvReLU, L2Norm, scaled

# The six detection maps, shallow to deep, strides 4 … 128, and their channels at width 1 (paper §3.3).
MAP_NAMES = ("conv3_3", "conv4_3", "conv5_3", "conv_fc7", "conv6_2", "conv7_2")
MAP_CHANNELS = (256, 512, 512, 1024, 512, 256)

# The thirteen convolutions of VGG16, in order: those that ImageNet weights exist for, next to fc6 and fc7.
VGG_CONVOLUTIONS = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
)


class VggBackbone(Backbone):
    """Six maps from a normalized image; the first three pass through L2Norm, scales 10, 8 and 5 at the start.

    ``width``: factor on every layer's channels, see :func:`scaled`. ``batch_norm``: after every convolution. ``fc6``:
    ``plain``, a 3×3 convolution, or ``dilated``, the same with dilation 6 as in SSD.
    Layers with ImageNet weights start with He's initialization, in case none are loaded; the others with Xavier's.
    """

    map_names = MAP_NAMES

    def __init__(self, *, width: float = 1.0, batch_norm: bool = False, fc6: str = "plain") -> None:
        super().__init__()
        if fc6 not in ("plain", "dilated"):
            raise InputError(f"model.fc6={fc6}: choose plain or dilated")
        self.width, self.batch_norm = width, batch_norm
        self.channels = tuple(scaled(channels, width) for channels in MAP_CHANNELS)

        def conv(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1) -> ConvReLU:
            inputs = inputs if inputs == 3 else scaled(inputs, width)
            return ConvReLU(
                inputs, scaled(outputs, width), kernel, stride=stride, dilation=dilation, batch_norm=batch_norm
            )

        self.conv1_1, self.conv1_2 = conv(3, 64), conv(64, 64)
        self.conv2_1, self.conv2_2 = conv(64, 128), conv(128, 128)
        self.conv3_1, self.conv3_2, self.conv3_3 = conv(128, 256), conv(256, 256), conv(256, 256)
        self.conv4_1, self.conv4_2, self.conv4_3 = conv(256, 512), conv(512, 512), conv(512, 512)
        self.conv5_1, self.conv5_2, self.conv5_3 = conv(512, 512), conv(512, 512), conv(512, 512)
        self.conv_fc6 = conv(512, 1024, dilation=6 if fc6 == "dilated" else 1)
        self.conv_fc7 = conv(1024, 1024, 1)
        self.conv6_1, self.conv6_2 = conv(1024, 256, 1), conv(256, 512, stride=2)
        self.conv7_1, self.conv7_2 = conv(512, 128, 1), conv(128, 256, stride=2)
        self.conv3_3_norm = L2Norm(self.channels[0], 10)
        self.conv4_3_norm = L2Norm(self.channels[1], 8)
        self.conv5_3_norm = L2Norm(self.channels[2], 5)
        for name in VGG_CONVOLUTIONS:
            nn.init.kaiming_normal_(self.get_submodule(name).weight, nonlinearity="relu")  # type: ignore[arg-type]

    def trained_layers(self) -> dict[str, nn.Module]:
        return {name: self.get_submodule(name) for name in (*VGG_CONVOLUTIONS, "conv_fc6", "conv_fc7")}

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv1_2(self.conv1_1(x))
        x = self.conv2_2(self.conv2_1(_pool(x)))
        conv3_3 = self.conv3_3(self.conv3_2(self.conv3_1(_pool(x))))
        conv4_3 = self.conv4_3(self.conv4_2(self.conv4_1(_pool(conv3_3))))
        conv5_3 = self.conv5_3(self.conv5_2(self.conv5_1(_pool(conv4_3))))
        conv_fc7 = self.conv_fc7(self.conv_fc6(_pool(conv5_3)))
        conv6_2 = self.conv6_2(self.conv6_1(conv_fc7))
        conv7_2 = self.conv7_2(self.conv7_1(conv6_2))
        l2_normalized = [self.conv3_3_norm(conv3_3), self.conv4_3_norm(conv4_3), self.conv5_3_norm(conv5_3)]
        return [*l2_normalized, conv_fc7, conv6_2, conv7_2]


def _pool(x: Tensor) -> Tensor:
    # Rounding up keeps the last row and column of an odd map, and lets an image of one pixel through.
    return F.max_pool2d(x, 2, 2, ceil_mode=True)
