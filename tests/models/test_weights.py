"""Weight files of the layouts that exist, made here with random contents, against the layers they must reach."""

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.fanet import FANet, build_network
from fanet_lightning.models.weights import load_backbone_weights

# Out and in channels of VGG16's convolutions with their position in torchvision's `features`, with and without BN.
LAYERS = [
    ("conv1_1", 64, 3, 0, 0), ("conv1_2", 64, 64, 2, 3), ("conv2_1", 128, 64, 5, 7), ("conv2_2", 128, 128, 7, 10),
    ("conv3_1", 256, 128, 10, 14), ("conv3_2", 256, 256, 12, 17), ("conv3_3", 256, 256, 14, 20),
    ("conv4_1", 512, 256, 17, 24), ("conv4_2", 512, 512, 19, 27), ("conv4_3", 512, 512, 21, 30),
    ("conv5_1", 512, 512, 24, 34), ("conv5_2", 512, 512, 26, 37), ("conv5_3", 512, 512, 28, 40),
]  # fmt: skip


def _tensor(*shape: int, seed: int) -> Tensor:
    """A random tensor over a small storage: overlapping strides keep the file of a 400 MB layer at some 400 KB."""
    strides = (3, 5, 7, 11)[: len(shape)]
    length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.randn(length, generator=torch.Generator().manual_seed(seed)).as_strided(shape, strides)


def _torchvision(batch_norm: bool = False) -> dict[str, Tensor]:
    found = {}
    for seed, (_, outputs, inputs, plain, bn) in enumerate(LAYERS):
        index = bn if batch_norm else plain
        found[f"features.{index}.weight"] = _tensor(outputs, inputs, 3, 3, seed=seed)
        found[f"features.{index}.bias"] = _tensor(outputs, seed=100 + seed)
        if batch_norm:
            for i, part in enumerate(("weight", "bias", "running_mean", "running_var")):
                found[f"features.{index + 1}.{part}"] = _tensor(outputs, seed=200 + 10 * seed + i)
            found[f"features.{index + 1}.num_batches_tracked"] = torch.tensor(0)
    for seed, (name, *shape) in enumerate([("0", 4096, 25088), ("3", 4096, 4096), ("6", 1000, 4096)]):
        found[f"classifier.{name}.weight"] = _tensor(*shape, seed=50 + seed)
        found[f"classifier.{name}.bias"] = _tensor(shape[0], seed=60 + seed)
    return found


def _reduced_fc() -> dict[str, Tensor]:
    found = {}
    for seed, (_, outputs, inputs, plain, _) in enumerate(LAYERS):
        found[f"{plain}.weight"] = _tensor(outputs, inputs, 3, 3, seed=seed)
        found[f"{plain}.bias"] = _tensor(outputs, seed=100 + seed)
    found["31.weight"], found["31.bias"] = _tensor(1024, 512, 3, 3, seed=60), _tensor(1024, seed=61)
    found["33.weight"], found["33.bias"] = _tensor(1024, 1024, 1, 1, seed=62), _tensor(1024, seed=63)
    return found


def _save(found: Any, path: Path) -> Path:
    save_file(found, path) if path.suffix == ".safetensors" else torch.save(found, path)
    return path


