"""The length of an input: the axis beside the batch that a bundle's graphs leave free, such as the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from device_profiles.lengths import bucket
from exporter.bundle import Bundle
from selector.choose.budget import Budget, BudgetError

if TYPE_CHECKING:  # importing numpy takes longer than choosing a sub-model, which needs none
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LengthAxis:
    """`places`: by input, which of its axes that is. `longest`: what inputs are cut to, where the bundle says so."""

    name: str
    places: Mapping[str, int]
    longest: int | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> LengthAxis | None:
        """None where inputs have one size, or several free axes of which none is the length, such as height and width."""
        inputs = bundle.manifest.inputs
        batch = inputs[0].shape[0] if inputs and inputs[0].shape else None
        free = {size for spec in inputs for size in spec.shape if isinstance(size, str) and size != batch}
        if len(free) != 1:
            return None
        (name,) = free
        places = {spec.name: spec.shape.index(name) for spec in inputs if name in spec.shape}
        said = (one.get("max_tokens") for one in bundle.manifest.preprocessing.values())
        return cls(name, places, min((most for most in said if isinstance(most, int)), default=None))

    def of_feed(self, feed: Mapping[str, NDArray[Any]]) -> int:
        """How long these inputs are."""
        for name, place in self.places.items():
            return int(feed[name].shape[place])
        raise ValueError("no input has the axis")


def as_cut(bundle: Bundle, length: int | None) -> int | None:
    """How long an input of that length is once it has been read: texts are cut where the bundle says."""
    axis = None if length is None or bundle.manifest.decoder is not None else LengthAxis.of(bundle)
    return length if length is None or axis is None or axis.longest is None else min(length, axis.longest)


def beyond_context(bundle: Bundle, budget: Budget) -> str | None:
    """The field of the budget that speaks of more tokens than any text of the bundle's language model can have: those before
    a token, or a prompt. These are refused, not cut."""
    if bundle.manifest.decoder is None:
        return None
    asked = {name: getattr(budget, name) for name in ("length", "prompt_tokens", "context")}
    return next((name for name, tokens in asked.items() if tokens and tokens >= bundle.manifest.decoder.context), None)


def check_context(bundle: Bundle, budget: Budget) -> None:
    """Raises BudgetError where a field is `beyond_context`."""
    if name := beyond_context(bundle, budget):
        raise BudgetError(f"{name} = {getattr(budget, name)}: {within_context(bundle)}")


def within_context(bundle: Bundle) -> str:
    """What is allowed there, in words."""
    decoder = bundle.manifest.decoder
    return f"allowed are less than {decoder.context if decoder else 0}, which is the context"


class Lengths:
    """The budgets of a runtime's calls, with the length of what each was given."""

    def __init__(self, axis: LengthAxis | None) -> None:
        self.axis = axis
        self._latest: tuple[Budget | None, dict[int, Budget]] = (None, {})

    def of_feed(self, feed: Mapping[str, NDArray[Any]]) -> int | None:
        """None where inputs have one size."""
        return None if self.axis is None else self.axis.of_feed(feed)

    def budget(self, budget: Budget, length: int | None) -> Budget:
        """The budget for inputs that long, rounded up as candidates are. The same object for the same budget and length again,
        so that a choice can be the same as before without being made."""
        if length is None or (end := bucket(length)) == budget.length:
            return budget
        of, known = self._latest
        if of is not budget:
            known = {}
            self._latest = budget, known
        found = known.get(end)
        if found is None:
            found = known[end] = budget.model_copy(update={"length": end})
        return found
