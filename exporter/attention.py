"""How attention is written: `scaled_dot_product_attention` of torch, which its own modules and those of transformers call.

torch writes a factor of the queries and one of the keys, a mask of minus infinities for every layer, and takes out of all
weights what is no number, though nothing is but in rows without a key. Here the queries alone have a factor, which ONNX
Runtime makes part of the product, and a mask is made once for all layers, of finite numbers. That takes 0.93-0.96 of the time
(6 layers of 384 with a mask, 8 to 256 tokens), about what one `MultiHeadAttention` of ONNX Runtime's own operators takes, and
less than its transformers optimizer's `Attention` and `SkipLayerNormalization`, which are no faster than what torch writes. It
stays plain ONNX, which every execution provider has.

A query without a key has an empty result in torch, where here all weights would be the same. A text that is nothing but padding
is emptied as a whole. Where a mask leaves single queries without a key (a decoder's, with padding in front) a graph written so
differs from torch; it is written again, exactly: each result times whether its query has a key, 1-4 % slower.

Shapes: N texts, H heads, S queries, T keys, D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from onnx import TensorProto
from torch.onnx import symbolic_helper, symbolic_opset14

_OPERATOR, _OPSET = "aten::scaled_dot_product_attention", 14
_EXCLUDED = float(torch.finfo(torch.float32).min)


@contextmanager
def lean_attention(exact: bool = False) -> Iterator[Lean]:
    """Within this context torch writes the attention of one network so; `exact`: also where some queries have no key."""
    lean = Lean(exact)
    exporter: Any = torch.onnx  # it has both, and does not say so to type checkers
    exporter.register_custom_op_symbolic(_OPERATOR, lean, _OPSET)
    try:
        yield lean
    finally:
        exporter.unregister_custom_op_symbolic(_OPERATOR, _OPSET)


@dataclass(frozen=True)
class _Mask:
    """Values of the graph: what is added to the products, and what results are multiplied by, 0 where there is no key."""

    added: Any
    has_key: Any  # (N or 1, 1 or H, 1, 1), or of each query (N or 1, 1 or H, S, 1); None where the mask is of numbers


class Lean:
    """What torch's exporter calls for every attention of one network, with the graph and its values."""

    def __init__(self, exact: bool) -> None:
        self.assumes_keys = False
        """Whether it was written so that it is right only where either no query of a text has a key or all have one."""
        self._exact = exact
        self._masks: dict[int, _Mask] = {}

    def __call__(self, g: Any, query: Any, key: Any, value: Any, mask: Any, dropout: Any, causal: Any, *rest: Any) -> Any:
        scale, grouped = (*rest, None, None)[:2]
        rank = symbolic_helper._get_tensor_rank(key)
        if rank is None or query.type().scalarType() != "Float" or any(map(_is_on, (dropout, causal, grouped))):
            return symbolic_opset14.scaled_dot_product_attention(g, query, key, value, mask, dropout, causal, *rest)
        if scale is None or symbolic_helper._is_none(scale):
            last, end = (g.op("Constant", value_t=torch.tensor([place])) for place in (-1, torch.iinfo(torch.int64).max))
            size = g.op("Cast", g.op("Slice", g.op("Shape", query), last, end), to_i=TensorProto.FLOAT)
            scaled = g.op("Div", query, g.op("Sqrt", size))
        else:
            scaled = g.op("Mul", query, g.op("Cast", scale, to_i=TensorProto.FLOAT))
        turned = g.op("Transpose", key, perm_i=[*range(rank - 2), rank - 1, rank - 2])
        scores = g.op("MatMul", scaled, turned)
        known = None
        if not symbolic_helper._is_none(mask):
            known = self._mask(g, mask)
            scores = g.op("Add", scores, known.added)
        result = g.op("MatMul", g.op("Softmax", scores, axis_i=-1), value)
        return result if known is None or known.has_key is None else g.op("Mul", result, known.has_key)

    def _mask(self, g: Any, mask: Any) -> _Mask:
        if mask.type().scalarType() != "Bool":
            return _Mask(mask, None)
        if mask.unique() not in self._masks:
            yes, no = (g.op("Constant", value_t=torch.tensor(worth)) for worth in (0.0, _EXCLUDED))
            exact = self._exact or symbolic_helper._get_tensor_rank(mask) == 1
            self.assumes_keys |= not exact
            axes = [-1] if exact else [-2, -1]
            has_key = g.op("ReduceMax", g.op("Cast", mask, to_i=TensorProto.FLOAT), axes_i=axes, keepdims_i=1)
            self._masks[mask.unique()] = _Mask(g.op("Where", mask, yes, no), has_key)
        return self._masks[mask.unique()]


def _is_on(option: Any) -> bool:
    given = option is not None and not symbolic_helper._is_none(option)
    return given and bool(symbolic_helper._node_get(option.node(), "value"))
