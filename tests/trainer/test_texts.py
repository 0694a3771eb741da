"""`text-folder`: what documents become, how they are split, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from exporter.run import export_run
from tests.helpers.texts import CLASSES, write_texts
from tests.helpers.user_families import TextEncoder
from trainer import NestedModel, TrainerError, fit
from trainer.data import DataSet, Samples, load_data
from trainer.families import ResNet
from trainer.making import train_run


def tokens_of(examples: Any) -> torch.Tensor:
    return examples.batch(torch.arange(len(examples))).inputs["input"]


def tokenizer_of(data: DataSet) -> Tokenizer:
    return Tokenizer.from_str(data.files["tokenizer.json"].decode())


@pytest.mark.parametrize("prefix", ["text-folder:", ""])
def test_a_folder_of_texts_becomes_token_ids(prefix: str, tmp_path: Path) -> None:
    unique = write_texts(tmp_path)
    data = load_data(f"{prefix}{tmp_path}")
    assert data.labels == tuple(data.record["class_names"]) == CLASSES
    assert (len(data.train), len(data.validation), len(data.test)) == (39, 9, 12)
    assert (data.spec.classes, data.spec.input_shape) == (3, (128,))
    assert data.preprocessing == {"input": {"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 128}}
    tokenizer = tokenizer_of(data)
    assert json.loads(data.files["tokenizer.json"])["model"]["type"] == "WordPiece"
    for part in (data.train, data.validation, data.test):
        batch = part.batch(torch.arange(len(part)))
        tokens = batch.inputs["input"]
        assert (tokens.dtype, tokens.shape) == (torch.int64, (len(part), 128))
        assert 0 <= tokens.min() <= tokens.max() < data.spec.vocabulary
        for ids, label in zip(tokens.tolist(), batch.targets.tolist(), strict=True):
            assert tokenizer.decode(ids).split()[0] == data.labels[label]
    # Only words of the training split are known as a whole: nothing was learned from the others.
    known = {word for word in unique if word in tokenizer.get_vocab()}
    assert known == {tokenizer.decode(ids).split()[-1] for ids in tokens_of(data.train).tolist()}
    assert len(known) == len(data.train)


def test_the_parts_are_those_of_the_folders(tmp_path: Path) -> None:
    unique = {
        part: write_texts(tmp_path / part, per_class=n, seed=n) for part, n in (("train", 10), ("validation", 3), ("test", 4))
    }
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 9, 12)
    assert data.record["split"] == {"train": "train/", "validation": "validation/", "test": "test/"}
    assert {word for words in unique.values() for word in words if word in tokenizer_of(data).get_vocab()} == set(
        unique["train"]
    )


def test_options_say_how_long_and_of_which_words(tmp_path: Path) -> None:
    write_texts(tmp_path, words=40)
    (tmp_path / "bread" / "0.txt").write_text("Bread " * 100)
    usual = load_data(str(tmp_path))
    options = {"max_tokens": 20, "vocabulary": 60, "lowercase": False}
    data = load_data(str(tmp_path), options)
    assert data.spec.input_shape == (20,)
    assert data.preprocessing["input"]["max_tokens"] == len(tokenizer_of(data).encode("a " * 100).ids) == 20
    assert data.spec.vocabulary == 60 < usual.spec.vocabulary
    assert data.record["options"] == options
    assert data.record["content_sha256"] != usual.record["content_sha256"]
    assert usual.spec.vocabulary == tokenizer_of(usual).get_vocab_size()
    assert tokenizer_of(usual).encode("BREAD").tokens[:2] == ["bread", "[PAD]"]
    assert tokenizer_of(data).encode("BREAD").tokens[0] != "bread"


def test_what_is_cut_empty_or_no_utf_8_is_said_and_what_is_cut_recorded(tmp_path: Path) -> None:
    write_texts(tmp_path)
    assert load_data(str(tmp_path)).notes == ()
    (tmp_path / "bread" / "0.txt").write_text("bread " * 200)
    (tmp_path / "bread" / "1.txt").write_text(" \n")
    (tmp_path / "bread" / "2.txt").write_bytes(b"caf\xe9")
    data = load_data(str(tmp_path))
    assert data.record["max_tokens"] == 128
    assert sum(data.record["truncated"].values()) == 1
    empty, broken, cut = data.notes
    assert empty == "1 of 60 texts are empty: the network sees of them padding alone."
    assert broken.startswith("1 of 60 texts hold U+FFFD")
    assert cut.startswith("1 of 60 texts are longer than max_tokens = 128 and are cut there (train ")


def test_a_run_that_did_not_record_what_is_cut_goes_on_and_can_be_exported(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", words=8)
    given: dict[str, Any] = {"grid": {}, "settings": {}, "data_options": {"max_tokens": 6}, "show_progress": False}
    source = ("tests.helpers.user_families:TextEncoder", f"text-folder:{tmp_path / 'texts'}", tmp_path / "run")
    train_run(*source, options={"epochs": 1}, **given)
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert sum(record["data"].pop("truncated").values()) == 60
    del record["data"]["max_tokens"]
    path.write_text(json.dumps(record))
    export_run(tmp_path / "run", tmp_path / "bundle")
    train_run(*source, options={"epochs": 2}, resume=True, **given)


def test_the_device_gets_no_token_that_the_model_does_not_know(tmp_path: Path) -> None:
    """The tokenizer of a run meets new documents; every id that it may give must lie below `spec.vocabulary`."""
    write_texts(tmp_path, words=150)  # the last words of every document lie behind the 128 tokens that are kept
    data = load_data(f"text-folder:{tmp_path}")
    assert max(tokenizer_of(data).get_vocab().values()) < data.spec.vocabulary


def test_the_same_texts_give_the_same_token_ids_every_time(tmp_path: Path) -> None:
    """A resumed run and the export read the texts again: other ids would mean other words than those trained on."""
    write_texts(tmp_path)
    first, *others = (load_data(f"text-folder:{tmp_path}") for _ in range(3))
    for other in others:
        assert (other.spec, other.files, other.record) == (first.spec, first.files, first.record)
        assert torch.equal(tokens_of(other.train), tokens_of(first.train))
        assert torch.equal(tokens_of(other.test), tokens_of(first.test))


def test_hidden_files_are_no_documents(tmp_path: Path) -> None:
    write_texts(tmp_path)
    before = load_data(f"text-folder:{tmp_path}").record
    (tmp_path / "bread" / ".DS_Store").write_bytes(b"\0\1")
    assert load_data(f"text-folder:{tmp_path}").record == before


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    write_texts(tmp_path)
    (tmp_path / "rivers" / "5.txt").write_bytes(b"caf\xe9")  # of another encoding: read with a replacement character
    load_data(f"text-folder:{tmp_path}")
    (tmp_path / "rivers" / "5.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    with pytest.raises(TrainerError, match=r"rivers/5\.txt': is no text; allowed are text files"):
        load_data(f"text-folder:{tmp_path}")


def test_a_folder_of_texts_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"text folder .*nothing' does not exist"):
        load_data(f"text-folder:{tmp_path / 'nothing'}")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "1.txt").write_text("one")
    with pytest.raises(TrainerError, match="1 class folders; allowed are two and more"):
        load_data(f"text-folder:{tmp_path}")
    (tmp_path / "other").mkdir()
    with pytest.raises(TrainerError, match="other': holds no file"):
        load_data(f"text-folder:{tmp_path}")
    (tmp_path / "other" / "1.txt").write_text("two")
    with pytest.raises(TrainerError, match="2 examples cannot be split by class"):
        load_data(f"text-folder:{tmp_path}")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens = 0: allowed are whole numbers from 1"),
        ("max_tokens", 12.5, "max_tokens = 12.5"),
        ("vocabulary", "many", "vocabulary = 'many'"),
        ("lowercase", 1, "lowercase = 1: allowed are true and false"),
        ("language", "en", "has no option 'language'; allowed are max_tokens, vocabulary, lowercase"),
    ],
)
def test_wrong_options_are_refused(option: str, value: Any, message: str, tmp_path: Path) -> None:
    write_texts(tmp_path)
    with pytest.raises(TrainerError, match=message):
        load_data(f"text-folder:{tmp_path}", {option: value})


# Families


def test_a_text_family_learns_from_them_and_others_refuse_them(tmp_path: Path) -> None:
    write_texts(tmp_path, words=2)
    data = load_data(f"text-folder:{tmp_path}", {"max_tokens": 8, "vocabulary": 300})
    torch.manual_seed(0)
    nested = NestedModel(TextEncoder.for_data(data.spec))
    result = fit(nested, data.train, epochs=20, batch_size=8, lr=0.1, augment=data.augment, show_progress=False)
    assert result.loss is not None
    assert result.loss < 0.7  # it begins with ln 3, about 1.1
    with pytest.raises(TrainerError, match=r"ResNet takes images \(C, H, W\); this data set has examples of shape \(8,\)"):
        ResNet.for_data(data.spec)


def test_token_ids_are_refused_by_a_model_that_takes_real_numbers(tmp_path: Path) -> None:
    class Waves(TextEncoder):
        def example_inputs(self, batch_size: int) -> dict[str, torch.Tensor]:
            return {"waves": torch.rand(batch_size, self.tokens)}

    write_texts(tmp_path)
    data = load_data(f"text-folder:{tmp_path}", {"max_tokens": 6})
    assert isinstance(data.train, Samples)
    with pytest.raises(TrainerError, match=r"training data: input 'waves' holds int64; the model takes float32"):
        fit(NestedModel(Waves(vocabulary=data.spec.vocabulary)), data.train, epochs=1, batch_size=8)
