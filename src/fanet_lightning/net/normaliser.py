"""The one place where pixels become the network's input. It follows the weights and travels with them."""

import torch
from torch import Tensor, nn

from fanet_lightning.errors import InputError

# Per kind: order of the channels, mean and standard deviation in that order, in units of 0 … 255.
# imagenet: torchvision's weights. caffe: the means of the reduced-fc VGG16 that SSD and S3FD start from.
_KINDS: dict[str, tuple[list[int], list[float], list[float]]] = {
    "imagenet": ([0, 1, 2], [0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]),
    "caffe": ([2, 1, 0], [104.0, 117.0, 123.0], [1.0, 1.0, 1.0]),
}


class Normaliser(nn.Module):
    """RGB images (B, 3, H, W), uint8 or float in 0 … 255, to what the trunk was trained on.

    ``imagenet``: RGB, torchvision's mean and standard deviation. ``caffe``: BGR, mean 104, 117, 123, not divided.
    Order, mean and deviation are buffers: a state dict restores them, whatever kind the network was built with.
    """

    order: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, kind: str = "imagenet") -> None:
        super().__init__()
        if kind not in _KINDS:
            raise InputError(f"model.normaliser={kind}: choose {' or '.join(_KINDS)}")
        order, mean, std = _KINDS[kind]
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    @property
    def kind(self) -> str:
        """``imagenet`` or ``caffe``, read off the buffers."""
        return next(kind for kind, (order, _, _) in _KINDS.items() if order == self.order.tolist())

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images of shape {tuple(images.shape)}: (B, 3, H, W) RGB is expected")
        # Reordered while still uint8: a quarter of the bytes. In place on what index_select has made.
        return images.index_select(1, self.order).to(self.mean.dtype).sub_(self.mean).div_(self.std)
