"""Which images form which batch: decided by (seed, epoch) alone, whatever the number of processes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from fanet_lightning.errors import InputError


class SampleKey(NamedTuple):
    """What a training sample is made from, beside the run's seed.

    The epoch travels in it: worker processes that outlive an epoch would not get to know otherwise.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # tuple has a method of this name


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Global batch k of an epoch is the k-th run of B entries of a permutation drawn from (seed, epoch).

    Rank r takes the r-th share of each batch, so one process and several train on the same batches.
    The last, incomplete batch is dropped, or with ``drop_last=False`` filled up from the start of the permutation.
    Fewer images than B are repeated to fill one batch.

    Args:
        num_images: N, at least 1.
        batch_size_total: B, over all ranks; ``world_size`` must divide it.

    Raises:
        InputError: B is not a multiple of the number of processes, or there is no image.
    """

    def __init__(
        self,
        num_images: int,
        batch_size_total: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        if num_images < 1:
            raise InputError("the training set has no image; check data.train.split and data.train.images")
        if batch_size_total < 1 or batch_size_total % world_size:
            raise InputError(
                f"batch_size={batch_size_total} is the total over {world_size} devices and must be a multiple of "
                f"{world_size}; take {max(1, round(batch_size_total / world_size)) * world_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes")
        self.num_images = num_images
        self.batch_size_total = batch_size_total
        self.rank, self.world_size = rank, world_size
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.epoch = 0
        self.first_batch = 0

    @property
    def sampler(self) -> "TrainBatchSampler":
        """Lightning calls ``set_epoch`` on ``dataloader.batch_sampler.sampler``: that is this object."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; another epoch than the current one starts at its first batch."""
        if epoch != self.epoch:
            self.first_batch = 0
        self.epoch = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Go on in the middle of an epoch: iteration begins with this batch, until the epoch changes."""
        self.epoch, self.first_batch = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch, at least 1."""
        whole, rest = divmod(self.num_images, self.batch_size_total)
        return max(1, whole + (1 if rest and not self.drop_last else 0))

    def permutation(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(N,) image indices of this epoch in order."""
        if not self.shuffle:
            return np.arange(self.num_images)
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch])).permutation(self.num_images)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # np.resize repeats from the start, which fills a last batch and a tiny set alike.
        order = np.resize(self.permutation(), len(self) * self.batch_size_total).reshape(len(self), self.world_size, -1)
        epoch = self.epoch
        for batch in range(self.first_batch, len(self)):
            yield [SampleKey(epoch, int(index)) for index in order[batch, self.rank]]


class EvalSampler(Sampler[int]):
    """Every image once over all ranks: rank r takes r, r + world_size, …; no padding, so ranks may differ by one."""

    def __init__(self, num_images: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes")
        self.indices = range(rank, num_images, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
