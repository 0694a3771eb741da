"""`OnnxRuntimeWeb`: the files of npm's `onnxruntime-web`, with which a browser runs graphs. They are not part of ours."""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple

PROCESSOR, WEBGPU = "ort.wasm.min.mjs", "ort.webgpu.min.mjs"
"""Modules: what a page imports for the processor alone, and for WebGPU."""
_FILE = re.compile(r"ort(-wasm-simd-threaded(\.[a-z]+)?|(\.[a-z]+)?\.min)\.(mjs|wasm)").fullmatch
_MEDIA_TYPES = {".mjs": "text/javascript; charset=utf-8", ".wasm": "application/wasm"}


class OnnxRuntimeWebError(ValueError):
    """A folder without these files."""

    exit_code = 2


class WebFile(NamedTuple):
    """Its content, perhaps with gzip, which makes a third of it."""

    content: bytes
    media_type: str


class OnnxRuntimeWeb:
    """Of the package's folder `dist`. Raises OnnxRuntimeWebError for another, and says how to get it."""

    def __init__(self, folder: Path) -> None:
        inside = folder / "dist"
        self.folder = inside if (inside / PROCESSOR).is_file() else folder  # the package's own folder will do
        if not (self.folder / PROCESSOR).is_file():
            raise OnnxRuntimeWebError(
                f"onnxruntime_web = {str(folder)!r}: holds no {PROCESSOR}; allowed is node_modules/onnxruntime-web/dist, "
                "made by `npm install onnxruntime-web`"
            )
        self.names = frozenset(path.name for path in self.folder.iterdir() if _FILE(path.name) and path.is_file())
        self._packed: dict[str, bytes] = {}
        self._packing = Lock()

    @property
    def has_webgpu(self) -> bool:
        return WEBGPU in self.names

    @cached_property
    def version(self) -> str:
        """Another one where a file is: it stands in their addresses, so that they may be kept for good."""
        looks = [(name, (self.folder / name).stat()) for name in sorted(self.names)]
        told = repr([(name, found.st_size, found.st_mtime_ns) for name, found in looks])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def file(self, name: str, *, packed: bool) -> WebFile | None:
        """None where there is none of that name. With gzip where that is asked for: the first time that takes a second for the
        largest."""
        if name not in self.names:
            return None
        media_type = _MEDIA_TYPES[Path(name).suffix]
        path = self.folder / name
        if not packed:
            return WebFile(path.read_bytes(), media_type)
        with self._packing:
            if name not in self._packed:
                self._packed[name] = gzip.compress(path.read_bytes(), 3, mtime=0)
        return WebFile(self._packed[name], media_type)
