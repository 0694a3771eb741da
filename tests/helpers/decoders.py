"""Small decoders with random weights: graphs as the exporter writes them, and the naive answer to compare with, which computes
all tokens again each time.

Shapes: T tokens, H heads, G groups of keys and values, D the size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from selector.run.decode import Decoder, DecoderSpec

Array = NDArray[Any]
EPSILON = 1e-5
DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Tiny:
    """A LLaMA of these sizes; those of the same widths and seed share their layers."""

    layers: int = 2
    hidden: int = 64  # a head of 16 is the least that the operator takes
    heads: int = 4
    groups: int = 2
    intermediate: int = 48
    vocabulary: int = 64
    context: int = 96
    seed: int = 0
    eos: tuple[int, ...] = (63,)

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def spec(self) -> DecoderSpec:
        return DecoderSpec(self.layers, self.groups, self.head_size, self.context, self.vocabulary, self.eos)

    @cached_property
    def weights(self) -> dict[str, Array]:
        rng = np.random.default_rng(self.seed)

        def random(*shape: int) -> Array:
            return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

        found = {"embedding": rng.standard_normal((self.vocabulary, self.hidden)).astype(np.float32)}
        found["head"] = 3 * random(self.hidden, self.vocabulary)  # not the embedding's: a text would repeat one token
        rows = (self.heads + 2 * self.groups) * self.head_size
        for i in range(self.layers):
            found[f"{i}.qkv"] = 2 * random(self.hidden, rows)
            found[f"{i}.o"] = random(self.heads * self.head_size, self.hidden)
            found[f"{i}.gate"] = random(self.hidden, self.intermediate)
            found[f"{i}.up"] = random(self.hidden, self.intermediate)
            found[f"{i}.down"] = random(self.intermediate, self.hidden)
            for name in ("attention_norm", "mlp_norm"):
                found[f"{i}.{name}"] = (1 + 0.1 * rng.standard_normal(self.hidden)).astype(np.float32)
        found["norm"] = np.ones(self.hidden, np.float32)
        return found

    @cached_property
    def angles(self) -> Array:
        """Of the rotation at each position, (context, D / 2)."""
        frequencies = 10000.0 ** (-np.arange(0, self.head_size, 2) / self.head_size)
        return np.outer(np.arange(self.context), frequencies)

    def logits(self, ids: Sequence[int]) -> Array:
        """After each token, (T, vocabulary): everything is computed again."""
        w, count, size = self.weights, len(ids), self.head_size
        x = w["embedding"][list(ids)].astype(np.float64)
        later = np.triu(np.full((count, count), -np.inf), 1)
        for i in range(self.layers):
            q, k, v = np.split(
                _normed(x, w[f"{i}.attention_norm"]) @ w[f"{i}.qkv"],
                [self.heads * size, (self.heads + self.groups) * size],
                axis=1,
            )
            q, k = (self._rotated(a.reshape(count, -1, size)) for a in (q, k))
            k, v = (np.repeat(a.reshape(count, -1, size), self.heads // self.groups, axis=1) for a in (k, v))
            scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(size) + later
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = np.einsum("hts,shd->thd", scores / scores.sum(axis=-1, keepdims=True), v)
            x = x + mixed.reshape(count, -1) @ w[f"{i}.o"]
            inner = _normed(x, w[f"{i}.mlp_norm"])
            gate = inner @ w[f"{i}.gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (inner @ w[f"{i}.up"])) @ w[f"{i}.down"]
        return np.asarray(_normed(x, w["norm"]) @ w["head"])

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """So many tokens after the prompt, or fewer, up to and with one that ends the text."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
            if ids[-1] in self.eos:
                break
        return ids[len(prompt) :]

    def _rotated(self, heads: Array) -> Array:
        half, angles = self.head_size // 2, self.angles[: len(heads), None]
        a, b = heads[..., :half], heads[..., half:]
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1)

    def model(self, *, padded: bool = False) -> onnx.ModelProto:
        """The graph with its weights inside. `padded`: as it verifies drafts, with a row of zeros behind each attention's."""
        w = dict(self.weights)
        w["cos"], w["sin"] = (
            np.concatenate([a, a[-1:]]) for a in (f(self.angles).astype(np.float32) for f in (np.cos, np.sin))
        )
        if padded:
            more = {"pads": [0, 0, 0, 0, 1, 0], "begin": [0], "end": [-1], "second": [1]}
            w |= {name: np.array(value, np.int64) for name, value in more.items()} | {"one": np.array(1, np.int32)}
        nodes: list[onnx.NodeProto] = []

        def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> None:
            nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))

        node("Gather", ["embedding", "input_ids"], ["x"])
        node("SimplifiedLayerNormalization", ["x", "0.attention_norm"], ["0.in"], epsilon=EPSILON, axis=-1)
        lengths = ["seqlens_k", "total_length"]
        if padded:
            for name in lengths:
                node("Add", [name, "one"], [f"{name}.raised"])
            lengths = [f"{name}.raised" for name in lengths]
        skip = "x"
        for i in range(self.layers):
            node("MatMul", [f"{i}.in", f"{i}.qkv"], [f"{i}.unpadded" if padded else f"{i}.packed"])
            if padded:
                node("Pad", [f"{i}.unpadded", "pads"], [f"{i}.packed"])
            node(
                "GroupQueryAttention",
                [
                    f"{i}.packed", "", "", f"past.{i}.key", f"past.{i}.value", *lengths, "cos", "sin",
                ],
                [f"{i}.all" if padded else f"{i}.mixed", f"present.{i}.key", f"present.{i}.value"],
                DOMAIN, num_heads=self.heads, kv_num_heads=self.groups, do_rotary=1,
            )  # fmt: skip
            if padded:
                node("Slice", [f"{i}.all", "begin", "end", "second"], [f"{i}.mixed"])
            node("MatMul", [f"{i}.mixed", f"{i}.o"], [f"{i}.attended"])
            normed = [f"{i}.middle", "", "", f"{i}.sum"]
            inputs = [skip, f"{i}.attended", f"{i}.mlp_norm"]
            node("SkipSimplifiedLayerNormalization", inputs, normed, DOMAIN, epsilon=EPSILON)
            node("MatMul", [f"{i}.middle", f"{i}.gate"], [f"{i}.gated"])
            node("QuickGelu", [f"{i}.gated"], [f"{i}.silu"], DOMAIN, alpha=1.0)
            node("MatMul", [f"{i}.middle", f"{i}.up"], [f"{i}.upped"])
            node("Mul", [f"{i}.silu", f"{i}.upped"], [f"{i}.inner"])
            node("MatMul", [f"{i}.inner", f"{i}.down"], [f"{i}.out"])
            last = i + 1 == self.layers
            inputs = [f"{i}.sum", f"{i}.out", "norm" if last else f"{i + 1}.attention_norm"]
            outputs = ["normed" if last else f"{i + 1}.in", "", "", f"{i}.residual"]
            node("SkipSimplifiedLayerNormalization", inputs, outputs, DOMAIN, epsilon=EPSILON)
            skip = f"{i}.residual"
        node("Gather", ["normed", "rows"], ["last"], axis=1)
        node("MatMul", ["last", "head"], ["logits"])
        return self._assembled(nodes, w)

    def _assembled(self, nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> onnx.ModelProto:
        value, integer = helper.make_tensor_value_info, TensorProto.INT64
        cache = ["B", self.groups, "S", self.head_size]
        names = [f"{i}.{kind}" for i in range(self.layers) for kind in ("key", "value")]
        inputs = [
            value("input_ids", integer, ["B", "T"]),
            value("seqlens_k", TensorProto.INT32, ["B"]),
            value("total_length", TensorProto.INT32, []),
            value("rows", integer, ["R"]),
            *(value(f"past.{name}", TensorProto.FLOAT, cache) for name in names),
        ]
        outputs = [
            value("logits", TensorProto.FLOAT, ["B", "R", self.vocabulary]),
            *(value(f"present.{name}", TensorProto.FLOAT, cache) for name in names),
        ]
        initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
        graph = helper.make_graph(nodes, "decoder", inputs, outputs, initializers)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def decoder(self, *, padded: bool = False, **options: Any) -> Decoder:
        """One that runs the graph."""
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        spec = replace(self.spec, spare=int(padded))
        return Decoder(ort.InferenceSession(self.model(padded=padded).SerializeToString(), settings), spec, **options)

    def write(self, path: Path, *, padded: bool = False) -> None:
        onnx.save(self.model(padded=padded), path)


def _normed(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + EPSILON) * weight)
