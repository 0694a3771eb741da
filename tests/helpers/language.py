"""Language models at sizes for tests: families, checkpoints of a folder, files of GGUF, data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from trainer import Family, NestedModel, Samples
from trainer.data.tokens import TokenOptions, learnt_pieces
from trainer.families import Llama
from trainer.tasks import LanguageModelling

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "hidden_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
DECODER_SIZES: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
"""Of one whose widths are whole blocks and whose heads the graphs take."""
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '.' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
POEMS = [
    f"{word} rose, and {word} fell, and {word} was {word} again, number {i}."
    for i, word in enumerate(["sun", "moon", "star", "sea"] * 8)
]


def language_family(kind: str = "llama", tokens: int = 9, positions: int = 0, **config: Any) -> Llama:
    """Three depths, two widths between, one or two groups of heads, two hidden sizes: 24 sub-models."""
    found = Llama({"model_type": kind, **SIZES, **config}, tokens=tokens, mask=False)
    found.with_task(LanguageModelling(positions=positions))
    found.axes = {**found.axes, "intermediate_size": (16, 32), "hidden_size": (24, 48)}
    return found


def mixed(family: Family, seed: int = 0) -> NestedModel:
    """No two parameters alike."""
    torch.manual_seed(seed)
    nested = NestedModel(family)
    with torch.no_grad():
        for parameter in nested.full.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return nested


def decoder_model(kind: str = "llama", **config: Any) -> NestedModel:
    """24 sub-models, whose widths are whole blocks."""
    family = language_family(kind, **{**DECODER_SIZES, **config})
    family.axes = {**family.axes, "intermediate_size": (32, 64), "hidden_size": (32, 64)}
    found = mixed(family)
    with torch.no_grad():
        for parameter in found.full.parameters():
            if parameter.ndim > 1:  # so small that a rounding stays one: attention between two tokens decides much
                parameter.mul_(0.4)
    return found


def sequences(count: int = 6, tokens: int = 9, ignored: bool = True) -> Samples:
    """Random ids with the one that follows as the target, some of which are ignored."""
    ids = torch.randint(3, 64, (count, tokens + 1), generator=torch.Generator().manual_seed(1))
    targets: Tensor = ids[:, 1:].clone()
    if ignored:
        targets[0, :5] = targets[-1, 1:] = -100
    return Samples({"input_ids": ids[:, :-1]}, targets)


def language_checkpoint(folder: Path, kind: str = "llama", *, template: bool = True, **config: Any) -> Any:
    """A folder as `save_pretrained` writes it, with a tokenizer of these bytes' pieces, and the model that lies there."""
    tokenizer = language_tokenizer()
    torch.manual_seed(1)
    sizes = {**SIZES, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": 0, "max_position_embeddings": 128, **config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    said = {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE} if template else {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return model


def language_tokenizer() -> Tokenizer:
    return learnt_pieces(POEMS, TokenOptions(vocabulary=300))


def write_poems(folder: Path) -> Path:
    """A text file for each, in a folder."""
    folder.mkdir(parents=True)
    for number, poem in enumerate(POEMS):
        (folder / f"{number:02}.txt").write_text(poem)
    return folder
