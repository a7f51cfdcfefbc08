"""Which images form which batch."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.datamodule import SampleKey, TrainBatchSampler


def indices(sampler: TrainBatchSampler) -> list[list[int]]:
    return [[key.index for key in batch] for batch in sampler]


@pytest.mark.parametrize(
    ("images", "batch", "rank", "world", "expected"),
    [
        (7, 3, 0, 1, [[0, 1, 2], [3, 4, 5]]),
        (2, 5, 0, 1, [[0, 1, 0, 1, 0]]),
        (7, 4, 1, 2, [[2, 3]]),
    ],
)
def test_batches_by_hand(images: int, batch: int, rank: int, world: int, expected: list[list[int]]) -> None:
    """As places in the permutation; the keys carry the epoch."""
    sampler = TrainBatchSampler(images, batch, rank, world)
    sampler.set_epoch(7)
    order = sampler.permutation().tolist()
    assert list(sampler) == [[SampleKey(7, order[place]) for place in places] for places in expected]


def test_lightning_finds_the_epoch_setter() -> None:
    from lightning_fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    sampler = TrainBatchSampler(4, 2)
    _set_sampler_epoch(DataLoader(range(4), batch_size=None, sampler=sampler), 3)
    assert sampler.epoch == 3


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**32))
def test_ranks_share_one_process_s_batches(images: int, share: int, world: int, epoch: int, seed: int) -> None:
    total = share * world
    samplers = [TrainBatchSampler(images, total, seed=seed)]
    samplers += [TrainBatchSampler(images, total, rank, world, seed) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches, *together = map(indices, samplers)
    assert len(batches) == len(samplers[-1]) >= 1
    assert [list(chain(*parts)) for parts in zip(*together, strict=True)] == batches
    # Every image at most once, or in a tiny set at least once.
    flat = list(chain(*batches))
    assert len(set(flat)) == min(images, len(flat))


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
