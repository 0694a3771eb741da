"""Units may be put in another order: which belong together is found for any network, and what it computes stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import user_families
from trainer import Family, NestedModel, Samples, SubModel, TrainerError, calibrate, importance
from trainer.families import MobileNetV2, ResNet
from trainer.importance import reorder, sort_by_importance
from trainer.symmetry import find_symmetry, scores_by_unit
from trainer.symmetry.axes import Node, factored, joined, product, side_by_side, unite


class _Own(Family):
    """Axis `width`: channels. `module(channels)` builds the network; inputs are pictures of 8 × 8."""

    axes: ClassVar[dict[str, Sequence[int]]] = {"width": (4, 8)}
    module: Callable[[int], nn.Module]

    def build(self, sub: SubModel) -> nn.Module:
        width = sub["width"]
        assert isinstance(width, int)
        return type(self).module(width)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.rand(batch_size, 3, 8, 8)}


class _Grouped(nn.Module):
    """Grouped and depthwise convolutions, group norm, squeeze and excitation, a skip that is joined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=width // 4)
        self.norm = nn.GroupNorm(width // 4, width)
        self.depthwise = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.squeeze, self.excite = nn.Conv2d(2 * width, width, 1), nn.Conv2d(width, 2 * width, 1)
        self.up = nn.ConvTranspose2d(3 * width, width, 2, stride=2)
        self.head = nn.Linear(width, 5)

    def forward(self, input: Tensor) -> Tensor:
        stem = self.stem(input)
        x = self.depthwise(F.relu(self.norm(self.grouped(stem))))
        x = x * torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.up(torch.cat([stem, x], 1)).amax((2, 3)))  # type: ignore[no-any-return]


class Grouped(_Own):
    module = _Grouped

    def fused_blocks(self, sub: SubModel) -> dict[str, dict[int, tuple[int, ...]]]:
        width = sub["width"]
        assert isinstance(width, int)
        return {"up.weight": {0: (width, 2 * width)}}


class _Attention(nn.Module):
    """Fused QKV with fewer keys than queries, tied weights, and places that the network tells apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads, self.keys = width // 2, width // 4
        self.embedding = nn.Linear(24, 12, bias=False)
        self.qkv = nn.Linear(12, (self.heads + 2 * self.keys) * 4)
        self.out = nn.Linear(self.heads * 4, 12)
        self.head = nn.Linear(12, 24, bias=False)
        self.head.weight = nn.Parameter(self.embedding.weight.T.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        x = self.embedding(input.flatten(2).transpose(1, 2).reshape(len(input), 8, 24))
        shapes = (self.heads * 4, self.keys * 4, self.keys * 4)
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in self.qkv(x).split(shapes, -1))
        k, v = (part.repeat_interleave(self.heads // self.keys, 1) for part in (k, v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x).mean(1)  # type: ignore[no-any-return]


class Attention(_Own):
    module = _Attention

    def fused_blocks(self, sub: SubModel) -> dict[str, dict[int, tuple[int, ...]]]:
        width = sub["width"]
        assert isinstance(width, int)
        blocks = (width // 2 * 4, width // 4 * 4, width // 4 * 4)
        return {"qkv.weight": {0: blocks}, "qkv.bias": {0: blocks}}


class _Shuffled(nn.Module):
    """What is looked up by number, turned around or compared with a constant cannot change places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, input: Tensor) -> Tensor:
        x = self.first(input.mean((2, 3)))
        x = self.second(x.flip(-1))
        x = self.third(x * torch.arange(x.shape[-1]))
        return self.head(torch.relu(x))  # type: ignore[no-any-return]


class Shuffled(_Own):
    module = _Shuffled


def hugging_face(name: str) -> Callable[[], Family]:
    def make() -> Family:
        pytest.importorskip("transformers")
        from tests.helpers import hugging_face as families

        made: Family = getattr(families, name)()
        return made

    return make


FAMILIES: dict[str, tuple[Callable[[], Family], list[int]]] = {
    "resnet": (lambda: ResNet(channels=(8, 16), blocks=(2, 2), widths=(0.5, 1.0)), [8, 8, 8, 16, 16, 16]),
    "mobilenetv2": (lambda: MobileNetV2(), []),
    "grouped": (Grouped, []),
    "attention": (Attention, [2]),
    "branches": (user_families.Branches, [8, 8, 16]),
    "bert": (hugging_face("Bert"), [4, 4, 32, 32, 32, 32]),
    "llama": (hugging_face("Llama"), [2, 2, 32, 32]),
}


