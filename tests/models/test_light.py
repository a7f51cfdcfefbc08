"""The light networks: what they cost, their backbones layer by layer, batch normalization folded in."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.cli.config import compose_config, plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import STRIDE_NAMES, fuse
from fanet_lightning.models.fanet import build_network, flops, inference_parameters
from fanet_lightning.models.light import Depthwise, LightBackbone
from fanet_lightning.models.weights import load_backbone_weights
from fanet_lightning.ops.anchors import STRIDES
from tests.models.helpers import disturb
from tests.models.helpers import images as images_of


def _options(*overrides: str) -> dict[str, Any]:
    """``conf/model/fanet_light.yaml`` as a run has it."""
    return dict(plain(compose_config("train", ["model=fanet_light", *overrides]))["model"])


def _network(*overrides: str) -> Any:
    return build_network(**_options(*overrides))


def test_the_cost_is_within_four_giga_and_width_scales_every_channel() -> None:
    """Two per multiply-add, at 640 × 480."""
    half, whole = (_network(f"model.width={width}") for width in (0.5, 1.0))
    assert inference_parameters(whole) == 892_654 and flops(whole, 480, 640) == 3_941_975_040 <= 4e9
    assert whole.trunk.channels == (32, 64, 128, 160, 96, 96)
    assert half.trunk.channels == (16, 32, 64, 80, 48, 48)
    assert [half.heads["3"].get_submodule(name).in_channels for name in STRIDE_NAMES] == [16, 16, 32, 80, 48, 48]
    lite0 = _network("model=fanet_lite0")
    assert inference_parameters(lite0) == 944_878 and flops(lite0, 480, 640) == 3_981_373_440 <= 4e9
    assert lite0.trunk.channels == (24, 40, 112, 128, 96, 96)


def _literal_backbone(w: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        x = F.conv2d(x, kernel, w[f"{name}.bias"], stride=stride, padding=kernel.shape[-1] // 2)
        if f"{name}.bn.weight" in w:
            mean, var, scale, shift = (
                w[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
            )
            x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
        return x.clamp(min=0)

    x = conv("stem", x, 2)
    maps = []
    for i in range(4):
        x = conv(f"stages.{i}.down", x, 2)
        inner = conv(f"stages.{i}.through", x) if i else x
        inner = inner + conv(f"stages.{i}.blocks.0.conv2", conv(f"stages.{i}.blocks.0.conv1", inner))
        # The first stage is not halved.
        x = conv(f"stages.{i}.merge", torch.cat([inner, conv(f"stages.{i}.beside", x)], dim=1)) if i else inner
        maps.append(x)
    maps.append(conv("extra.map64", conv("extra.reduce64", x), 2))
    return [*maps, conv("extra.map128", conv("extra.reduce128", maps[-1]), 2)]


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("height", "width"), [(65, 33), (96, 128), (1, 1)])
def test_backbone_layer_by_layer(batch_norm: bool, height: int, width: int) -> None:
    torch.manual_seed(0)
    backbone = LightBackbone(width=0.5, batch_norm=batch_norm).double().eval()
    disturb(backbone)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        maps, expected = backbone(x), _literal_backbone(dict(backbone.state_dict()), x)
    for found, wanted, channels, stride in zip(maps, expected, backbone.channels, STRIDES, strict=True):
        assert found.shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert found.abs().max() > 0


def test_lite0_with_the_weights_of_timm(tmp_path: Path) -> None:
    """timm's model of the same name without TensorFlow's padding, cut to the same blocks, is the oracle."""
    timm = pytest.importorskip("timm")
    oracle = timm.create_model("efficientnet_lite0", features_only=True, out_indices=(1, 2, 3)).double().eval()
    disturb(oracle)
    torch.save(oracle.state_dict(), tmp_path / "lite0.pth")
    for module in oracle.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    for stage in (3, 4):
        oracle.blocks[stage] = oracle.blocks[stage][:2]
    network = _network("model=fanet_lite0").eval()
    before = {key: x.clone() for key, x in network.trunk.state_dict().items() if key.startswith(("stage32", "extra"))}
    load_backbone_weights(network, tmp_path / "lite0.pth")
    assert all(torch.equal(x, network.trunk.state_dict()[key]) for key, x in before.items())
    network.double()
    images = images_of(96, 130)
    with torch.no_grad():
        found = network.trunk(network.normaliser(images))
        wanted = oracle((images.double() - 127.5) / 127.5)
    assert [tuple(x.shape[1:]) for x in found[3:]] == [(128, 3, 5), (96, 2, 3), (96, 1, 2)]
    for a, b in zip(found, wanted, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert b.abs().max() > 1
    weights = {key: x for key, x in oracle.state_dict().items() if key != "blocks.4.1.bn3.running_var"}
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"stages\.4\.1\.project\.bn\.running_var is missing"):
        load_backbone_weights(network, tmp_path / "part.pth")


def test_depthwise_gradients_in_bf16_are_those_of_float32() -> None:
    """Some of them are computed in float32 under autocast, on CPUs; all of them arrive."""
    torch.manual_seed(0)
    for kernel, stride in ((3, 1), (3, 2), (5, 1), (5, 2)):
        layer = Depthwise(8, kernel, stride=stride).train()
        gradients = []
        for enabled in (False, True):
            x = torch.randn(2, 8, 17, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
            layer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                y = layer(x)
                (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
            assert x.grad is not None and layer.weight.grad is not None
            gradients.append((x.grad.clone(), layer.weight.grad.clone()))
        for a, b in zip(*gradients, strict=True):
            assert (a - b).norm() < 0.05 * b.norm() + 1e-3


@pytest.mark.parametrize("prior", [0.01, 0.3, None])
@pytest.mark.parametrize("model", ["fanet_light", "fanet", "s3fd_fpn"])
def test_every_anchor_starts_at_the_prior(model: str, prior: float | None) -> None:
    """On real activations, up to the spread of small weights; exactly where a map is zero. Without one: around 0.5."""
    torch.manual_seed(0)
    network = build_network(**_options(f"model={model}", f"model.face_prior={'null' if prior is None else prior}"))
    with torch.no_grad():
        hierarchies = network.train()(images_of(128, 160, batch=2), all_hierarchies=True).hierarchies
    assert len(hierarchies) == (1 if model == "s3fd_fpn" else 3)
    for scores in (heads.logits.softmax(dim=-1)[..., 1] for heads in hierarchies):
        if prior is None:
            assert 0.2 < scores.mean().item() < 0.7
        else:
            assert scores.mean().item() == pytest.approx(prior, rel=0.25)
            assert prior / 8 < scores.min().item() < scores.max().item() < min(1, prior * 4)
    heads: Any = network.heads if model == "s3fd_fpn" else network.heads["3"]  # type: ignore[index]
    logits, offsets = heads([torch.zeros(1, layer.in_channels, 2, 2) for layer in heads.children()])
    torch.testing.assert_close(logits.softmax(dim=-1)[..., 1], torch.full((1, 24), prior or 0.5), rtol=1e-5, atol=0)
    assert not offsets.any()


@pytest.mark.parametrize("value", ["0", "nan", "often"])
def test_a_prior_outside_zero_to_one(value: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.face_prior={value}"):
        _network(f"model.face_prior={value}")


@pytest.mark.parametrize(
    "values",
    [
        {"backbone": "light", "batch_norm": True, "block_batch_norm": True, "block_channels": [24, 40, 64]},
        {"backbone": "light", "batch_norm": True, "block_channels": 16, "context": False, "level": 2},
        {"backbone": "lite0", "block_batch_norm": True, "block_channels": [24, 24, 64]},
        {"backbone": "vgg", "batch_norm": True},
        {"backbone": "vgg", "batch_norm": False},
        {"name": "s3fd_fpn", "batch_norm": True},
    ],
)
def test_fused_network_gives_the_same(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_network(**values, width=0.125).train()
    disturb(network)
    before = {key: x.clone() for key, x in network.state_dict().items()}
    fused = fuse(network)
    assert network.training and not fused.training
    images = images_of(97, 130, batch=2)
    with torch.no_grad():
        wanted, found = network.eval()(images).hierarchies[-1], fused(images).hierarchies[-1]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items())
    assert inference_parameters(fused) == inference_parameters(network)
    again = fuse(fused).state_dict()
    assert all(torch.equal(x, again[key]) for key, x in fused.state_dict().items())


@pytest.mark.parametrize(
    ("given_channels", "per_map"), [(48, [48, 48, 48]), ([24, 40], [24, 40, 40]), ([24, 40, 64], [24, 40, 64])]
)
def test_block_channels_per_map(given_channels: Any, per_map: list[int]) -> None:
    network = build_network(backbone="light", batch_norm=True, block_channels=given_channels, deep_channels=16)
    second, third = (list(network.levels[level].values()) for level in "23")
    assert [(block.smooth.out_channels, block.deep.out_channels) for block in second] == [(n, 16) for n in per_map]
    expected = list(pairwise(per_map))
    assert [(block.shallow.in_channels, block.deep.in_channels) for block in third] == expected


def test_there_are_no_imagenet_weights_for_it_nor_for_a_network_of_ones_own() -> None:
    for network in (nn.Linear(1, 1), build_network(backbone="light", width=0.1)):
        with pytest.raises(InputError, match=r"weights=imagenet.* not for (NoneType|LightBackbone)"):
            load_backbone_weights(network, "imagenet")  # type: ignore[arg-type]
