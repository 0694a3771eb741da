"""What ONNX Runtime makes of a sub-model's parameters when it optimizes the graph: BatchNorm above all becomes a factor per
output channel of the weight before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from device_profiles.atomic import check_writable
from exporter.names import name_in_module

Array = NDArray[Any]
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Folded:
    """A weight of an optimized graph: the cut of the parameter, perhaps transposed, times `factors` per output channel."""

    initializer: str
    parameter: str
    transposed: bool
    channel_axis: int  # of the parameter: where its output channels are
    factors: Array


def optimized_graph(graph: Path) -> ModelProto:
    """With constants folded and BatchNorm fused, as any CPU does it; weights inside. Raises OSError where the disk is full."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    target = graph.with_name(f".{graph.stem}.optimized.onnx")
    options.optimized_model_filepath = str(target)
    try:
        ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return onnx.load(target)
    except Exception:
        check_writable(target.parent)  # of a full disk ONNX Runtime only says that protobuf has failed
        raise
    finally:
        target.unlink(missing_ok=True)


def folded_weights(optimized: ModelProto, original: GraphProto, parameters: Mapping[str, Array]) -> list[Folded]:
    """The weights of the optimized graph that are a parameter's values times a factor per output channel.

    `parameters`: by the names that they have in the original one.
    """
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
                axis = _channel_axis(node) ^ transposed
                if oriented.shape == source.shape and (source.ndim == 2 or (node.op_type == "Conv" and not transposed)):
                    factors = _factors(np.moveaxis(oriented, axis, 0), np.moveaxis(source, axis, 0))
                    if factors is not None:
                        found[name] = Folded(name, name_in_module(parameter), transposed, axis, factors)
                        break
    return list(found.values())


def _channel_axis(node: NodeProto) -> int:
    """Of an operator's weight: where its output channels are."""
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return int(node.op_type == "MatMul")


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


def looked_up(optimized: ModelProto, original: GraphProto, parameters: Mapping[str, Array]) -> dict[str, str]:
    """Initializers whose rows are looked up, with which nothing else is done, and which parameter they are."""
    others = {name for node in optimized.graph.node for name in node.input[int(node.op_type == "Gather") :]}
    values = {tensor.name for tensor in optimized.graph.initializer} - others
    sources = {n.output[0]: n.input[0] for n in original.node if n.op_type == "Gather" and n.input[0] in parameters}
    gathers = [node for node in optimized.graph.node if node.op_type == "Gather" and node.input[0] in values]
    return {node.input[0]: name_in_module(sources[node.output[0]]) for node in gathers if node.output[0] in sources}


def _factors(weight: Array, source: Array) -> Array | None:
    """Per output channel (axis 0), if the weight is the source times that; read off where the source is largest."""
    rows, base = weight.reshape(len(weight), -1).astype(np.float64), source.reshape(len(source), -1).astype(np.float64)
    places = np.abs(base).argmax(axis=1)
    largest = base[np.arange(len(base)), places]
    factors: Array = np.divide(rows[np.arange(len(rows)), places], largest, out=np.zeros(len(rows)), where=largest != 0)
    return factors if np.allclose(rows, base * factors[:, None], rtol=1e-3, atol=1e-6 * np.abs(rows).max(initial=0.0)) else None
