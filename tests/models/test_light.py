"""The light network: what it costs, its backbone layer by layer, batch normalization folded in."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanet_lightning.cli.config import compose_config, plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import STRIDE_NAMES, ConvReLU, fuse
from fanet_lightning.models.fanet import build_network, flops, inference_parameters
from fanet_lightning.models.light import LightBackbone
from fanet_lightning.models.weights import load_backbone_weights
from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from tests.models.helpers import images as images_of


def _options(*overrides: str) -> dict[str, Any]:
    """``conf/model/fanet_light.yaml`` as a run has it."""
    return dict(plain(compose_config("train", ["model=fanet_light", *overrides]))["model"])


def _network(*overrides: str) -> Any:
    return build_network(**_options(*overrides))


def _disturb(network: nn.Module, seed: int = 0) -> None:
    """Statistics, scales and biases as after a training: none at its neutral value, so that each one shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)


def _conv(inputs: int, outputs: int, taps: int) -> int:
    return inputs * outputs * taps + outputs


def _stage(inputs: int, outputs: int, blocks: int) -> int:
    half = outputs // 2
    merged = 2 * _conv(outputs, half, 1) + blocks * 2 * _conv(half, half, 9) + _conv(outputs, outputs, 1)
    return _conv(inputs, outputs, 9) + merged


