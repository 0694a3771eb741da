"""int8 graphs of a bundle's sub-models over one shared file of int8 weights.

A weight of the full model is quantized once per output channel, symmetrically; a prefix of the integers is then the
prefix's quantization, and every graph takes its cut of the same bytes. What ONNX Runtime folds into a weight when it
optimizes a graph, BatchNorm above all, is a factor per output channel: it belongs to the sub-model's scales (its sign, which
is the same for all sub-models, to the shared integers). The scales of activations, from running the sub-model on training
data, are ONNX Runtime's own static quantization; see its documentation on QDQ. The rows of an embedding are looked up as
integers and then scaled, by one number for all.

Weights have 7 bits by default (`LEVELS`). Where a processor has no dot product of bytes (x86-64 without VNNI), ONNX Runtime's
kernels multiply unsigned activations by signed weights and add two products in 16 bits, which 255 * 127 twice exceeds: they
saturate, and the answers of networks trained on MNIST are 0.09 (ResNet) and 0.22 (MobileNetV2) of their RMS off. With 63 at
most nothing saturates, at the same speed and, within 0.2 points, the accuracy of 127. Signed activations saturate as well;
unsigned weights do not, but take up to 1.5 times as long (benchmarks/device/forms.py).

Only products with a weight are quantized, and what hands their numbers on as they are. Normalisation, softmax and sums are as
fast in float, and every rounding to 256 levels that is not made is an error less: with them a transformer encoder of six
layers is 0.058 off its fp32 graph, without them 0.029, and takes 0.88 of the time. The two products of an attention, whose
factors are both rounded anew at each call, are faster in float too: 0.93 of the time at 16 tokens, 0.98 at 256.

Ranges are fixed ones, not those of each call (`DynamicQuantizeLinear`). For a BERT of 6 layers of 384 whose normalisation has
channels four times as large as the rest those come three times as near to fp32, in 1.0-1.06 of the time, but the answer to a
text then depends on which others it is asked with and on padding: by 7 % and 1 % of the largest output.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from exporter.bundle.manifest import Int8Range
from exporter.folding import Array, Folded, folded_weights, looked_up, optimized_graph
from exporter.graph import PRODUCER, Builder
from exporter.names import free_name, name_in_graph, names_of, rename
from exporter.weights import ALIGNMENT, INT8_WEIGHTS_FILE, StoredTensor
from trainer.nested import NestedModel
from trainer.submodel import SubModel

LEVELS: Mapping[Int8Range, int] = {"reduced": 63, "full": 127}
"""The largest integer of a weight, either sign."""
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_HAND_ON = (
    *("AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape", "Resize"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
_FLOAT_RESULTS = ("Gemm", "MatMul")
"""Products whose kernels give floats as fast as integers; a convolution's needs integers after it too."""
_SMALLEST_FACTOR = 1e-6
"""A channel that BatchNorm switches off keeps a scale above zero, so that its bias fits 32 bits."""

Feeds = Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class _Quantized:
    """A full weight as it lies in the shared file: integers times `scales` times `signs`, per output channel on axis `axis`."""

    stored: StoredTensor
    axis: int
    scales: Array
    signs: Array


