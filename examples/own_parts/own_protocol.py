"""A test protocol: the size at which the network looks at an image."""

from dataclasses import dataclass

from fanet_lightning.data.transforms import TestScale


@dataclass(frozen=True)
class SamePixels(TestScale):
    """Every image has ``pixels`` pixels, so that each costs the same. Several passes: derive from ``MultiScale``."""

    pixels: int = 300_000

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        scale = (self.pixels / (height * width)) ** 0.5
        return max(1, round(height * scale)), max(1, round(width * scale))
