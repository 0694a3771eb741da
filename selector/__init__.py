"""Runs on the device: picks the best sub-model for a budget, runs it, and answers budget queries over REST.

`choose` decides, `adapt` learns what holds now, `run` opens and runs sessions, `fetch` brings what a device needs, `service`
answers over HTTP; each knows those before it. No torch and no onnx here: ONNX Runtime, numpy, psutil and pydantic. ONNX Runtime
is imported with the first of the names that need it, so that the REST service's processes can be forked before it is.
"""

from typing import TYPE_CHECKING, Any

from selector.adapt import read_battery
from selector.choose import (
    Battery,
    BatteryPlan,
    BatteryPolicy,
    Budget,
    BudgetError,
    Candidate,
    Candidates,
    Cascade,
    PowerLevel,
    Selection,
    Selector,
    find_profile,
    find_profiles,
    read_policy,
    selector_for,
)

if TYPE_CHECKING:
    from selector.run import (
        CanaryRuntime,
        GenerationOptions,
        Generator,
        InputError,
        RunResult,
        Runtime,
        RuntimeOptions,
        profile_bundle,
    )

__all__ = [
    "Battery",
    "BatteryPlan",
    "BatteryPolicy",
    "Budget",
    "BudgetError",
    "CanaryRuntime",
    "Candidate",
    "Candidates",
    "Cascade",
    "GenerationOptions",
    "Generator",
    "InputError",
    "PowerLevel",
    "RunResult",
    "Runtime",
    "RuntimeOptions",
    "Selection",
    "Selector",
    "find_profile",
    "find_profiles",
    "profile_bundle",
    "read_battery",
    "read_policy",
    "selector_for",
]


_RUN = ("CanaryRuntime", "GenerationOptions", "Generator", "InputError", "RunResult", "Runtime", "RuntimeOptions")


def __getattr__(name: str) -> Any:
    if name in (*_RUN, "profile_bundle"):
        import selector.run

        return getattr(selector.run, name)
    raise AttributeError(f"module 'selector' has no attribute {name!r}")
