"""Opens sub-models and runs them: `Runtime`, its pool of sessions and their cached copies, cascades, and how a bundle is
measured on this device. ONNX Runtime and numpy are imported with the first of these names that is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selector.run.profiling import profile_bundle
    from selector.run.runtime import InputError, RunResult, Runtime

__all__ = ["InputError", "RunResult", "Runtime", "profile_bundle"]


def __getattr__(name: str) -> Any:
    if name == "profile_bundle":
        from selector.run.profiling import profile_bundle

        return profile_bundle
    if name in __all__:
        import selector.run.runtime

        return getattr(selector.run.runtime, name)
    raise AttributeError(f"module 'selector.run' has no attribute {name!r}")
