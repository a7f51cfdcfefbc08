"""FANet and S3FD + FPN against the paper's equations written down literally, and the structure they promise."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import ConvReLU
from fanet_lightning.models.fanet import FANet, build_network
from fanet_lightning.models.s3fd_fpn import S3fdFpn
from fanet_lightning.models.vgg import MAP_NAMES
from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from tests.models.helpers import images as images_of

TINY = 0.01  # eight channels everywhere
LIGHT = {"backbone": "light", "batch_norm": True}


def _randomise(network: nn.Module) -> None:
    """Weights and biases large enough that a wrong wiring shows in the outputs."""
    for p in network.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=(2 / p[0].numel()) ** 0.5)
        else:
            nn.init.uniform_(p, 0.0, 0.5)


def _literal_backbone(w: dict[str, Tensor], x: Tensor, dilation: int) -> list[Tensor]:
    def conv(name: str, x: Tensor, **how: int) -> Tensor:
        return F.relu(F.conv2d(x, w[f"trunk.{name}.weight"], w[f"trunk.{name}.bias"], **how))  # type: ignore[arg-type]

    def unit(name: str, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * w[f"trunk.{name}_norm.scale"][:, None, None]

    stages = {}
    for stage, layers in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
        for layer in range(1, layers + 1):
            x = conv(f"conv{stage}_{layer}", x, padding=1)
        stages[stage] = x
        # A window cut off at the edge takes the maximum of what is there.
        x = F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=float("-inf")), 2)
    fc7 = conv("conv_fc7", conv("conv_fc6", x, padding=dilation, dilation=dilation))
    conv6_2 = conv("conv6_2", conv("conv6_1", fc7), stride=2, padding=1)
    conv7_2 = conv("conv7_2", conv("conv7_1", conv6_2), stride=2, padding=1)
    return [*(unit(f"conv{stage}_3", stages[stage]) for stage in (3, 4, 5)), fc7, conv6_2, conv7_2]


@pytest.mark.parametrize(("fc6", "dilation"), [("plain", 1), ("dilated", 6)])
@pytest.mark.parametrize(("height", "width"), [(65, 33), (96, 128)])
def test_backbone_layer_by_layer(fc6: str, dilation: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    network = FANet(level=1, width=TINY, fc6=fc6).double()
    trunk = network.trunk.state_dict()
    assert [float(trunk[f"{name}_norm.scale"][0]) for name in MAP_NAMES[:3]] == [10, 8, 5]
    _randomise(network)
    images = images_of(height, width)
    expected = _literal_backbone(network.state_dict(), network.normaliser(images), dilation)
    maps = network.hierarchies(images)[0]
    for ours, theirs in zip(maps, expected, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)
        assert ours.any()


ANY_SIZE = [build_network(width=TINY, level=2).eval(), build_network(**LIGHT, width=TINY).eval()]


@settings(max_examples=100)
@given(which=st.sampled_from([0, 1]), height=st.integers(1, 300), width=st.integers(1, 300))
def test_every_map_is_size_over_stride_rounded_up(which: int, height: int, width: int) -> None:
    with torch.no_grad():
        out = ANY_SIZE[which](images_of(height, width))
    assert out.map_shapes == [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    anchors = AnchorGrid(tuple(out.map_shapes)).count
    assert out.hierarchies[-1].logits.shape == (1, anchors, 2)
    assert out.hierarchies[-1].offsets.shape == (1, anchors, 4)


def _literal_map(network: FANet, level_one: list[Tensor], k: int, index: int, start: int, own: bool) -> Tensor:
    """Equation 2 as a recursion: map ``index`` (1 … 6) of level ``k``, nothing shared, everything computed again."""
    if k == 1:
        return level_one[index - 1]
    last_block = start - 1 if own else start - k + 1
    if index > last_block:
        return _literal_map(network, level_one, k - 1, index, start, own)
    block = network.get_submodule(f"levels.{k}.{MAP_NAMES[index - 1]}")
    shallow, deep = (_literal_map(network, level_one, k - 1, i, start, own) for i in (index, index + 1))
    return block(shallow, deep)  # type: ignore[no-any-return]


@pytest.mark.parametrize("own_blocks", [False, True])
@pytest.mark.parametrize(("start", "level"), [(2, 2), (4, 1), (4, 2), (4, 3), (4, 4), (5, 3), (6, 3), (6, 6)])
def test_hierarchies_equal_equation_2(start: int, level: int, own_blocks: bool) -> None:
    torch.manual_seed(start * 10 + level)
    network = FANet(level=level, width=TINY, agglomerate_from=MAP_NAMES[start - 1], own_blocks=own_blocks)
    _randomise(network)
    images = images_of(70, 130)
    with torch.no_grad():
        levels = network.hierarchies(images)
        assert len(levels) == level
        for k in range(1, level + 1):
            for index in range(1, 7):
                expected = _literal_map(network, levels[0], k, index, start, own_blocks)
                assert torch.equal(levels[k - 1][index - 1], expected), (k, index)


def test_shared_maps_are_the_same_tensor_and_everything_runs_once() -> None:
    network = FANet(width=TINY)
    calls: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    levels = network.hierarchies(images_of(64, 64))
    assert all(levels[0][i] is levels[1][i] is levels[2][i] for i in (3, 4, 5))
    assert levels[1][2] is levels[2][2]
    assert levels[0][2] is not levels[1][2]
    assert all(levels[1][i] is not levels[2][i] for i in (0, 1))
    expected = {name for name, m in network.named_modules() if isinstance(m, ConvReLU)}
    assert calls == dict.fromkeys(expected, 1)


def test_heads_map_by_map() -> None:
    """Numbered as AnchorGrid numbers them; of the shallowest map's backgrounds the highest counts."""
    torch.manual_seed(0)
    network = FANet(width=TINY).eval()
    _randomise(network)
    images = images_of(33, 70, batch=2)
    with torch.no_grad():
        maps, out = network.hierarchies(images)[-1], network(images)
    w, grid, head = network.state_dict(), AnchorGrid(tuple(out.map_shapes)), out.hierarchies[-1]
    for name, x, start in zip(MAP_NAMES, maps, grid.starts, strict=True):
        assert len(w[f"heads.3.{name}.bias"]) == (8 if name == "conv3_3" else 6)
        raw = F.conv2d(x, w[f"heads.3.{name}.weight"], w[f"heads.3.{name}.bias"], padding=1)
        raw = raw.permute(0, 2, 3, 1).flatten(1, 2)
        mine = slice(start, start + raw.shape[1])
        scores = torch.stack([raw[..., 4:-1].amax(dim=2), raw[..., -1]], dim=2)
        torch.testing.assert_close(head.offsets[:, mine], raw[..., :4], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head.logits[:, mine], scores, rtol=1e-4, atol=1e-5)