@pytest.fixture(scope="module")
def network() -> FANet:
    """Full width, level 1. Tests that load into it do not rely on what an earlier one left."""
    return FANet(level=1)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weight cache, and no network."""

    def offline(url: str, *_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def _check_convolutions(backbone: dict[str, Tensor], found: dict[str, Tensor], prefix: str, column: int) -> None:
    for layer in LAYERS:
        for part in ("weight", "bias"):
            assert torch.equal(backbone[f"{layer[0]}.{part}"], found[f"{prefix}{layer[column]}.{part}"])


def test_torchvision_layout(network: FANet, tmp_path: Path) -> None:
    found = _torchvision()
    extras = network.trunk.conv6_2.weight.clone()
    load_backbone_weights(network, _save(found, tmp_path / "vgg16.pth"))
    backbone = network.trunk.state_dict()
    _check_convolutions(backbone, found, "features.", 3)
    assert torch.equal(network.trunk.conv6_2.weight, extras)
    assert network.normaliser.kind == "imagenet"

    # fc6 by hand: output o is unit 4·o; tap (i, j) of 3×3 is tap (3i, 3j) of 7×7; input c is 49 columns wide.
    # fc7: every fourth output, and of its inputs those that fc6 kept.
    fc6, fc7 = found["classifier.0.weight"], found["classifier.3.weight"]
    for o, c, i, j in [*np.eye(4, dtype=int), (0, 0, 0, 0), (1023, 511, 2, 2), (5, 7, 2, 1)]:
        assert backbone["conv_fc6.weight"][o, c, i, j] == fc6[4 * o, 49 * c + 7 * (3 * i) + 3 * j]
        assert backbone["conv_fc7.weight"][o, c, 0, 0] == fc7[4 * o, 4 * c]
    for name, part in (("conv_fc6", "classifier.0"), ("conv_fc7", "classifier.3")):
        assert torch.equal(backbone[f"{name}.bias"], found[f"{part}.bias"][::4])


@pytest.mark.parametrize("whole", [True, False])
def test_reduced_fc_layout_brings_the_caffe_normaliser(
    network: FANet, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    """Whole, or the thirteen convolutions alone, which leave fc6 and fc7 fresh."""
    found = {key: x.half().contiguous() for key, x in _reduced_fc().items() if whole or int(key.split(".")[0]) < 30}
    before = {key: x.clone() for key, x in network.trunk.state_dict().items()}
    load_backbone_weights(network, str(_save(found, tmp_path / "vgg16_reducedfc.safetensors")))
    assert network.normaliser.kind == "caffe" and network.trunk.conv5_3.weight.dtype == torch.float32
    backbone = network.trunk.state_dict()
    _check_convolutions(backbone, found, "", 3)
    for ours, theirs in (("conv_fc6", 31), ("conv_fc7", 33)):
        for part in ("weight", "bias"):
            expected = found[f"{theirs}.{part}"] if whole else before[f"{ours}.{part}"]
            assert torch.equal(backbone[f"{ours}.{part}"], expected)
    assert ("fc6" in capsys.readouterr().out) == (not whole)


def test_batch_norm_layout(tmp_path: Path) -> None:
    network = FANet(level=1, batch_norm=True)
    found = _torchvision(batch_norm=True)
    with pytest.raises(InputError, match=r"model\.batch_norm=false"):
        load_backbone_weights(network, _save(_reduced_fc(), tmp_path / "plain.pth"))
    load_backbone_weights(network, _save(found, tmp_path / "vgg16_bn.pth"))
    backbone = network.trunk.state_dict()
    _check_convolutions(backbone, found, "features.", 4)
    for name, _, _, _, index in LAYERS:
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(backbone[f"{name}.bn.{part}"], found[f"features.{index + 1}.{part}"])


def test_narrow_networks_take_no_weights() -> None:
    network = build_network(level=1, width=0.1)
    with pytest.raises(InputError, match=r"weights=imagenet.*model.width=1.0.* 0.1"):
        load_backbone_weights(network, "imagenet")


@pytest.mark.parametrize(("batch_norm", "name"), [(False, "vgg16-397923af.pth"), (True, "vgg16_bn-6c64b313.pth")])
def test_imagenet_from_the_cache_and_offline(hub: Path, batch_norm: bool, name: str) -> None:
    network = FANet(level=1, batch_norm=batch_norm)
    with pytest.raises(InputError) as caught:
        load_backbone_weights(network, "imagenet")
    assert str(caught.value).startswith("weights=imagenet: ") and str(hub / name) in str(caught.value)
    hub.mkdir(parents=True, exist_ok=True)
    found = _torchvision(batch_norm)
    _save(found, hub / name)
    load_backbone_weights(network, "imagenet")
    assert torch.equal(network.trunk.conv1_1.weight, found["features.0.weight"])


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was_here"),)


def _without(found: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: x for k, x in found.items() if k != key}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model.a": torch.zeros(1), "b": torch.zeros(1)}, "conv1_1.weight is missing"),
        ([torch.zeros(1)], "not a readable weight file"),
        ({"epoch": 3}, "not a readable weight file"),
        (_without(_torchvision(), "features.28.bias"), "conv5_3.bias is missing"),
        (_without(_torchvision(), "classifier.3.weight"), "conv_fc7.weight is missing"),
        (_without(_reduced_fc(), "33.bias"), "conv_fc7.bias is missing"),
        (_torchvision() | {"classifier.0.weight": torch.zeros(10, 8)}, "conv_fc6.weight is "),
        (_torchvision() | {"classifier.3.bias": torch.full((4096,), torch.nan)}, "conv_fc7.bias is not finite"),
        (_torchvision(batch_norm=True), "model.batch_norm=true"),
        (b"text", "not a readable weight file"),
        (pickle.dumps({"features.0.weight": Malice()}, protocol=2), "not a readable weight file"),
        (None, "No such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_files_leave_the_network_alone(
    network: FANet, tmp_path: Path, content: object, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "wrong.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        _save(content, path)
    before, kind = network.trunk.conv1_2.weight.clone(), network.normaliser.kind
    with pytest.raises(InputError) as caught:
        load_backbone_weights(network, path)
    assert str(caught.value).startswith(f"weights={path}: ") and says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(network.trunk.conv1_2.weight, before)
    assert network.normaliser.kind == kind and not Path("was_here").exists()
