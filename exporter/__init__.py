"""Writes bundles: one ONNX graph per sub-model over one shared weights file. Needs the extra `train`.

`exporter.bundle`, which opens and checks what was written, needs neither torch nor onnx: a device imports that alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.writer import ExportError, export

__all__ = ["ExportError", "export"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import exporter.writer

        return getattr(exporter.writer, name)
    raise AttributeError(f"module 'exporter' has no attribute {name!r}")
