"""Families over Hugging Face's own modules: what a smaller configuration builds, from a checkpoint's folder to a graph.

Small configurations, random weights, nothing downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from exporter import export
from exporter.bundle.session import relative_error
from tests.helpers.hard import filled
from tests.helpers.hugging_face import TINY
from tests.helpers.networks import small
from tests.helpers.texts import write_texts
from trainer import DataSpec, Family, NestedModel, Samples, SubModel, TrainerError, fit
from trainer.families import Bert, Transformers, ViT
from trainer.importance import sort_by_importance
from trainer.run import load_run, train_run
from trainer.start import Start
from trainer.submodel import AxisValue
from trainer.weights import load_weights, read_weights

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
RELATIVES = ("electra", "camembert", "mpnet", "albert", "qwen3")
"""Of those that are tested at every change."""
EVERY = pytest.mark.parametrize("name", [*sorted(TINY), *OTHERS])
TEXT = pytest.mark.parametrize("name", [*sorted(set(TINY) - {"vit"}), *OTHERS])


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


def end_with_values(found: Family, count: int = 16) -> Samples:
    torch.manual_seed(0)
    return Samples(found.example_inputs(count), torch.randint(0, 3, (count,)))


@EVERY
def test_heads_keep_their_size_at_every_number_of_heads_and_hidden_size(name: str) -> None:
    found = family(name)
    head = found.architecture.head_dim
    nested = NestedModel(found)
    for sub in found.grid():
        shapes = {tuple(p.shape) for n, p in nested.skeleton(sub).named_parameters() if n.endswith("weight")}
        heads = int(sub.axes["num_attention_heads"])  # type: ignore[arg-type]
        hidden = int(sub.axes["hidden_size"])  # type: ignore[arg-type]
        rows = 3 * heads * head if name == "modernbert" else heads * head
        assert {(rows, hidden), (hidden, heads * head)} <= shapes, sub.id


@EVERY
def test_heads_and_inner_units_that_are_cut_are_those_that_the_full_model_would_do_without(name: str) -> None:
    """The full model with zeros where the smaller one has nothing answers the same: a head is a head, fused projections too."""
    found = family(name)
    nested = filled(found).eval()
    inputs = found.example_inputs(3)
    kept = {axis: values[-1] for axis, values in found.axes.items()}
    for cut in ({"num_attention_heads": 0}, {"intermediate_size": 0}, {"num_attention_heads": 0, "intermediate_size": 0}):
        sub = SubModel(**{**kept, **{axis: found.axes[axis][index] for axis, index in cut.items()}})
        full = nested.extract(found.largest)
        for parameter, segments in nested.segments(sub).items():
            tensor = full.get_parameter(parameter).data
            for axis, slices in enumerate(segments):
                gone = torch.ones(tensor.shape[axis], dtype=torch.bool)
                for part in slices:
                    gone[part] = False
                tensor.index_fill_(axis, gone.nonzero().flatten(), 0.0)
        with torch.no_grad():
            wanted = nested.applied(full, inputs)["logits"]
            torch.testing.assert_close(nested.outputs(inputs, sub)["logits"], wanted, rtol=1e-4, atol=1e-5)


@TEXT
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_no_result_and_a_smaller_build_is_the_extracted_one(name: str, attention: str) -> None:
    found = family(name, attention=attention)
    nested = filled(found).eval()
    inputs = found.example_inputs(4)
    length = int(inputs["attention_mask"][1].sum())
    for sub in (found.smallest, *found.grid()[1::5], found.largest):
        answers = nested.outputs(inputs, sub)["logits"]
        assert torch.equal(answers, nested.applied(nested.extract(sub), inputs)["logits"])
        alone = nested.outputs({n: t[1:2, :length] for n, t in inputs.items()}, sub)["logits"]
        torch.testing.assert_close(answers[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in RELATIVES else n for n in (*sorted(TINY), *OTHERS)]
)
def test_it_trains_and_its_graphs_answer_as_torch_for_every_batch_and_length(name: str, tmp_path: Path) -> None:
    found = family(name)
    nested = filled(found)
    samples = end_with_values(found)
    fit(nested, samples, samples, epochs=1, lr=0.01, optimizer="adamw", batch_size=8, show_progress=False)
    subs = [found.smallest, found.largest]
    bundle = export(nested.eval(), tmp_path / "bundle", submodels=subs, show_progress=False)
    for rows, length in ((1, 1), (3, 5), (2, 14)):
        inputs = found.example_inputs(rows)
        if "input_ids" in inputs:
            found.tokens, was = length, found.tokens
            inputs = found.example_inputs(rows)
            found.tokens = was
        for sub in subs:
            session = ort.InferenceSession(str(bundle.graph_path(sub.id)))
            got = session.run(None, {n: t.numpy() for n, t in inputs.items()})[0]
            with torch.no_grad():
                wanted = nested.outputs(inputs, sub)["logits"].numpy()
            assert relative_error({"logits": got}, {"logits": wanted}) < 1e-4, (sub.id, rows, length)


@EVERY
def test_units_are_sorted_without_changing_what_it_answers(name: str) -> None:
    found = family(name)
    nested = filled(found).eval()
    sorting = sort_by_importance(nested, end_with_values(found))
    assert sorting.fixed == {}
    sizes = found.architecture.sizes
    layers = 1 if name == "albert" else sizes["num_hidden_layers"]  # its layers are one
    groups = list(sorting.groups.values())
    assert groups.count(sizes["intermediate_size"]) == layers
    assert groups.count(found.architecture.keys) == (1 if name == "mpnet" else layers)  # its layers share a bias for each head
    assert groups.count(sizes["hidden_size"]) >= 1


@pytest.mark.parametrize(("name", "head"), [(n, AutoModelForSequenceClassification) for n in sorted(set(TINY) - {"vit"})])
def test_a_checkpoint_answers_as_it_did(name: str, head: Any, tmp_path: Path) -> None:
    model = checkpoint(name, tmp_path, head)
    found = type(family(name)).for_data(DataSpec((9,), 3, vocabulary=50, inputs=MASKED), checkpoint=tmp_path)
    nested = NestedModel(found).eval()
    loaded = load_weights(nested, read_weights(tmp_path), outputs=3)
    assert (loaded.anew, loaded.left_over) == ([], [])
    inputs = found.example_inputs(4)
    torch.testing.assert_close(nested.outputs(inputs)["logits"], model(**inputs).logits, rtol=1e-5, atol=1e-6)


MASKED = {"input_ids": (9,), "attention_mask": (9,)}


def test_a_checkpoint_for_pictures_answers_as_it_did_with_pixels_normalised_within(tmp_path: Path) -> None:
    """It is written by the names that layers had in earlier releases of transformers."""
    model = checkpoint("vit", tmp_path, AutoModelForImageClassification)
    found = ViT.for_data(DataSpec((1, 8, 8), 3, mean=(0.5,), std=(0.25,)), checkpoint=tmp_path)
    nested = NestedModel(found).eval()
    assert load_weights(nested, read_weights(tmp_path), outputs=3).anew == []
    pixels = found.example_inputs(4)["pixel_values"]
    wanted = model(pixel_values=(pixels - 0.5) / 0.25).logits
    torch.testing.assert_close(nested.outputs({"pixel_values": pixels})["logits"], wanted, rtol=1e-5, atol=1e-6)


@TEXT
def test_an_encoder_alone_begins_its_head_anew_and_says_so(name: str, tmp_path: Path) -> None:
    model = checkpoint(name, tmp_path, AutoModel)
    found = Transformers.for_data(DataSpec((9,), 3, vocabulary=50, inputs=MASKED), checkpoint=tmp_path)
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


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert"])
def test_without_a_mask_padding_is_masked_by_the_network(name: str) -> None:
    """So that a vocabulary that we learn, and pad with 0, goes with any encoder."""
    found, masked = family(name, mask=False), family(name)
    assert list(found.example_inputs(1)) == ["input_ids"]
    nested, other = filled(found).eval(), filled(masked).eval()
    inputs = masked.example_inputs(4)
    answers = other.outputs(inputs)["logits"]
    assert torch.equal(nested.outputs({"input_ids": inputs["input_ids"]})["logits"], answers)
    empty = torch.zeros_like(inputs["input_ids"])
    assert bool(nested.outputs({"input_ids": empty})["logits"].isfinite().all())


def test_token_types_tell_the_two_texts_of_a_pair_apart() -> None:
    found = family("bert", pairs=True)
    inputs = found.example_inputs(3)
    assert list(inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    nested = filled(found).eval()
    answers = nested.outputs(inputs)["logits"]
    others = nested.outputs({**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])})["logits"]
    assert not torch.allclose(answers, others, atol=1e-4)


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


def test_the_head_follows_the_task() -> None:
    from trainer.tasks import Classification, TokenClassification

    found = family("bert").with_task(TokenClassification())
    inputs = found.example_inputs(2)
    assert found.config()["head"] == "token-classification"
    assert NestedModel(found).outputs(inputs)["logits"].shape == (2, 9, 3)
    assert NestedModel(found.with_task(Classification())).outputs(inputs)["logits"].shape == (2, 3)


def test_hidden_states_are_those_of_every_layer_at_every_size() -> None:
    found = family("bert")
    nested = filled(found).eval()
    inputs = found.example_inputs(2)
    for sub in (found.smallest, found.largest):
        module = nested.extract(sub)
        with found.hidden_states(module) as states:
            module(**inputs)
            module(**inputs)
        wanted: tuple[Tensor, ...] = module(**inputs, output_hidden_states=True).hidden_states[1:]
        assert len(states) == sub["num_hidden_layers"]
        assert all(torch.equal(a, b) for a, b in zip(states, wanted, strict=True))


def test_six_layers_have_48_sub_models_by_short_names() -> None:
    minilm = {"num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "hidden_size": 384}
    found = Bert({"vocab_size": 100, **minilm})
    assert len(found.grid()) == 48
    assert (found.smallest.id, found.largest.id) == ("l2-f384-h6-d192", "l6-f1536-h12-d384")


def test_a_grid_may_be_spelt_as_the_configuration_does() -> None:
    found = family("distilbert").with_grid({"dim": [24], "n_layers": [1]})
    assert found.axes["hidden_size"] == (24, 32)
    assert found.axes["num_hidden_layers"] == (1, 2)


def test_numbers_are_single_precision_whatever_a_checkpoint_was_stored_in() -> None:
    found = Bert({**BERT, "torch_dtype": "float16", "dtype": "bfloat16", "id2label": {"0": "other"}}, labels=3)
    assert {p.dtype for p in NestedModel(found).full.parameters()} == {torch.float32}
    assert found.build(found.smallest)(**found.example_inputs(1)).logits.shape == (1, 3)


def test_heads_that_share_keys_go_in_whole_groups() -> None:
    found = family("llama")
    assert found.axes["num_attention_heads"] == (2, 4)
    with pytest.raises(TrainerError, match="'num_attention_heads' = 3: allowed are multiples of 2"):
        found.with_grid({"num_attention_heads": [3]})
    keys = NestedModel(found).view(found.smallest)["model.layers.0.self_attn.k_proj.weight"]
    assert keys.shape == (8, 16)


def refused(**settings: Any) -> Any:
    return lambda: Transformers(**settings)


GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 16}
BERT = {"model_type": "bert", **TINY["bert"]}
TEXTS = DataSpec((9,), 3, vocabulary=50, inputs=MASKED)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (refused(config=GPT2), r"gpt2.*cannot be nested along num_attention_heads.*c_attn|gpt2.*c_attn"),
        (refused(config=None), "config = .*model_type"),
        (refused(config={"model_type": "resnet"}), "'resnet' says num_hidden_layers = None"),
        (refused(config={"model_type": "no_such"}), "model_type 'no_such'"),
        (refused(config={**BERT, "hidden_size": 15}), "hidden_size = 15: allowed are multiples of its 2 heads"),
        (refused(config={**BERT, "hidden_size": "wide"}), "hidden_size"),
        (refused(config=BERT, head="tails"), "head = 'tails': allowed are sequence-classification"),
        (refused(config=BERT, head="image-classification"), "'bert' is for text"),
        (refused(config=BERT, tokens=65), "tokens = 65: the model has positions for 64"),
        (refused(config={"model_type": "roberta", **TINY["roberta"]}, tokens=63), "positions for 62"),
        (refused(config={"model_type": "distilbert", **TINY["distilbert"]}, pairs=True), "'distilbert' has no token types"),
        (refused(config=BERT, fixed=["girth"]), "'girth' is no axis"),
        (
            refused(config={"model_type": "vit", **TINY["vit"]}, input_shape=(3, 8, 8)),
            r"input_shape = \(3, 8, 8\).*\(1, 8, 8\)",
        ),
        (lambda: Bert({"model_type": "roberta"}), "model_type is 'roberta', family bert is for 'bert'"),
        (lambda: Bert.for_data(DataSpec((9,), 3, vocabulary=51), config=BERT), "knows 51 tokens, the model 50"),
        (lambda: Bert.for_data(TEXTS, checkpoint="nowhere"), "'nowhere': has no config.json"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        make()


def test_what_cannot_be_cut_may_be_left_as_it_is() -> None:
    found = Transformers(GPT2, fixed=["num_attention_heads", "hidden_size"], tokens=9)
    assert list(found.axes) == ["num_hidden_layers", "intermediate_size"]


def test_without_a_checkpoint_a_small_one_is_built_for_the_data() -> None:
    found = Bert.for_data(DataSpec((9,), 3, vocabulary=77), **{"config.hidden_size": 32, "config.num_hidden_layers": 1})
    said = found.config()["config"]
    assert (said["vocab_size"], said["hidden_size"], said["num_hidden_layers"]) == (77, 32, 1)
    largest: dict[str, AxisValue] = dict(found.largest.axes)
    assert largest["hidden_size"] == 32
    assert found.config()["mask"] is False


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
        data_options={"max_tokens": 12},
        start=Start(tmp_path / "original"),
        show_progress=False,
    )
    again = load_run(run).nested
    assert [sub.id for sub in again.submodels] == ["l1-f8-h2-d32", "l1-f16-h2-d32", "l2-f8-h2-d32", "l2-f16-h2-d32"]
    assert isinstance(again.submodels[0], SubModel)
    inputs = again.family.example_inputs(3)
    mask = (inputs["input_ids"] != 0).long()
    torch.testing.assert_close(
        again.outputs(inputs)["logits"], model(**inputs, attention_mask=mask).logits, rtol=1e-4, atol=1e-5
    )
