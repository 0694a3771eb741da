"""`Battery`, a state of charge, and `BatteryPolicy`, what changes when it runs low."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from device_profiles.atomic import text_of
from device_profiles.schema import Share
from device_profiles.wrong import first_wrong
from selector.choose.budget import BudgetError, Objective

_SHORT = ("low_percent", "keep_quality", "keep_accuracy")
"""Fields of a policy that are short for one level's."""


class Battery(BaseModel):
    """State of charge of a device."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    discharging: bool = False  # False: plugged in, or not known


class PowerLevel(BaseModel):
    """How to save below some state of charge: an objective, the quality that is kept, and caps.

    The quality is the budget's `min_quality`, or `keep_quality` (also `keep_accuracy`) times the best sub-model's. Caps are
    shares of what the best sub-model takes. Without measured energy latency stands in for it. Where the caps and the quality
    exclude each other the caps count, and where the budget's own limits leave nothing within the caps, the budget alone.
    Raises pydantic.ValidationError (a ValueError) naming the field, the value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    below_percent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]  # the level begins below this
    until_percent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = (
        None  # and ends here; None: where it began
    )
    objective: Objective = "energy"
    keep_quality: Share = Field(default=0.97, validation_alias=AliasChoices("keep_quality", "keep_accuracy"))
    energy_share: Annotated[Share, Field(gt=0)] | None = None
    latency_share: Annotated[Share, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _ends_above(self) -> Self:
        if self.until_percent is not None and self.until_percent < self.below_percent:
            raise ValueError(
                f"until_percent = {self.until_percent:g}: allowed is below_percent = {self.below_percent:g} or more"
            )
        return self

    @property
    def ends_at(self) -> float:
        return self.below_percent if self.until_percent is None else self.until_percent


class BatteryPolicy(BaseModel):
    """What a battery that runs low changes. By default: below 20 % and discharging, the least energy that keeps 97 % of the
    best quality, until the charge is back at 25 %.

    Of several levels the one that begins lowest counts. `charging` says what a level does on the mains: "unlimited" ends it
    at once, with "hold" it stays until its `until_percent`. `low_power` saves at the lowest level whatever the charge.
    `BatteryPolicy(low_percent=…, keep_quality=…)` is short for one level; `keep_accuracy` is the same.
    Raises pydantic.ValidationError (a ValueError) naming the field, the value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    levels: Annotated[tuple[PowerLevel, ...], Field(strict=False)] = (PowerLevel(below_percent=20.0, until_percent=25.0),)
    charging: Literal["unlimited", "hold"] = "unlimited"
    low_power: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_level(cls, given: Any) -> Any:
        short = [name for name in _SHORT if isinstance(given, dict) and name in given]
        if not short:
            return given
        if "levels" in given:
            raise ValueError(f"{' and '.join(short)}: short for one level, does not go with levels")
        rest = {name: value for name, value in given.items() if name not in _SHORT}
        level = {"below_percent": given.get("low_percent", 20.0), **{name: given[name] for name in short if name in _SHORT[1:]}}
        return {**rest, "levels": (level,)}

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        begins = [level.below_percent for level in self.levels]
        if len(set(begins)) < len(begins):
            raise ValueError(f"levels: below_percent = {', '.join(f'{p:g}' for p in begins)}; allowed is each value once")
        if self.low_power and not self.levels:
            raise ValueError("low_power = True: allowed with at least one level")
        return self

    @property
    def lowest(self) -> PowerLevel | None:
        """The level that begins last, at the least charge."""
        return min(self.levels, key=lambda level: level.below_percent, default=None)

    def level(
        self, battery: Battery | None, held: PowerLevel | None = None, *, low_power: bool | None = None
    ) -> PowerLevel | None:
        """The level that counts now; None: nothing is saved. `held`: the one that counted before, which ends only at its
        `until_percent`; without it levels are plain thresholds. `low_power` overrules the policy's."""
        if self.low_power if low_power is None else low_power:
            return self.lowest
        if battery is None or (self.charging == "unlimited" and not battery.discharging):
            return None
        percent = battery.percent
        within = [
            level
            for level in self.levels
            if percent < level.below_percent
            or (held is not None and level.below_percent >= held.below_percent and percent < level.ends_at)
        ]
        return min(within, key=lambda level: level.below_percent, default=None)


def read_policy(path: str | Path) -> BatteryPolicy:
    """A policy from a JSON file. Raises BudgetError naming the file, the field and the value."""
    try:
        return BatteryPolicy.model_validate_json(text_of(Path(path).read_bytes()))
    except UnicodeDecodeError:
        raise BudgetError(f"policy {str(path)!r}: document: is no text; allowed is JSON in UTF-8") from None
    except OSError as error:
        raise BudgetError(f"policy {str(path)!r}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        what = first_wrong(error, "document", tuple(BatteryPolicy.model_fields))
        raise BudgetError(f"policy {str(path)!r}: {what}") from None


def make_battery(percent: float | None, discharging: bool) -> Battery | None:
    """A Battery from user input, None without a percentage. Raises BudgetError naming the value."""
    if percent is None:
        if discharging:
            raise BudgetError("battery: --discharging needs --battery PERCENT")
        return None
    try:
        return Battery(percent=percent, discharging=discharging)
    except ValidationError:
        raise BudgetError(f"battery = {percent!r}: allowed are 0 to 100 per cent") from None
