"""Where a training step's time goes, what the trainer adds to the bare passes, and what each method costs in memory."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training.experiment import Alone, macs_of, spread
from benchmarks.training.methods import Method
from benchmarks.training.setups import SETUPS
from trainer import NestedModel, Samples, SubModel, calibrate
from trainer import calibration as calibration_module
from trainer import evaluate as evaluate_module
from trainer import nested as nested_module
from trainer.calibration import calibration_batches
from trainer.data import Batch, load_data
from trainer.data.loading import read
from trainer.evaluate import scores_of
from trainer.options import FitOptions
from trainer.speed.layout import channels_last, laid_out, row_major
from trainer.speed.sharing import sharing as sharing_of_layers
from trainer.training import _Training

STEPS = 40
PAIRS = 120
CPU = torch.device("cpu")


PARTS = ("primitives", "layout", "sharing", "overhead", "methods")


def measure(
    setup: str, methods: Mapping[str, Method], data: str, threads: int, parts: Collection[str] = PARTS
) -> dict[str, Any]:
    """Each part in a process of its own: primitives are created once per process, and memory only grows."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, torch.set_num_threads, (threads,), maxtasksperchild=1) as pool:
        how: dict[str, Callable[[], Any]] = {
            "primitives": lambda: pool.apply(primitives, (setup, data)),
            "layout": lambda: pool.apply(layouts, (setup, data)),
            "sharing": lambda: pool.apply(sharing, (setup, data)),
            "overhead": lambda: pool.apply(overhead, (setup, methods["ours"], data)),
            "methods": lambda: {name: pool.apply(method_cost, (setup, method, data)) for name, method in methods.items()},
        }
        return {part: how[part]() for part in parts}


def primitives(setup: str, data: str) -> dict[str, float]:
    """The first pass of a shape creates oneDNN's primitives for it; what 160 sub-models need must stay in its cache."""
    training = _training(setup, Method("sorted", 1, per_step=1), data)
    inputs, labels = _batch(training)

    def all_of_them() -> float:
        def each() -> None:
            for sub in training.nested.submodels:
                _pass(training.nested, sub, inputs, labels)

        return _seconds(each)

    first, second, third = all_of_them(), all_of_them(), all_of_them()
    return {"first_round_s": first, "second_round_s": second, "third_round_s": third, "sub_models": 160}


def layouts(setup: str, data: str) -> dict[str, float]:
    """Time of the passes with the channels last, relative to row-major batches; the two take turns."""
    training = _training(setup, Method("sorted", 1, per_step=1), data)
    inputs, labels = _batch(training)
    placed = {"last": _each(channels_last, inputs), "row": _each(row_major, inputs)}
    taken: dict[str, list[float]] = defaultdict(list)
    for step in range(STEPS):
        (sub,) = training.rule.sample(step, 0)
        for name, batch in [*placed.items()][:: 1 if step % 2 else -1]:
            _pass(training.nested, sub, batch, labels)
            taken[name].append(_seconds(lambda sub=sub, batch=batch: _pass(training.nested, sub, batch, labels)))  # type: ignore[misc]
    ratios = np.array(taken["last"]) / np.array(taken["row"])
    return {"channels_last_ratio": float(np.median(ratios)), "of_total_time": sum(taken["last"]) / sum(taken["row"])}


def sharing(setup: str, data: str) -> dict[str, float]:
    """Time of calibrating and evaluating the grid with shared layers computed once, relative to each by itself."""
    training = _training(setup, Method("sorted", 1, per_step=1), data)
    nested, examples = training.nested, load_data(data).validation
    batches = list(calibration_batches(training.examples, 2))
    some = Samples(*examples.batch(torch.arange(1024)))
    taken: dict[str, tuple[float, float]] = {}
    for name, patched in (("apart", lambda device: nullcontext()), ("shared", sharing_of_layers)):
        with mock.patch.object(calibration_module, "sharing", patched), mock.patch.object(evaluate_module, "sharing", patched):
            nested.eval()
            calibrating = _seconds(lambda: calibrate(nested, batches))
            taken[name] = calibrating, _seconds(lambda: scores_of(nested, nested.submodels, some))
    (calibration, evaluation), apart = taken["shared"], taken["apart"]
    return {"calibration_ratio": calibration / apart[0], "evaluation_ratio": evaluation / apart[1]}


