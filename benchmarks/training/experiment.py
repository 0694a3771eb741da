"""One experiment: a setup trained by a method from a seed, then every sub-model's accuracy and what it cost.

Resumable: training goes on from its last checkpoint, and a finished experiment is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.summary import commit, environment
from benchmarks.training.methods import METHODS, TEACHER_COST, Method
from benchmarks.training.peers import RandomLinear
from benchmarks.training.setups import SETUPS
from trainer import NestedModel, SubModel
from trainer.calibration import calibrate, calibration_batches
from trainer.checkpoint import CHECKPOINT_FILE
from trainer.data import DataSet, Samples, load_data
from trainer.evaluate import scores_of
from trainer.family import Family
from trainer.folder import write_record
from trainer.importance import sort_by_importance
from trainer.macs import MacCounter
from trainer.options import FitOptions
from trainer.run import describe_run, save_run
from trainer.training import LOG_FILE, fit


class Alone(Family):
    """One size of a family as a family of its own."""

    def __init__(self, family: Family, sub: SubModel) -> None:
        self.family, self.sub = family, sub
        self.axes = {"size": (1,)}

    def build(self, sub: SubModel) -> nn.Module:
        return self.family.build(self.sub)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return self.family.example_inputs(batch_size)


@dataclass(frozen=True)
class Experiment:
    """A setup, a method by name, a seed, and the epochs of a method with one sub-model per step."""

    setup: str
    method: str
    seed: int
    epochs: int
    data: str = "fashion-mnist"

    @property
    def name(self) -> str:
        data = "" if self.data == "fashion-mnist" else f"-{Path(self.data).name}"
        return f"{self.setup}-{self.method.replace(', ', '-').replace(' ', '-')}-e{self.epochs}-s{self.seed}{data}"


def run(experiment: Experiment, method: Method, work: Path, splits: Mapping[str, int]) -> dict[str, Any]:
    """Trains, then measures that many sub-models (0: all) on each of the `splits`. Returns the result's document."""
    data = load_data(experiment.data)
    family = SETUPS[experiment.setup].build(data)
    options = {
        "update": method.update,
        "samples_per_step": method.samples_per_step,
        "epochs": method.epochs(experiment.epochs),
        "seed": experiment.seed,
        **method.options,
    }
    macs = macs_of(family)
    trained = spread(macs, method.sizes) if method.sizes else family.grid()
    original = full_alone(experiment, data, work) if method.begins else None
    if method.alone:
        models = _each_alone(family, trained, data, work / experiment.name, options)
    else:
        models = [_together(family, trained, data, work / experiment.name, options, original, method)]
    wanted = {split: trained if method.alone else spread(macs, count or len(macs)) for split, count in splits.items()}
    return {
        **asdict(experiment),
        "options": asdict(FitOptions(**options)),
        "trained": [sub.id for sub in trained] if method.sizes else "all",
        "environment": {**environment(), "threads": torch.get_num_threads()},
        "commit": commit(),
        "data_sha256": data.record["content_sha256"],
        "cost": _cost(models, original),
        "macs": {sub.id: count for sub, count in macs.items()},
        "accuracy": {split: _accuracies(models, subs, getattr(data, split)) for split, subs in wanted.items()},
        **({"original": {split: _accuracies([original], None, getattr(data, split)) for split in wanted}} if original else {}),
    }


def full_alone(experiment: Experiment, data: DataSet, work: Path) -> _Model:
    """The full model trained by itself for as many epochs from the same seed: one of those that `separate` trains."""
    family, method = SETUPS[experiment.setup].build(data), METHODS["separate"]
    options = {"update": method.update, "epochs": experiment.epochs, "seed": experiment.seed, **method.options}
    (model,) = _each_alone(family, [family.largest], data, work / replace(experiment, method="separate").name, options)
    return model


def begin_with(nested: NestedModel, original: _Model) -> None:
    """The full model's parameters and statistics are those of the original."""
    with torch.no_grad():
        for (_, own), (_, theirs) in zip(nested.full.named_parameters(), original.nested.full.named_parameters(), strict=True):
            own.copy_(theirs)
    (statistics,) = original.nested.calibration.values()
    device = next(nested.full.parameters()).device  # the original is where it was trained
    nested.calibration[nested.family.largest] = {name: tensor.to(device) for name, tensor in statistics.items()}
    nested.eval()


