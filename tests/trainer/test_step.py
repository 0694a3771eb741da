"""Parts of a batch, one after the other: the gradient of the whole, whatever a task's loss is the mean of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.task_cases import CASES, Head
from trainer import FitOptions, NestedModel, TrainerError
from trainer.accelerator import find_accelerator
from trainer.compatibility import check_fits
from trainer.data.dataset import Samples
from trainer.step import Gradients
from trainer.task import Targets
from trainer.tasks import LanguageModelling
from trainer.tasks.checks import IGNORED
from trainer.teacher import teacher_for
from trainer.updates import make_rule

STEPS: dict[str, dict[str, Any]] = {
    "plain": {"update": "sum"},
    "sandwich": {"update": "sandwich"},
    "teacher": {"update": "sum", "teacher_share": 0.5},
    "sandwich-teacher": {"update": "sandwich", "teacher_share": 0.5},
}
TASKS = {**CASES, "some-positions": replace(CASES["language-modelling"], task=LanguageModelling(positions=2))}


def gradient(nested: NestedModel, inputs: Tensor, targets: Targets, teacher: nn.Module | None, **options: Any) -> Tensor:
    """The loss of a step and all its gradients in a row."""
    said, accelerator = FitOptions(accelerator="cpu", **options), find_accelerator("cpu")
    rule = make_rule(said.update, nested.submodels, 1)
    taught = teacher_for(nested, teacher, said)
    step = Gradients(nested.train(), nested.family.task, rule, taught, accelerator, accelerator.scaler(), said)
    nested.full.zero_grad(set_to_none=True)
    subs = rule.sample(0, 0)
    loss = step.accumulate(dict.fromkeys(subs, 1 / len(subs)), {"input": inputs}, targets, seed=3)
    return torch.cat([torch.tensor([loss]), *(p.grad.flatten() for p in nested.full.parameters() if p.grad is not None)])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", TASKS)
def test_parts_of_a_batch_give_the_gradient_of_the_whole(name: str, step: str) -> None:
    torch.manual_seed(0)
    family = Head(TASKS[name])
    nested, other = NestedModel(family), NestedModel(family)
    inputs = family.example_inputs(8)["input"]
    _, targets = family.case.example(8)
    for tensor in targets.values() if isinstance(targets, dict) else [targets]:
        if bool((tensor == IGNORED).any()):  # of the first part nearly nothing counts, of the second everything
            tensor[0] = IGNORED
            tensor[1].flatten()[1:] = IGNORED
    teacher = other.extract(family.largest).eval() if "teacher_share" in STEPS[step] else None
    whole, parts, singly = (
        gradient(nested, inputs, targets, teacher, micro_batches=count, **STEPS[step]) for count in (1, 3, 8)
    )
    assert float(whole[1:].norm()) > 1e-3
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(singly, whole, rtol=1e-4, atol=1e-6)


def test_a_length_that_only_the_whole_batch_has_is_refused_in_parts() -> None:
    family = Head(CASES["classification"])
    _, targets = family.case.example(8)
    samples = Samples({"input": torch.randn(8, 4)}, targets)
    message = r"micro_batches = 2: teacher_hidden = 0\.5 is .* allowed is 1, or teacher_hidden 0"
    with pytest.raises(TrainerError, match=message):
        check_fits(NestedModel(family), samples, None, FitOptions(micro_batches=2, teacher_hidden=0.5))
