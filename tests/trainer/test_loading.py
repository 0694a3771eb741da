"""Batches read ahead: the same whoever reads them, whatever is random in it, and processes that end when they should."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from tests.helpers.hard import Hard
from tests.helpers.runs import equal, log_of, weights
from trainer import NestedModel, Samples, TrainerError, fit
from trainer.data import as_examples
from trainer.data.augment import Augmented
from trainer.data.loading import Asked, read
from trainer.interruption import TrainingInterrupted
from trainer.task import Targets


class Jittered(Dataset[tuple[Tensor, int]]):
    """Every item is drawn anew each time, by each of the generators that people draw with."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        jitter = torch.rand(5) + random.random() + float(np.random.random())
        return torch.full((5,), float(index)) / 40 + 0.1 * jitter, index % 4


def flipped(inputs: Mapping[str, Tensor], targets: Targets, generator: Generator) -> Augmented:
    """An augmentation that processes can be handed."""
    sign = torch.where(torch.rand(len(inputs["input"]), 1, generator=generator) < 0.5, -1.0, 1.0)
    return {"input": inputs["input"] * sign}, targets


def order() -> list[Asked]:
    return [Asked(indices, seed) for seed, indices in enumerate(torch.arange(40).split(8))]


def values(workers: int, **options: Any) -> list[Tensor]:
    return [batch.inputs["input"] for batch in read(as_examples(Jittered()), order(), workers, **options)]


def test_what_is_random_does_not_depend_on_who_reads() -> None:
    here = values(0, augment=flipped)
    for workers in (1, 2):
        there = values(workers, augment=flipped)
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert not torch.equal(*(values(0)[batch] - torch.arange(8 * batch, 8 * batch + 8)[:, None] / 40 for batch in (0, 1)))


def test_reading_leaves_the_random_numbers_of_the_process_alone() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    wanted = drawn()
    for workers in (0, 1):
        seed()
        values(workers)
        assert drawn() == wanted, workers


class Stopping(Jittered):
    """Sends the reading process' parent a signal when an item is read for the first time that is of the given number."""

    def __init__(self, at: int, parent: int, mark: Path) -> None:
        self.at, self.parent, self.mark = at, parent, mark

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.at and not self.mark.exists():
            self.mark.touch()
            os.kill(self.parent, signal.SIGTERM)
        return super().__getitem__(index)


def test_a_training_with_workers_is_resumed_in_the_middle_of_an_epoch_to_the_bit(tmp_path: Path) -> None:
    """However many workers, and whether or not it was interrupted."""
    options: dict[str, Any] = {"epochs": 3, "batch_size": 4, "show_progress": False, "augment": flipped}
    results = {}
    for workers in (0, 2):
        torch.manual_seed(0)
        whole = NestedModel(Hard())
        fit(whole, Jittered(), run=tmp_path / f"whole{workers}", workers=workers, **options)
        results[workers] = whole
    assert equal(weights(results[0]), weights(results[2]))
    torch.manual_seed(0)
    interrupted = NestedModel(Hard())
    stopping = Stopping(21, os.getpid(), tmp_path / "mark")
    with pytest.raises(TrainingInterrupted, match="--resume") as stopped:
        fit(interrupted, stopping, run=tmp_path / "run", workers=2, **options)
    assert int(str(stopped.value).split()[3]) < 30
    resumed = NestedModel(Hard())
    fit(resumed, Jittered(), run=tmp_path / "run", resume=True, workers=1, **options)
    assert equal(weights(resumed), weights(results[0]))
    assert all(equal(resumed.calibration[sub], results[0].calibration[sub]) for sub in resumed.submodels)
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("run", "whole0")]
    assert losses[0][-1] == losses[1][-1]


def test_a_signal_to_a_worker_does_not_end_it() -> None:
    """Ctrl-C and a service manager send it to all processes of a group: only the parent is to stop, after its checkpoint."""
    before = active_children()
    batches = read(as_examples(Jittered()), order(), workers=2)
    next(batches)
    workers = [process for process in active_children() if process not in before]
    assert len(workers) == 2
    for process in workers:
        assert process.pid is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(process.pid, number)
    assert len(list(batches)) == 4
    for process in workers:
        process.join(30)
    assert not any(process.is_alive() for process in workers)


def test_workers_end_when_reading_is_given_up() -> None:
    before = active_children()
    batches = read(as_examples(Jittered()), order(), workers=2)
    next(batches)
    workers = [process for process in active_children() if process not in before]
    batches.close()
    assert not any(process.is_alive() for process in workers)


HELD = """
import torch
from trainer import Samples
from trainer.data.loading import Asked, read
held = read(Samples(torch.rand(8, 3), torch.arange(8)), [Asked(i) for i in torch.arange(8).split(2)], workers=2)
next(held)
print("reads", flush=True)
"""


def test_a_process_ends_though_it_has_not_read_to_the_end() -> None:
    """As after an error whose traceback holds the reader: its workers take no SIGTERM, which Python would send and wait for."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("reads\n", "")


class Broken(Jittered):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 17:
            raise OSError("no such picture")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_turn_with_its_place(workers: int) -> None:
    batches = read(as_examples(Broken()), order(), workers)
    assert [len(next(batches).targets) for _ in range(2)] == [8, 8]
    with pytest.raises(TrainerError, match=rf"OSError: no such picture \(in Broken.__getitem__, {__file__}, line \d+\)"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_an_augmentation_is_named(workers: int) -> None:
    def wrong(inputs: Mapping[str, Tensor], targets: Targets, generator: Generator) -> Augmented:
        return {"input": inputs["picture"]}, targets

    batches = read(Samples(torch.rand(8, 3), torch.arange(8)), [Asked(torch.arange(4), 1)], workers, augment=wrong)
    with pytest.raises(TrainerError, match=r"augmentation: KeyError: 'picture' \(in .*wrong, .*test_loading.py, line \d+\)"):
        next(batches)


def test_data_that_cannot_be_handed_over_are_told() -> None:
    """Where processes are not forked, as on macOS."""
    script = """
import multiprocessing, torch
from trainer import Samples, TrainerError
from trainer.data.loading import Asked, read
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    data = Samples(torch.rand(8, 3), torch.arange(8))
    try:
        next(read(data, [Asked(torch.arange(4), 1)], workers=1, augment=lambda *given: given[:2]))
    except TrainerError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("workers = 1: the data cannot be handed to them: "), done
    assert done.stdout.endswith("; allowed is 0\n")
