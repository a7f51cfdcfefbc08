"""FANet (paper §3, equations 1–3), networks by name, and what they cost."""

import copy
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fanet_lightning.cli.errors import InputError, first_line, is_whole
from fanet_lightning.models.blocks import ABlock, Backbone, Normaliser, Upsample, upsample_to
from fanet_lightning.models.heads import Heads
from fanet_lightning.models.light import LightBackbone, Lite0Backbone
from fanet_lightning.models.s3fd_fpn import S3fdFpn
from fanet_lightning.models.timm_backbone import TimmBackbone
from fanet_lightning.models.vgg import VggBackbone
from fanet_lightning.ops.anchors import STRIDES
from fanet_lightning.ops.structures import NetworkOutput


class FANet(nn.Module):
    """Level 1 is S3FD's pyramid; map l of level k is A(map l, map l + 1 of level k - 1) (equation 2).

    With agglomeration from map s (conv_fc7: s = 4), level k has A-blocks on maps 1 … s - k + 1. Every other map is the
    tensor of level k - 1 itself, computed once.

    Args:
        level: number of hierarchies m, 1 … s. 1 is S3FD.
        context: the inception-like module inside the A-blocks (§3.2).
        hl: every hierarchy has heads of its own, for the hierarchical loss (§3.4); without it the last one alone.
        width: factor on all channels, see :func:`fanet_lightning.models.blocks.scaled`.
        batch_norm: batch normalization in the backbone.
        agglomerate_from: the deepest map that takes part, by name: conv4_3 … conv7_2 of VGG16, stride8 … stride128 of
            other backbones. None: the fourth, the paper's conv_fc7 (§3.3).
        own_blocks: equation 2 read literally: every level above 1 has A-blocks on maps 1 … s - 1.
        fc6: ``plain`` or ``dilated``; VGG16 alone has it.
        backbone: ``vgg`` (VGG16, the paper's), ``light`` (:class:`LightBackbone`), ``lite0`` (:class:`Lite0Backbone`)
            or the name of a feature extractor of timm; the own channels of the last two stay, whatever ``width`` and
            ``batch_norm`` say.
        block_channels: N of the A-blocks at width 1: one number for all maps, or one per map from map 1 on, of which
            the last holds for all that follow. The paper has 256.
        deep_channels: channels of the A-blocks' deep branch at width 1. The paper has N/8 = 32.
        block_batch_norm: batch normalization in the A-blocks too; the paper has none.
        normaliser: ``imagenet`` or ``caffe``.
        face_prior: the score that every anchor starts with, see :class:`fanet_lightning.models.heads.Heads`.

    InputError: a value outside these, with the choices.
    """

    def __init__(
        self, *, level: int = 3, context: bool = True, hl: bool = True, width: float = 1.0, batch_norm: bool = False,
        agglomerate_from: str | None = None, own_blocks: bool = False, fc6: str = "plain", backbone: str = "vgg",
        block_channels: int | Sequence[int] = 256, deep_channels: int = 32, block_batch_norm: bool = False,
        normaliser: str = "imagenet", face_prior: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [block_channels] if isinstance(block_channels, int) else list(block_channels)
        if not widths or not all(is_whole(n, 1) for n in (*widths, deep_channels)):
            raise InputError(
                f"model.block_channels={block_channels} model.deep_channels={deep_channels}: give numbers of channels"
            )
        if backbone == "vgg":
            trunk: Backbone = VggBackbone(width=width, batch_norm=batch_norm, fc6=fc6)
        elif backbone == "light":
            trunk = LightBackbone(width=width, batch_norm=batch_norm)
        elif backbone == "lite0":
            trunk = Lite0Backbone(width=width)
        else:
            trunk = TimmBackbone(backbone, width=width)
        names = trunk.map_names
        agglomerate_from = agglomerate_from or names[3]
        if agglomerate_from not in names[1:]:
            raise InputError(f"model.agglomerate_from={agglomerate_from}: choose one of {', '.join(names[1:])}")
        start = names.index(agglomerate_from) + 1
        if not 1 <= level <= start:
            raise InputError(f"level={level}: agglomeration from {agglomerate_from} allows level=1 … {start}")
        self.level, self.hl = level, hl
        self.normaliser = Normaliser(normaliser)
        self.trunk = trunk
        self.levels = nn.ModuleDict()
        self.heads = nn.ModuleDict()

        channels = list(trunk.channels)
        for k in range(1, level + 1):
            if k > 1:
                blocks = nn.ModuleDict()
                for i, name in enumerate(names[: start - 1 if own_blocks else start - k + 1]):
                    block = ABlock(
                        channels[i], channels[i + 1], context=context, width=width,
                        channels=widths[min(i, len(widths) - 1)], deep=deep_channels, batch_norm=block_batch_norm,
                    )  # fmt: skip
                    # Map i is read by no further block of this level.
                    blocks[name], channels[i] = block, block.channels
                self.levels[str(k)] = blocks
            if hl or k == level:
                self.heads[str(k)] = Heads(channels, names, face_prior=face_prior)

    def hierarchies(self, images: Tensor, upsample: Sequence[Upsample] | None = None) -> list[list[Tensor]]:
        """(B, 3, H, W) RGB in 0 … 255 → the six maps of each level, first level first."""
        levels = [self.trunk(self.normaliser(images))]
        for blocks in self.levels.values():
            maps = levels[-1]
            new = [
                block(maps[i], maps[i + 1], upsample_to if upsample is None else upsample[i])
                for i, block in enumerate(blocks.children())
            ]
            levels.append([*new, *maps[len(new) :]])
        return levels

    def forward(
        self, images: Tensor, all_hierarchies: bool | None = None, upsample: Sequence[Upsample] | None = None
    ) -> NetworkOutput:
        """Detect on (B, 3, H, W) RGB images, uint8 or float in 0 … 255.

        ``all_hierarchies``: run the heads of every hierarchy that has some, as by default in training, not of the last
        one alone. ``upsample``: what brings map i + 1 to the size of map i, for each i, in place of ``upsample_to``.
        """
        levels = self.hierarchies(images, upsample)
        every = self.training if all_hierarchies is None else all_hierarchies
        shown = [k for k in self.heads if every or int(k) == self.level]
        map_shapes = [(x.shape[-2], x.shape[-1]) for x in levels[-1]]
        return NetworkOutput([self.heads[k](levels[int(k) - 1]) for k in shown], map_shapes)

    def training_only(self) -> list[nn.Module]:
        """The parts that detection never runs: heads of the lower hierarchies."""
        return [heads for k, heads in self.heads.items() if k != str(self.level)]


Network = FANet | S3fdFpn
NETWORKS: dict[str, type[Network]] = {"fanet": FANet, "s3fd_fpn": S3fdFpn}
# What build_network takes: the arguments of all of them, which agree on the defaults that they share.
OPTIONS = {name: of.default for network in NETWORKS.values() for name, of in signature(network).parameters.items()}


def build_network(name: str = "fanet", **options: Any) -> Network:
    """The network ``fanet`` or ``s3fd_fpn``, with fresh weights.

    ``options``: the arguments of :class:`FANet` and :class:`S3fdFpn`, of which each reads its own (``s3fd_fpn`` stands
    on VGG16). The light network is ``conf/model/fanet_light.yaml``. InputError: an unknown name, or a value that the
    network rejects. TypeError: an option that no network has.
    """
    if name not in NETWORKS:
        raise InputError(f"model={name}: choose {' or '.join(NETWORKS)}")
    taken = signature(NETWORKS[name]).parameters
    # Unknown ones are handed on: the class says what it does not know.
    return NETWORKS[name](**{key: value for key, value in options.items() if key in taken or key not in OPTIONS})


def network_of(options: Mapping[str, Any]) -> Network:
    """The network of a ``model`` group: :func:`build_network`'s, or the class that ``_target_`` names.

    Such a class gets those of the options that it takes. It has :meth:`FANet.forward` and :meth:`FANet.training_only`
    and a :class:`Normaliser` as ``normaliser``; ``init_part=trunk``, ``freeze_until``, ``freeze_epochs`` and
    ``optim.backbone_factor`` want a :class:`Backbone` as ``trunk`` as well. InputError: as :func:`build_network`; or
    ``_target_`` cannot be imported, refuses the options, is no network.
    """
    if options.get("_target_") is None:
        return build_network(**{key: value for key, value in options.items() if key != "_target_"})
    # Hydra takes a fifth of a second to import, and few need it here.
    from fanet_lightning.cli.config import own

    network: Any = own("model", options, nn.Module)
    if not (hasattr(network, "normaliser") and hasattr(network, "training_only") and _says_faces(network)):
        raise InputError(
            f"model._target_={options['_target_']} is no network: it needs normaliser, training_only, six maps of "
            "strides 4 to 128 and, for each anchor, 2 logits and 4 offsets"
        )
    try:
        flops(network, 256, 128)
    except Exception as error:  # whatever somebody's forward does
        raise InputError(
            f"model._target_={options['_target_']}: its operations cannot be counted ({first_line(error)}); forward "
            "must not ask for a tensor's value"
        ) from error
    return network  # type: ignore[no-any-return]


@torch.no_grad()
def _says_faces(network: nn.Module) -> bool:
    """Whether it makes of a small image what every network does: other strides would move each box unnoticed."""
    was_training = network.training
    output = network.eval()(torch.zeros(1, 3, 256, 128, dtype=torch.uint8))
    network.train(was_training)
    shapes = [(256 // stride, 128 // stride) for stride in STRIDES]
    anchors = sum(height * width for height, width in shapes)
    return (
        isinstance(output, NetworkOutput)
        and [tuple(shape) for shape in output.map_shapes] == shapes
        and {(*heads.logits.shape, *heads.offsets.shape) for heads in output.hierarchies}
        == {(1, anchors, 2, 1, anchors, 4)}
    )


def inference_parameters(network: Network) -> int:
    """Parameters that detection uses: heads of the last hierarchy alone, no batch normalization (:func:`fuse`)."""
    unused = [*network.training_only(), *(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))]
    skip = {id(p) for module in unused for p in module.parameters()}
    return sum(p.numel() for p in network.parameters() if id(p) not in skip)


def flops(network: Network, height: int, width: int) -> int:
    """Floating-point operations of detecting in one image: two per multiply-add of the convolutions.

    Nothing is computed: shapes alone run through a copy of the network.
    """
    shapes = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty((1, 3, height, width), dtype=torch.uint8, device="meta"))
    return int(counter.get_total_flops())