def _block(shallow: int, deep: int, n: int) -> int:
    context = sum(_conv(n, n // 4, taps) for taps in (1, 3, 3, 9))
    return _conv(shallow, n, 1) + context + _conv(deep, 8, 1) + _conv(n + 8, n, 9)


def test_parameters_by_hand() -> None:
    first = _conv(16, 32, 9) + 2 * _conv(32, 32, 9)
    backbone = _conv(3, 16, 9) + first + _stage(32, 64, 1) + _stage(64, 128, 1) + _stage(128, 160, 1)
    extra = _conv(160, 64, 1) + _conv(64, 96, 9) + _conv(96, 64, 1) + _conv(64, 96, 9)
    level2 = _block(32, 64, 32) + _block(64, 128, 32) + _block(128, 160, 64)
    level3 = _block(32, 32, 32) + _block(32, 64, 32)
    heads = _conv(32, 8, 9) + sum(_conv(c, 6, 9) for c in (32, 64, 160, 96, 96))
    total = backbone + extra + level2 + level3 + heads
    assert inference_parameters(_network()) == total == 892_654


def test_flops_stay_within_four_giga_and_width_scales_every_channel() -> None:
    """Two per multiply-add, at 640 × 480."""
    half, whole = (_network(f"model.width={width}") for width in (0.5, 1.0))
    assert flops(whole, 480, 640) == 3_941_975_040 <= 4e9
    assert whole.trunk.channels == (32, 64, 128, 160, 96, 96)
    assert half.trunk.channels == (16, 32, 64, 80, 48, 48)
    assert [half.heads["3"].get_submodule(name).in_channels for name in STRIDE_NAMES] == [16, 16, 32, 80, 48, 48]


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
    _disturb(backbone)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        maps, expected = backbone(x), _literal_backbone(dict(backbone.state_dict()), x)
    for found, wanted, channels, stride in zip(maps, expected, backbone.channels, STRIDES, strict=True):
        assert found.shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert found.abs().max() > 0


def test_anchors_see_less_far_than_those_of_vgg() -> None:
    """By hand 375 pixels to each side; tiles overlap by VGG's 410 and more, so they hold for this backbone too."""
    network = _network("model.width=0.25").double().eval()
    _disturb(network)
    images = images_of(32, 1280).double()
    changed = images.clone()
    changed[..., 800:] = 255 - changed[..., 800:]
    with torch.no_grad():
        before, after = network(images), network(changed)
    differs = (before.hierarchies[-1].logits != after.hierarchies[-1].logits).any(dim=2)[0]
    anchors = AnchorGrid(tuple(before.map_shapes)).boxes_cxcywh()
    assert bool(differs.any())
    assert float(anchors[differs, 0].min()) >= 800 - 375


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


def test_a_prior_leaves_the_offsets_and_every_other_layer_as_they_are() -> None:
    states = []
    for override in ("null", "0.01"):
        torch.manual_seed(0)
        states.append(_network("hl=false", f"model.face_prior={override}").state_dict())
    without, with_prior = states
    differing = {key for key, x in without.items() if not torch.equal(x, with_prior[key])}
    # Heads after the first one draw other offsets, since more was drawn before them; nothing outside the heads does.
    assert differing == {key for key in without if key.startswith("heads.")}
    first = "heads.3.stride4.weight"
    assert torch.equal(without[first][:4], with_prior[first][:4])
    assert with_prior["heads.3.stride4.bias"].tolist() == pytest.approx([0] * 7 + [math.log(0.01 / 0.99)])


@pytest.mark.parametrize("value", ["0", "nan", "often"])
def test_a_prior_outside_zero_to_one(value: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.face_prior={value}"):
        _network(f"model.face_prior={value}")


@pytest.mark.parametrize(
    "values",
    [
        {"backbone": "light", "batch_norm": True, "block_batch_norm": True, "block_channels": [24, 40, 64]},
        {"backbone": "light", "batch_norm": True, "block_channels": 16, "context": False, "level": 2},
        {"backbone": "vgg", "batch_norm": True},
        {"backbone": "vgg", "batch_norm": False},
        {"name": "s3fd_fpn", "batch_norm": True},
    ],
)
def test_fused_network_gives_the_same(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_network(**values, width=0.125).train()
    _disturb(network)
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


def test_fused_layer_by_hand() -> None:
    """Weight 3, bias 1, mean 4, variance 0.25 - eps, scale 2, shift -5: 2 (3 x + 1 - 4) / 0.5 - 5 = 12 x - 17."""
    layer = ConvReLU(1, 1, 1, batch_norm=True).eval()
    assert layer.bn is not None and layer.bn.running_mean is not None and layer.bn.running_var is not None
    with torch.no_grad():
        for parameter, value in ((layer.weight, 3.0), (layer.bn.weight, 2.0), (layer.bn.bias, -5.0)):
            parameter.fill_(value)
        assert layer.bias is not None
        layer.bias.fill_(1.0)
        layer.bn.running_mean.fill_(4.0)
        layer.bn.running_var.fill_(0.25 - layer.bn.eps)
    fused = fuse(layer)
    assert fused.weight.item() == pytest.approx(12)
    assert fused.bias is not None
    assert fused.bias.item() == pytest.approx(-17)
    assert (
        fused(torch.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(7) == layer(torch.full((1, 1, 1, 1), 2.0)).item()
    )


@pytest.mark.parametrize(
    ("given_channels", "per_map"),
    [(48, [48, 48, 48]), ([24, 40], [24, 40, 40]), ([24, 40, 64], [24, 40, 64])],
)
def test_block_channels_per_map(given_channels: Any, per_map: list[int]) -> None:
    network = build_network(backbone="light", batch_norm=True, block_channels=given_channels, deep_channels=16)
    blocks = network.levels["2"]
    assert [blocks[name].smooth.out_channels for name in STRIDE_NAMES[:3]] == per_map
    assert [blocks[name].shallow.in_channels for name in STRIDE_NAMES[:3]] == [32, 64, 128]
    assert {blocks[name].deep.out_channels for name in STRIDE_NAMES[:3]} == {16}
    third = network.levels["3"]
    assert [third[name].shallow.in_channels for name in STRIDE_NAMES[:2]] == per_map[:2]
    assert [third[name].deep.in_channels for name in STRIDE_NAMES[:2]] == per_map[1:]


def test_there_are_no_imagenet_weights_for_it_nor_for_a_network_of_ones_own() -> None:
    with pytest.raises(InputError, match=r"weights=imagenet.*NoneType"):
        load_backbone_weights(nn.Linear(1, 1), "imagenet")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="weights=imagenet"):
        load_backbone_weights(build_network(backbone="light", width=0.1), "imagenet")
