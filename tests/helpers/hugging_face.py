"""Families over Hugging Face modules, as a user writes them: small configurations, random weights, nothing downloaded.

Shapes: N batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from trainer import DataSpec, Family, SubModel
from trainer.tasks import Classification, LanguageModelling

HEAD = 8  # numbers of one attention head
TOKENS = 12  # of the example inputs
MASKED = 4  # of the second example


_TEXT = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 32}
TINY: dict[str, dict[str, Any]] = {
    "bert": {**_TEXT, "max_position_embeddings": 64},
    "roberta": {**_TEXT, "max_position_embeddings": 64, "type_vocab_size": 1},
    "distilbert": {"vocab_size": 50, "max_position_embeddings": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "dim": 32},
    "vit": {
        **{name: value for name, value in _TEXT.items() if name != "vocab_size"},
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
    },
}
"""Configurations of the architectures that are families by name, 16 sub-models each."""


class _HuggingFace(Family):
    """Axes: layers, heads, and the width of the layers between (`intermediate`)."""

    dynamic_axes = {  # noqa: RUF012
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "sequence"},
    }

    def __init__(
        self,
        vocabulary: int = 50,
        layers: Sequence[int] = (1, 2),
        heads: Sequence[int] = (2, 4),
        intermediate: Sequence[int] = (16, 32),
        attention: str = "sdpa",
    ) -> None:
        self.vocabulary, self.attention = vocabulary, attention
        self.axes = {"layers": tuple(layers), "heads": tuple(heads), "intermediate": tuple(intermediate)}

    def config(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "attention": self.attention, **{n: list(v) for n, v in self.axes.items()}}

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        mask = torch.ones(batch_size, TOKENS, dtype=torch.int64)
        mask[1::2, -MASKED:] = 0
        return {"input_ids": torch.randint(0, self.vocabulary, (batch_size, TOKENS)), "attention_mask": mask}

    def sizes(self, sub: SubModel) -> dict[str, Any]:
        """What the configurations of both have in common."""
        return {
            "vocab_size": self.vocabulary,
            "num_hidden_layers": sub["layers"],
            "num_attention_heads": sub["heads"],
            "intermediate_size": sub["intermediate"],
            "max_position_embeddings": 64,
            "attn_implementation": self.attention,
        }


class Bert(_HuggingFace):
    """BERT that classifies a text; more heads make the hidden size larger."""

    task = Classification()

    def build(self, sub: SubModel) -> nn.Module:
        heads = sub["heads"]
        assert isinstance(heads, int)
        own: dict[str, Any] = {"hidden_size": heads * HEAD, "num_labels": 3, "hidden_dropout_prob": 0.0}
        module: nn.Module = BertForSequenceClassification(BertConfig(**self.sizes(sub), **own))
        return module


class TextBert(Bert):
    """The same for a data set of texts that a checkpoint's tokenizer reads."""

    @classmethod
    def for_data(cls, spec: DataSpec, **settings: Any) -> TextBert:
        return cls(spec.vocabulary, **settings)


class Llama(_HuggingFace):
    """LLaMA that predicts the next token, without a cache; its hidden size is the same at every size, two heads share a key."""

    task = LanguageModelling()

    def build(self, sub: SubModel) -> nn.Module:
        heads, most = sub["heads"], self.axes["heads"][-1]
        assert isinstance(heads, int)
        assert isinstance(most, int)
        config = LlamaConfig(
            **self.sizes(sub), hidden_size=most * HEAD, head_dim=HEAD, num_key_value_heads=heads // 2, use_cache=False
        )
        module: nn.Module = LlamaForCausalLM(config)
        return module


class MiniLM(_HuggingFace):
    """BERT of MiniLM's size (Wang et al. 2020, arXiv 2002.10957, table 1): the hidden size and that of a head stay, heads go.

    transformers wants the heads to make up the hidden size, so that fewer are made by replacing what projects to them.
    """

    task = Classification()

    def __init__(
        self,
        vocabulary: int = 30522,
        layers: Sequence[int] = (1, 2, 3, 4, 5, 6),
        heads: Sequence[int] = (6, 12),
        intermediate: Sequence[int] = (384, 768, 1152, 1536),
        attention: str = "sdpa",
        head: int = 32,
    ) -> None:
        super().__init__(vocabulary, layers, heads, intermediate, attention)
        self.head = head

    def config(self) -> dict[str, Any]:
        return {**super().config(), "head": self.head}

    def build(self, sub: SubModel) -> nn.Module:
        heads, most = sub["heads"], self.axes["heads"][-1]
        assert isinstance(heads, int)
        assert isinstance(most, int)
        hidden, kept = most * self.head, heads * self.head
        own = {"num_attention_heads": most, "hidden_size": hidden, "max_position_embeddings": 512, "num_labels": 2}
        module = BertForSequenceClassification(BertConfig(**{**self.sizes(sub), **own}))
        for layer in module.bert.encoder.layer if heads < most else ():
            attention: Any = layer.attention
            inner = attention.self
            inner.num_attention_heads, inner.all_head_size = heads, kept
            inner.query, inner.key, inner.value = (nn.Linear(hidden, kept) for _ in range(3))
            attention.output.dense = nn.Linear(kept, hidden)
        whole: nn.Module = module
        return whole
