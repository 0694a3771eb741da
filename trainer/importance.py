"""Puts the units that matter most first, so that a sub-model, which keeps the first ones, keeps those.

Prefixes of a network that was trained alone are arbitrary parts of it. Its units can be put in another order without changing
what it computes (`trainer.symmetry`); in the order of their importance the prefixes are what pruning would keep. Structured
pruning by first-order importance: Molchanov et al. 2019 (arXiv 1906.10771, section 3); sorting before a nested training: Cai et
al. 2020 (arXiv 1908.09791, section 3.2, by L1 norm).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset import Data, as_examples, as_inputs, each
from trainer.data.lengths import lengths_of
from trainer.data.loading import batches_of
from trainer.evaluate import NUMBERS
from trainer.nested import NestedModel, batchnorm_names
from trainer.submodel import TrainerError
from trainer.symmetry import Symmetry, find_symmetry, scores_by_unit

CRITERIA = {
    "taylor": "by how much the loss would change without a unit: |Σ weight · gradient| over what belongs to it",
    "saliency": "the same, each weight for itself: Σ |weight · gradient|",
    "magnitude": "Σ |weight|, without data",
    "l2": "Σ weight², without data",
}
AUTO = "auto"
OF_WEIGHTS = {"magnitude": 1, "l2": 2}
"""The criteria that need no data, and the power of a weight that they add up."""
EXAMPLES = 1024
BATCH = 64
TOKENS = 2**14
"""Of a language model: that are looked at. A pass over them takes minutes on a CPU."""
TOLERANCE = 1e-5
"""Of the largest output: by how much a new order may change what the full model answers, in single precision."""


@dataclass(frozen=True)
class Sorting:
    """What `sort_by_importance` has done."""

    groups: Mapping[str, int]  # that were sorted: name after a parameter and its axis, number of units
    fixed: Mapping[str, str]  # axes that sub-models cut and that cannot be sorted, and why
    error: float  # largest change of an output of the full model, relative to its largest
    orders: Mapping[str, NDArray[np.int64]]  # of each group: which unit came to each place
    criterion: str


def sort_by_importance(nested: NestedModel, data: Data | None = None, criterion: str = AUTO, seed: int = 0) -> Sorting:
    """Sorts the full model's units in place, the most important first; what it computes stays as it is.

    `data`: training examples, of which it looks at up to 1,024. `criterion`: one of CRITERIA, or auto: l2 where there is
    BatchNorm, else saliency, as measured at half width before any training (results/sorting.csv of benchmarks/training and
    benchmarks/text): a norm takes away the scale of the weights before it, and near a minimum gradients are noise, so that
    they order converged networks with BatchNorm worse than chance; transformers have better halves by them.

    Raises TrainerError for an unknown criterion, for data that are missing, and where the full model answers otherwise
    afterwards (its parameters are put back first).
    """
    if criterion == AUTO:
        criterion = "l2" if batchnorm_names(nested.full) else "saliency"
    if criterion not in CRITERIA:
        raise TrainerError(f"sort = {criterion!r}: allowed are {AUTO}, {', '.join(CRITERIA)}")
    if criterion not in OF_WEIGHTS and data is None:
        raise TrainerError(f"sort = {criterion!r}: needs training data; without them allowed are {', '.join(OF_WEIGHTS)}")
    symmetry = find_symmetry(nested)
    if power := OF_WEIGHTS.get(criterion):
        scores = scores_by_unit(symmetry, {name: p.detach().abs() ** power for name, p in nested.full.named_parameters()})
    else:
        assert data is not None
        scores = _by_gradient(nested, symmetry, data, criterion, seed)
    orders = {name: np.argsort(-of_units, kind="stable") for name, of_units in scores.items()}
    error = reorder(nested, symmetry, orders)
    return Sorting({group.name: group.size for group in symmetry.groups}, symmetry.fixed, error, orders, criterion)


def reorder(nested: NestedModel, symmetry: Symmetry, orders: Mapping[str, NDArray[np.int64]]) -> float:
    """Puts units in the given orders, in place; statistics that were calibrated for the full model move with them.

    Returns the largest relative change of an output. Sums in another order are rounded otherwise, which adds up over many
    layers: where it is above 1e-5, the change in double precision decides. Raises TrainerError, with everything put back, where
    that is above 1e-5 too.
    """
    module, largest = nested.full, nested.family.largest
    state: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    was = {name: tensor.detach().clone() for name, tensor in state.items()}
    before = _answers(nested)
    statistics = nested.calibration.get(largest)
    with torch.no_grad():
        for name, tensor in symmetry.permuted(was, orders).items():
            state[name].copy_(tensor)
    nested.calibration.clear()  # of smaller sizes: they are other networks now
    if statistics is not None:
        nested.calibration[largest] = symmetry.permuted(statistics, orders)
    error = _change(before, _answers(nested))
    if not error <= TOLERANCE and not _changed_in_double(nested, symmetry, was, orders, statistics) <= TOLERANCE:
        with torch.no_grad():
            for name, tensor in was.items():
                state[name].copy_(tensor)
        if statistics is not None:
            nested.calibration[largest] = statistics
        raise TrainerError(
            f"{type(nested.family).__name__}: with its units in another order the full model answers otherwise, by {error:.1e} "
            f"of its largest output; allowed is {TOLERANCE:.0e}. Train without sorting (sort = none)"
        )
    return error


def _change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The largest of an output, relative to its largest number."""
    changes = ((after[name] - answer).abs().max() / answer.abs().max().clamp_min(1e-30) for name, answer in before.items())
    return max(float(change) for change in changes)


