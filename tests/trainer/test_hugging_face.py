"""Nested models over Hugging Face modules: prefixes, ties, buffers, a step's gradients, and masks that are taken by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.hard import filled, gradients
from tests.helpers.hugging_face import HEAD, Bert, Llama, MiniLM
from tests.helpers.networks import prefix_of
from trainer import Family, NestedModel, Samples, SubModel, fit
from trainer.tasks import LanguageModelling
from trainer.tasks.checks import IGNORED


class Tied(Llama):
    """A LLaMA whose words are predicted with their own embeddings."""

    def build(self, sub: SubModel) -> nn.Module:
        config = LlamaConfig(**self.sizes(sub), hidden_size=32, head_dim=HEAD, num_key_value_heads=2, tie_word_embeddings=True)
        module: nn.Module = LlamaForCausalLM(config)
        return module


def mini() -> MiniLM:
    """Everything as in MiniLM, but smaller."""
    return MiniLM(vocabulary=50, layers=(1, 2), heads=(2, 4), intermediate=(16, 32), head=8)


FAMILIES = {"bert": Bert, "fewer heads": mini, "llama": Llama, "tied": Tied}
EVERY_KIND = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())


@EVERY_KIND
def test_a_sub_model_is_a_prefix_and_answers_as_the_module_alone(make: Any) -> None:
    family = make()
    nested = filled(family).eval()
    full, inputs = dict(nested.full.named_parameters()), family.example_inputs(4)
    for sub in family.grid():
        alone = nested.extract(sub)
        for name, parameter in alone.named_parameters():
            assert torch.equal(parameter, prefix_of(full[name], parameter.shape, {}, {})), (sub.id, name)
        assert torch.equal(nested.outputs(inputs, sub)["logits"], alone(**inputs).logits), sub.id


@EVERY_KIND
def test_buffers_and_ties_are_those_of_a_real_build(make: Any) -> None:
    family = make()
    nested = NestedModel(family)
    for sub in family.grid():
        real, skeleton = family.build(sub), nested.skeleton(sub)
        buffers = nested.buffers_of(sub)
        assert list(buffers) == [name for name, _ in real.named_buffers()]
        assert all(torch.equal(buffers[name], buffer) for name, buffer in real.named_buffers())
        assert [n for n, _ in skeleton.named_parameters()] == [n for n, _ in real.named_parameters()]  # a tied one once
        assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    tied = [name for name, first in nested.canonical_names.items() if name != first]
    assert tied == (["lm_head.weight"] if make is Tied else [])


@EVERY_KIND
def test_a_steps_gradients_equal_autograd_through_the_forward_pass(make: Any) -> None:
    family = make()
    nested, reference = filled(family).eval(), filled(family).eval()
    inputs = family.example_inputs(4)
    targets = inputs["input_ids"] if isinstance(family.task, LanguageModelling) else torch.tensor([0, 1, 1, 0])
    for sub in (family.smallest, family.largest, *family.grid()):
        loss, _ = nested.accumulate_gradients(sub, inputs, lambda outputs: family.task.loss(outputs, targets))
        wanted = family.task.loss(reference.outputs(inputs, sub), targets)
        wanted.backward()  # type: ignore[no-untyped-call]
        assert torch.equal(loss, wanted.detach())
        torch.testing.assert_close(gradients(nested), gradients(reference), rtol=1e-5, atol=1e-6)


def test_a_mask_reaches_the_network() -> None:
    """What is masked does not matter, what is not does; in training as alone."""
    family = mini()
    nested = filled(family).eval()
    inputs = family.example_inputs(4)
    for sub in family.grid():
        before = nested.outputs(inputs, sub)["logits"]
        masked = {**inputs, "input_ids": torch.where(inputs["attention_mask"] == 0, 7, inputs["input_ids"])}
        assert torch.allclose(nested.outputs(masked, sub)["logits"], before, atol=1e-6)
        without = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
        changed = (nested.outputs(without, sub)["logits"] - before).abs().amax(dim=1) > 1e-4
        assert changed.tolist() == [False, True, False, True]


def texts(family: Family, count: int = 48) -> Samples:
    """Texts of growing numbers modulo the vocabulary; their class is the step's, their next tokens follow from it."""
    torch.manual_seed(0)
    steps, length = torch.randint(0, 2, (count,)), 12
    ids = (torch.randint(0, 50, (count, 1)) + (1 + 6 * steps[:, None]) * torch.arange(length + 1)) % 50
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[::3, -2:] = 0
    inputs = {"attention_mask": mask, "input_ids": ids[:, :-1]}
    if isinstance(family.task, LanguageModelling):
        return Samples(inputs, torch.where(mask == 1, ids[:, 1:], IGNORED))
    return Samples(inputs, steps)


