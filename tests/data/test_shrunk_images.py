"""Copies of large images on disk: what they show, where their boxes lie, when they are made again, and when not."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.datamodule import GIB, copy_path, shrunk_records, shrunk_size
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.records import ImageRecord
from tests.data.helpers import module_of
from tests.data.wider_files import numbered, write_image, write_wider


def records_in(folder: Path, sizes_hw: list[tuple[int, int]]) -> list[ImageRecord]:
    records = []
    for number, size in enumerate(sizes_hw):
        write_image(folder / f"{number}.jpg", number, size)
        boxes = np.array([[20, 10, 60, 30], [0, 0, size[1], size[0]]], dtype=np.float32)
        blur = np.array([1, 2], dtype=np.int8)
        records.append(ImageRecord(f"e/{number}", folder / f"{number}.jpg", boxes, {"blur": blur}, boxes[:1] + 1))
    return records


def copies_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix == ".jpg"}


def test_sizes_against_fractions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        height, width, side = (int(value) for value in rng.integers(1, 3000, 3))
        found = shrunk_size(height, width, side)
        if min(height, width) <= side:
            assert found == (height, width)
            continue
        assert min(found) == side
        scale = Fraction(side, min(height, width))
        for new, old in zip(found, (height, width), strict=True):
            assert abs(new - old * scale) <= Fraction(1, 2) + Fraction(1, 10**6)


def test_a_copy_by_hand(tmp_path: Path) -> None:
    records = records_in(tmp_path, [(100, 200), (50, 60), (80, 81)])
    found, line = shrunk_records(records, tmp_path / "copies", 50)
    assert line.startswith("cache=disk: 2 of 3 images are shown as copies with a shorter side of 50 pixels")
    assert "2 of them made now" in line
    assert found[1] is records[1]  # no larger than the copy would be
    assert found[0].image_id == "e/0" and found[0].path == copy_path(tmp_path / "copies", records[0].path, 50)
    assert found[0].boxes_xyxy.tolist() == [[10, 5, 30, 15], [0, 0, 100, 50]]
    assert found[0].ignored_xyxy.tolist() == [[10.5, 5.5, 30.5, 15.5]]
    assert found[0].attributes["blur"].tolist() == [1, 2]
    # 81 · 50/80 = 50.6: 51 pixels, and the boxes follow the rounded side.
    np.testing.assert_allclose(found[2].boxes_xyxy[1], [0, 0, 51, 50], rtol=1e-6)
    np.testing.assert_allclose(found[2].boxes_xyxy[0], [20 * 51 / 81, 6.25, 60 * 51 / 81, 18.75], rtol=1e-6)
    # Each pixel is the mean of the four that it stands for, but for what JPEG loses.
    mean = read_image_rgb(records[0].path).reshape(50, 2, 100, 2, 3).mean(axis=(1, 3))
    copy = read_image_rgb(found[0].path)
    assert copy.shape == (50, 100, 3)
    assert np.abs(copy - mean).mean() < 2


def test_a_box_that_loses_its_area_is_ignored(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", 0, (100, 3000))
    sliver = np.float32(2999)
    boxes = np.array([[1, 1, 9, 9], [sliver, 5, np.nextafter(sliver, np.float32(3000)), 9]], dtype=np.float32)
    record = ImageRecord("e/a", tmp_path / "a.jpg", boxes, {"blur": np.array([1, 2], dtype=np.int8)})
    found: list[ImageRecord] = []
    for side in range(60, 99):
        found += shrunk_records([record], tmp_path / "copies", side)[0]
    assert all(len(r.boxes_xyxy) + len(r.ignored_xyxy) == 2 for r in found)
    assert all(len(r.attributes["blur"]) == len(r.boxes_xyxy) for r in found)
    assert {len(r.boxes_xyxy) for r in found} == {1, 2}


def test_a_turned_photograph_is_shrunk_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :100] = 255  # stored left, shown at the top
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    record = ImageRecord("e/a", tmp_path / "a.jpg", np.array([[0, 0, 100, 100]], dtype=np.float32))
    (found,), _ = shrunk_records([record], tmp_path / "copies", 50)
    assert found.boxes_xyxy.tolist() == [[0, 0, 50, 50]]
    copy = read_image_rgb(found.path)
    assert copy.shape == (100, 50, 3)
    assert copy[:40].min() > 240 and copy[60:].max() < 15


def test_copies_are_used_again_and_missing_ones_made_again(tmp_path: Path) -> None:
    records, folder = records_in(tmp_path, [(100, 200)] * 6), tmp_path / "copies"
    first, _ = shrunk_records(records, folder, 50)
    before = copies_in(folder)
    unfinished = first[0].path.with_name(".left.jpg")
    unfinished.write_bytes(b"by a killed process")
    for record in first[1:4]:
        record.path.unlink()
    _, line = shrunk_records(records, folder, 50)
    assert ", 3 of them made now" in line
    assert copies_in(folder) == before
    assert not unfinished.exists()
    assert ", 0 of them made now" in shrunk_records(records, folder, 50)[1]


def test_a_changed_original_and_another_side_get_copies_of_their_own(tmp_path: Path) -> None:
    records, folder = records_in(tmp_path, [(100, 200)]), tmp_path / "copies"
    (first,), _ = shrunk_records(records, folder, 50)
    write_image(records[0].path, 77, (100, 200))
    os.utime(records[0].path, ns=(1, 1))
    (second,), _ = shrunk_records(records, folder, 50)
    (third,), _ = shrunk_records(records, folder, 40)
    assert len({first.path, second.path, third.path}) == 3
    assert np.abs(read_image_rgb(first.path).astype(int) - read_image_rgb(second.path)).mean() > 5


def test_unreadable_originals_stay_and_are_named_by_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_wider(tmp_path, "train", numbered(8))
    write_wider(tmp_path, "val", numbered(1))
    paths = [tmp_path / "WIDER_train" / "images" / f"0--Parade/0_Parade_{i:03d}.jpg" for i in range(8)]
    paths[1].write_bytes(b"")
    paths[3].write_bytes(paths[3].read_bytes()[:-30])  # its head is sound
    module = module_of(tmp_path, batch_size=8, cache="disk", cache_dir=tmp_path / "copies", cache_side=40)
    with caplog.at_level(logging.WARNING):
        (batch,) = module.train_dataloader()
    assert len(batch.image_ids) == 8
    assert module.unreadable_images == ["0--Parade/0_Parade_001", "0--Parade/0_Parade_003"]
    assert len(copies_in(tmp_path / "copies")) == 6
    assert any(f"without {paths[3]}" in record.getMessage() for record in caplog.records)


def test_training_reads_the_copies_and_validation_the_originals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wider(tmp_path, "train", numbered(5), (96, 128))
    write_wider(tmp_path, "val", numbered(3), (96, 128))
    options = {"batch_size": 5, "cache": "disk", "cache_dir": tmp_path / "copies"}

    def same(image: np.ndarray, boxes_xyxy: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return image, boxes_xyxy

    module = module_of(tmp_path, augment=same, **options)
    (batch,) = module.train_dataloader()
    assert batch.images.shape == (5, 3, 64, 85)  # twice the input size of 32
    assert "a shorter side of 64 pixels" in capsys.readouterr().out
    boxes, owner = batch.targets
    face = boxes[owner == batch.image_ids.index("0--Parade/0_Parade_001")]
    np.testing.assert_allclose(face.numpy(), [[1 * 85 / 128, 0, 12 * 85 / 128, 10 * 64 / 96]], rtol=1e-6)
    assert [tuple(val.images.shape) for val in module.val_dataloader()] == [(1, 3, 96, 128)] * 3


def test_too_little_space_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = records_in(tmp_path, [(100, 200)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4999))
    with pytest.raises(InputError, match=r"cache_dir=.*GiB.*GiB"):
        shrunk_records(records, tmp_path / "copies", 50)
    assert copies_in(tmp_path / "copies") == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=GIB))
    assert len(copies_in(shrunk_records(records, tmp_path / "copies", 50)[0][0].path.parent)) == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache_dir=.*cannot be written") as error:
        shrunk_records(records_in(tmp_path, [(100, 200)]), tmp_path / "file" / "copies", 50)
    assert "\n" not in str(error.value)


def test_of_several_at_once_one_makes_the_copies(tmp_path: Path) -> None:
    records = records_in(tmp_path, [(100, 200)] * 20)
    lines: list[str] = []

    def make() -> None:
        lines.append(shrunk_records(records, tmp_path / "copies", 50)[1])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [int(re.findall(r"(\d+) of them made now", line)[0]) for line in lines]
    assert sorted(made) == [0, 0, 0, 20]


def test_the_umask_survives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (found, *_), _ = shrunk_records(records_in(tmp_path, [(100, 200)] * 40), tmp_path / "copies", 50)
        assert os.umask(0o027) == 0o027
        assert found.path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


MAKE = """
import sys
from pathlib import Path
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.datamodule import shrunk_records
paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
print(shrunk_records([ImageRecord(path.stem, path) for path in paths], Path(sys.argv[2]), 200)[1])
"""


@pytest.mark.slow
def test_a_killed_maker_leaves_nothing_half_done(tmp_path: Path) -> None:
    originals, folder = tmp_path / "originals", tmp_path / "copies"
    originals.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), dtype=np.uint8)
    # So many that the kill comes in time on a busy machine, too.
    count = 120
    encoded = cv2.imencode(".jpg", noise)[1].tobytes()
    for number in range(count):
        (originals / f"{number:03d}.jpg").write_bytes(encoded)
    command = [sys.executable, "-c", MAKE, str(originals)]
    process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while sum(name[0] != "." for name in copies_in(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {name for name in copies_in(folder) if not name.startswith(".")}
    assert 3 <= len(there) < count
    for path in folder.rglob("*.jpg"):
        if not path.name.startswith("."):
            assert read_image_rgb(path).shape == (200, 267, 3)
    again = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=300)
    assert f"{count - len(there)} of them made now" in again.stdout
    subprocess.run([*command, str(tmp_path / "undisturbed")], capture_output=True, timeout=300, check=True)
    assert copies_in(folder) == copies_in(tmp_path / "undisturbed")
