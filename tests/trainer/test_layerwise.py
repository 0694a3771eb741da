"""A network as a stack of blocks: rates that fall towards the inputs, and what lies between layers, learnt from a teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.embedders import Embedder
from tests.helpers.hugging_face import Bert
from tests.helpers.runs import hard, weights
from trainer import NestedModel, Samples, TrainerError, fit
from trainer.blocks import blocks_above
from trainer.hidden import distance
from trainer.importance import sort_by_importance
from trainer.order import in_order
from trainer.teacher import Answers, Teacher

ONE_STEP: dict[str, Any] = {"epochs": 1, "batch_size": 16, "update": "full", "show_progress": False}
PLAIN: dict[str, Any] = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0}


def bert() -> tuple[NestedModel, Samples]:
    torch.manual_seed(0)
    nested = NestedModel(Bert(layers=(1, 2, 3)))
    with torch.no_grad():
        for parameter in nested.full.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return nested, Samples(nested.family.example_inputs(16), torch.arange(16) % 3)


def test_the_rate_of_a_block_falls_with_each_block_above() -> None:
    """By hand: one step of plain gradient descent goes as far as the rate allows."""
    moved: list[dict[str, torch.Tensor]] = []
    for decay in (1.0, 0.5):
        nested, data = bert()
        before = weights(nested)
        fit(nested, data, layer_decay=decay, **ONE_STEP, **PLAIN)
        moved.append({name: now - before[name] for name, now in weights(nested).items()})
    for name, far in moved[0].items():
        part = next((i for i in range(3) if f"layer.{i}." in name), None)
        above = 3 if ".embeddings." in name else 0 if part is None else 2 - part
        torch.testing.assert_close(moved[1][name], far * 0.5**above, rtol=1e-3, atol=1e-6)
    assert any(float(far.abs().max()) > 1e-3 for name, far in moved[0].items() if ".embeddings." in name)


def test_embeddings_are_lowest_wherever_they_are_registered() -> None:
    module = torch.nn.Module()
    module.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
    module.words, module.head = torch.nn.Embedding(3, 2), torch.nn.Linear(2, 2)
    assert [blocks_above(module)[f"{name}.weight"] for name in ("words", "blocks.0", "blocks.1", "head")] == [2, 1, 0, 0]


def test_a_network_without_blocks_has_neither() -> None:
    nested, data = hard()
    with pytest.raises(TrainerError, match=r"layer_decay = 0.5: the network has no blocks .*; allowed is 1"):
        fit(nested, data, layer_decay=0.5, **ONE_STEP)
    teacher = nested.extract(nested.family.largest)
    with pytest.raises(TrainerError, match=r"Hard: has no layers that are known .*`hidden_states`"):
        fit(nested, data, teacher=teacher, teacher_hidden=0.5, **ONE_STEP)


def test_the_distance_by_hand() -> None:
    """Of two layers the first meets the teacher's second of four, of the first numbers, where the mask lets it."""
    torch.manual_seed(0)
    teacher = [torch.randn(2, 3, 4) for _ in range(4)]
    states = [torch.randn(2, 3, 2) for _ in range(2)]
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    there = mask.bool()
    pairs = [(s[there], t[there][:, :2]) for s, t in zip(states, (teacher[1], teacher[3]), strict=True)]
    wanted = sum((s - t).square().sum() / t.square().sum() for s, t in pairs) / 2
    torch.testing.assert_close(distance(states, teacher, {"attention_mask": mask}), wanted)
    with pytest.raises(TrainerError, match=r"teacher_hidden: layer 1 gives \(2, 3, 5\), the teacher's layer 2 \(2, 3, 4\)"):
        distance([torch.randn(2, 3, 5)] * 2, teacher, {})


def test_a_sub_model_learns_what_lies_between_its_teachers_layers() -> None:
    """Of the full model itself nothing is to be learnt: it is as far from itself as 0, the smaller ones are not."""
    nested, data = bert()
    original = nested.eval().extract(nested.family.largest)
    teacher = Teacher(original, nested, 1.0, 1.0, hidden=2.0)
    inputs = dict(data.inputs)
    answers = teacher.answers(inputs, _cpu())
    far = []
    for sub in (nested.family.largest, nested.family.smallest):
        with torch.no_grad(), teacher.states_of(nested.skeleton(sub)) as states:
            nested.outputs(inputs, sub)
        far.append(float(teacher.of_hidden(states, answers, inputs)))
    assert far[0] == pytest.approx(0, abs=1e-9)
    assert far[1] > 0.1
    options = {"epochs": 30, "batch_size": 16, "update": "sum", "optimizer": "adamw", "lr": 3e-3, "show_progress": False}
    result = fit(nested, data, teacher=original, teacher_hidden=2.0, **options)
    assert result.teacher_passes == result.steps  # what lies between is too much to be remembered
    with torch.no_grad(), teacher.states_of(nested.skeleton(nested.family.smallest)) as states:
        nested.eval().outputs(inputs, nested.family.smallest)
    assert float(teacher.of_hidden(states, Answers(answers.outputs, answers.states), inputs)) < 0.7 * far[1]


def _cpu() -> Any:
    from trainer.accelerator import Accelerator

    return Accelerator(torch.device("cpu"))


def test_a_teachers_units_are_put_in_the_order_of_its_pupils() -> None:
    torch.manual_seed(0)
    original, pupil = NestedModel(Embedder()), NestedModel(Embedder())
    pupil.full.load_state_dict(original.full.state_dict())
    sorting = sort_by_importance(pupil, criterion="magnitude")
    assert not _same(original, pupil)
    assert _same(in_order(original, pupil, sorting.orders), pupil)
    other = NestedModel(Embedder(vocabulary=9))
    message = r"the teacher is of another network: parameter 'words.weight' is \(9, 8\), in the one to train \(40, 8\)"
    with pytest.raises(TrainerError, match=message):
        in_order(other, pupil, sorting.orders)


def _same(one: NestedModel, other: NestedModel) -> bool:
    pairs = zip(one.full.parameters(), other.full.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [(4, r"teacher: its output 'embedding' has shape \(2, 4\), the model's \(2, 8\)"), (12, "")],
)
def test_a_teachers_vector_may_be_longer_and_not_shorter(hidden: int, message: str) -> None:
    nested = NestedModel(Embedder())
    other = Embedder()
    other.axes = {**other.axes, "hidden": (hidden,)}
    module = other.build(other.largest)
    data = Samples(nested.family.example_inputs(16)["input"], torch.randn(16, 8))
    if message:
        with pytest.raises(TrainerError, match=message):
            fit(nested, data, teacher=module, **ONE_STEP)
    else:
        assert fit(nested, data, teacher=module, **ONE_STEP).teacher_passes == 1
