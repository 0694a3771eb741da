"""Which sub-model a budget gets: budgets, battery policies, cascades and profiles as data, and the selector over them.

Nothing here runs a graph, reads a sensor or keeps a thread. It imports neither numpy nor ONNX Runtime: choosing takes less
time than either's import.
"""

from selector.choose.battery import Battery, BatteryPolicy, PowerLevel, read_policy
from selector.choose.budget import BatteryPlan, Budget, BudgetError, Selection
from selector.choose.candidates import Candidate, Candidates
from selector.choose.cascades import Cascade
from selector.choose.profiles import find_profile, find_profiles, selector_for
from selector.choose.selector import Selector

__all__ = [
    "Battery",
    "BatteryPlan",
    "BatteryPolicy",
    "Budget",
    "BudgetError",
    "Candidate",
    "Candidates",
    "Cascade",
    "PowerLevel",
    "Selection",
    "Selector",
    "find_profile",
    "find_profiles",
    "read_policy",
    "selector_for",
]
