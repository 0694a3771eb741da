"""What a training may cost the full model: of what it has changed the part that costs more is taken back at the end.

Between the parameters before a fine-tuning and those after it the loss has no barrier (Wortsman et al. 2022, arXiv 2109.01903,
section 4): on the straight line between them the full model becomes as good as it was, and the sizes keep a part of their gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

BEGIN_FILE = "begin.safetensors"
"""In a run's folder: the parameters that it began with, where some of the way may be taken back."""

HALVINGS = 5


@torch.no_grad()
def taken_back(
    parameters: Mapping[str, Tensor], begin: Mapping[str, Tensor], quality: Callable[[], float], may_lose: float
) -> float:
    """Moves the parameters, in place, back toward `begin` until `quality` has lost no more than this share of what it was.

    Returns which part of the way is kept, found by halving to 1/32: 1 where nothing had to be taken back.
    """
    end = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def at(share: float) -> float:
        for name, parameter in parameters.items():
            first = begin[name].to(parameter.device)
            parameter.copy_(torch.lerp(first, end[name], share) if share < 1 else end[name])
        return quality()

    after, least = quality(), (1 - may_lose) * at(0)
    if after >= least:
        at(1)
        return 1.0
    kept, too_far = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (kept + too_far) / 2
        if at(middle) >= least:
            kept = middle
        else:
            too_far = middle
    at(kept)
    return kept
