"""A training from a checkpoint's folder reads texts with the tokenizer in it; the bundle carries that one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from exporter.run import export_run
from sortednet.validation import validation
from tests.helpers.hugging_face import TextBert
from tests.helpers.texts import WORDS, write_checkpoint, write_texts
from trainer import DataSpec, TrainerError
from trainer.data import load_data
from trainer.families import Bert
from trainer.making import train_run
from trainer.parsing import parse_settings
from trainer.run import load_run
from trainer.start import Start, check_tokenizer, checkpoint_of, data_options_of, data_spec, teacher_of, with_checkpoint
from trainer.weights import Weights, preprocessing_of

SIZE = 4 + len(WORDS)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """With weights, as `save_pretrained` writes them."""
    family = TextBert(SIZE)
    folder = tmp_path / "checkpoint"
    family.build(family.largest).save_pretrained(folder)  # type: ignore[operator]
    return write_checkpoint(folder)


def train(folder: Path, texts: Path, checkpoint: Path, said: list[str], **others: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"data_options": {"max_tokens": 6}, "resume": False, **others}
    return train_run(
        "tests.helpers.hugging_face:TextBert",
        f"text-folder:{texts}",
        folder,
        grid={},
        settings={"layers": [1, 2], "heads": [4], "intermediate": [16, 32]},
        options={"epochs": 1, "batch_size": 8, "accelerator": "cpu", "optimizer": "adamw", "lr": 0.01},
        start=Start(checkpoint, "none", "none"),
        show_progress=False,
        say=said.append,
        **given,
    )


def test_from_a_checkpoint_to_a_bundle(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts")
    said: list[str] = []
    results = train(tmp_path / "run", tmp_path / "texts", Path("checkpoint"), said)
    assert any("60 of 60 texts are longer than max_tokens = 6 and are cut there" in line for line in said)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["options"] == {"max_tokens": 6, "tokenizer": "checkpoint"}
    assert sum(record["data"]["truncated"].values()) == 60
    monkeypatch.chdir("/")  # what is relative is looked for where the run was begun
    bundle = export_run(tmp_path / "run", tmp_path / "bundle")
    assert bundle.manifest.preprocessing["input_ids"]["mask"] == "attention_mask"
    scored = {sub.id: sub.accuracy for sub in bundle.manifest.submodels}
    assert scored == {name: pytest.approx(one["quality"], abs=1e-6) for name, one in results["test"].items()}
    tokenizer = Tokenizer.from_file(str(tmp_path / "bundle" / "tokenizer.json"))
    both = tokenizer.encode_batch(["bread", "stars and the rivers with bread"])
    feed = {"input_ids": [e.ids for e in both], "attention_mask": [e.attention_mask for e in both]}
    (largest,) = [sub for sub in bundle.manifest.submodels if sub.id == results["largest"]]
    session = ort.InferenceSession(tmp_path / "bundle" / largest.graph)
    (logits,) = session.run(None, {name: np.array(value, dtype=np.int64) for name, value in feed.items()})
    assert np.asarray(logits).shape == (2, 3)

    # Where other texts are asked for, or the checkpoint is gone, the run and the bundle have what reads them.
    write_texts(tmp_path / "others", per_class=30, seed=1)
    (tmp_path / "checkpoint").rename(tmp_path / "gone")
    source = f"text-folder:{tmp_path / 'others'}"
    for place in (tmp_path / "run", tmp_path / "bundle"):
        again = load_data(source, data_options_of(None, source, {}, place))
        assert again.files == {"tokenizer.json": (tmp_path / "bundle" / "tokenizer.json").read_bytes()}
        assert again.preprocessing == record["preprocessing"]
    export_run(tmp_path / "run", tmp_path / "bundle", data=source, overwrite=True)
    (inputs,), labels = validation(bundle, source)
    assert (sorted(inputs), inputs["input_ids"].shape, labels.shape) == (["attention_mask", "input_ids"], (14, 6), (14,))

    # Classes that are called otherwise would be counted as those at their places.
    first, *_, last = sorted(path.name for path in (tmp_path / "others").iterdir())
    (tmp_path / "others" / first).rename(tmp_path / "others" / f"{last}-and-more")
    with pytest.raises(
        TrainerError, match=f"its classes are .*, {last}, {last}-and-more; allowed are those of .*order: {first},"
    ):
        export_run(tmp_path / "run", tmp_path / "bundle", data=source, overwrite=True)
    with pytest.raises(TrainerError, match=rf"its classes are .*; allowed are those of {tmp_path / 'bundle'}, in this order: "):
        validation(bundle, source)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_parts_in_files_of_their_own_are_the_same_data_wherever_they_are_read_again(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for part in ("train", "validation", "test"):
        rows = [{"text": f"{word} {part} {n}", "label": word} for n in range(4) for word in ("bread", "river")]
        lines = (
            [json.dumps(row) for row in rows] if ending == "jsonl" else ["text,label", *(",".join(r.values()) for r in rows)]
        )
        Path("texts", f"{part}.{ending}").write_text("\n".join(lines), encoding="utf-8")
    name, options = f"{ending}:texts/train.{ending}", {part: f"./texts/{part}.{ending}" for part in ("validation", "test")}
    record = load_data(name, options).record
    assert record["split"] == {part: f"texts/{part}.{ending}" for part in ("train", "validation", "test")}
    for place in ("texts", "/"):
        monkeypatch.chdir(tmp_path / place)
        assert load_data(name, record["options"], tmp_path).record == record


def test_a_run_with_a_vocabulary_of_its_own_is_no_tokenizer_for_other_texts(tmp_path: Path) -> None:
    """Learnt from other texts the same ids would be other words."""
    for name, seed in (("texts", 0), ("others", 1)):
        write_texts(tmp_path / name, seed=seed)
    texts, others = (f"text-folder:{tmp_path / name}" for name in ("texts", "others"))
    options = {"epochs": 1, "batch_size": 32, "accelerator": "cpu"}
    given: dict[str, Any] = {"grid": {"heads": [3], "layers": [2]}, "settings": {}, "options": options, "show_progress": False}
    train_run("tests.helpers.user_families:TextEncoder", texts, tmp_path / "run", **given)
    bundle = export_run(tmp_path / "run", tmp_path / "bundle")
    assert data_options_of(None, "csv:x", {}, tmp_path / "run") == {}
    with pytest.raises(TrainerError, match="has a vocabulary of its own; allowed are those that have a checkpoint's"):
        load_data(others, {"tokenizer": str(tmp_path / "run")})
    assert len(validation(bundle, texts)[1]) == 9
    with pytest.raises(TrainerError, match=r"are read with another vocabulary than .*bundle/tokenizer\.json, so that"):
        validation(bundle, others)
    with pytest.raises(TrainerError, match=r"are read with another vocabulary than .*run/files/tokenizer\.json, so that"):
        export_run(tmp_path / "run", tmp_path / "bundle", data=others, overwrite=True)


def test_a_run_goes_on_with_its_checkpoint_in_another_place_and_with_no_other_labels(checkpoint: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    said: list[str] = []
    train(tmp_path / "run", tmp_path / "texts", checkpoint, said)
    moved = checkpoint.rename(tmp_path / "moved")
    train(tmp_path / "run", tmp_path / "texts", moved, said, resume=True)
    (tmp_path / "texts" / "bread").rename(tmp_path / "texts" / "buns")
    with pytest.raises(
        TrainerError,
        match=r"resume: data = .*class_names.*'buns', 'rivers'.*begun with .*class_names.*'bread', 'rivers'.*the same options",
    ):
        train(tmp_path / "run", tmp_path / "texts", moved, said, resume=True)
    run, data = load_run(tmp_path / "run"), load_data(f"text-folder:{tmp_path / 'texts'}", {"tokenizer": str(moved)})
    with pytest.raises(TrainerError, match=r"its classes are buns, .*; allowed are those of .*: bread, .*--teacher none"):
        teacher_of(run.nested.family, data, tmp_path / "run", lambda path: run.nested)


def test_another_tokenizer_is_refused_or_said(checkpoint: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    source = f"text-folder:{tmp_path / 'texts'}"
    larger = write_checkpoint(tmp_path / "larger", words=[*WORDS, "one", "more"])
    other = write_checkpoint(tmp_path / "other", words=WORDS[::-1])
    own, refused, said = (load_data(source, {"tokenizer": str(place)}) for place in (checkpoint, larger, other))
    assert check_tokenizer(checkpoint, checkpoint, own) == check_tokenizer(None, None, refused) == []
    with pytest.raises(
        TrainerError, match=rf"vocabulary has {SIZE + 2} tokens, the embedding of .*checkpoint {SIZE}: it belongs to"
    ):
        check_tokenizer(checkpoint, None, refused)
    (note,) = check_tokenizer(checkpoint, checkpoint, said)
    assert check_tokenizer(None, checkpoint, said) == check_tokenizer(other, checkpoint, said) == [note]  # its teacher's
    assert "checkpoint/tokenizer.json, the checkpoint's own: what its embeddings have learnt is of another vocabulary" in note


def test_weights_without_their_tokenizer_do_not_learn_another_vocabulary_unasked(checkpoint: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    source = f"text-folder:{tmp_path / 'texts'}"
    (checkpoint / "tokenizer.json").rename(checkpoint / "vocab.txt")
    weights = Weights(checkpoint, {})
    for begun in (weights, None):  # None: `--set checkpoint=FOLDER`, whose padding would be another id than the texts'
        with pytest.raises(
            TrainerError, match=r"^tokenizer: none for .*checkpoint, a folder with vocab\.txt, without tokenizer\.json;.*=learn"
        ):
            data_options_of(begun, source, {}, checkpoint)
        assert data_options_of(begun, "arrays:x", {}, checkpoint) == {}
    (checkpoint / "config.json").write_text(json.dumps({"vocab_size": 500}))
    asked = load_data(source, data_options_of(weights, source, {"tokenizer": "learn"}, checkpoint))
    (note,) = check_tokenizer(checkpoint, None, asked)
    assert f"{checkpoint} has no tokenizer.json that the texts' could be compared with" in note


def test_a_file_alone_does_not_say_which_network_it_is_of(checkpoint: Path) -> None:
    file = Start(checkpoint / "model.safetensors")
    with pytest.raises(TrainerError, match=r"model\.safetensors': a file does not say which network .*; allowed is the folder"):
        with_checkpoint(Bert, file, {})
    for settings in ({"config.hidden_size": 32}, {"checkpoint": str(checkpoint)}):
        assert with_checkpoint(Bert, file, settings) == settings


def test_weights_for_pictures_are_refused_for_texts(tmp_path: Path) -> None:
    weights = Weights(tmp_path, {}, {"mean": [0.5] * 3, "std": [0.5] * 3})
    with pytest.raises(TrainerError, match=r"is for pictures .*, the data have examples of shape \(16,\)"):
        data_spec(weights, DataSpec((16,), 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_that_a_checkpoint_does_not_normalise_stay_as_they_are(channels: int, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "size": 8}))
    weights = Weights(tmp_path, {}, preprocessing_of(tmp_path))
    found = data_spec(weights, DataSpec((channels, 8, 8), 2, mean=(0.47,) * channels, std=(0.31,) * channels))
    assert (found.mean, found.std) == ((0.0,) * channels, (1.0,) * channels)
    assert data_spec(weights, texts := DataSpec((16,), 2)) == texts


def test_the_tokenizer_is_handed_over_where_the_source_has_the_option(checkpoint: Path, tmp_path: Path) -> None:
    place = {"tokenizer": str(checkpoint)}
    for source in ("text-folder:x", "csv:x", "jsonl:x", "hf:x"):
        assert data_options_of(None, source, {}, checkpoint) == place
    assert data_options_of(None, "digits", {}, checkpoint) == {}
    assert data_options_of(None, "csv:x", {"tokenizer": "learn"}, checkpoint) == {"tokenizer": "learn"}
    (tmp_path / "empty").mkdir()
    assert data_options_of(None, "csv:x", {}, tmp_path / "empty") == {}
    assert checkpoint_of(Start(checkpoint), {}) == checkpoint_of(Start(), {"checkpoint": str(checkpoint)}) == checkpoint
    assert checkpoint_of(Start(), {"checkpoint": 5}) is checkpoint_of(Start(checkpoint / "model.safetensors"), {}) is None


@pytest.mark.parametrize(
    "path", ["checkpoints/mini-lm", "./checkpoint", "../checkpoint/tokenizer.json", "/data/v1.2+x", "~/mini"]
)
def test_a_path_needs_no_quotes(path: str) -> None:
    assert parse_settings([f"tokenizer={path}"], "data-option") == {"tokenizer": path}


@pytest.mark.parametrize("value", ["[4,", ".5", "a b", "..", "{", "-"])
def test_what_is_neither_a_path_nor_json_is_refused(value: str) -> None:
    with pytest.raises(TrainerError, match="write NAME=JSON"):
        parse_settings([f"tokenizer={value}"], "data-option")
