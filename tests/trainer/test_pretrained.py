"""Texts that are read with a checkpoint's own tokenizer: ids, types, tags, what is cut, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.helpers.texts import CLASSES, WORDS, write_checkpoint, write_texts
from trainer import TrainerError
from trainer.data import DataSet, TokenExamples, load_data


def write_rows(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{file}"


def all_of(data: DataSet) -> list[tuple[list[int], Any]]:
    """Ids without padding, and targets, of all examples."""
    found = []
    for part in (data.train, data.validation, data.test):
        for index in range(len(part)):
            batch = part.batch(torch.tensor([index]))
            found.append((batch.inputs["input_ids"][0].tolist(), batch.targets[0].tolist()))  # type: ignore[index]
    return found


def tokenizer_of(data: DataSet) -> Tokenizer:
    return Tokenizer.from_str(data.files["tokenizer.json"].decode())


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_folder_of_texts_is_read_with_it(given: str, tmp_path: Path) -> None:
    texts, checkpoint = tmp_path / "texts", write_checkpoint(tmp_path / "checkpoint")
    write_texts(texts, words=3)
    (texts / "bread" / "0.txt").write_text("")
    (texts / "bread" / "1.txt").write_bytes(b"bread caf\xe9")
    data = load_data(
        f"text-folder:{texts}", {"tokenizer": str(checkpoint / "tokenizer.json" if given == "file" else checkpoint)}
    )
    assert isinstance(data.train, TokenExamples)
    batch = data.train.batch(torch.arange(len(data.train)))
    assert list(batch.inputs) == ["input_ids", "attention_mask"]
    assert batch.inputs["input_ids"].shape[1] == data.train.lengths.max() == 7  # [CLS], a class, three words, an unknown, [SEP]
    assert ([2, 3], 0) in all_of(data)  # the empty text
    assert data.spec.vocabulary == 4 + len(WORDS)
    assert (data.spec.input_shape, data.spec.classes) == ((64,), 3)
    assert data.spec.inputs == {"input_ids": (64,), "attention_mask": (64,)}
    assert data.preprocessing == {
        "input_ids": {
            "kind": "text",
            "tokenizer": "tokenizer.json",
            "max_tokens": 64,
            "mask": "attention_mask",
            "types": None,
            "padding": "longest",
            "pad_id": 0,
            "pair": False,
        }
    }
    assert data.labels == CLASSES
    assert data.augment is None
    assert data.record["truncated"] == {"train": 0, "validation": 0, "test": 0}
    again = load_data(data.record["name"], data.record["options"])
    assert again.record == data.record == json.loads(json.dumps(data.record))
    both = tokenizer_of(data).encode_batch(["bread", "rivers and the stars"])  # a device with the library alone does the same
    assert [encoding.attention_mask for encoding in both] == [[1, 1, 1, 0, 0, 0], [1] * 6]


@pytest.mark.parametrize(
    ("kind", "types"), [("bert", "token_type_ids"), ("roberta", None), ("distilbert", None), ("alone", "token_type_ids")]
)
def test_pairs_have_types_where_the_model_looks_at_them(kind: str, types: str | None, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", kind=kind)
    if kind == "alone":  # the tokenizer alone: as it gives them
        (checkpoint / "config.json").unlink()
    rows = [{"text": f"bread {'and ' * i}", "other": "the stars", "label": "ab"[i % 2]} for i in range(20)]
    data = load_data(write_rows(tmp_path / "rows.jsonl", rows), {"tokenizer": str(checkpoint), "text_pair": "other"})
    batch = data.train.batch(torch.arange(3))
    assert list(batch.inputs) == list(data.spec.inputs) == ["input_ids", "attention_mask", *([types] if types else [])]
    about = data.preprocessing["input_ids"]
    assert (about["pair"], about["types"], about["pad_id"]) == (True, types, 1 if kind == "roberta" else 0)
    tokenizer = tokenizer_of(data)
    tokenizer.no_padding()
    wanted = tokenizer.encode("bread ", "the stars").ids  # each with its own end, and <s> one </s></s> other </s>
    assert wanted in [ids for ids, _ in all_of(data)]
    assert wanted.count(2 if kind == "roberta" else 3) == (3 if kind == "roberta" else 2)
    if types:
        kinds, mask = batch.inputs["token_type_ids"], batch.inputs["attention_mask"]
        assert (kinds.sum(dim=1) == 3).all()  # the, stars, [SEP]
        assert (kinds[mask == 0] == 0).all()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pair", [False, True])
def test_ids_are_those_of_transformers(kind: str, pair: bool, tmp_path: Path) -> None:
    """Cut ones too."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", kind=kind)
    rows = [{"text": "bread " * i + "and the rivers", "two": "stars of " * (9 - i), "label": i % 2} for i in range(20)]
    options = {"tokenizer": str(checkpoint), "max_tokens": 12, **({"text_pair": "two"} if pair else {})}
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json"), pad_token=["[PAD]", "<pad>"][kind != "bert"]
    )
    given = [[row[name] for row in rows] for name in (("text", "two") if pair else ("text",))]
    wanted = theirs(*given, truncation=True, max_length=12)["input_ids"]
    assert sorted(ids for ids, _ in all_of(load_data(write_rows(tmp_path / "rows.jsonl", rows), options))) == sorted(wanted)


