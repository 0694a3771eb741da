"""int8 graphs of a bundle's sub-models over one shared file of int8 weights.

A weight of the full model is quantized once per output channel, symmetrically; a prefix of the integers is then the
prefix's quantization, and every graph takes its cut of the same bytes. What ONNX Runtime folds into a weight when it
optimizes a graph, BatchNorm above all, is a factor per output channel: it belongs to the sub-model's scales (its sign, which
is the same for all sub-models, to the shared integers). Where operators are quantized, and the scales of activations, from
running the sub-model on training data, are ONNX Runtime's own static quantization; see its documentation on QDQ. The rows
of an embedding are looked up as integers and then scaled, by one number for all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from exporter.graph import PRODUCER, Builder
from exporter.weights import ALIGNMENT, INT8_WEIGHTS_FILE, StoredTensor
from trainer.nested import NestedModel
from trainer.submodel import SubModel

LEVELS = 127
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_SMALLEST_FACTOR = 1e-6
"""A channel that BatchNorm switches off keeps a scale above zero, so that its bias fits 32 bits."""

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class _Quantized:
    """A full weight as it lies in the shared file: integers times `scales` times `signs` (per output channel)."""

    stored: StoredTensor
    scales: Array
    signs: Array


@dataclass(frozen=True)
class _Folded:
    """A weight of an optimized graph: the cut of the parameter, perhaps transposed, times `factors` per output channel."""

    initializer: str
    parameter: str
    transposed: bool
    factors: Array


class Quantizer:
    """Writes int8 graphs of sub-models whose fp32 graphs are `graphs`; their weights are quantized into `file`.

    `feeds`: batches of training data, by input name, for the ranges of activations.
    """

    def __init__(self, nested: NestedModel, graphs: Mapping[SubModel, Path], feeds: Feeds, file: BinaryIO) -> None:
        self._nested, self._graphs, self._feeds = nested, graphs, feeds
        self._weights: dict[str, _Quantized] = {}
        self._embeddings: dict[str, _Quantized | None] = {}
        signs: dict[str, Array] = {}
        for sub in graphs:
            if any(sub != other and sub <= other for other in graphs):
                continue  # the larger one has all its weights
            optimized = _optimized(graphs[sub])
            self._embeddings |= dict.fromkeys(_embeddings(optimized, self._original(sub), self._view(sub)).values())
            for weight in self._folded(sub, optimized):
                known = signs.setdefault(weight.parameter, np.ones(self._full(weight.parameter).shape[0]))
                known[self._channels(sub, weight)[weight.factors < 0]] = -1
        for name, of_channels in signs.items():
            self._weights[name] = _append(self._full(name), of_channels, file)
        for name in self._embeddings:
            whole = self._full(name)
            stored = _append(whole.reshape(1, -1), np.ones(1), file)
            self._embeddings[name] = replace(stored, stored=replace(stored.stored, shape=whole.shape))

    def write(self, sub: SubModel, target: Path) -> None:
        """The int8 graph of a sub-model."""
        optimized = _optimized(self._graphs[sub])
        shared = [w for w in self._folded(sub, optimized) if w.parameter in self._weights and self._same_signs(sub, w)]
        quantized = _quantize(optimized, {w.initializer: self._scales(sub, w) for w in shared}, self._feeds)
        _leave_outputs_as_they_are(quantized.graph)
        segments = self._nested.segments(sub)
        embeddings = _embeddings(optimized, self._original(sub), self._view(sub))
        build = Builder(quantized.graph, INT8_WEIGHTS_FILE)
        for weight in shared:
            _drop_initializer(quantized.graph, f"{weight.initializer}_quantized")
            canonical = self._nested.canonical_names[weight.parameter]
            name = f"{weight.initializer}_quantized"
            stored = self._weights[weight.parameter].stored
            if weight.transposed:
                build.transposed(name, stored, segments[canonical])
            else:
                build.parameter(name, stored, segments[canonical])
        for initializer, parameter in embeddings.items():
            embedding = self._embeddings.get(parameter)
            if embedding is not None:
                _look_up_integers(quantized.graph, initializer, embedding)
                build.parameter(initializer, embedding.stored, segments[self._nested.canonical_names[parameter]])
        build.finish()
        target.write_bytes(_compact(quantized).SerializeToString(deterministic=True))

    def _full(self, name: str) -> Array:
        full: Array = self._nested.full.get_parameter(name).detach().cpu().numpy()
        return full

    def _view(self, sub: SubModel) -> dict[str, Array]:
        return {name: p.detach().cpu().numpy() for name, p in self._nested.view(sub).items()}

    def _original(self, sub: SubModel) -> GraphProto:
        return onnx.load(self._graphs[sub], load_external_data=False).graph

    def _folded(self, sub: SubModel, optimized: ModelProto) -> list[_Folded]:
        return _folded_weights(optimized, self._original(sub), self._view(sub))

    def _channels(self, sub: SubModel, weight: _Folded) -> NDArray[np.int64]:
        """Which output channels of the full parameter the sub-model has."""
        segments = self._nested.segments(sub)[self._nested.canonical_names[weight.parameter]]
        return np.concatenate([np.arange(s.start, s.stop) for s in segments[0]])

    def _same_signs(self, sub: SubModel, weight: _Folded) -> bool:
        signs = self._weights[weight.parameter].signs[self._channels(sub, weight)]
        return bool(np.all((weight.factors == 0) | (np.sign(weight.factors) == signs)))

    def _scales(self, sub: SubModel, weight: _Folded) -> tuple[int, Array]:
        """The axis of the output channels, and what an integer of each is worth."""
        factors = np.maximum(np.abs(weight.factors), _SMALLEST_FACTOR * max(1e-30, float(np.abs(weight.factors).max())))
        scales = self._weights[weight.parameter].scales[self._channels(sub, weight)] * factors
        return int(weight.transposed), scales.astype(np.float32)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Feeds) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._left, None)


def _quantize(model: ModelProto, weights: Mapping[str, tuple[int, Array]], feeds: Feeds) -> ModelProto:
    """With quantized activations (uint8) and weights (int8); those of `weights` by axis and scales per channel."""
    overrides = {
        name: [{"quant_type": QuantType.QInt8, "axis": axis, "scale": scale, "zero_point": np.int8(0)} for scale in scales]
        for name, (axis, scales) in weights.items()
    }
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
            op_types_to_quantize=sorted({*QLinearOpsRegistry, *QDQRegistry} - {"Gather"}),
            extra_options={"TensorQuantOverrides": overrides},
        )
        return onnx.load(target)


def _optimized(graph: Path) -> ModelProto:
    """With constants folded and BatchNorm fused, as any CPU does it; weights inside."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    target = graph.with_name(f".{graph.stem}.optimized.onnx")
    options.optimized_model_filepath = str(target)
    try:
        ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return onnx.load(target)
    finally:
        target.unlink(missing_ok=True)


