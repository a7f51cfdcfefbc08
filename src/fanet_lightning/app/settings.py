"""The keys of ``conf/app.yaml``, checked: limits, and where the page's controls stand at first."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fanet_lightning.cli.errors import check_values, is_whole

# The ends of the threshold's slider. Faces below the lowest are not looked for: most of them are none.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.1, 0.99
_LIMITS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("a whole number from 0 to 65535", lambda v: is_whole(v, 0) and v <= 65535, "port"),
    ("a number from 0.1 to 0.99", lambda v: LOWEST_THRESHOLD <= v <= HIGHEST_THRESHOLD, "threshold"),
    ("a whole number of at least 1", lambda v: is_whole(v, 1), "max_pixels max_images queue"),
    ("a number of at least 0.01", lambda v: v >= 0.01, "max_upload_mb max_video_seconds keep_minutes"),
)


class Settings(SimpleNamespace):
    """Each key by its name; InputError: a value outside its range.

    ``model_name``: of a path only the last part; ``max_bytes`` of one file: a megabyte is 2²⁰, as browsers count.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_values(options, *_LIMITS)
        path = Path(options["checkpoint"])
        name = path.name if path.exists() else options["checkpoint"]
        super().__init__(**options, model_name=name, max_bytes=int(options["max_upload_mb"] * 2**20))
