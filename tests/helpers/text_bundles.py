"""Bundles of small encoders that take texts: a hand-written vocabulary, random weights, nothing downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from exporter import export
from exporter.bundle import Bundle
from tests.helpers.hugging_face import HEAD, Bert
from trainer import NestedModel, SubModel
from trainer.tasks import Classification, TokenClassification

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "bread", "river", "star", "##s", "the", "and", "of", ".", "wide", "##r")
LABELS = ("bread", "rivers", "stars")
TAGS = ("O", "B-THING", "I-THING")
MAX_TOKENS = 16
TOKENIZER = "tokenizer.json"


def tokenizer_file(special: bool = True, **padding: int) -> bytes:
    """A BERT tokenizer over PIECES. `padding`: what the file itself says, to no effect."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    if padding:
        tokenizer.enable_padding(**padding)
        tokenizer.enable_truncation(3)
    return tokenizer.to_str().encode()


def preprocessing(**fields: Any) -> dict[str, Any]:
    usual = {"kind": "text", "tokenizer": TOKENIZER, "max_tokens": MAX_TOKENS, "mask": "attention_mask", "padding": "longest"}
    return {**usual, **fields}


class Small(Bert):
    def __init__(self, vocabulary: int = len(PIECES), layers: Sequence[int] = (1, 2), **options: Any) -> None:
        super().__init__(vocabulary, layers, **{"heads": (2,), "intermediate": (16,), **options})


class Pairs(Small):
    dynamic_axes = {**Bert.dynamic_axes, "token_type_ids": {0: "batch", 1: "sequence"}}  # noqa: RUF012

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        inputs = super().example_inputs(batch_size)
        types = (inputs["input_ids"] * 0) + (inputs["input_ids"] % 2)
        return {**inputs, "token_type_ids": types}


class Tags(Small):
    task = TokenClassification()

    def build(self, sub: SubModel) -> nn.Module:
        heads = sub["heads"]
        assert isinstance(heads, int)
        own: dict[str, Any] = {"hidden_size": heads * HEAD, "num_labels": len(TAGS), "hidden_dropout_prob": 0.0}
        module: nn.Module = BertForTokenClassification(BertConfig(**self.sizes(sub), **own))
        return module


@dataclass(frozen=True)
class Spans(Classification):
    """As much of question answering as an export needs."""

    kind: ClassVar[str] = "question-answering"
    metric: ClassVar[str] = "exact_match"
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {  # type: ignore[misc]
        name: {0: "batch", 1: "sequence"} for name in ("start_logits", "end_logits")
    }


class Questions(Pairs):
    task = Spans()

    def build(self, sub: SubModel) -> nn.Module:
        heads = sub["heads"]
        assert isinstance(heads, int)
        module: nn.Module = BertForQuestionAnswering(BertConfig(**self.sizes(sub), hidden_size=heads * HEAD))
        return module


def write(path: Path, family: Bert, spec: dict[str, Any], labels: Sequence[str], tokenizer: bytes | None = None) -> Bundle:
    """Random weights, large enough that answers differ clearly."""
    import torch

    torch.manual_seed(0)
    nested = NestedModel(family).eval()
    with torch.no_grad():
        for parameter in nested.full.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    files = {TOKENIZER: tokenizer_file() if tokenizer is None else tokenizer}
    return export(nested, path, labels=labels, files=files, preprocessing={"input_ids": spec}, show_progress=False)


def sentences(path: Path, **fields: Any) -> Bundle:
    """Classifies a text."""
    return write(path, Small(), preprocessing(**fields), LABELS)


def pairs(path: Path) -> Bundle:
    """Classifies a pair of texts."""
    return write(path, Pairs(), preprocessing(pair=True, types="token_type_ids"), LABELS)


def questions(path: Path) -> Bundle:
    """Finds the part of the second text that answers the first."""
    return write(path, Questions(layers=(1,)), preprocessing(pair=True, types="token_type_ids"), ())


def tags(path: Path) -> Bundle:
    """Classifies each word of a text."""
    return write(path, Tags(), preprocessing(), TAGS)
