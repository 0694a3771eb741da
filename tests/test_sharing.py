"""What sub-models have in common is computed once, and nothing else."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.test_families import calibrated, one_thread, small  # noqa: F401
from trainer import Samples, calibrate
from trainer import calibration as calibration_module
from trainer import evaluate as evaluate_module
from trainer.evaluate import accuracies_of
from trainer.sharing import SharedComputation


@pytest.mark.parametrize("name", ["resnet", "mobilenetv2"])
def test_results_are_the_same_to_the_bit_and_first_layers_are_computed_once(name: str) -> None:
    nested = calibrated(small(name))
    inputs = nested.family.example_inputs(4)
    with torch.no_grad():
        alone = {sub: nested(inputs, sub) for sub in nested.submodels}
        with SharedComputation() as sharing:
            together = {sub: nested(inputs, sub) for sub in nested.submodels}
    assert sharing.hits > len(nested.submodels)
    assert all(torch.equal(alone[sub], together[sub]) for sub in alone)


@pytest.mark.parametrize("name", ["resnet", "mobilenetv2"])
def test_calibration_and_accuracy_do_not_depend_on_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = calibrated(small(name))
    images = nested.family.example_inputs(40)["input"]
    examples = Samples((images,), torch.arange(40) % 3)
    results = []
    for sharing in (lambda device: SharedComputation(), lambda device: nullcontext()):
        monkeypatch.setattr(calibration_module, "sharing", sharing)
        monkeypatch.setattr(evaluate_module, "sharing", sharing)
        calibrate(nested, [(images[:20],), (images[20:],)])
        results.append((dict(nested.calibration), accuracies_of(nested, nested.submodels, examples)))
    (first, accuracies), (second, again) = results
    assert accuracies == again
    assert len(set(accuracies.values())) > 1
    assert all(torch.equal(first[sub][key], second[sub][key]) for sub in first for key in first[sub])


@torch.no_grad()
def test_what_is_changed_in_place_is_computed_again() -> None:
    x, weight = torch.rand(64, 128), torch.rand(128, 128)
    with SharedComputation() as sharing:
        first = x @ weight
        wanted = first.clone()
        first.relu_().add_(1)
        second = x @ weight
        assert sharing.hits == 0
        assert torch.equal(second, wanted)
        weight.mul_(2)
        assert torch.equal(x @ weight, 2 * wanted)


@torch.no_grad()
def test_a_tensor_in_the_place_of_a_freed_one_is_another() -> None:
    with SharedComputation():
        for number in range(20):
            x = torch.full((64, 128), float(number))
            assert float((x * 2).max()) == 2 * number


@torch.no_grad()
def test_random_numbers_and_running_statistics_are_never_shared() -> None:
    x = torch.rand(64, 128)
    norm = nn.BatchNorm1d(128)
    with SharedComputation():
        assert not torch.equal(F.dropout(x, 0.5), F.dropout(x, 0.5))
        assert not torch.equal(torch.rand_like(x), torch.rand_like(x))
        for count in (1, 2):
            norm(x)
            assert int(norm.num_batches_tracked or 0) == count
        moved_twice = norm.running_mean
    assert isinstance(moved_twice, Tensor)
    torch.testing.assert_close(moved_twice, x.mean(dim=0) * (1 - 0.9**2))


@torch.no_grad()
def test_the_least_recently_used_results_go_first() -> None:
    inputs = [torch.rand(64, 128) for _ in range(4)]  # each result of 32 KiB
    with SharedComputation(megabytes=3 * 32 / 1024) as sharing:
        for x in (inputs[0], inputs[1], inputs[2], inputs[0], inputs[3]):
            x.exp()
        assert sharing.hits == 1
        assert sharing.megabytes == 3 * 32 / 1024
        inputs[0].exp()
        inputs[3].exp()
        assert sharing.hits == 3
        inputs[1].exp()  # had gone
        assert sharing.hits == 3
