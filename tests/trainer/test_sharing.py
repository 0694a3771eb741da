"""What sub-models have in common is computed once, and nothing else."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.networks import calibrated, small
from trainer import Samples, calibrate
from trainer import calibration as calibration_module
from trainer import evaluate as evaluate_module
from trainer.evaluate import scores_of
from trainer.speed.sharing import SharedComputation


@pytest.mark.parametrize("name", ["resnet", "mobilenetv2"])
def test_results_are_the_same_to_the_bit_and_first_layers_are_computed_once(name: str) -> None:
    nested = calibrated(small(name))
    inputs = nested.family.example_inputs(4)
    with torch.no_grad():
        alone = {sub: nested(inputs, sub) for sub in nested.submodels}
        sharing = SharedComputation()
        together = {}
        for sub in nested.submodels:
            with sharing:
                together[sub] = nested(inputs, sub)
    assert sharing.hits > len(nested.submodels)
    assert all(torch.equal(alone[sub], together[sub]) for sub in alone)


@pytest.mark.parametrize("name", ["resnet", "mobilenetv2"])
def test_calibration_and_accuracy_do_not_depend_on_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = calibrated(small(name))
    images = nested.family.example_inputs(40)["input"]
    examples = Samples(images, torch.arange(40) % 3)
    results = []
    for sharing in (lambda device: SharedComputation(), lambda device: nullcontext()):
        monkeypatch.setattr(calibration_module, "sharing", sharing)
        monkeypatch.setattr(evaluate_module, "sharing", sharing)
        calibrate(nested, [images[:20], images[20:]])
        scores = scores_of(nested, nested.submodels, examples)
        results.append((dict(nested.calibration), {sub: score.quality for sub, score in scores.items()}))
    (first, accuracies), (second, again) = results
    assert accuracies == again
    assert len(set(accuracies.values())) > 1
    assert all(torch.equal(first[sub][key], second[sub][key]) for sub in first for key in first[sub])


@torch.no_grad()
def test_what_is_changed_in_place_is_computed_again() -> None:
    x, weight = torch.rand(64, 128), torch.rand(128, 128)
    wanted = x @ weight
    sharing = SharedComputation()
    with sharing:
        (x @ weight).relu_().add_(1)
    with sharing:
        assert torch.equal(x @ weight, wanted)
        weight.mul_(2)
    with sharing:
        assert torch.equal(x @ weight, 2 * wanted)
    assert sharing.hits == 0


@torch.no_grad()
def test_what_one_pass_asks_for_twice_it_may_change_apart() -> None:
    x = torch.rand(64, 128)
    sharing = SharedComputation()
    for _ in range(2):
        with sharing:
            first, second = x.exp(), x.exp()
            state, memory = torch.zeros_like(x), torch.zeros_like(x)
            first.add_(1)
            state.add_(1)
            assert torch.equal(second, x.exp())
            assert not memory.any()


@torch.no_grad()
def test_a_tensor_in_the_place_of_a_freed_one_is_another() -> None:
    sharing = SharedComputation()
    for number in range(20):
        x = torch.full((64, 128), float(number))
        with sharing:
            assert float((x * 2).max()) == 2 * number


@torch.no_grad()
def test_random_numbers_and_running_statistics_are_never_shared() -> None:
    x = torch.rand(64, 128)
    norm = nn.BatchNorm1d(128)
    sharing = SharedComputation()
    drawn = []
    for count in (1, 2):
        with sharing:
            drawn.append((F.dropout(x, 0.5), torch.rand_like(x)))
            norm(x)
        assert int(norm.num_batches_tracked or 0) == count
    assert not any(torch.equal(first, second) for first, second in zip(*drawn, strict=True))
    moved_twice = norm.running_mean
    assert isinstance(moved_twice, Tensor)
    torch.testing.assert_close(moved_twice, x.mean(dim=0) * (1 - 0.9**2))


@torch.no_grad()
def test_the_least_recently_used_results_go_first() -> None:
    inputs = [torch.rand(64, 128) for _ in range(4)]  # each result of 32 KiB
    sharing = SharedComputation(megabytes=3 * 32 / 1024)

    def hits_after(*numbers: int) -> int:
        for number in numbers:
            with sharing:
                inputs[number].exp()
        return sharing.hits

    assert hits_after(0, 1, 2, 0, 3) == 1
    assert sharing.megabytes == 3 * 32 / 1024
    assert hits_after(0, 3) == 3
    assert hits_after(1) == 3  # had gone
