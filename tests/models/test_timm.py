"""Feature extractors of timm as backbones: the rules with a stand-in for timm, and timm itself where installed."""

import copy
import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import STRIDE_NAMES, fuse
from fanet_lightning.models.fanet import build_network, flops, inference_parameters
from fanet_lightning.models.timm_backbone import _subsample_before_strided_1x1
from fanet_lightning.models.weights import load_backbone_weights
from fanet_lightning.ops.anchors import STRIDES
from fanet_lightning.train.module import frozen_layers
from tests.models.helpers import images as images_of

real_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")


class Extractor(nn.Module):
    """Average pools of the image, one map per stride, that refuse whatever is no multiple of 32."""

    def __init__(
        self, strides: tuple[int, ...], channels: tuple[int, ...], out_indices: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        chosen = range(len(strides)) if out_indices is None else out_indices
        self.strides, self.widths = [strides[i] for i in chosen], [channels[i] for i in chosen]
        self.layers = nn.ModuleList(
            nn.Conv2d(3, c, s, stride=s) for s, c in zip(self.strides, self.widths, strict=True)
        )
        self.feature_info = SimpleNamespace(reduction=lambda: self.strides, channels=lambda: self.widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        assert x.shape[-2] % 32 == x.shape[-1] % 32 == 0, f"{tuple(x.shape)} is no multiple of 32"
        return [layer(x) for layer in self.layers]


class Liar(Extractor):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [m[..., 1:] for m in super().forward(x)]


MODELS: dict[str, tuple[type[Extractor], tuple[int, ...], tuple[int, ...]]] = {
    "plain": (Extractor, (2, 4, 8, 16, 32), (7, 8, 9, 10, 11)),
    "repeated": (Extractor, (4, 4, 8, 16, 16, 32), (5, 8, 9, 1, 10, 11)),
    "no_stride4": (Extractor, (8, 16, 32), (8, 9, 10)),
    "liar": (Liar, (4, 8, 16, 32), (8, 9, 10, 11)),
    "headless": (Extractor, (), ()),
}
MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 1.0)


class FakeTimm:
    """As much of timm as is used."""

    online = True

    def is_model(self, name: str) -> bool:
        return name.split(".")[0] in MODELS

    def get_pretrained_cfg(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(mean=MEAN, std=STD)

    def create_model(
        self, name: str, *, features_only: bool, pretrained: bool, out_indices: tuple[int, ...] | None = None
    ) -> Extractor:
        assert features_only
        if name == "headless":
            raise RuntimeError("features_only not implemented for Headless models.\nmore text")
        kind, strides, channels = MODELS[name]
        if pretrained and not (self.online and name == "plain"):
            raise OSError("We couldn't connect to the hub.\nCheck your connection.")
        model = kind(strides, channels, out_indices)
        if pretrained:
            for p in model.parameters():
                nn.init.constant_(p, 0.5)
        return model


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTimm]:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)  # type: ignore[arg-type]
    yield fake


def _network(name: str, **values: Any) -> Any:
    return build_network(backbone=name, block_channels=16, deep_channels=8, **values)


@pytest.mark.parametrize("name", ["plain", "repeated"])
def test_maps_are_the_extractors_at_any_size(timm: FakeTimm, name: str) -> None:
    """Against a convolution over the image padded with zeros; of two maps of one stride the deeper is taken."""
    backbone = _network(name).trunk.eval()
    assert backbone.channels == (8, 9, 10, 11, 256, 256)
    assert backbone.map_names == STRIDE_NAMES
    assert len(backbone.body.layers) == 4

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 200), st.integers(1, 200))
    def check(height: int, width: int) -> None:
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))
        with torch.no_grad():
            maps = backbone(x)
        padded = torch.zeros(2, 3, math.ceil(height / 32) * 32, math.ceil(width / 32) * 32)
        padded[:, :, :height, :width] = x
        for found, layer, stride in zip(maps[:4], backbone.body.layers, (4, 8, 16, 32), strict=True):
            rows, columns = math.ceil(height / stride), math.ceil(width / stride)
            assert found.shape == (2, layer.out_channels, rows, columns)
            torch.testing.assert_close(found, layer(padded)[:, :, :rows, :columns])
        shapes = [tuple(m.shape[-2:]) for m in maps]
        assert shapes == [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]

    check()


def test_network_trains_and_is_counted(timm: FakeTimm) -> None:
    network = _network("plain", block_batch_norm=True)
    network.train()
    output = network(torch.zeros(2, 3, 256, 256, dtype=torch.uint8))
    assert len(output.hierarchies) == 3
    torch.autograd.backward(sum(h.logits.square().sum() + h.offsets.square().sum() for h in output.hierarchies))
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    whole = sum(p.numel() for p in network.parameters())
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    lower_heads = sum(p.numel() for k in ("1", "2") for p in network.heads[k].parameters())
    assert inference_parameters(network) == whole - norms - lower_heads
    assert flops(network, 64, 64) > 0
    network.eval()
    images = images_of(70, 90)
    with torch.no_grad():
        torch.testing.assert_close(
            fuse(network)(images).hierarchies[-1].logits, network(images).hierarchies[-1].logits, rtol=1e-4, atol=1e-4
        )


