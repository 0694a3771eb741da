"""Encoders of Hugging Face with four axes, built small: what a checkpoint's family builds, without a checkpoint.

Shapes: N texts, T tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from trainer import Family, SubModel
from trainer.submodel import AxisValue

HEAD, VOCABULARY, PADDING = 8, 60, 1  # numbers of one attention head; token ids; the id of padding, RoBERTa's
LONGEST = 256
_NAMES = {  # of a configuration's fields: layers, heads, width of the layers between, hidden width
    "bert": ("num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_size"),
    "roberta": ("num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_size"),
    "distilbert": ("n_layers", "n_heads", "hidden_dim", "dim"),
}
_CLASSES: dict[str, tuple[Any, Any]] = {
    "bert": (BertConfig, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification),
}


class Encoder(Family):
    """`kind`: one of the classes above. The hidden width follows from the heads, whose size is the same at every size."""

    axes: ClassVar[dict[str, tuple[AxisValue, ...]]] = {"layers": (1, 2), "heads": (2, 4), "intermediate": (16, 32)}
    dynamic_axes: ClassVar[dict[str, dict[int, str]]] = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "sequence"},
    }

    def __init__(self, kind: str, attention: str = "sdpa") -> None:
        self.kind, self.attention = kind, attention

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "attention": self.attention}

    def build(self, sub: SubModel) -> nn.Module:
        layers, heads, intermediate = (int(sub[axis]) for axis in self.axes)  # type: ignore[arg-type]
        fields = dict(zip(_NAMES[self.kind], (layers, heads, intermediate, heads * HEAD), strict=True))
        config, network = _CLASSES[self.kind]
        more = {"max_position_embeddings": LONGEST + 2, "vocab_size": VOCABULARY, "pad_token_id": PADDING, "num_labels": 3}
        module: nn.Module = network(config(**fields, **more, attn_implementation=self.attention))
        return module

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return texts(batch_size, 12)


def texts(count: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """(N, T) random tokens, of every second text the last quarter padding."""
    ids = torch.randint(PADDING + 1, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(count, length, dtype=torch.int64)
    if length > 1:
        mask[1::2, -((length + 3) // 4) :] = 0
    return {"input_ids": torch.where(mask == 1, ids, PADDING), "attention_mask": mask}


def padded(text: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """The same with padding behind."""
    more = length - text["input_ids"].shape[1]
    values = {"input_ids": PADDING, "attention_mask": 0}
    return {name: nn.functional.pad(tensor, (0, more), value=values[name]) for name, tensor in text.items()}
