"""How every benchmark writes its results: `summary.json` with the command, the environment and the figures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from device_profiles.host import cpu_model, physical_cores


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")}
    return {
        "cpu": cpu_model(),
        "cores": physical_cores(),
        "ram_mb": round(psutil.virtual_memory().total / 2**20),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **versions,
    }


def commit() -> str:
    """The checked-out commit; `-dirty` when anything but results differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    changed = git("status", "--porcelain", "--", ":/", ":(exclude,top,glob)benchmarks/*/results/**")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def write_summary(folder: Path, command: str, figures: Mapping[str, float], notes: Mapping[str, str]) -> None:
    """Replaces `summary.json` in the folder; `notes` say of a figure how it was taken."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "command": command,
        "environment": environment(),
        "commit": commit(),
        "measured_at": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "figures": {name: round(float(value), 6) for name, value in figures.items()},
        "notes": dict(notes),
    }
    (folder / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
