"""Reads files of two data formats that `--data` takes: IDX and CIFAR-10's binary batches."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.submodel import TrainerError

Array = NDArray[Any]

_IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def has_idx(folder: Path) -> bool:
    return folder.is_dir() and _find(folder, _IDX_NAMES[0]) is not None


def read_idx_folder(folder: Path) -> tuple[Array, Array, Array, Array]:
    """Training images (N, 1, H, W) uint8 and labels (N,) int64, then those of the test split.

    Raises TrainerError naming a missing, truncated or mislabelled file.
    """
    arrays = []
    for name in _IDX_NAMES:
        path = _find(folder, name)
        if path is None:
            raise TrainerError(f"data folder {str(folder)!r}: {name}[.gz] is missing")
        arrays.append(_read_idx(path, axes=1 if "labels" in name else 3))
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise TrainerError(f"{_IDX_NAMES[2]}: images of {arrays[2].shape[1:]}, the training images are {arrays[0].shape[1:]}")
    for images, labels, name in ((arrays[0], arrays[1], _IDX_NAMES[1]), (arrays[2], arrays[3], _IDX_NAMES[3])):
        if len(images) != len(labels):
            raise TrainerError(f"{name}: {len(labels)} labels for {len(images)} images; allowed is one each")
    return arrays[0][:, None], arrays[1].astype(np.int64), arrays[2][:, None], arrays[3].astype(np.int64)


def _find(folder: Path, name: str) -> Path | None:
    for candidate in (name, name.replace("-idx", ".idx"), f"{name}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    return None


def _read_idx(path: Path, axes: int) -> Array:
    """Format: two zero bytes, type (8 = unsigned byte), number of axes, the axes as big-endian int32, the values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise TrainerError(f"{path.name}: cannot be read: {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise TrainerError(f"{path.name}: is no IDX file of unsigned bytes")
    if data[3] != axes:
        raise TrainerError(f"{path.name}: {data[3]} axes; allowed is {axes}")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3])
    if values.size != int(np.prod(shape)):
        raise TrainerError(f"{path.name}: truncated: {values.size} bytes of values, its header promises {int(np.prod(shape))}")
    return values.reshape(shape).copy()


def has_cifar10(folder: Path) -> bool:
    return (folder.is_dir() and any(folder.glob("*_batch*.bin"))) or any((folder / "cifar-10-batches-bin").glob("*_batch*.bin"))


def read_cifar10(folder: Path) -> tuple[Array, Array, Array, Array]:
    """CIFAR-10's binary version: records of one label byte and 3072 pixel bytes. The pickled version is not read."""
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    batches = [_read_cifar10_batch(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    test_images, test_labels = _read_cifar10_batch(folder / "test_batch.bin")
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return images, labels, test_images, test_labels


def _read_cifar10_batch(path: Path) -> tuple[Array, Array]:
    if not path.is_file():
        raise TrainerError(
            f"{path.name} is missing in {str(path.parent)!r}: the binary version of CIFAR-10 is read, not the pickled one"
        )
    values = np.fromfile(path, dtype=np.uint8)
    if values.size == 0 or values.size % 3073:
        raise TrainerError(f"{path.name}: {values.size} bytes are no whole number of records of 3073 bytes")
    records = values.reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].astype(np.int64)
