"""What an unfinished evaluation keeps: bit for bit, through a kill at any byte, and only under the same settings."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fanet_lightning.cli.provenance import code_sha256
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.detect.journal import Journal
from fanet_lightning.detect.protocols import PassRecord
from fanet_lightning.evaluate.runner import Inferred, done_before, images_sha256, to_plain
from fanet_lightning.ops.structures import Detections

FINGERPRINT = {"checkpoint_sha256": "ab", "protocol_settings": {"name": "original", "max_long": None}, "pair": (1, 2)}


def items(count: int) -> list[tuple[str, Inferred]]:
    random = np.random.default_rng(0)
    made = []
    for i in range(count):
        boxes = torch.from_numpy(random.normal(0, 300, (i % 4, 4)).astype(np.float32))
        scores = torch.from_numpy(random.random(i % 4).astype(np.float32))
        passes = [PassRecord(float(random.random()), bool(i % 2), 5, 7, 2, i % 4)] * (1 + i % 2)
        made.append((f"0--Påräde/im\u2028age_{i}", Inferred(Detections(boxes, scores), passes, float(random.random()))))
    return made


def open_journal(path: Path, **changes: Any) -> Journal:
    return Journal(path, **{"settings": FINGERPRINT, "checksums": True, **changes})


def test_what_was_added_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "unfinished.jsonl"
    given = items(6)
    # The odd floats: a denormal, the last one below 1, minus zero.
    odd = [struct.unpack("<f", bits)[0] for bits in (b"\1\0\0\0", b"\xff\xff\x7f\x3f", b"\0\0\0\x80")]
    name, item = given[3]
    given[3] = name, item._replace(detections=Detections(torch.tensor([[*odd, 1e38]]), torch.tensor([odd[1]])))
    for start in range(0, 6, 2):  # three processes, two images each
        with open_journal(path) as journal:
            assert list(done_before(journal)) == [name for name, _ in given[:start]] and not journal.refused
            for item in given[start : start + 2]:
                journal.append(to_plain(*item))
    read = done_before(open_journal(path))
    for name, first in given:
        second = read[name]
        assert first.passes == second.passes and first.seconds == second.seconds
        for x, y in zip(first.detections.numpy(), second.detections.numpy(), strict=True):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def test_a_kill_at_any_byte_or_a_damaged_one_loses_no_line_before(tmp_path: Path) -> None:
    path, given, random = tmp_path / "j", items(3), np.random.default_rng(0)
    with open_journal(path) as journal:
        ends = [path.stat().st_size]  # of each line
        for item in given:
            journal.append(to_plain(*item))
            ends.append(path.stat().st_size)
    content = path.read_bytes()

    def check(left: bytes, place: int) -> None:
        path.write_bytes(left)
        journal = open_journal(path)
        whole = max(0, sum(end <= place for end in ends) - 1)
        assert list(done_before(journal)) == [name for name, _ in given[:whole]], place
        assert not journal.refused
        with journal:
            for item in given[whole:]:
                journal.append(to_plain(*item))
        assert path.read_bytes() == content, place

    for place in range(len(content) + 1):
        check(content[:place], place)
    for place in random.integers(len(content), size=60).tolist():
        damaged = bytearray(content)
        damaged[place] ^= int(random.integers(1, 256))
        check(bytes(damaged), place)


def test_other_settings_start_over_and_say_which(tmp_path: Path) -> None:
    path, (first, second) = tmp_path / "j", items(2)
    with open_journal(path) as journal:
        journal.append(to_plain(*first))
    changed = {**FINGERPRINT, "protocol_settings": {"name": "original", "max_long": 100}, "images": "x", "pair": [1, 3]}
    other = open_journal(path, settings=changed)
    assert other.refused == ["protocol_settings", "pair", "images"] and not other.resumed
    with other:
        other.append(to_plain(*second))
    assert list(done_before(open_journal(path, settings=changed))) == [second[0]]
    assert "checkpoint_sha256" in open_journal(path, settings={}).refused
    with open_journal(path, settings=changed, resume=False) as anew:
        assert not anew.resumed and anew.refused == []
    path.write_text("my notes\nof today\n")
    with open_journal(path) as none:
        assert none.lines == []


def test_an_exchanged_image_or_another_list_shows(tmp_path: Path) -> None:
    records = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345")
        records.append(ImageRecord(f"e/{name}", tmp_path / name))
    first = images_sha256(records)
    assert images_sha256(records) == first
    assert images_sha256(records[::-1]) != first and images_sha256(records[:1]) != first
    (tmp_path / "b").write_bytes(b"123456")
    changed = images_sha256(records)
    (tmp_path / "b").unlink()
    assert len({first, changed, images_sha256(records)}) == 3


def test_every_module_of_the_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed, new, renamed, moved, gone: each shows. What is no code does not."""
    room = tmp_path / "room"
    room.mkdir()
    for name in ("boxes.py", "room/loss.py", "weights.safetensors"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr("fanet_lightning.cli.provenance.__file__", str(tmp_path / "cli/provenance.py"))
    seen = []
    for change in (
        lambda: None,
        lambda: (room / "loss.py").write_text("x = 1  # a word\n"),
        lambda: (room / "new.py").write_text(""),
        lambda: (tmp_path / "boxes.py").rename(tmp_path / "ops.py"),
        lambda: (tmp_path / "ops.py").rename(room / "ops.py"),
        lambda: (room / "new.py").unlink(),
    ):
        change()
        code_sha256.cache_clear()  # as in a new process
        assert code_sha256() not in seen
        seen.append(code_sha256())
    (tmp_path / "weights.safetensors").write_text("x = 2\n")
    code_sha256.cache_clear()
    assert code_sha256() == seen[-1]
    (room / "ops.py").write_text("x = 3\n")
    assert code_sha256() == seen[-1]  # once a process: a module that was imported is what runs
    code_sha256.cache_clear()