@pytest.mark.parametrize(
    ("kind", "precision"), [*((kind, "fp32") for kind in FAMILIES), ("fewer heads", "bf16"), ("llama", "bf16")]
)
def test_it_learns(kind: str, precision: str) -> None:
    torch.manual_seed(0)
    nested = NestedModel(FAMILIES[kind]())
    data = texts(nested.family)
    options: dict[str, Any] = {"optimizer": "adamw", "batch_size": 16, "precision": precision, "show_progress": False}
    begun = fit(nested, data, data, epochs=1, lr=1e-9, **options)
    result = fit(nested, data, data, epochs=8, lr=0.01, samples_per_step=2, **options)
    assert result.loss is not None
    assert begun.loss is not None
    assert result.loss < 0.8 * begun.loss
    assert all(result.validation[sub] > quality for sub, quality in begun.validation.items())


class _Filled(Family):
    """Parameters and buffers filled in the ways that people fill them."""

    axes: ClassVar[dict[str, Sequence[int]]] = {"width": (2, 4)}  # type: ignore[misc]

    def build(self, sub: SubModel) -> nn.Module:
        width = int(sub["width"])  # type: ignore[arg-type]
        module = nn.Linear(3, width)
        module.more = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, 3)))
        module.ones = nn.Buffer(nn.init.ones_(torch.empty(width)))
        module.mask = nn.Buffer(torch.empty(width, width))
        nn.init.eye_(module.mask)
        nn.init.trunc_normal_(tensor=module.weight)
        return module

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.rand(batch_size, 3)}


def test_only_parameters_are_left_unfilled() -> None:
    """Here transformers is imported, whose own way of leaving them so would empty buffers too."""
    nested = NestedModel(_Filled())
    for sub in nested.submodels:
        width = int(sub["width"])  # type: ignore[arg-type]
        assert nested.skeleton(sub).more.shape == (width, 3)
        buffers = nested.buffers_of(sub)
        assert torch.equal(buffers["ones"], torch.ones(width))
        assert torch.equal(buffers["mask"], torch.eye(width))
    assert float(nested.full.weight.detach().std()) > 0.1  # type: ignore[operator, union-attr, arg-type]
    out = F.linear(torch.ones(1, 3), nested.view(nested.family.smallest)["weight"], nested.view(nested.family.smallest)["bias"])
    assert torch.equal(nested(torch.ones(1, 3), nested.family.smallest), out)


def test_the_numbers_that_a_training_draws_are_the_same_whatever_was_built_before() -> None:
    """A truncated normal draws until nothing lies outside, which hung on what was in memory."""

    class Truncated(_Filled):
        def build(self, sub: SubModel) -> nn.Module:
            module = super().build(sub)
            assert isinstance(module, nn.Linear)
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            return module

    torch.manual_seed(0)
    nested = NestedModel(Truncated())
    after = torch.rand(3)
    torch.manual_seed(0)
    nested.family.build(nested.family.largest)
    nested.family.example_inputs(1)
    assert torch.equal(after, torch.rand(3))


def test_minilm_has_48_sub_models_none_of_which_is_another() -> None:
    nested = NestedModel(MiniLM())
    assert len(nested.submodels) == 48
    sizes = {sum(p.numel() for p in nested.skeleton(sub).parameters()) for sub in nested.submodels}
    assert len(sizes) == 48
    assert max(sizes) == sum(p.numel() for p in nested.full.parameters()) == 22_713_986
