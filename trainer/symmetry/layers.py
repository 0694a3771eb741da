"""Rules of whole layers: convolutions, pools, normalisation, embeddings, attention. Shapes as in `rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trainer.symmetry.axes import Node, frozen, product, split, unite
from trainer.symmetry.rules import RULES, Axes, Trace, rule


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


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math", "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
)  # fmt: skip
def _(trace: Trace, out: Any, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> None:
    q, k, v = (trace.axes(tensor) for tensor in (query, key, value))
    unite(q[-1], k[-1])
    unite(k[-2], v[-2])
    shared = [unite(a, b) for a, b in zip(k[:-2], v[:-2], strict=True)]
    batch = [_of_groups(a, b) for a, b in zip(q[:-2], shared, strict=True)]
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


def _of_groups(heads: Node, shared: Node) -> Node:
    """Heads of queries, several of which may share one of keys and values: whole groups change places with it."""
    if heads.size == shared.size:
        return unite(heads, shared)
    unite(split([heads], [[shared.size], [heads.size // shared.size]])[0], shared)
    return heads
