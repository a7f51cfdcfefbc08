"""JSON files of people: values that are checked one by one, and errors that name file, entry and value."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fanet_lightning.errors import InputError, first_line
from fanet_lightning.files import decoded_text
from fanet_lightning.scoring.coco_arrays import FileId


def read_json(path: Path, hint: str) -> Any:
    """The content of a file.

    Raises:
        InputError: no such file, a folder, or not JSON; ends with ``hint``.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; {hint}")
    try:
        return json.loads(decoded_text(path.read_bytes()))
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}; {hint}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {hint}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); {hint}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8; a number of thousands of digits; brackets without end
        raise InputError(f"{path}: not JSON ({first_line(error)}); {hint}") from error


def file_id(path: Path, where: str, entry: Mapping[str, Any], name: str) -> FileId:
    """The number, or text, that a COCO file calls something by; 7.0 is 7.

    Raises:
        InputError: missing, or anything else.
    """
    value = entry.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{path}: {where}: {name} {shown(value)} is no id; write a whole number")
    return value


def box_xywh(where: str, value: Any) -> list[float]:
    """Four finite numbers, no side negative.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, list) or len(value) != 4:
        raise InputError(f"{where}: bbox {shown(value)} is not a list of four numbers; write [x, y, width, height]")
    box = [finite(f"{where}: bbox", number) for number in value]
    for side, number in (("width", box[2]), ("height", box[3])):
        if number < 0:
            raise InputError(f"{where}: bbox {side} {number:g} is negative; boxes are x y width height, not corners")
    return box


def finite(where: str, value: Any) -> float:
    """A finite number.

    Raises:
        InputError: text (a comma decimal ends up as such), null, a truth value, NaN or an infinite number.
    """
    if isinstance(value, str):
        raise InputError(f"{where} {shown(value)} is text; write a number, 1.5, without quotes or comma")
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise InputError(f"{where} {shown(value)} is not a finite number; correct or remove the entry")


def sort_key(number: FileId) -> tuple[bool, FileId]:
    """Numbers by size, then texts."""
    return isinstance(number, str), number


def shown(value: Any) -> str:
    """A value as a message shows it, cut to a line."""
    return f"'{value[:80]}'" if isinstance(value, str) else str(value)[:80]


def kind_of(value: Any) -> str:
    """What JSON calls a value of this kind, with its article."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "a truth value"}
    return names.get(type(value), "a number")
