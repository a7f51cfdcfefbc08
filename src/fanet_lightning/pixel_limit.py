"""How many pixels the network is given at once: what memory is thought to hold, and less once it has run out."""

import torch
from torch import nn

from fanet_lightning.memory import SHARE, available_bytes, bytes_per_pixel, is_out_of_memory
from fanet_lightning.tiles import AUTO, SMALLEST_TILE_PIXELS, TilePixels


class PixelLimit:
    """The limit of one network on one device. What has run out of memory once is not tried again.

    Args:
        network: what a pixel costs is measured on it, the first time that it matters.
        device: where it runs.
        autocast_bf16: whether it runs in ``bf16-mixed``.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, autocast_bf16: bool = False) -> None:
        self._network = network
        self._device = device
        self._autocast_bf16 = autocast_bf16
        self._bytes_per_pixel: float | None = None
        self._refused_pixels: int | None = None
        self._together_pixels: int | None = None

    def of_tile(self, tile_pixels: TilePixels) -> int | None:
        """The pixels of a tile; None: the whole image, whatever its size."""
        if tile_pixels is None:
            return None
        limits = [tile_pixels] if isinstance(tile_pixels, int) else []
        if self._refused_pixels is not None:
            limits.append(self._refused_pixels // 2)
        elif tile_pixels == AUTO:
            limits.extend(self._pixels_in_memory())
        return max(SMALLEST_TILE_PIXELS, min(limits)) if limits else None

    def images_together(self, height: int, width: int, tile_pixels: TilePixels) -> int | None:
        """How many images of one size fit, at least 1; None: any number."""
        # An image that must stay whole still need not share memory with others.
        limits = [self.of_tile(AUTO if tile_pixels is None else tile_pixels), self._together_pixels]
        known = [limit // (height * width) for limit in limits if limit is not None]
        return max(1, min(known)) if known else None

    def refuse_tile(self, pixels: int) -> None:
        """A tile of so many pixels has run out of memory."""
        self._refused_pixels = pixels

    def refuse_together(self, pixels: int) -> None:
        """Several images of so many pixels in all have run out of memory; a single one of that size may fit."""
        self._together_pixels = pixels // 2

    def _pixels_in_memory(self) -> list[int]:
        """One number, or none where the memory is not known."""
        available = available_bytes(self._device)
        if available is None:
            return []
        if self._bytes_per_pixel is None:
            try:
                self._bytes_per_pixel = bytes_per_pixel(self._network, self._device, autocast_bf16=self._autocast_bf16)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return []  # the image itself will say so
        return [int(available * SHARE / self._bytes_per_pixel)] if self._bytes_per_pixel else []
