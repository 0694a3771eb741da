"""Language models: what every size says, what a step costs and gives, and how sizes are measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.language import language_checkpoint, language_family, mixed, sequences
from trainer import FitOptions, NestedModel, SubModel, TrainerError
from trainer.accelerator import find_accelerator
from trainer.data.lengths import by_length
from trainer.evaluate import scores_of
from trainer.families import Llama, Transformers
from trainer.families.architecture import DECODERS
from trainer.family import DataSpec, Family
from trainer.importance import sort_by_importance
from trainer.step import Gradients
from trainer.tasks import LanguageModelling
from trainer.teacher import teacher_for
from trainer.updates import make_rule
from trainer.weights import load_weights, read_weights


@pytest.mark.parametrize("kind", DECODERS)
def test_every_size_predicts_from_what_came_before_and_units_are_sorted(kind: str) -> None:
    """Rotary positions, groups of heads that share keys, a gated width between, one tied head."""
    found = language_family(kind)
    nested = mixed(found).eval()
    assert len(found.grid()) == 24
    inputs = found.example_inputs(3)
    assert list(inputs) == ["input_ids"]
    other = {"input_ids": torch.cat([inputs["input_ids"][:, :-1], inputs["input_ids"][:, -1:].roll(1, 0)], dim=1)}
    for sub in (found.smallest, found.largest):
        logits = nested.outputs(inputs, sub)["logits"]
        assert logits.shape == (3, 9, 64)
        assert torch.equal(logits, nested.applied(nested.extract(sub), inputs)["logits"])
        torch.testing.assert_close(nested.outputs(other, sub)["logits"][:, :-1], logits[:, :-1])
    sorting = sort_by_importance(nested, sequences())
    assert (sorting.fixed, sorting.error < 1e-5) == ({}, True)
    groups = list(sorting.groups.values())
    assert (groups.count(32), groups.count(2), groups.count(48)) == (
        3,
        3,
        1,
    )  # widths between, heads by their keys, hidden size


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_says_what_it_said(tied: bool, tmp_path: Path) -> None:
    model = language_checkpoint(tmp_path, tie_word_embeddings=tied)
    spec = DataSpec((9,), 0, vocabulary=300, inputs={"input_ids": (9,)}, target_shape=(9,), next_token=True)
    found = Llama.for_data(spec, checkpoint=tmp_path)
    nested = NestedModel(found).eval()
    loaded = load_weights(nested, read_weights(tmp_path), spec.outputs)
    assert (loaded.anew, loaded.left_over) == ([], [])
    inputs = found.example_inputs(2)
    torch.testing.assert_close(nested.outputs(inputs)["logits"], model(**inputs).logits, rtol=1e-5, atol=1e-6)


class _Apart(Llama):
    """Each sub-model by a pass of its own, with logits everywhere."""

    narrows = False  # type: ignore[assignment]

    def passes(self, submodels: Sequence[SubModel]) -> list[list[SubModel]]:
        return Family.passes(self, submodels)


def gradients(nested: NestedModel, shares: dict[SubModel, float], teacher: Any = None, **options: Any) -> tuple[float, Tensor]:
    """The loss of a step, and all its gradients in a row."""
    said = FitOptions(accelerator="cpu", **options)
    task = nested.family.task
    rule, accelerator = make_rule(said.update, nested.submodels, 1), find_accelerator("cpu")
    taught = teacher_for(nested, teacher, said)
    step = Gradients(nested.train(), task, rule, taught, accelerator, accelerator.scaler(), said)
    nested.full.zero_grad(set_to_none=True)
    samples = sequences()
    loss = step.accumulate(shares, samples.inputs, samples.targets, seed=3)
    return loss, torch.cat([p.grad.flatten() for p in nested.full.parameters() if p.grad is not None])


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"micro_batches": 4}, {"recompute": True}, {"update": "sandwich"}],
    ids=["whole", "parts", "again", "sandwich"],
)
def test_depths_share_a_pass_and_parts_of_a_batch_add_up_to_the_same_step(options: dict[str, Any], taught: bool) -> None:
    found = language_family()
    apart = _Apart(found.given, tokens=9, mask=False)
    apart.with_task(found.task).axes = found.axes
    shares = {sub: (2.0 if sub == found.largest else 1.0) / 25 for sub in reversed(found.grid())}
    teacher = mixed(found, seed=7).extract(found.largest) if taught else None
    if taught and "update" in options:
        options = {**options, "teacher_share": 0.5}
    wanted = gradients(mixed(apart), shares, teacher, **{n: v for n, v in options.items() if n in ("update", "teacher_share")})
    nested = mixed(found)
    assert [len(group) for group in found.passes(list(shares))] == [3] * 8
    loss, all_of_them = gradients(nested, shares, teacher, **options)
    assert loss == pytest.approx(wanted[0], rel=1e-5)
    torch.testing.assert_close(all_of_them, wanted[1], rtol=1e-4, atol=1e-5)


def test_what_is_the_original_still_has_nothing_to_learn_from_it() -> None:
    """The divergence from the original has its least there: the full model stays, smaller ones learn."""
    nested = mixed(language_family(positions=4))
    original = nested.extract(nested.family.largest)
    _, full = gradients(nested, {nested.family.largest: 1.0}, original)
    _, small = gradients(nested, {nested.family.smallest: 1.0}, original)
    assert float(full.abs().max()) < 1e-5 < 1e-3 < float(small.abs().max())


def test_a_step_looks_at_so_many_positions_of_each_sequence_and_at_others_the_next_time() -> None:
    task, targets = LanguageModelling(positions=4), sequences().targets
    assert isinstance(targets, Tensor)
    first, second = (task.looked_at(targets, seed) for seed in (1, 2))
    assert first is not None
    assert second is not None
    assert first.sum(dim=1).tolist() == [4, 4, 4, 4, 4, 1]
    assert not bool((first & (targets == -100)).any())
    assert not torch.equal(first, second)
    everything = task.looked_at(targets)
    assert torch.equal(everything, targets != -100)  # type: ignore[arg-type]
    with pytest.raises(TrainerError, match="positions = -1: allowed are whole numbers from 0"):
        LanguageModelling(positions=-1)


def test_scores_of_many_sizes_are_those_of_each_alone() -> None:
    nested, samples = mixed(language_family()).eval(), sequences()
    scores = scores_of(nested, nested.submodels, samples)
    labels = samples.targets
    assert isinstance(labels, Tensor)
    counts = labels != -100
    full = nested.outputs(samples.inputs)["logits"][counts].argmax(-1)
    for sub, score in scores.items():
        logits = nested.outputs(samples.inputs, sub)["logits"][counts]
        loss = F.cross_entropy(logits, labels[counts]).item()
        assert score.quality == pytest.approx(torch.tensor(-loss).exp().item(), rel=1e-5)
        assert score.metrics["perplexity"] == pytest.approx(1 / score.quality)
        assert score.metrics["agreement"] == pytest.approx(float((logits.argmax(-1) == full).float().mean()))
    assert scores[nested.family.largest].metrics["agreement"] == 1


def test_a_batch_that_is_looked_at_is_bounded_by_its_tokens() -> None:
    assert [len(part) for part in by_length(torch.full((10,), 8), 512, tokens=32)] == [4, 4, 2]


def test_the_rule_depths_takes_every_depth_of_what_is_drawn() -> None:
    found = language_family()
    rule = make_rule("depths", found.grid(), 1)
    for step in range(5):
        subs = rule.sample(step, 0)
        assert sorted(int(sub["num_hidden_layers"]) for sub in subs) == [1, 2, 3]  # type: ignore[arg-type]
        assert len({tuple(v for axis, v in sub.axes.items() if axis != "num_hidden_layers") for sub in subs}) == 1
    with pytest.raises(
        TrainerError, match="update = 'depths': the axes are width; allowed are families with num_hidden_layers"
    ):
        make_rule("depths", [SubModel(width=0.5), SubModel(width=1.0)], 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transformers({"model_type": "bert"}, head="causal"), "in 'bert' a token sees those that follow it"),
        (lambda: Llama({"model_type": "gpt2"}), "model_type is 'gpt2', family llama is for 'llama', 'mistral', 'qwen2'"),
        (lambda: Llama({"model_type": "llama", "num_key_value_heads": 3}), "num_key_value_heads = 3"),
        (lambda: FitOptions(micro_batches=0), "micro_batches = 0: allowed are whole numbers from 1"),
        (lambda: FitOptions(recompute="yes"), "recompute = 'yes': allowed are True and False"),  # type: ignore[arg-type]
        (lambda: FitOptions(guard=float("nan")), "guard = nan"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        make()
