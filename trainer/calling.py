"""How a network is called with inputs by name, and how what it returns becomes outputs by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from trainer.submodel import TrainerError


def takes_by_name(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether the module's `forward` has a parameter of each of these names, or takes any name and fewer by position."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = [p.kind for p in parameters]
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if by_name.issuperset(names):
        return True
    by_position = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    any_name, any_position = inspect.Parameter.VAR_KEYWORD in kinds, inspect.Parameter.VAR_POSITIONAL in kinds
    return any_name and not any_position and by_position < len(names)


def named(result: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """What a network returned as outputs by name: of a mapping, a dataclass or a named tuple with fields of these names those;
    a plain tuple in this order. Raises TrainerError when it is not what the task asks for.
    """
    if isinstance(result, Tensor):
        if len(names) == 1:
            return {names[0]: result}
        raise TrainerError(f"outputs: the network returns one tensor; the task has {len(names)}: {', '.join(names)}")
    given = _by_name(result)
    if given is not None:
        for name in names:
            if name not in given:
                found = ", ".join(map(repr, given)) or "nothing"
                raise TrainerError(f"outputs: the network returns {found}; the task has {name!r} too")
            if not isinstance(given[name], Tensor):
                raise TrainerError(f"output {name!r}: is a {type(given[name]).__name__}; allowed is a tensor")
        return {name: given[name] for name in names}
    if isinstance(result, (tuple, list)) and all(isinstance(part, Tensor) for part in result) and len(result) == len(names):
        return dict(zip(names, result, strict=True))
    size = f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
    raise TrainerError(
        f"outputs: the network returns a {type(result).__name__}{size}; allowed are {', '.join(names)}: a tensor each, "
        "by name or in this order"
    )


def _by_name(result: Any) -> Mapping[str, Any] | None:
    if isinstance(result, Mapping):  # a Hugging Face `ModelOutput` is one
        return result
    if is_dataclass(result):
        return {f.name: getattr(result, f.name) for f in fields(result)}
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        by_name: Mapping[str, Any] = result._asdict()
        return by_name
    return None