def test_network_can_be_built_without_memory(timm: FakeTimm) -> None:
    """``train`` checks a configuration that way."""
    with torch.device("meta"):
        network = _network("plain")
    assert {p.device.type for p in network.parameters()} == {"meta"}
    half = _network("plain", width=0.5)  # scales what is ours
    assert half.trunk.channels == (8, 9, 10, 11, 128, 128) and half.trunk.width == 0.5
    assert half.levels["2"]["stride4"].smooth.out_channels == 8


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf-hub:plain", "neither vgg, light nor a model of timm"),
        ("no_stride4", "4 is not in "),
        ("liar", "(8, 24, 39)"),
        ("headless", "features_only not implemented for Headless models."),
    ],
)
def test_models_that_will_not_do(timm: FakeTimm, name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        _network(name)
    assert str(caught.value).startswith(f"model.backbone={name}") and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"model\.backbone=resnet18.*pip install"):
        _network("resnet18")


def test_trained_weights_bring_their_normaliser(timm: FakeTimm) -> None:
    network = _network("plain")
    extra = network.trunk.extra.map64.weight.clone()
    assert load_backbone_weights(network, "imagenet") == "imagenet"
    assert all(bool((p == 0.5).all()) for p in network.trunk.body.parameters())
    assert torch.equal(network.trunk.extra.map64.weight, extra)
    assert (network.normaliser.mean.flatten() / 255).tolist() == pytest.approx(MEAN)
    assert (network.normaliser.std.flatten() / 255).tolist() == pytest.approx(STD)
    # A checkpoint restores them, whatever the network was built with.
    other = _network("plain")
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.normaliser.mean, network.normaliser.mean)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_under_timms_names(timm: FakeTimm, tmp_path: Path, prefix: str) -> None:
    network, other = _network("plain"), _network("plain")
    found = {f"{prefix}{key}": x.half() for key, x in other.trunk.body.state_dict().items()}
    torch.save({"state_dict": found | {f"{prefix}classifier.weight": torch.zeros(3, 3)}}, tmp_path / "weights.pth")
    assert load_backbone_weights(network, tmp_path / "weights.pth") == "imagenet"
    for key, x in network.trunk.body.state_dict().items():
        assert torch.equal(x, found[f"{prefix}{key}"].float())
    assert (network.normaliser.mean.flatten() / 255).tolist() == pytest.approx(MEAN)


def test_weights_that_cannot_be_had_leave_the_network_alone(timm: FakeTimm, tmp_path: Path) -> None:
    network = _network("plain")
    before = {key: x.clone() for key, x in network.state_dict().items()}
    own = network.trunk.body.state_dict()
    files: dict[str, dict[str, Tensor]] = {
        "a part": {key: x for key, x in own.items() if "layers.3" not in key},
        "NaN": {**own, "layers.2.bias": own["layers.2.bias"] * torch.nan},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=rf"weights=.*{name}: "):
            load_backbone_weights(network, tmp_path / name)
    timm.online = False
    with pytest.raises(InputError, match=r"weights=imagenet.*plain.*connect"):
        load_backbone_weights(network, "imagenet")
    assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items())


@real_timm
@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18.a1_in1k", (64, 128, 256, 512)), ("mobilenetv3_small_100", (16, 24, 48, 576))],
)
def test_models_of_timm(name: str, channels: tuple[int, ...]) -> None:
    network = _network(name, block_batch_norm=True).eval()
    assert network.trunk.channels == (*channels, 256, 256)
    for height, width in ((97, 161), (33, 64), (1, 1)):
        with torch.no_grad():
            output = network(images_of(height, width))
        assert output.map_shapes == [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
        assert output.hierarchies[-1].logits.isfinite().all()
    assert flops(network, 64, 64) > 0


@real_timm
@pytest.mark.parametrize(("name", "message"), [("vit_tiny_patch16_224", "4 is not in"), ("resnet18.nope", "nope")])
def test_models_of_timm_that_will_not_do(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _network(name)


@pytest.mark.parametrize(("until", "frozen"), [(None, 4), ("layers", 4), ("layers.1", 2)])
def test_layers_that_can_be_frozen(timm: FakeTimm, until: str | None, frozen: int) -> None:
    network = _network("plain")
    backbone = network.trunk
    assert list(backbone.trained_layers()) == [f"layers.{number}" for number in range(4)]
    assert frozen_layers(network, until) == list(backbone.body.layers)[:frozen]
    with pytest.raises(InputError, match=r"freeze_until=layer: .*layers\.0"):
        frozen_layers(network, "layer")


@real_timm
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_file_of_a_whole_model_of_timm(name: str, tmp_path: Path) -> None:
    """The extractor has other names than the model: ``stages_0`` for ``stages.0``."""
    model = importlib.import_module("timm").create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    network = _network(name).eval()
    load_backbone_weights(network, tmp_path / "model.pth")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.forward_intermediates(images, intermediates_only=True)
        for found in network.trunk.body(images):
            assert any(found.shape == x.shape and torch.equal(found, x) for x in wanted)


@pytest.mark.parametrize("stride", [2, (1, 3)])
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("size", [(1, 1), (7, 10)])
def test_strided_1x1_convolutions_give_the_same_in_another_way(
    stride: Any, channels: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 8, 1, stride=stride).double()
    images = torch.randn(2, channels, *size, dtype=torch.float64)
    wanted = layer(images)
    wanted.square().sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    layer.weight.grad = None
    body = nn.Sequential(layer)
    _subsample_before_strided_1x1(body)
    assert layer.stride == (1, 1)
    found = copy.deepcopy(body)(images)
    torch.testing.assert_close(found, wanted)
    body(images).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_other_convolutions_keep_their_stride() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, stride=2, padding=1))
    _subsample_before_strided_1x1(body)
    assert [layer.stride for layer in body] == [(2, 2), (1, 1), (2, 2)]
