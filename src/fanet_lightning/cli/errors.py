"""InputError, and the words and the check of whole numbers that messages share."""

from typing import Any


class InputError(ValueError):
    """Something that the person at the command line can fix.

    The message is a single line that names the file, line and value at fault and says what to do.
    The verbs print it after ``error:``, as they do an OSError, and leave with exit code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, else its class: for messages of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2,018 files``: for nouns that take an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_text(size_bytes: float) -> str:
    """1.47 GB, with decimal prefixes as the pages that offer the files have them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def is_whole(value: Any, least: float) -> bool:
    """Whether a value is a whole number of at least so much; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
