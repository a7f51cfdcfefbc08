"""ImageNet weights for the trunk: torchvision's VGG16 or the reduced-fc one that SSD and S3FD start from."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.models.blocks import Normaliser
from fanet_lightning.models.fanet import Network
from fanet_lightning.models.timm_backbone import TimmTrunk
from fanet_lightning.models.vgg import VGG_CONVOLUTIONS, VggTrunk

# Position of each of the thirteen convolutions inside torchvision's `features` of vgg16 and vgg16_bn. The file of
# reduced-fc weights numbers them as vgg16 does, then fc6 and fc7.
_PLAIN = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_BATCH_NORM = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
_REDUCED_FC6, _REDUCED_FC7 = 31, 33


def load_trunk_weights(network: Network, source: str | Path | None, say: Callable[[str], object] = print) -> str:
    """Fill ``network.trunk`` with ImageNet weights and give the network the normaliser that belongs to them.

    Args:
        source: ``imagenet`` (torchvision's VGG16, with batch normalisation where the trunk has it; downloaded once),
            the path of a file, or None or ``none`` for no weights. A file is what ``torch.save`` or safetensors wrote,
            in torchvision's layout (``features.0.weight`` … ``classifier.3.bias``) or the reduced-fc one
            (``0.weight`` … ``33.bias``, ``vgg16_reducedfc.pth``), which may end with the thirteen convolutions
            (``28.bias``): fc6 and fc7 then stay as they are.
        say: is told, in a line, what the file does not have.

    fc6 and fc7 of torchvision's layout are decimated as in SSD (§3.1): every fourth output, every third tap of 7×7.
    conv6_1 … conv7_2, where no weights exist, stay as they are.

    A timm trunk takes ``imagenet`` alone, timm's weights for its name; the normaliser gets their mean and deviation.

    Returns:
        The kind of the network's normaliser: ``caffe`` with reduced-fc weights, ``imagenet`` with torchvision's,
        and unchanged without weights.

    Raises:
        InputError: no such file, no network connection, a file of another layout or of other shapes, a trunk that is
            not as wide as VGG16, or one that nobody has trained. The network is then as it was.
    """
    if source is None or str(source) == "none":
        return network.normaliser.kind
    trunk = network.trunk
    if isinstance(trunk, TimmTrunk):
        return _timm_weights(network, trunk, str(source))
    if not isinstance(trunk, VggTrunk):
        raise InputError(f"weights={source}: nobody has trained the light trunk on ImageNet; use weights=null")
    if trunk.width != 1:
        raise InputError(f"weights={source}: they fit model.width=1.0, not {trunk.width}; use weights=none")
    if str(source) == "imagenet":
        where, found = _torchvision_weights(trunk.batch_norm)
    else:
        where, found = str(source), _read_file(Path(source))
    if "features.0.weight" in found:
        kind, new = "imagenet", _from_torchvision(found, where, trunk)
    elif "0.weight" in found:
        kind, new = "caffe", _from_reduced_fc(found, where, trunk, say)
    else:
        keys = ", ".join(list(found)[:3]) or "nothing"
        raise InputError(
            f"{where}: not a VGG16, it holds {keys} …; give torchvision's vgg16, vgg16_reducedfc or weights=none"
        )
    _copy(new, trunk, where)
    device = next(trunk.parameters()).device
    network.normaliser = Normaliser(kind).to(device)
    return kind


def _timm_weights(network: Network, trunk: TimmTrunk, source: str) -> str:
    if source != "imagenet":
        raise InputError(f"weights={source}: with model.backbone={trunk.name} give imagenet, or none")
    mean, std = trunk.load_pretrained()
    device = next(trunk.parameters()).device
    normaliser = Normaliser("imagenet").to(device)
    # Buffers, so that a checkpoint restores them.
    normaliser.mean.copy_(torch.tensor(mean)[:, None, None])
    normaliser.std.copy_(torch.tensor(std)[:, None, None])
    network.normaliser = normaliser
    return "imagenet"


def _torchvision_weights(batch_norm: bool) -> tuple[str, Mapping[str, Tensor]]:
    from torchvision.models import VGG16_BN_Weights, VGG16_Weights

    weights = VGG16_BN_Weights.IMAGENET1K_V1 if batch_norm else VGG16_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if path.is_file():
        return str(path), _read_file(path)
    try:
        return str(path), weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    # OSError: no connection (URLError) or no space. RuntimeError: cut short, so the hash does not match.
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"weights=imagenet: {path} is not there and cannot be downloaded ({first_line(error)}); "
            "fetch it with 'python scripts/download_vgg16.py', give weights=PATH of a VGG16 file, or use weights=none"
        ) from error


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"weights={path}: no such file; give weights=PATH, weights=imagenet or weights=none")
    content: object
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the readers raise almost anything
        raise InputError(f"{path}: not a readable weight file ({first_line(error)}); give another") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise InputError(f"{path}: holds no state dict; give torchvision's vgg16 or vgg16_reducedfc")
    return content


def _from_torchvision(found: Mapping[str, Tensor], where: str, trunk: VggTrunk) -> dict[str, Tensor]:
    has_batch_norm = "features.1.running_mean" in found
    if has_batch_norm != trunk.batch_norm:
        kinds = ("without", "with") if trunk.batch_norm else ("with", "without")
        raise InputError(
            f"{where}: a VGG16 {kinds[0]} batch normalisation, for a network {kinds[1]}; "
            f"set model.batch_norm={str(has_batch_norm).lower()}"
        )
    new: dict[str, Tensor] = {}
    for name, index in zip(VGG_CONVOLUTIONS, _BATCH_NORM if has_batch_norm else _PLAIN, strict=True):
        for part in ("weight", "bias"):
            new[f"{name}.{part}"] = _get(found, f"features.{index}.{part}", where)
        if has_batch_norm:
            for part in ("weight", "bias", "running_mean", "running_var"):
                new[f"{name}.bn.{part}"] = _get(found, f"features.{index + 1}.{part}", where)
    fc6, fc6_bias = (_get(found, f"classifier.0.{part}", where) for part in ("weight", "bias"))
    fc7, fc7_bias = (_get(found, f"classifier.3.{part}", where) for part in ("weight", "bias"))
    for key, x, shape in (("0", fc6, (4096, 512 * 7 * 7)), ("3", fc7, (4096, 4096))):
        if tuple(x.shape) != shape:
            raise InputError(f"{where}: classifier.{key}.weight is {tuple(x.shape)}, VGG16's is {shape}")
    new["conv_fc6.weight"] = fc6.reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    new["conv_fc6.bias"] = fc6_bias[::4]
    new["conv_fc7.weight"] = fc7[::4, ::4, None, None]
    new["conv_fc7.bias"] = fc7_bias[::4]
    return new


def _from_reduced_fc(
    found: Mapping[str, Tensor], where: str, trunk: VggTrunk, say: Callable[[str], object]
) -> dict[str, Tensor]:
    if trunk.batch_norm:
        raise InputError(f"{where}: a VGG16 without batch normalisation; set model.batch_norm=false")
    names: tuple[str, ...] = VGG_CONVOLUTIONS
    indices: tuple[int, ...] = _PLAIN
    if any(key.startswith((f"{_REDUCED_FC6}.", f"{_REDUCED_FC7}.")) for key in found):
        names, indices = (*names, "conv_fc6", "conv_fc7"), (*indices, _REDUCED_FC6, _REDUCED_FC7)
    else:
        say(f"{where}: the thirteen convolutions of VGG16; fc6 and fc7 start fresh")
    return {
        f"{name}.{part}": _get(found, f"{index}.{part}", where)
        for name, index in zip(names, indices, strict=True)
        for part in ("weight", "bias")
    }


def _get(found: Mapping[str, Tensor], key: str, where: str) -> Tensor:
    if key not in found:
        raise InputError(f"{where}: {key} is missing; give torchvision's whole vgg16 or vgg16_reducedfc")
    return found[key]


def _copy(new: Mapping[str, Tensor], trunk: VggTrunk, where: str) -> None:
    own = trunk.state_dict()
    # Everything is checked before the first copy: a wrong file leaves the network as it was.
    for key, x in new.items():
        if x.shape != own[key].shape:
            raise InputError(f"{where}: {key} would be {tuple(x.shape)}, the trunk's is {tuple(own[key].shape)}")
        # torchvision also has a file of features alone, with NaN for a classifier.
        if not x.isfinite().all():
            raise InputError(f"{where}: {key} would not be finite; give the whole VGG16, not its features alone")
    for key, x in new.items():
        own[key].copy_(x)
