"""Writes bundles: one ONNX graph per sub-model over one shared weights file. Needs the extra `train`.

`exporter.bundle`, which opens and checks what was written, needs neither torch nor onnx: a device imports that alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.writer import ExportError, export

__all__ = ["ExportError", "export"]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""From 1.29 on ONNX Runtime reports home by itself, on Linux too, and keeps an identifier of the device in the user's cache
folder. This is its documented switch (its Privacy.md), and it is read once, when the library is first used: so it is set here,
before any room imports it. Whoever wants the reports sets it to 0."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        import exporter.writer

        return getattr(exporter.writer, name)
    raise AttributeError(f"module 'exporter' has no attribute {name!r}")
