"""``fanet app``: a local page to try a detector on images and videos."""

import importlib.util
import signal
import threading

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError

USAGE = """fanet app [checkpoint=FILE|FOLDER|NAME] [port=7860] [open_browser=true]

Opens a page on this computer: drop an image, several or a video, see the faces, move the threshold, save the result.
Nothing leaves the computer. What is dropped is deleted after keep_minutes, and all of it when the program ends."""


def main(argv: list[str]) -> int:
    """The command line: serves until Ctrl-C, or until it is asked to end."""
    config = cli.verb_config("app", argv, USAGE)
    if config is None:
        return 0
    from fanet_lightning.app.serving import LOCAL_HOSTS, free_port, serving
    from fanet_lightning.app.settings import Settings
    from fanet_lightning.cli.config import plain
    from fanet_lightning.detect.detector import open_detector
    from fanet_lightning.detect.protocols import build_protocol

    settings = Settings(plain(config))
    build_protocol(settings.protocol)
    # What fails fast, first: loading a model takes seconds.
    free_port(settings.host, settings.port)
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs the package gradio; pip install 'fanet-lightning[app]'")
    detector = open_detector(settings.checkpoint, settings.device, settings.precision)
    # Ctrl-C or a polite kill, so that the upload folder is removed before the process ends.
    ended = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: ended.set())
    with serving(detector, settings) as url:
        print(f"the page: {url} (model {settings.checkpoint}); Ctrl-C ends it", flush=True)
        if settings.host not in LOCAL_HOSTS:
            print(f"host={settings.host}: everybody who can reach this computer can open it; there is no password")
        print(f"files of at most {settings.max_upload_mb:g} MB, kept for {settings.keep_minutes:g} minutes", flush=True)
        ended.wait()
    print("ended; everything that was dropped on the page is deleted")
    return 0


if __name__ == "__main__":
    cli.run(main)