def test_columns_of_hugging_face_are_pairs_and_tags_where_asked_for(tmp_path: Path) -> None:
    columns = {"one": ["bread"] * 20, "two": ["the stars"] * 20, "label": [i % 2 for i in range(20)]}
    lists = {"words": [["a", "b"]] * 20, "numbers": [[0, 1]] * 20}
    Dataset.from_dict({**columns, **lists}).save_to_disk(tmp_path / "saved")
    given, read = f"hf:{tmp_path / 'saved'}", {"tokenizer": str(write_checkpoint(tmp_path / "checkpoint"))}
    data = load_data(given, {**read, "text": "one", "text_pair": "two"})
    (ids,) = {tuple(ids) for ids, _ in all_of(data)}
    assert list(ids) == tokenizer_of(data).encode("bread", "the stars").ids
    assert data.record["columns"] == {"inputs": ["one", "two"], "label": "label"}
    assert (data.preprocessing["input_ids"]["pair"], data.spec.classes) == (True, 2)
    numbered = load_data(given, {**read, "tokens": "words", "tags": "numbers"})
    assert (numbered.spec.classes, numbered.labels) == (2, ())
    for options, message in (
        ({"text": "one", "text_pair": "three"}, "text_pair = 'three': allowed are columns of texts: one, two"),
        ({"text_pair": "two", "input": "words"}, "input = 'words': 'words' holds"),
        ({"tokens": "words"}, "tags is missing; allowed are tokens and tags together"),
        ({"tokens": "one", "tags": "numbers"}, "tokens = 'one': holds string; allowed are lists of words"),
        ({"tokens": "words", "tags": "label"}, "row 0: tags are 0; allowed is a list of names or numbers"),
        ({"tokens": "words", "tags": "none"}, "tags = 'none': allowed are its columns one, two"),
    ):
        with pytest.raises(TrainerError, match=message):
            load_data(given, {**read, **options})


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("source", ["jsonl", "csv", "hf"])
def test_the_first_piece_of_a_word_has_its_tag(kind: str, source: str, tmp_path: Path) -> None:
    words, tags = ["EU", "rejects", "abc", ".", "calls"], ["B", "O", "I", "O", "B"]
    others = {"tokens": ["the", "a"], "tags": ["O", "I"]}
    rows: list[dict[str, Any]] = [{"tokens": words, "tags": tags}, *[others] * 9]
    options: dict[str, Any] = {"tokenizer": str(write_checkpoint(tmp_path / "checkpoint", kind=kind))}
    if source == "jsonl":
        given = write_rows(tmp_path / "rows.jsonl", rows)
    elif source == "csv":  # lists as JSON, or parted by spaces
        written = [json.dumps(words).replace('"', '""'), "B O I O B"], *[["the a", "O I"]] * 9
        (tmp_path / "rows.csv").write_text("tokens,tags\n" + "".join(f'"{w}",{t}\n' for w, t in written))
        given = f"csv:{tmp_path / 'rows.csv'}"
    else:
        numbered = [{"tokens": row["tokens"], "tags": ["BIO".index(tag) for tag in row["tags"]]} for row in rows]
        features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["B", "I", "O"]))})
        Dataset.from_list(numbered, features=features).save_to_disk(tmp_path / "saved")
        given, options = f"hf:{tmp_path / 'saved'}", {**options, "tokens": "tokens", "tags": "tags"}
    data = load_data(given, options)
    assert (data.labels, data.spec.classes) == (("B", "I", "O"), 3)
    (found,) = [(ids, targets) for ids, targets in all_of(data) if len(ids) > 8]
    encoding = tokenizer_of(data).encode("EU rejects abc . calls")
    assert found[0] == encoding.ids  # those that a device gets for the text
    if kind == "bert":  # abc is a ##b ##c, calls is call ##s
        assert found[1] == [-100, 0, 2, 1, -100, -100, 2, 0, -100, -100]
    else:
        letters = [(place, target) for place, target in enumerate(found[1]) if target != -100]
        pieces = {encoding.tokens[place]: target for place, target in letters}
        assert pieces == {"E": 0, "r": 2, "a": 1, ".": 2, "c": 0}  # a space before a word is a piece of none
    batch = data.train.batch(torch.arange(len(data.train)))
    assert batch.targets.shape == batch.inputs["input_ids"].shape  # type: ignore[union-attr]


