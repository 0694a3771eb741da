"""The battery's state, and the plain policy for when it runs low."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selector.budget import Budget, BudgetError


class Battery(BaseModel):
    """State of charge of a device."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    discharging: bool = False  # False: plugged in, or not known


@dataclass(frozen=True)
class BatteryPolicy:
    """Below `low_percent` and discharging: the least energy that keeps a minimum accuracy.

    Without measured energy the least latency stands in for it. The minimum is the budget's `min_accuracy`, or
    `keep_accuracy` times the best sub-model's accuracy.
    """

    low_percent: float = 20.0
    keep_accuracy: float = 0.97

    def is_low(self, battery: Battery | None) -> bool:
        return battery is not None and battery.discharging and battery.percent < self.low_percent

    def saving(self, budget: Budget, *, best_accuracy: float, energy_known: bool) -> Budget:
        """The budget to use while the battery is low."""
        floor = budget.min_accuracy if budget.min_accuracy is not None else self.keep_accuracy * best_accuracy
        return budget.model_copy(update={"objective": "energy" if energy_known else "latency", "min_accuracy": floor})


def read_battery() -> Battery | None:
    """This device's battery; None when it has none or says nothing that makes sense. Never raises."""
    try:
        state = psutil.sensors_battery()
        percent = math.nan if state is None else float(state.percent)
    except Exception:  # drivers fail in their own ways, and a missing reading must not stop an inference
        return None
    if not math.isfinite(percent) or percent < 0:
        return None
    return Battery(percent=min(percent, 100.0), discharging=state.power_plugged is False)


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
