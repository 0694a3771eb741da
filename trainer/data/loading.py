"""Reads batches ahead: in this process, or in worker processes where data come from files.

What is random in reading and augmenting a batch begins at a seed of the batch's own: batches are the same however many
processes read them, and whether a training was interrupted or not.
"""

from __future__ import annotations

import atexit
import os
import random
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.accelerator import local_ranks
from trainer.data.augment import Augmentation
from trainer.data.dataset import Batch, Examples, Samples, pixels
from trainer.data.lengths import TOKENS, by_length, lengths_of
from trainer.submodel import TrainerError
from trainer.task import own

HELD_BYTES = 256 * 2**20
"""Up to which size a split whose pixels are read from files is decoded once and held, as bytes: an epoch costs what it would
with an array."""

HELD_BATCH = 64
FEW_BYTES = 32 * 2**20  # of decoded pixels that are not worth starting worker processes for

AHEAD = 2  # batches that each worker keeps ready; of photos each is some 40 MB of /dev/shm, which docker makes 64 MB large


class Asked(NamedTuple):
    """One batch: the indices of its examples, and where its random numbers begin."""

    indices: Tensor
    seed: int = 0


def reads_files(examples: Examples) -> bool:
    """Whether a batch is read from files, so that worker processes pay."""
    return bool(getattr(examples, "reads_files", False))


def usual_workers(examples: Examples) -> int:
    """None for what lies in memory; for what is read from files one less than this rank has cores, at most 8."""
    if not reads_files(examples):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // local_ranks() - 1))


def read(
    examples: Examples,
    order: Iterable[Asked],
    workers: int = -1,
    pin_memory: bool = False,
    augment: Augmentation | None = None,
) -> Generator[Batch, None, None]:
    """The batches in that order, augmented, whoever reads them. `workers` -1: the usual number.

    Raises what `examples.batch` raises, when its turn has come, as a TrainerError: of somebody's own code with method, file and
    line. Close it to end the worker processes.
    """
    prepared = _Prepared(examples, augment)
    workers = usual_workers(examples) if workers < 0 else workers
    if not workers and not pin_memory:
        for asked in order:
            yield prepared.batch(asked)
        return
    loader = DataLoader(
        prepared,
        sampler=_Order(order),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # for its workers' seeds: the global one stays as it is
        worker_init_fn=_leave_signals_to_the_parent,
    )
    with closing(_of_living_workers(loader, workers)) as batches:
        for batch in batches:
            if isinstance(batch, TrainerError):
                raise batch
            yield Batch({name: pixels(tensor) for name, tensor in batch.inputs.items()}, batch.targets)


def held(examples: Examples, workers: int = -1) -> Examples:
    """Pixels that lie in files, decoded into memory where they are few; any other examples as they are.

    Raises TrainerError naming a file that cannot be read.
    """
    if not hasattr(examples, "packed_batch"):
        return examples
    with own("data"):
        shapes = {name: tensor.shape[1:] for name, tensor in examples.batch(torch.arange(1)).inputs.items()}
    count = len(examples) * sum(shape.numel() for shape in shapes.values())
    if count > HELD_BYTES:
        return examples
    values = {name: torch.empty((len(examples), *shape), dtype=torch.uint8) for name, shape in shapes.items()}
    targets: list[Any] = []
    place = 0
    everything = torch.arange(len(examples))
    for batch in batches_of(examples, HELD_BATCH, everything, workers if count > FEW_BYTES else 0):
        for name, read_ahead in batch.inputs.items():
            values[name][place : place + len(read_ahead)] = read_ahead.mul_(255).round_()  # exact: they were bytes
        targets.append(batch.targets)
        place += HELD_BATCH
    given = targets[0]
    if isinstance(given, Mapping):
        return Samples(values, {name: torch.cat([part[name] for part in targets]) for name in given})
    return Samples(values, torch.cat(targets))