def network(family: Family) -> NestedModel:
    """With parameters that are all different, and statistics of the full model."""
    torch.manual_seed(0)
    nested = NestedModel(family)
    for parameter in nested.full.parameters():
        nn.init.normal_(parameter, 0.1, 0.4)
    calibrate(nested, [family.example_inputs(16)], [family.largest])
    return nested.eval()


@pytest.mark.parametrize(("make", "sizes"), FAMILIES.values(), ids=FAMILIES)
def test_units_in_another_order_change_nothing(make: Callable[[], Family], sizes: list[int]) -> None:
    nested = network(make())
    symmetry = find_symmetry(nested)
    assert not symmetry.fixed
    assert symmetry.groups
    assert sorted(group.size for group in symmetry.groups) == sizes or not sizes
    was = {name: p.detach().clone() for name, p in nested.full.named_parameters()}
    error = reorder(nested, symmetry, {group.name: np.arange(group.size)[::-1].copy() for group in symmetry.groups})
    assert error < 1e-5
    cut = {place[0] for group in symmetry.groups for place in group.places}
    moved = {name for name, p in nested.full.named_parameters() if not torch.equal(p, was[name])}
    assert moved == cut & set(was)


def test_every_axis_that_is_cut_is_sorted_or_named() -> None:
    """Of a network in which one part of a width can be sorted and another cannot."""
    symmetry = find_symmetry(network(Shuffled()))
    assert {group.name for group in symmetry.groups} == {"third.weight[0]"}
    flipped = "the network computes flip, of which is not known what it does with its axes"
    constant = "the network has a constant there"
    assert symmetry.fixed == {"first.weight[0]": flipped, "second.weight[1]": flipped, "second.weight[0]": constant}


def test_an_order_that_is_not_a_symmetry_is_refused_and_taken_back() -> None:
    nested = network(ResNet(channels=(8, 16), blocks=(1, 1), widths=(0.5, 1.0)))
    symmetry = find_symmetry(nested)
    name = symmetry.groups[0].places[-1][0]
    wrong = replace(symmetry, axes={**symmetry.axes, name: [Node(size) for size in nested.full.state_dict()[name].shape]})
    was = {key: tensor.clone() for key, tensor in nested.full.state_dict().items()}
    with pytest.raises(
        TrainerError, match=r"ResNet: with its units in another order .* answers otherwise, by .* \(sort = none\)"
    ):
        reorder(nested, wrong, {group.name: np.arange(group.size)[::-1].copy() for group in symmetry.groups})
    assert all(torch.equal(tensor, was[key]) for key, tensor in nested.full.state_dict().items())


@pytest.mark.parametrize("family", [ResNet(channels=(8, 16), blocks=(1, 1), widths=(0.5, 1.0)), user_families.Branches()])
def test_where_sums_are_rounded_otherwise_double_precision_decides(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are by more than is allowed in a network of thirty layers; here nearly nothing is allowed."""
    monkeypatch.setattr(importance, "TOLERANCE", 1e-10)
    nested = network(family)
    statistics = {name: tensor.clone() for name, tensor in nested.calibration.get(family.largest, {}).items()}
    sorting = sort_by_importance(nested, criterion="l2")
    assert sorting.error > 1e-10
    now = nested.calibration.get(family.largest, {})
    assert {name: (t.dtype, t.double().sum().item()) for name, t in now.items()} == {
        name: (t.dtype, pytest.approx(t.double().sum().item())) for name, t in statistics.items()
    }


class _SinglePrecision(nn.Module):
    """Its code says in which precision it computes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, width), nn.Linear(width, 2)

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(input.float().flatten(1)).relu())
        return logits


class SinglePrecision(_Own):
    module = _SinglePrecision


def test_what_double_precision_cannot_tell_is_refused_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "TOLERANCE", 0.0)
    nested = network(SinglePrecision())
    nested.train()
    was = {key: tensor.clone() for key, tensor in nested.full.state_dict().items()}
    with pytest.raises(TrainerError, match=r"SinglePrecision: with its units in another order .* \(sort = none\)"):
        sort_by_importance(nested, criterion="l2")
    assert nested.training
    assert all(torch.equal(tensor, was[key]) for key, tensor in nested.full.state_dict().items())


