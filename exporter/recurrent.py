"""GRU, LSTM and RNN layers of a template, freed from the width that they were traced at.

torch and ONNX lay the gates of a layer side by side in different orders, so torch's exporter writes slices of the weights at
places that the width fixes, the width as an attribute, and an initial state of zeros of that width. Here the nodes are told
apart from what feeds them: of a sub-model the gates' blocks are read from the weights file in ONNX' order, the state, which
may be left out where it is zero, is left out. Where a layer is not written as torch's exporter does it stays as it was traced.

Shapes: D directions (2 where it is bidirectional), G gates, H hidden size, I features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from exporter.names import free_name, names_of
from trainer.nested import Segments

GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN": (0,)}
"""The place in torch of each gate of ONNX: reset, update, new → update, reset, hidden; input, forget, cell, output → input,
output, forget, cell."""

_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
_DERIVING = ("Slice", "Concat", "Unsqueeze")


@dataclass(frozen=True)
class Recurrent:
    """A layer: the names that its node reads its weights by, and the parameters behind them, one of each direction."""

    kind: str
    weights: str  # (D, G H, I)
    recurrent_weights: str  # (D, G H, H)
    biases: str  # (D, 2 G H): those of the input, then of the state; empty where there are none
    input_parameters: tuple[str, ...]
    hidden_parameters: tuple[str, ...]
    bias_parameters: tuple[str, ...]  # of the input and of the state, in turn

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*self.input_parameters, *self.hidden_parameters, *self.bias_parameters)


def separate(graph: GraphProto, parameters: Sequence[str]) -> list[Recurrent]:
    """The recurrent layers of an exported graph, whose nodes then read weights by names that nothing in the graph gives; what
    computed them is taken out."""
    producers = {output: node for node in graph.node for output in node.output}
    found: list[Recurrent] = []
    taken = names_of(graph)
    for node in graph.node:
        if node.op_type not in GATES:
            continue
        sources = [_sources(name, producers, parameters) for name in node.input[1:4]]
        directions = len(sources[0] or ())
        if [len(s) if s is not None else -1 for s in sources] not in ([directions] * 2 + [n] for n in (0, 2 * directions)):
            continue
        place = len(found)
        weights, recurrent_weights, biases = (
            free_name(f"recurrent.{place}.{leaf}", taken) for leaf in ("weights", "recurrent_weights", "biases")
        )
        biases = biases if sources[2] else ""
        for state in _STATES[node.op_type]:
            if state < len(node.input) and _is_zero(node.input[state], producers):
                node.input[state] = ""
        node.input[1], node.input[2], node.input[3] = weights, recurrent_weights, biases
        kept = [attribute for attribute in node.attribute if attribute.name != "hidden_size"]
        del node.attribute[:]
        node.attribute.extend(kept)
        of_input, of_state, of_biases = (tuple(source or ()) for source in sources)
        found.append(Recurrent(node.op_type, weights, recurrent_weights, biases, of_input, of_state, of_biases))
    if found:
        _drop_unused(graph)
    return found


def in_order(kind: str, segments: Segments) -> Segments:
    """What a sub-model keeps of a parameter, the gates' blocks on axis 0 in ONNX' order."""
    gates = _equal_parts(segments[0], len(GATES[kind]))
    return (tuple(block for place in GATES[kind] for block in gates[place]), *segments[1:])


def _equal_parts(blocks: Sequence[slice], count: int) -> list[list[slice]]:
    """The blocks in so many runs of one length. A gate is one block, or a part of one where all is kept or the family named no
    blocks."""
    length = sum(block.stop - block.start for block in blocks) // count
    parts: list[list[slice]] = [[]]
    missing = length
    for block in blocks:
        start = block.start
        while start < block.stop:
            if not missing:
                parts.append([])
                missing = length
            stop = min(block.stop, start + missing)
            parts[-1].append(slice(start, stop))
            missing -= stop - start
            start = stop
    return parts


def set_hidden_size(graph: GraphProto, layer: Recurrent, size: int) -> None:
    node = next(node for node in graph.node if layer.weights in node.input)
    node.attribute.append(helper.make_attribute("hidden_size", size))


def _sources(name: str, producers: Mapping[str, NodeProto], parameters: Sequence[str]) -> list[str] | None:
    """The parameters that a value consists of, in order; None where anything but slices of them is in it."""
    if not name:
        return []
    if name in parameters:
        return [name]
    node = producers.get(name)
    if node is None or node.op_type not in _DERIVING:
        return None
    found: list[str] = []
    for given in node.input if node.op_type == "Concat" else node.input[:1]:
        deeper = _sources(given, producers, parameters)
        if deeper is None:
            return None
        found += deeper
    return list(dict.fromkeys(found))


def _is_zero(name: str, producers: Mapping[str, NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type == "Slice":
        node = producers.get(node.input[0])
    if node is None or node.op_type != "ConstantOfShape":
        return False
    value = next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), np.zeros(1))
    return not value.any()


def _drop_unused(graph: GraphProto) -> None:
    used = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            kept.append(node)
            used.update(node.input)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(nodes)
