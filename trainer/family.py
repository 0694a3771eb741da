"""`Family`: the whole contract for an architecture, ours or a user's own.

Shapes: N batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

import inspect
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from trainer.blocks import named_blocks
from trainer.hidden import collected
from trainer.submodel import AxisValue, SubModel, TrainerError, at_most, format_value
from trainer.task import Task, imported
from trainer.tasks import Classification


@dataclass(frozen=True)
class DataSpec:
    """What a family may want to know of the data that it will be trained on."""

    input_shape: tuple[int, ...]  # of one example's first input, without the batch: (C, H, W) for images, (T,) for text
    classes: int  # that the targets tell apart; 0 where they are no classes
    mean: tuple[float, ...] = ()  # per channel, of the training split; empty for text
    std: tuple[float, ...] = ()
    vocabulary: int = 0  # token ids lie below this; 0 for images
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shapes of all inputs by name; empty for a single one
    target_shape: tuple[int, ...] = ()  # of one example's target; of several targets the first's
    next_token: bool = False  # whether the target of each token is the one that follows it

    @property
    def outputs(self) -> int:
        """How many numbers a head that answers for the whole example gives: one for each class, or for each target value; 0 for
        one that answers with a token."""
        return 0 if self.next_token else self.classes or prod(self.target_shape)


class Family(ABC):
    """An architecture with a constructor that takes a size.

    `build(sub)` returns an ordinary module whose parameters carry the same names at every size and whose shapes are
    prefixes of the largest's. Nothing else is asked of the module: no special layers, no masks.
    """

    axes: Mapping[str, Sequence[AxisValue]]
    """Axis name → the values of the grid, ascending. The last value of each axis builds the full model."""

    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None
    """Input name → axes of free size in the exported graph; None means axis 0, the batch, of every input. An output named here
    has these, others have those of the task."""

    task: Task = Classification()
    """What is learnt: outputs, loss and score."""

    @abstractmethod
    def build(self, sub: SubModel) -> nn.Module:
        """The model at that size, freshly initialised. Maps the example inputs to the task's outputs: a tensor where there is
        one, a tuple in the task's order, or a mapping by name (a Hugging Face `ModelOutput` is one; what the task does not
        name is left out).
        """

    @abstractmethod
    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        """Inputs of the right shape and dtype, by the name they get in the exported graph.

        The module is called with them by name where its `forward` has parameters of all these names, else in this order.
        """

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        """Parameters whose axis is several blocks laid side by side, each a prefix of its own.

        Parameter name → axis → the sizes of the blocks at that size, for example a fused QKV projection:
        `{"attention.qkv.weight": {0: (heads * 64, heads * 64, heads * 64)}}`.
        """
        return {}

    def renamed(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A checkpoint's tensors by the names that they have in the module, which is of this family; by default their own."""
        return tensors

    def of_the_head(self, name: str) -> bool:
        """Whether a parameter is begun anew where a checkpoint has none, beside layers that give the outputs themselves."""
        return False

    def check_checkpoint(self, folder: Path) -> None:
        """Raises TrainerError where a checkpoint's folder, which is begun with or teaches, says that it answers otherwise than
        this network would with its weights. Asked when the task is known; by default nothing is looked at."""
        return

    @classmethod
    def for_data(cls, spec: DataSpec, **settings: Any) -> Self:
        """The family for a data set, with constructor arguments by name (`--set`).

        A family whose shape depends on the data overrides this; one whose shape depends on a checkpoint has an argument
        `checkpoint`, which is the folder of `--from`. Raises TrainerError for an unknown argument.
        """
        return cls.configured(settings)

    @classmethod
    def configured(cls, settings: Mapping[str, Any]) -> Self:
        """The family with these constructor arguments. Raises TrainerError naming those that are allowed."""
        parameters = {} if cls.__init__ is object.__init__ else inspect.signature(cls).parameters
        allowed = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        unknown = [name for name in settings if name not in allowed]
        if unknown and not takes_any:
            raise TrainerError(f"{cls.__name__} has no parameter {unknown[0]!r}; allowed are {', '.join(allowed) or 'none'}")
        for name, value in settings.items():
            if name in parameters:
                _check_kind(f"{cls.__name__}: {name}", value, parameters[name])
        try:
            return cls(**settings)
        except TypeError as error:
            raise TrainerError(f"{cls.__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())}): {error}") from None

    def config(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that build this family again; a run and a bundle carry them."""
        return {}

    @classmethod
    def usual_options(cls, pretrained: bool) -> Mapping[str, Any]:
        """Fields of `FitOptions` that `sortednet train` begins with for this family where nobody says otherwise; `pretrained`:
        from somebody's weights. Of an optimizer other than the one here `lr` and `weight_decay` are not taken."""
        return {}

    usual_task: ClassVar[str] = ""
    """The task that `sortednet train` takes where none is named, by its name; empty: what the data are for."""

    @property
    def narrows(self) -> bool:
        """Whether its modules can leave out positions that nobody looks at (`at_positions`)."""
        return False

    def at_positions(self, module: nn.Module, positions: Tensor) -> AbstractContextManager[bool]:
        """Within: the module gives its outputs where `positions` (N, …) are true alone, as (1, M, …). Gives whether it does: a
        teacher's may be of another family, which does not."""
        return nullcontext(False)

    @property
    def outputs_per_token(self) -> int:
        """Numbers of an output for each token, by which batches are bounded that are only looked at; 1 where they are few."""
        return 1

    def passes(self, submodels: Sequence[SubModel]) -> list[list[SubModel]]:
        """Sub-models of which one pass of the first gives all outputs, together (`leaving_at`); by default each alone."""
        return [[sub] for sub in submodels]

    def leaving_at(self, module: nn.Module, submodels: Sequence[SubModel]) -> AbstractContextManager[None]:
        """Within: a pass of the module, which is the first sub-model's, gives the outputs of all of these, one behind the other
        along axis 0."""
        return nullcontext()

    def hidden_states(self, module: nn.Module) -> AbstractContextManager[list[Tensor]]:
        """Within: a list of what the layers of this module of the family, full or not, have given in a forward pass, the first
        layer's first, each (N, …, d). A sub-model learns from them with `teacher_hidden`.

        Here the outputs of the blocks in its `ModuleList`s. Raises TrainerError where it has none.
        """
        blocks = named_blocks(module)
        if not blocks:
            raise TrainerError(f"{type(self).__name__}: has no layers that are known (no ModuleList); give it `hidden_states`")
        return collected(blocks.values())

    # What follows is derived and need not be overridden.

    @property
    def largest(self) -> SubModel:
        return SubModel(**{name: values[-1] for name, values in self.axes.items()})

    @property
    def smallest(self) -> SubModel:
        return SubModel(**{name: values[0] for name, values in self.axes.items()})

    def grid(self) -> list[SubModel]:
        """Every combination of the axes' values, smallest first."""
        return [SubModel(**dict(zip(self.axes, values, strict=True))) for values in itertools.product(*self.axes.values())]

    def with_task(self, task: Task) -> Self:
        """This family learning another task."""
        self.task = task
        return self

    def check(self, sub: SubModel) -> None:
        """Raises TrainerError when `sub` is not of this family or lies outside its range."""
        if set(sub.axes) != set(self.axes):
            raise TrainerError(f"sub-model {sub.id}: axes {sorted(sub.axes)}, this family has {sorted(self.axes)}")
        for name, value in sub.axes.items():
            if not self.allows(name, value):
                largest = self.axes[name][-1]
                kind = "numbers above 0" if isinstance(largest, float) else "whole numbers from 1"
                raise TrainerError(f"axis {name!r} = {format_value(value)}: allowed are {kind} up to {format_value(largest)}")

    def allows(self, axis: str, value: AxisValue) -> bool:
        """Whether the value lies in the axis' range, be it in the grid or between two of its values."""
        largest = self.axes[axis][-1]
        if isinstance(value, tuple) and not isinstance(largest, tuple):
            return False
        if isinstance(value, float) and not isinstance(largest, float):
            return False
        return (min(value) if isinstance(value, tuple) else value) > 0 and at_most(value, largest)

    def with_grid(self, grid: Mapping[str, Sequence[AxisValue]]) -> Self:
        """This family with other values on some axes (`--grid`). The full model stays part of the grid.

        Raises TrainerError for an unknown axis or a value outside the range.
        """
        axes = dict(self.axes)
        for name, values in grid.items():
            if name not in axes:
                raise TrainerError(f"grid: unknown axis {name!r}; this family has {', '.join(axes)}")
            full = axes[name][-1]
            if isinstance(full, float):
                values = [float(v) if isinstance(v, int) else v for v in values]
            for value in values:
                self.check(SubModel(**{**self.largest.axes, name: value}))
            axes[name] = self._ascending(name, [*values, full])
        self.axes = axes
        return self

    def per_stage(self, axis: str, value: int, stages: int) -> tuple[int, ...]:
        """A plain count written per stage; a family whose stages differ in length overrides this."""
        return (value,) * stages

    def _ascending(self, axis: str, values: Sequence[AxisValue]) -> tuple[AxisValue, ...]:
        """Sorted, without duplicates; when some values are per stage, all are written per stage."""
        stages = {len(v) for v in values if isinstance(v, tuple)}
        if len(stages) > 1:
            raise TrainerError(f"grid: axis {axis!r} mixes values for {sorted(stages)} stages")
        if stages:
            count = stages.pop()
            per_stage = {v if isinstance(v, tuple) else self.per_stage(axis, int(v), count) for v in values}
            return tuple(sorted(per_stage, key=lambda v: (sum(v), v)))
        return tuple(sorted(set(values)))


def _check_kind(what: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raises TrainerError for a number where the default is a list, or the other way round, unless the annotation allows it."""
    default, annotation = parameter.default, str(parameter.annotation)
    if "|" in annotation or "Union" in annotation or "Optional" in annotation or "Any" in annotation:
        return
    if isinstance(default, Sequence) and not isinstance(default, str):
        numbers = bool(default) and all(_is_number(item) for item in default)
        if not isinstance(value, Sequence) or isinstance(value, str) or (numbers and not all(map(_is_number, value))):
            example = f", for example {_written(default)}" if default else ""
            raise TrainerError(f"{what} = {_written(value)}: allowed is a list{' of numbers' if numbers else ''}{example}")
    elif _is_number(default) and not _is_number(value):
        raise TrainerError(f"{what} = {_written(value)}: allowed is a number, for example {_written(default)}")


def _written(value: Any) -> str:
    """As it is written after `--set NAME=`."""
    return json.dumps(value, default=repr)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


_REGISTRY: dict[str, type[Family]] = {}


def register_family(name: str, family: type[Family]) -> None:
    """Makes `--family NAME` mean this class. Raises TrainerError when the name is taken by another class."""
    if _REGISTRY.get(name, family) is not family:
        raise TrainerError(f"family name {name!r} is taken by {_REGISTRY[name].__qualname__}")
    _REGISTRY[name] = family


def registered_families() -> dict[str, type[Family]]:
    return dict(_REGISTRY)


def find_family(name: str) -> type[Family]:
    """The class behind a registered name or `module:Class` (looked for in the working directory too).

    Raises TrainerError naming what is known when there is no such family.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    found = imported(name, "family", list(_REGISTRY))
    if not (isinstance(found, type) and issubclass(found, Family)):
        module, _, attribute = name.partition(":")
        raise TrainerError(f"family {name!r}: {attribute} is not a subclass of trainer.Family in {module}")
    return found


def family_name(family: Family) -> str:
    """The name that `find_family` takes to find this family's class again."""
    for name, registered in _REGISTRY.items():
        if registered is type(family):
            return name
    return f"{type(family).__module__}:{type(family).__qualname__}"
