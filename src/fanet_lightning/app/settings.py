"""``conf/app.yaml``, checked: limits, and where the page's controls stand at first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect.protocols import protocol_settings
from fanet_lightning.models.pretrained import DEFAULT_PROTOCOL, DEFAULT_THRESHOLD

# The ends of the threshold's slider. Faces below the lowest are not looked for: most of them are none.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.1, 0.99
_ANY = float("inf")
# Least and greatest value; whole numbers where the least is one.
_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535), "threshold": (LOWEST_THRESHOLD, HIGHEST_THRESHOLD), "max_pixels": (1, _ANY),
    "max_images": (1, _ANY), "queue": (1, _ANY), "max_upload_mb": (0.01, _ANY), "max_video_seconds": (0.01, _ANY),
    "keep_minutes": (0.01, _ANY),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The keys of ``conf/app.yaml``; a megabyte is 2²⁰ bytes, as the browser's own message counts.

    Raises:
        InputError: a value outside its range.
    """

    checkpoint: str = "fanet_light"
    host: str = "127.0.0.1"
    port: int | None = 7860
    open_browser: bool = False
    device: str = "auto"
    precision: str = "auto"
    threshold: float = DEFAULT_THRESHOLD
    protocol: Mapping[str, Any] = field(default_factory=lambda: protocol_settings(DEFAULT_PROTOCOL))
    max_upload_mb: float = 100
    max_pixels: int = 50_000_000
    max_images: int = 30
    max_video_seconds: float = 60
    keep_minutes: float = 30
    queue: int = 20

    def __post_init__(self) -> None:
        for key, (least, most) in _RANGES.items():
            value = getattr(self, key)
            whole = isinstance(least, int)
            if value is not None and (not least <= value <= most or (whole and not isinstance(value, int))):
                raise InputError(f"{key}={value}: give a {'whole ' if whole else ''}number from {least:g} to {most:g}")

    @property
    def model_name(self) -> str:
        """What the page and its JSON call the model: of a path only the last part."""
        path = Path(self.checkpoint)
        return path.name if path.exists() else self.checkpoint

    @property
    def max_bytes(self) -> int:
        """Of one uploaded file."""
        return int(self.max_upload_mb * 2**20)
