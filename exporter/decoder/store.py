"""The weights file of a precision, and a graph that is written over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from exporter.graph import PRODUCER
from exporter.weights import ALIGNMENT

OPSET, IR_VERSION = 18, 9
MICROSOFT = "com.microsoft"

Array = NDArray[Any]
Piece = tuple[int, int]
"""From where to where something of the full model is kept."""


@dataclass(frozen=True)
class Stored:
    """Where an array of the full model lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class WeightsFile:
    """Arrays of the full model by name, one after the other."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
        self.arrays: dict[str, Stored] = {}

    def add(self, name: str, array: Array) -> None:
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        self.arrays[name] = Stored(self._file.tell(), array.shape, array.dtype)
        self._file.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())

    def __contains__(self, name: str) -> bool:
        return name in self.arrays


class Graph:
    """Nodes over a weights file. Every method that computes returns the name of what it computes."""

    def __init__(self, weights: WeightsFile) -> None:
        self.weights = weights
        self.nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._made: dict[tuple[str, str], str] = {}
        self._values = 0

    def node(
        self, operator: str, inputs: Sequence[str], domain: str = "", outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """The first output; `outputs`: the names of all, where there are several or it has to have one."""
        names = list(outputs) or [self.fresh()]
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def ours(self, operator: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        """A node of ONNX Runtime's own domain."""
        return self.node(operator, inputs, MICROSOFT, outputs, **attributes)

    def fresh(self) -> str:
        self._values += 1
        return f"v{self._values}"

    def constant(self, value: Any, dtype: Any) -> str:
        """A small tensor within the graph; equal ones once."""
        array = np.array(value, dtype=dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            self._constants[key] = name
            self._initializers[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def known(self, what: str, of: str) -> str | None:
        """What was computed of a value already (`remember`)."""
        return self._made.get((what, of))

    def remember(self, what: str, of: str, value: str) -> str:
        self._made[what, of] = value
        return value

    def stored(self, name: str, rows: Piece | None = None) -> str:
        """An array of the file, or these of its rows: no node, a tensor that begins and ends elsewhere."""
        stored = self.weights.arrays[name]
        begin, end = rows or (0, stored.shape[0])
        own = name if (begin, end) == (0, stored.shape[0]) else f"{name}[{begin}:{end}]"
        if own not in self._initializers:
            row_bytes = stored.dtype.itemsize * int(np.prod(stored.shape[1:], dtype=np.int64))
            tensor = TensorProto(name=own, data_type=helper.np_dtype_to_tensor_dtype(stored.dtype))
            tensor.dims.extend((end - begin, *stored.shape[1:]))
            tensor.data_location = TensorProto.EXTERNAL
            place = {
                "location": self.weights.name,
                "offset": stored.offset + begin * row_bytes,
                "length": (end - begin) * row_bytes,
            }
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[own] = tensor
        return own

    def cut(self, name: str, rows: Sequence[Piece], columns: Sequence[Piece] = ()) -> str:
        """Of an array with two axes or more what lies in these rows, and along its second axis in these columns, side by side.

        ONNX Runtime folds the nodes when it loads the graph.
        """
        width = self.weights.arrays[name].shape[1] if columns else 0
        parts = []
        for piece in rows:
            whole = self.stored(name, piece)
            if not columns or tuple(columns) == ((0, width),):
                parts.append(whole)
                continue
            cuts = [self._slice(whole, column) for column in columns]
            parts.append(cuts[0] if len(cuts) == 1 else self.node("Concat", cuts, axis=1))
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)

    def _slice(self, name: str, piece: Piece) -> str:
        bounds = [self.constant([bound], np.int64) for bound in (*piece, 1)]
        return self.node("Slice", [name, *bounds])

    def model(self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> ModelProto:
        used = {name for node in self.nodes for name in node.input}
        graph = GraphProto(name=PRODUCER, node=self.nodes, input=inputs, output=outputs)
        graph.initializer.extend(tensor for name, tensor in self._initializers.items() if name in used)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, producer_name=PRODUCER, opset_imports=opsets, ir_version=IR_VERSION)


def pieces_size(pieces: Sequence[Piece]) -> int:
    return sum(end - begin for begin, end in pieces)
