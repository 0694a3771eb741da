"""One experiment: a task's network fine-tuned by a method from a seed, then the quality of every size that it gives.

full        the full model alone, with as many updates as all sizes together will have; then it teaches them
ours        all sizes together, from the fine-tuned and sorted full model, which is the teacher
truncated   sizes cut from the fine-tuned full model, not trained: unsorted, and in the order of importance
alone       each of NAMED cut from the sorted full model and fine-tuned alone, with as many updates as all sizes together had
alone-share the same with as many updates as that size had among all others
early-exit  a head after every layer of the fine-tuned full model, which stays as it is

Resumable: training goes on from its last checkpoint. It is on a GPU where torch finds one, and sizes are measured there too.
What is chosen is chosen on the validation split; results are of the test split.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.text.data import TASKS, WORK, checkpoint
from benchmarks.text.exits import exit_accuracies
from benchmarks.text.scoring import DEPTH, accuracies
from benchmarks.training.experiment import macs_of, spread
from trainer import NestedModel, SubModel
from trainer.checkpoint import CHECKPOINT_FILE
from trainer.data import DataSet, load_data
from trainer.data.dataset import Batch, Examples
from trainer.data.lengths import order_of_epoch
from trainer.family import Family, find_family
from trainer.importance import sort_by_importance
from trainer.options import FitOptions
from trainer.training import fit
from trainer.updates import make_rule
from trainer.weights import load_weights, read_weights

GRID = {
    DEPTH: (3, 4, 5, 6),
    "intermediate_size": (256, 640, 1024, 1536),
    "num_attention_heads": (4, 8, 12),
}
FIXED = ("hidden_size",)
TOKENS = {"bbc": 48, "gloss": 32}
WITHOUT_DROPOUT = {"config.hidden_dropout_prob": 0.0, "config.attention_probs_dropout_prob": 0.0}
EPOCHS = {"bbc": 3, "gloss": 8}
BATCH = {"bbc": 16, "gloss": 32}
COMMON = {"optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.1}
LR = {"bbc": {"full": 1e-4, "ours": 2e-4}, "gloss": {"full": 1e-4, "ours": 4e-4}}
PER_STEP = 4  # sizes of the nested run whose gradients make one update
LEARNING = {"bbc": {"temperature": 2.0}, "gloss": {"temperature": 2.0, "teacher_hidden": 1.0}}  # from the teacher
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
    data = data_of(task)
    bert = find_family("bert").for_data(data.spec, checkpoint=checkpoint(), fixed=list(FIXED), **WITHOUT_DROPOUT)
    family = bert.with_grid(GRID)
    return Setting(data, family, macs_of(family))


def data_of(task: str, validation: Path | None = None) -> DataSet:
    """`validation`: a file in place of the task's own."""
    folder = TASKS[task]()
    options = {
        "validation": str(validation or folder / "validation.jsonl"),
        "test": str(folder / "test.jsonl"),
        "tokenizer": str(checkpoint()),
        "max_tokens": TOKENS[task],
    }
    return load_data(f"jsonl:{folder / 'train.jsonl'}", options)


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
    """The accuracies of the method's sizes on the test split, and what they cost in updates."""
    methods = {
        "full": _full_result,
        "ours": _ours_result,
        "truncated": _truncated,
        "alone": _alone,
        "alone-share": _alone,
        "early-exit": _early_exits,
    }
    begun = time.process_time()
    found = methods[experiment.method](experiment, given, work)
    return {
        "task": experiment.task,
        "method": experiment.method,
        "seed": experiment.seed,
        "macs": {sub.id: macs for sub, macs in given.macs.items()},
        "processor_seconds": round(time.process_time() - begun, 1),  # less where a training was gone on with
        **found,
    }


def full(experiment: Experiment, given: Setting, work: Path) -> tuple[NestedModel, int]:
    """The fine-tuned full model, its units as they were, and its updates."""
    torch.manual_seed(experiment.seed)
    nested = NestedModel(given.family)
    load_weights(nested, read_weights(checkpoint()), given.data.spec.outputs)
    steps = _fit(nested, given.data.train, work / experiment.of("full").name, options_of(experiment, "full"))
    return nested, steps


def ordered(nested: NestedModel, given: Setting, criterion: str = SORT) -> NestedModel:
    """The same model, where it was, with its units in the order of their importance: found on the CPU, so that the kernels of
    no GPU decide which units are told apart."""
    device = next(nested.full.parameters()).device
    nested.full.cpu()
    sort_by_importance(nested, given.data.train, criterion)
    nested.full.to(device)
    return nested


def ours(experiment: Experiment, given: Setting, work: Path) -> tuple[NestedModel, int]:
    nested, _ = full(experiment, given, work)
    teacher = nested.extract(given.family.largest)
    ordered(nested, given)
    steps = _fit(nested, given.data.train, work / experiment.of("ours").name, options_of(experiment, "ours"), teacher)
    return nested, steps


def options_of(experiment: Experiment, method: str) -> dict[str, Any]:
    return {
        **COMMON,
        "update": "full" if method == "full" else "sorted",
        "epochs": EPOCHS[experiment.task],
        "batch_size": BATCH[experiment.task],
        "lr": LR[experiment.task][method],
        **({} if method == "full" else {"samples_per_step": PER_STEP, **LEARNING[experiment.task]}),
        "seed": experiment.seed,
    }