class Quantizer:
    """Writes int8 graphs of sub-models whose fp32 graphs are `graphs`; their weights are quantized into `file`.

    `feeds`: batches of training data, by input name, for the ranges of activations. `weights`: their range.
    """

    def __init__(
        self, nested: NestedModel, graphs: Mapping[SubModel, Path], feeds: Feeds, file: BinaryIO, weights: Int8Range
    ) -> None:
        self._nested, self._graphs, self._feeds, self._range = nested, graphs, feeds, weights
        self._weights: dict[str, _Quantized] = {}
        self._embeddings: dict[str, _Quantized | None] = {}
        self._interface = {*nested.input_names, *nested.family.task.outputs}
        signs: dict[str, Array] = {}
        axes: dict[str, int] = {}
        for sub in graphs:
            if any(sub != other and sub <= other for other in graphs):
                continue  # the larger one has all its weights
            optimized = optimized_graph(graphs[sub])
            self._embeddings |= dict.fromkeys(looked_up(optimized, self._original(sub), self._view(sub)).values())
            for weight in self._folded(sub, optimized):
                axis = axes.setdefault(weight.parameter, weight.channel_axis)
                if axis != weight.channel_axis:
                    continue  # tied, and used the other way round: the first use has it
                known = signs.setdefault(weight.parameter, np.ones(self._full(weight.parameter).shape[axis]))
                known[self._channels(sub, weight)[weight.factors < 0]] = -1
        for name, of_channels in signs.items():
            self._weights[name] = _append(self._full(name), axes[name], of_channels, LEVELS[weights], file)
        for name in self._embeddings:
            whole = self._full(name)
            # Looked up, never multiplied as integers: all 8 bits.
            stored = _append(whole.reshape(1, -1), 0, np.ones(1), LEVELS["full"], file)
            self._embeddings[name] = replace(stored, stored=replace(stored.stored, shape=whole.shape))

    def write(self, sub: SubModel, target: Path) -> None:
        """The int8 graph of a sub-model."""
        optimized = optimized_graph(self._graphs[sub])
        shared = [w for w in self._folded(sub, optimized) if self._is_shared(sub, w)]
        embeddings = looked_up(optimized, self._original(sub), self._view(sub))
        plain = _plain_names(optimized.graph)
        scales = {plain[w.initializer]: self._scales(sub, w) for w in shared}
        feeds = [{plain[name]: array for name, array in feed.items() if name in plain} for feed in self._feeds]
        quantized = _quantize(optimized, scales, feeds, self._range)
        _leave_outputs_as_they_are(quantized.graph)
        segments = self._nested.segments(sub)
        build = Builder(quantized.graph, INT8_WEIGHTS_FILE)
        for weight in shared:
            name = f"{plain[weight.initializer]}_quantized"
            _drop_initializer(quantized.graph, name)
            kept = segments[self._nested.canonical_names[weight.parameter]]
            stored = self._weights[weight.parameter].stored
            if weight.transposed:
                build.transposed(name, stored, kept)
            else:
                build.parameter(name, stored, kept)
        for initializer, parameter in embeddings.items():
            embedding = self._embeddings.get(parameter)
            if embedding is not None:
                _look_up_integers(quantized.graph, plain[initializer], embedding)
                kept = segments[self._nested.canonical_names[parameter]]
                build.parameter(plain[initializer], embedding.stored, kept)
        build.finish()
        own = {plain[name]: name for name in self._interface if name in plain}
        target.write_bytes(_compact(quantized, own).SerializeToString(deterministic=True))

    def _full(self, name: str) -> Array:
        full: Array = self._nested.full.get_parameter(name).detach().cpu().numpy()
        return full

    def _view(self, sub: SubModel) -> dict[str, Array]:
        """Its parameters, by the names that they have in a graph."""
        parameters = self._nested.view(sub).items()
        return {name_in_graph(name, self._interface): p.detach().cpu().numpy() for name, p in parameters}

    def _original(self, sub: SubModel) -> GraphProto:
        return onnx.load(self._graphs[sub], load_external_data=False).graph

    def _folded(self, sub: SubModel, optimized: ModelProto) -> list[Folded]:
        return folded_weights(optimized, self._original(sub), self._view(sub))

    def _channels(self, sub: SubModel, weight: Folded) -> NDArray[np.int64]:
        """Which output channels of the full parameter the sub-model has."""
        segments = self._nested.segments(sub)[self._nested.canonical_names[weight.parameter]]
        return np.concatenate([np.arange(s.start, s.stop) for s in segments[weight.channel_axis]])

    def _is_shared(self, sub: SubModel, weight: Folded) -> bool:
        """Whether the shared file has its integers: quantized along the same axis, with the same signs."""
        if weight.parameter not in self._weights or self._weights[weight.parameter].axis != weight.channel_axis:
            return False
        signs = self._weights[weight.parameter].signs[self._channels(sub, weight)]
        return bool(np.all((weight.factors == 0) | (np.sign(weight.factors) == signs)))

    def _scales(self, sub: SubModel, weight: Folded) -> tuple[int, Array]:
        """The axis of the output channels, and what an integer of each is worth."""
        factors = np.maximum(np.abs(weight.factors), _SMALLEST_FACTOR * max(1e-30, float(np.abs(weight.factors).max())))
        scales = self._weights[weight.parameter].scales[self._channels(sub, weight)] * factors
        return weight.channel_axis ^ weight.transposed, scales.astype(np.float32)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Feeds) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._left, None)


def _quantize(model: ModelProto, weights: Mapping[str, tuple[int, Array]], feeds: Feeds, weight_range: Int8Range) -> ModelProto:
    """With quantized activations (uint8) and weights (int8); those of `weights` by axis and scales per channel, others, which
    sub-models do not share, as ONNX Runtime does it."""
    overrides = {
        name: [{"quant_type": QuantType.QInt8, "axis": axis, "scale": scale, "zero_point": np.int8(0)} for scale in scales]
        for name, (axis, scales) in weights.items()
    }
    of_values = _products_of_values(model.graph)
    with TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "quantized.onnx"
        quantize_static(
            model,
            target,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=weight_range == "reduced",
            op_types_to_quantize=[*_PRODUCTS, *_HAND_ON],
            nodes_to_exclude=of_values,
            extra_options={"TensorQuantOverrides": overrides, "OpTypesToExcludeOutputQuantization": [*_FLOAT_RESULTS]},
        )
        return onnx.load(target)


