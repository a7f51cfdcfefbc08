"""Which images form which batch."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.datamodule import EvalSampler, SampleKey, TrainBatchSampler


def indices(sampler: TrainBatchSampler) -> list[list[int]]:
    return [[key.index for key in batch] for batch in sampler]


def test_unshuffled_by_hand() -> None:
    assert indices(TrainBatchSampler(7, 3, shuffle=False)) == [[0, 1, 2], [3, 4, 5]]
    assert indices(TrainBatchSampler(7, 3, shuffle=False, drop_last=False)) == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    assert indices(TrainBatchSampler(2, 5, shuffle=False)) == [[0, 1, 0, 1, 0]]
    assert indices(TrainBatchSampler(7, 4, rank=1, world_size=2, shuffle=False)) == [[2, 3]]


def test_keys_carry_the_epoch() -> None:
    sampler = TrainBatchSampler(4, 2, shuffle=False)
    sampler.set_epoch(7)
    assert list(sampler) == [[SampleKey(7, 0), SampleKey(7, 1)], [SampleKey(7, 2), SampleKey(7, 3)]]


def test_lightning_finds_the_epoch_setter() -> None:
    from lightning_fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    sampler = TrainBatchSampler(4, 2)
    _set_sampler_epoch(DataLoader(range(4), batch_sampler=sampler), 3)  # type: ignore[arg-type]
    assert sampler.epoch == 3


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 6), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**32), st.booleans()
)
def test_ranks_share_one_process_s_batches(
    images: int, share: int, world: int, epoch: int, seed: int, drop_last: bool
) -> None:
    total = share * world
    alone = TrainBatchSampler(images, total, seed=seed, drop_last=drop_last)
    alone.set_epoch(epoch)
    batches = indices(alone)
    assert len(batches) == len(alone) >= 1
    together = []
    for rank in range(world):
        sampler = TrainBatchSampler(images, total, rank, world, seed, drop_last=drop_last)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(alone)
        together.append(indices(sampler))
    assert [list(chain(*parts)) for parts in zip(*together, strict=True)] == batches
    # Every image at most once, but for what fills the last batch; at least once where nothing is dropped.
    flat = list(chain(*batches))
    counts = np.bincount(flat, minlength=images)
    if images >= total:
        assert len(set(flat[: images // total * total])) == images // total * total
        assert counts.max() <= (1 if drop_last or images % total == 0 else 2)
    if not drop_last or images <= total:
        assert counts.min() >= 1


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = TrainBatchSampler(50, 10, seed=seed)
        sampler.set_epoch(epoch)
        return list(chain(*indices(sampler)))

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(o) == list(range(50)) for o in orders)
    assert len({tuple(o) for o in orders}) == 9


def test_going_on_in_the_middle() -> None:
    whole = TrainBatchSampler(20, 4, seed=3)
    whole.set_epoch(2)
    sampler = TrainBatchSampler(20, 4, seed=3)
    sampler.start_at(epoch=2, batch=3)
    sampler.set_epoch(2)
    assert list(sampler) == list(whole)[3:]
    assert len(sampler) == 5
    sampler.set_epoch(3)
    whole.set_epoch(3)
    assert list(sampler) == list(whole)


def test_mistakes() -> None:
    with pytest.raises(InputError, match=r"batch_size=5.* 4"):
        TrainBatchSampler(10, 5, 0, 2)
    with pytest.raises(InputError, match="batch_size=0"):
        TrainBatchSampler(10, 0)
    with pytest.raises(InputError, match="no image"):
        TrainBatchSampler(0, 4)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        TrainBatchSampler(10, 4, 2, 2)
    with pytest.raises(ValueError, match="rank 1 of 1"):
        EvalSampler(10, 1, 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5))
def test_eval_shares_hold_each_image_once(images: int, world: int) -> None:
    shares = [list(EvalSampler(images, rank, world)) for rank in range(world)]
    assert sorted(chain(*shares)) == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(EvalSampler(images, rank, world)) for rank in range(world)] == [len(share) for share in shares]
    assert all(share == sorted(share) for share in shares)
