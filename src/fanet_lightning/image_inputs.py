"""What people hand over as images: files, PIL images, arrays, tensors → (H, W, 3) uint8 RGB."""

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor, uint8

from fanet_lightning.data.images import BACKGROUND, Image8, pillow_image_rgb, read_image_rgb
from fanet_lightning.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    OneImage = str | PathLike[str] | Image | npt.NDArray[np.uint8] | Tensor
else:
    OneImage = Any

# Of arrays and tensors. Files and PIL images say it themselves.
ChannelOrder = Literal["rgb", "bgr"]

# Of a path, too, which has only one of the slashes left. A Windows drive is one letter.
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")
_KINDS = "a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W)"


def check_channel_order(channel_order: str) -> None:
    """
    Raises:
        InputError: neither ``rgb`` nor ``bgr``.
    """
    if channel_order not in get_args(ChannelOrder):
        raise InputError(f"channel_order={channel_order!r}; take 'rgb', or 'bgr' for what OpenCV reads")


def is_one_image(images: object) -> bool:
    """Whether it stands for one image; else it is a batch array or tensor, or holds several.

    Raises:
        InputError: neither.
    """
    if isinstance(images, str | PathLike) or _is_pillow(images):
        return True
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    if isinstance(images, bytes | bytearray | dict) or not isinstance(images, Iterable):
        raise InputError(f"images is of type {type(images).__name__}; give {_KINDS}, or a list of such")
    return False


def image_rgb_of(image: OneImage, channel_order: ChannelOrder = "rgb") -> Image8:
    """(H, W, 3) uint8 RGB, C-contiguous, at least 1 × 1. An array that is so already is handed back, not copied.

    Args:
        image: a path or a ``PIL.Image.Image``, as :func:`fanet_lightning.data.images.read_image_rgb` takes it: every
            mode, upright, transparency over white. Or an array, (H, W) or (H, W, 1) grey, (H, W, 3), (H, W, 4) with
            alpha, which is laid over white. Or a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) on any device. Both
            uint8.
        channel_order: of arrays and tensors.

    Raises:
        UnreadableImage: a file or a PIL image that cannot be decoded; the message names it.
        InputError: anything else, an address (``https://…``), another type of numbers, a shape that is none of these,
            or no pixels.
    """
    if isinstance(image, str | PathLike):
        if _ADDRESS.match(str(image)):
            raise InputError(
                f"{image} is an address; python -m fanet_lightning.detect source=URL fetches one, in Python give the "
                "picture itself: a file, a PIL image or an array"
            )
        return read_image_rgb(Path(image))
    if _is_pillow(image):
        return pillow_image_rgb(image, str(getattr(image, "filename", "") or "the PIL image"))
    if isinstance(image, Tensor):
        return _colours_of(_pixels_of(image), channel_order)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise InputError(
                "an image in an array must be (H, W, 3) uint8, not "
                f"{image.shape} {image.dtype}; {_advice(image.dtype == np.uint8, image.dtype.kind == 'f', 'array')}"
            )
        return _colours_of(image, channel_order)
    raise InputError(f"an image is of type {type(image).__name__}; give {_KINDS}")


def _is_pillow(image: object) -> bool:
    from PIL import Image

    return isinstance(image, Image.Image)


def _pixels_of(image: Tensor) -> npt.NDArray[np.uint8]:
    """(C, H, W) or (H, W) → (H, W, C) or (H, W), a view where it lies on the CPU."""
    if image.dtype != uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3, 4)):
        raise InputError(
            "an image in a tensor must be (3, H, W) uint8, not "
            f"{tuple(image.shape)} {image.dtype}; {_advice(image.dtype == uint8, image.is_floating_point(), 'tensor')}"
        )
    pixels: npt.NDArray[np.uint8] = image.detach().cpu().numpy()
    return pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0)


def _advice(is_uint8: bool, is_float: bool, kind: str) -> str:
    if is_float:
        cast = "image.to(torch.uint8)" if kind == "tensor" else "image.astype(np.uint8)"
        return f"bring it to 0 … 255 and round it, then {cast}"
    if not is_uint8:
        return "bring it to 8 bits a channel"
    return "channels come last" if kind == "array" else "channels come first"


def _colours_of(pixels: npt.NDArray[np.uint8], channel_order: ChannelOrder) -> Image8:
    """(H, W) or (H, W, 1, 3 or 4) → (H, W, 3), C-contiguous."""
    if 0 in pixels.shape:
        raise InputError(f"an image of shape {pixels.shape} has no pixels; leave it out")
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return _converted(pixels.reshape(pixels.shape[:2]), cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 4:
        return _over_background(pixels if channel_order == "rgb" else _converted(pixels, cv2.COLOR_BGRA2RGBA))
    if channel_order == "bgr":
        return _converted(pixels, cv2.COLOR_BGR2RGB)
    if pixels.flags.c_contiguous:
        return pixels
    if pixels[..., ::-1].flags.c_contiguous:  # BGR that was turned round with [..., ::-1]
        return _converted(pixels[..., ::-1], cv2.COLOR_BGR2RGB)
    if pixels.transpose(2, 0, 1).flags.c_contiguous:  # of a tensor (3, H, W)
        return _image8(cv2.merge(list(pixels.transpose(2, 0, 1))))
    return np.ascontiguousarray(pixels)


def _converted(pixels: npt.NDArray[np.uint8], code: int) -> Image8:
    """By OpenCV, which takes a tenth of numpy's time."""
    return _image8(cv2.cvtColor(np.ascontiguousarray(pixels), code))


def _image8(pixels: npt.NDArray[Any]) -> Image8:
    return pixels.astype(np.uint8, copy=False)


def _over_background(pixels: npt.NDArray[np.uint8]) -> Image8:
    """(H, W, 4) RGBA → (H, W, 3) by Pillow, so that an array shows what its file does."""
    from PIL import Image

    over = Image.fromarray(np.ascontiguousarray(pixels))
    ground = Image.new("RGBA", over.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
    return np.ascontiguousarray(Image.alpha_composite(ground, over).convert("RGB"), dtype=np.uint8)
