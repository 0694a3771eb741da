"""What generating text costs, from what some prompts and some contexts took: the time to the first token, and per token.

Between measured numbers of tokens it is interpolated as the latency over the length of an input is (`device_profiles.lengths`):
what was measured is met, and a longer prompt or context never takes less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from device_profiles.lengths import Curve
from device_profiles.schema import Decoding, Figure, Measurement, Source

PROMPTS, CONTEXTS = (16, 128, 512), (64, 256, 1024)
"""Tokens, that are measured where nobody names any and the model can take them."""


class DecodingCurves:
    """One sub-model's times over the tokens of the prompt, and over those of the context."""

    def __init__(self, decoding: Decoding) -> None:
        self.prefill, self.token = Curve(decoding.prefill), Curve(decoding.token)

    def at(self, prompt: int | None, context: int | None) -> Decoding:
        """Of a prompt and of a context of so many tokens, each the one entry; None: the longest that was measured."""
        prompt, context = prompt or self.prefill.lengths[-1], context or self.token.lengths[-1]
        return Decoding(prefill={prompt: self.prefill.latency(prompt)}, token={context: self.token.latency(context)})

    def prompt_worth(self, prompt: int) -> float:
        """Of a prompt of so many tokens that is computed anew, as how many generated ones it counts in a plan's account: by the
        mean time, over that of a token at the longest context, which energy is given for."""
        return self.prefill.at(prompt, "mean") / self.token.at(self.token.lengths[-1], "mean")


def at_tokens(costs: Measurement, prompt: int | None, context: int | None, curves: DecodingCurves | None = None) -> Measurement:
    """What the sub-model costs for a prompt and in a context of so many tokens; None: the longest measured. Latency and energy
    are those of one token in that context. As it is where no decoding was measured.

    What was not measured at these very numbers is marked as predicted. `curves`: its own, where they are at hand.
    """
    if costs.decoding is None:
        return costs
    curves = curves or DecodingCurves(costs.decoding)
    found = curves.at(prompt, context)
    ((there, latency),) = found.token.items()
    source: dict[Figure, Source] = dict(costs.source)
    if not (there in costs.decoding.token and set(found.prefill) <= set(costs.decoding.prefill)):
        source["latency_ms"] = "predicted"
    update: dict[str, object] = {"latency_ms": latency, "decoding": found, "source": source}
    if costs.energy_mj is not None and there != curves.token.lengths[-1]:
        source["energy_mj"] = "predicted"
        update["energy_mj"] = costs.energy_mj * curves.token.share(there)
    return costs.model_copy(update=update)


def prompts_of(costs: Iterable[Measurement]) -> list[int]:
    """All that some of these were measured at, ascending."""
    return sorted({tokens for one in costs if one.decoding for tokens in one.decoding.prefill})


def contexts_of(costs: Iterable[Measurement]) -> list[int]:
    """All that some of these were measured at, ascending."""
    return sorted({tokens for one in costs if one.decoding for tokens in one.decoding.token})


def series(asked: Sequence[int], most: int) -> list[int]:
    """Those of the numbers of tokens that a model of so many can take, ascending; the most itself where some are more."""
    return sorted({min(tokens, most) for tokens in asked})
