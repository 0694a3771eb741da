"""The graph of a size: embedding, layers, head, over the weights file of a precision.

Shapes: N batch, T tokens of this call, R of them that get logits, S places of the cache, d hidden size, H heads, G heads of
keys and values, D numbers of a head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from exporter.decoder.matrices import HEAD, Matrices
from exporter.decoder.shape import DecoderShape
from exporter.decoder.store import Graph, Piece, WeightsFile

COS, SIN = "rotary.cos", "rotary.sin"


@dataclass(frozen=True)
class Part:
    """Which layers a graph has, and whether it begins with token ids and ends with logits."""

    first: int
    last: int  # exclusive
    embeds: bool = True
    answers: bool = True
    padded: bool = False  # a row of zeros behind each attention's tokens, see `DecoderGraph._attention`


class DecoderGraph:
    """Writes graphs of a size of the `full` model."""

    def __init__(self, weights: WeightsFile, matrices: Matrices, full: DecoderShape, size: DecoderShape) -> None:
        self.weights, self.matrices, self.full, self.size = weights, matrices, full, size

    def model(self, part: Part) -> ModelProto:
        """`input_ids` (N, T), or `hidden` (N, T, d) → `logits` (N, R, V), or `hidden`, of a part between others `hidden_after`;
        the cache in and out."""
        graph, size = Graph(self.weights), self.size
        if part.embeds:
            residual, added = self.matrices.embed(graph, "input_ids", size.hidden), ""
        else:
            residual, added = "hidden", ""
        for layer in range(part.first, part.last):
            residual, added = self._layer(graph, layer, residual, added, part.padded)
        if not part.answers:
            graph.node("Add", [residual, added], outputs=[_hidden_of(part)])
        else:
            _, normalised = self._norm(graph, "norm", residual, added)
            self._head(graph, graph.node("Gather", [normalised, "rows"], axis=1), size.vocabulary)
        return graph.model(self._inputs(part), self._outputs(part))

    def exit(self, tokens: int) -> ModelProto:
        """The head over the first so many tokens of the vocabulary, for what lies between any two layers: `hidden` (N, T, d) →
        `logits` (N, T, tokens)."""
        graph = Graph(self.weights)
        _, normalised = self._norm(graph, "norm", "hidden", "")
        self._head(graph, normalised, tokens)
        hidden = _value("hidden", TensorProto.FLOAT, "batch", "tokens", self.size.hidden)
        return graph.model([hidden], [_value("logits", TensorProto.FLOAT, "batch", "tokens", tokens)])

    def _head(self, graph: Graph, value: str, tokens: int) -> None:
        """`logits` of the first so many tokens."""
        if self.size.tied:
            self.matrices.tied_head(graph, value, self.size.hidden, tokens)
        else:
            self.matrices.multiply(graph, HEAD, value, self.size.hidden, [(0, tokens)])
        graph.nodes[-1].output[0] = "logits"

    def _layer(self, graph: Graph, layer: int, residual: str, added: str, padded: bool) -> tuple[str, str]:
        """What passes by a layer, and what it adds to that: the sum is the next norm's business."""
        size, of = self.size, f"layers.{layer}"
        residual, value = self._norm(graph, f"{of}.attention_norm", residual, added)
        attended = self._attention(graph, layer, value, padded)
        attended = self._product(graph, f"{of}.o", attended, size.q_size, [(0, size.hidden)])
        residual, value = self._norm(graph, f"{of}.mlp_norm", residual, attended)
        gate, up = (self._product(graph, f"{of}.{name}", value, size.hidden, [(0, size.inner)]) for name in ("gate", "up"))
        gate = graph.ours("QuickGelu", [gate], alpha=1.0)  # SiLU
        return residual, self._product(graph, f"{of}.down", graph.node("Mul", [gate, up]), size.inner, [(0, size.hidden)])

    def _attention(self, graph: Graph, layer: int, value: str, padded: bool) -> str:
        """(N, T, d) → (N, T, H·D)

        `padded`: over T + 1 tokens, the last one of zeros, which is cut off again. ONNX Runtime multiplies one query with the
        keys by another kernel than several, and sums in another order: like this there are always several, and what a token's
        row is does not depend on how many are computed with it. Its keys and values lie behind the text, where nothing reads.
        """
        size, of = self.size, f"layers.{layer}"
        packed = self._product(graph, f"{of}.qkv", value, size.hidden, self._queries_keys_values())
        lengths = ["seqlens_k", "total_length"]
        if padded:
            packed = graph.node("Pad", [packed, graph.constant([0, 0, 0, 0, 1, 0], np.int64)])
            lengths = [self._raised(graph, name) for name in lengths]
        query, key, values = packed, "", ""
        if size.qk_norm:
            sizes = graph.constant([size.q_size, size.kv_size, size.kv_size], np.int64)
            query, key, values = (graph.fresh() for _ in range(3))
            graph.node("Split", [packed, sizes], outputs=[query, key, values], axis=2)
            query, key = self._normed(graph, f"{of}.q_norm", query), self._normed(graph, f"{of}.k_norm", key)
        rotates = size.rotates[layer]
        caches = [graph.stored(COS), graph.stored(SIN)] if rotates else ["", ""]
        cache = [f"past.{layer}.{what}" for what in ("key", "value")]
        attended = graph.ours(
            "GroupQueryAttention",
            [query, key, values, *cache, *lengths, *caches],
            outputs=[graph.fresh(), f"present.{layer}.key", f"present.{layer}.value"],
            num_heads=size.heads,
            kv_num_heads=size.kv_heads,
            scale=size.head_size**-0.5,
            do_rotary=int(rotates),
            local_window_size=size.windows[layer],
        )
        if padded:
            bounds = [graph.constant([bound], np.int64) for bound in (0, -1, 1)]
            attended = graph.node("Slice", [attended, *bounds])
        return attended

    def _raised(self, graph: Graph, name: str) -> str:
        """A number of tokens, one more."""
        if (known := graph.known("raised", name)) is not None:
            return known
        return graph.remember("raised", name, graph.node("Add", [name, graph.constant(1, np.int32)]))

    def _queries_keys_values(self) -> list[Piece]:
        """Where a size's lie in the outputs of the full model's one product for all three."""
        full, size = self.full, self.size
        if size.heads == full.heads:
            return [(0, full.q_size + 2 * full.kv_size)]
        keys, values = full.q_size, full.q_size + full.kv_size
        return [(0, size.q_size), (keys, keys + size.kv_size), (values, values + size.kv_size)]

    def _product(self, graph: Graph, name: str, value: str, inputs: int, outputs: list[Piece]) -> str:
        found = self.matrices.multiply(graph, name, value, inputs, outputs)
        if f"{name}.bias" in self.weights:
            found = graph.node("Add", [found, graph.cut(f"{name}.bias", outputs)])
        return found

    def _norm(self, graph: Graph, name: str, residual: str, added: str) -> tuple[str, str]:
        """The sum of both (`added` may be missing), and the sum normalised."""
        weight = graph.stored(name, (0, self.size.hidden))
        if not added:
            normed = graph.node(
                "SimplifiedLayerNormalization", [residual, weight], axis=-1, epsilon=self.size.epsilon, stash_type=1
            )
            return residual, normed
        normed, total = graph.fresh(), graph.fresh()
        outputs = [normed, "", "", total]
        graph.ours("SkipSimplifiedLayerNormalization", [residual, added, weight], outputs=outputs, epsilon=self.size.epsilon)
        return total, normed

    def _normed(self, graph: Graph, name: str, value: str) -> str:
        """(N, T, heads·D), each head by itself."""
        heads = graph.node("Reshape", [value, graph.constant([0, 0, -1, self.size.head_size], np.int64)])
        weight = graph.stored(name)
        normed = graph.node("SimplifiedLayerNormalization", [heads, weight], axis=-1, epsilon=self.size.epsilon, stash_type=1)
        return graph.node("Reshape", [normed, graph.constant([0, 0, -1], np.int64)])

    def _inputs(self, part: Part) -> list[ValueInfoProto]:
        first = _value("input_ids", TensorProto.INT64, "batch", "tokens")
        if not part.embeds:
            first = _value("hidden", TensorProto.FLOAT, "batch", "tokens", self.size.hidden)
        lengths = [_value("seqlens_k", TensorProto.INT32, "batch"), _value("total_length", TensorProto.INT32)]
        rows = [_value("rows", TensorProto.INT64, "rows")] if part.answers else []
        return [first, *lengths, *rows, *self._cache("past", "capacity", part)]

    def _outputs(self, part: Part) -> list[ValueInfoProto]:
        last = _value("logits", TensorProto.FLOAT, "batch", "rows", self.size.vocabulary)
        if not part.answers:
            last = _value(_hidden_of(part), TensorProto.FLOAT, "batch", "tokens", self.size.hidden)
        return [last, *self._cache("present", "capacity_after", part)]

    def _cache(self, when: str, capacity: str, part: Part) -> list[ValueInfoProto]:
        shape = ("batch", self.size.kv_heads, capacity, self.size.head_size)
        names = [f"{when}.{layer}.{what}" for layer in range(part.first, part.last) for what in ("key", "value")]
        return [_value(name, TensorProto.FLOAT, *shape) for name in names]


def _hidden_of(part: Part) -> str:
    """What a part without a head gives on."""
    return "hidden" if part.embeds else "hidden_after"


def _value(name: str, kind: int, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))
