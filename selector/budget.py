"""`Budget` goes in, `Selection` comes out: in Python, on the command line and over REST."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Objective = Literal["accuracy", "energy", "latency"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BudgetError(ValueError):
    """A budget that is no budget, or that nothing here can be compared with."""

    exit_code = 2


class Budget(BaseModel):
    """What one inference may cost, and what is wanted within that. All fields are optional.

    Raises pydantic.ValidationError (a ValueError) naming the field, the value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    latency_ms: Positive | None = None
    energy_mj: Positive | None = None
    memory_mb: Positive | None = None
    min_accuracy: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None  # a share, not per cent
    percentile: Annotated[float, Field(gt=0, le=99, allow_inf_nan=False)] = 50.0
    """Of the measured latency that must stay below `latency_ms`: the next of p50, p90, p99 is taken."""
    objective: Objective = "accuracy"  # the most accurate, or the one of least energy or latency


class Selection(NamedTuple):
    """Which sub-model to run, what it is expected to cost on this device, and why.

    `latency_ms` is the measured latency at the budget's percentile. `feasible` is False when nothing fits the budget;
    the sub-model is then the nearest one and `reason` says what it misses.
    """

    submodel: str
    feasible: bool
    accuracy: float | None  # share of the test split, 0 to 1
    latency_ms: float | None
    energy_mj: float | None
    memory_mb: float | None
    reason: str
    device: str


def make_budget(**fields: Any) -> Budget:
    """A Budget from user input, fields that are None left out. Raises BudgetError with a sentence for people."""
    try:
        return Budget(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BudgetError(f"budget: {name} = {first['input']!r}: {first['msg'].lower()}") from None
