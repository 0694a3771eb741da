"""What goes in and out over HTTP. Budget, battery, profile and manifest are the same models as everywhere."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from selector.battery import Battery
from selector.budget import Budget

MAX_NAME = 128


class SelectRequest(BaseModel):
    """The body of `POST /v1/select`. `bundle` may be left out when one is served, `device` as on the command line."""

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = Field(default=None, max_length=MAX_NAME)
    device: str | None = Field(default=None, max_length=MAX_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    budget: Budget = Budget()
    battery: Battery | None = None

    @field_validator("budget")
    @classmethod
    def _without_a_plan(cls, budget: Budget) -> Budget:
        if budget.plan is not None:
            raise ValueError("plan: allowed is none here; the device's runtime keeps a plan's account")
        return budget
