"""`SubModel`: which nested version of a model is meant, as one value per axis."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

AxisValue = float | int | tuple[int, ...]
"""A width (float), a count (int), or one count per stage (tuple of int)."""


class TrainerError(ValueError):
    """Wrong input to the trainer: names the field, the value seen and what is allowed."""

    exit_code = 2


class SubModel:
    """One nested version: a frozen mapping from axis name to value.

    `SubModel(width=0.5, depth=2).id` is `"w0.50-d2"`; a depth given per stage, `depth=(1, 2, 3)`, reads `d1x2x3`; sizes of a
    transformer by the names of its configuration read `l6-f1536-h12-d384`.
    Sub-models of one family are partially ordered by nesting: `a <= b` when no axis of `a` exceeds that of `b`, so
    that every parameter of `a` is a prefix of the parameter of the same name in `b`.
    """

    __slots__ = ("_hash", "axes", "id")

    axes: Mapping[str, AxisValue]
    id: str

    def __init__(self, **axes: AxisValue) -> None:
        if not axes:
            raise TrainerError("a sub-model needs at least one axis, for example SubModel(width=0.5)")
        clean = {name: _canonical(name, value) for name, value in axes.items()}
        object.__setattr__(self, "axes", MappingProxyType(clean))
        prefixes = _prefixes(list(clean))
        object.__setattr__(self, "id", "-".join(p + format_value(v) for p, v in zip(prefixes, clean.values(), strict=True)))
        object.__setattr__(self, "_hash", hash(frozenset(clean.items())))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"SubModel is frozen: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"SubModel is frozen: cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_axes, (dict(self.axes),)

    def __getitem__(self, axis: str) -> AxisValue:
        return self.axes[axis]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubModel) and dict(self.axes) == dict(other.axes)

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined, no-any-return]

    def __le__(self, other: SubModel) -> bool:
        if set(self.axes) != set(other.axes):
            raise TrainerError(f"{self.id} and {other.id} belong to different families: their axes differ")
        return all(at_most(value, other.axes[name]) for name, value in self.axes.items())

    def __repr__(self) -> str:
        return f"SubModel({', '.join(f'{name}={value!r}' for name, value in self.axes.items())})"


def at_most(value: AxisValue, bound: AxisValue) -> bool:
    """Whether `value` is nested in `bound`; a plain number is compared with every stage of a tuple."""
    if isinstance(value, tuple) and isinstance(bound, tuple):
        return len(value) == len(bound) and all(v <= b for v, b in zip(value, bound, strict=True))
    values = value if isinstance(value, tuple) else (value,)
    bounds = bound if isinstance(bound, tuple) else (bound,)
    return max(values) <= min(bounds)


def format_value(value: AxisValue) -> str:
    """The value as it stands in an id: `x` between the stages of a tuple; a width has at least two decimals, and as many
    as tell it from every other width."""
    if isinstance(value, tuple):
        return "x".join(str(v) for v in value)
    if isinstance(value, float):
        return np.format_float_positional(value, min_digits=2)
    return str(value)


def parse_value(axis: str, text: str) -> AxisValue:
    """The inverse of `format_value`: `0.5` → float, `2` → int, `1x2x3` → tuple. Raises TrainerError."""
    if re.fullmatch(r"\d+(x\d+)+", text):
        return tuple(int(part) for part in text.split("x"))
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        raise TrainerError(f"axis {axis!r}: {text!r} is not a value; write 0.5, 2 or, per stage, 1x2x3") from None


def _canonical(axis: str, value: object) -> AxisValue:
    if isinstance(value, (tuple, list)) and value and all(type(v) is int for v in value):
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TrainerError(f"axis {axis!r}: {value!r} is not a number or a tuple of whole numbers")
    return value


_WELL_KNOWN = {
    "num_hidden_layers": "l",
    "intermediate_size": "f",
    "num_attention_heads": "h",
    "num_key_value_heads": "k",
    "hidden_size": "d",
}
"""How axes that are a configuration's own fields are written in an id: layers, feed-forward, heads, keys, dimensions."""


def _prefixes(axes: Sequence[str]) -> list[str]:
    """What stands before each axis' value in an id; no two are alike."""
    found = [_WELL_KNOWN.get(axis) or _prefix(axis, axes) for axis in axes]
    return found if len(set(found)) == len(axes) else [_prefix(axis, axes) for axis in axes]


def _prefix(axis: str, axes: Sequence[str]) -> str:
    """The shortest beginning of the axis name that no other axis shares."""
    others = [name for name in axes if name != axis]
    for length in range(1, len(axis)):
        if not any(name.startswith(axis[:length]) for name in others):
            return axis[:length]
    return axis


def _from_axes(axes: dict[str, AxisValue]) -> SubModel:
    return SubModel(**axes)