def _fit(
    nested: NestedModel, examples: Examples, folder: Path, options: dict[str, Any], teacher: nn.Module | None = None
) -> int:
    resume = (folder / CHECKPOINT_FILE).exists()
    result = fit(nested, examples, run=folder, resume=resume, teacher=teacher, show_progress=False, **options)
    nested.eval()
    return result.steps


def _full_result(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    nested, steps = full(experiment, given, work)
    found = accuracies(nested, [given.family.largest], given.data.test)
    return {"options": options_of(experiment, "full"), "updates": steps, "accuracy": found}


def _ours_result(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    nested, steps = ours(experiment, given, work)
    found = accuracies(nested, nested.submodels, given.data.test)
    return {"options": {**options_of(experiment, "ours"), "sort": SORT}, "updates": steps, "accuracy": found}


def _truncated(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    nested, _ = full(experiment, given, work)
    plain = accuracies(nested, nested.submodels, given.data.test)
    found = accuracies(ordered(nested, given), nested.submodels, given.data.test)
    return {"options": {"sort": SORT}, "updates": 0, "unsorted": plain, "accuracy": found}


def _alone(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    """Each begins as the sub-model does, and learns from the same teacher."""
    start, _ = full(experiment, given, work)
    options = options_of(experiment, "ours")
    teacher: nn.Module = start.extract(given.family.largest)
    if not options.get("teacher_hidden"):  # what it has between its layers comes of a pass
        teacher = Remembering(teacher)
    ordered(start, given)
    shares = drawn_updates(start, given, options) if experiment.method == "alone-share" else {}
    options |= {"update": "full", "samples_per_step": 1}
    found, updates = {}, {}
    for sub in given.named:
        known = work / experiment.name / f"{sub.id}.json"
        if not known.exists():
            steps, accuracy = _one_alone(given, start, sub, known.with_suffix(""), options, teacher, shares.get(sub))
            known.write_text(json.dumps({"updates": steps, "accuracy": accuracy}), encoding="utf-8")
            shutil.rmtree(known.with_suffix(""))
        result = json.loads(known.read_text(encoding="utf-8"))
        found[sub.id], updates[sub.id] = result["accuracy"], result["updates"]
    return {"options": {**options, "sort": SORT}, "updates": updates, "accuracy": found}


def _one_alone(
    given: Setting,
    start: NestedModel,
    sub: SubModel,
    folder: Path,
    options: dict[str, Any],
    teacher: nn.Module,
    updates: int | None,
) -> tuple[int, float]:
    """`updates`: None for those of all epochs."""
    torch.manual_seed(options["seed"])
    nested = NestedModel(Alone(given.family, sub))
    with torch.no_grad():
        for (_, own), (_, theirs) in zip(nested.full.named_parameters(), start.extract(sub).named_parameters(), strict=True):
            own.copy_(theirs)
    examples: Examples = given.data.train
    if updates is not None:
        batch = options["batch_size"]
        updates = max(1, updates)
        epochs = -(-updates * batch // len(examples))  # of a part, where one is more than enough
        options = {**options, "epochs": epochs}
        examples = Part(examples, updates // epochs * batch, batch, options["seed"])
    steps = _fit(nested, examples, folder, options, teacher)
    return steps, accuracies(nested, [nested.family.largest], given.data.test)[nested.family.largest.id]


def drawn_updates(nested: NestedModel, given: Setting, options: Mapping[str, Any]) -> dict[SubModel, int]:
    """How often each size is trained in the nested run."""
    rule = make_rule(options["update"], nested.submodels, options["samples_per_step"], FitOptions().edges)
    steps = len(given.data.train) // options["batch_size"] * options["epochs"]
    found = dict.fromkeys(nested.submodels, 0)
    for step in range(steps):
        for sub in rule.sample(step, options["seed"]):
            found[sub] += 1
    return found


class Part:
    """So many of a split's examples, those of its first batches in a training with that seed."""

    repeats = True

    def __init__(self, examples: Any, count: int, batch: int, seed: int) -> None:
        self.examples, self.places = examples, order_of_epoch(examples, batch, seed)[:count]
        self.lengths: Tensor = examples.lengths[self.places]

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Tensor) -> Batch:
        found: Batch = self.examples.batch(self.places[indices])
        return found


class Remembering(nn.Module):
    """A teacher that several trainings ask for the same batches."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.known = module, dict[bytes, Tensor]()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        key = input_ids.cpu().numpy().tobytes()
        if key not in self.known:
            self.known[key] = self.module(input_ids=input_ids, attention_mask=attention_mask).logits
        return self.known[key]


def _early_exits(experiment: Experiment, given: Setting, work: Path) -> dict[str, Any]:
    nested, _ = full(experiment, given, work)
    largest = given.family.largest
    by_layer = exit_accuracies(nested, given.data, experiment.seed)
    names = [SubModel(**{**largest.axes, DEPTH: layer}).id for layer in range(1, len(by_layer) + 1)]
    return {"updates": 0, "accuracy": dict(zip(names, by_layer, strict=True))}
