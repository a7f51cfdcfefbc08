"""Weights for the backbone alone: torchvision's VGG16, SSD's reduced-fc VGG16, timm's, from the network or a file."""

from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.models.blocks import Normaliser
from fanet_lightning.models.fanet import Network
from fanet_lightning.models.light import Lite0Backbone
from fanet_lightning.models.timm_backbone import TimmBackbone, pretrained_weights
from fanet_lightning.models.vgg import VGG_CONVOLUTIONS, VggBackbone

# Position of each of the thirteen convolutions inside torchvision's `features` of vgg16 and vgg16_bn. The file of
# reduced-fc weights numbers them as vgg16 does, then fc6 and fc7.
_PLAIN = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_BATCH_NORM = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
# EfficientNet-lite0 in timm: its name, and mean and deviation of every channel in 0 … 255.
LITE0, LITE0_MEAN = "tf_efficientnet_lite0", 127.5


def load_backbone_weights(network: Network, source: str | Path, say: Callable[[str], object] = print) -> None:
    """Fill ``network.trunk`` with trained weights and give the network the normalizer that belongs to them.

    Args:
        source: ``imagenet`` (downloaded once: torchvision's VGG16, with batch normalization where the backbone has it;
            timm's for lite0 and a timm backbone) or the path of a file of ``torch.save`` or safetensors: for VGG16 in
            torchvision's layout (``features.0.weight`` … ``classifier.3.bias``) or the reduced-fc one (``0.weight`` …
            ``33.bias``), which may end with the thirteen convolutions (``28.bias``): fc6 and fc7 then stay as they are;
            for lite0 and a timm backbone under timm's names.
        say: is told, in a line, what the file does not have.

    fc6 and fc7 of torchvision's layout are decimated as in SSD (§3.1): every fourth output, every third tap of 7×7.
    The added maps (conv6_1 … conv7_2, strides 64 and 128) stay as they are. The normalizer becomes ``caffe`` with
    reduced-fc weights, ``imagenet`` with torchvision's; with timm's it gets the mean and deviation that timm states.

    InputError: no such file, no network connection, a file of another layout or of other shapes, a backbone that is not
    as wide as VGG16, or one without weights. The network is then as it was.
    """
    backbone, where, normaliser = getattr(network, "trunk", None), f"weights={source}", Normaliser()
    from_network = str(source) == "imagenet"
    if isinstance(backbone, TimmBackbone):
        if from_network:
            backbone.load_pretrained()
        else:
            _copy(_of_timm(_read_file(Path(source)), backbone.body), backbone.body, where)
        # Buffers, so that a checkpoint restores them.
        for buffer, values in zip((normaliser.mean, normaliser.std), backbone.mean_and_std(), strict=True):
            buffer.copy_(torch.tensor(values)[:, None, None])
    elif isinstance(backbone, Lite0Backbone):
        of_timm = pretrained_weights(LITE0) if from_network else _read_file(Path(source))
        _copy(backbone.weights_of(of_timm), backbone, where)
        normaliser.mean.fill_(LITE0_MEAN)
        normaliser.std.fill_(LITE0_MEAN)
    elif isinstance(backbone, VggBackbone):
        given = None if from_network else _read_file(Path(source))
        if backbone.width != 1:
            raise InputError(f"{where}: they fit model.width=1.0, not {backbone.width}; use weights=null")
        found = _torchvision_weights(backbone.batch_norm) if given is None else given
        if ("features.1.running_mean" in found) != backbone.batch_norm:
            raise InputError(
                f"{where}: VGG16 {'without' if backbone.batch_norm else 'with'} batch normalization; "
                f"set model.batch_norm={str(not backbone.batch_norm).lower()}"
            )
        if "features.0.weight" in found:
            _copy(_of_torchvision(found, backbone.batch_norm), backbone, where)
        else:
            layers = zip((*VGG_CONVOLUTIONS, "conv_fc6", "conv_fc7"), (*_PLAIN, 31, 33), strict=True)
            normaliser = Normaliser("caffe")
            new = {f"{name}.{part}": found.get(f"{i}.{part}") for name, i in layers for part in ("weight", "bias")}
            if "31.weight" not in found:
                new = {key: x for key, x in new.items() if "fc" not in key}
                say(f"{where}: the thirteen convolutions of VGG16; fc6 and fc7 start fresh")
            _copy(new, backbone, where)
    else:
        raise InputError(
            f"{where}: there are weights for VGG16, lite0 and timm's models, not for {type(backbone).__name__}; "
            "use weights=null, or start from a model: init=fanet_light"
        )
    network.normaliser = normaliser.to(next(network.parameters()).device)


def _torchvision_weights(batch_norm: bool) -> Mapping[str, Tensor]:
    from torchvision.models import VGG16_BN_Weights, VGG16_Weights  # doubles the time that importing torch takes

    weights = VGG16_BN_Weights.IMAGENET1K_V1 if batch_norm else VGG16_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        return _read_file(path) if path.is_file() else weights.get_state_dict(check_hash=True, weights_only=True)
    # OSError: no connection (URLError) or no space. RuntimeError: cut short, so the hash does not match.
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"weights=imagenet: {path} is not there and cannot be downloaded ({first_line(error)}); "
            "fanet download vgg16 fetches it, weights=PATH takes a VGG16 file"
        ) from error


def _read_file(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {key: x.detach() for key, x in content.get("state_dict", content).items()}
    except Exception as error:  # foreign bytes make the readers raise almost anything
        raise InputError(
            f"weights={path}: not a readable weight file ({first_line(error)}); give torchvision's vgg16, "
            "vgg16_reducedfc or timm's"
        ) from error


def _of_timm(found: Mapping[str, Tensor], body: nn.Module) -> dict[str, Tensor | None]:
    # Extractors join the parts of timm's names by "_" where they take a model apart, or put all of it under "model.".
    flat = {key.removeprefix("module.").replace(".", "_"): x for key, x in found.items()}
    names = {key: key.removeprefix("model.").replace(".", "_") for key in body.state_dict()}
    return {k: flat.get(name) for k, name in names.items() if name in flat or not k.endswith("num_batches_tracked")}


def _of_torchvision(found: Mapping[str, Tensor], batch_norm: bool) -> dict[str, Tensor | None]:
    new: dict[str, Tensor | None] = {}
    of_norm = ("weight", "bias", "running_mean", "running_var") if batch_norm else ()
    for name, index in zip(VGG_CONVOLUTIONS, _BATCH_NORM if batch_norm else _PLAIN, strict=True):
        new |= {f"{name}.{part}": found.get(f"features.{index}.{part}") for part in ("weight", "bias")}
        new |= {f"{name}.bn.{part}": found.get(f"features.{index + 1}.{part}") for part in of_norm}
    for name, part in (("conv_fc6", "classifier.0"), ("conv_fc7", "classifier.3")):
        weight, bias = found.get(f"{part}.weight"), found.get(f"{part}.bias")
        if weight is not None and weight.shape == (4096, 25088):
            weight = weight.reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
        elif weight is not None and weight.ndim == 2:
            weight = weight[::4, ::4, None, None]
        new[f"{name}.weight"], new[f"{name}.bias"] = weight, None if bias is None else bias[::4]
    return new


def _copy(new: Mapping[str, Tensor | None], module: nn.Module, where: str) -> None:
    """Everything is checked before the first copy: a wrong file leaves the network as it was."""
    own = module.state_dict()
    for key, x in new.items():
        shape = "missing" if x is None else tuple(x.shape)
        if x is None or shape != tuple(own[key].shape) or not x.isfinite().all():  # NaN: a file of features alone
            says = shape if shape != tuple(own[key].shape) else "not finite"
            raise InputError(f"{where}: {key} is {says}, the backbone's is {tuple(own[key].shape)}; give another file")
    for key, x in new.items():
        own[key].copy_(x)
