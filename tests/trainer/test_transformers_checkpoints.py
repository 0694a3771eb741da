"""What lies in a checkpoint's folder of Hugging Face, put into a family's network: with any head, and as a run's beginning."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageClassification

from tests.helpers.checkpoints import BERT, OTHERS, TEXTS, checkpoint, family
from tests.helpers.hugging_face import TINY
from tests.helpers.texts import write_texts
from trainer import DataSpec, NestedModel, Samples, SubModel, TrainerError
from trainer.data import DataSet
from trainer.families import Bert, Transformers, ViT
from trainer.making import train_run
from trainer.run import load_run
from trainer.start import Start, begin, teacher_of
from trainer.tasks import Embedding
from trainer.weights import load_weights, read_weights

OF_TEXTS = sorted(set(TINY) - {"vit"})
TEXT = pytest.mark.parametrize("name", [*OF_TEXTS, *OTHERS])


@pytest.mark.parametrize("name", OF_TEXTS)
def test_a_checkpoint_answers_as_it_did(name: str, tmp_path: Path) -> None:
    model = checkpoint(name, tmp_path)
    found = type(family(name)).for_data(TEXTS, checkpoint=tmp_path)
    nested = NestedModel(found).eval()
    loaded = load_weights(nested, read_weights(tmp_path), outputs=3)
    assert (loaded.anew, loaded.left_over) == ([], [])
    inputs = found.example_inputs(4)
    torch.testing.assert_close(nested.outputs(inputs)["logits"], model(**inputs).logits, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_for_pictures_answers_as_it_did_with_pixels_normalised_within(tmp_path: Path) -> None:
    """It is written by the names that layers had in earlier releases of transformers."""
    model = checkpoint("vit", tmp_path, AutoModelForImageClassification)
    found = ViT.for_data(DataSpec((1, 8, 8), 3, mean=(0.5,), std=(0.25,)), checkpoint=tmp_path)
    nested = NestedModel(found).eval()
    assert load_weights(nested, read_weights(tmp_path), outputs=3).anew == []
    pixels = found.example_inputs(4)["pixel_values"]
    wanted = model(pixel_values=(pixels - 0.5) / 0.25).logits
    torch.testing.assert_close(nested.outputs({"pixel_values": pixels})["logits"], wanted, rtol=1e-5, atol=1e-6)


def pets(spec: DataSpec, labels: tuple[str, ...] = ("cat", "cow", "dog")) -> DataSet:
    samples = Samples(torch.rand(6, *spec.input_shape), torch.arange(6) % 3)
    return DataSet("pets", spec, samples, samples, samples, None, {}, labels=labels)


def test_classes_of_a_checkpoint_for_pictures_are_answered_in_the_order_of_the_data(tmp_path: Path) -> None:
    """As the beginning of a run and as a teacher; one of other classes is refused unless it is what the run begins with."""
    model = checkpoint("vit", tmp_path, AutoModelForImageClassification, id2label={0: "dog", 1: "cat", 2: "cow"})
    data = pets(DataSpec((1, 8, 8), 3, mean=(0.5,), std=(0.25,)))
    family = ViT.for_data(data.spec, checkpoint=tmp_path)
    nested, said = NestedModel(family), list[str]()
    begin(nested, data, read_weights(tmp_path), Start(tmp_path, sort="none"), said.append)
    assert "the weights' classes are dog, cat, cow: the head was put in the order of the data's" in said[0]
    teacher = teacher_of(family, data, tmp_path, lambda path: None)
    pixels = family.example_inputs(4)
    wanted = model(pixel_values=(pixels["pixel_values"] - 0.5) / 0.25).logits[:, [1, 2, 0]]
    for found in (nested, teacher):
        torch.testing.assert_close(found.outputs(pixels)["logits"], wanted, rtol=1e-5, atol=1e-6)
    others = pets(data.spec, ("a", "b", "c"))
    with pytest.raises(
        TrainerError, match=r"its classes are a, b, c; allowed are those of .*: dog, cat, cow; or another teacher"
    ):
        teacher_of(family, others, tmp_path, lambda path: None)
    assert teacher_of(family, others, tmp_path, lambda path: None, tmp_path) is not None


@pytest.mark.parametrize("normalised", [True, False])
def test_a_teacher_sees_pictures_normalised_as_it_was_trained(normalised: bool, tmp_path: Path) -> None:
    model = checkpoint("vit", tmp_path, AutoModelForImageClassification)
    said = {"image_mean": [0.5], "image_std": [0.25], "do_normalize": normalised}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    data = pets(DataSpec((1, 8, 8), 3, mean=(0.1,), std=(0.3,)))
    family = ViT.for_data(data.spec, checkpoint=tmp_path).with_grid({"num_hidden_layers": [1]})
    teacher = teacher_of(family, data, tmp_path, lambda path: None)
    assert teacher.submodels == family.grid()
    pixels = family.example_inputs(4)
    wanted = model(pixel_values=(pixels["pixel_values"] - 0.5) / 0.25 if normalised else pixels["pixel_values"]).logits
    torch.testing.assert_close(teacher.outputs(pixels)["logits"], wanted, rtol=1e-5, atol=1e-6)
    assert family.config()["mean"] == [0.1]  # the pupil's own

    class Own(ViT):
        def config(self) -> dict[str, Any]:
            return {name: value for name, value in super().config().items() if name not in ("mean", "std")}

    family = Own.for_data(data.spec, checkpoint=tmp_path)
    stated = "mean [0.5] and deviation [0.25]" if normalised else "mean [0.0] and deviation [1.0]"
    with pytest.raises(
        TrainerError, match=re.escape(f"is for pictures of {stated}, the model's have [0.1] and [0.3], and Own.")
    ):
        teacher_of(family, data, tmp_path, lambda path: None)


@TEXT
def test_an_encoder_alone_begins_its_head_anew_and_says_so(name: str, tmp_path: Path) -> None:
    model = checkpoint(name, tmp_path, AutoModel)
    found = Transformers.for_data(TEXTS, checkpoint=tmp_path)
    nested = NestedModel(found)
    loaded = load_weights(nested, read_weights(tmp_path), outputs=3)
    assert loaded.anew
    assert "begun anew" in str(loaded)
    assert not any(".layer." in parameter or "embeddings" in parameter for parameter in loaded.anew)
    kept = dict(model.named_parameters())
    full = dict(nested.full.named_parameters())
    shared = [n for n in full if n not in loaded.anew]
    assert len(shared) > 10
    assert all(torch.equal(full[n], kept[n.partition(".")[2]]) for n in shared)


def embedding(name: str) -> Transformers:
    """The head without a task of its own, which is not what is tested here."""
    found = family(name)
    found.head = "embedding"
    for cached in ("layout", "_full_on_meta"):
        found.__dict__.pop(cached, None)
    return found


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert"])
def test_an_embedding_is_the_mean_over_the_tokens_of_length_one(name: str, tmp_path: Path) -> None:
    """From a checkpoint with another head: its encoder is found."""
    model = checkpoint(name, tmp_path)
    found = embedding(name)
    module = found.build(found.largest).eval()
    nested = NestedModel(found)
    loaded = load_weights(nested, read_weights(tmp_path))
    module.load_state_dict(nested.full.state_dict())
    assert loaded.anew == []
    inputs = found.example_inputs(4)
    answers = module(**inputs)
    hidden = model.base_model(**inputs).last_hidden_state
    rows = [row[kept == 1].mean(dim=0) for row, kept in zip(hidden, inputs["attention_mask"], strict=True)]
    torch.testing.assert_close(answers, F.normalize(torch.stack(rows), dim=1), rtol=1e-4, atol=1e-6)


def pooled(folder: Path, kinds: str, pooling: dict[str, Any], encoder: str = "") -> Path:
    """What sentence-transformers writes beside a checkpoint; the folder of the encoder."""
    paths = [encoder, *(f"{place}_{kind}" for place, kind in enumerate(kinds.split()[1:], 1))]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds.split(), paths, strict=True))
    ]
    for path in paths:
        (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    if "Pooling" in kinds.split():
        (folder / paths[kinds.split().index("Pooling")] / "config.json").write_text(json.dumps(pooling))
    return folder / encoder


MEAN = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "include_prompt": True,
}
CLS = {**MEAN, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
USUAL = "Transformer Pooling Normalize"


@pytest.mark.parametrize(
    ("kinds", "pooling", "encoder", "message"),
    [
        (USUAL, MEAN, "", None),
        ("Transformer Pooling", MEAN, "", None),
        (USUAL, {"embedding_dimension": 32, "pooling_mode": "mean"}, "0_Transformer", None),
        (USUAL, CLS, "", r"1_Pooling/config\.json says pooling_mode cls_token; allowed for --task embedding is the mean"),
        (USUAL, CLS, "0_Transformer", r"says pooling_mode cls_token; allowed"),
        (USUAL, {**CLS, "pooling_mode_mean_tokens": True}, "", "says pooling_mode cls_token, mean_tokens; allowed"),
        (USUAL, {"pooling_mode": "lasttoken"}, "", "says pooling_mode lasttoken; allowed"),
        (USUAL, {}, "", "says pooling_mode nothing; allowed"),
        (
            "Transformer Pooling Dense Normalize",
            MEAN,
            "",
            "says Transformer, Pooling, Dense, Normalize; allowed",
        ),
        ("Transformer", MEAN, "", r"modules\.json says Transformer; allowed"),
    ],
)
def test_a_checkpoint_whose_vectors_are_no_mean_is_refused(
    kinds: str, pooling: dict[str, Any], encoder: str, message: str | None, tmp_path: Path
) -> None:
    folder = pooled(tmp_path / "original", kinds, pooling, encoder)
    family("bert").check_checkpoint(folder)  # with another head it is an encoder like any other
    found = family("bert").with_task(Embedding())
    if message is None:
        found.check_checkpoint(folder)
        return
    with pytest.raises(TrainerError, match=message) as caught:
        found.check_checkpoint(folder)
    assert f"checkpoint = {str(folder)!r}" in str(caught.value)


@pytest.mark.parametrize("role", ["weights", "teacher"])
def test_nothing_is_computed_from_a_checkpoint_whose_vectors_are_no_mean(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "texts")
    for name, pooling in (("mean", MEAN), ("cls", CLS)):
        checkpoint("bert", tmp_path / name, AutoModel, vocab_size=500)
        pooled(tmp_path / name, USUAL, pooling)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("targets were computed")

    monkeypatch.setattr("trainer.making.answered", never)
    weights, teacher = ("cls", None) if role == "weights" else ("mean", str(tmp_path / "cls"))
    with pytest.raises(TrainerError, match=r"cls'.*1_Pooling/config\.json says pooling_mode cls_token"):
        train_run(
            "bert",
            f"text-folder:{tmp_path / 'texts'}",
            tmp_path / "run",
            grid={},
            settings={},
            options={"epochs": 1},
            task="embedding",
            data_options={"max_tokens": 12, "tokenizer": "learn"},
            start=Start(tmp_path / weights, teacher),
            show_progress=False,
        )
    assert not (tmp_path / "run").exists()


def test_numbers_are_single_precision_whatever_a_checkpoint_was_stored_in() -> None:
    found = Bert({**BERT, "torch_dtype": "float16", "dtype": "bfloat16", "id2label": {"0": "other"}}, labels=3)
    assert {p.dtype for p in NestedModel(found).full.parameters()} == {torch.float32}
    assert found.build(found.smallest)(**found.example_inputs(1)).logits.shape == (1, 3)


def test_a_run_begins_with_a_checkpoint_and_can_be_reopened(tmp_path: Path) -> None:
    """Its folder says how to build; what it holds is put there; the run says it all itself."""
    write_texts(tmp_path / "texts")
    model = checkpoint("bert", tmp_path / "original", vocab_size=500)
    options = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0, "optimizer": "adamw", "batch_size": 16}
    run = tmp_path / "run"
    train_run(
        "bert",
        f"text-folder:{tmp_path / 'texts'}",
        run,
        grid={"hidden_size": [], "num_attention_heads": []},
        settings={},
        options=options,
        data_options={"max_tokens": 12, "tokenizer": "learn"},
        start=Start(tmp_path / "original"),
        show_progress=False,
    )
    again = load_run(run).nested
    assert [sub.id for sub in again.submodels] == ["l1-f8-h2-d32", "l1-f16-h2-d32", "l2-f8-h2-d32", "l2-f16-h2-d32"]
    assert isinstance(again.submodels[0], SubModel)
    inputs = again.family.example_inputs(3)
    torch.testing.assert_close(again.outputs(inputs)["logits"], model(**inputs).logits, rtol=1e-4, atol=1e-5)
