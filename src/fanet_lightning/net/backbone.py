"""What FANet asks of a trunk, whichever it is, and the two maps that a trunk of stride 32 lacks."""

from torch import Tensor, nn

from fanet_lightning.net.blocks import ConvReLU, scaled

# Names of the six detection maps of every trunk but VGG16, whose maps bear the paper's layer names.
STRIDE_NAMES = ("stride4", "stride8", "stride16", "stride32", "stride64", "stride128")


class Backbone(nn.Module):
    """Six maps from a normalised image, strides 4, 8, 16, 32, 64 and 128.

    ``forward``: (B, 3, H, W) float → six maps (B, C, about H / stride, about W / stride), shallow first; they are
    level 1 of FANet.

    ``map_names``  the six maps' names, which heads, A-blocks and ``agglomerate_from`` go by.
    ``channels``   C of each.
    ``width``      the factor that its channels were scaled with; 1 is the trunk as it is named.
    """

    map_names: tuple[str, ...] = STRIDE_NAMES
    channels: tuple[int, ...]
    width: float


class ExtraMaps(nn.Module):
    """The maps of stride 64 and 128 from the one of stride 32: a 1×1 and a 3×3 convolution of stride 2 each.

    As S3FD's conv6_1 … conv7_2, with 1×1 layers of ``inner`` and maps of ``channels`` channels, scaled by ``width``.
    (B, C, H, W) → (B, channels, ⌈H / 2⌉, ⌈W / 2⌉), (B, channels, ⌈H / 4⌉, ⌈W / 4⌉).
    """

    def __init__(self, inputs: int, *, inner: int, channels: int, width: float, batch_norm: bool) -> None:
        super().__init__()
        inner, self.channels = scaled(inner, width), scaled(channels, width)
        self.reduce64 = ConvReLU(inputs, inner, 1, batch_norm=batch_norm)
        self.map64 = ConvReLU(inner, self.channels, 3, stride=2, batch_norm=batch_norm)
        self.reduce128 = ConvReLU(self.channels, inner, 1, batch_norm=batch_norm)
        self.map128 = ConvReLU(inner, self.channels, 3, stride=2, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stride64 = self.map64(self.reduce64(x))
        return stride64, self.map128(self.reduce128(stride64))
