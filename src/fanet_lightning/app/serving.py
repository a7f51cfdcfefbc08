"""The local page: settings, port, upload folder, serving."""

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.app.settings import Settings
from fanet_lightning.cli.errors import InputError, first_line

if TYPE_CHECKING:
    from fanet_lightning.detect.detector import FaceDetector


LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
# Read by Gradio when it is imported: it would otherwise report its use, and ask for newer versions.
QUIET_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
UPLOAD_FOLDER_VARIABLE = "GRADIO_TEMP_DIR"


def import_gradio() -> Any:
    """Gradio, with its reports switched off.

    Raises:
        InputError: it is not installed.
    """
    os.environ.update(QUIET_ENVIRONMENT)
    try:
        import gradio
    except ImportError as error:
        raise InputError("the page needs the package gradio; pip install 'fanet-lightning[app]'") from error
    return gradio


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
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"host={host} is not known; take 127.0.0.1 (this computer) or 0.0.0.0 (all)") from error
    except OSError as error:
        if error.errno == errno.EACCES:
            raise InputError(f"port={port}: not allowed ({error.strerror}); take one from 1024 on") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"host={host} is no address of this computer; take 127.0.0.1 or 0.0.0.0") from error
        raise InputError(
            f"port={port} on {host} is taken ({first_line(error)}); give another one, or port=0 for a free one"
        ) from error


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder of this process alone for everything that the page is given or makes; gone afterwards."""
    before = os.environ.get(UPLOAD_FOLDER_VARIABLE)
    folder = Path(tempfile.mkdtemp(prefix="fanet_app_"))
    os.environ[UPLOAD_FOLDER_VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[UPLOAD_FOLDER_VARIABLE]
        else:
            os.environ[UPLOAD_FOLDER_VARIABLE] = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serving(detector: "FaceDetector", settings: Settings) -> Iterator[str]:
    """Serve the page as long as the block lasts.

    Yields:
        Its address.

    Raises:
        InputError: gradio is missing, or the port cannot be had.
    """
    gradio = import_gradio()
    from fanet_lightning.app.page import build_page
    from fanet_lightning.app.style import CSS, theme

    port = free_port(settings.host, settings.port)
    _reach_itself_directly(settings.host)
    with upload_folder() as folder:
        page = build_page(detector, settings, folder)
        page.queue(max_size=settings.queue, default_concurrency_limit=1)
        try:
            page.launch(
                server_name=settings.host, server_port=port, share=False, quiet=True, show_error=True,
                prevent_thread_lock=True, max_file_size=settings.max_bytes, footer_links=[], run_history=False,
                ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False, theme=theme(gradio), css=CSS,
                favicon_path=None, inbrowser=settings.open_browser, state_session_capacity=100,
            )  # fmt: skip
        except OSError as error:  # somebody took the port in between
            raise InputError(f"port={port} cannot be opened ({first_line(error)}); give another one") from error
        try:
            yield str(page.local_url)
        finally:
            page.close(verbose=False)


def _reach_itself_directly(host: str) -> None:
    # Gradio asks its own page for a sign of life when it starts; a proxy of the environment would be asked instead.
    for variable in ("no_proxy", "NO_PROXY"):
        listed = [name for name in os.environ.get(variable, "").split(",") if name.strip()]
        os.environ[variable] = ",".join([*listed, *(h for h in (*LOCAL_HOSTS, host) if h not in listed)])
