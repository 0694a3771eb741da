"""From a template to the graph of one sub-model over the shared weights file.

A cut on axis 0 is a shorter external tensor at the same offset: no node. A cut on a later axis is a `Slice` over the
external tensor, blocks laid side by side are a `Concat`; ONNX Runtime folds both when it loads the graph. BatchNorm
statistics, the only numbers that sub-models do not share, are one inline tensor that a `Split` takes apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from exporter.names import free_name, name_in_module, names_of
from exporter.recurrent import Recurrent, in_order, separate, set_hidden_size
from exporter.template import Traced
from exporter.weights import WEIGHTS_FILE, StoredTensor
from trainer.nested import NestedModel, Segments, batchnorm_names
from trainer.submodel import SubModel

PRODUCER = "sortednet"


class Template:
    """A topology's graph, stripped to what every sub-model of it shares; `graph_of` fills in one sub-model."""

    def __init__(self, traced: Traced, nested: NestedModel, layout: Mapping[str, StoredTensor]) -> None:
        exported = traced.model
        self._nested = nested
        self._layout = layout
        inputs = set(nested.input_names)
        given = [i.name for i in exported.graph.input if i.name not in inputs]
        self._parameters = [name for name in given if name_in_module(name) in layout]
        self._recurrent = separate(exported.graph, self._parameters)
        if self._recurrent:
            used = {name for node in exported.graph.node for name in node.input}
            self._parameters = [name for name in self._parameters if name in used]
        self._buffers = [name for name in given if name_in_module(name) not in layout]
        self.warnings = traced.warnings
        """What became constant when it was traced, in torch's words."""
        self.assumes_keys = traced.assumes_keys
        """Whether it is right only where every query of an attention has a key."""
        self._stripped = _strip(exported, inputs)
        self.digest = hashlib.sha256(self._stripped.SerializeToString(deterministic=True)).hexdigest()
        """Tells topologies apart: operators, attributes and constants, without weights and sizes."""

    def graph_of(self, sub: SubModel) -> ModelProto:
        """The sub-model's graph; its external tensors lie in `weights.bin` beside it."""
        model = ModelProto()
        model.CopyFrom(self._stripped)
        build = Builder(model.graph)
        segments = self._nested.segments(sub)
        canonical = self._nested.canonical_names

        def lies(name: str) -> tuple[StoredTensor, Segments]:
            own = name_in_module(name)
            return self._layout[own], segments[canonical[own]]

        for name in self._parameters:
            build.parameter(name, *lies(name))
        for layer in self._recurrent:
            cuts = {name: lies(name) for name in layer.parameters}
            build.recurrent(layer, cuts)
            set_hidden_size(model.graph, layer, _size(cuts[layer.hidden_parameters[0]][1][1]))
        skeleton = self._nested.skeleton(sub)
        buffers = self._nested.buffers_of(sub)
        statistics = {f"{name}." if name else "" for name in batchnorm_names(skeleton)}
        own_names = {name: name_in_module(name) for name in self._buffers}
        packed = [n for n, own in own_names.items() if own.removesuffix(own.rpartition(".")[2]) in statistics]
        build.statistics({name: _array(buffers[own_names[name]]) for name in packed})
        for name, own in own_names.items():
            if name not in packed:
                build.inline(name, _array(buffers[own]))
        _set_groups(model.graph, skeleton)
        build.finish()
        return model


