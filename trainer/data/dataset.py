"""Batches and data sets: what training, calibration and the export see of data, whatever they were read from.

Shapes: N examples.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from trainer.data.augment import Augmentation
from trainer.family import DataSpec
from trainer.submodel import TrainerError
from trainer.task import Targets, own

INPUT = "input"
"""The name of an input that was given none. A family with a single input takes a single one of any name."""


class Batch(NamedTuple):
    """Some examples: model inputs by name, each (N, …), and targets, one tensor (N, …) or several by name."""

    inputs: Mapping[str, Tensor]
    targets: Targets


@runtime_checkable
class Examples(Protocol):
    """What training needs of data: a length, and batches by index.

    Where `batch` reads files the class says so with an attribute `reads_files = True`; worker processes then call it. It raises
    TrainerError naming a file that cannot be read. A method `packed_batch` beside it may leave pixels as unsigned bytes:
    workers call that one, so that a quarter of the bytes pass between processes, and a split that is small is read once and
    held in memory. An attribute `lengths`, a tensor (N,), says how long each is where they differ: batches are then made of
    like lengths, and `batch` pads to the longest of them. An attribute `repeats = True` says that an example is the same every
    time it is read, nothing in it drawn at random: a teacher's answers for it are remembered then.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch: ...


class Samples:
    """Examples held in memory. Unsigned bytes of an input are pixels: a batch of them is float32 in [0, 1].

    `inputs`: one tensor, or several by name; `targets` likewise. Raises TrainerError when their lengths differ.
    """

    def __init__(self, inputs: Tensor | Mapping[str, Tensor], targets: Targets) -> None:
        self.inputs: Mapping[str, Tensor] = dict(_by_name(inputs))
        self.targets = targets
        wanted = {name or "targets": len(t) for name, t in named_targets(targets).items()}
        lengths = {**{name: len(t) for name, t in self.inputs.items()}, **wanted}
        if not self.inputs or not wanted or len(set(lengths.values())) != 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "nothing"
            raise TrainerError(f"data: {found} examples; allowed are inputs and targets of one length")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batch(self, indices: Tensor) -> Batch:
        picked = {name: t[indices] for name, t in self.inputs.items()}
        return Batch({n: pixels(t) for n, t in picked.items()}, each(self.targets, lambda t: t[indices]))


def stays_the_same(examples: Examples) -> bool:
    """Whether examples are known to be the same at every reading: somebody's own dataset may draw at random."""
    return isinstance(examples, Samples) or hasattr(examples, "packed_batch") or bool(getattr(examples, "repeats", False))


def by_length(examples: Examples) -> Tensor:
    """Their indices, the shortest first where they have lengths, so that a batch has little padding."""
    lengths = getattr(examples, "lengths", None)
    return torch.arange(len(examples)) if lengths is None else torch.argsort(torch.as_tensor(lengths), stable=True)


def pixels(tensor: Tensor) -> Tensor:
    """Unsigned bytes as float32 in [0, 1]; anything else as it is."""
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor


class FromDataset:
    """A map-style `torch.utils.data.Dataset` as `Examples`.

    Items are pairs (inputs, targets), each one tensor or several by name, or mappings with targets under `targets`, `labels` or
    `label`, whose other entries are inputs. Unsigned bytes of an input are pixels, real numbers become float32. What the
    dataset's own code raises is a TrainerError naming the item, the error, the function, file and line.
    """

    def __init__(self, dataset: torch.utils.data.Dataset[Any]) -> None:
        self.dataset = dataset

    @property
    def reads_files(self) -> bool:
        return bool(getattr(self.dataset, "reads_files", False))

    @property
    def repeats(self) -> bool:
        return bool(getattr(self.dataset, "repeats", False))

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, indices: Tensor) -> Batch:
        items = []
        for index in indices.tolist():
            with own(f"data, item {index}"):
                item = self.dataset[index]
            items.append(_pair(item))
        try:
            inputs, targets = torch.utils.data.default_collate(items)
        except Exception as error:  # sizes that differ, objects that are no numbers
            raise TrainerError(f"data, items {indices.tolist()[:3]}…: cannot be put in one batch: {error}") from error
        for name, part in (("inputs", inputs), ("targets", targets)):
            if not all(isinstance(value, Tensor) for value in (part.values() if isinstance(part, Mapping) else [part])):
                raise TrainerError(f"data: {name} are no numbers, or nested; allowed are an array or arrays by name")
        given = {INPUT: inputs} if isinstance(inputs, Tensor) else inputs
        return Batch({name: _single(pixels(t)) for name, t in given.items()}, targets)


