"""Samples, batches and loaders through real files: the same for any number of workers, ranks and restarts."""

import logging
import multiprocessing
from collections.abc import Iterator
from itertools import accumulate, chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import ModelCheckpoint

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data import datamodule
from fanet_lightning.data.datamodule import (
    GIB,
    FaceDataModule,
    MemoryCache,
    SampleKey,
    TrainBatchSampler,
    TrainDataset,
    eval_image,
    memory_cache,
)
from fanet_lightning.data.images import UnreadableImage, read_image_rgb
from fanet_lightning.data.records import PackedRecords
from fanet_lightning.data.sources import WiderFaceSource
from fanet_lightning.data.transforms import TestScale, TrainAugment, sample_seed
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, write_ground_truth
from tests.data.helpers import SIZE, Recorder, Shift, epoch_of, module_of, signature, trainer
from tests.data.wider_files import numbered, write_wider


def seed_of(image: torch.Tensor) -> int:
    first = image[:, 0, :3].permute(1, 0).contiguous().numpy().tobytes()[:8]
    return int(np.frombuffer(first, np.uint64)[0])


# Samples


def test_samples_and_a_batch_by_hand(root: Path) -> None:
    records = WiderFaceSource(root).train()
    dataset = TrainDataset(records, lambda image, boxes_xyxy, seed: (image, boxes_xyxy))
    batch = dataset.batch([SampleKey(0, index) for index in (2, 0, 1)])
    assert batch.images.shape == (3, 3, 48, 64) and batch.images.dtype == torch.uint8
    for image, index in zip(batch.images, (2, 0, 1), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), read_image_rgb(records[index].path))
    assert batch.targets.boxes_xyxy.tolist() == [[2, 0, 14, 10], [2, 1, 14, 12], [1, 0, 12, 10]]
    assert batch.targets.image_index.tolist() == [0, 0, 2] and batch.targets.image_index.dtype == torch.int64
    assert batch.image_ids == [f"0--Parade/0_Parade_00{index}" for index in (2, 0, 1)]
    empty = dataset.batch([SampleKey(0, 0), SampleKey(0, 3)]).targets
    assert empty.boxes_xyxy.shape == (0, 4) and empty.boxes_xyxy.dtype == torch.float32
    assert empty.image_index.shape == (0,)
    shown = eval_image(PackedRecords(WiderFaceSource(root).val()), TestScale("short", 24), 0)
    assert shown.image_ids == ["10--People_Marching/0_Parade_000"] and shown.scale_xy.tolist() == [[0.5, 0.5]]
    assert shown.images.shape == (1, 3, 24, 32) and shown.images.dtype == torch.uint8


def test_the_seed_comes_from_seed_epoch_and_index_alone(root: Path) -> None:
    records = WiderFaceSource(root).train()
    drawn = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 3, 12)]
    seeds = [seed_of(TrainDataset(records, Shift(), s)[SampleKey(epoch, index)].image) for s, epoch, index in drawn]
    assert seeds == [sample_seed(*own) for own in drawn]
    assert len(set(seeds)) == 12 and all(0 <= value < 2**63 for value in seeds)
    # Neither the global generators nor the order of access matter.
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert seed_of(TrainDataset(records, Shift(), 1)[SampleKey(1, 3)].image) == sample_seed(1, 1, 3)


# Which images form which batch


