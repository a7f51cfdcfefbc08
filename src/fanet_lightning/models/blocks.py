"""Building blocks: convolution with ReLU, L2Norm, A-block, normalization, what a backbone has."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError


def scaled(channels: int, width: float) -> int:
    """Channels of a narrower or wider network: ``channels`` × ``width``, rounded to a multiple of 8, at least 8."""
    if not 0 < width < 100:
        raise InputError(f"model.width={width}: give a factor above 0 and below 100; 1.0 is the named network")
    return max(8, int(channels * width / 8 + 0.5) * 8)


def init_xavier(layer: nn.Conv2d) -> None:
    """What the paper gives new layers (§3.5): Xavier weights; the bias starts at zero."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ConvNorm(nn.Conv2d):
    """Convolution that keeps the size at stride 1, optional batch normalization. (B, C, H, W) → (B, C', H', W').

    A ``Conv2d`` itself, so that its weights bear the paper's layer names; with batch normalization its bias stays.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int] | int = 3, *, stride: int = 1,
        dilation: int = 1, groups: int = 1, batch_norm: bool = False,
    ) -> None:  # fmt: skip
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2 * dilation, width // 2 * dilation)
        super().__init__(in_channels, out_channels, (height, width), stride, padding, dilation, groups)
        self.bn = nn.BatchNorm2d(out_channels) if batch_norm else None
        init_xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        # Of exports and of detection the graph stays plain: only gradients are wrong.
        narrow = self.training and x.shape[-1] == 1 and self.stride[1] > 1
        x = self._one_column(x) if narrow else super().forward(x)
        return x if self.bn is None else self.bn(x)

    def _one_column(self, x: Tensor) -> Tensor:
        """The same convolution of a map (B, C, H, 1): all but the kernel's middle column see padding alone.

        On CPUs that multiply bf16, torch 2.14 leaves part of the weights' gradient as it finds the memory where a
        3×3 convolution with a stride meets a map one column wide: garbage, at times NaN.
        """
        middle = self.weight.shape[-1] // 2
        weight, padding = self.weight[..., middle : middle + 1], (int(self.padding[0]), 0)
        return F.conv2d(x, weight, self.bias, (self.stride[0], 1), padding, self.dilation, self.groups)

    @torch.no_grad()
    def fold_batch_norm(self) -> None:
        """Put the batch normalization, with its running statistics, into weight and bias. Computed in float64."""
        if self.bn is None:
            return
        assert self.bias is not None and self.bn.running_mean is not None and self.bn.running_var is not None
        factor = self.bn.weight.double() / (self.bn.running_var.double() + self.bn.eps).sqrt()
        self.weight.copy_(self.weight.double() * factor[:, None, None, None])
        self.bias.copy_((self.bias.double() - self.bn.running_mean.double()) * factor + self.bn.bias.double())
        self.bn = None


class ConvReLU(ConvNorm):
    """:class:`ConvNorm`, then ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        # In place: neither a convolution nor a batch normalization needs its output for the gradient.
        return F.relu(super().forward(x), inplace=True)


NetworkT = TypeVar("NetworkT", bound=nn.Module)


def fuse(network: NetworkT) -> NetworkT:
    """A copy for inference: every :class:`ConvNorm` with its batch normalization folded in, in evaluation mode.

    Outputs are those of ``network.eval()`` up to rounding. The copy lacks the heads of the lower hierarchies, which
    detection never runs; it is not to be trained. Batch normalization inside a timm backbone stays.
    """
    unused: list[nn.Module] = getattr(network, "training_only", list)()  # a single layer has none
    fused = copy.deepcopy(network, {id(module): nn.Identity() for module in unused}).eval()
    for layer in fused.modules():
        if isinstance(layer, ConvNorm):
            layer.fold_batch_norm()
    return fused


