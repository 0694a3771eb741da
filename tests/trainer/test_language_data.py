"""Texts for language models: packed, or conversations; from a folder, rows, a checkpoint's folder or GGUF."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from exporter.run import _measured
from tests.helpers.language import POEMS, language_checkpoint, write_poems
from trainer import TrainerError
from trainer.data import load_data
from trainer.data.token_examples import Packed
from trainer.making import train_run
from trainer.run import load_run
from trainer.start import Start
from trainer.tasks.checks import IGNORED

LATER = {"next_token": True}


def rows(path: Path, *objects: Any) -> str:
    path.write_text("\n".join(json.dumps(one) for one in objects))
    return f"jsonl:{path}"


def test_documents_are_packed_and_none_is_in_two_parts(tmp_path: Path) -> None:
    language_checkpoint(tmp_path / "checkpoint")
    write_poems(tmp_path / "poems" / "deep")
    data = load_data(
        f"text-folder:{tmp_path / 'poems'}", {**LATER, "tokenizer": str(tmp_path / "checkpoint"), "max_tokens": 16}
    )
    tokenizer = Tokenizer.from_str(data.files["tokenizer.json"].decode())
    found = []
    for part in (data.train, data.validation, data.test):
        assert isinstance(part, Packed)
        batch = part.batch(torch.arange(len(part)))
        ids, targets = batch.inputs["input_ids"], batch.targets
        assert isinstance(targets, torch.Tensor)
        assert ids.shape[1] == 16
        assert torch.equal(ids[:, 1:][targets[:, 1:] != IGNORED], targets[:, :-1][targets[:, 1:] != IGNORED])
        whole = [int(ids[0, 0]), *targets[targets != IGNORED].tolist()]
        documents = tokenizer.decode(whole, skip_special_tokens=False).split("<|endoftext|>")
        assert documents.pop() == ""
        assert data.record["tokens"]
        found.append(documents)
    assert sorted(poem for documents in found for poem in documents) == sorted(POEMS)
    assert all(len(documents) >= 4 for documents in found)
    assert data.spec.next_token
    assert data.preprocessing["input_ids"]["eos_ids"] == [0]
    assert data.files["chat_template.jinja"]


def test_documents_that_are_no_utf_8_are_said(tmp_path: Path) -> None:
    write_poems(tmp_path / "poems")
    next(path for path in sorted((tmp_path / "poems").rglob("*")) if path.is_file()).write_bytes(
        b"caf\xe9 and the bread of many rivers"
    )
    (note,) = load_data(f"text-folder:{tmp_path / 'poems'}", LATER).notes
    assert "texts hold U+FFFD, which stands for bytes that are no UTF-8, such as 'caf" in note


def write_parts(root: Path) -> None:
    """Ten documents for training and as many for each other part."""
    for folder in ("train", "val", "test"):
        (root / folder / "deep").mkdir(parents=True)
        for i in range(10):
            (root / folder / "deep" / f"{i}.txt").write_text(f"the bread of {folder} number {i}")


def test_hidden_copies_of_documents_are_left_out_and_loose_ones_are_named(tmp_path: Path) -> None:
    write_parts(tmp_path)
    before = load_data(f"text-folder:{tmp_path}", LATER)
    assert before.notes == ()
    shutil.copytree(tmp_path / "test" / "deep", tmp_path / "train" / ".ipynb_checkpoints")
    shutil.copytree(tmp_path / "test" / "deep", tmp_path / "train" / "deep" / ".git" / "refs")
    (tmp_path / "loose.txt").write_text("the river")
    after = load_data(f"text-folder:{tmp_path}", LATER)
    assert after.record == before.record
    assert [note.partition(":")[0] for note in after.notes] == ["loose.txt beside train/ are not read"]


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("books", "has books/ beside train/; allowed are train, validation and test"),
        ("valid", "has val/ and valid/; allowed is one validation part"),
    ],
)
def test_folders_of_documents_that_are_of_no_part_are_refused(beside: str, message: str, tmp_path: Path) -> None:
    write_parts(tmp_path)
    shutil.copytree(tmp_path / "val", tmp_path / beside)
    with pytest.raises(TrainerError, match=message):
        load_data(f"text-folder:{tmp_path}", LATER)


def test_a_document_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (tmp_path / "train" / "deep" / "far.txt").symlink_to("../annex/far")
    with pytest.raises(TrainerError, match=r"far\.txt': is a link to '\.\./annex/far', where nothing is"):
        load_data(f"text-folder:{tmp_path}", LATER)


@pytest.mark.parametrize("form", ["prompt", "messages", "plain"])
def test_of_conversations_the_answers_alone_are_learnt(form: str, tmp_path: Path) -> None:
    language_checkpoint(tmp_path / "checkpoint", template=form != "plain")
    turns = [("sun?", " rose"), ("moon?", " fell again"), ("sea?", " was"), ("star?", " rose, and fell")] * 3
    options: dict[str, Any] = {**LATER, "tokenizer": str(tmp_path / "checkpoint")}
    if form == "messages":
        options["messages"] = "chat"
        objects: list[Any] = [
            {"chat": [{"role": r, "content": c} for turn in (a, b) for r, c in zip(("user", "assistant"), turn, strict=True)]}
            for a, b in pairwise(turns)
        ]
    else:
        options |= {"prompt": "q", "answer": "a"}
        objects = [{"q": q, "a": a} for q, a in turns]
    data = load_data(rows(tmp_path / "rows.jsonl", *objects), options)
    tokenizer = Tokenizer.from_str(data.files["tokenizer.json"].decode())
    batch = data.train.batch(torch.arange(len(data.train)))
    targets = batch.targets
    assert isinstance(targets, torch.Tensor)
    assert list(batch.inputs) == ["input_ids"]
    answers = {a for _, a in turns}
    for row, ids in zip(targets, batch.inputs["input_ids"], strict=True):
        learnt = tokenizer.decode(row[row != IGNORED].tolist(), skip_special_tokens=False)
        if form == "plain":
            assert learnt.removesuffix("<|endoftext|>") in answers
        elif form == "prompt":
            assert learnt.removesuffix(".") in answers
        else:
            first, second, rest = learnt.split(".")
            assert {first, second} <= answers
            assert rest == ""
        assert "?" in tokenizer.decode(ids.tolist())


def test_answers_that_the_template_writes_otherwise_later_are_counted(tmp_path: Path) -> None:
    """As one that writes what was thought before the last answer alone."""
    template = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' and loop.last %} {{ strftime_now('%Y')[:0] }}think"
        "{% endif %}{{ m.content }}.{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    language_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "chat_template.jinja").write_text(template)
    turns = [{"role": r, "content": c} for r, c in (("user", "sun?"), ("assistant", " rose")) * 2]
    options = {**LATER, "tokenizer": str(tmp_path / "checkpoint"), "messages": "chat"}
    data = load_data(rows(tmp_path / "rows.jsonl", *[{"chat": turns}] * 6), options)
    assert data.notes == ("6 answers are not learnt: the chat template writes them otherwise once they are not the last.",)


def test_the_end_that_a_tokenizer_writes_itself_is_learnt_once(tmp_path: Path) -> None:
    language_checkpoint(tmp_path / "checkpoint", template=False)
    file = tmp_path / "checkpoint" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.save(str(file))
    options = {**LATER, "tokenizer": str(tmp_path / "checkpoint"), "prompt": "q", "answer": "a"}
    data = load_data(rows(tmp_path / "rows.jsonl", *[{"q": "sun?", "a": " rose"}] * 6), options)
    batch = data.train.batch(torch.arange(1))
    assert isinstance(batch.targets, torch.Tensor)
    assert [*batch.inputs["input_ids"][0].tolist(), int(batch.targets[0, -1])].count(0) == 1
    assert int(batch.targets[0, -1]) == 0


def test_pieces_are_learnt_from_the_training_part_of_conversations(tmp_path: Path) -> None:
    told = [{"q": "sun?", "a": " rose \ud800"}] * 8
    later = rows(tmp_path / "later.jsonl", *[{"q": "zzyzx zzyzx?", "a": " zzyzx"}] * 4).removeprefix("jsonl:")
    options = {**LATER, "tokenizer": "learn", "prompt": "q", "answer": "a", "validation": later, "test": later}
    data = load_data(rows(tmp_path / "rows.jsonl", *told), options)
    pieces = Tokenizer.from_str(data.files["tokenizer.json"].decode()).get_vocab()
    assert "rose" in str(pieces)
    assert "zzy" not in str(pieces)


CHAT = [{"chat": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 5


@pytest.mark.parametrize(
    ("objects", "options", "message"),
    [
        ([{"q": "a", "a": "b"}] * 4, {**LATER, "prompt": "q"}, "prompt given; allowed are prompt with answer, or messages"),
        ([{"q": "a", "a": "b"}] * 4, {"prompt": "q", "answer": "a"}, "allowed with --task language-modelling"),
        ([{"q": "a", "a": 3}] * 4, {**LATER, "prompt": "q", "answer": "a"}, "line 1: 'a' holds a int; allowed are texts"),
        ([{"chat": "hello"}] * 4, {**LATER, "messages": "chat"}, "line 1: messages: a str; allowed is a list"),
        ([{"chat": [{"role": "user"}]}] * 4, {**LATER, "messages": "chat"}, "message 0 is .*; allowed are role and content"),
        ([{"chat": CHAT[0]["chat"][:1]}] * 4, {**LATER, "messages": "chat"}, "no message has the role 'assistant'"),
        (CHAT, {**LATER, "messages": "chat", "max_tokens": 129}, "the checkpoint has 128 positions"),
        ([{"text": "a", "other": "b"}] * 4, {**LATER, "text_pair": "other"}, "pairs and tags are nothing that follows"),
        ([{"text": "a"}] * 4, {"next_token": 1}, "next_token = 1: allowed are true and false"),
    ],
)
def test_rows_that_say_nothing_to_learn_are_refused(
    objects: list[Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    language_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(TrainerError, match=message):
        load_data(rows(tmp_path / "rows.jsonl", *objects), {"tokenizer": str(tmp_path / "checkpoint"), **options})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "chat template: cannot be read"),
        ("{{ raise_exception('no system here') }}", "chat template: TemplateError: no system here"),
        ("{{ ''.__class__.__mro__ }}", "chat template: SecurityError"),
        ("{% import 'os' as os %}", "chat template"),
        ("{{ messages | length }}", "writes no answer behind what it asks with"),
    ],
)
def test_a_template_that_does_wrong_is_refused(template: str, message: str, tmp_path: Path) -> None:
    language_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "chat_template.jinja").write_text(template)
    options = {**LATER, "tokenizer": str(tmp_path / "checkpoint"), "messages": "chat"}
    with pytest.raises(TrainerError, match=message):
        load_data(rows(tmp_path / "rows.jsonl", *CHAT), options)


def test_from_a_checkpoint_to_a_run_that_knows_how_to_write_and_that_a_run_begins_with(tmp_path: Path) -> None:
    language_checkpoint(tmp_path / "checkpoint")
    source, said = f"text-folder:{write_poems(tmp_path / 'poems')}", list[str]()
    given: dict[str, Any] = {"grid": {"num_hidden_layers": [1, 2], "num_attention_heads": [6], "intermediate_size": [16]}}
    given |= {"settings": {}, "show_progress": False, "say": said.append, "data_options": {"max_tokens": 12}}
    options = {"epochs": 1, "accelerator": "cpu", "update": "depths", "guard": 1.0, "micro_batches": 2, "recompute": True}
    run = tmp_path / "run"
    results = train_run(
        "llama", source, run, options=options, task_settings={"positions": 5}, start=Start(tmp_path / "checkpoint"), **given
    )
    assert results["task"] == "language-modelling"
    assert not any("begun anew" in line for line in said)
    assert all("agreement" in score["metrics"] for score in results["test"].values())
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["options"]["next_token"] is True
    assert record["task"]["config"] == {"positions": 5}
    assert record["options"]["lr"] == 5e-5
    assert (run / "files" / "chat_template.jinja").is_file()
    assert load_data(source, {**LATER, "tokenizer": str(run)}).record["max_tokens"] == 12  # not as many as there are positions
    others = _measured(load_run(run), f"text-folder:{write_poems(tmp_path / 'others')}", run).data
    assert others is not None
    assert others.record["max_tokens"] == 12
    assert load_run(run).nested.outputs({"input_ids": torch.tensor([[5, 6]])})["logits"].shape[:2] == (1, 2)
    again = train_run(
        "llama", source, tmp_path / "again", options={"epochs": 1, "accelerator": "cpu"}, start=Start(run), **given
    )
    assert again["steps"] > 0
    assert (tmp_path / "again" / "files" / "chat_template.jinja").is_file()


def test_without_a_checkpoint_pieces_of_bytes_are_learnt(tmp_path: Path) -> None:
    data = load_data(f"text-folder:{write_poems(tmp_path / 'poems')}", {**LATER, "vocabulary": 300, "max_tokens": 12})
    tokenizer = Tokenizer.from_str(data.files["tokenizer.json"].decode())
    text = "Ünknown wörds, 漢字 \t and\nlines"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert data.spec.vocabulary == tokenizer.get_vocab_size() <= 300
