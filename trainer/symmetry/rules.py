"""How the axes of what an operator takes and gives belong together, by the name of the operator in ATen.

Shapes are those of the operators' documentation (torch's `native_functions.yaml`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from trainer.symmetry.axes import Node, frozen, joined, product, side_by_side, split, unite

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


@rule("convolution", "_convolution", "mkldnn_convolution")
def _(
    trace: Trace,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool = False,
    output_padding: Any = None,
    groups: int = 1,
    *_: Any,
) -> None:
    axes, kernel = trace.axes(x), trace.axes(weight)
    for node in kernel[2:]:
        node.freeze("it is the kernel's place in the picture")
    channels = axes[1]
    if groups == 1:
        taken, made = (kernel[0], kernel[1]) if transposed else (kernel[1], kernel[0])
        unite(channels, taken)
    else:
        of_groups = split([channels], [[groups], [x.shape[1] // groups]])
        of_kernel = split([kernel[0]], [[groups], [kernel[0].size // groups]])
        unite(of_groups[0], of_kernel[0])
        if transposed:
            unite(of_groups[1], of_kernel[1])
            made = product([of_groups[0], kernel[1]]) if kernel[1].size > 1 else of_groups[0]
        else:
            unite(of_groups[1], kernel[1])
            made = kernel[0]
    if bias is not None:
        unite(made, trace.axes(bias)[0])
    trace.give(out, [axes[0], made, *_places(out, 2)])


def _places(out: Tensor, begin: int) -> Axes:
    return [frozen(size, "it is an axis of places") for size in out.shape[begin:]]


@rule(
    "avg_pool2d", "avg_pool1d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d",
    "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "upsample_nearest1d", "upsample_linear1d",
    "_upsample_bilinear2d_aa", "reflection_pad2d", "replication_pad2d", "reflection_pad1d", "max_pool2d", "mkldnn_max_pool2d",
)  # fmt: skip
def _(trace: Trace, out: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
    kept = 2 if out.ndim > 2 else 1
    for node in trace.axes(x)[kept:]:
        node.freeze("it is an axis of places")
    trace.give(out, [*trace.axes(x)[:kept], *_places(out, kept)])


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d")
def _(trace: Trace, out: Sequence[Tensor], x: Tensor, *_: Any, **__: Any) -> None:
    for tensor in out:
        RULES["max_pool2d"](trace, tensor, x)


@rule("constant_pad_nd")
def _(trace: Trace, out: Tensor, x: Tensor, *_: Any) -> None:
    axes = []
    for node, size in zip(trace.axes(x), out.shape, strict=True):
        if node.size != size:
            node.freeze(f"{trace.module or 'the network'} fills it up")
            node = frozen(size, "it was filled up")
        axes.append(node)
    trace.give(out, axes)


@rule("native_layer_norm")
def _(
    trace: Trace, out: Sequence[Tensor], x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, *_: Any
) -> None:
    axes = list(trace.axes(x))
    for tensor in (weight, bias):
        if tensor is not None:
            for back, node in enumerate(reversed(trace.axes(tensor)), 1):
                axes[-back] = unite(axes[-back], node)
    _normalised(trace, out, axes)


@rule("_fused_rms_norm", "rms_norm")
def _(trace: Trace, out: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, *_: Any) -> None:
    RULES["native_layer_norm"](trace, [out] if isinstance(out, Tensor) else out, x, shape, weight, None)


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
    "batch_norm",
    "_batch_norm_no_update",
)
def _(trace: Trace, out: Any, x: Tensor, *tensors: Any, **_: Any) -> None:
    axes = list(trace.axes(x))
    for tensor in tensors[:4]:
        if isinstance(tensor, Tensor):
            axes[1] = unite(axes[1], trace.axes(tensor)[0])
    _normalised(trace, [out] if isinstance(out, Tensor) else out, axes)


def _normalised(trace: Trace, out: Sequence[Tensor], axes: Axes) -> None:
    """The first is what was normalised; the others are statistics, which nobody computes with."""
    trace.give(out[0], axes)
    for tensor in out[1:]:
        trace.give(tensor, [frozen(size, "it is an axis of statistics") for size in tensor.shape])


@rule("native_group_norm")
def _(
    trace: Trace,
    out: Sequence[Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> None:
    axes = list(trace.axes(x))
    for tensor in (weight, bias):
        if tensor is not None:
            axes[1] = unite(axes[1], trace.axes(tensor)[0])
    split([axes[1]], [[groups], [channels // groups]])
    _normalised(trace, out, axes)


@rule("embedding")
def _(trace: Trace, out: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> None:
    rows, columns = trace.axes(weight)
    rows.freeze("it is looked up by number")
    trace.give(out, [*trace.axes(indices), columns])


@rule("index_select")
def _(trace: Trace, out: Tensor, x: Tensor, place: int, index: Tensor) -> None:
    axes = list(trace.axes(x))
    axes[place].freeze("it is looked up by number")
    axes[place] = frozen(out.shape[place], "it was looked up by number")
    trace.give(out, axes)


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


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math", "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
)  # fmt: skip
def _(trace: Trace, out: Any, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> None:
    q, k, v = (trace.axes(tensor) for tensor in (query, key, value))
    unite(q[-1], k[-1])
    unite(k[-2], v[-2])
    batch = [unite(unite(a, b), c) for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True)]
    mask = named.get("attn_mask", next((o for o in others if isinstance(o, Tensor)), None))
    if mask is not None:
        for node, other in zip(reversed([*batch, q[-2], k[-2]]), reversed(trace.axes(mask)), strict=False):
            if node.size == other.size:
                unite(node, other)
    first, *rest = [out] if isinstance(out, Tensor) else out
    trace.give(first, [*batch, q[-2], v[-1]])
    for tensor in rest:
        if isinstance(tensor, Tensor):
            trace.give(tensor, [frozen(size, "it is an axis of statistics") for size in tensor.shape])
