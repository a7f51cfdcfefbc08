"""ConvReLU, L2Norm and the A-block against hand-computed values and slow, literal versions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import ABlock, ConvReLU, L2Norm, Normaliser, upsample_to


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [*((dtype, 6e4, 10 / math.sqrt(512)) for dtype in (torch.float16, torch.bfloat16)), (torch.float32, 0.0, 0.0)],
)
def test_l2norm_of_large_and_dead_cells(dtype: torch.dtype, value: float, expected: float) -> None:
    norm = L2Norm(512, 10)
    x = torch.full((1, 512, 2, 2), value, dtype=dtype, requires_grad=True)  # 6e4² alone is beyond float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    assert y.dtype == dtype and torch.allclose(y.float(), torch.tensor(expected), rtol=1e-2)
    y.float().sum().backward()
    for tensor in (x, norm.scale):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_upsampling_by_two_by_hand() -> None:
    up = upsample_to(torch.tensor([[[[0.0, 4.0]]]]), torch.zeros(1, 1, 1, 4))
    assert up.flatten().tolist() == [0.0, 1.0, 3.0, 4.0]  # a quarter and three quarters: half-pixel centers


def _literal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Correlation with zero padding, tap by tap, then ReLU."""
    height, width = weight.shape[2:]
    padded = F.pad(x, (width // 2, width // 2, height // 2, height // 2))
    out = bias[None, :, None, None].expand(x.shape[0], -1, *x.shape[2:]).clone()
    for i in range(height):
        for j in range(width):
            window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out += torch.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
    return out.clamp(min=0)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 5), (1, 1)])
def test_a_block_equals_its_description(context: bool, height: int, width: int) -> None:
    torch.manual_seed(1)
    block = ABlock(12, 20, context=context, width=0.125).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.2)
    w = block.state_dict()
    shallow = torch.randn(2, 12, height, width, dtype=torch.double)
    deep = torch.randn(2, 20, -(-height // 2), -(-width // 2), dtype=torch.double)

    x = _literal_conv(shallow, w["shallow.weight"], w["shallow.bias"])
    if context:
        branches = [f"context.branch_{kernel}" for kernel in ("1x1", "1x3", "3x1", "3x3")]
        x = torch.cat([_literal_conv(x, w[f"{b}.weight"], w[f"{b}.bias"]) for b in branches], 1)
    up = F.interpolate(_literal_conv(deep, w["deep.weight"], w["deep.bias"]), (height, width), mode="bilinear")
    expected = _literal_conv(torch.cat([x, up], 1), w["smooth.weight"], w["smooth.bias"])
    assert torch.allclose(block(shallow, deep), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("height", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_strided_convolution_of_one_column(height: int, dtype: torch.dtype) -> None:
    """As the plain convolution has it in float64; memory that others have left behind does not show in the gradient."""
    torch.manual_seed(0)
    layer = ConvReLU(8, 16, stride=2).to(memory_format=torch.channels_last)
    x = torch.randn(4, 8, height, 1)
    plain = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1).double()
    plain.load_state_dict(layer.state_dict())
    expected = plain(x.double()).relu()
    expected.square().sum().backward()
    for _ in range(20):
        # Freed at once, so that what comes next is likely to be given this memory.
        for size in (500, 1000, 3000, 10_000):
            torch.full((size,), float("nan"))
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = layer(x)
        found.float().square().sum().backward()
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.3}
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, **tolerance)
        assert layer.weight.grad is not None and plain.weight.grad is not None
        torch.testing.assert_close(layer.weight.grad.double(), plain.weight.grad, **tolerance)
    layer.eval()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalizers_by_hand(dtype: torch.dtype) -> None:
    images = torch.tensor([200, 100, 50], dtype=dtype).reshape(1, 3, 1, 1)
    expected = [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.406) / 0.225]
    assert Normaliser("imagenet")(images).flatten().tolist() == pytest.approx(expected, abs=1e-5)
    out = Normaliser("caffe")(images)  # blue first and not divided
    assert out.dtype == torch.float32 and out.flatten().tolist() == [50 - 104.0, 100 - 117.0, 200 - 123.0]
    assert images.flatten().tolist() == [200, 100, 50]
    restored = Normaliser("imagenet")
    restored.load_state_dict(Normaliser("caffe").state_dict())
    assert restored.kind == "caffe" and torch.equal(restored(images), out)
    with pytest.raises(InputError, match=r"model.normaliser=rgb.*caffe"):
        Normaliser("rgb")
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\)"):
        Normaliser()(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
