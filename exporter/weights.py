"""`weights.bin`: the full model's parameters, once, each at a fixed offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:  # the service cuts weights where torch is not installed
    from torch import Tensor

    from trainer.nested import NestedModel

WEIGHTS_FILE = "weights.bin"
INT8_WEIGHTS_FILE = "weights.int8.bin"
ALIGNMENT = 64  # bytes: one cache line, and enough for every vector load


@dataclass(frozen=True)
class StoredTensor:
    """Where a full parameter lies."""

    offset: int  # bytes from the beginning of the file
    shape: tuple[int, ...]
    dtype: str  # numpy's name, for example "float32"
    item_bytes: int


def write_weights(nested: NestedModel, file: BinaryIO) -> dict[str, StoredTensor]:
    """Writes every parameter in C order, little-endian; returns the layout, tied names pointing to the same bytes."""
    layout: dict[str, StoredTensor] = {}
    written: dict[int, StoredTensor] = {}
    for name, parameter in nested.full.named_parameters(remove_duplicate=False):
        if id(parameter) not in written:
            written[id(parameter)] = _append(parameter.detach(), file)
        layout[name] = written[id(parameter)]
    return layout


def _append(tensor: Tensor, file: BinaryIO) -> StoredTensor:
    array = tensor.cpu().contiguous().numpy()
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    stored = StoredTensor(file.tell(), tuple(array.shape), array.dtype.name, array.dtype.itemsize)
    file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return stored
