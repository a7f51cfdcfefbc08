"""InputError, and what messages share: words, packages that are missing, the checks of values."""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any


class InputError(ValueError):
    """Something that the person at the command line can fix.

    The message is a single line that names the file, line and value at fault and says what to do.
    The verbs print it after ``error:``, as they do an OSError, and leave with exit code 2.
    """


def check(fits: object, message: str) -> None:
    """InputError with this message where something does not fit."""
    if not fits:
        raise InputError(message)


def import_extra(package: str, what: str, extra: str) -> Any:
    """The package's module; InputError: it is not installed, ``what`` needs it, and the extra of ours that has it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{what}: needs the package {package}; pip install 'fanet-lightning[{extra}]'") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, else its class: for messages of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2,018 files``, ``3 boxes``."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('x') else 's'}"


def size_text(size_bytes: float) -> str:
    """1.47 GB, with decimal prefixes as the pages that offer the files have them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, least: float) -> bool:
    """Whether a value is a whole number of at least so much; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def as_given(value: Any) -> Any:
    """As it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def check_values(settings: Mapping[str, Any], *limits: tuple[str, Callable[[Any], bool], str]) -> None:
    """InputError: a value, or one of a list, is not null and not as its limit says.

    A limit is what to give, in words; whether a value fits; and the keys, with blanks between, that it holds for.
    """
    for allowed, fits, keys in limits:
        for key in keys.split():
            value = settings.get(key)
            try:
                fine = value is None or all(map(fits, value if isinstance(value, list) else [value]))
            except TypeError:  # of another type
                fine = False
            if not fine:
                raise InputError(f"{key}={as_given(value)}: give {allowed}")
