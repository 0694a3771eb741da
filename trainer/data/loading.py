"""Reads batches ahead: in this process, or in worker processes where data come from files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.data.dataset import Batch, Examples, pixels
from trainer.submodel import TrainerError

AHEAD = 4  # batches that each worker keeps ready


class _ByIndices(Dataset[Batch | TrainerError]):
    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, indices: Tensor) -> Batch | TrainerError:
        """An error is handed over as it is: raised in a worker it would arrive as a page of traceback."""
        try:
            batch: Batch = getattr(self.examples, "packed_batch", self.examples.batch)(indices)
            return batch
        except TrainerError as error:
            return error


class _Order:
    """A sampler over any iterable of batches' indices."""

    def __init__(self, order: Iterable[Tensor]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.order)


def reads_files(examples: Examples) -> bool:
    return bool(getattr(examples, "reads_files", False))


def usual_workers(examples: Examples) -> int:
    """None for what lies in memory; for what is read from files one less than this process' share of the cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # under torchrun
    return min(8, max(1, cores - 1)) if reads_files(examples) else 0


def read(examples: Examples, order: Iterable[Tensor], workers: int = -1, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches of these indices, in that order, whoever reads them. `workers` -1: the usual number.

    Raises what `examples.batch` raises, when its turn has come.
    """
    workers = usual_workers(examples) if workers < 0 else workers
    if not workers and not pin_memory:
        for indices in order:
            yield examples.batch(indices)
        return
    loader = DataLoader(
        _ByIndices(examples),
        sampler=_Order(order),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # for its workers' seeds: the global one stays as it is
        worker_init_fn=_in_worker,
    )
    for batch in _of_living_workers(loader, workers):
        if isinstance(batch, TrainerError):
            raise batch
        yield Batch({name: pixels(tensor) for name, tensor in batch.inputs.items()}, batch.targets)


def _of_living_workers(loader: DataLoader[Any], workers: int) -> Iterator[Any]:
    """What the loader gives. Raises TrainerError where a worker process was killed, with what helps."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            why = str(error).partition("\n")[0]
            raise TrainerError(
                f"workers = {workers}: {why} They hand batches over in /dev/shm: make it larger (docker: --shm-size), or read "
                "with --workers 0"
            ) from None
        yield batch


def _in_worker(number: int) -> None:
    """Not the handlers of the training, which a worker has inherited: it is the training that ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _as_it_is(batch: Any) -> Any:
    return batch


def batches_of(examples: Examples, batch_size: int, indices: Tensor | None = None, workers: int = -1) -> Iterator[Batch]:
    """Batches in order, the last one shorter."""
    order = indices if indices is not None else torch.arange(len(examples))
    return read(examples, (order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)), workers)
