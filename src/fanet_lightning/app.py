"""``python -m fanet_lightning.app``: a local page to try a detector on pictures and films."""

import errno
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning import cli
from fanet_lightning.errors import InputError, first_line
from fanet_lightning.pretrained import DEFAULT_PROTOCOL, DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from fanet_lightning.detector import FaceDetector

USAGE = """python -m fanet_lightning.app [checkpoint=FILE|FOLDER|NAME] [port=7860] [open_browser=true]

Opens a page on this computer: drop a picture, several or a film, see the faces, move the threshold, save the result.
Nothing leaves the computer. What is dropped is deleted after keep_minutes, and all of it when the program ends."""

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
# Read by Gradio when it is imported: it would otherwise report its use, and ask for newer versions.
QUIET_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
UPLOAD_FOLDER_VARIABLE = "GRADIO_TEMP_DIR"


def _default_protocol() -> Mapping[str, Any]:
    from fanet_lightning.protocols import protocol_settings

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
    from fanet_lightning.app_page import build_page
    from fanet_lightning.app_style import CSS, theme

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


def main(argv: list[str]) -> int:
    """The command line: serves until Ctrl-C, or until it is asked to end."""
    config = cli.verb_config("app", argv, USAGE)
    if config is None:
        return 0
    from fanet_lightning.config import plain
    from fanet_lightning.multiscale import build_protocol

    settings = Settings(**plain(config))
    build_protocol(settings.protocol)
    # What fails fast, first: loading a model takes seconds.
    free_port(settings.host, settings.port)
    import_gradio()
    from fanet_lightning.open_detector import open_detector

    detector = open_detector(settings.checkpoint, settings.device, settings.precision)
    with _ends_on_signals() as ended, serving(detector, settings) as url:
        print(f"the page: {url} (model {settings.checkpoint}); Ctrl-C ends it", flush=True)
        if settings.host not in LOCAL_HOSTS:
            print(f"host={settings.host}: everybody who can reach this computer can open it; there is no password")
        print(f"files of at most {settings.max_upload_mb:g} MB, deleted after {settings.keep_minutes:g} minutes",
              flush=True)  # fmt: skip
        ended.wait()
    print("ended; everything that was dropped on the page is deleted")
    return 0


@contextmanager
def _ends_on_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a polite kill sets, so that the upload folder is removed before the process ends."""
    ended = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there may signals be caught
        yield ended
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda *_: ended.set()) for kind in kinds]
    try:
        yield ended
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


if __name__ == "__main__":
    cli.run(main)