def _changed_in_double(
    nested: NestedModel,
    symmetry: Symmetry,
    was: Mapping[str, Tensor],
    orders: Mapping[str, NDArray[np.int64]],
    statistics: Mapping[str, Tensor] | None,
) -> float:
    """How far the full model's answers are from each other in both orders, in double precision; infinite where the network
    computes in single precision alone. The model stays as it is."""
    largest, training, now = nested.family.largest, nested.training, nested.calibration.get(nested.family.largest)
    doubled = {name: t.double() if t.is_floating_point() else t for name, t in was.items()}
    means = None if statistics is None else {n: t.double() if t.is_floating_point() else t for n, t in statistics.items()}
    answers = []
    try:
        for given, calibrated in (
            (doubled, means),
            (symmetry.permuted(doubled, orders), None if means is None else symmetry.permuted(means, orders)),
        ):
            if calibrated is not None:
                nested.calibration[largest] = dict(calibrated)
            answers.append(_answers(nested, {name: given[name] for name, _ in nested.full.named_parameters()}))
    except RuntimeError:
        return float("inf")
    finally:
        nested.train(training)
        if now is not None:
            nested.calibration[largest] = now
    return _change(*answers)


@torch.no_grad()
def _answers(nested: NestedModel, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Of the full model (with these parameters, and inputs of their precision), for the family's example inputs, in eval mode;
    what it draws is the same every time."""
    training = nested.training
    given = nested.view(nested.family.largest) if parameters is None else parameters
    device, precision = (first := next(iter(given.values()))).device, first.dtype
    nested.eval()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        examples = nested.family.example_inputs(4)
        inputs = {name: t.to(device, precision if t.is_floating_point() else t.dtype) for name, t in examples.items()}
        torch.default_generator.manual_seed(0)
        found = nested.call(nested.family.largest, inputs, given)
    nested.train(training)
    return {name: output.double().cpu() for name, output in found.items()}


def _by_gradient(
    nested: NestedModel, symmetry: Symmetry, data: Data, criterion: str, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Mean over batches. In eval mode where the full model's statistics are known, else in train mode."""
    examples, largest, training = as_examples(data), nested.family.largest, nested.training
    chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    size, family = BATCH, nested.family
    if (lengths := lengths_of(examples)) is not None and family.outputs_per_token > 1:  # one for every word
        chosen = chosen[lengths[chosen].cumsum(0) <= max(TOKENS, int(lengths[chosen[0]]))]
        size = max(1, min(BATCH, NUMBERS // (int(lengths[chosen].max()) * family.outputs_per_token)))
    parameters = dict(nested.full.named_parameters())
    device = next(iter(parameters.values())).device
    total: dict[str, NDArray[np.float64]] = {}
    nested.train(nested.needs_calibration(largest))
    for batch in batches_of(examples, size, chosen):
        nested.full.zero_grad(set_to_none=True)
        inputs = {name: t.to(device) for name, t in as_inputs(batch.inputs, nested.input_names).items()}
        targets = each(batch.targets, lambda t: t.to(device))
        looked_at = family.task.looked_at(targets) if family.narrows else None
        narrow: AbstractContextManager[Any] = nullcontext()
        if looked_at is not None:
            narrow = family.at_positions(nested.skeleton(largest), looked_at)
            targets = each(targets, lambda t, kept=looked_at: t[kept][None])
        with narrow:
            nested.accumulate_gradients(largest, inputs, lambda outputs, t=targets: family.task.importance(outputs, t))  # type: ignore[misc]
        values = {name: p.detach() * p.grad for name, p in parameters.items() if p.grad is not None}
        if criterion == "saliency":
            values = {name: value.abs() for name, value in values.items()}
        for name, of_units in scores_by_unit(symmetry, values).items():
            total[name] = total.get(name, np.zeros(1)) + of_units
    nested.full.zero_grad(set_to_none=True)
    nested.train(training)
    return total
