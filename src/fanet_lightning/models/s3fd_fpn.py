"""S3FD with a feature pyramid network on top: the second baseline of the paper's table 1."""

from collections.abc import Sequence

from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import Normaliser, Upsample, init_xavier, scaled, upsample_to
from fanet_lightning.models.heads import Heads
from fanet_lightning.models.vgg import MAP_NAMES, VggBackbone
from fanet_lightning.ops.structures import NetworkOutput


class S3fdFpn(nn.Module):
    """Lateral 1×1 to 256 channels, top-down addition of the upsampled deeper map, 3×3 smoothing (FPN §3), no ReLU.

    ``fpn_maps``: how many of the six maps take part, 2 … 6, shallow ones first. 4 is the top-down path from conv_fc7,
    where FANet's agglomeration starts too. The rest: as in :class:`fanet_lightning.models.fanet.FANet`.
    """

    def __init__(
        self, *, fpn_maps: int = 4, width: float = 1.0, batch_norm: bool = False, fc6: str = "plain",
        normaliser: str = "imagenet", face_prior: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 2 <= fpn_maps <= len(MAP_NAMES):
            raise InputError(f"model.fpn_maps={fpn_maps}: choose 2 … {len(MAP_NAMES)}, 4 starts at conv_fc7")
        self.normaliser = Normaliser(normaliser)
        self.trunk = VggBackbone(width=width, batch_norm=batch_norm, fc6=fc6)
        names, inner = MAP_NAMES[:fpn_maps], scaled(256, width)
        self.laterals = nn.ModuleDict(
            {name: nn.Conv2d(inputs, inner, 1) for name, inputs in zip(names, self.trunk.channels, strict=False)}
        )
        self.smooths = nn.ModuleDict({name: nn.Conv2d(inner, inner, 3, padding=1) for name in names})
        for layer in (*self.laterals.values(), *self.smooths.values()):
            init_xavier(layer)  # type: ignore[arg-type]
        self.heads = Heads([inner] * fpn_maps + list(self.trunk.channels[fpn_maps:]), face_prior=face_prior)

    def pyramid(self, images: Tensor, upsample: Sequence[Upsample] | None = None) -> list[Tensor]:
        """(B, 3, H, W) RGB in 0 … 255 → the six maps that the heads see."""
        maps = self.trunk(self.normaliser(images))
        merged = [lateral(x) for lateral, x in zip(self.laterals.values(), maps, strict=False)]
        for i in range(len(merged) - 2, -1, -1):
            brought = upsample_to if upsample is None else upsample[i]
            merged[i] = merged[i] + brought(merged[i + 1], merged[i])
        smooth = [layer(x) for layer, x in zip(self.smooths.values(), merged, strict=True)]
        return [*smooth, *maps[len(smooth) :]]

    def forward(
        self, images: Tensor, all_hierarchies: bool | None = None, upsample: Sequence[Upsample] | None = None
    ) -> NetworkOutput:
        """As :meth:`fanet_lightning.models.fanet.FANet.forward`; there is one hierarchy, whatever is asked."""
        maps = self.pyramid(images, upsample)
        return NetworkOutput([self.heads(maps)], [(x.shape[-2], x.shape[-1]) for x in maps])

    def training_only(self) -> list[nn.Module]:
        """The parts that detection never runs: none here."""
        return []
