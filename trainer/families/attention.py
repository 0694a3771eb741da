"""Attention of transformers' modules at sizes that their own code does not build, and how their parameters are cut.

The size of a head stays, so that a head of a smaller model is a head of the full one: 6 heads of 32 numbers over a hidden size
of 384. Where a module's code derives the size of a head from the hidden size, its projections are replaced after the build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from trainer.families.architecture import DEPTH, HEADS, HIDDEN, INNER, Architecture
from trainer.submodel import SubModel, TrainerError

SEPARATE = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
"""How attention modules call their projections."""
FUSED = ("Wqkv", "qkv_proj")
"""One projection to queries, keys and values side by side, in this order."""
GATED = ("Wi", "gate_up_proj")
"""One projection to a layer's width between and to its gate, side by side."""
OUT = ("out_lin", "o_proj", "out_proj", "o", "Wo", "dense")
"""The projection back, in the attention module, or in one called `output` beside it."""

COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
DIMS = ("attention_head_size", "head_dim", "head_size")


def fit_heads(module: nn.Module, heads: int, found: Architecture) -> None:
    """Makes every attention module within one of that many heads of the full model's size, in place."""
    keys, dim = heads // found.group, found.head_dim
    for name, part in list(module.named_modules()):
        projections = _projections(part)
        if not projections:
            continue
        beside = module.get_submodule(name.rpartition(".")[0]) if name else part
        changed = [_set_outputs(part, leaf, (heads if i == 0 else keys) * dim) for i, leaf in enumerate(projections)]
        if leaf := next((leaf for leaf in FUSED if leaf in projections), None):
            changed = [_set_outputs(part, leaf, (heads + 2 * keys) * dim)]
        owner, leaf = _out(part, beside)
        if owner is not None:
            changed.append(_set_inputs(owner, leaf, heads * dim))
        if not any(changed) and not any(getattr(part, attribute, dim) != dim for attribute in DIMS):
            continue
        values = {**dict.fromkeys(COUNTS, heads), **dict.fromkeys(DIMS, dim), "all_head_size": heads * dim}
        values |= {"num_key_value_heads": keys, "num_key_value_groups": found.group, "scaling": dim**-0.5}
        for attribute, value in values.items():
            if isinstance(getattr(part, attribute, None), (int, float)):
                setattr(part, attribute, value)


def fit_biases(module: nn.Module, heads: int, full: nn.Module, of_full: int) -> None:
    """Gives each embedding that has one number for each head that many, in place, where the module was built for one head.
    `full`: the full model, which has `of_full` heads.

    Raises TrainerError for another parameter that has a number for each head: one number would go for all of them.
    """
    for name, part in list(module.named_modules()):
        if not isinstance(part, nn.Embedding) or part.embedding_dim != 1:
            continue
        if full.get_parameter(f"{name}.weight").shape[1] == of_full:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Embedding(part.num_embeddings, heads))
    of_all = dict(full.named_parameters())
    for name, parameter in module.named_parameters():
        if any(size == 1 < of_full == whole for size, whole in zip(parameter.shape, of_all[name].shape, strict=True)):
            raise TrainerError(
                f"axis {HEADS!r} = {heads}: parameter {name!r} has a number for each head; allowed are numbers of heads that "
                f"divide {HIDDEN}"
            )


def _projections(part: nn.Module) -> Sequence[str]:
    fused = next(((leaf,) for leaf in FUSED if isinstance(getattr(part, leaf, None), nn.Linear)), ())
    return fused or next((row for row in SEPARATE if all(isinstance(getattr(part, n, None), nn.Linear) for n in row)), ())


def _out(part: nn.Module, beside: nn.Module) -> tuple[nn.Module | None, str]:
    for owner in (part, getattr(beside, "output", None)):
        for leaf in OUT:
            if isinstance(owner, nn.Module) and isinstance(getattr(owner, leaf, None), nn.Linear):
                return owner, leaf
    return None, ""


def _set_outputs(owner: nn.Module, leaf: str, size: int) -> bool:
    layer = getattr(owner, leaf)
    if layer.out_features == size:
        return False
    setattr(owner, leaf, nn.Linear(layer.in_features, size, bias=layer.bias is not None))
    return True


def _set_inputs(owner: nn.Module, leaf: str, size: int) -> bool:
    layer = getattr(owner, leaf)
    if layer.in_features == size:
        return False
    setattr(owner, leaf, nn.Linear(size, layer.out_features, bias=layer.bias is not None))
    return True


Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How the parameters of an architecture are cut."""

    axes: tuple[str, ...]  # that change a parameter; layers that share their parameters cannot be told apart by depth
    fused: Mapping[tuple[str, int], str]  # parameter and its axis → the axis of the family that its blocks follow


def find_layout(found: Architecture, axes: Mapping[str, Sequence[int]], shapes_of: Callable[[SubModel], Shapes]) -> Layout:
    """Builds with one axis at a time at its smallest, and looks at what became smaller, and by how much.

    Raises TrainerError naming a parameter that follows an axis in a way that is not known: several things side by side, say, of
    which a prefix would be a part of the first alone.
    """
    largest = SubModel(**{axis: values[-1] for axis, values in axes.items()})
    full = shapes_of(largest)
    changing, fused = [], {}
    for axis, values in axes.items():
        if values[0] == values[-1]:
            changing.append(axis)
            continue
        smaller = shapes_of(SubModel(**{**largest.axes, axis: values[0]}))
        if smaller != full:
            changing.append(axis)
        for name, shape in smaller.items():
            for place, (size, of_full) in enumerate(zip(shape, full.get(name, shape), strict=True)):
                if size == of_full:
                    continue
                blocks = _blocks(found, name, axis)
                if blocks and (sum(blocks(values[0])), sum(blocks(values[-1]))) == (size, of_full):
                    fused[name, place] = axis
                elif (size, of_full) not in _allowed(found, axis, values[0], values[-1]):
                    raise TrainerError(
                        f"config: {found.full.model_type!r} cannot be nested along {axis}: parameter {name!r} has {of_full} "
                        f"places along its axis {place}, and {size} with {axis} = {values[0]}, in a layout that is not known; "
                        f'leave it as it is, with --set fixed=["{axis}"]'
                    )
    return Layout(tuple(changing), fused)


def blocks_of(found: Architecture, name: str, axis: str, sub: SubModel) -> tuple[int, ...]:
    """Sizes of what lies side by side along the axis of a fused parameter."""
    blocks = _blocks(found, name, axis)
    assert blocks is not None
    return blocks(int(sub.axes.get(axis, found.sizes[axis])))  # type: ignore[arg-type]


def _blocks(found: Architecture, name: str, axis: str) -> Callable[[int], tuple[int, ...]] | None:
    layer = name.split(".")[-2] if "." in name else ""
    if axis == HEADS and layer in FUSED:
        dim, group = found.head_dim, found.group
        return lambda heads: (heads * dim, heads // group * dim, heads // group * dim)
    if axis == INNER and layer in GATED:
        return lambda inner: (inner, inner)
    return None


def _allowed(found: Architecture, axis: str, value: int, full: int) -> set[tuple[int, int]]:
    """Sizes, of the smaller and of the full model, of an axis that is a prefix by itself."""
    if axis != HEADS:
        return {(value, full)} if axis in (INNER, HIDDEN, DEPTH) else set()
    dim, group = found.head_dim, found.group
    units = {1: 1, dim: 1}
    return {(value // g * unit, full // g * unit) for unit in units for g in (1, group)}
