"""`NestedModel`: gradients, prefixes, what is not nested, and the calibration of BatchNorm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.hard import Hard, filled, gradients
from tests.helpers.networks import calibrated, prefix_of, small
from tests.helpers.user_families import Branches, TextEncoder
from trainer import Family, NestedModel, SubModel, TrainerError, calibrate
from trainer.nested import batchnorm_names

FAMILIES = {
    "fused qkv, tied, buffers": TextEncoder,
    "blocks on axis 1": Branches,
    "sums and scalars": Hard,
    "resnet": lambda: small("resnet"),
    "mobilenetv2": lambda: small("mobilenetv2"),
}
EVERY_KIND = pytest.mark.parametrize("family", [make() for make in FAMILIES.values()], ids=FAMILIES.keys())


def batch_of(family: Family, classes: int, examples: int = 6) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(1)
    return family.example_inputs(examples), torch.randint(0, classes, (examples,))


def cross_entropy(labels: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda outputs: F.cross_entropy(outputs["logits"], labels)


@EVERY_KIND
def test_accumulated_gradients_equal_autograd_through_the_nested_forward(family: Family) -> None:
    """Over several sub-models in one step, as training does it; a gradient that stays None does so in both."""
    nested, reference = filled(family), filled(family)
    inputs, labels = batch_of(family, 3)
    for seed, sub in enumerate([family.smallest, family.largest, *family.grid()]):
        torch.manual_seed(seed)  # dropout
        loss, outputs = nested.accumulate_gradients(sub, inputs, cross_entropy(labels))
        (logits,) = outputs.values()
        torch.manual_seed(seed)
        wanted_logits = reference(inputs, sub)
        wanted = F.cross_entropy(wanted_logits, labels)
        wanted.backward()
        assert torch.equal(logits, wanted_logits.detach())
        assert torch.equal(loss, wanted.detach())
        assert not loss.requires_grad
        assert not logits.requires_grad
        torch.testing.assert_close(gradients(nested), gradients(reference), rtol=1e-5, atol=1e-6)
    assert sum(g is not None for g in gradients(nested).values()) > 4


@EVERY_KIND
def test_gradients_can_be_clipped_in_place(family: Family) -> None:
    """Each parameter has a gradient of its own: scaling one does not scale another."""
    nested = filled(family)
    inputs, labels = batch_of(family, 3)
    nested.accumulate_gradients(family.largest, inputs, cross_entropy(labels))
    before = gradients(nested)
    for parameter in nested.full.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)
    torch.testing.assert_close(gradients(nested), {n: g if g is None else 0.5 * g for n, g in before.items()})


@EVERY_KIND
def test_training_one_sub_model_changes_its_prefix_and_nothing_else(family: Family) -> None:
    nested = filled(family)
    before = {name: p.detach().clone() for name, p in nested.full.named_parameters()}
    small_before = {name: p.detach().clone() for name, p in nested.view(family.smallest).items()}
    inputs, labels = batch_of(family, 3)
    optimizer = torch.optim.SGD(nested.full.parameters(), lr=0.1)
    nested.accumulate_gradients(family.smallest, inputs, cross_entropy(labels))
    optimizer.step()
    small_after = nested.view(family.smallest)
    changed = [name for name, old in small_before.items() if not torch.equal(old, small_after[name])]
    assert len(changed) >= len(small_before) / 2
    # Put the prefix back: then nothing may differ any more.
    blocks, full_blocks = family.fused_blocks(family.smallest), family.fused_blocks(family.largest)
    with torch.no_grad():
        for name, parameter in nested.full.named_parameters():
            if name in small_before:
                old, kept = small_before[name], blocks.get(name, {})
                place = prefix_of(
                    torch.arange(parameter.numel()).view_as(parameter), old.shape, kept, full_blocks.get(name, {})
                )
                parameter.view(-1)[place.flatten()] = old.flatten()
            assert torch.equal(parameter, before[name]), name


@EVERY_KIND
def test_the_nested_forward_equals_the_extracted_module(family: Family) -> None:
    nested = calibrated(family)
    inputs, _ = batch_of(family, 3)
    for sub in family.grid():
        assert torch.equal(nested(inputs, sub), nested.extract(sub)(*inputs.values())), sub.id


def test_a_frozen_parameter_gets_no_gradient() -> None:
    nested = filled(small("resnet"))
    nested.full.stem.weight.requires_grad_(False)
    inputs, labels = batch_of(nested.family, 3)
    nested.accumulate_gradients(nested.family.smallest, inputs, cross_entropy(labels))
    assert nested.full.stem.weight.grad is None
    assert nested.full.classifier.weight.grad is not None


def test_ties_are_kept() -> None:
    nested = filled(TextEncoder())
    for module in (nested.full, nested.extract(nested.family.smallest)):
        assert module.mix.weight is module.embedding.weight
    assert "mix.weight" not in nested.view(nested.family.smallest)  # one parameter, listed once


def test_buffers_come_from_a_real_build_of_the_size() -> None:
    family = TextEncoder()
    nested = filled(family)
    for sub in family.grid():
        assert torch.equal(nested.extract(sub).positions, family.build(sub).positions)  # type: ignore[arg-type]


def test_a_nested_model_can_be_copied() -> None:
    """For example to keep an average of the weights."""
    nested = calibrated(small("resnet"))
    inputs = nested.family.example_inputs(2)
    before = nested(inputs, nested.family.smallest)
    other = copy.deepcopy(nested)
    with torch.no_grad():
        other.full.classifier.bias.add_(1.0)
        nested.extract(nested.family.smallest).classifier.bias.sub_(1.0)  # nor does a sub-model taken out share anything
    assert torch.equal(nested(inputs, nested.family.smallest), before)
    torch.testing.assert_close(other(inputs, nested.family.smallest), before + 1.0)


NESTED = {
    "text": (filled(TextEncoder()), st.builds(SubModel, heads=st.integers(1, 3), layers=st.integers(1, 2))),
    "branches": (filled(Branches()), st.builds(SubModel, width=st.integers(1, 8))),
    "resnet": (
        filled(small("resnet")),
        st.builds(SubModel, width=st.floats(0.01, 1.0), depth=st.sampled_from([1, 2, (1, 1), (1, 2)])),
    ),
}


@given(st.sampled_from(sorted(NESTED)), st.data())
@settings(deadline=None, max_examples=60)
def test_parameters_are_prefixes_whenever_sub_models_are_nested(kind: str, data: st.DataObject) -> None:
    nested, subs = NESTED[kind]
    a, b = data.draw(subs), data.draw(subs)
    if not a <= b:
        a, b = b, a
    if not a <= b:
        return
    smaller, larger = nested.view(a), nested.view(b)
    blocks, more_blocks = nested.family.fused_blocks(a), nested.family.fused_blocks(b)
    assert smaller.keys() <= larger.keys()
    for name, parameter in smaller.items():
        wanted = prefix_of(larger[name], parameter.shape, blocks.get(name, {}), more_blocks.get(name, {}))
        assert torch.equal(parameter, wanted), (a.id, b.id, name)


class Faulty(Family):
    """A linear layer per sub-model, and whatever is wrong with it."""

    axes: ClassVar[dict[str, Sequence[int]]] = {"width": (2, 4)}

    def __init__(self, layers: Mapping[int, Mapping[str, nn.Module]], blocks: Mapping[int, Any] | None = None) -> None:
        self.layers, self.blocks = layers, blocks or {}

    def build(self, sub: SubModel) -> nn.Module:
        return nn.ModuleDict(self.layers[int(sub["width"])])  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.rand(batch_size, 3)}

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        return {"a.weight": self.blocks[int(sub["width"])]} if self.blocks else {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("small_layers", "blocks", "message"),
    [
        ({"b": nn.Linear(3, 2)}, {}, r"w2: parameter 'b\.weight' does not exist in the full model"),
        ({"a": nn.Linear(3, 5)}, {}, r"w2: axis 0 of parameter 'a\.weight' has size 5 .* full model's 4"),
        ({"a": nn.Linear(9, 2)}, {}, r"w2: axis 1 of parameter 'a\.weight' has size 9 .* full model's 3"),
        ({"a": nn.Conv1d(3, 2, 1)}, {}, r"w2: parameter 'a\.weight' has 3 axes, the full model's 2"),
        ({"a": nn.Linear(3, 4)}, {}, "w2 and w4 are the same network"),
        ({"a": nn.Linear(3, 2)}, {2: {0: (1, 1)}, 4: {0: (1, 1, 2)}}, r"w2: axis 0 .*\(1, 1\).*\(1, 1, 2\)"),
        ({"a": nn.Linear(3, 3)}, {2: {0: (1, 2)}, 4: {0: (3, 1)}}, r"w2: axis 0 .*\(1, 2\).*\(3, 1\)"),
        ({"a": nn.Linear(3, 2)}, {2: {0: (1, 2)}, 4: {0: (2, 2)}}, r"w2: axis 0 .*size 2 in blocks \(1, 2\)"),
    ],
    ids=["name", "larger", "larger inside", "axes", "twins", "number of blocks", "larger block", "sum of blocks"],
)
def test_a_family_that_is_not_nested_is_refused(small_layers: Any, blocks: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        NestedModel(Faulty({2: small_layers, 4: {"a": nn.Linear(3, 4)}}, blocks))


@pytest.mark.parametrize("axis", ["_w", "größe", "n/a", "a b"])
def test_an_axis_whose_sub_models_cannot_have_files_is_refused(axis: str) -> None:
    class Named(Faulty):
        axes: ClassVar[dict[str, Sequence[int]]] = {axis: (2, 4), f"{axis}2": (1,)}

        def build(self, sub: SubModel) -> nn.Module:
            return nn.Linear(3, int(sub[axis]))  # type: ignore[arg-type]

    with pytest.raises(TrainerError, match=f"axes '{axis}', .*would be called '.*2-.*'; allowed are"):
        NestedModel(Named({}))


def cumulative(module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Torch's own: `momentum=None` averages over the batches."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    for inputs in batches:
        module(*inputs.values())
    return dict(module.named_buffers())


@pytest.mark.parametrize("name", ["resnet", "mobilenetv2"])
def test_calibrated_statistics_are_the_average_over_the_batches(name: str) -> None:
    nested = filled(small(name)).eval()
    batches = [nested.family.example_inputs(16) for _ in range(3)]
    before = {n: p.detach().clone() for n, p in nested.full.named_parameters()}
    uncalibrated = {sub: nested(batches[0], sub) for sub in nested.submodels}
    assert all(nested.needs_calibration(sub) for sub in nested.submodels)
    calibrate(nested, batches, nested.submodels[1:])
    assert [nested.needs_calibration(sub) for sub in nested.submodels[:2]] == [True, False]
    calibrate(nested, batches)
    assert not any(nested.needs_calibration(sub) for sub in nested.submodels)
    for sub in nested.submodels:
        extracted = nested.extract(sub)
        wanted = cumulative(copy.deepcopy(extracted), batches)
        found = dict(extracted.named_buffers())
        assert any(key.endswith("running_var") for key in found)
        for key, value in found.items():
            torch.testing.assert_close(value, wanted[key], rtol=2e-3, atol=1e-6)  # float16 keeps 11 bits
        assert not torch.allclose(nested(batches[0], sub), uncalibrated[sub], rtol=0.01)
    assert all(torch.equal(p, before[n]) for n, p in nested.full.named_parameters())


def test_a_forward_pass_in_train_mode_leaves_the_calibration_alone() -> None:
    nested = calibrated(small("resnet"))
    inputs = nested.family.example_inputs(8)
    before = {sub: nested(inputs, sub) for sub in nested.submodels}
    nested.train()
    for sub in nested.submodels:
        nested(inputs, sub)
        nested.extract(sub)(*inputs.values())
    nested.eval()
    assert all(torch.equal(nested(inputs, sub), logits) for sub, logits in before.items())


def test_calibration_without_data_is_refused() -> None:
    nested = filled(small("resnet"))
    with pytest.raises(TrainerError, match="batches"):
        calibrate(nested, [])
    assert nested.needs_calibration(nested.submodels[0])


def test_statistics_that_half_precision_cannot_hold_stay_exact() -> None:
    nested = filled(Hard()).eval()
    with torch.no_grad():
        nested.full.first.mul_(1e6)
    batches = [nested.family.example_inputs(16)]
    calibrate(nested, batches)
    extracted = nested.extract(nested.family.largest)
    variance = extracted.norm.running_var.clone()  # type: ignore[union-attr, operator]
    assert variance.max() > 65504  # the largest float16
    torch.testing.assert_close(variance, cumulative(extracted, batches)["norm.running_var"], rtol=1e-6, atol=0)


class _Twice(nn.Module):
    """One BatchNorm for two places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.norm(2 + 3 * self.norm(self.first(x)).relu())
        return logits


