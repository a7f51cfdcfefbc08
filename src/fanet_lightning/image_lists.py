"""Lists of image names, the part of a split that is trained, tested or scored on."""

import difflib
from collections.abc import Collection
from pathlib import Path

from fanet_lightning.errors import InputError


def read_image_list(path: Path, *, example: str = "event/name") -> list[tuple[int, str]]:
    """A list of images: (line number from 1, image id) in the file's order.

    One ``event/name`` a line, with or without ``.jpg``; blank lines and what follows ``#`` are skipped. ``example``
    is what messages call such a line, where images have other names.

    Raises:
        InputError: no such file, no name in it, or a name given twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(
            f"cannot read the list of images {path}: {reason}; give a text file with one {example} a line"
        ) from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        image_id = ("" if line.lstrip().startswith("#") else line.partition(" #")[0]).strip().removesuffix(".jpg")
        if image_id in names:
            raise InputError(
                f"{path}:{number}: '{image_id}' stands in line {names[image_id]} already; keep one of them"
            )
        if image_id:
            names[image_id] = number
    if not names:
        raise InputError(f"the list of images {path} names no image; write one {example} a line")
    return [(number, image_id) for image_id, number in names.items()]


def nearest_name(written: str, names: Collection[str]) -> str | None:
    """The name that was probably meant: the same one in another folder or letter case, else the most similar one."""
    last = written.rpartition("/")[2].casefold()
    same = sorted(name for name in names if name.rpartition("/")[2].casefold() == last)
    near = same or difflib.get_close_matches(written, sorted(names), n=1)
    return near[0] if near else None