def _folded_weights(optimized: ModelProto, original: GraphProto, parameters: Mapping[str, Array]) -> list[_Folded]:
    """The weights of the optimized graph that are a parameter's values times a factor per output channel."""
    values = {tensor.name: tensor for tensor in optimized.graph.initializer}
    sources = _parameters_by_output(original, parameters)
    found = {}
    for node in optimized.graph.node:
        parameter = sources.get(node.output[0])
        if node.op_type in _WEIGHTED and parameter is not None and node.input[1] in values:
            name = node.input[1]
            weight, source = numpy_helper.to_array(values[name]), parameters[parameter]
            for transposed in (False, True):
                oriented = weight.T if transposed else weight
                if oriented.shape == source.shape and (source.ndim == 2 or not transposed):
                    factors = _factors(oriented, source)
                    if factors is not None:
                        found[name] = _Folded(name, parameter, transposed, factors)
                        break
    return list(found.values())


def _parameters_by_output(graph: GraphProto, parameters: Mapping[str, Array]) -> dict[str, str]:
    """The weight of the operator that computes a value, or whose result one BatchNorm or addition makes it of."""
    producers = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    found = {}
    for node in graph.node:
        if node.op_type not in _WEIGHTED:
            continue
        name = node.input[1]
        while name not in parameters and name in producers and producers[name].op_type == "Transpose":
            name = producers[name].input[0]
        if name in parameters:
            found[node.output[0]] = name
            following = consumers.get(node.output[0], [])
            if len(following) == 1 and following[0].op_type in ("BatchNormalization", "Add"):
                found[following[0].output[0]] = name
    return found


def _embeddings(optimized: ModelProto, original: GraphProto, parameters: Mapping[str, Array]) -> dict[str, str]:
    """Initializers whose rows are looked up, and which parameter they are."""
    values = {tensor.name for tensor in optimized.graph.initializer}
    sources = {n.output[0]: n.input[0] for n in original.node if n.op_type == "Gather" and n.input[0] in parameters}
    gathers = [node for node in optimized.graph.node if node.op_type == "Gather" and node.input[0] in values]
    return {node.input[0]: sources[node.output[0]] for node in gathers if node.output[0] in sources}


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


def _factors(weight: Array, source: Array) -> Array | None:
    """Per output channel (axis 0), if the weight is the source times that; read off where the source is largest."""
    rows, base = weight.reshape(len(weight), -1).astype(np.float64), source.reshape(len(source), -1).astype(np.float64)
    places = np.abs(base).argmax(axis=1)
    largest = base[np.arange(len(base)), places]
    factors: Array = np.divide(rows[np.arange(len(rows)), places], largest, out=np.zeros(len(rows)), where=largest != 0)
    return factors if np.allclose(rows, base * factors[:, None], rtol=1e-3, atol=1e-6 * np.abs(rows).max(initial=0.0)) else None


def _append(full: Array, signs: Array, file: BinaryIO) -> _Quantized:
    rows = full.reshape(len(full), -1) * signs[:, None]
    scales = np.maximum(np.abs(rows).max(axis=1), 1e-12) / LEVELS
    integers = np.clip(np.round(rows / scales[:, None]), -LEVELS, LEVELS).astype(np.int8)
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    stored = StoredTensor(file.tell(), full.shape, "int8", 1)
    file.write(integers.tobytes())
    return _Quantized(stored, scales, signs)


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


def _compact(model: ModelProto) -> ModelProto:
    """Short names, nothing for people, zero points once: a bundle holds one such graph per sub-model."""
    graph = model.graph
    model.producer_name, model.producer_version = PRODUCER, ""
    graph.name, graph.doc_string = PRODUCER, ""
    del graph.value_info[:]
    kept = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {}
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
            constants[key] = f"c{len(constants)}"
            graph.initializer.append(numpy_helper.from_array(array, constants[key]))
        short[tensor.name] = constants[key]
    for tensor in external:
        short[tensor.name] = f"w{len(short)}"
        tensor.name = short[tensor.name]
        graph.initializer.append(tensor)
    for node in graph.node:
        node.name = node.doc_string = ""
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name and name not in kept:
                    names[i] = short.setdefault(name, f"v{len(short)}")
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
