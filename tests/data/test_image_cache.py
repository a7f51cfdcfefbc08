"""Decoded images in shared memory: the same samples, each file read once, whoever reads it; and the limit is kept."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from fanet_lightning.data import datamodule
from fanet_lightning.data.datamodule import GIB, MemoryCache, SampleKey, TrainDataset, memory_cache
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.sources import WiderFaceSource
from fanet_lightning.data.transforms import TrainAugment
from tests.data.helpers import epoch_of, module_of
from tests.data.wider_files import numbered, write_wider

IMAGE_BYTES = 3 * 48 * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """12 training images: three whole batches of 4, so an epoch sees each of them."""
    write_wider(tmp_path, "train", numbered(12))
    write_wider(tmp_path, "val", numbered(2))
    return tmp_path


def remove_files(root: Path) -> None:
    for path in (root / "WIDER_train").rglob("*.jpg"):
        path.unlink()


# The memory itself


def kept_by_hand(sizes_hw: np.ndarray, limit: int) -> list[int]:
    """In their order until one is too much."""
    kept, taken = [], 0
    for index, (height, width) in enumerate(sizes_hw.tolist()):
        taken += 3 * height * width
        if taken > limit:
            break
        if height * width:
            kept.append(index)
    return kept


def test_what_is_put_comes_back_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        sizes = rng.integers(0, 6, (rng.integers(0, 12), 2))
        needed = int(3 * sizes.prod(axis=1).sum())
        limit = int(rng.integers(0, needed + 10))
        cache = MemoryCache(sizes, limit)
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        for index in rng.permutation(len(sizes)):
            assert cache.get(index) is None
            cache.put(index, images[index])
        expected = kept_by_hand(sizes, limit)
        assert cache.places == len(expected)
        for index, image in enumerate(images):
            found = cache.get(index)
            assert (found is not None) == (index in expected)
            if found is not None:
                np.testing.assert_array_equal(found, image)
        seen.add((len(expected) == 0, len(expected) == int((sizes.prod(axis=1) > 0).sum())))
    assert {(True, False), (False, True), (False, False)} <= seen


def test_images_are_read_only_and_of_the_size_that_was_announced() -> None:
    cache = MemoryCache(np.array([[2, 3], [1, 1]]), 100)
    for shape, kept in (((3, 2, 3), False), ((2, 3, 3), True)):
        cache.put(0, np.full(shape, 7, np.uint8))
        assert (cache.get(0) is not None) == kept
    with pytest.raises(ValueError, match="read-only"):
        cache.get(0)[0, 0] = 1  # type: ignore[index]


def test_sizes_come_from_the_heads(root: Path) -> None:
    paths = [record.path for record in WiderFaceSource(root).train()][:3]
    paths[1].write_bytes(b"")
    assert memory_cache(paths, None).sizes_hw.tolist() == [[48, 64], [0, 0], [48, 64]]
    assert memory_cache([], None).sizes_hw.shape == (0, 2)


def _put(cache: MemoryCache) -> None:
    cache.put(0, np.full((2, 3, 3), 5, np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_are_not_forks_share_it(method: str) -> None:
    cache = MemoryCache(np.array([[2, 3]]), 100)
    process = multiprocessing.get_context(method).Process(target=_put, args=(cache,))  # type: ignore[attr-defined]
    process.start()
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(cache.get(0), np.full((2, 3, 3), 5))


# The limit


@pytest.mark.parametrize(
    ("free", "gib", "limit"),
    [
        (8 * GIB, None, 4 * GIB),
        (10 * IMAGE_BYTES, None, 5 * IMAGE_BYTES),
        (8 * GIB, 7 * IMAGE_BYTES / GIB, 7 * IMAGE_BYTES),
        (10 * IMAGE_BYTES, 3.0, 5 * IMAGE_BYTES),  # more than there is
        (None, None, 12 * IMAGE_BYTES),
    ],
)
def test_the_limit_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, gib: float | None, limit: int
) -> None:
    monkeypatch.setattr(datamodule, "available_bytes", lambda device: free)
    cache = memory_cache([record.path for record in WiderFaceSource(root).train()], gib)
    assert (cache.limit_bytes, cache.places) == (limit, min(12, limit // IMAGE_BYTES))


# Training with it


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_and_no_file_is_read_twice(
    root: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    without = module_of(root).train_dataloader()
    expected = [epoch_of(without, epoch) for epoch in range(3)]
    module = module_of(root, workers=workers, cache="memory")
    loader = module.train_dataloader()
    assert capsys.readouterr().out.startswith("cache=memory: 12 of 12 images fit into ")
    assert epoch_of(loader, 0) == expected[0]
    remove_files(root)  # what one worker has decoded the other finds as well
    assert [epoch_of(loader, epoch) for epoch in (1, 2)] == expected[1:]
    assert module.train_dataset.unreadable_images == []


def test_what_does_not_fit_is_read_each_time(root: Path) -> None:
    module = module_of(root, cache="memory", cache_gib=5 * IMAGE_BYTES / GIB)
    loader = module.train_dataloader()
    assert epoch_of(loader, 0) == epoch_of(loader, 0) == epoch_of(module_of(root).train_dataloader(), 0)
    remove_files(root)
    epoch_of(loader, 1)
    assert module.train_dataset.unreadable_images == [f"0--Parade/0_Parade_{index:03d}" for index in range(5, 12)]


def test_the_real_augmentation_takes_images_that_cannot_be_written(root: Path) -> None:
    records = WiderFaceSource(root).train()
    cache = memory_cache([record.path for record in records], None)
    with_cache, without = (TrainDataset(records, TrainAugment(32), 3, kept) for kept in (cache, None))
    for epoch in range(12):
        for index in range(12):
            one, two = with_cache[SampleKey(epoch, index)], without[SampleKey(epoch, index)]
            assert torch.equal(one.image, two.image) and torch.equal(one.boxes_xyxy, two.boxes_xyxy)
    for index, record in enumerate(records):
        np.testing.assert_array_equal(cache.get(index), read_image_rgb(record.path))
