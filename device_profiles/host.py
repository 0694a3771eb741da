"""Describes the device that this runs on, and reads this process's private memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import platform
import re
from contextlib import suppress
from math import ceil
from pathlib import Path

import platformdirs
import psutil

from device_profiles.cgroups import processors
from device_profiles.schema import DeviceInfo

MOST_THREADS = max(256, os.cpu_count() or 1)
"""Of one computation: a thousand that wait actively for a few cores never get to the end, and more than these are a crash."""


def describe_device(
    *,
    name: str | None = None,
    threads: int | None = None,
    onnxruntime: str,
    execution_provider: str,
    spinning: bool = True,
    energy: str = "",
    label: str = "",
) -> DeviceInfo:
    """This device; `threads` defaults to the physical cores, `name` to `default_device_name`."""
    cores = physical_cores()
    used = threads or cores
    return DeviceInfo(
        name=name or default_device_name(used, execution_provider),
        cpu=cpu_model(),
        cores=cores,
        threads=used,
        ram_mb=round(psutil.virtual_memory().total / 2**20),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        onnxruntime=onnxruntime,
        execution_provider=execution_provider,
        spinning=spinning,
        energy=energy,
        label=readable(label),
    )


def readable(text: str) -> str:
    """The text without the bytes that Python could not read and keeps as lone surrogates (PEP 383): these are UTF-8, as
    terminals send it also where the locale knows ASCII alone. No file or document could hold them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def cache_folder() -> Path | None:
    """This user's folder for what sortednet can make again; None where the user has no home, as in many containers."""
    try:
        folder = platformdirs.user_cache_path("sortednet", appauthor=False)
    except (RuntimeError, KeyError):
        return None
    return folder if folder.is_absolute() else None


def default_device_name(threads: int | None = None, execution_provider: str = "") -> str:
    """Such as `amd-epyc-2c-1t`: CPU model, physical cores, threads used; where it is not the CPU's, the execution provider."""
    cores = physical_cores()
    model = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", "", cpu_model().lower())
    slug = re.sub(r"[^a-z0-9]+", "-", model).strip("-")[:60] or "device"
    provider = execution_provider.removesuffix("ExecutionProvider").lower()
    return f"{slug}-{cores}c-{threads or cores}t" + (f"-{provider}" if provider not in ("", "cpu") else "")


def physical_cores() -> int:
    """Cores that this process may use; a container may have been given fewer than there are, or less of their time."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return min(cores, max(1, ceil(min(processors(), cores))))


@functools.cache
def cpu_model() -> str:
    """The processor's name as the system knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        for field in ("model name", "Model", "Hardware"):
            found = re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
            if found:
                return found.group(1).strip()
    return platform.processor() or platform.machine() or "unknown"


@functools.cache
def cpu_features() -> str:
    """The instruction sets of the processor, as the system lists them; empty where it does not."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join(sorted(found.group(1).split())) if found else ""


def private_memory_mb(rollup: Path = Path("/proc/self/smaps_rollup")) -> float | None:
    """Memory (MiB) of this process alone that the system cannot drop and read again; None where the system does not tell.

    On Linux pages of mapped files are left out: they belong to the file, and to every process that maps it. Freed memory is
    handed back to the system first, so that the difference of two readings is what was added between.
    """
    gc.collect()
    return_freed_memory()
    with suppress(OSError):
        found = re.search(r"^Anonymous:\s*(\d+) kB$", rollup.read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) / 1024
    unique = getattr(psutil.Process().memory_full_info(), "uss", None)  # not on BSD, nor in a kernel without smaps
    return None if unique is None else float(unique) / 2**20


def return_freed_memory() -> None:
    """Hands memory that was freed back to the system, where the C library can; milliseconds."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # another C library than glibc
        return
