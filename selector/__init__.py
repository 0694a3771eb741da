"""Runs on the device: picks the best sub-model for a budget, runs it, and answers budget queries over REST.

No torch and no onnx here: ONNX Runtime, numpy, psutil and pydantic. ONNX Runtime is imported with the first of the names
that need it, so that the REST service's processes can be forked before it is.
"""

from typing import TYPE_CHECKING, Any

from selector.battery import Battery, BatteryPolicy, PowerLevel, read_battery, read_policy
from selector.budget import BatteryPlan, Budget, BudgetError, Selection
from selector.selector import Selector, find_profile, find_profiles, selector_for

if TYPE_CHECKING:
    from selector.profiling import profile_bundle
    from selector.runtime import InputError, RunResult, Runtime

__all__ = [
    "Battery",
    "BatteryPlan",
    "BatteryPolicy",
    "Budget",
    "BudgetError",
    "InputError",
    "PowerLevel",
    "RunResult",
    "Runtime",
    "Selection",
    "Selector",
    "find_profile",
    "find_profiles",
    "profile_bundle",
    "read_battery",
    "read_policy",
    "selector_for",
]


def __getattr__(name: str) -> Any:
    if name == "profile_bundle":
        from selector.profiling import profile_bundle

        return profile_bundle
    if name in ("InputError", "RunResult", "Runtime"):
        import selector.runtime

        return getattr(selector.runtime, name)
    raise AttributeError(f"module 'selector' has no attribute {name!r}")
