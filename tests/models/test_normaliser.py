"""Pixels to network input, by hand."""

import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.blocks import Normaliser


def _pixel(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.tensor([200, 100, 50], dtype=dtype).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_imagenet(dtype: torch.dtype) -> None:
    out = Normaliser("imagenet")(_pixel(dtype)).flatten().tolist()
    expected = [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.406) / 0.225]
    assert out == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_caffe_is_blue_first_and_not_divided(dtype: torch.dtype) -> None:
    out = Normaliser("caffe")(_pixel(dtype))
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == [50 - 104.0, 100 - 117.0, 200 - 123.0]


def test_a_state_dict_brings_its_kind_along() -> None:
    normaliser = Normaliser("imagenet")
    normaliser.load_state_dict(Normaliser("caffe").state_dict())
    assert normaliser.kind == "caffe"
    assert torch.equal(normaliser(_pixel()), Normaliser("caffe")(_pixel()))


def test_the_callers_images_are_left_alone() -> None:
    images = _pixel(torch.float32)
    Normaliser("caffe")(images)
    assert torch.equal(images, _pixel(torch.float32))


def test_wrong_kind_and_wrong_shape() -> None:
    with pytest.raises(InputError, match=r"model.normaliser=rgb.*caffe"):
        Normaliser("rgb")
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\)"):
        Normaliser()(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