class _Bare(nn.BatchNorm1d):
    """The network is a BatchNorm and nothing else."""


class _ByWidth(Family):
    def __init__(self, build: type[nn.Module], axes: dict[str, Sequence[int]]) -> None:
        self._build, self.axes = build, axes

    def build(self, sub: SubModel) -> nn.Module:
        return self._build(sub["width"])

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.rand(batch_size, 5)}


@pytest.mark.parametrize(("build", "widths"), [(_Twice, (3, 6)), (_Bare, (5,))])
def test_calibration_of_unusual_networks(build: type[nn.Module], widths: tuple[int, ...]) -> None:
    nested = filled(_ByWidth(build, {"width": widths})).eval()
    batches = [nested.family.example_inputs(64) for _ in range(2)]
    calibrate(nested, batches)
    for sub in nested.submodels:
        extracted = nested.extract(sub)
        wanted = cumulative(copy.deepcopy(extracted), batches)
        for key, value in extracted.named_buffers():
            torch.testing.assert_close(value, wanted[key], rtol=2e-3, atol=1e-6)


def test_a_calibration_that_fails_leaves_the_mode_as_it_was() -> None:
    nested = filled(small("resnet")).train()
    with pytest.raises(RuntimeError):
        calibrate(nested, [torch.rand(4, 7, 8, 8)])
    assert nested.training


def test_a_family_without_batchnorm_needs_no_calibration() -> None:
    nested = filled(TextEncoder())
    assert not nested.needs_calibration(nested.family.smallest)
    assert batchnorm_names(nested.full) == []
    calibrate(nested, [nested.family.example_inputs(2)])
    assert nested.calibration == {}