def overhead(setup: str, method: Method, data: str) -> dict[str, Any]:
    """A whole step of `fit` over the bare forward and backward of its sub-models, built alone; the two take turns.

    Both see the same batch in the same layout. Each step is first done once without being timed.
    """
    training = _training(setup, method, data)
    inputs, labels = _batch(training)
    batches = _batches(training)
    alone: dict[SubModel, nn.Module] = {}
    taken: dict[str, list[float]] = defaultdict(list)

    def bare() -> None:
        for sub in training.rule.sample(training.step, 0):
            alone[sub].zero_grad(set_to_none=True)
            F.cross_entropy(alone[sub](*inputs.values()), labels).backward()  # type: ignore[no-untyped-call]

    for step in range(PAIRS):
        training.step = step
        for sub in training.rule.sample(step, 0):
            alone.setdefault(sub, training.nested.extract(sub).train())
        pair: list[tuple[str, Callable[[], object]]] = [("bare", bare), ("ours", lambda: training._one_step(next(batches)))]
        for name, do in pair[:: 1 if step % 2 else -1]:
            do()
            taken[name].append(_seconds(do))
    ratios = np.array(taken["ours"]) / np.array(taken["bare"])
    parts: dict[str, float] = defaultdict(float)
    begun = time.perf_counter()
    with _timed(training, parts) as read_again:
        for step in range(STEPS):
            training.step = step
            training._one_step(next(read_again))
    total = time.perf_counter() - begun
    shares = {name: round(seconds / total, 4) for name, seconds in parts.items()}
    return {
        "ratio": sum(taken["ours"]) / sum(taken["bare"]),
        "per_step_ratio": float(np.median(ratios)),
        "step_ms": 1e3 * float(np.median(taken["ours"])),
        "shares": {**shares, "other": round(1 - sum(shares.values()), 4)},
    }


def method_cost(setup: str, method: Method, data: str) -> dict[str, float]:
    """Seconds of a step and of a gradient computation, and how far the process' memory rises above its start."""
    training = _training(setup, method, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = []
    batches = _batches(training)
    for step in range(STEPS):
        training.step = step
        training._one_step(next(batches))  # of sub-models that are seen for the first time
        taken.append(_seconds(lambda: training._one_step(next(batches))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    per_step = training.gradients.passes / (2 * STEPS)
    return {
        "step_ms": 1e3 * float(np.mean(taken)),
        "gradients_per_step": per_step,
        "gradient_ms": 1e3 * float(np.mean(taken)) / per_step,
        "memory_mb": (peak - before) / 1024,
    }


def _training(setup: str, method: Method, data: str) -> _Training:
    loaded = load_data(data)
    family = SETUPS[setup].build(loaded)
    torch.manual_seed(0)
    nested = NestedModel(Alone(family, family.largest) if method.alone else family)
    if method.sizes and not method.alone:
        nested.submodels = spread(macs_of(family), method.sizes)
    options = FitOptions(update=method.update, samples_per_step=method.samples_per_step, **method.options)
    return _Training(nested, loaded.train, None, options, loaded.augment, None)


def _batch(training: _Training) -> tuple[dict[str, Tensor], Tensor]:
    inputs, labels = training.examples.batch(torch.arange(training.batch_size))
    assert isinstance(labels, Tensor)
    return laid_out(inputs, CPU, training.channels_last), labels


def _batches(training: _Training) -> Iterator[Batch]:
    """As `fit` reads them."""
    return read(training.examples, training._order(), augment=training.augment)


def _each(layout: Callable[[Tensor], Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: layout(tensor) for name, tensor in inputs.items()}


def _pass(nested: NestedModel, sub: SubModel, inputs: Mapping[str, Tensor], labels: Tensor) -> None:
    nested.accumulate_gradients(sub, inputs, lambda outputs: F.cross_entropy(outputs["logits"], labels))
    nested.zero_grad(set_to_none=True)


@contextmanager
def _timed(training: _Training, parts: dict[str, float]) -> Iterator[Iterator[Batch]]:
    """Sums up the time of a step's parts while it runs as it is. Yields the batches to give to the steps."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                parts[name] += time.perf_counter() - begun

        return call

    with (
        mock.patch.object(type(training.examples), "batch", timed("data", type(training.examples).batch)),
        mock.patch.object(training, "augment", timed("augmentation", training.augment)),  # type: ignore[arg-type]
        mock.patch.object(nested_module, "cut", timed("views", nested_module.cut)),
        mock.patch.object(NestedModel, "call", timed("forward", NestedModel.call)),
        mock.patch.object(Tensor, "backward", timed("backward", Tensor.backward)),
        mock.patch.object(nested_module, "_add_gradient", timed("adding gradients", nested_module._add_gradient)),
        mock.patch.object(torch.nn.utils, "clip_grad_norm_", timed("clipping", torch.nn.utils.clip_grad_norm_)),
        mock.patch.object(training.optimizer, "step", timed("optimizer", training.optimizer.step)),
    ):
        yield _batches(training)


def _seconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun
