"""Weights for the backbone alone: torchvision's VGG16, SSD's reduced-fc VGG16, timm's, from the network or a file."""

from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.models.blocks import Normaliser
from fanet_lightning.models.fanet import Network
from fanet_lightning.models.timm_backbone import TimmBackbone
from fanet_lightning.models.vgg import VGG_CONVOLUTIONS, VggBackbone

# Position of each of the thirteen convolutions inside torchvision's `features` of vgg16 and vgg16_bn. The file of
# reduced-fc weights numbers them as vgg16 does, then fc6 and fc7.
_PLAIN = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_BATCH_NORM = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
_REDUCED_FC = (31, 33)


def load_backbone_weights(network: Network, source: str | Path | None, say: Callable[[str], object] = print) -> str:
    """Fill ``network.trunk`` with trained weights and give the network the normalizer that belongs to them.

    Args:
        source: ``imagenet`` (downloaded once: torchvision's VGG16, with batch normalization where the backbone has it;
            timm's weights for a timm backbone), the path of a file, or None or ``none`` for no weights. A file is what
            ``torch.save`` or safetensors wrote. For VGG16 in torchvision's layout (``features.0.weight`` …
            ``classifier.3.bias``) or the reduced-fc one (``0.weight`` … ``33.bias``, ``vgg16_reducedfc.pth``), which
            may end with the thirteen convolutions (``28.bias``): fc6 and fc7 then stay as they are. For a timm backbone
            under the names that timm gives the whole model; what belongs to its classifier is not read.
        say: is told, in a line, what the file does not have.

    fc6 and fc7 of torchvision's layout are decimated as in SSD (§3.1): every fourth output, every third tap of 7×7.
    The added maps (conv6_1 … conv7_2, strides 64 and 128), where no weights exist, stay as they are. With timm's
    weights the normalizer gets the mean and deviation that timm states for that name.

    Returns:
        The kind of the network's normalizer: ``caffe`` with reduced-fc weights, ``imagenet`` with torchvision's and
        timm's, and unchanged without weights.

    Raises:
        InputError: no such file, no network connection, a file of another layout or of other shapes, a backbone that is
            not as wide as VGG16, or one without weights. The network is then as it was.
    """
    if source is None or str(source) == "none":
        return network.normaliser.kind
    backbone, where, normaliser = getattr(network, "trunk", None), f"weights={source}", Normaliser()
    if isinstance(backbone, TimmBackbone):
        if str(source) == "imagenet":
            backbone.load_pretrained()
        else:
            _copy(_from_timm(_read_file(Path(source)), backbone, where), backbone.body, where)
        # Buffers, so that a checkpoint restores them.
        for buffer, values in zip((normaliser.mean, normaliser.std), backbone.mean_and_std(), strict=True):
            buffer.copy_(torch.tensor(values)[:, None, None])
    elif isinstance(backbone, VggBackbone):
        if backbone.width != 1:
            raise InputError(f"{where}: the file fits model.width=1.0, not {backbone.width}; use weights=none")
        from_network = str(source) == "imagenet"
        found = _torchvision_weights(backbone.batch_norm) if from_network else _read_file(Path(source))
        reduced_fc = "features.0.weight" not in found
        if ("features.1.running_mean" in found) != backbone.batch_norm:
            raise InputError(
                f"{where}: VGG16 {'without' if backbone.batch_norm else 'with'} batch normalization; "
                f"set model.batch_norm={str(not backbone.batch_norm).lower()}"
            )
        try:
            new = _from_reduced_fc(found) if reduced_fc else _from_torchvision(found, backbone.batch_norm)
        except (KeyError, RuntimeError) as error:  # a layer that is not there, or of a shape that cannot be cut so
            have = ", ".join(list(found)[:3]) or "nothing"
            raise InputError(
                f"{where}: not a whole VGG16 of torchvision or reduced-fc ({first_line(error)}); it has {have} …"
            ) from error
        _copy(new, backbone, where)
        if "conv_fc6.weight" not in new:
            say(f"{where}: the thirteen convolutions of VGG16; fc6 and fc7 start fresh")
        normaliser = Normaliser("caffe" if reduced_fc else "imagenet")
    else:
        raise InputError(
            f"{where}: there are weights for VGG16 and timm's models, not for {type(backbone).__name__}; "
            "use weights=null, or start from a model: init=fanet_light"
        )
    network.normaliser = normaliser.to(next(network.parameters()).device)
    return normaliser.kind


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
            "fetch it with 'fanet download vgg16', give weights=PATH of a VGG16 file, or use weights=none"
        ) from error


def _read_file(path: Path) -> Mapping[str, Tensor]:
    content: object
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the readers raise almost anything
        raise InputError(f"weights={path}: not a readable weight file ({first_line(error)}); give another") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise InputError(f"weights={path}: no state dict; give torchvision's vgg16 or vgg16_reducedfc, or timm's")
    return content


def _from_timm(found: Mapping[str, Tensor], backbone: TimmBackbone, where: str) -> dict[str, Tensor]:
    # Extractors join the parts of timm's names by "_" where they take a model apart, or put all of it under "model.".
    flat = {key.removeprefix("module.").replace(".", "_"): x for key, x in found.items()}
    names = {key: key.removeprefix("model.").replace(".", "_") for key in backbone.body.state_dict()}
    for key, name in names.items():
        if name not in flat and not name.endswith("num_batches_tracked"):
            raise InputError(
                f"{where}: has no {key} of {backbone.name}, but {', '.join(list(found)[:3]) or 'nothing'} …"
            )
    return {key: flat[name] for key, name in names.items() if name in flat}


def _from_torchvision(found: Mapping[str, Tensor], batch_norm: bool) -> dict[str, Tensor]:
    new: dict[str, Tensor] = {}
    for name, index in zip(VGG_CONVOLUTIONS, _BATCH_NORM if batch_norm else _PLAIN, strict=True):
        for part in ("weight", "bias"):
            new[f"{name}.{part}"] = found[f"features.{index}.{part}"]
        for part in ("weight", "bias", "running_mean", "running_var") if batch_norm else ():
            new[f"{name}.bn.{part}"] = found[f"features.{index + 1}.{part}"]
    new["conv_fc6.weight"] = found["classifier.0.weight"].reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    new["conv_fc6.bias"] = found["classifier.0.bias"][::4]
    new["conv_fc7.weight"] = found["classifier.3.weight"].reshape(4096, 4096)[::4, ::4, None, None]
    new["conv_fc7.bias"] = found["classifier.3.bias"][::4]
    return new


def _from_reduced_fc(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layers = dict(zip(VGG_CONVOLUTIONS, _PLAIN, strict=True))
    if any(f"{index}.{part}" in found for index in _REDUCED_FC for part in ("weight", "bias")):
        layers |= zip(("conv_fc6", "conv_fc7"), _REDUCED_FC, strict=True)
    return {f"{name}.{part}": found[f"{index}.{part}"] for name, index in layers.items() for part in ("weight", "bias")}


def _copy(new: Mapping[str, Tensor], module: torch.nn.Module, where: str) -> None:
    own = module.state_dict()
    # Everything is checked before the first copy: a wrong file leaves the network as it was.
    for key, x in new.items():
        if x.shape != own[key].shape:
            raise InputError(f"{where}: {key} would be {tuple(x.shape)}, the backbone's is {tuple(own[key].shape)}")
        # torchvision also has a file of features alone, with NaN for a classifier.
        if not x.isfinite().all():
            raise InputError(f"{where}: {key} would not be finite; give the whole model, not its features alone")
    for key, x in new.items():
        own[key].copy_(x)
