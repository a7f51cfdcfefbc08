"""The networks under everything a run may do to them: autocast, channels_last, compilation, gradients, checkpoints."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fanet_lightning.models.fanet import Network, build_network
from fanet_lightning.ops.structures import NetworkOutput
from tests.models.helpers import images as images_of

NETWORKS: list[dict[str, Any]] = [
    {"name": "fanet"},
    {"name": "fanet", "own_blocks": True, "agglomerate_from": "conv7_2", "batch_norm": True},
    {"backbone": "light", "batch_norm": True},
    {"name": "s3fd_fpn"},
]

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def _network(values: dict[str, Any], width: float = 0.05) -> Network:
    torch.manual_seed(0)
    return build_network(width=width, **values)


def _images(height: int = 100, width: int = 130, batch: int = 2) -> Tensor:
    return images_of(height, width, batch, seed=1)


def _close(first: NetworkOutput, second: NetworkOutput, tolerance: float) -> None:
    assert first.map_shapes == second.map_shapes
    assert len(first.hierarchies) == len(second.hierarchies) > 0
    for a, b in zip(first.hierarchies, second.hierarchies, strict=True):
        for ours, theirs in zip(a, b, strict=True):
            assert ours.dtype == theirs.dtype == torch.float32
            assert ours.shape == theirs.shape
            scale = float(theirs.abs().max())
            assert scale > 0
            assert float((ours - theirs).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("values", NETWORKS)
def test_bfloat16_autocast_stays_near_float32(values: dict[str, Any]) -> None:
    network = _network(values).eval()
    with torch.no_grad():
        exact = network(_images(), all_hierarchies=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(_images(), all_hierarchies=True)
    _close(rough, exact, 0.05)
    assert not torch.equal(rough.hierarchies[-1].logits, exact.hierarchies[-1].logits)


@pytest.mark.parametrize("values", NETWORKS)
def test_channels_last_gives_the_same(values: dict[str, Any]) -> None:
    network = _network(values).eval()
    with torch.no_grad():
        expected = network(_images(), all_hierarchies=True)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for images in (_images(), _images().float(), _images().to(memory_format=torch.channels_last)):
            _close(network(images, all_hierarchies=True), expected, 1e-4)


def test_maps_stay_channels_last() -> None:
    """A lost memory format costs a copy of every map."""
    network = build_network(width=0.05).to(memory_format=torch.channels_last)
    levels = network.hierarchies(_images())  # type: ignore[operator]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for maps in levels for x in maps)


@pytest.mark.parametrize(
    ("values", "hierarchies"), [*zip(NETWORKS, (3, 3, 3, 1), strict=True), ({"hl": False}, 1), ({"level": 1}, 1)]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_reach_every_parameter(values: dict[str, Any], hierarchies: int, autocast: bool) -> None:
    network = _network(values).train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = network(_images(130, 130))
    assert len(out.hierarchies) == hierarchies
    sum(((h.logits**2).sum() + (h.offsets**2).sum() for h in out.hierarchies), torch.zeros(())).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        # A bias before batch normalization has none, but for rounding.
        before_norm = values.get("batch_norm") and name.startswith("trunk.") and ".bn." not in name
        assert p.grad.any() or (before_norm and name.endswith("bias")), name


def test_gradients_of_one_hierarchy_stay_in_it() -> None:
    """Level 2's loss trains what level 2 is made of: not the A-blocks of level 3, nor the other heads."""
    network = _network({}).train()
    network(_images()).hierarchies[1].logits.sum().backward()
    without = {name.split(".conv")[0] for name, p in network.named_parameters() if p.grad is None}
    assert without == {"levels.3", "heads.1", "heads.3"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "training"), [("fanet", True), ("s3fd_fpn", False)])
def test_compiles_to_one_graph_for_all_sizes(name: str, training: bool) -> None:
    network = _network({"name": name}, width=0.01).train(training)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for height, width in ((300, 400), (257, 511), (640, 384)):
            images = _images(height, width)
            _close(compiled(images), network(images), 1e-4)
    # torch 2.11 guards on whether a side is odd and compiles once for each of the three sizes; 2.14 does not.
    assert counter.frame_count <= (1 if TORCH >= (2, 14) else 3)
