"""How the matrices of a decoder lie in the weights file of a precision, and which nodes multiply with them.

A precision quantizes the full model's weights once, so that a size is a prefix of them: of rows and columns, of whole blocks.

Shapes: I inputs, O outputs of a matrix; T tokens, V vocabulary, d hidden size; K = I / 32 blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from exporter.decoder.store import Array, Graph, Piece, WeightsFile, pieces_size
from exporter.selftest import ExportError

BLOCK = 32
SEVEN_BITS = 63  # of either sign: sums of two products with 8-bit activations fit into 16 bits on every processor
TIED = "embedding"
HEAD = "head"


class Matrices(ABC):
    """A precision. `write` and `write_embedding` store, the others add nodes to a graph."""

    def check(self, what: str, size: int) -> None:  # noqa: B027  # most cut anywhere
        """Raises ExportError for a number of inputs of a matrix that this precision does not cut at."""

    @abstractmethod
    def write(self, file: WeightsFile, name: str, weight: Array) -> None:
        """A matrix (O, I), float32."""

    @abstractmethod
    def multiply(self, graph: Graph, name: str, value: str, inputs: int, outputs: Sequence[Piece]) -> str:
        """(…, inputs) → (…, size of the pieces): with the first rows and these pieces of the matrix's outputs."""

    @abstractmethod
    def write_embedding(self, file: WeightsFile, weight: Array, head: bool) -> None:
        """(V, d); `head`: that it is the head too."""

    @abstractmethod
    def embed(self, graph: Graph, ids: str, hidden: int) -> str:
        """Token ids (N, T) → (N, T, hidden)."""

    @abstractmethod
    def tied_head(self, graph: Graph, value: str, hidden: int, tokens: int) -> str:
        """(N, R, hidden) → (N, R, tokens) with the first so many of the embedding."""


class Floats(Matrices):
    """float32, stored (I, O): a product with fewer inputs reads the first rows, and loading turns nothing round."""

    def write(self, file: WeightsFile, name: str, weight: Array) -> None:
        file.add(name, weight.T)

    def multiply(self, graph: Graph, name: str, value: str, inputs: int, outputs: Sequence[Piece]) -> str:
        return graph.node("MatMul", [value, graph.cut(name, [(0, inputs)], outputs)])

    def write_embedding(self, file: WeightsFile, weight: Array, head: bool) -> None:
        file.add(TIED, weight)

    def embed(self, graph: Graph, ids: str, hidden: int) -> str:
        found = graph.node("Gather", [graph.stored(TIED), ids])
        return found if hidden == graph.weights.arrays[TIED].shape[1] else _first(graph, found, hidden)

    def tied_head(self, graph: Graph, value: str, hidden: int, tokens: int) -> str:
        weight = graph.node("Transpose", [graph.cut(TIED, [(0, tokens)], [(0, hidden)])], perm=[1, 0])
        return graph.node("MatMul", [value, weight])


class IntegerRows(Matrices):
    """Weights of 7 bits with a factor for each output, activations of 8 bits with one for each token.

    Activations are unsigned around 128: signed ones take twenty times as long in ONNX Runtime's kernels. 7 bits, because sums
    of full 8-bit weights saturate on processors without VNNI.
    """

    def write(self, file: WeightsFile, name: str, weight: Array) -> None:
        quantized, scale = _rows(weight)
        file.add(name, quantized.T)
        file.add(f"{name}.scale", scale / np.float32(127))

    def multiply(self, graph: Graph, name: str, value: str, inputs: int, outputs: Sequence[Piece]) -> str:
        weight = graph.cut(name, [(0, inputs)], outputs)
        return self._product(graph, value, weight, graph.cut(f"{name}.scale", outputs))

    def write_embedding(self, file: WeightsFile, weight: Array, head: bool) -> None:
        quantized, scale = _rows(weight)
        file.add(TIED, quantized)
        file.add(f"{TIED}.scale", scale / np.float32(127))

    def embed(self, graph: Graph, ids: str, hidden: int) -> str:
        found = graph.node("Gather", [graph.stored(TIED), ids])
        if hidden != graph.weights.arrays[TIED].shape[1]:
            found = _first(graph, found, hidden)
        numbers = graph.node("Cast", [found], to=TensorProto.FLOAT)
        scale = graph.node("Gather", [graph.stored(f"{TIED}.scale"), ids])
        scale = graph.node("Unsqueeze", [scale, graph.constant([2], np.int64)])
        return graph.node("Mul", [numbers, graph.node("Mul", [scale, graph.constant(127, np.float32)])])

    def tied_head(self, graph: Graph, value: str, hidden: int, tokens: int) -> str:
        weight = graph.node("Transpose", [graph.cut(TIED, [(0, tokens)], [(0, hidden)])], perm=[1, 0])
        return self._product(graph, value, weight, graph.stored(f"{TIED}.scale", (0, tokens)))

    def _product(self, graph: Graph, value: str, weight: str, scale: str) -> str:
        """The token's largest magnitude m is its factor: value · 127/m is rounded, and the product multiplied by m; the 1/127
        is in the weights' factors. Of a token of zeros m is 0 and so is the product, whatever 0/0 was rounded to."""
        one, zero = graph.constant(1, np.float32), graph.constant(128, np.uint8)
        if (quantized := graph.known("quantized", value)) is None:
            axes = graph.constant([-1], np.int64)
            largest = graph.node("ReduceMax", [graph.node("Abs", [value]), axes], keepdims=1)
            graph.remember("largest", value, largest)
            scaled = graph.node("Mul", [value, graph.node("Div", [graph.constant(127, np.float32), largest])])
            quantized = graph.remember("quantized", value, graph.node("QuantizeLinear", [scaled, one, zero]))
        product = graph.ours("MatMulIntegerToFloat", [quantized, weight, one, scale, zero])
        return graph.node("Mul", [product, graph.known("largest", value) or ""])


