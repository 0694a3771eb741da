"""Every registered task: it learns, refuses targets that are none of its own, scores as scikit-learn does, and distils.

A task that is registered is tested here at once: it needs a case in `tests/helpers/task_cases.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.task_cases import CASES, CLASSES, Head, Named, put
from trainer import NestedModel, Samples, Score, Task, TrainerError, fit, register_task, registered_tasks
from trainer.data.dataset import each
from trainer.evaluate import as_arrays
from trainer.task import Targets, find_task, task_name
from trainer.tasks import Classification, Embedding, LanguageModelling, Regression, Segmentation, TokenClassification
from trainer.tasks.checks import IGNORED
from trainer.tasks.entities import entities

EVERY_TASK = pytest.mark.parametrize("name", sorted(registered_tasks()))


@EVERY_TASK
@pytest.mark.parametrize("update", ["sorted", "sandwich"])
def test_it_learns(name: str, update: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    family = Head(case)
    inputs, teacher = family.example_inputs(256)["input"], family.build(family.largest)
    with torch.no_grad():
        data = Samples(inputs, case.targets({name: 3 * o for name, o in teacher(inputs).items()}))
    torch.manual_seed(2)
    nested = NestedModel(family)
    before = fit(nested, data, data, epochs=1, batch_size=256, lr=1e-9, show_progress=False)
    options: dict[str, Any] = {"optimizer": "adamw", "lr": 0.1, "clip_norm": 0.0, "update": update, "samples_per_step": 2}
    after = fit(nested, data, data, epochs=40, batch_size=64, show_progress=False, **options)
    assert before.loss is not None
    assert after.loss is not None
    assert after.loss < 0.8 * before.loss
    for sub, quality in before.validation.items():
        assert quality < after.validation[sub] <= 1


@EVERY_TASK
def test_it_takes_its_own_targets_and_refuses_others_by_field_and_value(name: str) -> None:
    case = CASES[name]
    outputs, targets = case.example(6)
    case.task.check(outputs, targets)
    case.task.check({n: o[:1] for n, o in outputs.items()}, targets)  # of the outputs only the other axes count
    for make_wrong, message in case.wrong:
        with pytest.raises(TrainerError, match=message) as caught:
            case.task.check(outputs, make_wrong(targets))
        assert "allowed" in str(caught.value)


@EVERY_TASK
def test_its_score_is_what_scikit_learn_says(name: str) -> None:
    case = CASES[name]
    for seed in range(5):
        outputs, targets = case.example(50, seed)
        score = scored(case.task, [(outputs, targets)])
        wanted = case.reference({n: o.numpy() for n, o in outputs.items()}, as_arrays(targets))
        assert score.metrics == pytest.approx(wanted, rel=1e-5)
        assert score.quality == max(0.0, score.metrics[case.task.metric])


@EVERY_TASK
@given(cuts=st.lists(st.integers(1, 29), max_size=4), seed=st.integers(0, 5))
@settings(max_examples=20)
def test_a_score_does_not_depend_on_the_batches(name: str, cuts: list[int], seed: int) -> None:
    case = CASES[name]
    outputs, targets = case.example(30, seed)
    edges = sorted({0, 30, *cuts})
    parts = [({n: o[a:b] for n, o in outputs.items()}, each(targets, lambda t, a=a, b=b: t[a:b])) for a, b in pairwise(edges)]
    assert scored(case.task, parts).metrics == pytest.approx(scored(case.task, [(outputs, targets)]).metrics, rel=1e-9)


def scored(task: Task, parts: Sequence[tuple[Named, Targets]]) -> Score:
    scorer = task.scorer()
    for outputs, targets in parts:
        scorer.add({name: output.numpy() for name, output in outputs.items()}, as_arrays(targets))
    return scorer.value()


@EVERY_TASK
def test_a_score_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(TrainerError, match="score: no example was added"):
        CASES[name].task.scorer().value()


@EVERY_TASK
def test_distillation_is_least_at_the_teachers_own_outputs(name: str) -> None:
    case = CASES[name]
    teacher = case.outputs(8)
    pupil = {n: o.clone().requires_grad_() for n, o in teacher.items()}
    case.task.distil(pupil, teacher).backward()
    assert all(float(o.grad.abs().max()) < 1e-7 for o in pupil.values())  # type: ignore[union-attr]
    least = float(case.task.distil(teacher, teacher))
    for seed in range(1, 20):
        other = {n: o + 0.1 * seed * case.outputs(8, seed)[n] for n, o in teacher.items()}
        assert float(case.task.distil(other, teacher)) > least


@EVERY_TASK
def test_the_loss_is_a_mean_over_the_batch(name: str) -> None:
    """A batch twice as large, of the same examples again, has the same loss."""
    case = CASES[name]
    outputs, targets = case.example(6)
    twice = {n: torch.cat([o, o]) for n, o in outputs.items()}
    loss = case.task.loss(twice, each(targets, lambda t: torch.cat([t, t])))
    torch.testing.assert_close(loss, case.task.loss(outputs, targets))
    assert loss.ndim == 0


@EVERY_TASK
@given(data=st.data())
@settings(max_examples=20)
def test_its_configuration_makes_it_again(name: str, data: st.DataObject) -> None:
    task = registered_tasks()[name].configured(data.draw(CASES[name].settings))
    again = find_task(task_name(task)).configured(json.loads(json.dumps(task.config())))
    assert again == task
    assert task_name(task) == name
    with pytest.raises(TrainerError, match="has no setting 'temperature'; allowed are"):
        type(task).configured({"temperature": 1})


@EVERY_TASK
def test_a_network_of_other_outputs_is_refused(name: str) -> None:
    case = CASES[name]
    outputs, targets = case.example(6)
    wrong = {n: torch.stack([o, o], dim=-1) for n, o in outputs.items()}
    with pytest.raises(TrainerError, match=r"shape \(6, .*allowed is \("):
        case.task.check(wrong, targets)


@pytest.mark.parametrize("task", [Classification(), Segmentation(), TokenClassification()], ids=lambda task: task.kind)
def test_one_class_is_none(task: Task) -> None:
    shape = {"classification": (2, 1), "segmentation": (2, 1, 3, 3), "token-classification": (2, 3, 1)}[task.kind]
    targets = torch.zeros({"classification": (2,), "segmentation": (2, 3, 3)}.get(task.kind, (2, 3)), dtype=torch.int64)
    with pytest.raises(TrainerError, match="output 'logits': 1 class; allowed are two and more"):
        task.check({"logits": torch.zeros(shape)}, targets)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_labels_may_be_of_any_whole_type_and_mean_the_same(dtype: torch.dtype) -> None:
    """torch compares in the tensor's own type, where 156 can equal -100 and 300 be as small as 44."""
    outputs = {"logits": torch.randn(4, 300, 2, 2)}
    labels = torch.tensor([[[0, 1], [99, 100]]] * 4)
    Segmentation().check(outputs, labels.to(dtype))
    torch.testing.assert_close(Segmentation().loss(outputs, labels.to(dtype)), Segmentation().loss(outputs, labels))
    if torch.iinfo(dtype).max > 156:
        Segmentation().check(outputs, put((1, 0, 1), 156)(labels).to(dtype))
        few = {"logits": torch.randn(4, 120, 2, 2)}
        with pytest.raises(TrainerError, match=r"label 156 at position \(1, 0, 1\); allowed are 0 to 119"):
            Segmentation().check(few, put((1, 0, 1), 156)(labels).to(dtype))
    bytes_of_255 = put((1, 0, 1), 255)(labels).to(torch.uint8)
    Segmentation(ignored=255).check({"logits": torch.randn(4, 120, 2, 2)}, bytes_of_255)


