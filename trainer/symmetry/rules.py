"""How the axes of what an operator takes and gives belong together, by the name of the operator in ATen.

Shapes are those of the operators' documentation (torch's `native_functions.yaml`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from trainer.symmetry.axes import Node, frozen, joined, side_by_side, split, unite

Axes = list[Node]


class Trace:
    """The axes of the tensors that have been seen."""

    def axes(self, tensor: Tensor) -> Axes:
        raise NotImplementedError

    def give(self, tensor: Tensor, axes: Axes) -> None:
        raise NotImplementedError

    module = ""

    def pointwise(self, out: Tensor, given: Sequence[Tensor]) -> None:
        """Axes of the same place are one; those of size 1 are broadcast."""
        result: Axes = []
        for back in range(1, out.ndim + 1):
            size, node = out.shape[-back], None
            for tensor in given:
                if tensor.ndim >= back and tensor.shape[-back] == size:
                    other = self.axes(tensor)[-back]
                    node = other if node is None else unite(node, other)
            result.insert(0, node if node is not None else Node(size))
        self.give(out, result)


RULES: dict[str, Callable[..., None]] = {}
POINTWISE = {"copy_", "_to_copy", "where", "masked_fill", "masked_fill_", "fill_", "zero_", "native_dropout", "addcmul", "lerp"}
SAME = {
    "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "contiguous", "_to_copy", "empty_like", "zeros_like",
    "ones_like", "full_like", "_softmax", "_log_softmax", "log_softmax", "softmax", "_safe_softmax",
}  # fmt: skip
"""What gives axes as it took them."""


def rule(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule("t", "t_", "numpy_T")
def _(trace: Trace, out: Tensor, x: Tensor) -> None:
    trace.give(out, trace.axes(x)[::-1])


@rule("transpose", "transpose_", "swapaxes")
def _(trace: Trace, out: Tensor, x: Tensor, one: int, other: int) -> None:
    axes = list(trace.axes(x))
    axes[one], axes[other] = axes[other], axes[one]
    trace.give(out, axes)


@rule("permute")
def _(trace: Trace, out: Tensor, x: Tensor, order: Sequence[int]) -> None:
    axes = trace.axes(x)
    trace.give(out, [axes[place] for place in order])


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def _(trace: Trace, out: Tensor, x: Tensor, *_: Any) -> None:
    """Runs of axes with the same product are taken together: what lies outside of a run keeps its axes."""
    axes, shape = trace.axes(x), list(out.shape)
    result: Axes = []
    left, wanted = list(axes), list(shape)
    while left or wanted:
        taken, asked = [], []
        if left and wanted and left[0].size == wanted[0]:
            result.append(left.pop(0))
            wanted.pop(0)
            continue
        if left and left[0].size == 1 and (not wanted or wanted[0] != 1):
            left.pop(0)
            continue
        if wanted and wanted[0] == 1:
            wanted.pop(0)
            result.append(Node(1))
            continue
        taken.append(left.pop(0))
        asked.append(wanted.pop(0))
        while prod(node.size for node in taken) != prod(asked):
            if prod(node.size for node in taken) < prod(asked):
                taken.append(left.pop(0))
            else:
                asked.append(wanted.pop(0))
        result += split(taken, [[size] for size in asked])
    trace.give(out, result)


@rule("unsqueeze", "unsqueeze_")
def _(trace: Trace, out: Tensor, x: Tensor, place: int) -> None:
    axes = list(trace.axes(x))
    axes.insert(place if place >= 0 else place + out.ndim, Node(1))
    trace.give(out, axes)


@rule("squeeze", "squeeze_")
def _(trace: Trace, out: Tensor, x: Tensor, *places: Any) -> None:
    asked = places[0] if places else range(x.ndim)
    gone = {place % x.ndim for place in ([asked] if isinstance(asked, int) else asked)}
    trace.give(out, [node for place, node in enumerate(trace.axes(x)) if place not in gone or x.shape[place] != 1])


@rule("expand")
def _(trace: Trace, out: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
    axes = [Node(1)] * (out.ndim - x.ndim) + trace.axes(x)
    trace.give(out, [node if node.size == size else Node(size) for node, size in zip(axes, out.shape, strict=True)])


@rule("select")
def _(trace: Trace, out: Tensor, x: Tensor, place: int, index: int) -> None:
    axes = list(trace.axes(x))
    axes.pop(place).freeze(f"{trace.module or 'the network'} takes one place of it")
    trace.give(out, axes)


@rule("unbind")
def _(trace: Trace, out: Sequence[Tensor], x: Tensor, place: int = 0) -> None:
    axes = list(trace.axes(x))
    axes.pop(place).freeze(f"{trace.module or 'the network'} tells its places apart")
    for tensor in out:
        trace.give(tensor, axes)


@rule("slice")
def _(trace: Trace, out: Tensor, x: Tensor, place: int = 0, *bounds: Any) -> None:
    axes = list(trace.axes(x))
    node, size, kept = axes[place], x.shape[place], out.shape[place]
    if kept == size:
        trace.give(out, axes)
        return
    begin = (bounds[0] if bounds and bounds[0] is not None else 0) if bounds else 0
    begin = min(max(begin + size if begin < 0 else begin, 0), size)
    step = bounds[2] if len(bounds) > 2 else 1
    if step != 1 or kept == 0:
        why = f"{trace.module or 'the network'} takes some places of it"
        node.freeze(why)
        axes[place] = frozen(kept, why)
    elif size % kept == 0 and begin % kept == 0:
        axes[place] = joined(node, [kept] * (size // kept))[begin // kept]
    else:
        sizes = [part for part in (begin, kept, size - begin - kept) if part]
        axes[place] = joined(node, sizes)[1 if begin else 0]
    trace.give(out, axes)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def _(trace: Trace, out: Sequence[Tensor], x: Tensor, sizes: Any, place: int = 0) -> None:
    axes = trace.axes(x)
    for tensor, part in zip(out, joined(axes[place], [t.shape[place] for t in out]), strict=True):
        mine = list(axes)
        mine[place] = part
        trace.give(tensor, mine)


@rule("cat")
def _(trace: Trace, out: Tensor, tensors: Sequence[Tensor], place: int = 0) -> None:
    tensors = [tensor for tensor in tensors if tensor.ndim == out.ndim]  # an empty one of one axis is allowed
    place %= out.ndim
    result = list(trace.axes(tensors[0]))
    for tensor in tensors[1:]:
        axes = trace.axes(tensor)
        result = [node if at == place else unite(node, axes[at]) for at, node in enumerate(result)]
    result[place] = side_by_side([trace.axes(tensor)[place] for tensor in tensors if tensor.shape[place]])
    trace.give(out, result)


@rule("stack")
def _(trace: Trace, out: Tensor, tensors: Sequence[Tensor], place: int = 0) -> None:
    result = list(trace.axes(tensors[0]))
    for tensor in tensors[1:]:
        result = [unite(node, other) for node, other in zip(result, trace.axes(tensor), strict=True)]
    result.insert(place % out.ndim, frozen(len(tensors), "its places are told apart"))
    trace.give(out, result)


@rule("mm", "bmm")
def _(trace: Trace, out: Tensor, x: Tensor, y: Tensor) -> None:
    left, right = trace.axes(x), trace.axes(y)
    unite(left[-1], right[-2])
    batch = [unite(a, b) for a, b in zip(left[:-2], right[:-2], strict=True)]
    trace.give(out, [*batch, left[-2], right[-1]])


@rule("addmm", "baddbmm")
def _(trace: Trace, out: Tensor, bias: Tensor, x: Tensor, y: Tensor, **_: Any) -> None:
    RULES["mm"](trace, out, x, y)
    for node, other in zip(reversed(trace.axes(out)), reversed(trace.axes(bias)), strict=False):
        if node.size == other.size:
            unite(node, other)


@rule("linear")
def _(trace: Trace, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    axes, (rows, columns) = trace.axes(x), trace.axes(weight)
    unite(axes[-1], columns)
    if bias is not None:
        unite(rows, trace.axes(bias)[0])
    trace.give(out, [*axes[:-1], rows])


@rule("mv")
def _(trace: Trace, out: Tensor, x: Tensor, y: Tensor) -> None:
    rows, columns = trace.axes(x)
    unite(columns, trace.axes(y)[0])
    trace.give(out, [rows])


@rule("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "any", "all", "linalg_vector_norm")
def _(trace: Trace, out: Tensor, x: Tensor, *arguments: Any, **named: Any) -> None:
    """What is reduced may have any order."""
    places = next(
        (a for a in [*arguments, named.get("dim")] if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)), None
    )
    if isinstance(places, int):
        places = [places]
    gone = {place % x.ndim for place in places} if places else set(range(x.ndim))
    keeps = out.ndim == x.ndim
    axes = [Node(1) if place in gone else node for place, node in enumerate(trace.axes(x)) if keeps or place not in gone]
    trace.give(out, axes)
