"""What ``detect`` has done, on disk: one line per input, appended when its results are written.

A process may be killed at any byte: a last line that is not whole is dropped, and that input is done again. The first
line holds the settings that results depend on; results of other settings are removed before new ones are written.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from fanet_lightning.errors import InputError
from fanet_lightning.media.inputs import Item

JOURNAL_FILE = "done.jsonl"
VERSION = 1


class Journal:
    """A context manager: inside, entries are added and stay when the process dies.

    ``entries`` what is done, by the input's name. ``refused`` which settings differ from those of the results that lie
    there. Those of inputs that are to be done now are removed as the block is entered: faces that shall be redacted
    must not stay beside the redacted ones.

    Args:
        out: the folder of the results.
        settings: what results depend on, as plain values.
        names: of the inputs of this run; what other inputs left in the folder stays there.
        resume: False begins anew whatever lies there.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], names: Collection[str], *, resume: bool = True) -> None:
        self.path = out / JOURNAL_FILE
        self.entries: dict[str, dict[str, Any]] = {}
        self.refused: list[str] = []
        self._out = out
        self._names = set(names)
        # As it comes back from a file: tuples become lists.
        self._settings = json.loads(json.dumps({"version": VERSION, **settings}))
        self._stale: list[dict[str, Any]] = []
        self._whole_bytes = 0
        self._file: int | None = None
        self._read(resume)

    def _read(self, resume: bool) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}); remove it") from error
        lines = []
        for line in content.splitlines(keepends=True):
            value = _parsed(line)
            if value is None:
                break
            lines.append((value, len(line)))
        if not lines:
            return
        found = lines[0][0]
        keys = dict.fromkeys([*found, *self._settings])
        self.refused = [key for key in keys if found.get(key) != self._settings.get(key)]
        entries = [value for value, _ in lines[1:] if isinstance(value.get("name"), str)]
        if self.refused or not resume:
            self._stale = [entry for entry in entries if entry["name"] in self._names]
            return
        self.entries = {entry["name"]: entry for entry in entries}
        self._whole_bytes = sum(length for _, length in lines)

    def is_done(self, item: Item, further: Mapping[str, Any] | None = None) -> bool:
        """Whether the results of this very input lie there: the file has not changed, and they were not removed.

        Args:
            item: the input.
            further: values that its entry must have besides.
        """
        entry = self.entries.get(item.name)
        if entry is None or entry.get("state") != state_of(item) or entry.get("location") != place_of(item):
            return False
        if any(entry.get(key) != value for key, value in (further or {}).items()):
            return False
        return all((self._out / name).is_file() for name in entry.get("files", ()))

    def forget(self, item: Item) -> None:
        """Remove what an input, in an earlier state or of another place, left: it is about to be done again."""
        entry = self.entries.pop(item.name, None)
        if entry is not None:
            remove_results(self._out, entry)

    def add(self, item: Item, entry: Mapping[str, Any]) -> None:
        """Append what an input gave; once this returns, killing the process does not lose it.

        Raises:
            InputError: the disk is full.
        """
        whole = {"name": item.name, "location": place_of(item), "state": state_of(item), **entry}
        self._append(whole)
        self.entries[item.name] = whole

    def _append(self, value: Mapping[str, Any]) -> None:
        if self._file is None:
            raise ValueError("the journal is not open")
        # One call, so that Ctrl-C comes before it or after it.
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); free the disk and go on") from error
        if written < len(line):
            raise InputError(f"{self.path} cannot be written (the disk is full); free it and go on")

    def __enter__(self) -> Self:
        for entry in self._stale:
            remove_results(self._out, entry)
        self._stale = []
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, self._whole_bytes)
            os.lseek(self._file, self._whole_bytes, os.SEEK_SET)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); remove it") from error
        if not self._whole_bytes:
            self._append(self._settings)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def remove_results(out: Path, entry: Mapping[str, Any]) -> None:
    """Remove the files that an entry calls its own, as far as they lie within ``out``."""
    root = out.resolve()
    for name in entry.get("files", ()):
        path = out / str(name)
        if path.parent.resolve().is_relative_to(root) and path.is_file():
            path.unlink(missing_ok=True)


def place_of(item: Item) -> str:
    """The input's location as text that is the same from every working folder."""
    return str(item.location.absolute()) if isinstance(item.location, Path) else item.text


def state_of(item: Item) -> list[int] | None:
    """Size and time of change of a file; None of anything else."""
    if not isinstance(item.location, Path):
        return None
    try:
        status = item.location.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