@pytest.mark.parametrize("criterion", ["taylor", "saliency", "magnitude", "l2"])
def test_what_matters_comes_first(criterion: str) -> None:
    """Units that the answer hardly depends on go to the end, and a half of the network that has them loses little."""
    family = user_families.Branches()
    nested = network(family)
    data = Samples(family.example_inputs(64), torch.randint(0, 2, (64,)))
    symmetry = find_symmetry(nested)
    dead: dict[str, Any] = {}
    with torch.no_grad():
        for group in symmetry.groups:
            units = np.arange(group.size) % 2 == 0
            for name, axis in group.places:
                parameter = dict(nested.full.named_parameters())[name]
                parameter.index_fill_(axis, torch.from_numpy(np.flatnonzero(units)), 0.0)
            dead[group.name] = units.sum()
    sorting = sort_by_importance(nested, data, criterion)
    assert set(sorting.groups) == set(dead)
    state = dict(nested.full.named_parameters())
    for group in symmetry.groups:
        name, axis = group.places[0]
        largest = state[name].detach().abs().amax(dim=[d for d in range(state[name].ndim) if d != axis])
        kept = group.size - dead[group.name]
        assert bool((largest[:kept] > 0).all()), name
        assert not bool(largest[kept:].any()), name


def test_a_bias_counts_for_its_own_unit() -> None:
    nested = NestedModel(ResNet(channels=(4, 8), blocks=(1, 1), input_shape=(1, 8, 8), widths=(0.5, 1.0), multiple=1))
    symmetry = find_symmetry(nested)
    values = {name: torch.zeros_like(p) for name, p in nested.full.named_parameters()}
    values["norm.bias"][3] = -2.0
    scores = [of_units for of_units in scores_by_unit(symmetry, values).values() if of_units.any()]
    assert [of_units.tolist() for of_units in scores] == [[0, 0, 0, 2, 0, 0, 0, 0]]


def test_wrong_criteria_are_refused() -> None:
    nested = network(ResNet(channels=(8, 16), blocks=(1, 1), widths=(0.5, 1.0)))
    with pytest.raises(TrainerError, match=r"sort = 'luck': allowed are auto, taylor, saliency, magnitude, l2$"):
        sort_by_importance(nested, None, "luck")
    with pytest.raises(TrainerError, match="sort = 'saliency': needs training data"):
        sort_by_importance(nested, None, "saliency")
    with pytest.raises(TrainerError, match="sort = 'saliency': needs training data"):
        sort_by_importance(network(user_families.Branches()))


def test_gradients_do_not_order_what_batchnorm_follows() -> None:
    assert sort_by_importance(network(ResNet(channels=(8, 16), blocks=(1, 1), widths=(0.5, 1.0)))).criterion == "l2"


def test_axes_are_refined_and_united() -> None:
    whole = Node(12)
    heads, inner = factored(whole, [3, 4])
    assert factored(whole, [3, 4]) == [heads, inner]
    orders = {id(heads): np.array([2, 0, 1])}
    assert whole.index(orders).tolist() == [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    outer, middle, rest = factored(whole, [3, 2, 2])
    assert (outer, middle.size, rest.size) == (heads, 2, 2)
    assert whole.kept(np.arange(12) < 8) == [(heads, 2), (middle, 2), (rest, 2)]
    assert whole.kept(np.arange(12) < 7) is None

    left, right = joined(Node(10), [4, 6])
    other = unite(side_by_side([left, right]), Node(10))
    assert other.index({id(left.resolved()): np.array([3, 2, 1, 0])}).tolist() == [3, 2, 1, 0, 4, 5, 6, 7, 8, 9]
    gates = Node(8)
    first, second = joined(gates, [4, 4])
    assert first is second
    assert gates.index({id(first): np.array([1, 0, 2, 3])}).tolist() == [1, 0, 2, 3, 5, 4, 6, 7]

    one, two = product([Node(2), Node(6)]), product([Node(4), Node(3)])
    unite(one, two)
    assert [leaf.size for leaf in one.leaves()] == [leaf.size for leaf in two.leaves()] == [2, 2, 3]
    odd, even = product([Node(3), Node(4)]), product([Node(2), Node(6)])
    unite(odd, even)
    assert all(leaf.frozen for node in (odd, even) for leaf in node.leaves())
