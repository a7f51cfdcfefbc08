"""Data loaders that hand a worker's errors over whole, and that resume in the middle of an epoch."""

import multiprocessing.context
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fanet_lightning.data.dataset import EvalDataset, TrainDataset, TrainSample, collate_train
from fanet_lightning.data.sampler import EvalSampler, TrainBatchSampler
from fanet_lightning.errors import InputError
from fanet_lightning.structures import Batch


class _ErrorsAsValues(Dataset[Any]):
    """A worker that raises loses its message in a traceback of many lines; a value comes through unharmed."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except InputError as error:
            return error


def _collate_train_or_error(samples: list[TrainSample | InputError]) -> Batch | InputError:
    sound: list[TrainSample] = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        sound.append(sample)
    return in_shared_memory(collate_train(sound))  # type: ignore[no-any-return]


def in_shared_memory(item: Any) -> Any:
    """``item``, whose tensors a worker has put where they travel from.

    Where there is no room for them, that raises here, and the loader hears of it. Left to the queue, its thread would
    drop the item, and the loader would wait for it for ever.
    """
    if get_worker_info() is not None:
        for leaf in tree_leaves(item):
            if isinstance(leaf, torch.Tensor):
                leaf.share_memory_()  # type: ignore[no-untyped-call]
    return item


def _start_worker(worker: int) -> None:
    # The workers share the cores already; OpenCV's threads on top only get in each other's way.
    import cv2

    cv2.setNumThreads(0)


class _Loader(DataLoader[Any]):
    """``waited_seconds``: how long whoever iterates has waited for batches, over all epochs: for workers, or without
    any for the loading itself. ``clock``: seconds; for tests."""

    def __init__(
        self,
        dataset: Dataset[Any],
        workers: int,
        pin_memory: bool,
        multiprocessing_context: str | multiprocessing.context.BaseContext | None,
        **options: Any,
    ) -> None:
        super().__init__(
            _ErrorsAsValues(dataset),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            multiprocessing_context=multiprocessing_context if workers > 0 else None,
            worker_init_fn=_start_worker,
            # Of its own, so that starting an epoch draws nothing from the model's random numbers.
            generator=torch.Generator().manual_seed(0),
            **options,
        )
        self.clock: Callable[[], float] = time.perf_counter
        self.waited_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        start = self.clock()
        items = super().__iter__()
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.waited_seconds += self.clock() - start
            if isinstance(item, InputError):
                raise item
            yield item
            start = self.clock()


class TrainLoader(_Loader):
    """Batches (:class:`~fanet_lightning.structures.Batch`) of this rank's share.

    Lightning saves ``state_dict`` in checkpoints and loads it before the first batch, so a run that was cut off
    inside an epoch goes on with the next batch of the same permutation. The state counts images, not batches: it may
    be resumed with another number of processes, and with another batch size at the batch that holds the first unseen
    image.
    """

    def __init__(
        self,
        dataset: TrainDataset,
        batch_sampler: TrainBatchSampler,
        workers: int = 0,
        pin_memory: bool = False,
        multiprocessing_context: str | multiprocessing.context.BaseContext | None = None,
    ) -> None:
        super().__init__(
            dataset,
            workers,
            pin_memory,
            multiprocessing_context,
            batch_sampler=batch_sampler,
            collate_fn=_collate_train_or_error,
        )
        self._batches = batch_sampler
        self._position = (0, 0)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: nothing is drawn before the first batch is asked for. Lightning asks for an iterator before it
        # sets the epoch.
        sampler = self._batches
        done = sampler.first_batch
        self._position = (sampler.epoch, done)
        try:
            for batch in super().__iter__():
                # Counted before it is handed out: a checkpoint after this batch's step must not train on it again.
                done += 1
                self._position = (sampler.epoch, done)
                yield batch
        finally:
            # The offset of a resumed epoch is used up, also where a limit ends the epoch early.
            sampler.first_batch = 0

    def state_dict(self) -> dict[str, int]:
        """``epoch``, and ``images``: how many entries of its permutation were handed out over all ranks."""
        epoch, done = self._position
        return {"epoch": epoch, "images": done * self._batches.batch_size_total}

    def load_state_dict(self, state: dict[str, int]) -> None:
        batch = min(state["images"] // self._batches.batch_size_total, len(self._batches))
        self._batches.start_at(state["epoch"], batch)
        self._position = (state["epoch"], batch)


class EvalLoader(_Loader):
    """One image a batch (:class:`~fanet_lightning.structures.EvalBatch`), each on one rank only."""

    def __init__(
        self,
        dataset: EvalDataset,
        sampler: EvalSampler,
        workers: int = 0,
        pin_memory: bool = False,
        multiprocessing_context: str | multiprocessing.context.BaseContext | None = None,
    ) -> None:
        super().__init__(
            dataset,
            workers,
            pin_memory,
            multiprocessing_context,
            batch_size=None,
            sampler=sampler,
            collate_fn=in_shared_memory,
        )
