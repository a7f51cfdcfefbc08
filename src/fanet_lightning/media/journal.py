"""What ``detect`` has done, on disk: one line per input, appended when its results are written.

A process may be killed at any byte: a last line that is not whole is dropped, and that input is done again. The first
line holds the settings that results depend on, and the sources that were stated. Results of other settings are removed
before new ones are written; where that would take other inputs' results away, the run is refused.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fanet_lightning.errors import InputError
from fanet_lightning.files import content_if_any
from fanet_lightning.media.inputs import Item, shows_faces

JOURNAL_FILE = "done.jsonl"
VERSION = 1
# In the first line, but nothing that results depend on.
_SOURCES = "sources"
# Longer first lines are none of detect's.
_MOST_HEAD_BYTES = 1 << 20


class Journal:
    """A context manager: inside, entries are added and stay when the process dies.

    ``entries`` what is done, by the input's name. ``refused`` which settings differ from those of the results that lie
    there: these are removed as the block is entered, because faces that shall be redacted must not stay beside the
    redacted ones. ``begins_anew`` whether anything is removed so. ``existed`` whether
    there was an earlier run.

    Args:
        out: the folder of the results.
        settings: what results depend on, as plain values.
        items: the inputs of this run; what other inputs left in the folder with the same settings stays there.
        resume: False removes whatever the journal lists, and begins anew.
        sources: as stated, of :func:`fanet_lightning.media.inputs.stated_sources`.

    Raises:
        InputError: the file cannot be read or written, or results of other inputs lie there that would be overwritten,
            or are of other settings, e.g. not redacted.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        items: Collection[Item],
        *,
        resume: bool = True,
        sources: Sequence[str] = (),
    ) -> None:
        self.path = out / JOURNAL_FILE
        self.entries: dict[str, dict[str, Any]] = {}
        self.refused: list[str] = []
        self.begins_anew = False
        self.existed = self.path.is_file()
        self._out, self._items, self._sources = out, items, list(sources)
        # As it comes back from a file: tuples become lists.
        self._settings = json.loads(json.dumps({"version": VERSION, **settings}))
        self._stale: list[dict[str, Any]] = []
        self._whole_bytes = 0
        self._file: int | None = None
        self._read(resume)

    def _read(self, resume: bool) -> None:
        content = content_if_any(self.path)
        if content is None:
            return
        lines = []
        for line in content.splitlines(keepends=True):
            value = _parsed(line)
            if value is None:
                break
            lines.append((value, len(line)))
        if not lines:
            return
        found = {key: value for key, value in lines[0][0].items() if key != _SOURCES}
        keys = dict.fromkeys([*found, *self._settings])
        self.refused = [key for key in keys if found.get(key) != self._settings.get(key)]
        listed = [value for value, _ in lines[1:] if isinstance(value.get("name"), str)]
        entries: dict[str, dict[str, Any]] = {}
        for entry in listed:
            entries.pop(entry["name"], None)
            if not entry.get("removed"):
                entries[entry["name"]] = entry
        if resume:
            places = {(item.name, place_of(item)) for item in self._items}
            strange = (entry for entry in entries.values() if (entry["name"], entry.get("location")) not in places)
            others = [entry for entry in strange if self._something_there(entry)]
            if self.refused:
                self._check_settings(others, redacted=bool(found.get("redact")))
            else:
                self._check_names(others)
        if self.refused or not resume:
            self._stale, self.begins_anew = listed, True
            return
        self.entries = entries
        self._whole_bytes = sum(length for _, length in lines)

    def _something_there(self, entry: Mapping[str, Any]) -> bool:
        """Whether something of an input's results is left: a file, or what only the JSON holds."""
        files = entry.get("files", ())
        return not files or any((self._out / name).is_file() for name in files)

    def _check_settings(self, others: list[dict[str, Any]], *, redacted: bool) -> None:
        """Results of other settings that belong to other inputs: neither kept beside the new ones nor removed."""
        files = [name for entry in others for name in entry.get("files", ())
                 if shows_faces(name) and (self._out / name).is_file()]  # fmt: skip
        if self._settings.get("redact") and not redacted and files:
            number = f"{len(files):,} file" + ("" if len(files) == 1 else "s")
            raise InputError(
                f"out={self._out}: holds pictures of an earlier run that are not redacted ({number}, e.g. {files[0]}); "
                "give another out, or delete it"
            )
        if others:
            raise InputError(
                f"out={self._out}: holds results of other settings ({', '.join(self.refused)}), e.g. of "
                f"{others[0]['name']}; give another out, or resume=false to remove them"
            )

    def _check_names(self, others: list[dict[str, Any]]) -> None:
        """Results of another input that has the name of one of these."""
        taken = {entry[key].casefold(): entry for key in ("stem", "name") for entry in others if entry.get(key)}
        for item in self._items:
            entry = taken.get(item.name.casefold()) or taken.get(item.stem.casefold())
            if entry is not None:
                raise InputError(
                    f"out={self._out}: the results of {item.text} would overwrite those of {entry.get('location')}; "
                    "give another out, or resume=false to remove all that lie there"
                )

    def is_whole(self, entry: Mapping[str, Any]) -> bool:
        """Whether all files of an entry lie there."""
        return all((self._out / name).is_file() for name in entry.get("files", ()))

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
        return self.is_whole(entry)

    def forget(self, item: Item) -> None:
        """Remove what an input, in an earlier state or of another place, left: it is about to be done again."""
        entry = self.entries.pop(item.name, None)
        if entry is not None:
            self._append({"name": item.name, "removed": True})
            remove_results(self._out, entry)

    def add(self, item: Item, entry: Mapping[str, Any]) -> None:
        """Append what an input gave; once this returns, killing the process does not lose it.

        Raises:
            InputError: the disk is full.
        """
        whole = {"name": item.name, "stem": item.stem, "location": place_of(item), "state": state_of(item), **entry}
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
            self._append({**self._settings, _SOURCES: self._sources})
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def head_of(out: Path) -> dict[str, Any] | None:
    """The first line of the journal in a folder: settings and ``sources``; None where no results of detect lie."""
    try:
        with (out / JOURNAL_FILE).open("rb") as file:
            head = _parsed(file.readline(_MOST_HEAD_BYTES))
    except OSError:
        return None
    return head if head is not None and {"version", "save", "redact"} <= head.keys() else None


def default_out(wanted: Path, sources: Sequence[str]) -> Path:
    """``wanted``, or with a number where results of other sources lie: ``photos_2`` beside those of other photos.

    Args:
        wanted: a folder that need not exist.
        sources: of :func:`fanet_lightning.media.inputs.stated_sources`.
    """
    out, number = wanted, 1
    while (head := head_of(out)) is not None and head.get(_SOURCES, sources) != list(sources):
        number += 1
        out = wanted.with_name(f"{wanted.name}_{number}")
    return out


def remove_results(out: Path, entry: Mapping[str, Any]) -> None:
    """Remove the files that an entry calls its own, as far as they lie within ``out``."""
    root = out.resolve()
    for name in entry.get("files", ()):
        path = out / str(name)
        if path.parent.resolve().is_relative_to(root) and path.is_file():
            path.unlink(missing_ok=True)


def place_of(item: Item) -> str:
    """The input's location as text that is the same from every working folder."""
    return os.path.abspath(item.location) if isinstance(item.location, Path) else item.text  # noqa: PTH100  # no links


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
