"""Settings of the page: ``conf/app.yaml``, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.pretrained import DEFAULT_PROTOCOL, DEFAULT_THRESHOLD


def _default_protocol() -> Mapping[str, Any]:
    from fanet_lightning.detect.multiscale import protocol_settings

    return protocol_settings(DEFAULT_PROTOCOL)


@dataclass(frozen=True)
class Settings:
    """``conf/app.yaml``, checked; a megabyte is 2²⁰ bytes, as the browser's own message counts.

    Raises:
        InputError: a value of another type or outside its range.
    """

    checkpoint: str = "fanet_light"
    host: str = "127.0.0.1"
    port: int | None = 7860
    open_browser: bool = False
    device: str = "auto"
    precision: str = "auto"
    threshold: float = DEFAULT_THRESHOLD
    protocol: Mapping[str, Any] = field(default_factory=_default_protocol)
    max_upload_mb: float = 20
    max_pixels: int = 50_000_000
    max_images: int = 30
    max_video_seconds: float = 60
    keep_minutes: float = 30
    queue: int = 20

    def __post_init__(self) -> None:
        for key in ("checkpoint", "host"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key).strip():
                raise InputError(f"{key}={getattr(self, key)}: give a {'model' if key == 'checkpoint' else 'host'}")
        if self.port is not None:
            _check_number("port", self.port, 0, 65535, whole=True)
        if not isinstance(self.open_browser, bool):
            raise InputError(f"open_browser={self.open_browser} is neither true nor false")
        _check_number("threshold", self.threshold, 0, 1)
        for key in ("max_pixels", "max_images", "queue"):
            _check_number(key, getattr(self, key), 1, whole=True)
        for key in ("max_upload_mb", "max_video_seconds", "keep_minutes"):
            _check_number(key, getattr(self, key), 0.01)

    @property
    def model_name(self) -> str:
        """What the page and its JSON call the model: of a path the last part, where it lies concerns nobody."""
        path = Path(self.checkpoint)
        return path.name if path.exists() else self.checkpoint

    @property
    def max_bytes(self) -> int:
        """Of one uploaded file."""
        return int(self.max_upload_mb * 2**20)


def _check_number(key: str, value: object, least: float, most: float | None = None, *, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    span = f"of {least:g} or more" if most is None else f"from {least:g} to {most:g}"
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not least <= value or (most is not None and value > most):  # type: ignore[operator]
        raise InputError(f"{key}={value}: give {kind} {span}")
