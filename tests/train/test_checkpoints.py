"""Atomic checkpoint writes; resuming finds the newest valid one."""

import errno
from pathlib import Path

import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.train.callbacks import AtomicCheckpointIO, RandomState, newest_valid_checkpoint


def save(folder: Path, step: int) -> Path:
    path = folder / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": step, "weights": torch.arange(1000.0) + step}, path)
    return path


def step_of(path: Path | None) -> int:
    assert path is not None
    return int(torch.load(path, weights_only=True)["global_step"])


def test_the_newest_alone_keeps_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
        AtomicCheckpointIO().save_checkpoint({"global_step": step}, tmp_path / "best.ckpt")
    steps = {path.name: step_of(path) for path in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 3}
    assert newest_valid_checkpoint(tmp_path) == (tmp_path / "last.ckpt", [])


def test_a_full_disk_leaves_the_earlier_checkpoints_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def write_some_and_fail(checkpoint: object, file: object) -> None:
        file.write(b"half a checkpoint")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", write_some_and_fail)
    with pytest.raises(InputError, match=r"last.ckpt cannot be written \(No space left on device\)"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert step_of(tmp_path / "last.ckpt") == 1


@pytest.mark.parametrize("damage", ["cut", "one byte", "empty"])
def test_a_damaged_newest_is_passed_over_and_named(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    path = tmp_path / "last.ckpt"
    content = bytearray(path.read_bytes())
    if damage == "one byte":
        content[len(content) // 2] ^= 0xFF  # in the middle of the weights
    path.write_bytes({"cut": content[:-100], "one byte": content, "empty": b""}[damage])
    found, (damaged,) = newest_valid_checkpoint(tmp_path)
    assert step_of(found) == 1 and "last.ckpt is damaged" in damaged and "passed over" in damaged
    path.unlink()  # as after a kill between the two renames
    assert newest_valid_checkpoint(tmp_path) == (found, [])


def test_no_checkpoint_is_no_error_but_only_damaged_ones_are(tmp_path: Path) -> None:
    assert newest_valid_checkpoint(tmp_path / "nowhere") == (None, [])
    (tmp_path / "last.ckpt").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"no valid checkpoint in .*last.ckpt is damaged .*resume=PATH"):
        newest_valid_checkpoint(tmp_path)


def test_random_states_travel(tmp_path: Path) -> None:
    callback = RandomState()
    torch.manual_seed(1)
    torch.save(callback.state_dict(), tmp_path / "state")
    drawn = torch.rand(3)
    callback.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(drawn, torch.rand(3))
