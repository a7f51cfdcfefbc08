"""FANet (paper §3, equations 1–3): hierarchies of feature maps, each agglomerated from the one below."""

from collections.abc import Sequence

from torch import Tensor, nn

from fanet_lightning.errors import InputError
from fanet_lightning.net.blocks import ABlock
from fanet_lightning.net.heads import Heads, map_shapes
from fanet_lightning.net.normaliser import Normaliser
from fanet_lightning.net.vgg import MAP_NAMES, VggTrunk
from fanet_lightning.structures import NetworkOutput


class FANet(nn.Module):
    """Level 1 is S3FD's pyramid; map l of level k is A(map l, map l + 1 of level k - 1) (equation 2).

    With agglomeration from map s (conv_fc7: s = 4), level k has A-blocks on maps 1 … s - k + 1. Every other map is the
    tensor of level k - 1 itself, computed once.

    Args:
        level: number of hierarchies m, 1 … s. 1 is S3FD.
        context: the inception-like module inside the A-blocks (§3.2).
        hl: every hierarchy has heads of its own, for the hierarchical loss (§3.4); without it the last one alone.
        width: factor on all channels, see :func:`fanet_lightning.net.blocks.scaled`.
        batch_norm: batch normalisation in the trunk.
        agglomerate_from: the deepest map that takes part, conv4_3 … conv7_2. The paper takes conv_fc7 (§3.3).
        own_blocks: equation 2 read literally: every level above 1 has A-blocks on maps 1 … s - 1.
        fc6: ``plain`` or ``dilated``.
        normaliser: ``imagenet`` or ``caffe``.

    Raises:
        InputError: a value outside these, with the choices.
    """

    def __init__(
        self,
        *,
        level: int = 3,
        context: bool = True,
        hl: bool = True,
        width: float = 1.0,
        batch_norm: bool = False,
        agglomerate_from: str = "conv_fc7",
        own_blocks: bool = False,
        fc6: str = "plain",
        normaliser: str = "imagenet",
    ) -> None:
        super().__init__()
        if agglomerate_from not in MAP_NAMES[1:]:
            raise InputError(f"model.agglomerate_from={agglomerate_from}: choose one of {', '.join(MAP_NAMES[1:])}")
        start = MAP_NAMES.index(agglomerate_from) + 1
        if not 1 <= level <= start:
            raise InputError(f"level={level}: agglomeration from {agglomerate_from} allows level=1 … {start}")
        self.level, self.hl = level, hl
        self.normaliser = Normaliser(normaliser)
        self.trunk = VggTrunk(width=width, batch_norm=batch_norm, fc6=fc6)
        self.levels = nn.ModuleDict()
        self.heads = nn.ModuleDict()

        channels = list(self.trunk.channels)
        for k in range(1, level + 1):
            if k > 1:
                blocks = start - 1 if own_blocks else start - k + 1
                self.levels[str(k)] = nn.ModuleDict(
                    {
                        name: ABlock(channels[i], channels[i + 1], context=context, width=width)
                        for i, name in enumerate(MAP_NAMES[:blocks])
                    }
                )
                channels = [ABlock.channels_out(width)] * blocks + channels[blocks:]
            if hl or k == level:
                self.heads[str(k)] = Heads(channels)

    def hierarchies(self, images: Tensor) -> list[list[Tensor]]:
        """(B, 3, H, W) RGB in 0 … 255 → the six maps of each level, first level first."""
        levels = [self.trunk(self.normaliser(images))]
        for blocks in self.levels.values():
            levels.append(_agglomerate(blocks, levels[-1]))
        return levels

    def forward(self, images: Tensor, all_hierarchies: bool | None = None) -> NetworkOutput:
        """Detect on (B, 3, H, W) RGB images, uint8 or float in 0 … 255.

        ``all_hierarchies``: run the heads of every hierarchy that has some, not of the last one alone.
        By default so while training with ``hl``.
        """
        levels = self.hierarchies(images)
        if all_hierarchies is None:
            all_hierarchies = self.training
        first = 0 if all_hierarchies and self.hl else self.level - 1
        outputs = [self.heads[str(k)](levels[k - 1]) for k in range(first + 1, self.level + 1)]
        return NetworkOutput(outputs, map_shapes(levels[-1]))

    def training_only(self) -> list[nn.Module]:
        """The parts that detection never runs: heads of the lower hierarchies."""
        return [heads for k, heads in self.heads.items() if k != str(self.level)]


def _agglomerate(blocks: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """One level from the one below (equation 2): the shallow maps agglomerated, the deeper ones as they are."""
    new = [block(maps[i], maps[i + 1]) for i, block in enumerate(blocks.children())]
    return [*new, *maps[len(new) :]]
