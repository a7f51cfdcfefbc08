"""Journal: what a run has done, one line of JSON each behind a first line of settings; survives a kill at any byte."""

import errno
import json
import zlib
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self


class Journal:
    """A context manager: inside, lines are appended, and what was appended stays when the process dies.

    ``lines`` what an earlier process left, as plain values, up to the first line that was cut off or damaged.
    ``found`` the first line's settings. ``refused`` which of them differ from ``settings``. ``resumed`` whether new
    lines are appended to the old ones; otherwise the file starts over as the block is entered.

    Args:
        path: the file; made with its first line on entry.
        settings: what the lines depend on, as plain values.
        resume: False starts over, whatever the settings.
        checksums: put CRC-32 in front of each line, where a flipped bit would pass for a result.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], *, resume: bool = True, checksums: bool = False
    ) -> None:
        self.path = path
        self._checksums = checksums
        # As it comes back from a file: tuples become lists.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, allow_nan=False))
        self._file: FileIO | None = None
        self._kept_bytes = 0
        self.lines: list[dict[str, Any]] = []
        for line in (path.read_bytes() if path.exists() else b"").splitlines(keepends=True):
            value = _parsed(line, checksums)
            if value is None:
                break
            self.lines.append(value)
            self._kept_bytes += len(line)
        is_there = bool(self.lines)
        self.found = self.lines.pop(0) if is_there else {}
        keys = dict.fromkeys([*self.found, *self.settings]) if is_there and resume else {}
        self.refused = [key for key in keys if self.found.get(key) != self.settings.get(key)]
        self.resumed = is_there and resume and not self.refused
        if not self.resumed:
            self._kept_bytes = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("r+b" if self._kept_bytes else "wb", buffering=0)
        self._file.truncate(self._kept_bytes)
        self._file.seek(self._kept_bytes)
        if not self._kept_bytes:
            self.append(self.settings)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, value: Mapping[str, Any]) -> None:
        """Append a line; once this returns, killing the process does not lose it. OSError: the disk is full."""
        assert self._file is not None
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        if self._checksums:
            line = b"%08x %s" % (zlib.crc32(line), line)
        # One call, so that Ctrl-C comes before it or after it.
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, "the disk is full", str(self.path))


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
