"""`arrays:FILE.npz`: arrays by name in one file, held in memory.

targets           what the network should have given, or targets/NAME for several
split             optional: of each example 0, 1, 2 or "train", "validation", "test"
any other name    an input; unsigned bytes are pixels

Shapes: N examples, which is axis 0 of every array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.dataset import DataSet, Samples
from trainer.data.folders import PARTS, completed
from trainer.data.sources import Source, register_source
from trainer.data.splits import Array, description
from trainer.data.statistics import channel_statistics
from trainer.family import DataSpec
from trainer.submodel import TrainerError
from trainer.task import Targets

TARGETS, SPLIT = "targets", "split"
CHANNELS = (1, 3, 4)


def _arrays(name: str, file: str) -> DataSet:
    arrays = read_arrays(Path(file))
    split = arrays.pop(SPLIT, None)
    tensors = {key: as_tensor(f"{file}: array {key!r}", array) for key, array in arrays.items()}
    wanted = {key: t for key, t in tensors.items() if key.partition("/")[0] == TARGETS}
    inputs = {key: t for key, t in tensors.items() if key not in wanted}
    if not wanted or not inputs:
        what = "no array 'targets' (or targets/NAME for several)" if not wanted else "no input beside the targets"
        raise TrainerError(f"{file}: holds {', '.join(map(repr, tensors)) or 'nothing'}, {what}")
    if TARGETS in wanted and len(wanted) > 1:
        raise TrainerError(f"{file}: holds {', '.join(map(repr, wanted))}; allowed are targets or targets/NAME, not both")
    count = len(next(iter(tensors.values())))
    lengths = {key: len(t) for key, t in tensors.items()} | ({SPLIT: split.size} if split is not None else {})
    if set(lengths.values()) != {count} or not count:
        sizes = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise TrainerError(f"{file}: examples: {sizes}; allowed is one length for all arrays, and not none")
    for key, array in inputs.items():
        refuse_channels_last(f"{file}: array {key!r}", array)
    targets: Targets = wanted[TARGETS] if TARGETS in wanted else {k.partition("/")[2]: t for k, t in wanted.items()}
    parts, words = _split(file, split, targets, count)
    return array_set(name, inputs, targets, parts, {"split": words})


def array_set(
    name: str,
    inputs: Mapping[str, Tensor],
    targets: Targets,
    parts: Mapping[str, Array],
    record: Mapping[str, Any],
    classes: Sequence[str] = (),
    count: int | None = None,
) -> DataSet:
    """Arrays (N, …) with targets, in parts, as a data set. `classes`: their names; `count`: how many there are.

    `record`: what is to be remembered beside the usual.
    """
    samples = {part: _part(inputs, targets, torch.from_numpy(indices)) for part, indices in parts.items()}
    spec = _spec(inputs, targets, samples["train"])
    spec = spec if count is None else replace(spec, classes=count)
    whole = {**description(name, parts, samples, {}), **record}
    return DataSet(name, spec, samples["train"], samples["validation"], samples["test"], None, whole, labels=tuple(classes))


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name. Raises TrainerError where it is none, is damaged, or holds Python objects: they would
    have to be unpickled, which can run code."""
    if not path.is_file():
        raise TrainerError(f"{path}: there is no such file; expected is FILE.npz with inputs and 'targets'")
    key = None
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise TrainerError(f"{path}: holds one array without a name; allowed is .npz, from numpy.savez")
            arrays: dict[str, Array] = {}
            for key in loaded.files:
                arrays[key] = loaded[key]
    except TrainerError:
        raise
    except Exception as error:  # a damaged file raises whatever numpy, zipfile and zlib each have
        if "pickle" in str(error) and key is not None:
            raise TrainerError(
                f"{path}: array {key!r} holds Python objects; allowed are numbers, and text in 'split'"
            ) from None
        why = "is no .npz file" if "pickle" in str(error) else " ".join(str(error).split()) or type(error).__name__
        raise TrainerError(f"{path}: cannot be read{f', array {key!r}' if key else ''}: {why}") from None
    return arrays