def _cost(models: Sequence[_Model], original: _Model | None) -> dict[str, float]:
    """`total_gradients`: with a teacher's passes, and with the training of what it began with."""
    cost = {name: round(sum(model.cost[name] for model in models), 1) for name in models[0].cost}
    total = cost["gradient_computations"] + TEACHER_COST * cost["teacher_passes"]
    return {**cost, "total_gradients": round(total + (original.cost["gradient_computations"] if original else 0), 1)}


def macs_of(family: Family) -> dict[SubModel, int]:
    """Multiply-accumulates of one forward pass per example, for every sub-model."""
    example = tuple(family.example_inputs(1).values())
    result = {}
    for sub in family.grid():
        module = family.build(sub).eval()
        with torch.no_grad(), MacCounter() as counter:
            module(*example)
        result[sub] = counter.macs
    return result


def spread(macs: Mapping[SubModel, int], count: int) -> list[SubModel]:
    """So many sub-models, evenly spaced in the order of their MACs, the smallest and the largest among them."""
    ordered = sorted(macs, key=lambda sub: macs[sub])
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


@dataclass(frozen=True)
class _Model:
    """A trained model, which of its sub-models is which of the grid, and what it cost."""

    nested: NestedModel
    grid: Mapping[SubModel, SubModel]
    cost: Mapping[str, float]


def _together(
    family: Family,
    trained: Sequence[SubModel],
    data: DataSet,
    folder: Path,
    options: Mapping[str, Any],
    original: _Model | None,
    method: Method,
) -> _Model:
    """One nested model, written as a run too, so that `sortednet export` takes it."""
    torch.manual_seed(options["seed"])
    nested = NestedModel(family)
    if original and not (folder / CHECKPOINT_FILE).exists():
        begin_with(nested, original)
        if method.sort != "none":
            sort_by_importance(nested, data.train, method.sort)
    nested.submodels = list(trained)
    RandomLinear.steps = options["epochs"] * (len(data.train) // FitOptions(**options).batch_size)
    teacher = original.nested.extract(original.nested.family.largest) if original and method.teacher else None
    cost = _fit(nested, data, folder, options, teacher)
    nested.submodels = family.grid()
    if len(trained) < len(nested.submodels):  # `fit` has calibrated those that were trained
        calibrate(nested, calibration_batches(data.train))
    write_record(folder, describe_run(family, data.record, asdict(FitOptions(**options))))
    save_run(folder, nested)
    return _Model(nested, {sub: sub for sub in nested.submodels}, cost)


def _each_alone(
    family: Family, trained: Sequence[SubModel], data: DataSet, folder: Path, options: Mapping[str, Any]
) -> list[_Model]:
    models = []
    for sub in trained:
        torch.manual_seed(options["seed"])
        nested = NestedModel(Alone(family, sub))
        models.append(_Model(nested, {nested.family.largest: sub}, _fit(nested, data, folder / sub.id, options)))
    return models


def _fit(
    nested: NestedModel, data: DataSet, folder: Path, options: Mapping[str, Any], teacher: nn.Module | None = None
) -> dict[str, float]:
    resume = (folder / CHECKPOINT_FILE).exists()
    result = fit(
        nested,
        data.train,
        run=folder,
        resume=resume,
        augment=data.augment,
        teacher=teacher,
        show_progress=False,
        **options,
    )
    nested.eval()
    return {
        "seconds": _seconds(folder / LOG_FILE),
        "steps": result.steps,
        "gradient_computations": result.gradient_computations,
        "teacher_passes": result.teacher_passes,
    }


def _seconds(log: Path) -> float:
    """Training time; a training that was gone on with counts from 0 again."""
    total = latest = 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        seconds = json.loads(line)["seconds"]
        total += latest if seconds < latest else 0
        latest = seconds
    return total + latest


def _accuracies(models: Sequence[_Model], wanted: Sequence[SubModel] | None, examples: Samples) -> dict[str, float]:
    """None: of all that the models have."""
    found = {}
    for model in models:
        chosen = [sub for sub, of_grid in model.grid.items() if wanted is None or of_grid in wanted]
        for sub, score in scores_of(model.nested, chosen, examples).items():
            found[model.grid[sub].id] = round(score.quality, 6)
    return found
