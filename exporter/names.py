"""Names in a graph. A user's tensors and modules may be called as they like: what we add never takes a name of theirs.

Inputs and outputs have the names of the family and of the task, parameters and buffers those of the module. A parameter or
buffer that is called like an input or output has a dot behind its name in the graph, where no module's name has one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from onnx import GraphProto


def free_name(name: str, taken: set[str]) -> str:
    """The name, or where it is taken the name with as many dots behind as it needs; it is taken then."""
    while name in taken:
        name += "."
    taken.add(name)
    return name


def name_in_graph(name: str, interface: Collection[str]) -> str:
    """Of a parameter or buffer; `interface`: the names of the graph's inputs and outputs."""
    return f"{name}." if name in interface else name


def name_in_module(name: str) -> str:
    """The inverse."""
    return name.removesuffix(".")


def names_of(graph: GraphProto) -> set[str]:
    """All that are in use."""
    values: Iterable[str] = (name for node in graph.node for name in (*node.input, *node.output))
    return {*values, *(value.name for value in (*graph.input, *graph.output, *graph.initializer))}


def rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Gives values, inputs, outputs and initializers other names; those that are not in `names` keep theirs."""
    for node in graph.node:
        for of_node in (node.input, node.output):
            for i, name in enumerate(of_node):
                of_node[i] = names.get(name, name)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
