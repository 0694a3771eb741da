"""One experiment: a task's network fine-tuned by a method from a seed, then the quality of every size that it gives.

full        the full model alone
ours        all sizes together, from the fine-tuned and sorted full model, which is the teacher
truncated   sizes cut from the fine-tuned full model, not trained: unsorted, and in the order of importance
alone       each of NAMED cut from the sorted full model and fine-tuned alone, with as many updates as all sizes together had
alone-share the same with as many updates as that size had among all others
early-exit  a head after every layer of the fine-tuned full model, which stays as it is

Resumable: training goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.text.data import TASKS, WORK, checkpoint
from benchmarks.training.experiment import macs_of, spread
from trainer import NestedModel, SubModel
from trainer.checkpoint import CHECKPOINT_FILE
from trainer.data import DataSet, load_data
from trainer.data.loading import batches_of
from trainer.evaluate import scores_of
from trainer.family import Family, find_family
from trainer.importance import sort_by_importance
from trainer.training import fit
from trainer.weights import load_weights, read_weights

GRID = {
    "num_hidden_layers": (2, 3, 4, 6),
    "intermediate_size": (384, 768, 1152, 1536),
    "num_attention_heads": (6, 9, 12),
}
FIXED = ("hidden_size",)
TOKENS = {"bbc": 96, "gloss": 64}
EPOCHS = {"bbc": {"full": 4, "ours": 12}, "gloss": {"full": 3, "ours": 6}}
BATCH = {"bbc": 16, "gloss": 32}
COMMON = {"optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.1}
LR = {"full": 1e-4, "ours": 2e-4}
NAMED = 6
SORT = "saliency"
METHODS = ("full", "ours", "truncated", "alone", "alone-share", "early-exit")


@dataclass(frozen=True)
class Experiment:
    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}-s{self.seed}"

    def of(self, method: str) -> Experiment:
        return Experiment(self.task, method, self.seed)


@dataclass(frozen=True)
class Setting:
    """What the experiments of a task have in common."""

    data: DataSet
    family: Family
    macs: Mapping[SubModel, int]  # of one text as long as the longest

    @property
    def named(self) -> list[SubModel]:
        """Sizes that are trained alone too, spread over the MACs; not the full one, which `full` is."""
        return spread(self.macs, NAMED + 1)[:-1]


def setting(task: str) -> Setting:
    folder = TASKS[task]()
    options = {
        **{part: str(folder / f"{part}.jsonl") for part in ("validation", "test")},
        "tokenizer": str(checkpoint()),
        "max_tokens": TOKENS[task],
    }
    data = load_data(f"jsonl:{folder / 'train.jsonl'}", options)
    family = find_family("bert").for_data(data.spec, checkpoint=checkpoint(), fixed=list(FIXED)).with_grid(GRID)
    return Setting(data, family, macs_of(family))


class Alone(Family):
    """One size of a family as a family of its own."""

    def __init__(self, family: Family, sub: SubModel) -> None:
        self.family, self.sub = family, sub
        self.axes, self.task, self.dynamic_axes = {"size": (1,)}, family.task, family.dynamic_axes

    def build(self, sub: SubModel) -> nn.Module:
        return self.family.build(self.sub)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return self.family.example_inputs(batch_size)


def run(experiment: Experiment, given: Setting, work: Path = WORK / "runs") -> dict[str, Any]:
    """The accuracies of the method's sizes on both splits, and what they cost in updates."""
    methods = {
        "full": _full_result,
        "ours": _ours_result,
        "truncated": _truncated,
        "alone": _alone,
        "alone-share": _alone,
        "early-exit": _early_exits,
    }
    return {
        "task": experiment.task,
        "method": experiment.method,
        "seed": experiment.seed,
        "macs": {sub.id: macs for sub, macs in given.macs.items()},
        **methods[experiment.method](experiment, given, work),
    }


def full(experiment: Experiment, given: Setting, work: Path) -> tuple[NestedModel, int]:
    """The fine-tuned full model, its units as they were, and its updates."""
    torch.manual_seed(experiment.seed)
    nested = NestedModel(given.family)
    load_weights(nested, read_weights(checkpoint()), given.data.spec.outputs)
    steps = _fit(nested, given, work / experiment.of("full").name, _options(experiment, "full"), update="full")
    return nested, steps


def ordered(nested: NestedModel, given: Setting) -> NestedModel:
    """The same model with its units in the order of their importance."""
    sort_by_importance(nested, given.data.train, SORT)
    return nested