def as_tensor(field: str, array: Array) -> Tensor:
    """As a model takes it: real numbers in single precision."""
    if array.dtype.kind not in "biuf":
        raise TrainerError(f"{field}: dtype {array.dtype}; allowed are real and whole numbers, and bool")
    if not array.ndim:
        raise TrainerError(f"{field}: is a single number; allowed are arrays with the examples along axis 0")
    if 0 in array.shape[1:]:
        raise TrainerError(f"{field}: shape {array.shape}, which is nothing of each example; allowed are sizes from 1")
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def refuse_channels_last(field: str, array: Tensor) -> None:
    """A network would take rows for channels."""
    shape = tuple(array.shape[1:])
    if array.dtype == torch.uint8 and len(shape) == 3 and shape[2] in CHANNELS and shape[0] not in CHANNELS:
        raise TrainerError(f"{field}: pixels of shape {shape} have their channels last; allowed is (channels, height, width)")


def _split(file: str, split: Array | None, targets: Targets, count: int) -> tuple[dict[str, Array], dict[str, str]]:
    """The indices of each part, and in words where it comes from."""
    labels = targets.numpy() if isinstance(targets, Tensor) and targets.ndim == 1 and _whole(targets) else None
    strata = np.zeros(count, dtype=np.int64) if labels is None else labels
    if split is None:
        parts, words = completed({"train": np.arange(count)}, strata, {})
        return parts, dict.fromkeys(words, "split by class" if labels is not None else "split at random")
    if split.ndim != 1 or split.dtype.kind not in "iuUS":
        raise TrainerError(f"{file}: array 'split': shape {split.shape}, dtype {split.dtype}; allowed is a number or name each")
    places = {str(spelling): part for i, (part, names) in enumerate(PARTS.items()) for spelling in (i, *names)}
    written = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in split.tolist()]
    for position, value in enumerate(written):
        if value not in places:
            raise TrainerError(
                f"{file}: array 'split': {value!r} at position {position}; allowed are 0, 1, 2 or {', '.join(PARTS)}"
            )
    found = np.array([places[value] for value in written])
    given = {part: np.flatnonzero(found == part) for part in PARTS if (found == part).any()}
    if "train" not in given:
        raise TrainerError(f"{file}: array 'split': names no example for training; allowed are 0, 1, 2 or {', '.join(PARTS)}")
    return completed(given, strata, dict.fromkeys(given, "array split"))


def _part(inputs: Mapping[str, Tensor], targets: Targets, indices: Tensor) -> Samples:
    chosen: Any = targets[indices] if isinstance(targets, Tensor) else {name: t[indices] for name, t in targets.items()}
    return Samples({name: t[indices] for name, t in inputs.items()}, chosen)


def _spec(inputs: Mapping[str, Tensor], targets: Targets, train: Samples) -> DataSpec:
    """Classes are told by whole numbers, as many as there are up to the largest."""
    first, target = next(iter(inputs.values())), targets if isinstance(targets, Tensor) else next(iter(targets.values()))
    mean, std = channel_statistics(train) if first.ndim == 4 and _is_image(first) else ((), ())
    return DataSpec(
        input_shape=tuple(first.shape[1:]),
        classes=max(0, int(target.max()) + 1) if _whole(target) else 0,
        mean=mean,
        std=std,
        vocabulary=max(0, int(first.max()) + 1) if _whole(first) and first.dtype != torch.uint8 else 0,
        inputs={name: tuple(t.shape[1:]) for name, t in inputs.items()} if len(inputs) > 1 else {},
        target_shape=tuple(target.shape[1:]),
    )


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def _is_image(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.dtype == torch.uint8


def _is_arrays(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".npz"


register_source(Source("arrays", _arrays, "FILE.npz", _is_arrays))
