"""The token that answers for a word on a device is the one that had the word's tag in training, whatever the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from exporter.bundle import Bundle
from selector.run.text import TextReader, of_tokens
from tests.helpers import text_bundles
from trainer.data import load_data
from trainer.tasks.checks import IGNORED

TEXTS = ("in 北京", "北京 in", "c é in", "é")
META = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁in", "▁", "北", "京", "▁c", "é")


def metaspace(scheme: str) -> Tokenizer:
    """As transformers makes those of DeBERTa: a word without a piece of its own begins with a piece of white space."""
    tokenizer = Tokenizer(models.Unigram([(piece, -float(place)) for place, piece in enumerate(META)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return tokenizer


def of_bytes(prefix: bool, trim: bool) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    return tokenizer


TOKENIZERS = {
    "metaspace": metaspace("always"),
    "metaspace-never": metaspace("never"),
    "bytes": of_bytes(prefix=False, trim=False),
    "bytes-trimmed": of_bytes(prefix=False, trim=True),
    "bytes-prefixed": of_bytes(prefix=True, trim=False),
    "bytes-prefixed-trimmed": of_bytes(prefix=True, trim=True),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundles.tags(tmp_path_factory.mktemp("bundles") / "tags").path


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_word_is_answered_for_by_the_token_that_had_its_tag(name: str, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(TOKENIZERS[name].to_str())
    (bundle / text_bundles.TOKENIZER).write_text(TOKENIZERS[name].to_str())
    encoded = TextReader(Bundle(bundle, verify=False)).encode(TEXTS)
    answering = {
        (tuple(ids), tuple(word.token for word in words)) for ids, words in zip(encoded.ids, encoded.words, strict=True)
    }
    assert [[word.text for word in words] for words in encoded.words] == [text.split() for text in TEXTS]
    rows = [{"tokens": text.split(), "tags": list("ABA"[: len(text.split())])} for text in TEXTS * 4]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_data(f"jsonl:{tmp_path / 'rows.jsonl'}", {"tokenizer": str(file), "tokens": "tokens", "tags": "tags"})
    learnt = set()
    for part in (data.train, data.validation, data.test):
        for place in range(len(part)):
            inputs, tags = part.batch(torch.tensor([place]))
            assert isinstance(tags, torch.Tensor)
            kept = (tags[0] != IGNORED).nonzero().flatten().tolist()
            learnt.add((tuple(inputs["input_ids"][0].tolist()), tuple(kept)))
    assert answering == learnt


@pytest.mark.parametrize(("kind", "tokens"), [("token-classification", True), ("classification", False)])
def test_where_texts_have_one_length_the_task_says_what_is_of_tokens(kind: str, tokens: bool, tmp_path: Path) -> None:
    """An output of as many classes as texts have tokens has the same shape."""
    bundle = text_bundles.tags(tmp_path / "tags")
    inputs = [spec.model_copy(update={"shape": ("batch", 24)}) for spec in bundle.manifest.inputs]
    outputs = [spec.model_copy(update={"shape": ("batch", 24, *spec.shape[2:])}) for spec in bundle.manifest.outputs]
    task = bundle.manifest.task.model_copy(update={"kind": kind})
    bundle.manifest = bundle.manifest.model_copy(update={"inputs": inputs, "outputs": outputs, "task": task})
    assert of_tokens(bundle) == {"logits": tokens}
