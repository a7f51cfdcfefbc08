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


def items(count: int, seed: int = 0) -> list[Inferred]:
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        faces = int(random.integers(0, 4))
        boxes = torch.from_numpy(random.normal(0, 300, (faces, 4)).astype(np.float32))
        scores = torch.from_numpy(random.random(faces).astype(np.float32))
        passes = [PassRecord(float(random.random()), bool(i % 2), 5, 7, 2, faces)] * int(random.integers(1, 3))
        made.append(Inferred(f"0--Påräde/im\u2028age_{i}", Detections(boxes, scores), passes, float(random.random())))
    return made


def open_journal(path: Path, **changes: Any) -> Journal:
    return Journal(path, **{"settings": FINGERPRINT, "checksums": True, **changes})


def add(journal: Journal, item: Inferred) -> None:
    journal.append(to_plain(item))


def assert_equal(first: Inferred, second: Inferred) -> None:
    assert first.image_id == second.image_id and first.passes == second.passes and first.seconds == second.seconds
    for a, b in zip(first.detections.numpy(), second.detections.numpy(), strict=True):
        assert a.dtype == b.dtype == np.float32 and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def test_what_was_added_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "unfinished.jsonl"
    given = items(6)
    # The odd floats: a denormal, the last one below 1, minus zero.
    odd = [struct.unpack("<f", bits)[0] for bits in (b"\1\0\0\0", b"\xff\xff\x7f\x3f", b"\0\0\0\x80")]
    given[3] = given[3]._replace(detections=Detections(torch.tensor([[*odd, 1e38]]), torch.tensor([odd[1]])))
    for start in range(0, 6, 2):  # three processes, two images each
        with open_journal(path) as journal:
            assert list(done_before(journal)) == [item.image_id for item in given[:start]] and not journal.refused
            for item in given[start : start + 2]:
                add(journal, item)
    read = done_before(open_journal(path))
    for item in given:
        assert_equal(read[item.image_id], item)


def written(path: Path, given: list[Inferred]) -> list[int]:
    """Where each line of the new journal ends."""
    with open_journal(path) as journal:
        ends = [path.stat().st_size]
        for item in given:
            add(journal, item)
            ends.append(path.stat().st_size)
    return ends


def test_a_kill_at_any_byte_loses_the_line_in_work_alone(tmp_path: Path) -> None:
    path, given = tmp_path / "j", items(3)
    ends = written(path, given)
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        journal = open_journal(path)
        whole = max(0, sum(end <= cut for end in ends) - 1)
        assert list(done_before(journal)) == [item.image_id for item in given[:whole]], cut
        assert not journal.refused
        with journal:
            for item in given[whole:]:
                add(journal, item)
        assert path.read_bytes() == content, cut


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_line_and_all_behind_it_are_done_again(tmp_path: Path, seed: int) -> None:
    path, given, random = tmp_path / "j", items(5), np.random.default_rng(seed)
    ends = written(path, given)
    content = bytearray(path.read_bytes())
    place = int(random.integers(len(content)))
    content[place] ^= int(random.integers(1, 256))
    path.write_bytes(content)
    whole = max(0, sum(end <= place for end in ends) - 1)
    assert list(done_before(open_journal(path))) == [item.image_id for item in given[:whole]]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"checkpoint_sha256": "cd"}, ["checkpoint_sha256"]),
        ({"protocol_settings": {"name": "original", "max_long": 100}}, ["protocol_settings"]),
        ({"images": "x", "pair": [1, 3]}, ["pair", "images"]),
    ],
)
def test_other_settings_start_over_and_say_which(tmp_path: Path, changes: dict[str, Any], named: list[str]) -> None:
    path, given = tmp_path / "j", items(2)
    with open_journal(path) as journal:
        add(journal, given[0])
    other = open_journal(path, settings={**FINGERPRINT, **changes})
    assert other.refused == named and not other.resumed
    with other:
        add(other, given[1])
    assert list(done_before(open_journal(path, settings={**FINGERPRINT, **changes}))) == [given[1].image_id]
    assert "checkpoint_sha256" in open_journal(path, settings={}).refused
    with open_journal(path, settings={**FINGERPRINT, **changes}, resume=False) as anew:
        assert not anew.resumed and anew.refused == []
    assert open_journal(path, settings={**FINGERPRINT, **changes}).lines == []


def test_a_journal_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text("my notes\nof today\n")
    with open_journal(path) as journal:
        assert journal.lines == []
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        open_journal(path)


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
    """Changed, new, gone, renamed, moved: each shows. What is no code does not."""
    (tmp_path / "room").mkdir()
    for name in ("__init__.py", "boxes.py", "room/__init__.py", "room/loss.py", "weights.safetensors"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr("fanet_lightning.cli.provenance.__file__", str(tmp_path / "cli/provenance.py"))

    def code() -> str:
        code_sha256.cache_clear()  # as in a new process
        return code_sha256()

    seen = [code()]
    (tmp_path / "weights.safetensors").write_text("x = 2\n")
    assert code() == seen[0]
    for change in (
        lambda: (tmp_path / "room/loss.py").write_text("x = 1  # a word\n"),
        lambda: (tmp_path / "room/new.py").write_text(""),
        lambda: (tmp_path / "boxes.py").rename(tmp_path / "ops.py"),
        lambda: (tmp_path / "ops.py").rename(tmp_path / "room/ops.py"),
        lambda: (tmp_path / "room/new.py").unlink(),
    ):
        change()
        assert code() not in seen
        seen.append(code())
    (tmp_path / "room/ops.py").write_text("x = 3\n")
    assert code_sha256() == seen[-1]  # once a process: a module that was imported is what runs
    code_sha256.cache_clear()
