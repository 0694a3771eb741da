"""Families over transformers' own modules at sizes for tests, and checkpoints of theirs as they lie in a folder.

Small configurations, random weights, nothing downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.helpers.hugging_face import TINY
from tests.helpers.networks import small
from trainer import DataSpec
from trainer.families import Transformers

_SIZES = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16, "hidden_size": 32}
OTHERS: dict[str, dict[str, Any]] = {
    "electra": {"model_type": "electra", **_SIZES, "embedding_size": 8},
    "camembert": {"model_type": "camembert", **_SIZES, "type_vocab_size": 1},
    "mpnet": {"model_type": "mpnet", **_SIZES},
    "albert": {"model_type": "albert", **_SIZES, "embedding_size": 8, "hidden_dropout_prob": 0.0},
    "modernbert": {"model_type": "modernbert", **_SIZES, "pad_token_id": 0, "local_attention": 8},
    "llama": {"model_type": "llama", **_SIZES, "num_key_value_heads": 2, "pad_token_id": 0},
    "qwen3": {"model_type": "qwen3", **_SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
}
"""Architectures that no family is named after."""
BERT = {"model_type": "bert", **TINY["bert"]}
TEXTS = DataSpec((9,), 3, vocabulary=50, inputs={"input_ids": (9,), "attention_mask": (9,)})


def family(name: str, **settings: Any) -> Transformers:
    if name in OTHERS:
        return Transformers(OTHERS[name], labels=3, tokens=9, **settings)
    found = small(name, **settings)
    assert isinstance(found, Transformers)
    return found


def checkpoint(name: str, folder: Path, head: Any = AutoModelForSequenceClassification, **more: Any) -> Any:
    """A folder as Hugging Face's `save_pretrained` writes it, and the model that lies there."""
    torch.manual_seed(1)
    said = OTHERS.get(name) or {"model_type": name, **TINY[name]}
    config = AutoConfig.for_model(**{**said, "num_labels": 3, **more})
    model = head.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model
