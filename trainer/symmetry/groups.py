"""Which units of a nested model may change places: the axes that its sub-models cut, and what moves with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.nested import NestedModel, Segments
from trainer.symmetry.axes import Index, Node
from trainer.symmetry.tracing import traced
from trainer.task import own


@dataclass(frozen=True)
class Group:
    """Units that sub-models keep from the first on, and where they lie: permuted alike everywhere they change nothing."""

    size: int
    places: tuple[tuple[str, int], ...]  # name of a parameter or buffer, axis
    node: Node

    @property
    def name(self) -> str:
        """After the first parameter that it is an axis of."""
        parameter, axis = self.places[0]
        return f"{parameter}[{axis}]"


@dataclass(frozen=True)
class Symmetry:
    """The groups of a nested model, and axes that are cut and cannot be permuted, with the reason."""

    groups: tuple[Group, ...]
    fixed: Mapping[str, str]  # as `Group.name`
    axes: Mapping[str, Sequence[Node]]  # of every parameter and buffer of the full model

    def permuted(self, tensors: Mapping[str, Tensor], orders: Mapping[str, Index]) -> dict[str, Tensor]:
        """The tensors, by name, with each group's units in the given order: the unit that comes first is that of number
        `orders[group][0]`. Groups without an order stay."""
        by_node = {id(group.node): orders[group.name] for group in self.groups if group.name in orders}
        found = {}
        for name, tensor in tensors.items():
            for axis, node in enumerate(self.axes.get(name, ())):
                index = node.index(by_node)
                if not np.array_equal(index, np.arange(len(index))):
                    tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
            found[name] = tensor
        return found


def find_symmetry(nested: NestedModel) -> Symmetry:
    """Traces the full network over the family's example inputs, and looks at how the grid cuts it.

    Raises TrainerError for what the network's own code raises.
    """
    was = nested.full.training
    nested.full.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operator, of which nothing is known
    try:
        device = next(nested.full.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in nested.family.example_inputs(2).items()}
        with (
            torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
            own(f"{type(nested.family).__name__}: the network's forward pass"),
        ):
            axes = traced(nested.full, nested.applied, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        nested.full.train(was)
    cut: dict[int, Node] = {}
    fixed: dict[str, str] = {}
    for name, axis, masks in _cuts(nested):
        for mask in masks:
            kept = axes[name][axis].kept(mask)
            if kept is None:
                axes[name][axis].freeze(f"the sub-models keep {int(mask.sum())} of its {len(mask)} places, no whole units")
                continue
            cut.update({id(leaf): leaf for leaf, count in kept if count < leaf.size})
    places: dict[int, list[tuple[str, int]]] = {}
    for name, nodes in axes.items():
        for axis, node in enumerate(nodes):
            for leaf in node.leaves():
                places.setdefault(id(leaf), []).append((name, axis))
    groups = []
    for key, leaf in cut.items():
        name, axis = places[key][0]
        if leaf.frozen:
            fixed[f"{name}[{axis}]"] = leaf.frozen
        else:
            groups.append(Group(leaf.size, tuple(dict.fromkeys(places[key])), leaf))
    return Symmetry(tuple(groups), fixed, axes)


def _cuts(nested: NestedModel) -> Iterator[tuple[str, int, list[NDArray[np.bool_]]]]:
    """Each axis of a parameter that some sub-model keeps a part of, and the parts."""
    full = dict(nested.full.named_parameters())
    masks: dict[tuple[str, int], dict[bytes, NDArray[np.bool_]]] = {}
    for sub in nested.submodels:
        segments: Mapping[str, Segments] = nested.segments(sub)
        for name, of_axes in segments.items():
            for axis, slices in enumerate(of_axes):
                mask = np.zeros(full[name].shape[axis], dtype=bool)
                for part in slices:
                    mask[part] = True
                if not mask.all():
                    masks.setdefault((name, axis), {})[mask.tobytes()] = mask
    for (name, axis), found in masks.items():
        yield name, axis, list(found.values())


def scores_by_unit(symmetry: Symmetry, values: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Of each group, unit by unit: the sum over the places where it lies of |sum of the values there|. `values`: of the
    parameters' shapes, by name."""
    found = {}
    for group in symmetry.groups:
        total = np.zeros(group.size)
        for name, axis in group.places:
            if name in values:
                tensor = values[name].double().movedim(axis, 0)
                along = tensor.reshape(len(tensor), -1).sum(dim=1).cpu().numpy()  # of no axes torch would sum all
                total += np.abs(_by_unit(symmetry.axes[name][axis], group.node, along))
        found[group.name] = total
    return found


def _by_unit(node: Node, wanted: Node, along: NDArray[Any]) -> NDArray[Any]:
    """Values along an axis, summed by the place of one of the plain axes that it is made of."""
    node = node.resolved()
    if node is wanted:
        return along
    total = np.zeros(wanted.size)
    if not node.parts:
        return total
    if node.joined:
        begin = 0
        for part in node.parts:
            total = total + _by_unit(part, wanted, along[begin : begin + part.size])
            begin += part.size
        return total
    shaped = along.reshape([part.size for part in node.parts])
    for place, part in enumerate(node.parts):
        others = tuple(i for i in range(shaped.ndim) if i != place)
        total = total + _by_unit(part, wanted, shaped.sum(axis=others))
    return total