class Blocks(Matrices):
    """Weights of 8 or 4 bits with a factor for each block of 32 inputs, stored (O, K, bytes of a block)."""

    def __init__(self, bits: int, head_bits: int) -> None:
        self.bits, self.head_bits = bits, head_bits

    def check(self, what: str, size: int) -> None:
        if size % BLOCK:
            raise ExportError(
                f"{what} = {size}: allowed with weights in blocks are multiples of {BLOCK}; leave this size out, or export it "
                "in fp32 or int8-rows"
            )

    def write(self, file: WeightsFile, name: str, weight: Array) -> None:
        bits = self.head_bits if name == HEAD else self.bits
        quantized, scale = _blocks(weight, bits)
        file.add(name, quantized)
        file.add(f"{name}.scale", scale)

    def multiply(self, graph: Graph, name: str, value: str, inputs: int, outputs: Sequence[Piece]) -> str:
        blocks = [(0, inputs // BLOCK)]
        weight, scale = graph.cut(name, outputs, blocks), graph.cut(f"{name}.scale", outputs, blocks)
        size = graph.weights.arrays[name].shape[2]
        return graph.ours(
            "MatMulNBits",
            [value, weight, scale],
            K=inputs,
            N=pieces_size(outputs),
            bits=size * 8 // BLOCK,
            block_size=BLOCK,
            accuracy_level=4,  # activations in 8 bits: with the kernels of 0, floats, it takes thirty times as long
        )

    def write_embedding(self, file: WeightsFile, weight: Array, head: bool) -> None:
        quantized, scale = _blocks(weight, self.head_bits)
        file.add(TIED, quantized)
        file.add(f"{TIED}.scale", scale)

    def embed(self, graph: Graph, ids: str, hidden: int) -> str:
        full, size = graph.weights.arrays[TIED].shape[1:]
        found = graph.node("Gather", [graph.stored(TIED), ids])  # (N, T, K, bytes)
        scale = graph.node("Gather", [graph.stored(f"{TIED}.scale"), ids])  # (N, T, K)
        if hidden != full * BLOCK:
            found, scale = _first(graph, found, hidden // BLOCK), _first(graph, scale, hidden // BLOCK)
        if size < BLOCK:  # two numbers in a byte, the lower half first: each byte's are looked up, which takes fewer nodes
            pairs = np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1).astype(np.float32) - 8
            places = graph.node("Cast", [found], to=TensorProto.INT32)
            numbers, axes = graph.node("Gather", [graph.constant(pairs, np.float32), places]), [-2, -1]
        else:
            numbers = graph.node("Sub", [graph.node("Cast", [found], to=TensorProto.FLOAT), graph.constant(128, np.float32)])
            axes = [-1]
        factors = graph.node("Unsqueeze", [scale, graph.constant(axes, np.int64)])
        found = graph.node("Mul", [numbers, factors])
        return graph.node("Reshape", [found, graph.constant([0, 0, hidden], np.int64)])

    def tied_head(self, graph: Graph, value: str, hidden: int, tokens: int) -> str:
        return self.multiply(graph, TIED, value, hidden, [(0, tokens)])


def _first(graph: Graph, value: str, count: int) -> str:
    """The first of the third axis."""
    bounds = [graph.constant([bound], np.int64) for bound in (0, count, 2)]
    return graph.node("Slice", [value, *bounds])


def _rows(weight: Array) -> tuple[Array, Array]:
    """(O, I) → whole numbers of 7 bits, and the factor of each row."""
    scale = np.abs(weight).max(axis=1).astype(np.float32) / np.float32(SEVEN_BITS)
    scale[scale == 0] = 1
    return np.rint(weight / scale[:, None]).clip(-SEVEN_BITS, SEVEN_BITS).astype(np.int8), scale


def _blocks(weight: Array, bits: int) -> tuple[Array, Array]:
    """(O, I) → (O, K, bytes) and factors (O, K). Inputs that no whole block holds are not there: sizes are whole blocks."""
    outputs, inputs = weight.shape
    blocks = weight.reshape(outputs, inputs // BLOCK, BLOCK).astype(np.float32)
    middle = 1 << (bits - 1)
    # The number of the largest magnitude becomes -middle exactly, whichever sign it has: the range is not symmetric.
    place = np.abs(blocks).argmax(axis=2)[:, :, None]
    scale = -np.take_along_axis(blocks, place, axis=2)[:, :, 0] / np.float32(middle)
    divisor = np.where(scale == 0, np.float32(1), scale)
    whole: Array = (np.rint(blocks / divisor[:, :, None]) + middle).clip(0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        whole = whole[:, :, 0::2] | (whole[:, :, 1::2] << 4)
    return whole, scale
