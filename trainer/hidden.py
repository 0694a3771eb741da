"""What a network has between its layers, and how far a smaller one is from it.

Shapes: N batch, T tokens, d numbers of a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.submodel import TrainerError

MASK = "attention_mask"
"""The input (N, T) that says which tokens are there, where a network has one."""


@contextmanager
def collected(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Within: a list of what these modules give, of a tuple the first, in place of what they gave before when the first runs
    again."""
    states: list[Tensor] = []

    def keep(place: int, result: Any) -> None:
        if place == 0:
            states.clear()
        states.append(result if isinstance(result, Tensor) else result[0])

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, result, place=place: keep(place, result))
        for place, module in enumerate(modules)
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def distance(states: Sequence[Tensor], wanted: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """Scalar: of layer k of l the squared distance from layer round(k·L/l) of L, whose first d numbers count, as a share of
    their squared length; the mean over layers (Jiao et al. 2020, arXiv 1909.10351, section 3, there with a projection, which a
    prefix needs none of). Tokens that the mask leaves out count for nothing.

    Raises TrainerError where a layer gives something else than the same numbers, or fewer of them.
    """
    total = torch.zeros((), device=states[0].device)
    for number, state in enumerate(states, 1):
        place = int(number * len(wanted) / len(states) + 0.5)
        target = wanted[place - 1][..., : state.shape[-1]]
        if state.shape != target.shape:
            raise TrainerError(
                f"teacher_hidden: layer {number} gives {tuple(state.shape)}, the teacher's layer {place} "
                f"{tuple(wanted[place - 1].shape)}; allowed are the same axes, the last one as long or longer"
            )
        counts = _mask(inputs, state)
        error, length = ((t.float().square() * counts).sum() for t in (state.float() - target.float(), target))
        total = total + error / length.clamp_min(1e-12)
    return total / len(states)


def _mask(inputs: Mapping[str, Tensor], state: Tensor) -> Tensor:
    mask = inputs.get(MASK)
    if mask is None or state.ndim < 2 or mask.shape != state.shape[:2]:
        return torch.ones((), device=state.device)
    return mask.to(torch.float32).reshape(*mask.shape, *[1] * (state.ndim - 2))