def test_positions_that_are_ignored_count_for_nothing() -> None:
    logits, labels = torch.randn(2, 7, CLASSES), torch.randint(0, CLASSES, (2, 7))
    labels[0, 2:] = IGNORED
    task = LanguageModelling()
    counting = torch.cat([logits[0, :2], logits[1]]), torch.cat([labels[0, :2], labels[1]])
    torch.testing.assert_close(task.loss({"logits": logits}, labels), F.cross_entropy(*counting))
    nothing = torch.full((2, 7), IGNORED)
    assert float(task.loss({"logits": logits}, nothing)) == 0.0
    with pytest.raises(TrainerError, match="no example was added"):
        scored(task, [({"logits": logits}, nothing)])


def test_a_bare_target_is_a_column() -> None:
    task, outputs, targets = Regression(), {"values": torch.randn(6, 1)}, torch.randn(6)
    task.check(outputs, targets)
    torch.testing.assert_close(task.loss(outputs, targets), F.mse_loss(outputs["values"][:, 0], targets))
    assert scored(task, [(outputs, targets)]) == scored(task, [(outputs, targets[:, None])])


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=20), st.floats(-1e6, 1e6), st.floats(0, 100))
def test_explained_variance_of_any_numbers(wanted: list[float], first: float, error: float) -> None:
    """Exact far from zero too, for a constant, and for a perfect answer."""
    targets = np.array([first, *wanted])[:, None]
    found = targets + error * np.cos(np.arange(len(targets)))[:, None]
    scorer = Regression().scorer()
    for row in range(len(targets)):
        scorer.add({"values": found[row : row + 1]}, targets[row : row + 1])
    score = scorer.value()
    r2 = metrics.r2_score(targets, found)
    assert score.metrics["r2"] == pytest.approx(r2, rel=1e-4, abs=1e-6) or abs(r2) > 1e9
    assert 0 <= score.quality <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(label_smoothing=1.0), "label_smoothing = 1.0: allowed are values from 0 to below 1"),
        (lambda: Regression(objective="log"), "objective = 'log': allowed are mse, mae, huber"),
        (lambda: Regression(names=()), r"names = \(\): allowed is at least one output name"),
        (lambda: Regression(names=("a", "a")), "names = .*each once"),
    ],
)
def test_a_setting_outside_its_range_is_refused(make: Callable[[], Task], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        make()


def test_label_smoothing_is_the_classifications_alone() -> None:
    case = CASES["regression"]
    nested = NestedModel(Head(case))
    data = Samples(nested.family.example_inputs(8)["input"], case.targets(case.outputs(8)))
    with pytest.raises(TrainerError, match=r"label_smoothing = 0.1: allowed for classification; the task is regression"):
        fit(nested, data, label_smoothing=0.1, show_progress=False)


def test_a_task_is_found_by_name_or_as_module_and_class() -> None:
    assert find_task("regression") is Regression
    assert find_task("trainer.tasks.dense:Segmentation") is Segmentation
    with pytest.raises(TrainerError, match=r"unknown task 'guessing'; known are classification, .*, or module:Name"):
        find_task("guessing")
    with pytest.raises(TrainerError, match=r"'trainer\.tasks\.checks:single': is not a subclass of trainer\.Task"):
        find_task("trainer.tasks.checks:single")


def test_a_task_name_is_given_once() -> None:
    register_task(Regression)
    with pytest.raises(TrainerError, match="task name 'regression' is taken by Regression"):
        register_task(Classification, "regression")
    assert find_task("regression") is Regression


@pytest.mark.parametrize(
    ("tags", "found"),
    [  # as seqeval 1.2.2 has them
        ("O B-a I-a O B-b", {("a", 1, 2), ("b", 4, 4)}),
        ("B-a B-a I-a", {("a", 0, 0), ("a", 1, 2)}),
        ("I-a I-a O I-b", {("a", 0, 1), ("b", 3, 3)}),
        ("B-a I-b I-b", {("a", 0, 0), ("b", 1, 2)}),
        ("S-a S-a B-a E-a I-a", {("a", 0, 0), ("a", 1, 1), ("a", 2, 3), ("a", 4, 4)}),
        ("B-a-b I-a-b", {("a-b", 0, 1)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_are_those_that_the_field_counts(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_where_labels_are_tags_whole_entities_count() -> None:
    """By hand: of three entities one is found, of the two that are found one is right; ignored places are not there."""
    names = ("O", "B-a", "I-a", "B-b")
    task = TokenClassification().with_labels(names)
    wanted = torch.tensor([[1, IGNORED, 2, 0, 3], [IGNORED, 1, 0, 0, IGNORED]])
    found = torch.tensor([[1, 3, 2, 3, 0], [0, 0, 0, 0, 1]])
    logits = F.one_hot(found, 4).float()
    task.check({"logits": logits}, wanted)
    score = scored(task, [({"logits": logits}, wanted)])
    assert (task.metric, score.quality) == ("entity_f1", pytest.approx(2 / 5))
    assert score.metrics == pytest.approx(
        {"entity_f1": 2 / 5, "entity_precision": 1 / 2, "entity_recall": 1 / 3, "token_accuracy": 4 / 7}
    )
    assert TokenClassification().with_labels(["noun", "verb"]) == TokenClassification()
    with pytest.raises(TrainerError, match="labels: 4 names; allowed are 5, one for each class of 'logits'"):
        task.check({"logits": torch.zeros(2, 5, 5)}, wanted)


def test_what_the_largest_answers_for_padding_is_no_lesson() -> None:
    from trainer.updates import make_rule

    case = CASES["token-classification"]
    outputs, targets = case.example(6)
    assert isinstance(targets, Tensor)
    family = Head(case)
    rule = make_rule("sandwich", family.grid(), 1)
    teacher = case.outputs(6, 9)
    losses = []
    for noise in (0.0, 100.0):
        ignored = (targets == IGNORED)[..., None]
        disturbed = {"logits": teacher["logits"] + noise * ignored}
        losses.append(rule.loss(case.task, outputs, targets, {family.largest: disturbed}))
    assert torch.equal(*losses)
    nothing = torch.full_like(targets, IGNORED)
    assert float(rule.loss(case.task, outputs, nothing, {family.largest: teacher})) == 0.0


def test_a_smaller_vector_is_measured_by_the_first_numbers_of_the_larger() -> None:
    task, vectors = Embedding(), torch.randn(6, 8)
    first = {"embedding": 3 * vectors[:, :3]}
    assert float(task.loss(first, vectors)) == pytest.approx(0, abs=1e-6)
    assert float(task.distil(first, {"embedding": vectors})) == pytest.approx(0, abs=1e-6)
    assert scored(task, [(first, vectors)]).quality == pytest.approx(1)
    assert scored(task, [({"embedding": -vectors}, vectors)]) == Score(0.0, {"cosine": pytest.approx(-1)})
