"""Whether there is room, asked before the work and not found out in the middle of it."""

import shutil
from pathlib import Path

from fanet_lightning.errors import InputError


def check_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse to begin what does not fit.

    Args:
        folder: where it goes; it need not be there yet.
        purpose: what takes the room, for the message.

    Raises:
        InputError: fewer than ``needed_bytes`` are free.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(
            f"{purpose} takes {size_text(needed_bytes)}, {existing} has {size_text(free)} free; "
            "make room, choose another --root or fewer --parts"
        )


def size_text(size_bytes: float) -> str:
    """1.47 GB, with decimal prefixes as the pages that offer the files have them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"
