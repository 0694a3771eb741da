"""`Task`: what is learnt. Outputs, loss, distillation, the check of targets and the score, for any architecture.

The training loop, the export and the device know a task by this alone: none of them knows what a label is.

Shapes: N batch; what follows is the task's own.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from traceback import walk_tb
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from numpy.typing import NDArray
from torch import Tensor

from trainer.submodel import TrainerError

Outputs = Mapping[str, Tensor]
"""What a network gives, by name."""

Targets = Tensor | Mapping[str, Tensor]
"""What it should have given: one tensor, or several by name; axis 0 of each is the batch."""


class Score(NamedTuple):
    """How good a sub-model is."""

    quality: float  # 0 to 1, higher is better: what a sub-model is chosen by
    metrics: Mapping[str, float]  # what people of the field read, by name; the task's `metric` among them


class Scorer(Protocol):
    """Collects a score batch by batch, in numpy: the same for what torch and what ONNX Runtime computes."""

    def add(self, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None: ...

    def value(self) -> Score:
        """Of all that was added. Raises TrainerError when that was nothing."""


class Task(ABC):
    """A user's own is one class with these methods, named by `Family.task` or `--task module:Class`.

    A dataclass' fields are its settings: a run and a bundle carry them.
    """

    kind: ClassVar[str]
    """A standard term: "classification", "segmentation", "detection"."""

    metric: ClassVar[str]
    """What `Score.quality` is, as it is named to people: "accuracy", "mean_iou"."""

    outputs: Mapping[str, Mapping[int, str]]
    """Output name, in the order of a tuple → axes that may be of free size. One is free in an exported graph where it has the
    name of a free axis of an input (axis 0, the batch, always)."""

    logits: ClassVar[Sequence[str]] = ()
    """Outputs that `distil` makes probabilities of: a teacher's temperature divides them."""

    prefixes: ClassVar[Sequence[str]] = ()
    """Outputs whose last axis is shorter in smaller models, and may be longer in a teacher's: its first places count."""

    data_options: ClassVar[Mapping[str, Any]] = {}
    """Options of a data source (`--data-option`) that its targets need, where the source has them."""

    class_per_target: ClassVar[bool] = False
    """Whether each number of a target is about a class of its own; else whole numbers tell the classes by their values."""

    answers_are_targets: ClassVar[bool] = False
    """Whether what the original model answers are the targets where the data have none of real numbers (`trainer.targets`)."""

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Scalar: the mean over the batch."""

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Scalar loss against a teacher's outputs in place of targets, which need no gradient.

        Raises TrainerError for a task that has none.
        """
        raise TrainerError(
            f"task {self.kind}: it has no distillation (`Task.distil`), which update = 'sandwich' and a teacher need"
        )

    def counting(self, outputs: Outputs, targets: Targets) -> Outputs:
        """Of outputs, the model's or a teacher's, what `distil` is to see: without positions that count for nothing."""
        return outputs

    def looked_at(self, targets: Targets, seed: int | None = None) -> Tensor | None:
        """Which positions (N, …) of targets count, bool; None: all. With a seed those that a training step looks at, which may
        be fewer; a network that can (`Family.at_positions`) then gives no others."""
        return None

    def mean_over(self, targets: Targets, distilled: bool = False) -> Tensor | int:
        """Of how many things `loss`, or with `distilled` `distil`, is the mean for these targets; parts of a batch weigh as
        many (`micro_batches`). By default the positions that count (`looked_at`), where that says so, else the examples."""
        found = self.looked_at(targets)
        if found is not None:
            return found.sum()
        return len(next(iter(targets.values())) if isinstance(targets, Mapping) else targets)

    def importance(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Scalar whose change without a unit tells how much that one matters, when units are sorted: the loss."""
        return self.loss(outputs, targets)

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The task for data whose classes have these names (none: they are numbers)."""
        return self

    @abstractmethod
    def check(self, outputs: Outputs, targets: Targets) -> None:
        """Raises TrainerError naming field, value and what is allowed where these targets are none for such outputs.

        There may be more targets than outputs: of the outputs only the other axes' sizes count.
        """

    @abstractmethod
    def scorer(self) -> Scorer:
        """A new, empty one."""

    def config(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that make this task again: a dataclass' fields that are not at their defaults."""
        if not is_dataclass(self):
            return {}
        return {f.name: v for f in fields(self) if f.init and (v := getattr(self, f.name)) != _default(f)}

    @classmethod
    def configured(cls, settings: Mapping[str, Any]) -> Self:
        """The task with these settings. Raises TrainerError naming those that are allowed."""
        allowed = list(inspect.signature(cls).parameters)
        for name in settings:
            if name not in allowed:
                raise TrainerError(f"task {cls.kind} has no setting {name!r}; allowed are {', '.join(allowed) or 'none'}")
        return cls(**settings)


def _default(field: Any) -> Any:
    return (
        field.default if field.default is not MISSING else field.default_factory() if callable(field.default_factory) else None
    )


_REGISTRY: dict[str, type[Task]] = {}


def register_task(task: type[Task], name: str | None = None) -> None:
    """Makes `--task NAME` (default: its kind) mean this class. Raises TrainerError when the name is taken by another class."""
    name = name or task.kind
    if _REGISTRY.get(name, task) is not task:
        raise TrainerError(f"task name {name!r} is taken by {_REGISTRY[name].__qualname__}")
    _REGISTRY[name] = task


def registered_tasks() -> dict[str, type[Task]]:
    """By the names that `--task` takes."""
    return dict(_REGISTRY)


def find_task(name: str) -> type[Task]:
    """The class behind a registered name or `module:Class`. Raises TrainerError naming what is known."""
    if name in _REGISTRY:
        return _REGISTRY[name]
    found = imported(name, "task", list(_REGISTRY))
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise TrainerError(f"task {name!r}: is not a subclass of trainer.Task")
    return found


def task_name(task: Task) -> str:
    """The name that `find_task` takes to find this task's class again."""
    for name, registered in _REGISTRY.items():
        if registered is type(task):
            return name
    return f"{type(task).__module__}:{type(task).__qualname__}"


def imported(name: str, field: str, known: list[str]) -> Any:
    """What `module:Name` names; the module is looked for in the working directory too.

    Raises TrainerError for another form, a module that is not there or fails, and a name that is not in it.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise TrainerError(f"unknown {field} {name!r}; known are {', '.join(sorted(known))}, or module:Name for your own")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TrainerError(f"{field} {name!r}: {error}; the module must lie in the working directory or be installed") from None
    except Exception as error:  # whatever the user's own code raises
        raise TrainerError(f"{field} {name!r}: {where(error)}") from error
    if not hasattr(module, attribute):
        raise TrainerError(f"{field} {name!r}: {module_name} has no {attribute}")
    return getattr(module, attribute)


@contextmanager
def own(what: str) -> Iterator[None]:
    """Within: somebody's own code, named `what`. Whatever it raises becomes a TrainerError naming method, file and line."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        raise TrainerError(f"{what}: {where(error)}") from error


def where(error: BaseException) -> str:
    """In one line what went wrong in somebody's code, and where: type, message, function, file and line of the innermost frame
    that is theirs; where none is, an installed package's; else ours."""
    found: dict[int, str] = {}
    for frame, line in walk_tb(error.__traceback__):
        code = frame.f_code
        found[_foreign(code.co_filename)] = f" (in {code.co_qualname}, {code.co_filename}, line {line})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{found[min(found)] if found else ''}"


_HOUSE = os.path.dirname(os.path.dirname(__file__))
_OURS = tuple(os.path.join(_HOUSE, room, "") for room in ("trainer", "exporter", "sortednet"))
_PYTHON = os.path.join(sysconfig.get_path("stdlib"), "")


def _foreign(file: str) -> int:
    """How far a file is from being a user's own: 0 theirs, 1 an installed package's, 2 ours, 3 torch's, numpy's or Python's."""
    if file.startswith(_OURS):
        return 2
    for packages in (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}"):
        if packages in file:
            return 3 if file.partition(packages)[2].startswith((f"torch{os.sep}", f"numpy{os.sep}")) else 1
    return 3 if file.startswith((_PYTHON, "<")) else 0
