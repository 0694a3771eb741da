"""Folders of small texts, as people have them, and a checkpoint's folder with a tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CLASSES = ("bread", "rivers", "stars")


def write_texts(folder: Path, *, per_class: int = 20, words: int = 6, seed: int = 0) -> dict[str, str]:
    """Three classes; each document ends with a word that no other has. Returns that word's document."""
    source = random.Random(seed)
    unique = {}
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for i in range(per_class):
            word = "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=9))
            text = " ".join([label, *source.choices(["and", "the", "of", "with"], k=words), word])
            (folder / label / f"{i}.txt").write_text(text)
            unique[word] = text
    return unique


WORDS = (*CLASSES, "and", "the", "of", "with", "a", "b", "c", "##a", "##b", "##c", "eu", "rejects", "call", "##s", ".", "-")


def write_checkpoint(folder: Path, *, kind: str = "bert", words: Sequence[str] = WORDS, **config: Any) -> Path:
    """What a checkpoint's folder holds beside weights: `tokenizer.json` and `config.json`, with these fields too.

    The tokenizer of a RoBERTa takes bytes, any other's pieces of words. Both come with a truncation and a padding of their own,
    as those that are saved after a training do.
    """
    tokenizer, marks = _roberta() if kind == "roberta" else _bert(words)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    size = tokenizer.get_vocab_size()
    usual: dict[str, Any] = {"model_type": kind, "vocab_size": size, "max_position_embeddings": 64, "pad_token_id": marks}
    usual |= {"type_vocab_size": 2} if kind == "bert" else {"type_vocab_size": 1} if kind == "roberta" else {}
    (folder / "config.json").write_text(json.dumps({**usual, **config}))
    return folder


def _bert(words: Sequence[str]) -> tuple[Tokenizer, int]:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(names[:4])
    return tokenizer, 0


def _roberta() -> tuple[Tokenizer, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "<pad>", "</s>", "<unk>", *letters]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    tokenizer.add_special_tokens(names[:4])
    return tokenizer, 1
