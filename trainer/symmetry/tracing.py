"""Runs a network once and notes which axes of its parameters belong together.

Every operator that torch executes has a rule that says how the axes of what it takes and gives belong together (`rules.RULES`;
which work place by place torch says itself). What no rule is for freezes what it takes: its axes are not permuted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.symmetry import layers  # noqa: F401  # its rules
from trainer.symmetry.axes import Node, frozen
from trainer.symmetry.rules import POINTWISE, RULES, SAME, Axes, Trace


def traced(module: nn.Module, call: Any, inputs: Mapping[str, Tensor]) -> dict[str, list[Node]]:
    """The axes of every parameter and buffer of the module, after `call(module, inputs)` has run; tied ones have one name.

    Shapes: as the tensors'. Outputs keep their order, inputs and constants theirs.
    """
    trace = _Trace(module)
    for tensor in inputs.values():
        trace.give(tensor, [frozen(size, "it is an axis of an input") for size in tensor.shape])
    with torch.no_grad(), trace.where_it_is(module), _Watch(trace):
        outputs = call(module, inputs)
    for tensor in tree_leaves(outputs):
        if isinstance(tensor, Tensor):
            for node in trace.axes(tensor):
                node.freeze("it is an axis of an output")
    return trace.found


class _Trace(Trace):
    def __init__(self, module: nn.Module) -> None:
        self.known: dict[int, Axes] = {}
        self.held: list[Tensor] = []  # so that no other tensor gets its `id`
        self.found: dict[str, list[Node]] = {}
        self.module = ""
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            why = "" if tensor.is_floating_point() else "it is of whole numbers"
            self.found[name] = [Node(size, frozen=why) for size in tensor.shape]
            self.give(tensor, self.found[name])
        self.running: set[int] = {
            id(buffer)
            for part in module.modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm)
            for buffer in part.buffers(recurse=False)
        }
        """Statistics, which move with the axis that they are of. Other buffers are constants of the network."""
        for name, buffer in module.named_buffers():
            if id(buffer) not in self.running:
                self._freeze_constant(buffer, self.found[name], f"the buffer {name} is the same at every order")

    def axes(self, tensor: Tensor) -> Axes:
        found = self.known.get(id(tensor))
        if found is None:
            found = [Node(size) for size in tensor.shape]
            self._freeze_constant(tensor, found, f"{self.module or 'the network'} has a constant there")
            self.give(tensor, found)
        return found

    def give(self, tensor: Tensor, axes: Axes) -> None:
        assert [node.size for node in axes] == list(tensor.shape), (self.module, axes, tensor.shape)
        self.known[id(tensor)] = axes
        self.held.append(tensor)

    def _freeze_constant(self, tensor: Tensor, axes: Axes, why: str) -> None:
        """Along an axis where all values are alike it may have any order."""
        for place, node in enumerate(axes):
            if node.size > 1 and not bool((tensor == tensor.narrow(place, 0, 1)).all()):
                node.freeze(why)

    @contextmanager
    def where_it_is(self, module: nn.Module) -> Iterator[None]:
        """Within: `module` is the name of the innermost part that runs, for what is said of a frozen axis."""
        hooks = []
        stack: list[str] = []

        def entering(name: str) -> Any:
            def hook(*_: Any) -> None:
                stack.append(self.module)
                self.module = name

            return hook

        def leaving(*_: Any) -> None:
            self.module = stack.pop() if stack else ""

        for name, part in module.named_modules():
            hooks += [part.register_forward_pre_hook(entering(name)), part.register_forward_hook(leaving)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, trace: _Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        before = [(t, self.trace.axes(t)) for t in given]  # of constants: before they are changed in place
        out = function(*args, **kwargs)
        if not given and isinstance(out, Tensor):
            self.trace.axes(out)  # a constant
            return out
        name = function.name().partition(".")[0].removeprefix("aten::")
        if name in RULES:
            RULES[name](self.trace, out, *args, **kwargs)
        elif name in SAME:
            self.trace.give(out, self.trace.axes(given[0]))
        elif isinstance(out, Tensor) and (torch.Tag.pointwise in function.tags or name in POINTWISE):
            self.trace.pointwise(out, given)
        else:
            why = f"{self.trace.module or 'the network'} computes {name}, of which is not known what it does with its axes"
            for _, axes in before:
                for node in axes:
                    node.freeze(why)
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self.trace.give(tensor, [frozen(size, why) for size in tensor.shape])
        return out
