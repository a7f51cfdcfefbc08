"""Journal: what a run has done, one line of JSON each behind a first line of settings; survives a kill at any byte."""

import errno
import json
import zlib
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

from fanet_lightning.cli.errors import InputError

# Longer first lines are not ours.
_MOST_HEAD_BYTES = 1 << 20


class Journal:
    """A context manager: inside, lines are appended, and what was appended stays when the process dies.

    ``lines`` what an earlier process left, as plain values, up to the first line that was cut off or damaged.
    ``found`` the first line's settings. ``refused`` which of them differ from ``settings``. ``resumed`` whether new
    lines are appended to the old ones; otherwise the file starts over as the block is entered.

    Args:
        path: the file; made with its first line on entry.
        settings: what the lines depend on, as plain values.
        resume: False starts over, whatever the settings.
        note: goes into the first line; nothing depends on it.
        checksums: put CRC-32 in front of each line, where a flipped bit would pass for a result.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = True,
        note: Mapping[str, Any] | None = None,
        checksums: bool = False,
    ) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.resumed = False
        self._note, self._checksums = dict(note or {}), checksums
        # As it comes back from a file: tuples become lists.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, allow_nan=False))
        self._kept_bytes = 0
        self._file: FileIO | None = None
        self.found: dict[str, Any] = {}
        whole_bytes = 0
        for line in (path.read_bytes() if path.exists() else b"").splitlines(keepends=True):
            value = _parsed(line, checksums)
            if value is None:
                break
            if whole_bytes:
                self.lines.append(value)
            else:
                self.found = {key: value for key, value in value.items() if key not in self._note}
            whole_bytes += len(line)
        if whole_bytes and resume:
            keys = dict.fromkeys([*self.found, *self.settings])
            self.refused = [key for key in keys if self.found.get(key) != self.settings.get(key)]
            self.resumed = not self.refused
        if self.resumed:
            self._kept_bytes = whole_bytes

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if self._kept_bytes else "wb", buffering=0)
            self._file.truncate(self._kept_bytes)
            self._file.seek(self._kept_bytes)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); remove it") from error
        if not self._kept_bytes:
            self.append({**self.settings, **self._note})
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, value: Mapping[str, Any]) -> None:
        """Append a line; once this returns, killing the process does not lose it.

        Raises:
            InputError: the disk is full.
        """
        if self._file is None:
            raise ValueError("the journal is not open")
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        if self._checksums:
            line = b"%08x %s" % (zlib.crc32(line), line)
        try:
            # One call, so that Ctrl-C comes before it or after it.
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); free the disk, and the same command resumes"
            ) from error


def read_head(path: Path) -> dict[str, Any] | None:
    """The first line of a journal without checksums; None where there is none."""
    try:
        with path.open("rb") as file:
            return _parsed(file.readline(_MOST_HEAD_BYTES))
    except OSError:
        return None


def _parsed(line: bytes, checksums: bool = False) -> dict[str, Any] | None:
    """What a line holds; None for one that was cut off or damaged."""
    if checksums:
        checksum, _, line = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(line):
            return None
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