def _products_of_values(graph: GraphProto) -> list[str]:
    """The names, given here, of products without a weight: an attention's."""
    weights = {tensor.name for tensor in graph.initializer}
    found = [node for node in graph.node if node.op_type == "MatMul" and not weights.intersection(node.input)]
    for number, node in enumerate(found):
        node.name = f"product.{number}"
    return [node.name for node in found]


def _look_up_integers(graph: GraphProto, initializer: str, embedding: _Quantized) -> None:
    """Takes the values away, which the shared file has, and scales what is looked up."""
    _drop_initializer(graph, initializer)
    scale, zero = f"{initializer}.scale", f"{initializer}.zero"
    graph.initializer.append(numpy_helper.from_array(np.array(embedding.scales[0], np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Gather" and node.input[0] == initializer:
            result, integers = node.output[0], f"{node.output[0]}.integers"
            node.output[0] = integers
            graph.node.insert(place + 1, onnx.helper.make_node("DequantizeLinear", [integers, scale, zero], [result]))


def _append(full: Array, axis: int, signs: Array, levels: int, file: BinaryIO) -> _Quantized:
    others = tuple(other for other in range(full.ndim) if other != axis)
    scales = np.maximum(np.abs(full).max(axis=others), 1e-12) / levels
    worth = (scales * signs).reshape([-1 if other == axis else 1 for other in range(full.ndim)])
    integers = np.clip(np.round(full / worth), -levels, levels).astype(np.int8)
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    stored = StoredTensor(file.tell(), full.shape, "int8", 1)
    file.write(integers.tobytes())
    return _Quantized(stored, axis, scales, signs)


def _plain_names(graph: GraphProto) -> dict[str, str]:
    """Renames everything, inputs and outputs too, and returns the names by the old ones: ONNX Runtime's quantizer makes names
    of those that it finds (`w_scale`, `w_quantized`), which a network may have as well."""
    names = {name: f"t{number}" for number, name in enumerate(sorted(names_of(graph) - {""}))}
    rename(graph, names)
    del graph.value_info[:]
    return names


def _leave_outputs_as_they_are(graph: GraphProto) -> None:
    """Without the last rounding to 256 levels, which would make equal scores of near ones."""
    producers = {output: node for node in graph.node for output in node.output}
    for output in graph.output:
        dequantize = producers.get(output.name)
        quantize = producers.get(dequantize.input[0]) if dequantize is not None else None
        if (
            dequantize is None
            or quantize is None
            or (dequantize.op_type, quantize.op_type)
            != (
                "DequantizeLinear",
                "QuantizeLinear",
            )
        ):
            continue
        source = producers[quantize.input[0]]
        others = [n for n in graph.node if quantize.input[0] in n.input and n is not quantize]
        if others:
            continue
        for i, name in enumerate(source.output):
            if name == quantize.input[0]:
                source.output[i] = output.name
        graph.node.remove(quantize)
        graph.node.remove(dequantize)


def _drop_initializer(graph: GraphProto, name: str) -> None:
    (found,) = (tensor for tensor in graph.initializer if tensor.name == name)
    graph.initializer.remove(found)


def _compact(model: ModelProto, interface: dict[str, str]) -> ModelProto:
    """Short names, nothing for people, zero points once: a bundle holds one such graph per sub-model. `interface`: what inputs
    and outputs are to be called."""
    graph = model.graph
    model.producer_name, model.producer_version = PRODUCER, ""
    graph.name, graph.doc_string = PRODUCER, ""
    del graph.value_info[:]
    short, taken = dict(interface), set(interface.values())
    constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    inline = [t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL]
    external = [t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    for tensor in inline:
        if tensor.name not in used:
            continue
        array = numpy_helper.to_array(tensor)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in constants:
            constants[key] = free_name(f"c{len(constants)}", taken)
            graph.initializer.append(numpy_helper.from_array(array, constants[key]))
        short[tensor.name] = constants[key]
    for tensor in external:
        short[tensor.name] = free_name(f"w{len(short)}", taken)
        tensor.name = short[tensor.name]
        graph.initializer.append(tensor)
    for node in graph.node:
        node.name = node.doc_string = ""
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name:
                    short[name] = short.get(name) or free_name(f"v{len(short)}", taken)
                    names[i] = short[name]
    for value in (*graph.input, *graph.output):
        value.name = short[value.name]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer warns on the root logger that a graph was not prepared by its own tool; ONNX Runtime has prepared it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
