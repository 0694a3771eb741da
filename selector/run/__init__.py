"""Opens sub-models and runs them: `Runtime`, its pool of sessions and their cached copies, cascades, and how a bundle is
measured on this device. ONNX Runtime and numpy are imported with the first of these names that is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selector.run.canary import CanaryRuntime
    from selector.run.decode import GenerationOptions
    from selector.run.generate import BusyError, Generation, Generator, Piece
    from selector.run.inputs import InputError
    from selector.run.options import RuntimeOptions
    from selector.run.profiling import profile_bundle
    from selector.run.program import Part, Program, Ran
    from selector.run.results import RunRecord, RunResult
    from selector.run.runtime import Runtime
    from selector.run.text import Encoded, TextReader

__all__ = [
    "BusyError",
    "CanaryRuntime",
    "Encoded",
    "Generation",
    "GenerationOptions",
    "Generator",
    "InputError",
    "Part",
    "Piece",
    "Program",
    "Ran",
    "RunRecord",
    "RunResult",
    "Runtime",
    "RuntimeOptions",
    "TextReader",
    "profile_bundle",
]

_MODULES = {
    "InputError": "inputs",
    "RuntimeOptions": "options",
    "profile_bundle": "profiling",
    "Runtime": "runtime",
    "CanaryRuntime": "canary",
}
_MODULES |= dict.fromkeys(("Part", "Program", "Ran"), "program") | dict.fromkeys(("RunRecord", "RunResult"), "results")
_MODULES |= dict.fromkeys(("Encoded", "TextReader"), "text")
_MODULES |= dict.fromkeys(("BusyError", "Generation", "GenerationOptions", "Generator", "Piece"), "generate")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"selector.run.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'selector.run' has no attribute {name!r}")