@settings(max_examples=100)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**32))
def test_ranks_share_one_process_s_batches(images: int, share: int, world: int, epoch: int, seed: int) -> None:
    total = share * world
    samplers = [TrainBatchSampler(images, total, seed=seed)]
    samplers += [TrainBatchSampler(images, total, rank, world, seed) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches, *together = ([[key.index for key in batch] for batch in sampler] for sampler in samplers)
    assert len(batches) == len(samplers[-1]) >= 1
    assert [list(chain(*parts)) for parts in zip(*together, strict=True)] == batches
    # Every image at most once, or in a tiny set at least once.
    flat = list(chain(*batches))
    assert len(set(flat)) == min(images, len(flat))


def test_batches_that_cannot_be_made() -> None:
    for total, world in ((5, 2), (0, 1)):
        with pytest.raises(InputError, match=f"batch_size={total}"):
            TrainBatchSampler(10, total, 0, world)


# Broken files


def test_a_broken_file_is_replaced_by_the_next_readable_one(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = TrainDataset(WiderFaceSource(broken).train(), Shift(), seed=5)
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            ids = [dataset[SampleKey(epoch, index)].image_id[-3:] for index in range(8)]
            assert ids == ["000", "001", "004", "004", "004", "005", "006", "000"]
    # Augmented as the sample that was asked for: not the same image twice.
    assert seed_of(dataset[SampleKey(1, 3)].image) == sample_seed(5, 1, 3)
    assert dataset[SampleKey(1, 3)].boxes_xyxy.shape == (1, 4)  # image 4's face
    assert dataset.unreadable_images == [f"0--Parade/0_Parade_{index:03d}" for index in (2, 3, 7)]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "0_Parade_002.jpg: the file is cut short" in messages[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_sets_are_one_line(broken: Path, workers: int) -> None:
    module = module_of(broken, workers=workers)
    with pytest.raises(UnreadableImage, match=r"0_Parade_001\.jpg .*the file is empty"):
        list(module.val_dataloader())
    for path in (broken / "WIDER_train").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"^none of the 8 training images can be read, the first is [^\n]*$"):
        list(module.train_dataloader())


def spoil(path: Path, how: str) -> None:
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()


@pytest.mark.parametrize(("how", "workers"), [("gone", 0), ("folder", 0), ("cut short", 2)])
def test_a_file_that_goes_bad_during_training_is_replaced(tmp_path: Path, how: str, workers: int) -> None:
    write_wider(tmp_path, "train", numbered(8))
    module = module_of(tmp_path, workers=workers)
    loader = module.train_dataloader()
    assert sorted(name for batch in epoch_of(loader, 0) for name in batch[0]) == sorted(numbered(8))
    spoil(tmp_path / "WIDER_train" / "images" / "0--Parade" / "0_Parade_005.jpg", how)
    names = [name for batch in epoch_of(loader, 30) for name in batch[0]]
    assert sorted(names) == sorted([*(set(numbered(8)) - {"0--Parade/0_Parade_005"}), "0--Parade/0_Parade_006"])
    assert module.train_dataset.unreadable_images == ["0--Parade/0_Parade_005"]


def test_bad_validation_images_are_said_before_training(tmp_path: Path) -> None:
    write_wider(tmp_path, "train", numbered(8))
    write_wider(tmp_path, "val", numbered(6))
    module = module_of(tmp_path)
    assert len(module.val_records) == 6  # read while all was there
    paths = [tmp_path / "WIDER_val" / "images" / "0--Parade" / f"0_Parade_{index:03d}.jpg" for index in (2, 4, 5)]
    for path, how in zip(paths, ("gone", "folder", "cut short"), strict=True):
        spoil(path, how)
    model = Recorder()
    with pytest.raises(InputError, match=rf"3 of 6 validation images .*{paths[0]}: .*data\.val\.images"):
        trainer(tmp_path / "run").fit(model, datamodule=module)
    assert model.seen == []


# Loaders


NOISE = {"_target_": "albumentations.GaussNoise", "p": 0.5}
ROTATION = {"_target_": "albumentations.Affine", "rotate": [-20, 20], "p": 0.5}


@pytest.fixture(params=[None, pytest.param("spawn", marks=pytest.mark.slow)])
def start(request: pytest.FixtureRequest) -> Iterator[None]:
    """How the system starts processes."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("start")
@pytest.mark.parametrize("augment", [Shift(), TrainAugment(SIZE, extra=[NOISE, ROTATION])], ids=["own", "extra"])
def test_workers_change_nothing(root: Path, augment: Any) -> None:
    alone = module_of(root, augment=augment)
    others = module_of(root, augment=augment, workers=2)
    loaders = alone.train_dataloader(), others.train_dataloader()
    for epoch in (0, 1):
        first, second = (epoch_of(loader, epoch) for loader in loaders)
        assert len(first) == 3 and first == second
    for one, two in zip(alone.val_dataloader(), others.val_dataloader(), strict=True):
        assert one.image_ids == two.image_ids
        assert torch.equal(one.images, two.images) and torch.equal(one.scale_xy, two.scale_xy)


def attached(module: FaceDataModule, rank: int, world_size: int) -> FaceDataModule:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)  # type: ignore[assignment]
    return module


def test_ranks_change_nothing(root: Path) -> None:
    whole = module_of(root).train_dataloader()
    shares = [attached(module_of(root), rank, 2).train_dataloader() for rank in range(2)]
    for loader in (whole, *shares):
        loader.sampler.set_epoch(1)
    for batch, first, second in zip(whole, *shares, strict=True):
        assert batch.image_ids == first.image_ids + second.image_ids
        assert torch.equal(batch.images, torch.cat([first.images, second.images]))
        assert torch.equal(batch.targets.boxes_xyxy, torch.cat([first.targets[0], second.targets[0]]))
    val = [[b.image_ids[0] for b in attached(module_of(root), rank, 2).val_dataloader()] for rank in range(2)]
    assert [len(share) for share in val] == [3, 2]
    assert sorted(val[0] + val[1]) == [record.image_id for record in module_of(root).val_records]


def test_epochs_differ_and_restarts_repeat(root: Path) -> None:
    first, again = module_of(root).train_dataloader(), module_of(root).train_dataloader()
    before = torch.get_rng_state()
    epochs = [epoch_of(first, epoch) for epoch in range(3)]
    assert torch.equal(torch.get_rng_state(), before), "loading draws nothing from the model's random numbers"
    assert [epoch_of(again, epoch) for epoch in (2, 0, 1)] == [epochs[2], epochs[0], epochs[1]]
    ids = [[name for batch in epoch for name in batch[0]] for epoch in epochs]
    assert ids[0] != ids[1] != ids[2]
    assert epoch_of(module_of(root, seed=6).train_dataloader(), 0) != epochs[0]


def test_state_counts_images_and_fits_other_batch_sizes(root: Path) -> None:
    loader = module_of(root, batch_size=4).train_dataloader()
    assert loader.state_dict() == {"epoch": 0, "images": 0}
    loader.sampler.set_epoch(3)
    iterator = iter(loader)
    next(iterator), next(iterator)
    assert loader.state_dict() == {"epoch": 3, "images": 8}
    other = module_of(root, batch_size=2).train_dataloader()
    other.load_state_dict({"epoch": 3, "images": 8})
    assert other.state_dict() == {"epoch": 3, "images": 8}
    expected = TrainBatchSampler(13, 2, seed=5)
    expected.set_epoch(3)
    names = [[f"0--Parade/0_Parade_{key.index:03d}" for key in keys] for keys in expected]
    assert [batch.image_ids for batch in other] == names[4:]
    assert [batch.image_ids for batch in other] == names  # an epoch run through once more is whole


# Lightning


def expected_run(root: Path, epochs: int = 3) -> list[tuple[Any, ...]]:
    """Without sampler and loader: 13 images in an order drawn from (seed, epoch), three batches of 4, one dropped."""
    dataset = TrainDataset(WiderFaceSource(root).train(), Shift(), seed=5)
    run = []
    for epoch in range(epochs):
        order = np.random.default_rng(np.random.SeedSequence([5, epoch])).permutation(13)
        for i in range(3):
            keys = [SampleKey(epoch, int(index)) for index in order[4 * i : 4 * i + 4]]
            run.append((epoch, i, *signature(dataset.batch(keys))))
    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_reach_the_samples_through_lightning(root: Path, tmp_path: Path, workers: int) -> None:
    model, data = Recorder(), module_of(root, workers=workers)
    trainer(tmp_path).fit(model, datamodule=data)
    assert model.seen == expected_run(root)
    assert model.validated == [record.image_id for record in data.val_records]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("checkpoint", "stop_at"),
    [
        ({"every_n_train_steps": 1, "save_top_k": -1}, 5),  # in the middle of epoch 1
        ({"every_n_train_steps": 3, "save_top_k": -1}, 7),  # after the last step of epoch 1
        ({"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": True}, 8),
    ],
)
def test_a_run_that_was_cut_off_goes_on_with_the_next_batch(
    root: Path, tmp_path: Path, workers: int, checkpoint: dict[str, Any], stop_at: int
) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{step}", auto_insert_metric_name=False, **checkpoint)
    with pytest.raises(RuntimeError, match="cut off"):
        trainer(tmp_path, callbacks=[saver]).fit(Recorder(stop_at), datamodule=module_of(root, workers=workers))
    saved = max(int(path.stem) for path in tmp_path.glob("*.ckpt"))
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=module_of(root, workers=workers), ckpt_path=tmp_path / f"{saved}.ckpt")
    assert 0 < saved <= stop_at
    assert model.seen == expected_run(root)[saved:]


# The module and the sources


def test_validation_order_and_the_setting_all(root: Path) -> None:
    data = module_of(root)
    ids = [record.image_id for record in data.val_records]
    assert ids == sorted(ids) and len(ids) == 5
    ground_truth = data.ground_truth
    assert list(ground_truth.image_ids) == ids
    assert ground_truth.faces_per_setting == {"all": 0 + 1 + 2 + 0 + 1}
    assert ground_truth.boxes_xywh[2].tolist() == [[2, 0, 12, 10], [2, 1, 12, 11]]


def test_official_ground_truth_is_found_and_selected(root: Path, tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(3))
    names = tuple(reversed(list(numbered(3))))
    boxes = [np.float64([[1, 2, 3, 4]]) for _ in names]
    counted = {setting: [np.array([setting != "easy"])] * 3 for setting in ("easy", "medium", "hard")}
    write_ground_truth(tmp_path / "ground_truth", GroundTruth(names, boxes, counted))
    (tmp_path / "two.txt").write_text("0--Parade/0_Parade_002\n0--Parade/0_Parade_001\n")
    truth = WiderFaceSource(tmp_path, val={"split": "val", "images": tmp_path / "two.txt"}).ground_truth()
    assert truth.image_ids == ("0--Parade/0_Parade_001", "0--Parade/0_Parade_002")
    assert truth.faces_per_setting == {"easy": 0, "medium": 2, "hard": 2}
    # A folder that is about other images says so.
    with pytest.raises(InputError, match="fit the validation images"):
        WiderFaceSource(root, ground_truth=tmp_path / "ground_truth").ground_truth()


def test_training_and_validation_lists_share_no_image(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(4))
    for name, indices_of in (("a", (0, 1)), ("b", (1, 2)), ("c", (3,))):
        (tmp_path / f"{name}.txt").write_text("".join(f"0--Parade/0_Parade_00{index}\n" for index in indices_of))
    part = {name: {"split": "val", "images": tmp_path / f"{name}.txt"} for name in "abc"}
    for val, says in ((part["b"], r"1 images .*_001"), (None, "2 images")):
        with pytest.raises(InputError, match=says):
            WiderFaceSource(tmp_path, train=part["a"], val=val).train()
    source = WiderFaceSource(tmp_path, train=part["a"], val=part["c"])
    assert (len(source.train()), len(source.val())) == (2, 1)


def test_mistakes(root: Path) -> None:
    for options, says in (
        ({"workers": -1}, "workers=-1"),
        ({"input_size": 640}, r"augment\.size=32.*input_size=640"),
        ({"cache": "disk"}, "^cache=disk"),
        ({"cache": "memory", "cache_gib": 0.0}, "^cache_gib=0"),
        ({"cache": "memory", "cache_gib": float("nan")}, "^cache_gib=nan"),
    ):
        with pytest.raises(InputError, match=says):
            module_of(root, **options)


# Decoded images in shared memory: the same samples, each file read once; and the limit is kept


IMAGE_BYTES = 3 * 48 * 64


@pytest.fixture
def dozen(tmp_path: Path) -> Path:
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
    taken = accumulate(3 * height * width for height, width in sizes_hw.tolist())
    return [index for index, total in enumerate(taken) if total <= limit and sizes_hw[index].all()]


def test_what_is_put_comes_back_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.integers(0, 6, (rng.integers(0, 12), 2))
        limit = int(rng.integers(0, 3 * sizes.prod(axis=1).sum() + 10))
        cache, expected = MemoryCache(sizes, limit), kept_by_hand(sizes, limit)
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        for index in rng.permutation(len(sizes)):
            assert cache.get(index) is None
            cache.put(index, images[index])
        assert cache.places == len(expected)
        for index, image in enumerate(images):
            found = cache.get(index)
            assert (found is not None) == (index in expected)
            assert found is None or np.array_equal(found, image)


def test_images_are_read_only_and_of_the_size_that_was_announced() -> None:
    cache = MemoryCache(np.array([[2, 3], [1, 1]]), 100)
    for shape, kept in (((3, 2, 3), False), ((2, 3, 3), True)):
        cache.put(0, np.full(shape, 7, np.uint8))
        assert (cache.get(0) is not None) == kept
    with pytest.raises(ValueError, match="read-only"):
        cache.get(0)[0, 0] = 1  # type: ignore[index]


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
    dozen: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, gib: float | None, limit: int
) -> None:
    monkeypatch.setattr(datamodule, "available_bytes", lambda device: free)
    cache = memory_cache([record.path for record in WiderFaceSource(dozen).train()], gib)
    assert (cache.limit_bytes, cache.places) == (limit, min(12, limit // IMAGE_BYTES))


# Training with it


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_each_file_read_once(
    dozen: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    without = module_of(dozen).train_dataloader()
    expected = [epoch_of(without, epoch) for epoch in range(3)]
    module = module_of(dozen, workers=workers, cache="memory")
    loader = module.train_dataloader()
    assert capsys.readouterr().out.startswith("cache=memory: 12 of 12 images fit into ")
    assert epoch_of(loader, 0) == expected[0]
    remove_files(dozen)  # what one worker has decoded the other finds as well
    assert [epoch_of(loader, epoch) for epoch in (1, 2)] == expected[1:]
    assert module.train_dataset.unreadable_images == []


def test_what_does_not_fit_is_read_each_time(dozen: Path) -> None:
    module = module_of(dozen, cache="memory", cache_gib=5 * IMAGE_BYTES / GIB)
    loader = module.train_dataloader()
    assert epoch_of(loader, 0) == epoch_of(loader, 0) == epoch_of(module_of(dozen).train_dataloader(), 0)
    remove_files(dozen)
    epoch_of(loader, 1)
    assert module.train_dataset.unreadable_images == [f"0--Parade/0_Parade_{index:03d}" for index in range(5, 12)]


def test_the_real_augmentation_takes_images_that_cannot_be_written(dozen: Path) -> None:
    records = WiderFaceSource(dozen).train()
    cache = memory_cache([record.path for record in records], None)
    with_cache, without = (TrainDataset(records, TrainAugment(32), 3, kept) for kept in (cache, None))
    for key in (SampleKey(epoch, index) for epoch in range(12) for index in range(12)):
        one, two = with_cache[key], without[key]
        assert torch.equal(one.image, two.image) and torch.equal(one.boxes_xyxy, two.boxes_xyxy)
