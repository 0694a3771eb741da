"""Data sets in their binary formats."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint8]
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(values: Array) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, *, train: int = 40, test: int = 10, zipped: bool = False, **changed: Array) -> dict[str, Array]:
    """A folder like MNIST's with 5x4 pixels and classes 0 to 3; `changed`: other values for one of the four files."""
    values = np.random.default_rng(0)
    arrays = {
        "train_images": values.integers(0, 256, (train, 5, 4), dtype=np.uint8),
        "train_labels": np.arange(train, dtype=np.uint8) % 4,
        "test_images": values.integers(0, 256, (test, 5, 4), dtype=np.uint8),
        "test_labels": np.arange(test, dtype=np.uint8) % 4,
        **changed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip((TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS), arrays.values(), strict=True):
        data = idx(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays


def write_cifar10(folder: Path) -> dict[str, Array]:
    """Four records for each of ten classes in each of six files."""
    folder.mkdir(parents=True)
    records = {}
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        values = np.random.default_rng(i).integers(0, 256, (40, 3073), dtype=np.uint8)
        values[:, 0] = np.arange(40) % 10
        records[name] = values
        (folder / name).write_bytes(values.tobytes())
    return records
