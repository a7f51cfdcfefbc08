"""Feature extractors of timm as backbones: the rules with a stand-in for timm, and timm itself where installed."""

import copy
import math
import sys
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
from fanet_lightning.models.fanet import build_network, flops
from fanet_lightning.models.timm_backbone import _subsample_before_strided_1x1
from fanet_lightning.models.weights import load_backbone_weights
from fanet_lightning.ops.anchors import STRIDES
from fanet_lightning.train.module import frozen_layers
from tests.models.helpers import images as images_of

timm = pytest.importorskip("timm")


class Extractor(nn.Module):
    """A convolution over the image per stride, for multiples of 32 alone; ``cut``: columns that are left out."""

    def __init__(self, out_indices: tuple[int, ...] | None, strides: tuple[int, ...], cut: int = 0) -> None:
        super().__init__()
        self.strides = [strides[i] for i in out_indices or range(len(strides))]
        self.widths, self.cut = [7 + stride.bit_length() for stride in self.strides], cut
        self.layers = nn.ModuleList(
            nn.Conv2d(3, c, s, stride=s) for s, c in zip(self.strides, self.widths, strict=True)
        )
        self.feature_info = SimpleNamespace(reduction=lambda: self.strides, channels=lambda: self.widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        assert x.shape[-2] % 32 == x.shape[-1] % 32 == 0, f"{tuple(x.shape)} is no multiple of 32"
        return [layer(x)[..., self.cut :] for layer in self.layers]


MODELS: dict[str, dict[str, Any]] = {
    "plain": {"strides": (2, 4, 8, 16, 32)}, "repeated": {"strides": (4, 4, 8, 16, 16, 32)},
    "no_stride4": {"strides": (8, 16, 32)}, "liar": {"strides": (4, 8, 16, 32), "cut": 1}, "headless": {},
}  # fmt: skip
MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 1.0)


def create(name: str, *, features_only: bool, pretrained: bool, out_indices: Any = None) -> Extractor:
    if pretrained and name != "plain":
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")
    model = Extractor(out_indices, **MODELS[name])
    for p in model.parameters() if pretrained else ():
        nn.init.constant_(p, 0.5)
    return model


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "is_model", MODELS.__contains__)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: SimpleNamespace(mean=MEAN, std=STD))
    monkeypatch.setattr(timm, "create_model", create)


def _network(name: str, **values: Any) -> Any:
    return build_network(backbone=name, block_channels=16, deep_channels=8, **values)


@pytest.mark.parametrize("name", ["plain", "repeated"])
def test_maps_are_the_extractors_at_any_size(stand_in: None, name: str) -> None:
    """Against a convolution over the image padded with zeros; of two maps of one stride the deeper is taken."""
    backbone = _network(name).trunk.eval()
    assert backbone.channels == (10, 11, 12, 13, 256, 256)
    assert backbone.map_names == STRIDE_NAMES
    assert backbone._indices == {"plain": (1, 2, 3, 4), "repeated": (1, 2, 4, 5)}[name]

    @settings(max_examples=60)
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


def test_network_trains_and_is_fused(stand_in: None) -> None:
    network = _network("plain", block_batch_norm=True)
    network.train()
    output = network(torch.zeros(2, 3, 256, 256, dtype=torch.uint8))
    assert len(output.hierarchies) == 3
    torch.autograd.backward(sum(h.logits.square().sum() + h.offsets.square().sum() for h in output.hierarchies))
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert flops(network, 64, 64) > 0
    with torch.no_grad():
        fused, whole = (each(images_of(70, 90)).hierarchies[-1].logits for each in (fuse(network), network.eval()))
    torch.testing.assert_close(fused, whole, rtol=1e-4, atol=1e-4)


def test_width_scales_what_is_ours(stand_in: None) -> None:
    half = _network("plain", width=0.5)
    assert half.trunk.channels == (10, 11, 12, 13, 128, 128)
    assert half.levels["2"]["stride4"].smooth.out_channels == 8


@pytest.mark.parametrize(
    ("name", "says"),
    [("hf-hub:plain", "timm"), ("no_stride4", "4 is not in "), ("liar", "(10, 24, 39)"), ("headless", "strides")],
)
def test_models_that_will_not_do(stand_in: None, name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        _network(name)
    assert str(caught.value).startswith(f"model.backbone={name}") and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"model\.backbone=resnet18.*pip install"):
        _network("resnet18")


def test_trained_weights_bring_their_normaliser(stand_in: None) -> None:
    network = _network("plain")
    extra = network.trunk.extra.map64.weight.clone()
    load_backbone_weights(network, "imagenet")
    assert all(bool((p == 0.5).all()) for p in network.trunk.body.parameters())
    assert torch.equal(network.trunk.extra.map64.weight, extra)
    assert (network.normaliser.mean.flatten() / 255).tolist() == pytest.approx(MEAN)
    assert (network.normaliser.std.flatten() / 255).tolist() == pytest.approx(STD)
    # A checkpoint restores them, whatever the network was built with.
    other = _network("plain")
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.normaliser.mean, network.normaliser.mean)


def test_weights_that_cannot_be_had_leave_the_network_alone(stand_in: None, tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match=r"weights=imagenet.*repeated.*connect"):
        load_backbone_weights(_network("repeated"), "imagenet")
    assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18.a1_in1k", (64, 128, 256, 512)), ("mobilenetv3_small_100", (16, 24, 48, 576))]
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


@pytest.mark.parametrize(("until", "frozen"), [(None, 4), ("layers", 4), ("layers.1", 2)])
def test_layers_that_can_be_frozen(stand_in: None, until: str | None, frozen: int) -> None:
    network = _network("plain")
    backbone = network.trunk
    assert list(backbone.trained_layers()) == [f"layers.{number}" for number in range(4)]
    assert frozen_layers(network, until) == list(backbone.body.layers)[:frozen]
    with pytest.raises(InputError, match=r"freeze_until=layer: .*layers\.0"):
        frozen_layers(network, "layer")


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_file_of_a_whole_model_of_timm(name: str, tmp_path: Path) -> None:
    """The extractor has other names than the model: ``stages_0`` for ``stages.0``."""
    model = timm.create_model(name).eval()
    torch.save({"state_dict": {f"module.{key}": x for key, x in model.state_dict().items()}}, tmp_path / "model.pth")
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
    plain = nn.Sequential(nn.Conv2d(channels, 8, 1, stride=stride)).double()
    images = torch.randn(2, channels, *size, dtype=torch.float64)
    body = copy.deepcopy(plain)
    _subsample_before_strided_1x1(body)
    assert body[0].stride == (1, 1)
    for network in (body, plain):
        network(images).square().sum().backward()
    torch.testing.assert_close(copy.deepcopy(body)(images), plain(images))
    torch.testing.assert_close(body[0].weight.grad, plain[0].weight.grad)


def test_other_convolutions_keep_their_stride() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, stride=2, padding=1))
    _subsample_before_strided_1x1(body)
    assert [layer.stride for layer in body] == [(2, 2), (1, 1), (2, 2)]
