"""What a decoder of the LLaMA kind looks like, read from its configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.selftest import ExportError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Whose layers are a norm, grouped attention with rotary positions, a norm, a gated product, and nothing else."""
STATIC_ROTARY = ("default", "linear", "dynamic", "llama3", "yarn")
"""Whose angles do not depend on the length of a text, up to the context that the configuration says."""
WHOLE_HEADS = 16
"""ONNX Runtime turns positions within attention where a head has a multiple of so many numbers."""


@dataclass(frozen=True)
class DecoderShape:
    """Sizes and options of a decoder. Numbers are of elements; `windows` and `rotates` have one value for each layer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int  # width between the two products of a layer
    vocabulary: int
    context: int  # tokens of the longest text
    epsilon: float  # of the norms
    tied: bool  # whether the head is the embedding
    qk_norm: bool  # whether queries and keys are normalised, each head by itself
    windows: tuple[int, ...]  # how many tokens back a layer looks; -1: all
    rotates: tuple[bool, ...]  # whether a layer knows positions

    @property
    def q_size(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def products(self) -> dict[tuple[int, int], int]:
        """Of one token, the head among them: (inputs, outputs) of a matrix → how many there are of it."""
        found: Counter[tuple[int, int]] = Counter({(self.hidden, self.vocabulary): 1})
        of_layer = [(self.hidden, self.q_size + 2 * self.kv_size), (self.q_size, self.hidden)]
        for product in (*of_layer, (self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden)):
            found[product] += self.layers
        return dict(found)


def shape_of(config: Any, head_size: int | None = None, *, tied: bool | None = None) -> DecoderShape:
    """Of a configuration of transformers. `head_size`: where the configuration does not say it.

    Raises ExportError naming the field, its value and what is allowed for what these graphs do not compute.
    """
    kind = config.model_type
    if kind not in MODEL_TYPES:
        raise ExportError(f"config: model_type = {kind!r}: allowed for decoding are {', '.join(MODEL_TYPES)}")
    if (activation := getattr(config, "hidden_act", "silu")) not in ("silu", "swish"):
        raise ExportError(f"config: hidden_act = {activation!r}: allowed is silu")
    rotary = rotary_kind(config)
    if rotary not in STATIC_ROTARY:
        raise ExportError(f"config: rope_type = {rotary!r}: allowed are {', '.join(STATIC_ROTARY)}")
    heads, layers = int(config.num_attention_heads), int(config.num_hidden_layers)
    size = int(head_size or getattr(config, "head_dim", None) or config.hidden_size // heads)
    if size % WHOLE_HEADS:
        raise ExportError(f"config: head_dim = {size}: allowed are multiples of {WHOLE_HEADS}")
    return DecoderShape(
        layers=layers,
        hidden=int(config.hidden_size),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=size,
        inner=int(config.intermediate_size),
        vocabulary=int(config.vocab_size),
        context=int(config.max_position_embeddings),
        epsilon=float(config.rms_norm_eps),
        tied=bool(config.tie_word_embeddings if tied is None else tied),
        qk_norm=kind == "qwen3",
        windows=tuple(_window(config, layer) for layer in range(layers)),
        rotates=tuple(_rotates(config, layer) for layer in range(layers)),
    )


def rotary_kind(config: Any) -> str:
    """How positions are scaled: "default", "linear", …"""
    said = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(said.get("rope_type", said.get("type", "default"))) if isinstance(said, Mapping) else "default"


def _window(config: Any, layer: int) -> int:
    window = getattr(config, "sliding_window", None)
    if window is None:
        return -1
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # Mistral: every layer
        return int(window)
    return int(window) if kinds[layer] == "sliding_attention" else -1


def _rotates(config: Any, layer: int) -> bool:
    kept = getattr(config, "no_rope_layers", None)  # 1 where a layer does know positions, whatever the name says
    return bool(kept[layer]) if kept else True
