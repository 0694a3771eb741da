"""The update rules of a peer: how Whittle (PyPI `whittle`) draws sub-networks, in our harness.

`random_linear`: Klein et al. 2024 (arXiv 2405.02267), after Bender et al. 2018; `ats`: Mohtashami et al. 2022 (arXiv
2106.08895). The package itself brings a whole language-model stack and trains only what is built of its own layers.
"""

from __future__ import annotations

from trainer.submodel import SubModel
from trainer.updates import Sorted, drawn, register_rule


class Alternating(Sorted):
    """`ats`: the full model in every other step, else a random one."""

    name = "ats"

    def sample(self, step: int, seed: int) -> list[SubModel]:
        return [self.largest] if step % 2 else super().sample(step, seed)


class RandomLinear(Sorted):
    """`random_linear`: a random one with a probability that rises from 0 to 1 over the training, else the full model."""

    name = "random-linear"
    steps = 0  # of the whole training

    def sample(self, step: int, seed: int) -> list[SubModel]:
        if drawn(step, seed).random() < step / max(1, self.steps - 1):
            return drawn(step, seed + 1).sample(self.submodels, 1)
        return [self.largest]


register_rule(Alternating)
register_rule(RandomLinear)