def batches_of(
    examples: Examples, batch_size: int, indices: Tensor | None = None, workers: int = -1, tokens: int = TOKENS
) -> Iterator[Batch]:
    """Batches of these examples in that order, the last one shorter; without `indices` of all examples, once each.

    Those are in order too, except that examples that have lengths come sorted by them, in batches that also hold about `tokens`
    tokens at most (`trainer.data.lengths`).
    """
    lengths = lengths_of(examples) if indices is None else None
    if lengths is not None:
        return read(
            examples, (Asked(part, place) for place, part in enumerate(by_length(lengths, batch_size, tokens))), workers
        )
    order = indices if indices is not None else torch.arange(len(examples))
    asked = (Asked(order[begin : begin + batch_size], begin) for begin in range(0, len(order), batch_size))
    return read(examples, asked, workers)


def _of_living_workers(loader: DataLoader[Any], workers: int) -> Generator[Any, None, None]:
    """What the loader gives. Raises TrainerError where a worker process cannot be started or was killed, with what helps."""
    others = active_children()
    try:
        with _signals_held():
            batches = iter(loader)
    except Exception as error:  # where processes are not forked, everything that they get is pickled
        raise TrainerError(f"workers = {workers}: the data cannot be handed to them: {error}; allowed is 0") from error
    _BEGUN.update({process: os.getpid() for process in active_children() if process not in others})
    try:
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
                    f"workers = {workers}: {why} They hand batches over in /dev/shm: make it larger (docker: --shm-size), or "
                    "read with --workers 0"
                ) from None
            yield batch
    finally:
        del batches  # which ends the workers


_BEGUN: WeakKeyDictionary[BaseProcess, int] = WeakKeyDictionary()
"""Worker processes, and whose they are."""


@atexit.register
def _end_workers() -> None:
    """Those whose batches somebody still holds: Python would ask them to end by SIGTERM, and wait for ever."""
    left = [process for process, parent in _BEGUN.items() if parent == os.getpid()]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler calls a worker's end a failure
    for process in left:
        process.kill()


class _Prepared(Dataset[Batch | TrainerError]):
    def __init__(self, examples: Examples, augment: Augmentation | None) -> None:
        self.examples, self.augment = examples, augment

    def batch(self, asked: Asked) -> Batch:
        if isinstance(self.examples, Samples):
            batch = self._read(asked.indices)
        else:
            with _random_from(asked.seed):
                batch = self._read(asked.indices)
        if self.augment is None:
            return batch
        with own("augmentation"):
            return Batch(*self.augment(batch.inputs, batch.targets, torch.Generator().manual_seed(asked.seed)))

    def _read(self, indices: Tensor) -> Batch:
        with own("data"):
            return self.examples.batch(indices)

    def __getitem__(self, numbers: tuple[list[int], int]) -> Batch | TrainerError:
        """An error is handed over as it is: raised in a worker it would arrive as a page of traceback. So are pixels as bytes,
        where nothing is to be computed with them."""
        asked = Asked(torch.tensor(numbers[0], dtype=torch.int64), numbers[1])
        packed = getattr(self.examples, "packed_batch", None)
        try:
            if packed is not None and self.augment is None:
                with own("data"):
                    batch: Batch = packed(asked.indices)
                return batch
            return self.batch(asked)
        except TrainerError as error:
            return error


class _Order:
    """A sampler over any iterable of batches. Indices go to a worker as numbers: a tensor would lie in shared memory, of which
    each takes a file descriptor and a connection of its own."""

    def __init__(self, order: Iterable[Asked]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        return ((asked.indices.tolist(), asked.seed) for asked in self.order)


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a service manager's SIGTERM reach all processes of a group: a worker that died of one would end the training
    before its checkpoint. It ends when its parent says so through its queue, kills it, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Within: SIGINT and SIGTERM wait. Processes that are begun here never get them, not even before they can ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _random_from(seed: int) -> Iterator[None]:
    """Within: Python's, numpy's and torch's random numbers begin at the seed; afterwards they go on where they were."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