def test_what_is_cut_is_said_and_recorded(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    rows = [{"text": "bread " * (500 if i == 3 else 2), "label": i % 2} for i in range(20)]
    given = write_rows(tmp_path / "rows.jsonl", rows)
    data = load_data(given, {"tokenizer": str(checkpoint)})
    assert sum(data.record["truncated"].values()) == 1
    assert data.record["max_tokens"] == 64
    assert max(len(ids) for ids, _ in all_of(data)) == 64
    (note,) = data.notes
    assert note.startswith("1 of 20 texts are longer than max_tokens = 64 and are cut there (train ")
    shorter = load_data(given, {"tokenizer": str(checkpoint), "max_tokens": 4})
    assert {len(ids) for ids, _ in all_of(shorter)} == {4}
    assert shorter.preprocessing["input_ids"]["max_tokens"] == len(tokenizer_of(shorter).encode("bread " * 9).ids) == 4
    assert load_data(given, {"tokenizer": str(checkpoint), "max_tokens": 3}).record["truncated"] != data.record["truncated"]


@pytest.mark.parametrize(
    ("kind", "config", "most"),
    [
        ("bert", {}, 64),
        ("roberta", {}, 62),
        ("xlm-roberta", {"pad_token_id": 1}, 62),
        ("bert", {"max_position_embeddings": 9999}, 512),
    ],
)
def test_no_more_tokens_than_positions(kind: str, config: Any, most: int, tmp_path: Path) -> None:
    """RoBERTa counts positions from behind the padding's id; 512 is the most where nobody asks for more."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", kind=kind, **config)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "bread", "label": i % 2} for i in range(20)])
    assert load_data(rows, {"tokenizer": str(checkpoint)}).spec.input_shape == (most,)
    if most < 512:
        with pytest.raises(
            TrainerError, match=f"max_tokens = 65: the checkpoint has {most} positions; allowed are 1 to {most}"
        ):
            load_data(rows, {"tokenizer": str(checkpoint), "max_tokens": 65})
    with pytest.raises(TrainerError, match="max_tokens = 2: the tokenizer adds 2 to every text; allowed are 3 and more"):
        load_data(rows, {"tokenizer": str(checkpoint), "max_tokens": 2})
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
    assert load_data(rows, {"tokenizer": str(checkpoint)}).spec.input_shape == (40,)


def test_classes_are_in_the_order_of_the_checkpoints_labels(tmp_path: Path) -> None:
    """Its head has learnt them in that order. Other names are said."""
    rows = [{"text": ["bread", "rivers"][i % 2], "label": ["bad", "good"][i % 2]} for i in range(20)]
    given = write_rows(tmp_path / "rows.jsonl", rows)

    def read(*labels: str) -> DataSet:
        names = {str(number): label for number, label in enumerate(labels)}
        return load_data(given, {"tokenizer": str(write_checkpoint(tmp_path / "checkpoint", id2label=names))})

    usual, turned, renamed, fewer = read("LABEL_0", "LABEL_1"), read("good", "bad"), read("no", "yes"), read("a", "b", "c")
    assert (usual.labels, usual.notes) == (("bad", "good"), ())
    assert turned.labels == tuple(turned.record["class_names"]) == ("good", "bad")
    for data in (usual, turned):
        word = {ids[1]: data.labels[target] for ids, target in all_of(data)}
        assert word == {4 + WORDS.index("bread"): "bad", 4 + WORDS.index("rivers"): "good"}
    assert turned.notes == ("The classes are in the order of the checkpoint's id2label: good, bad.",)
    assert renamed.labels == ("bad", "good")
    assert renamed.notes[0].startswith("The classes are bad, good; the checkpoint's id2label has no, yes: its head begins with")
    assert fewer.notes[0].endswith("has a, b, c: its head is begun anew.")


def test_pairs_and_unlabelled_texts_without_a_checkpoint(tmp_path: Path) -> None:
    """A vocabulary is learnt that tells the two apart; of what has no label nothing is a target."""
    rows = [{"text": f"bread {i}", "other": "the stars"} for i in range(20)]
    given = write_rows(tmp_path / "rows.jsonl", rows)
    data = load_data(given, {"tokenizer": "learn", "text_pair": "other", "vocabulary": 60})
    assert list(data.train.batch(torch.arange(2)).inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    targets = data.train.batch(torch.arange(2)).targets
    assert isinstance(targets, torch.Tensor)
    assert (targets.shape, targets.is_floating_point()) == ((2, 0), False)
    assert data.notes == ("The texts have no labels: that is for tasks that need none, such as embedding.",)
    assert (data.spec.classes, data.spec.outputs, data.spec.vocabulary) == (0, 0, tokenizer_of(data).get_vocab_size())
    assert tokenizer_of(data).encode("bread", "the stars").tokens == ["[CLS]", "bread", "[SEP]", "the", "stars", "[SEP]"]
    assert load_data(given, {"tokenizer": "learn", "text_pair": "other", "vocabulary": 60}).record == data.record
    for options, message in (
        ({"text_pair": "other"}, "tokenizer: pairs of texts and words with tags need one"),
        ({}, "no column of labels; allowed with tokenizer="),
    ):
        with pytest.raises(TrainerError, match=message):
            load_data(given, options)


def test_a_half_of_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    rows = [{"text": f"bread \ud83d {i}", "label": i % 2} for i in range(20)]
    data = load_data(write_rows(tmp_path / "rows.jsonl", rows), {"tokenizer": str(write_checkpoint(tmp_path / "checkpoint"))})
    assert {ids[2] for ids, _ in all_of(data)} == {1}
    (note,) = data.notes
    assert note.startswith("20 of 20 texts hold U+FFFD, which stands for bytes that are no UTF-8, such as 'bread \ufffd ")


def test_empty_texts_and_bytes_that_are_no_utf_8_are_counted(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    for number, content in enumerate((b"", b" \n", b"caf\xe9 bread")):
        (tmp_path / "texts" / "bread" / f"{number}.txt").write_bytes(content)
    data = load_data(f"text-folder:{tmp_path / 'texts'}", {"tokenizer": str(write_checkpoint(tmp_path / "checkpoint"))})
    assert data.notes[-2].startswith("2 of 60 texts are empty: ")
    assert data.notes[-1] == "1 of 60 texts hold U+FFFD, which stands for bytes that are no UTF-8, such as 'caf\ufffd bread'."


def test_a_tokenizer_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    given = write_rows(tmp_path / "rows.jsonl", [{"text": "bread", "label": i % 2} for i in range(20)])
    small = write_checkpoint(tmp_path / "small", vocab_size=10)
    older, damaged = tmp_path / "older", tmp_path / "tokenizer.json"
    older.mkdir()
    (older / "vocab.txt").write_text("[PAD]")
    damaged.write_text("{}")
    for place, message in (
        (small, rf"its vocabulary has {4 + len(WORDS)} tokens, the embedding of the checkpoint beside it 10: it belongs to"),
        (older, r"a folder with vocab\.txt, without tokenizer\.json; transformers writes it: AutoTokenizer"),
        (damaged, "cannot be read as a tokenizer"),
        (tmp_path / "nowhere", "there is no such file or folder"),
    ):
        with pytest.raises(TrainerError, match=message):
            load_data(given, {"tokenizer": str(place)})
    for options, message in (
        ({"tokenizer": 5}, "tokenizer = 5: allowed are a checkpoint's folder"),
        ({"tokenizer": str(small), "lowercase": False}, "lowercase = False: allowed where a vocabulary is learnt"),
    ):
        with pytest.raises(TrainerError, match=message):
            load_data(given, options)


def test_a_text_without_a_token_is_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    (checkpoint / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    rows = [{"text": "" if i == 4 else "bread", "label": i % 2} for i in range(20)]
    with pytest.raises(TrainerError, match=r"rows\.jsonl, line 5: the tokenizer gives no token for it"):
        load_data(write_rows(tmp_path / "rows.jsonl", rows), {"tokenizer": str(checkpoint)})
