"""`regression`: real numbers, in one output or several.

Shapes: N batch, K numbers for each example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.submodel import TrainerError
from trainer.task import Outputs, Score, Scorer, Targets, Task
from trainer.tasks import checks
from trainer.tasks.classification import some

LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}


@dataclass(frozen=True)
class Regression(Task):
    """Outputs of these names, each (N, …), and targets of the same shapes, by name where there are several.

    Quality: R², the share of the variance that is explained, clipped at 0; of several numbers the mean of theirs. A bare
    target (N,) is taken for (N, 1).
    """

    names: tuple[str, ...] = ("values",)
    objective: str = "mse"  # mse | mae | huber

    kind: ClassVar[str] = "regression"
    metric: ClassVar[str] = "r2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.objective not in LOSSES:
            raise TrainerError(f"objective = {self.objective!r}: allowed are {', '.join(LOSSES)}")
        if not self.names or len(set(self.names)) != len(self.names):
            raise TrainerError(f"names = {self.names}: allowed is at least one output name, each once")

    @property
    def outputs(self) -> Mapping[str, Mapping[int, str]]:  # type: ignore[override]
        return {name: {0: "batch"} for name in self.names}

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        wanted = self._by_name(targets)
        losses = [LOSSES[self.objective](outputs[n], _fitted(wanted[n], outputs[n])) for n in self.names]
        return sum(losses[1:], losses[0]) / len(losses)

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """The same loss against the teacher's numbers."""
        return self.loss(outputs, {name: teacher[name] for name in self.names})

    def check(self, outputs: Outputs, targets: Targets) -> None:
        wanted = self._by_name(targets)
        for name in self.names:
            found, target = outputs[name], wanted[name]
            what = f"targets {name!r}" if len(self.names) > 1 else "targets"
            rest = tuple(found.shape[1:])
            if tuple(target.shape[1:]) not in ({rest, rest[:-1]} if rest[-1:] == (1,) else {rest}):
                allowed = ", ".join(["N", *map(str, rest)])
                raise TrainerError(f"{what}: shape {tuple(target.shape)}; allowed is ({allowed})")
            try:
                checks.finite(target)
            except TrainerError as error:
                raise TrainerError(str(error).replace("targets", what, 1)) from None

    def scorer(self) -> Scorer:
        return _Explained(self.names)

    def _by_name(self, targets: Targets) -> Mapping[str, Tensor]:
        if not isinstance(targets, Mapping):
            if len(self.names) > 1:
                raise TrainerError(f"targets: one tensor given; allowed is one for each of {', '.join(self.names)}")
            return {self.names[0]: targets}
        if len(self.names) == 1 and len(targets) == 1:
            return {self.names[0]: next(iter(targets.values()))}
        missing = [name for name in self.names if name not in targets]
        if missing:
            raise TrainerError(f"targets: {', '.join(targets) or 'none'} given; allowed are {', '.join(self.names)}")
        return targets


def _fitted(target: Tensor, output: Tensor) -> Tensor:
    """In the output's precision and, of one number for each example, shape."""
    return target.to(output.dtype).reshape(output.shape)


class _Explained:
    """Sums over examples, for each number of each output: of it, its square, the error's square and size."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.count = 0
        self.first: dict[str, NDArray[Any]] = {}  # sums are taken of the distance from the first example, to stay exact
        self.sums: dict[str, NDArray[Any]] = {}  # (4, K)

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None:
        for name in self.names:
            found = outputs[name].astype(np.float64).reshape(len(outputs[name]), -1)
            one = targets if not isinstance(targets, Mapping) else targets.get(name, next(iter(targets.values())))
            wanted = one.astype(np.float64).reshape(found.shape)
            first = self.first.setdefault(name, wanted[0].copy())
            off, error = wanted - first, found - wanted
            sums = np.stack([off.sum(0), (off**2).sum(0), (error**2).sum(0), np.abs(error).sum(0)])
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums
        self.count += len(found)

    def value(self) -> Score:
        count = some(self.count)
        each = {name: self._of(name, count) for name in self.names}
        r2, square, size = (float(np.mean(column)) for column in zip(*each.values(), strict=True))
        metrics = {"r2": r2, "rmse": float(np.sqrt(square)), "mae": size}
        for name, (own, _, own_size) in each.items() if len(each) > 1 else ():
            metrics |= {f"r2_{name}": own, f"mae_{name}": own_size}
        return Score(min(1.0, max(0.0, r2)) if np.isfinite(r2) else 0.0, metrics)

    def _of(self, name: str, count: int) -> tuple[float, float, float]:
        """R², mean squared error and mean absolute error of one output, each the mean over its numbers."""
        total, square, error, size = self.sums[name]
        variance = square - total**2 / count
        varies = variance > 0
        # Of a number that never changes nothing can be explained: 1 where it is met, otherwise 0.
        r2 = np.where(varies, 1 - error / np.where(varies, variance, 1.0), np.where(error > 0, 0.0, 1.0))
        return float(r2.mean()), float(error.mean() / count), float(size.mean() / count)
