"""Cameras of this computer, through OpenCV: the FFmpeg inside PyAV's wheels is built without camera drivers."""

import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from fanet_lightning.errors import InputError
from fanet_lightning.media.video_files import TimedImage

__all__ = ["CameraSource"]

USUAL_RATE = 30.0  # frames per second, where the driver does not say
FAILED_READS = 30  # frames that may be missing one after another before the camera counts as gone


class CameraSource:
    """A camera by its number, with the attributes of ``FilmSource``; it has no end, no length and no sound."""

    is_live = True
    frame_count: int | None = None
    duration_seconds: float | None = None
    start_seconds = 0.0
    time_base = Fraction(1, 90_000)
    sample_aspect_ratio = Fraction(1)
    is_turned = False

    def __init__(self, index: int) -> None:
        import cv2

        self.name = f"camera {index}"
        self.broken: str | None = None
        self.frames_skipped = 0
        self.left_out: dict[str, int] = {}
        # Asked first, because OpenCV's own complaint goes straight to the screen.
        device = Path(f"/dev/video{index}")
        if index < 0 or (sys.platform == "linux" and not device.exists()):
            found = sorted(str(path) for path in Path("/dev").glob("video*")) if sys.platform == "linux" else []
            known = f"there are {', '.join(found)}" if found else "no camera is connected, or this user may not see it"
            raise InputError(f"{self.name}: {device if sys.platform == 'linux' else index} is not there; {known}")
        self._capture = cv2.VideoCapture(index)
        if not self._capture.isOpened():
            self._capture.release()
            raise InputError(f"{self.name}: cannot be opened; another program may be using it, or it is no camera")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = float(rate) if 1 <= rate <= 1000 else USUAL_RATE

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()

    def images(self) -> Iterator[TimedImage]:
        """Frames with the time since the first one, for as long as the camera gives any."""
        failed = 0
        began: float | None = None
        while failed < FAILED_READS:
            read, image_bgr = self._capture.read()
            if not read or image_bgr is None:
                failed += 1
                time.sleep(0.01)
                continue
            self.frames_skipped += failed if began is not None else 0
            failed = 0
            now = time.monotonic()
            began = now if began is None else began
            yield TimedImage(np.ascontiguousarray(image_bgr[..., ::-1], dtype=np.uint8), now - began)
        self.broken = f"{self.name}: gives no more pictures"
