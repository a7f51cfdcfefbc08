"""Of W&B's side: what it wrote offline, read back by its own reader, and stand-ins for its server."""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

FILE_HEADER = struct.Struct("<4sHB")
CHUNK_HEADER = struct.Struct("<IHB")
BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What a run sent: ``config`` and ``summary`` by key, ``history`` rows, ``exit_code`` (None: never finished)."""

    folder: Path
    identifier: str = ""
    project: str = ""
    group: str = ""
    name: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None

    def series(self, key: str, x: str = "trainer/global_step") -> list[tuple[int, Any]]:
        """(x, value) of every row that has both."""
        return [(row[x], row[key]) for row in self.history if key in row and x in row]


def offline_runs(out: Path) -> list[OfflineRun]:
    """The runs below ``out/wandb``, in the order of their starts."""
    return [read_run(path.parent) for path in sorted(out.glob("wandb/offline-run-*/run-*.wandb"))]


def finished_runs(out: Path) -> list[OfflineRun]:
    """The offline runs, once W&B's process has written the last of them and has ended."""
    wandb.teardown()
    return offline_runs(out)


def read_run(folder: Path) -> OfflineRun:
    (path,) = folder.glob("*.wandb")
    run = OfflineRun(folder)
    for record in records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.identifier, run.project, run.group = record.run.run_id, record.run.project, record.run.run_group
            run.name, run.job_type = record.run.display_name, record.run.job_type
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def records(content: bytes) -> Iterator[Any]:
    """The records of a file, which has LevelDB's format; an end that a kill has cut short is left out."""
    whole = b""
    for kind, data in _chunks(content):
        whole = data if kind in (FULL, FIRST) else whole + data
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


def _chunks(content: bytes) -> Iterator[tuple[int, bytes]]:
    position = FILE_HEADER.size
    while True:
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < CHUNK_HEADER.size:
            position += left_in_block
        if position + CHUNK_HEADER.size > len(content):
            return
        _, length, kind = CHUNK_HEADER.unpack_from(content, position)
        data = content[position + CHUNK_HEADER.size :][:length]
        position += CHUNK_HEADER.size + length
        yield kind, data


@contextlib.contextmanager
def no_account() -> Iterator[None]:
    """No key of the person who runs the tests, and no server of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_PROJECT", "WANDB_RUN_GROUP"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("NETRC", os.devnull)
        yield


@contextlib.contextmanager
def useless_server(answer: str) -> Iterator[str]:
    """A server that says nothing (``silent``), or none at all (``closed``)."""
    if answer == "closed":
        yield "http://127.0.0.1:9"
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
