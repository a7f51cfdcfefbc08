"""The networks: FANet and S3FD + FPN. They know neither data nor scores; images in, head outputs out."""

from fanet_lightning.net.blocks import fuse
from fanet_lightning.net.build import Network, build_network, flops, inference_parameters
from fanet_lightning.net.fanet import FANet
from fanet_lightning.net.normaliser import Normaliser
from fanet_lightning.net.s3fd_fpn import S3fdFpn
from fanet_lightning.net.weights import load_trunk_weights

__all__ = [
    "FANet",
    "Network",
    "Normaliser",
    "S3fdFpn",
    "build_network",
    "flops",
    "fuse",
    "inference_parameters",
    "load_trunk_weights",
]
