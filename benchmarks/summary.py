"""How every benchmark writes its results: `summary.json` with the command, the environment and the figures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
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
        **_accelerator(),
    }


def _accelerator() -> dict[str, str]:
    """The GPU that torch computes on, where torch is loaded and there is one."""
    torch = sys.modules.get("torch")
    return {"accelerator": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {}


def commit() -> str:
    """The checked-out commit; `-dirty` when anything but results differs from it; empty where there is no git."""
    if shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    changed = git("status", "--porcelain", "--", ":/", ":(exclude,top,glob)benchmarks/*/results/**")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def run_parts(
    folder: Path,
    command: str,
    parts: Mapping[str, Callable[[], Mapping[str, float]]],
    notes: Mapping[str, str],
    names: Sequence[str],
) -> None:
    """Measures the named parts, or all, prints the figures and adds them to the folder's summary after each part."""
    wanted = names or list(parts)
    if unknown := [name for name in wanted if name not in parts]:
        raise SystemExit(f"part {unknown[0]!r}: allowed are {', '.join(parts)}")
    for name in wanted:
        found = parts[name]()
        for key, value in found.items():
            print(f"{key:45} {value:.4g}", flush=True)
        add_to_summary(folder, command, found, notes)


def add_to_summary(folder: Path, command: str, figures: Mapping[str, float], notes: Mapping[str, str]) -> None:
    """Figures and notes that the folder's summary has and that are none of these stay in it."""
    summary = folder / "summary.json"
    known = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {"figures": {}, "notes": {}}
    write_summary(folder, command, known["figures"] | dict(figures), known["notes"] | dict(notes))


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