class L2Norm(nn.Module):
    """Each cell's channel vector brought to length 1, then one learnt scale per channel (ParseNet; S3FD §3.1).

    (B, C, H, W) → the same shape and dtype; at least float32 inside: half-precision sums of squares overflow.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        # A cell without any activation stays zero instead of becoming 0/0.
        inverse: Tensor = 1 / (torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide) + 1e-6)
        return (x * inverse * self.scale[:, None, None]).to(x.dtype)


Upsample = Callable[[Tensor, Tensor], Tensor]
"""(B, C, h, w), (B, C', H, W) → (B, C, H, W): the first map at the size of the second, as :func:`upsample_to`."""


def upsample_to(x: Tensor, like: Tensor) -> Tensor:
    """``x`` brought bilinearly to the height and width of ``like``: 2× in the regular case, any ratio for odd sizes."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class ABlock(nn.Module):
    """Agglomeration of a map with the next deeper one (paper §3.2, figure 2), ReLU after every convolution.

    ``shallow`` 1×1 to X = N channels; with ``context`` four branches 1×1, 1×3, 3×1, 3×3 of X/4 channels each follow.
    ``deep`` 1×1, bilinear upsampling. ``smooth`` 3×3 over the concatenation, to N channels.

    ``channels`` is N (the paper's 256), ``deep`` the deep branch's (N/8 = 32); ``width``: factor on N, X/4 and
    ``deep``, each rounded by :func:`scaled`; ``batch_norm``: after every convolution, the paper has none.
    """

    def __init__(
        self, shallow_channels: int, deep_channels: int, *, context: bool, width: float = 1.0, channels: int = 256,
        deep: int = 32, batch_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, branch, deep = scaled(channels, width), scaled(channels // 4, width), scaled(deep, width)
        self.shallow = ConvReLU(shallow_channels, self.channels, 1, batch_norm=batch_norm)
        branches = {
            f"branch_{h}x{w}": ConvReLU(self.channels, branch, (h, w), batch_norm=batch_norm)
            for h, w in ((1, 1), (1, 3), (3, 1), (3, 3))
            if context
        }
        self.context = nn.ModuleDict(branches) if context else None
        self.deep = ConvReLU(deep_channels, deep, 1, batch_norm=batch_norm)
        inputs = (4 * branch if context else self.channels) + deep
        self.smooth = ConvReLU(inputs, self.channels, 3, batch_norm=batch_norm)

    def forward(self, shallow: Tensor, deep: Tensor, upsample: Upsample = upsample_to) -> Tensor:
        """(B, C, H, W) and the deeper map (B, C', about H/2, about W/2) → (B, N, H, W)."""
        x = self.shallow(shallow)
        parts = [x] if self.context is None else [branch(x) for branch in self.context.values()]
        return self.smooth(torch.cat([*parts, upsample(self.deep(deep), x)], dim=1))  # type: ignore[no-any-return]


# Per kind: order of the channels, mean and standard deviation in that order, in units of 0 … 255.
# imagenet: torchvision's weights. caffe: the means of the reduced-fc VGG16 that SSD and S3FD start from.
_KINDS: dict[str, tuple[list[int], list[float], list[float]]] = {
    "imagenet": ([0, 1, 2], [0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]),
    "caffe": ([2, 1, 0], [104.0, 117.0, 123.0], [1.0, 1.0, 1.0]),
}


class Normaliser(nn.Module):
    """RGB images (B, 3, H, W), uint8 or float in 0 … 255, to what the backbone was trained on: a kind of ``_KINDS``.

    Its values are buffers: a state dict restores them, whatever kind the network was built with.
    """

    order: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, kind: str = "imagenet") -> None:
        super().__init__()
        if kind not in _KINDS:
            raise InputError(f"model.normaliser={kind}: choose {' or '.join(_KINDS)}")
        order, mean, std = _KINDS[kind]
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    @property
    def kind(self) -> str:
        """``imagenet`` or ``caffe``, read off the buffers."""
        return next(kind for kind, (order, _, _) in _KINDS.items() if order == self.order.tolist())

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images of shape {tuple(images.shape)}: (B, 3, H, W) RGB is expected")
        # Reordered while still uint8: a quarter of the bytes. In place on what index_select has made.
        return images.index_select(1, self.order).to(self.mean.dtype).sub_(self.mean).div_(self.std)


# Names of the six detection maps of every backbone but VGG16, whose maps bear the paper's layer names.
STRIDE_NAMES = ("stride4", "stride8", "stride16", "stride32", "stride64", "stride128")


class Backbone(nn.Module):
    """Six maps from a normalized image, strides 4, 8, 16, 32, 64 and 128: level 1 of FANet.

    ``forward``: (B, 3, H, W) float → six maps (B, C, ⌈H / stride⌉, ⌈W / stride⌉), shallow first.
    ``map_names``: the maps' names, which heads, A-blocks and ``agglomerate_from`` go by. ``channels``: C of each.
    ``trained_layers()``: the layers that trained weights exist for, by name, in the order in which images pass them.
    """

    map_names: tuple[str, ...] = STRIDE_NAMES
    channels: tuple[int, ...]


class ExtraMaps(nn.Module):
    """The maps of stride 64 and 128 from the one of stride 32, as S3FD's conv6_1 … conv7_2, scaled by ``width``."""

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