def ours(experiment: Experiment, given: Setting, work: Path) -> tuple[NestedModel, int]:
    nested, _ = full(experiment, given, work)
    teacher = nested.extract(given.family.largest)
    folder = work / experiment.of("ours").name
    ordered(nested, given)
    steps = _fit(nested, given, folder, _options(experiment, "ours"), teacher=teacher, temperature=2.0)
    return nested, steps


def _options(experiment: Experiment, method: str) -> dict[str, Any]:
    return {
        **COMMON,
        "epochs": EPOCHS[experiment.task][method],
        "batch_size": BATCH[experiment.task],
        "lr": LR[method],
        "seed": experiment.seed,
    }


def _fit(nested: NestedModel, given: Setting, folder: Path, options: dict[str, Any], **more: Any) -> int:
    resume = (folder / CHECKPOINT_FILE).exists()
    teacher = more.pop("teacher", None)
    result = fit(nested, given.data.train, run=folder, resume=resume, teacher=teacher, show_progress=False, **options, **more)
    nested.eval()
    return result.steps


def _accuracies(nested: NestedModel, subs: list[SubModel], data: DataSet) -> dict[str, dict[str, float]]:
    return {
        split: {sub.id: round(score.quality, 6) for sub, score in scores_of(nested, subs, getattr(data, split)).items()}
        for split in ("validation", "test")
    }


def _full_result(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    nested, steps = full(experiment, given, work)
    return {"updates": steps, "accuracy": _accuracies(nested, [given.family.largest], given.data)}


def _ours_result(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    nested, steps = ours(experiment, given, work)
    return {"updates": steps, "accuracy": _accuracies(nested, nested.submodels, given.data)}


def _truncated(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    nested, _ = full(experiment, given, work)
    plain = _accuracies(nested, nested.submodels, given.data)
    return {"updates": 0, "unsorted": plain, "accuracy": _accuracies(ordered(nested, given), nested.submodels, given.data)}


def _alone(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    """Each begins as the sub-model does, and learns from the same teacher."""
    start, _ = full(experiment, given, work)
    teacher = start.extract(given.family.largest)
    ordered(start, given)
    options = _options(experiment, "ours")
    if experiment.method == "alone-share":
        options["epochs"] = max(1, round(options["epochs"] / len(start.submodels)))
    found: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    steps = 0
    for sub in given.named:
        torch.manual_seed(experiment.seed)
        nested = NestedModel(Alone(given.family, sub))
        with torch.no_grad():
            for (_, own), (_, theirs) in zip(
                nested.full.named_parameters(), start.extract(sub).named_parameters(), strict=True
            ):
                own.copy_(theirs)
        steps = _fit(nested, given, work / experiment.name / sub.id, options, update="full", teacher=teacher, temperature=2.0)
        for split, of_size in _accuracies(nested, [nested.family.largest], given.data).items():
            found[split][sub.id] = next(iter(of_size.values()))
    return {"updates": steps, "accuracy": found}


def _early_exits(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    """A linear head on the first token after each layer, trained on what the frozen network has there."""
    nested, _ = full(experiment, given, work)
    states = {part: _states(nested, getattr(given.data, part)) for part in ("train", "validation", "test")}
    depth = len(states["train"][0])
    found: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    for layer in range(depth):
        torch.manual_seed(experiment.seed)
        inputs, targets = states["train"][0][layer], states["train"][1]
        head = nn.Linear(inputs.shape[1], given.data.spec.classes)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

        def closure(head: nn.Linear = head, inputs: Tensor = inputs, targets: Tensor = targets, o: Any = optimizer) -> Tensor:
            o.zero_grad()
            loss = F.cross_entropy(head(inputs), targets) + 1e-4 * head.weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        name = SubModel(**{**given.family.largest.axes, "num_hidden_layers": layer + 1}).id
        for split in found:
            own, wanted = states[split]
            found[split][name] = float((head(own[layer]).argmax(1) == wanted).float().mean())
    return {"updates": 0, "accuracy": found}


@torch.no_grad()
def _states(nested: NestedModel, examples: Any) -> tuple[list[Tensor], Tensor]:
    """What each layer gives for the first token, (examples, D) for each layer; and the targets."""
    module = nested.extract(nested.family.largest).eval()
    gathered: list[list[Tensor]] = []
    targets = []
    for batch in batches_of(examples, 64):
        with nested.family.hidden_states(module) as states:
            nested.applied(module, dict(batch.inputs))
            gathered.append([state[:, 0].clone() for state in states])
        targets.append(batch.targets)
    layers = [torch.cat(parts) for parts in zip(*gathered, strict=True)]
    return layers, torch.cat(targets)
