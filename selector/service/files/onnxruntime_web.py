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
    """Its content, as it is and with gzip, which makes a third of it."""

    content: bytes
    packed: bytes
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
        self._packed: dict[str, WebFile] = {}
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

    def file(self, name: str) -> WebFile | None:
        """None where there is none of that name. The first time it is packed, which takes a second for the largest."""
        if name not in self.names:
            return None
        with self._packing:
            found = self._packed.get(name)
            if found is None:
                content = (self.folder / name).read_bytes()
                found = WebFile(content, gzip.compress(content, 5, mtime=0), _MEDIA_TYPES[Path(name).suffix])
                self._packed[name] = found
        return found
