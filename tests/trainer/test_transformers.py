"""Families over Hugging Face's own modules: what a smaller configuration builds, from a checkpoint's folder to a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from exporter import export
from exporter.bundle.session import relative_error
from tests.helpers.checkpoints import BERT, OTHERS, TEXTS, family
from tests.helpers.hard import filled
from tests.helpers.hugging_face import TINY
from trainer import DataSpec, Family, NestedModel, Samples, SubModel, TrainerError, fit
from trainer.compatibility import check_fits
from trainer.families import Bert, Transformers
from trainer.families.attention import fit_biases
from trainer.importance import sort_by_importance
from trainer.options import FitOptions
from trainer.submodel import AxisValue
from trainer.task import find_task

RELATIVES = ("electra", "camembert", "mpnet", "albert", "qwen3")
"""Of architectures that are exported at every change: these are exported in the slow tests."""
EVERY = pytest.mark.parametrize("name", [*sorted(TINY), *OTHERS])
TEXT = pytest.mark.parametrize("name", [*sorted(set(TINY) - {"vit"}), *OTHERS])


def examples(found: Family, count: int = 16) -> Samples:
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
    kept = {axis: values[-1] for axis, values in found.axes.items()}
    for cut in ({"num_attention_heads": 0}, {"intermediate_size": 0}, {"num_attention_heads": 0, "intermediate_size": 0}):
        sub = SubModel(**{**kept, **{axis: found.axes[axis][index] for axis, index in cut.items()}})
        answers_as_the_full_one_without(nested, sub)


def answers_as_the_full_one_without(nested: NestedModel, sub: SubModel) -> None:
    """Whether what the sub-model lacks could be zeros in the full model."""
    found = nested.family
    inputs = found.example_inputs(3)
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


@pytest.mark.parametrize("name", ["electra", "camembert", "mpnet", "albert", "modernbert"])
def test_so_are_heads_whose_number_does_not_divide_the_hidden_size(name: str) -> None:
    """Each with the bias that it has in the full model, where heads have one each (MPNet)."""
    found = family(name).with_grid({"num_attention_heads": [3]})
    nested = filled(found).eval()
    for parameter in nested.full.parameters():
        parameter.data.mul_(2)  # so that a bias tells
    answers_as_the_full_one_without(nested, SubModel(**{**found.largest.axes, "num_attention_heads": 3}))


def test_what_has_a_number_for_each_head_and_is_built_for_one_is_refused_by_name() -> None:
    full, module = nn.Module(), nn.Module()
    full.gates, module.gates = nn.Linear(8, 4), nn.Linear(8, 1)
    with pytest.raises(TrainerError, match=r"'num_attention_heads' = 3: parameter 'gates\.weight' .* allowed"):
        fit_biases(module, 3, full, 4)


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
    samples = examples(found)
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
    sorting = sort_by_importance(nested, examples(found))
    assert sorting.fixed == {}
    sizes = found.architecture.sizes
    layers = 1 if name == "albert" else sizes["num_hidden_layers"]  # its layers are one
    groups = list(sorting.groups.values())
    assert groups.count(sizes["intermediate_size"]) == layers
    assert groups.count(found.architecture.keys) == (1 if name == "mpnet" else layers)  # its layers share a bias for each head
    assert groups.count(sizes["hidden_size"]) >= 1


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (refused(config=GPT2), r"gpt2.*cannot be nested along num_attention_heads.*c_attn|gpt2.*c_attn"),
        (refused(config=None), "config = .*model_type"),
        (refused(config={"model_type": "resnet"}), "'resnet' says num_hidden_layers = None"),
        (
            refused(config={"model_type": "no_such"}),
            r"model_type 'no_such' is not known to transformers \d+\.[\d.]+; allowed are those$",
        ),
        (refused(config={"model_type": "t5"}), "'t5' is an encoder with a decoder; allowed are"),
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
        (
            lambda: family("bert").with_task(find_task("regression")()),
            "task = 'regression': needs the output 'values', 'bert' gives logits; allowed are classification, multi-label",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        make()


@pytest.mark.parametrize(
    "more", [{"model_type": "big_bird"}, {"model_type": "longformer", "attention_window": 4, "pad_token_id": 1}]
)
def test_code_that_takes_the_hidden_size_for_that_of_all_heads_is_refused_before_training(more: dict[str, Any]) -> None:
    """It runs where both are small, as in the smallest, and where both are full."""
    found = Transformers({**BERT, **more}, labels=3, tokens=9)
    message = "does not run with num_attention_heads or hidden_size alone .*--grid num_attention_heads=2 --grid hidden_size="
    with pytest.raises(TrainerError, match=message):
        check_fits(NestedModel(found), examples(found), None, FitOptions())


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