def test_which_heads_run() -> None:
    images = images_of(64, 96)
    with_hl = FANet(width=TINY, level=3, hl=True)
    runs: list[str] = []
    for k, heads in with_hl.heads.items():
        heads.register_forward_hook(lambda *_, k=k: runs.append(k))

    def ran(**how: Any) -> tuple[int, list[str]]:
        runs.clear()
        return len(with_hl(images, **how).hierarchies), list(runs)

    together = with_hl(images).hierarchies[-1].logits
    assert ran() == (3, ["1", "2", "3"])
    assert ran(all_hierarchies=False) == (1, ["3"])
    with_hl.eval()
    assert ran() == (1, ["3"]) and torch.equal(with_hl(images).hierarchies[0].logits, together)
    assert ran(all_hierarchies=True) == (3, ["1", "2", "3"])

    without = FANet(width=TINY, level=3, hl=False)
    assert list(without.heads) == ["3"]
    assert len(without(images).hierarchies) == len(without(images, all_hierarchies=True).hierarchies) == 1


@pytest.mark.parametrize("fpn_maps", [2, 4, 6])
def test_fpn_equals_its_description(fpn_maps: int) -> None:
    torch.manual_seed(fpn_maps)
    network = S3fdFpn(width=TINY, fpn_maps=fpn_maps).double()
    _randomise(network)
    images = images_of(70, 130)
    w = network.state_dict()
    level_one = network.trunk(network.normaliser(images))
    deeper: Tensor | None = None
    expected = list(level_one)
    for i in reversed(range(fpn_maps)):
        name = MAP_NAMES[i]
        x = F.conv2d(level_one[i], w[f"laterals.{name}.weight"], w[f"laterals.{name}.bias"])
        if deeper is not None:
            x = x + F.interpolate(deeper, x.shape[2:], mode="bilinear", align_corners=False)
        expected[i] = F.conv2d(x, w[f"smooths.{name}.weight"], w[f"smooths.{name}.bias"], padding=1)
        deeper = x
    for ours, theirs in zip(network.pyramid(images), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    assert bool((expected[0] < 0).any())  # no ReLU
    # One hierarchy, and none of the three switches.
    same = build_network("s3fd_fpn", level=99, context=False, hl=False, width=TINY)
    assert [len(same(images, all_hierarchies=every).hierarchies) for every in (None, True)] == [1, 1]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"level": 7}, "level=7: .*conv_fc7.*level=1 … 4"), ({"level": 0}, "level=0: "),
        ({"agglomerate_from": "conv3_3"}, r"model\.agglomerate_from=conv3_3: .*conv4_3, conv5_3, conv_fc7, conv6_2"),
        ({"fc6": "atrous"}, r"model\.fc6=atrous: "), ({"width": math.nan}, r"model\.width=nan"),
        ({"name": "retinaface"}, "model=retinaface: .*fanet or s3fd_fpn"),
        ({"name": "s3fd_fpn", "fpn_maps": 7}, r"model\.fpn_maps=7: .*2 … 6"),
        ({**LIGHT, "agglomerate_from": "conv_fc7"}, r"model\.agglomerate_from=conv_fc7: .*stride8, stride16, stride32"),
        ({**LIGHT, "deep_channels": 0}, r"model\.deep_channels=0"),
        ({**LIGHT, "block_channels": [24, "x"]}, r"model\.block_channels="),
    ],
)  # fmt: skip
def test_values_outside_the_choices(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_network(**values)
