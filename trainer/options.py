"""`FitOptions`: how to train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from trainer.accelerator import ACCELERATORS, PRECISIONS
from trainer.submodel import TrainerError
from trainer.updates import RULES


@dataclass(frozen=True)
class FitOptions:
    """How to train; every field is recorded with the run.

    The defaults are what won in benchmarks/training. SortedNet as published: samples_per_step 2, edges 0.
    """

    update: str = "sorted"  # sorted | sum | depths | sandwich | full
    micro_batches: int = 1  # parts of a batch that are computed one after the other: less memory, the same step
    recompute: bool = False  # what blocks compute is computed again in the backward pass instead of remembered
    guard: float = 0.0  # weight of the full model's loss that joins every step, where each drawn sub-model's has 1
    may_lose: float = 1.0  # share of its quality that training may cost the full model; the rest is taken back at the end
    samples_per_step: int = 1  # sub-models drawn per step (sorted; sandwich adds the largest and the smallest)
    edges: float = 0.2  # share of draws that are the smallest or the largest (sorted)
    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.0  # peak learning rate; 0 means the optimizer's usual one: 0.2 for sgd, 0.002 for adamw
    optimizer: str = "sgd"  # sgd | adamw
    momentum: float = 0.9  # sgd, Nesterov
    weight_decay: float = 5e-4  # not on biases and normalisation
    warmup: float = 0.05  # share of all steps with a rising rate; then a cosine down to 0
    layer_decay: float = 1.0  # the rate of a block is multiplied by it for each block above; embeddings have the lowest
    clip_norm: float = 1.0  # of the whole gradient; 0 means no clipping
    label_smoothing: float = 0.0  # shorthand for the setting of the task classification; refused for others
    teacher_share: float = 1.0  # of the loss, that is against a teacher's answers instead of the targets, where there is one
    temperature: float = 1.0  # by which its logits are divided
    teacher_views: int = 0  # augmented views of each example, which come again in turn; 0: a new one in every epoch
    teacher_hidden: float = 0.0  # weight of the distance from what a teacher of the same family has between its layers
    seed: int = 0
    accelerator: str = "auto"  # auto | cpu | cuda | mps
    precision: str = "fp32"  # fp32 | bf16 | fp16, by automatic mixed precision
    deterministic: bool = False  # on a GPU: the same bits from run to run, by slower kernels; the CPU gives them anyway
    workers: int = -1  # processes that read data ahead; -1: one less than cores where data are read from files, else none

    def __post_init__(self) -> None:
        for name, minimum in (
            ("samples_per_step", 1),
            ("micro_batches", 1),
            ("epochs", 1),
            ("batch_size", 2),
            ("seed", 0),
            ("teacher_views", 0),
            ("workers", -1),
        ):
            _at_least(name, getattr(self, name), minimum, Integral)
        if self.seed >= 2**63:
            raise TrainerError(f"seed = {self.seed}: allowed are whole numbers below 2**63")
        for name in (
            "lr",
            "momentum",
            "weight_decay",
            "warmup",
            "clip_norm",
            "label_smoothing",
            "edges",
            "teacher_share",
            "teacher_hidden",
            "layer_decay",
            "guard",
            "may_lose",
        ):
            _at_least(name, getattr(self, name), 0)
        for name in ("edges", "teacher_share", "layer_decay", "may_lose"):
            if not getattr(self, name) <= 1:
                raise TrainerError(f"{name} = {getattr(self, name)}: allowed are values from 0 to 1")
        _at_least("temperature", self.temperature, 0)
        for name in ("temperature", "layer_decay"):
            if getattr(self, name) == 0:
                raise TrainerError(f"{name} = 0: allowed are numbers above 0")
        for name in ("momentum", "warmup", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise TrainerError(f"{name} = {getattr(self, name)}: allowed are values below 1")
        if self.optimizer not in ("sgd", "adamw"):
            raise TrainerError(f"optimizer = {self.optimizer!r}: allowed are sgd, adamw")
        for name, allowed in (("accelerator", ACCELERATORS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise TrainerError(f"{name} = {getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        for name in ("deterministic", "recompute"):
            if not isinstance(getattr(self, name), bool):
                raise TrainerError(f"{name} = {getattr(self, name)!r}: allowed are True and False")
        if self.update not in RULES:
            raise TrainerError(f"update = {self.update!r}: allowed are {', '.join(RULES)}")

    @property
    def peak_lr(self) -> float:
        return self.lr or {"sgd": 0.2, "adamw": 2e-3}[self.optimizer]

    @classmethod
    def of(cls, options: FitOptions | None, given: dict[str, Any]) -> FitOptions:
        """These options, or fields of them as keywords. Raises TrainerError for both at once and for an unknown field."""
        if options is not None and given:
            raise TrainerError(f"options: given as FitOptions and as {', '.join(given)}; allowed is one of the two")
        names = [f.name for f in fields(cls)]
        for name in sorted(set(given) - set(names)):
            raise TrainerError(f"unknown option {name!r}; allowed are {', '.join(names)}")
        return options or cls(**given)


def with_usual(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are given, with a family's usual ones where nobody says otherwise (`Family.usual_options`)."""
    if given.get("optimizer", usual.get("optimizer")) != usual.get("optimizer"):  # these go with its optimizer
        usual = {name: value for name, value in usual.items() if name not in ("lr", "weight_decay")}
    return {**usual, **given}


def _at_least(name: str, value: float, minimum: float, kind: type = Real) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < minimum:
        raise TrainerError(f"{name} = {value!r}: allowed are {'whole ' if kind is Integral else ''}numbers from {minimum}")
