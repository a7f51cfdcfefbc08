"""What the tests of the page drop on it."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image

# One face, 512 x 600 pixels; it comes with matplotlib.
PHOTO = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))


def write_video(path: Path, frames: int, size_wh: tuple[int, int] = (256, 304)) -> None:
    """The photograph for ``frames`` frames of 40 ms, without sound."""
    av = pytest.importorskip("av", reason="videos are an extra: pip install 'fanet-lightning[video]'")
    image = np.asarray(Image.open(PHOTO).convert("RGB").resize(size_wh))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size_wh, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
