"""`Budget` goes in, `Selection` comes out: in Python, on the command line and over REST."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from device_profiles.schema import Length, NotNegative, Positive, Share
from device_profiles.wrong import first_wrong

Objective = Literal["quality", "accuracy", "energy", "latency"]
ACCURACY = "accuracy"
"""The metric whose own name may be used: `min_accuracy`, the objective `accuracy`, `Selection.accuracy`."""
BEST = ("quality", ACCURACY)
"""Objectives that are the quality."""
_TIME_OF_DAY = re.compile(r"\d\d:\d\d")


class BudgetError(ValueError):
    """A budget that is no budget, or that nothing here can be compared with."""

    exit_code = 2


class BatteryPlan(BaseModel):
    """So many inferences per second or hour, until a moment, for so many hours, or until so much charge is left. Where text is
    generated an inference is a token.

    Raises pydantic.ValidationError (a ValueError) when it says twice, or not at all, how often or how long.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_second: Positive | None = None
    per_hour: Positive | None = None
    until: AwareDatetime | time | None = None  # a time of day without a date is the next one
    for_hours: Positive | None = None
    reserve_percent: Annotated[float, Field(ge=0, lt=100)] = 0.0  # what is to be left of the battery then
    capacity_wh: Positive | None = None  # of the full battery; without it, and without energies, units are relative
    idle_watts: NotNegative = 0.0  # drawn besides the inferences; used with capacity_wh

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        for names in (("per_second", "per_hour"), ("until", "for_hours")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) != 1:
                raise ValueError(f"{' and '.join(given) or 'neither'} given; needed is one of {' and '.join(names)}")
        return self

    @property
    def rate(self) -> float:
        """Inferences per second."""
        return self.per_second if self.per_second is not None else (self.per_hour or 0.0) / 3600

    @field_validator("until", mode="before")
    @classmethod
    def _a_moment(cls, given: Any) -> Any:
        """Read here: a bare number would be taken for seconds, since 1970 or since midnight."""
        if given is None or isinstance(given, time) or (isinstance(given, datetime) and given.tzinfo is not None):
            return given
        try:
            if isinstance(given, str) and ":" in given:
                found = time.fromisoformat(given) if _TIME_OF_DAY.match(given) else datetime.fromisoformat(given)
                if isinstance(found, time) or found.tzinfo is not None:
                    return found
        except ValueError:
            pass
        raise ValueError(
            f"until = {str(given)!r}: allowed are a time of day such as 18:00, which is the next one, and a date with a time "
            "and a time zone such as 2026-11-26T18:00+01:00"
        )

    def seconds(self, now: datetime) -> float:
        """How long from now (a moment with a time zone, in which a time of day without one is meant); 0 for a moment that has
        passed."""
        if self.for_hours is not None:
            return self.for_hours * 3600
        return max(0.0, seconds_between(now, self.moment(now)))

    def moment(self, now: datetime) -> datetime:
        """The end of a plan until a moment. Of a time of day it is the next one, in now's time zone where it has none."""
        until = self.until
        assert until is not None
        if isinstance(until, datetime):
            return until
        now = now if until.tzinfo is None else now.astimezone(until.tzinfo)
        moment = now.replace(hour=until.hour, minute=until.minute, second=until.second, microsecond=0, fold=0)
        return moment if seconds_between(now, moment) > 0 else moment + timedelta(days=1)


def seconds_between(begin: datetime, end: datetime) -> float:
    """Real ones: within one time zone Python's own difference is that of what clocks show, without a change to summer time."""
    return (end.astimezone(UTC) - begin.astimezone(UTC)).total_seconds()