TARGET_NAMES = ("targets", "labels", "label")
"""Of an item that is a mapping: the first of these that it has is the targets."""


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        name = next((name for name in TARGET_NAMES if name in item), None)
        if name is None or len(item) < 2:
            raise TrainerError(f"data: an item has {', '.join(map(repr, item))}; allowed are inputs and one of {TARGET_NAMES}")
        return {key: _numbers(value) for key, value in item.items() if key != name}, _numbers(item[name])
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return _numbers(item[0]), _numbers(item[1])
    raise TrainerError(f"data: an item is a {type(item).__name__}; allowed are pairs (inputs, targets) or a mapping by name")


def _numbers(value: Any) -> Any:
    """A list of numbers as one tensor, which `default_collate` would make many of; anything else as it is."""
    if not isinstance(value, (list, tuple)):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


Data = Examples | torch.utils.data.Dataset[Any] | tuple[Any, Any]
"""What functions of ours take for data: see `as_examples`."""


def as_examples(data: Data) -> Examples:
    """Accepts `Examples`, a pair (inputs, targets) of tensors or of tensors by name, or a map-style Dataset.

    Raises TrainerError otherwise.
    """
    if isinstance(data, tuple) and len(data) == 2:
        inputs, targets = (each(part, torch.as_tensor) if isinstance(part, Mapping) else torch.as_tensor(part) for part in data)
        return Samples(inputs, targets)
    if isinstance(data, Examples) and not _makes_batches(data):
        return data
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return FromDataset(data)  # type: ignore[arg-type]
    raise TrainerError(f"data of type {type(data).__name__}: allowed are Samples, (inputs, targets) or a map-style Dataset")


def _makes_batches(data: Any) -> bool:
    """Whether its `batch` is another thing: that of a Hugging Face data set takes a size, and gives a data set."""
    try:
        return "batch_size" in inspect.signature(data.batch).parameters
    except (TypeError, ValueError):  # written in C
        return False


@dataclass(frozen=True)
class DataSet:
    """A data set, split. `record` says how it was read and split; a run keeps it."""

    name: str
    spec: DataSpec
    train: Examples
    validation: Examples
    test: Examples
    augment: Augmentation | None
    record: Mapping[str, Any]
    files: Mapping[str, bytes] = field(
        default_factory=dict
    )  # what a device needs to prepare inputs (a tokenizer), by file name
    labels: tuple[str, ...] = ()  # names of the classes, in order; none where they are only numbers
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # how a file becomes an input, by input: see the manifest
    notes: tuple[str, ...] = ()  # sentences that the user is to read before the training begins


def _by_name(inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(inputs, Tensor):
        return {INPUT: inputs}
    if not isinstance(inputs, Mapping):
        raise TrainerError(f"inputs: a {type(inputs).__name__}; allowed are one tensor, or tensors by name")
    return inputs


def each(values: Any, apply: Any) -> Any:
    """Applied to a tensor, or to each of several by name."""
    if isinstance(values, Mapping):
        return {name: apply(value) for name, value in values.items()}
    return apply(values)


def named_targets(targets: Targets) -> Mapping[str, Tensor]:
    """By name; a single one under the empty name."""
    return targets if isinstance(targets, Mapping) else {"": targets}


def as_inputs(inputs: Tensor | Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Inputs by the names, and in the order, that a model has them. A single one needs no name, or may have another.

    Raises TrainerError naming what is missing.
    """
    given = _by_name(inputs)
    if len(names) == len(given) == 1:
        return {names[0]: next(iter(given.values()))}
    if set(given) != set(names):
        told = " (texts: with --data-option tokenizer=CHECKPOINT or =learn)" if INPUT in given and "input_ids" in names else ""
        raise TrainerError(
            f"inputs: {', '.join(map(repr, given)) or 'none'} given; the model takes {', '.join(map(repr, names))}{told}"
        )
    return {name: given[name] for name in names}
