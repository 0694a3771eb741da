"""A frozen teacher: what the sub-models learn from it, what it costs, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.runs import hard
from trainer import NestedModel, TrainerError, fit
from trainer.accelerator import Accelerator
from trainer.data import TokenExamples
from trainer.data.dataset import Batch, as_examples, stays_the_same
from trainer.data.token_examples import Packed
from trainer.options import FitOptions
from trainer.targets import Targeted
from trainer.tasks import Classification, Regression
from trainer.teacher import Teacher

CPU = Accelerator(torch.device("cpu"))


def of(nested: NestedModel) -> nn.Sequential:
    """Another network for the same inputs: of another architecture, with BatchNorm and dropout."""
    inputs = nested.family.example_inputs(2)
    (shape,) = (tensor.shape[1:] for tensor in inputs.values())
    (output,) = nested.outputs(inputs).values()
    torch.manual_seed(5)
    layers = nn.Linear(shape.numel(), 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, output.shape[1])
    return nn.Sequential(nn.Flatten(), *layers)


def _noisy(inputs: Any, targets: Any, generator: torch.Generator) -> tuple[Any, Any]:
    """An augmentation."""
    return {name: t + torch.rand(t.shape, generator=generator) for name, t in inputs.items()}, targets


def test_the_loss_is_the_share_of_targets_and_teacher() -> None:
    """By hand: cross-entropies at a temperature, Hinton et al. 2015."""
    nested, _ = hard()
    task, logits = (
        Classification(),
        {"logits": torch.randn(4, nested.outputs(nested.family.example_inputs(2))["logits"].shape[1])},
    )
    answers = {"logits": torch.randn_like(logits["logits"])}
    teacher = Teacher(of(nested), nested, share=0.25, temperature=2.0)
    found = teacher.loss(task, logits, answers, torch.tensor(3.0))
    soft = -((answers["logits"] / 2).softmax(1) * (logits["logits"] / 2).log_softmax(1)).sum(1).mean() * 4
    assert torch.allclose(found, 0.25 * soft + 0.75 * 3.0)
    assert torch.equal(
        Teacher(of(nested), nested, 1.0, 1.0).loss(task, logits, answers, torch.tensor(3.0)), task.distil(logits, answers)
    )


def test_it_sees_the_augmented_examples_once_a_step_and_stays_as_it_is() -> None:
    nested, data = hard()
    teacher = of(nested)
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda module, inputs, named: seen.append(named["input"].clone()), with_kwargs=True)
    was = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    given: list[Tensor] = []

    def augment(inputs: Any, targets: Any, generator: torch.Generator) -> tuple[Any, Any]:
        changed, targets = _noisy(inputs, targets, generator)
        given.extend(changed.values())
        return changed, targets

    result = fit(nested, data, epochs=2, batch_size=8, update="sandwich", augment=augment, teacher=teacher, show_progress=False)
    assert len(seen) == 1 + result.steps == 1 + result.teacher_passes  # one to look at its outputs
    assert all(torch.equal(a, b) for a, b in zip(seen[1:], given, strict=True))
    assert all(torch.equal(tensor, was[name]) for name, tensor in teacher.state_dict().items())
    assert not teacher.training
    assert result.gradient_computations > result.steps


def test_what_is_learnt_is_what_the_teacher_says() -> None:
    """Its answers, not the targets: these are all of one class."""
    nested, data = hard()
    teacher = of(nested).eval()
    with torch.no_grad():
        teacher[-1].weight.mul_(6)  # it is sure of what it says
    wrong = torch.zeros_like(data.targets)  # type: ignore[arg-type]
    inputs = data.batch(torch.arange(len(data))).inputs
    options: dict[str, Any] = {"epochs": 60, "batch_size": 16, "update": "full", "optimizer": "adamw", "show_progress": False}
    fit(nested, (inputs, wrong), teacher=teacher, **options)
    (pixels,) = inputs.values()
    with torch.no_grad():
        answers, found = teacher(pixels), nested.eval().outputs(inputs)["logits"]
    apart = F.kl_div(found.log_softmax(1), answers.log_softmax(1), reduction="batchmean", log_target=True)
    uniform = F.kl_div(torch.zeros_like(found).log_softmax(1), answers.log_softmax(1), reduction="batchmean", log_target=True)
    assert apart < 0.7 * uniform  # targets alone would bring it above


@pytest.mark.parametrize("views", [0, 2])
def test_a_resumed_run_learns_from_it_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int) -> None:
    from trainer import training

    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "teacher_share": 0.5, "temperature": 3.0, "show_progress": False}
    options |= {"teacher_views": views, "augment": _noisy if views else None}
    whole, data = hard()
    fit(whole, data, teacher=of(whole), **options)
    begun, _ = hard()
    steps = 0
    one_step = training._Training._one_step

    def stopping(self: Any, batch: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        self._save()
        return one_step(self, batch)

    monkeypatch.setattr(training._Training, "_one_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(begun, data, teacher=of(begun), run=tmp_path, **options)
    monkeypatch.undo()
    resumed, _ = hard()
    result = fit(resumed, data, teacher=of(resumed), run=tmp_path, resume=True, **options)
    of_all = 10 if views else 5  # two views of five batches each
    assert result.teacher_passes == of_all < result.steps == 15  # its answers are remembered
    assert all(torch.equal(p, q) for p, q in zip(whole.full.parameters(), resumed.full.parameters(), strict=True))


class _Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no answer")


def test_it_answers_every_view_once_and_a_view_comes_again_as_it_was() -> None:
    nested, data = hard()
    seen: list[Tensor] = []
    teacher = of(nested)
    teacher.register_forward_pre_hook(lambda module, inputs, named: seen.append(named["input"].clone()), with_kwargs=True)
    given: list[Tensor] = []

    def augment(inputs: Any, targets: Any, generator: torch.Generator) -> tuple[Any, Any]:
        changed, targets = _noisy(inputs, targets, generator)
        given.extend(changed.values())
        return changed, targets

    options: dict[str, Any] = {"epochs": 5, "batch_size": 8, "show_progress": False}
    result = fit(nested, data, teacher=teacher, augment=augment, teacher_views=2, **options)
    steps = result.steps // 5
    assert all(torch.equal(one, again) for one, again in zip(given[: 2 * steps], given[2 * steps : 4 * steps], strict=True))
    assert not torch.equal(given[0], given[steps])
    assert len(seen) == 1 + result.teacher_passes == 1 + 2 * steps  # the first one: whether it fits
    assert all(torch.equal(one, answered) for one, answered in zip(given, seen[1:], strict=False))
    for refused, why in (
        ({"teacher_views": 2}, "teacher_views = 2: there is no teacher; allowed is 0"),
        ({"teacher": teacher, "augment": augment, "teacher_views": 10**9}, "teacher_views: .* MiB of answers cannot be"),
    ):
        with pytest.raises(TrainerError, match=why):
            fit(nested, data, **options, **refused)


def test_teachers_that_do_not_fit_are_refused() -> None:
    nested, data = hard()
    wide = nn.Sequential(nn.Flatten(), nn.LazyLinear(99))
    wide(next(iter(nested.family.example_inputs(2).values())))
    with pytest.raises(
        TrainerError,
        match=r"teacher: its output 'logits' has shape \(2, 99\), the model's \(2, .*--update full.*--teacher none",
    ):
        fit(nested, data, teacher=wide, show_progress=False)
    with pytest.raises(TrainerError, match=r"teacher: asked with \w+ \(2, .*\): RuntimeError: no answer.*test_teacher"):
        fit(nested, data, teacher=_Failing(), show_progress=False)
    nested.family.with_task(Regression())
    with pytest.raises(TrainerError, match=r"temperature = 2.0: the task regression has no logits; allowed is 1"):
        Teacher(of(nested), nested, 1.0, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_share": 1.5}, "teacher_share = 1.5: allowed are values from 0 to 1"),
        ({"temperature": 0}, "temperature = 0: allowed are numbers above 0"),
        ({"temperature": float("nan")}, "temperature = nan: allowed are numbers from 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        FitOptions(**options)


@pytest.mark.parametrize("bound", [0, 10**6])
def test_its_answers_are_computed_once_where_they_are_few(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.teacher.REMEMBERED_BYTES", bound)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "update": "sandwich", "lr": 0.01, "show_progress": False}
    asked, data = hard()
    views = Data(data)  # of somebody's own, which may differ from one reading to the next: asked in every step
    result = fit(asked, views, teacher=of(asked), **options)
    assert result.teacher_passes == result.steps == 15
    nested, _ = hard()
    teacher = of(nested)
    calls: list[int] = []
    teacher.register_forward_hook(lambda *given: calls.append(1))
    result = fit(nested, data, teacher=teacher, **options)
    assert len(calls) == 1 + result.teacher_passes == (6 if bound else 16)
    for one, other in zip(nested.full.parameters(), asked.full.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Drawn:
    """Examples of unequal lengths that somebody draws anew at every reading, or says that they do not."""

    def __init__(self, samples: Any, **says: bool) -> None:
        self.samples, self.lengths = samples, torch.arange(len(samples)) % 7 + 1
        vars(self).update(says)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Tensor) -> Batch:
        inputs, targets = self.samples.batch(indices)
        return Batch({name: t + torch.rand(t.shape) for name, t in inputs.items()}, targets)


@pytest.mark.parametrize(("says", "passes"), [({}, 15), ({"repeats": False}, 15), ({"repeats": True}, 5)])
def test_answers_are_remembered_for_what_is_said_to_be_the_same_every_time(says: dict[str, bool], passes: int) -> None:
    """That examples have lengths does not say so; what we hold in memory ourselves does, whatever targets it is given."""
    nested, data = hard()
    examples = Drawn(data, **says)
    result = fit(nested, examples, teacher=of(nested), epochs=3, batch_size=8, show_progress=False)
    assert (result.teacher_passes, result.steps) == (passes, 15)
    assert stays_the_same(Targeted(examples, torch.zeros(40))) == stays_the_same(examples) == (passes == 5)
    ours = TokenExamples([[1], [2, 3]], torch.tensor([0, 1])), Packed(torch.arange(9), 4)
    assert all(stays_the_same(one) and stays_the_same(Targeted(one, torch.zeros(2))) for one in ours)
    mapped = Data(data)
    vars(mapped).update(says)
    assert stays_the_same(as_examples(mapped)) == (passes == 5)


class Data(torch.utils.data.Dataset[Any]):
    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples.inputs["input"][index], self.samples.targets[index]


def test_what_it_answers_for_padding_is_no_lesson() -> None:
    from tests.helpers.task_cases import CASES, IGNORED, Head

    case = CASES["token-classification"]
    nested = NestedModel(Head(case))
    teacher = Teacher(nested.extract(nested.family.largest), nested, 1.0, 2.0)
    outputs, targets = case.example(6)
    assert isinstance(targets, Tensor)
    answers = case.outputs(6, 9)
    disturbed = {"logits": answers["logits"] + 100.0 * (targets == IGNORED)[..., None]}
    losses = [teacher.loss(case.task, outputs, said, torch.tensor(0.0), targets) for said in (answers, disturbed)]
    assert torch.equal(*losses)