class Builder:
    """Adds initializers, and the nodes that derive from them, to a graph."""

    def __init__(self, graph: GraphProto, weights_file: str = WEIGHTS_FILE) -> None:
        self._graph = graph
        self._weights_file = weights_file
        self._taken = names_of(graph)
        self._nodes: list[NodeProto] = []
        self._indices: dict[tuple[int, ...], str] = {}

    def parameter(self, name: str, stored: StoredTensor, segments: Segments) -> None:
        later = [axis for axis in range(1, len(segments)) if _is_cut(segments[axis], stored.shape[axis])]
        pieces = list(product(segments[0] if segments else (slice(0, 1),), *(segments[axis] for axis in later)))
        outputs = []
        for number, (rows, *cuts) in enumerate(pieces):
            piece = name if len(pieces) == 1 else self._free(f"{name}.{number}")
            outputs.append(piece)
            source = self._free(f"{piece}.rows") if cuts else piece
            self._external(source, stored, rows)
            if cuts:
                starts, ends = [c.start for c in cuts], [c.stop for c in cuts]
                inputs = [source, self._index(starts), self._index(ends), self._index(later)]
                self._nodes.append(helper.make_node("Slice", inputs, [piece]))
        if len(pieces) > 1:
            self._concatenate(name, outputs, [0, *later], [len(segments[0]), *(len(segments[axis]) for axis in later)])

    def transposed(self, name: str, stored: StoredTensor, segments: Segments) -> None:
        """A matrix with its axes exchanged."""
        source = self._free(f"{name}.rows_first")
        self.parameter(source, stored, segments)
        self._nodes.append(helper.make_node("Transpose", [source], [name], perm=[1, 0]))

    def recurrent(self, layer: Recurrent, cuts: Mapping[str, tuple[StoredTensor, Segments]]) -> None:
        """The weights of a recurrent layer. `cuts`: of each of its parameters, where it lies and what is kept of it."""
        for name, parameters in (
            (layer.weights, layer.input_parameters),
            (layer.recurrent_weights, layer.hidden_parameters),
            (layer.biases, layer.bias_parameters),
        ):
            pieces = [self._free(f"{name}.{place}") for place in range(len(parameters))]
            for piece, parameter in zip(pieces, parameters, strict=True):
                stored, segments = cuts[parameter]
                self.parameter(piece, stored, in_order(layer.kind, segments))
            if not pieces:
                continue
            joined = pieces[0] if len(pieces) == 1 else self._free(f"{name}.joined")
            if len(pieces) > 1:
                self._nodes.append(helper.make_node("Concat", pieces, [joined], axis=0))
            rest = [_size(kept) for kept in cuts[parameters[0]][1][1:]]
            shape = self._index([len(layer.input_parameters), -1, *rest])
            self._nodes.append(helper.make_node("Reshape", [joined, shape], [name]))

    def statistics(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """One inline tensor for all of them, in half precision when that loses nothing."""
        if not arrays:
            return
        packed = np.concatenate([a.astype(np.float32).ravel() for a in arrays.values()])
        with np.errstate(over="ignore"):
            half = packed.astype(np.float16)
        lossless = bool(np.array_equal(half.astype(np.float32), packed))
        all_of_them = self._free("statistics")
        stored = self._free("statistics.stored") if lossless else all_of_them
        self.inline(stored, half if lossless else packed)
        if lossless:
            self._nodes.append(helper.make_node("Cast", [stored], [all_of_them], to=TensorProto.FLOAT))
        sizes = self._index([a.size for a in arrays.values()])
        self._nodes.append(helper.make_node("Split", [all_of_them, sizes], list(arrays), axis=0))

    def inline(self, name: str, array: NDArray[np.generic]) -> None:
        self._graph.initializer.append(numpy_helper.from_array(array, name))

    def finish(self) -> None:
        """Puts the added nodes before the template's own: a graph lists its nodes in order of computation."""
        nodes = [*self._nodes, *self._graph.node]
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _free(self, name: str) -> str:
        return free_name(name, self._taken)

    def _external(self, name: str, stored: StoredTensor, rows: slice) -> None:
        tensor = self._graph.initializer.add()
        tensor.name = name
        tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(stored.dtype))
        row_bytes = stored.item_bytes
        for size in stored.shape[1:]:
            row_bytes *= size
        count = rows.stop - rows.start
        tensor.dims.extend((count, *stored.shape[1:]) if stored.shape else ())
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self._weights_file),
            ("offset", str(stored.offset + rows.start * row_bytes)),
            ("length", str(count * row_bytes)),
        ):
            tensor.external_data.add(key=key, value=value)

    def _index(self, values: Sequence[int]) -> str:
        key = tuple(values)
        if key not in self._indices:
            self._indices[key] = self._free(f"index.{len(self._indices)}")
            self.inline(self._indices[key], np.array(key, dtype=np.int64))
        return self._indices[key]

    def _concatenate(self, name: str, pieces: list[str], axes: list[int], counts: list[int]) -> None:
        """Joins the pieces, which are listed with the last axis varying fastest."""
        for level in reversed(range(len(axes))):
            size = counts[level]
            if size == 1:
                continue
            groups = [pieces[i : i + size] for i in range(0, len(pieces), size)]
            joined = [name if len(groups) == 1 else self._free(f"{name}.axis{axes[level]}.{i}") for i in range(len(groups))]
            for group, output in zip(groups, joined, strict=True):
                self._nodes.append(helper.make_node("Concat", group, [output], axis=axes[level]))
            pieces = joined


def _strip(exported: ModelProto, inputs: set[str]) -> ModelProto:
    """Without names, documentation and shapes of inner values; equal constants once, as initializers.

    A bundle holds one such graph per sub-model, so that every byte here counts 160 times.
    """
    model = ModelProto()
    model.CopyFrom(exported)
    model.producer_name, model.producer_version = PRODUCER, ""
    graph = model.graph
    graph.name = PRODUCER
    graph.doc_string = ""
    del graph.value_info[:]
    kept = [i for i in graph.input if i.name in inputs]
    del graph.input[:]
    graph.input.extend(kept)
    renamed: dict[str, str] = {o.name: o.name for o in graph.output}
    inner = {output for node in graph.node for output in node.output}
    taken = names_of(exported.graph) - inner | set(renamed)
    constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            array = numpy_helper.to_array(node.attribute[0].t)
            key = (array.dtype.name, array.shape, array.tobytes())
            if key not in constants:
                constants[key] = free_name(f"constant.{len(constants)}", taken)
                graph.initializer.append(numpy_helper.from_array(array, constants[key]))
            renamed[node.output[0]] = constants[key]
            continue
        nodes.append(node)
    for node in nodes:
        node.name = node.doc_string = ""
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        for i, name in enumerate(node.output):
            if name:
                if name not in renamed:
                    renamed[name] = free_name(f"v{len(renamed)}", taken)
                node.output[i] = renamed[name]
    stripped = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(stripped)
    return model


def _set_groups(graph: GraphProto, skeleton: nn.Module) -> None:
    """A depthwise convolution has as many groups as channels: the number belongs to the sub-model."""
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        path = name_in_module(node.input[1]).rpartition(".")[0]
        try:
            groups = getattr(skeleton.get_submodule(path), "groups", None)
        except AttributeError:
            continue
        for attribute in node.attribute:
            if attribute.name == "group" and isinstance(groups, int):
                attribute.i = groups


def _size(slices: Sequence[slice]) -> int:
    return sum(kept.stop - kept.start for kept in slices)


def _is_cut(slices: Sequence[slice], size: int) -> bool:
    return len(slices) > 1 or slices[0].stop != size


def _array(tensor: Tensor) -> NDArray[np.generic]:
    array: NDArray[np.generic] = tensor.detach().cpu().numpy()
    return array
