"""The local page: settings, port, upload folder, serving."""

import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.multiscale import protocol_settings
from fanet_lightning.models.pretrained import DEFAULT_PROTOCOL, DEFAULT_THRESHOLD

_ANY = float("inf")
# Least and greatest value; whole numbers where the least is one.
_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535), "threshold": (0.0, 1.0), "max_pixels": (1, _ANY), "max_images": (1, _ANY), "queue": (1, _ANY),
    "max_upload_mb": (0.01, _ANY), "max_video_seconds": (0.01, _ANY), "keep_minutes": (0.01, _ANY),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """``conf/app.yaml``, checked; a megabyte is 2²⁰ bytes, as the browser's own message counts.

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
    max_upload_mb: float = 20
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
                span = f"of {least:g} or more" if most == _ANY else f"from {least:g} to {most:g}"
                raise InputError(f"{key}={value}: give a {'whole ' if whole else ''}number {span}")

    @property
    def model_name(self) -> str:
        """What the page and its JSON call the model: of a path only the last part."""
        path = Path(self.checkpoint)
        return path.name if path.exists() else self.checkpoint

    @property
    def max_bytes(self) -> int:
        """Of one uploaded file."""
        return int(self.max_upload_mb * 2**20)


LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
# Read by Gradio: it would otherwise report its use, and ask for newer versions.
QUIET_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
UPLOAD_FOLDER_VARIABLE = "GRADIO_TEMP_DIR"


def require_gradio() -> None:
    """
    Raises:
        InputError: Gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs the package gradio; pip install 'fanet-lightning[app]'")


def free_port(host: str, port: int | None) -> int:
    """``port`` if it can be had on ``host``, or one that is free for None and 0.

    Raises:
        InputError: it is taken, needs more rights, or ``host`` is no address of this computer.
    """
    address = host.strip("[]")
    try:
        family = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: a port whose last connections are only winding down is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port or 0))
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"port={port} on host={host} cannot be opened ({first_line(error)}); give port=0 for a free one, or "
            "host=127.0.0.1 (this computer) or 0.0.0.0 (all)"
        ) from error


@contextmanager
def serving(detector: FaceDetector, settings: Settings) -> Iterator[str]:
    """Serve the page as long as the block lasts.

    Everything that the page is given or makes is in a folder of this process alone, which is gone afterwards.

    Yields:
        Its address.

    Raises:
        InputError: gradio is missing, or the port cannot be had.
    """
    require_gradio()
    port = free_port(settings.host, settings.port)
    folder = Path(tempfile.mkdtemp(prefix="fanet_app_"))
    variables = {UPLOAD_FOLDER_VARIABLE: str(folder), **QUIET_ENVIRONMENT}
    # Gradio asks its own page for a sign of life when it starts; a proxy of the environment would be asked instead.
    for name in ("no_proxy", "NO_PROXY"):
        listed = [*os.environ.get(name, "").split(","), *LOCAL_HOSTS, settings.host]
        variables[name] = ",".join(dict.fromkeys(host for host in listed if host.strip()))
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        # Gradio reads some of these variables when it is imported.
        from fanet_lightning.app.page import build_page, launch_options

        page = build_page(detector, settings, folder)
        page.queue(max_size=settings.queue, default_concurrency_limit=1)
        page.launch(server_name=settings.host, server_port=port, **launch_options(settings))
        try:
            yield str(page.local_url)
        finally:
            page.close(verbose=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)
