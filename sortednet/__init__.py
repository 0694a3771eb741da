"""sortednet: train one nested model, ship every smaller version of it, run the one that fits the device's budget.

The twelve names that most people need, from the rooms that they live in. Nothing is imported until it is used: on a device
`from sortednet import Runtime` needs neither torch nor onnx, and `fit` and `export` come with the extra `train`.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter import export
    from exporter.bundle import Bundle
    from selector import Budget, CanaryRuntime, Generator, Runtime, Selector
    from sortednet.cli import app
    from trainer import Family, NestedModel, SubModel, Task, fit

__all__ = [
    "Budget",
    "Bundle",
    "CanaryRuntime",
    "Family",
    "Generator",
    "NestedModel",
    "Runtime",
    "Selector",
    "SubModel",
    "Task",
    "app",
    "export",
    "fit",
    "main",
]

_ROOMS = {
    **dict.fromkeys(("Budget", "CanaryRuntime", "Generator", "Runtime", "Selector"), "selector"),
    **dict.fromkeys(("Family", "NestedModel", "SubModel", "Task", "fit"), "trainer"),
    "Bundle": "exporter.bundle",
    "export": "exporter",
    "app": "sortednet.cli",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'sortednet' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main() -> None:
    """The command line."""
    try:
        from sortednet.cli import app
        from sortednet.console import begin
    except KeyboardInterrupt:  # for half a second nothing else tells it
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    begin(app)