class Budget(BaseModel):
    """What one inference may cost, and what is wanted within that. All fields are optional.

    Quality is what the bundle's metric says, 0 to 1. Where that is accuracy, `min_accuracy` and the objective `accuracy` are
    the same; elsewhere they are refused (`check`). Raises pydantic.ValidationError (a ValueError) naming the field, the value
    and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    latency_ms: Positive | None = None
    energy_mj: Positive | None = None
    memory_mb: Positive | None = None
    min_quality: Share | None = None  # a share, not per cent
    min_accuracy: Share | None = None  # the same, where the metric is accuracy
    first_token_ms: Positive | None = None  # of a model that generates text: until the prompt has been read
    token_ms: Positive | None = None  # of such a model: its latency, which is that of one token
    percentile: Annotated[float, Field(gt=0, le=99, allow_inf_nan=False)] = 50.0
    """Of the measured latencies that must stay below their limits: the next of p50, p90, p99 is taken."""
    objective: Objective = "quality"  # the best, or the one of least energy or latency
    length: Length | None = None
    """No limit: how long the input is, such as a text's tokens, where the profile was measured at several lengths. Default: as
    long as the longest of these. `Runtime.run` takes its input's own."""
    prompt_tokens: Length | None = None  # no limit: how long the prompt is. Default: as long as the longest measured
    sustained: bool = False  # no limit: the work lasts longer than a minute; where the profile says what holds then, by that
    context: Length | None = None  # no limit: how many tokens are before the one that `token_ms` is of. Default: likewise
    plan: BatteryPlan | None = None  # how long the battery is to last; needs a `Runtime`, which keeps the account

    @model_validator(mode="after")
    def _one_floor(self) -> Self:
        if self.min_quality is not None and self.min_accuracy is not None:
            raise ValueError("min_quality and min_accuracy given; allowed is one of the two")
        if self.latency_ms is not None and self.token_ms is not None:
            raise ValueError("latency_ms and token_ms given; allowed is one of the two, a token is what such a model runs")
        return self

    @property
    def run_ms(self) -> float | None:
        """The limit of one run's latency, by either name: where text is generated, a run is of one token."""
        if self.latency_ms is None or self.token_ms is None:
            return self.token_ms if self.latency_ms is None else self.latency_ms
        return min(self.latency_ms, self.token_ms)  # one that a low battery narrowed

    @property
    def lasts(self) -> bool:
        """Whether what holds after the first minute is what counts; a battery plan is for hours."""
        return self.sustained or self.plan is not None

    @property
    def of_tokens(self) -> str | None:
        """The first field that only means something where text is generated."""
        if self.token_ms is self.first_token_ms is self.prompt_tokens is self.context is None:
            return None
        names = ("token_ms", "first_token_ms", "prompt_tokens", "context")
        return next(name for name in names if getattr(self, name) is not None)

    @property
    def floor(self) -> float | None:
        """The least quality that is wanted, by either name."""
        return self.min_accuracy if self.min_quality is None else self.min_quality

    @property
    def wants_the_best(self) -> bool:
        """Whether the objective is the quality, by either name."""
        return self.objective in BEST

    def check(self, metric: str) -> None:
        """Raises BudgetError where this budget speaks of accuracy and the bundle's metric is another."""
        if metric == ACCURACY:
            return
        if self.min_accuracy is not None:
            raise BudgetError(f"min_accuracy = {self.min_accuracy:g}: the metric here is {metric}; allowed is min_quality")
        if self.objective == ACCURACY:
            raise BudgetError(f"objective = 'accuracy': the metric here is {metric}; allowed are quality, energy and latency")


class Selection(NamedTuple):
    """Which sub-model to run, what it is expected to cost on this device, and why.

    `latency_ms` is the measured latency at the budget's percentile. `feasible` is False when nothing fits the budget;
    the sub-model is then the nearest one and `reason` says what it misses. Where cascades are among the candidates,
    `submodel` may be one's name: then `stages` are the sub-models that it asks, and the second is asked where the margin
    between the first's two largest softmax probabilities is below `threshold`.
    """

    submodel: str
    feasible: bool
    quality: float | None  # by the metric on the test split, 0 to 1; of a cascade as is expected there (`Cascade.quality`)
    latency_ms: float | None
    energy_mj: float | None
    memory_mb: float | None
    reason: str
    device: str
    metric: str = ACCURACY
    stages: tuple[str, ...] = ()  # none where it is a single sub-model
    threshold: float | None = None
    first_token_ms: float | None = None  # where text is generated: latency and energy are then those of one token

    @property
    def token_ms(self) -> float | None:
        """The latency, where text is generated."""
        return None if self.first_token_ms is None else self.latency_ms

    @property
    def accuracy(self) -> float | None:
        """The quality, where the metric is accuracy."""
        return self.quality if self.metric == ACCURACY else None

    def document(self) -> dict[str, Any]:
        """The JSON values of `sortednet select` (CONTRACT.md); `accuracy` is among them where the metric is that, `token_ms`
        and `first_token_ms` where text is generated."""
        submodel, feasible, quality, latency_ms, energy_mj, memory_mb, reason, device, metric, stages, threshold, first = self
        chosen = {"submodel": submodel, "feasible": feasible, "quality": quality, "metric": metric}
        named = {"accuracy": quality} if metric == ACCURACY else {}
        costs = {"latency_ms": latency_ms, "energy_mj": energy_mj, "memory_mb": memory_mb}
        tokens = {} if first is None else {"token_ms": latency_ms, "first_token_ms": first}
        rest = {"reason": reason, "device": device, "stages": stages, "threshold": threshold}
        return {**chosen, **named, **costs, **tokens, **rest}


def not_a_budget(given: object) -> str:
    """What is wrong, in words, where something else stands for a budget."""
    shown = f"Budget(**{given!r})" if isinstance(given, dict) else "Budget(latency_ms=5)"
    return f"budget = {given!r}: is a {type(given).__name__}; allowed is a Budget, such as {shown}"


def make_budget(**fields: Any) -> Budget:
    """A Budget from user input, fields that are None left out. Raises BudgetError with a sentence for people."""
    try:
        return Budget(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise BudgetError(f"budget: {first_wrong(error)}") from None


def parse_plan(items: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE each, such as per_hour=600; for `make_budget(plan=…)`. Raises BudgetError naming the item."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not value:
            raise BudgetError(f"plan = {item!r}: write NAME=VALUE, for example per_hour=600")
        if name in found:
            raise BudgetError(f"plan = {item!r}: {name} is given twice; allowed is once")
        found[name] = value
    return found
