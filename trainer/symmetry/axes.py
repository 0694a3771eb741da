"""What is known of how an axis of a tensor may be permuted without changing what a network computes.

An axis is a `Node`: a plain one, a row-major product of others (heads by the size of a head), or others side by side (what
`cat` joins). Nodes that must be permuted alike are one node. A frozen one must stay in its order: its places have a meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


class Node:
    """An axis, or a part of one. What it is made of may be found out later: `resolved` says what it is by now."""

    __slots__ = ("_same", "frozen", "joined", "parts", "size")

    def __init__(self, size: int, *, frozen: str = "") -> None:
        self.size = size
        self.frozen = frozen
        """Why it cannot be permuted; empty where it can."""
        self.parts: list[Node] = []
        """None: a plain axis."""
        self.joined = False
        """Whether the parts lie side by side; else they are factors, the outermost first."""
        self._same: Node | None = None

    def resolved(self) -> Node:
        node = self
        while node._same is not None:
            node = node._same
        return node

    def leaves(self) -> Iterator[Node]:
        """The plain axes that it is made of."""
        node = self.resolved()
        if not node.parts:
            yield node
        for part in node.parts:
            yield from part.leaves()

    def freeze(self, why: str) -> None:
        for leaf in self.leaves():
            leaf.frozen = leaf.frozen or why

    def index(self, orders: dict[int, Index]) -> Index:
        """Where each place of the axis comes from, given the order of plain axes by their `id`; of others their own."""
        node = self.resolved()
        if not node.parts:
            return orders.get(id(node), np.arange(node.size))
        found = [part.index(orders) for part in node.parts]
        if node.joined:
            begins = [0, *accumulate(part.size for part in node.parts)]
            return np.concatenate([begin + order for begin, order in zip(begins, found, strict=False)])
        whole = np.zeros(1, dtype=np.int64)
        for order in found:
            whole = (whole[:, None] * len(order) + order[None, :]).reshape(-1)
        return whole

    def kept(self, mask: NDArray[np.bool_]) -> list[tuple[Node, int]] | None:
        """Of each plain axis how many places from its beginning a mask over the whole keeps.

        None where the mask keeps anything else than a prefix of each.
        """
        node = self.resolved()
        if not node.parts:
            count = int(mask.sum())
            return [(node, count)] if mask[:count].all() else None
        found: list[tuple[Node, int]] = []
        if node.joined:
            begin = 0
            for part in node.parts:
                of_part = part.kept(mask[begin : begin + part.size])
                if of_part is None:
                    return None
                found += of_part
                begin += part.size
            return found
        shaped = mask.reshape([part.size for part in node.parts])
        expected = np.ones((), dtype=bool)
        for place, part in enumerate(node.parts):
            others = tuple(i for i in range(shaped.ndim) if i != place)
            along = np.asarray(shaped.any(axis=others))
            of_part = part.kept(along)
            if of_part is None:
                return None
            found += of_part
            expected = np.logical_and.outer(expected, along)
        return found if bool((shaped == expected).all()) else None


def frozen(size: int, why: str) -> Node:
    return Node(size, frozen=why)


def factored(node: Node, sizes: Sequence[int]) -> list[Node]:
    """The axis as factors of these sizes, the outermost first; what it was made of before is made of finer parts.

    Where that cannot be, the axis is frozen.
    """
    node = node.resolved()
    sizes = [size for size in sizes if size != 1] or [1]
    if sizes == [node.size]:
        return [node]
    if not node.parts:
        node.parts = [Node(size, frozen=node.frozen) for size in sizes]
        return node.parts
    if node.joined:
        return _frozen_factors(node, sizes)
    return split(node.parts, [[size] for size in sizes]) or _frozen_factors(node, sizes)


def _frozen_factors(node: Node, sizes: Sequence[int]) -> list[Node]:
    why = f"of {node.size} places in parts of their own it is taken as {' × '.join(map(str, sizes))}"
    node.freeze(why)
    return [frozen(size, why) for size in sizes]


def split(factors: Sequence[Node], wanted: Sequence[Sequence[int]]) -> list[Node]:
    """Axes side by side in memory, as axes of other sizes over the same places: what `view` does. One node per wanted group,
    whose product of sizes it has.

    Where no common factors are found, all are frozen.
    """
    left = [leaf for factor in factors for leaf in _factors(factor)]
    found = []
    for group in wanted:
        size, taken = prod(group), []
        while size > 1:
            if not left:
                return _give_up(factors, wanted)
            first = left.pop(0)
            if first.size == 1:
                continue
            if size % first.size == 0:
                taken.append(first)
                size //= first.size
            elif first.size % size == 0:
                parts = factored(first, [size, first.size // size])
                if len(parts) != 2:
                    return _give_up(factors, wanted)
                taken.append(parts[0])
                left.insert(0, parts[1])
                size = 1
            else:
                return _give_up(factors, wanted)
        found.append(product(taken))
    return found


def _factors(node: Node) -> list[Node]:
    node = node.resolved()
    if node.parts and not node.joined:
        return [leaf for part in node.parts for leaf in _factors(part)]
    return [node]


def _give_up(factors: Sequence[Node], wanted: Sequence[Sequence[int]]) -> list[Node]:
    why = f"{' × '.join(str(f.size) for f in factors)} places are taken as {' × '.join(str(prod(g)) for g in wanted)}"
    for factor in factors:
        factor.freeze(why)
    return [frozen(prod(group), why) for group in wanted]


def product(factors: Sequence[Node]) -> Node:
    if len(factors) == 1:
        return factors[0]
    node = Node(prod(factor.size for factor in factors))
    node.parts = list(factors)
    return node


def side_by_side(parts: Sequence[Node]) -> Node:
    if len(parts) == 1:
        return parts[0]
    node = Node(sum(part.size for part in parts))
    node.parts, node.joined = list(parts), True
    return node


def joined(node: Node, sizes: Sequence[int]) -> list[Node]:
    """The axis as parts of these sizes side by side. Equal ones must be permuted alike, which is what gates and fused
    projections need; they come as one node."""
    node = node.resolved()
    if len(sizes) == 1:
        return [node]
    if node.joined and [part.size for part in node.parts] == list(sizes):
        return node.parts
    if not node.joined and len(set(sizes)) == 1:
        outer, inner = split([node], [[len(sizes)], [sizes[0]]])
        outer.freeze("its parts are told apart")
        return [inner] * len(sizes)
    if not node.parts:
        node.parts, node.joined = [Node(size, frozen=node.frozen) for size in sizes], True
        return node.parts
    if node.joined and (regrouped := _regrouped(node.parts, sizes)):
        return regrouped
    why = f"{node.size} places are cut into {', '.join(map(str, sizes))}"
    node.freeze(why)
    return [frozen(size, why) for size in sizes]


def _regrouped(parts: Sequence[Node], sizes: Sequence[int]) -> list[Node]:
    """Parts side by side gathered into fewer, larger ones. Empty where the borders differ."""
    found, left = [], list(parts)
    for size in sizes:
        taken: list[Node] = []
        while left and sum(part.size for part in taken) < size:
            taken.append(left.pop(0))
        if sum(part.size for part in taken) != size:
            return []
        found.append(side_by_side(taken))
    return found


def unite(one: Node, other: Node) -> Node:
    """Both must be permuted alike from now on. They have one size."""
    one, other = one.resolved(), other.resolved()
    if one is other:
        return one
    if one.size != other.size:
        raise ValueError(f"axes of {one.size} and {other.size} places")
    if not one.parts or not other.parts:
        plain, kept = (one, other) if not one.parts else (other, one)
        if kept.parts and any(leaf is plain for leaf in kept.leaves()):  # an axis that would be a part of itself
            kept.freeze("it is tied to a part of itself")
            return kept
        plain._same = kept
        if plain.frozen:
            kept.freeze(plain.frozen)
        return kept
    if one.joined == other.joined and [p.size for p in one.parts] == [p.size for p in other.parts]:
        for mine, its in zip(one.parts, other.parts, strict=True):
            unite(mine, its)
        return one
    if not one.joined and not other.joined:
        return _with_common_factors(one, other)
    flat, apart = (one, other) if one.joined else (other, one)
    sizes = [part.size for part in flat.parts]
    if apart.joined:
        borders = sorted({0, *accumulate(sizes), *accumulate(part.size for part in apart.parts)})
        finer = [b - a for a, b in pairwise(borders)]
        if all(_refined(node, finer) for node in (flat, apart)):
            return unite(flat, apart)
    elif len(set(sizes)) == 1:
        for mine, its in zip(flat.parts, joined(apart, sizes), strict=True):
            unite(mine, its)
        return apart
    for node in (one, other):
        node.freeze("it is made of parts in two ways")
    return one


def _refined(node: Node, sizes: Sequence[int]) -> bool:
    """Cuts plain parts that lie side by side further, to these sizes."""
    parts: list[Node] = []
    left = list(sizes)
    for part in node.parts:
        taken: list[int] = []
        while sum(taken) < part.size:
            taken.append(left.pop(0))
        if len(taken) > 1 and part.resolved().parts:
            return False
        parts += joined(part, taken)
    if len({id(part.resolved()) for part in parts}) != len(parts):  # equal ones became one node: no parts of their own any more
        return False
    node.parts = parts
    return True


def _with_common_factors(one: Node, other: Node) -> Node:
    mine, its = _factors(one), _factors(other)
    while mine and its:
        first, second = mine.pop(0), its.pop(0)
        if first.size == second.size:
            unite(first, second)
            continue
        (large, of_large), (small, _) = sorted(((first, mine), (second, its)), key=lambda pair: -pair[0].size)
        parts = factored(large, [small.size, large.size // small.size]) if large.size % small.size == 0 else []
        if len(parts) != 2:
            for node in (one, other):
                node.freeze("it is made of factors in two ways")
            return one
        unite(parts[0], small)
        of_large.insert(0, parts[1])
    return one
