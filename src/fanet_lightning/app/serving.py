"""The page's server: port, upload folder, environment."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np

from fanet_lightning.app.settings import Settings
from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.detect.detector import FaceDetector

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
# Read by Gradio: it would otherwise report its use, and ask for newer versions.
QUIET_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
UPLOAD_FOLDER_VARIABLE = "GRADIO_TEMP_DIR"


def free_port(host: str, port: int | None) -> int:
    """``port`` if it can be had on ``host``, or one that is free for None and 0; InputError: it cannot."""
    address = host.strip("[]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.create_server((address, port or 0), family=family) as probe:
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"port={port} on host={host} cannot be opened ({first_line(error)}); give port=0 for a free one, or "
            "host=127.0.0.1 (this computer) or 0.0.0.0 (all)"
        ) from error


@contextmanager
def serving(detector: FaceDetector, settings: Settings) -> Iterator[str]:
    """Serve the page as long as the block lasts, and give its address; InputError: the port cannot be had.

    Everything that the page is given or makes is in a folder of this process alone, which is gone afterwards.
    """
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

        # What the first image would wait for: Gradio's look at matplotlib, and the network's first pass.
        matplotlib.get_backend()
        detector.detect(np.zeros((480, 640, 3), np.uint8), "original")
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
