"""Networks by name, and what they cost."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from fanet_lightning.errors import InputError
from fanet_lightning.net.fanet import FANet
from fanet_lightning.net.s3fd_fpn import S3fdFpn

Network = FANet | S3fdFpn


def build_network(
    name: str = "fanet",
    *,
    level: int = 3,
    context: bool = True,
    hl: bool = True,
    width: float = 1.0,
    batch_norm: bool = False,
    agglomerate_from: str | None = None,
    own_blocks: bool = False,
    fc6: str = "plain",
    backbone: str = "vgg",
    block_channels: int | Sequence[int] = 256,
    deep_channels: int = 32,
    block_batch_norm: bool = False,
    fpn_maps: int = 4,
    normaliser: str = "imagenet",
    face_prior: float | None = None,
) -> Network:
    """The network ``fanet`` or ``s3fd_fpn``, with fresh weights.

    ``s3fd_fpn`` stands on VGG16 and reads neither ``level``, ``context``, ``hl`` nor what describes trunk and A-blocks;
    ``fanet`` does not read ``fpn_maps``. The meaning of each: :class:`FANet`, :class:`S3fdFpn`. The light network is
    ``conf/model/fanet_light.yaml``.

    Raises:
        InputError: an unknown name, or a value that the network rejects.
    """
    if name == "fanet":
        return FANet(
            level=level,
            context=context,
            hl=hl,
            width=width,
            batch_norm=batch_norm,
            agglomerate_from=agglomerate_from,
            own_blocks=own_blocks,
            fc6=fc6,
            backbone=backbone,
            block_channels=block_channels,
            deep_channels=deep_channels,
            block_batch_norm=block_batch_norm,
            normaliser=normaliser,
            face_prior=face_prior,
        )
    if name == "s3fd_fpn":
        return S3fdFpn(
            fpn_maps=fpn_maps,
            width=width,
            batch_norm=batch_norm,
            fc6=fc6,
            normaliser=normaliser,
            face_prior=face_prior,
        )
    raise InputError(f"model={name}: choose fanet or s3fd_fpn")


def inference_parameters(network: Network) -> int:
    """Parameters that detection uses: weights, biases and L2Norm scales, the heads of the last hierarchy alone.

    Batch normalization is not counted, since it folds into the convolution before it: so many has
    :func:`fanet_lightning.net.blocks.fuse`'s copy, and so ``FaceDetector.network``.
    """
    unused = [*network.training_only(), *(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))]
    skip = {id(p) for module in unused for p in module.parameters()}
    return sum(p.numel() for p in network.parameters() if id(p) not in skip)


def flops(network: Network, height: int, width: int) -> int:
    """Floating-point operations of detecting in one image: two per multiply-add of the convolutions.

    Nothing is computed: shapes alone run through the network.
    """
    tensors = {name: x.to("meta") for name, x in (*network.named_parameters(), *network.named_buffers())}
    images = torch.empty((1, 3, height, width), dtype=torch.uint8, device="meta")
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(network, tensors, (images,))
    finally:
        network.train(was_training)
    return int(counter.get_total_flops())
