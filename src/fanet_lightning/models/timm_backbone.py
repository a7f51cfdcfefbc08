"""Any feature extractor of timm as a backbone (``pip install 'fanet-lightning[timm]'``)."""

import importlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError, first_line, import_extra
from fanet_lightning.models.blocks import Backbone, ExtraMaps

# What the extractor has to give itself. The maps of stride 64 and 128 are added.
STRIDES = (4, 8, 16, 32)


class TimmBackbone(Backbone):
    """The maps of stride 4, 8, 16 and 32 of a timm model, and two more by our own convolutions.

    Images are padded right and below, with the normaliser's zero, to a multiple of 32, and the maps cut to
    ⌈size / stride⌉: extractors differ in how they round, many refuse other sizes, and anchors go by the maps' shapes.

    ``name``: as in ``timm.list_models()``, with or without the tag of its weights (``resnet18.a1_in1k``). ``width``:
    factor on the channels of the two added maps; the extractor is as wide as its name says. It starts with timm's
    random weights; :meth:`load_pretrained` fills in trained ones.
    InputError: timm is not installed, knows no such model, or one that lacks a stride, gives no feature maps of
    (B, C, H, W), or takes images of one size alone.
    """

    def __init__(self, name: str, *, width: float = 1.0) -> None:
        super().__init__()
        self.name = name
        timm = import_extra("timm", f"model.backbone={name}", "timm")
        # Names with a colon or slash would make timm look for a model on the network or on disk.
        if ":" in name or "/" in name or not timm.is_model(name):
            raise InputError(
                f"model.backbone={name}: neither vgg, light, lite0 nor a model of timm; see timm.list_models()"
            )
        try:
            with torch.device("meta"):  # what it would give can be read without its weights
                strides = self._extractor().feature_info.reduction()
            # The deepest map of a stride has seen most; a stride that it lacks is a ValueError.
            self._indices = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES)
            self.body = self._extractor(out_indices=self._indices)
            found = tuple(int(channels) for channels in self.body.feature_info.channels())
            # Names and strides promise, shapes tell.
            with torch.no_grad():
                image = torch.zeros(1, 3, 96, 160, device=next(self.body.parameters()).device)
                maps = [tuple(m.shape[1:]) for m in self.body.eval()(image)]
            self.body.train()
            wanted = [(c, 96 // stride, 160 // stride) for stride, c in zip(STRIDES, found, strict=True)]
            if maps != wanted:
                raise ValueError(f"maps {maps} for an image of 96 × 160 instead of {wanted}")
        except Exception as error:  # each family of models refuses in its own way
            raise InputError(
                f"model.backbone={name} does not fit ({first_line(error)}): maps of stride 4, 8, 16 and 32 are needed"
            ) from error
        _subsample_before_strided_1x1(self.body)
        self.extra = ExtraMaps(found[-1], inner=128, channels=256, width=width, batch_norm=True)
        self.channels = (*found, self.extra.channels, self.extra.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        below, right = -height % STRIDES[-1], -width % STRIDES[-1]
        maps = [
            m[..., : math.ceil(height / stride), : math.ceil(width / stride)]
            for m, stride in zip(self.body(F.pad(x, (0, right, 0, below))), STRIDES, strict=True)
        ]
        return [*maps, *self.extra(maps[-1])]

    def trained_layers(self) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        for name, child in self.body.named_children():
            parts = child.named_children() if isinstance(child, nn.Sequential | nn.ModuleList) else ()
            layers |= {f"{name}.{part}": layer for part, layer in parts} or {name: child}
        return layers

    def load_pretrained(self) -> None:
        """Fill the extractor with timm's trained weights, downloaded once; InputError where they cannot be had."""
        weights = pretrained_weights(self.name, features_only=True, out_indices=self._indices)
        self.body.load_state_dict(weights)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Per channel, RGB in 0 … 255, of the images that timm's weights for this name were trained on."""
        config = importlib.import_module("timm").get_pretrained_cfg(self.name)
        return [255 * float(x) for x in config.mean], [255 * float(x) for x in config.std]

    def _extractor(self, **options: Any) -> Any:
        return importlib.import_module("timm").create_model(self.name, features_only=True, pretrained=False, **options)


def pretrained_weights(name: str, **options: Any) -> dict[str, Tensor]:
    """The state dict of timm's trained model ``name``, downloaded once; InputError where it cannot be had."""
    try:
        # On the processor, where weights are read, whatever device is being built on.
        with torch.device("cpu"):
            model: nn.Module = import_extra("timm", "weights=imagenet", "timm").create_model(
                name, pretrained=True, **options
            )
    # Which error it is depends on the versions of timm, huggingface_hub and what is below them.
    except Exception as error:
        raise InputError(
            f"weights=imagenet: timm cannot give those of {name} ({first_line(error)}); weights=FILE takes a file"
        ) from error
    return model.state_dict()


def _subsample_before_strided_1x1(body: nn.Module) -> None:
    """Let every 1×1 convolution with a stride see its input subsampled and step by one: the same products.

    torch's CPU gradient of a strided 1×1 convolution in channels_last (2.14, oneDNN) writes past its memory where the
    input has few channels, 3 in MobileOne and FastViT, and the process dies in a later ``free``.
    """
    for layer in body.modules():
        # Subclasses may pad by their own rule.
        if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) != layer.stride and layer.padding == (0, 0):
            cells, layer.stride = tuple(slice(None, None, step) for step in layer.stride), (1, 1)
            layer.register_forward_pre_hook(lambda _, inputs, cells=cells: inputs[0][..., *cells])
