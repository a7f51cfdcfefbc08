"""What the tests of the page drop on it."""

from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

from fanet_lightning.app.settings import Settings
from fanet_lightning.cli.config import compose_config, plain
from tests.detect.video_files import write_images

# One face, 512 x 600 pixels; it comes with matplotlib.
PHOTO = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))


def settings_of(*words: str) -> Settings:
    return Settings(plain(compose_config("app", words)))


def write_video(path: Path, frames: int, size_wh: tuple[int, int] = (256, 304)) -> None:
    """The photograph for ``frames`` frames of 40 ms, without sound."""
    images = [np.asarray(Image.open(PHOTO).convert("RGB").resize(size_wh))] * frames
    write_images(path, images, rate=25)
