"""How often parameters are used, and gradients that make up for it."""

from __future__ import annotations

import pytest
import torch

from tests.test_families import one_thread  # noqa: F401
from tests.test_nested import EVERY_KIND
from trainer import Family, NestedModel
from trainer.usage import UsageScaling, usage_of


@EVERY_KIND
def test_usage_is_the_share_of_passes_that_leave_a_gradient(family: Family) -> None:
    nested = NestedModel(family).train()
    weights = [float(place + 1) for place in range(len(nested.submodels))]
    shares = {sub: weight / sum(weights) for sub, weight in zip(nested.submodels, weights, strict=True)}
    wanted = {name: torch.zeros_like(p) for name, p in nested.full.named_parameters()}
    for sub, share in shares.items():
        for name, part in nested.view(sub).items():
            marked = torch.zeros_like(wanted[name], requires_grad=True)
            kept = nested.segments(sub)[name]
            cut_out = marked
            for axis, slices in enumerate(kept):
                cut_out = torch.cat([cut_out.narrow(axis, s.start, s.stop - s.start) for s in slices], dim=axis)
            assert cut_out.shape == part.shape
            (gradient,) = torch.autograd.grad(cut_out.sum(), marked)
            wanted[name] += share * gradient
    found = usage_of(nested, shares)
    assert found.keys() == wanted.keys()
    for name, usage in found.items():
        torch.testing.assert_close(usage, wanted[name])
        assert usage.max() <= 1 + 1e-6
    assert any(usage.min() < 0.99 for usage in found.values())


@EVERY_KIND
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_gradients_are_divided_by_a_power_of_the_usage(family: Family, power: float) -> None:
    nested = NestedModel(family).train()
    shares = dict.fromkeys(nested.submodels, 1 / len(nested.submodels))
    inputs = tuple(family.example_inputs(4).values())
    nested.accumulate_gradients(family.largest, inputs, lambda logits: logits.square().sum())
    before = {n: p.grad.clone() for n, p in nested.full.named_parameters() if p.grad is not None}
    UsageScaling(nested, shares, power).apply()
    usage = usage_of(nested, shares)
    for name, gradient in before.items():
        found = nested.full.get_parameter(name).grad
        torch.testing.assert_close(found, gradient / usage[name] ** power)


def test_what_is_never_used_has_no_factor() -> None:
    nested = NestedModel(EVERY_KIND.args[1][0])
    scaling = UsageScaling(nested, {nested.family.smallest: 1.0}, 1.0)
    assert all(torch.isfinite(factor).all() and (factor == 1).all() for factor in scaling.factors.values())
