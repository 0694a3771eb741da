"""What this process's control groups allow, versions 1 and 2: the memory and the processor time that is left of a machine.

A group is bound by those above it too, so that the tightest of them counts. In a container the path that the kernel tells is
often the host's and not there: what is mounted is the container's own group then.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
_NO_LIMIT = 2**60
"""Version 1 says so by the largest number of pages."""


class GroupMemory(NamedTuple):
    """Of one group, in MB: its limit, and what it uses without pages of files that can be dropped."""

    limit: float
    used: float


def memory_limits(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> list[GroupMemory]:
    """Of every group that this process is in and that has a limit."""
    found = []
    for folder, version in _groups("memory", cgroups, own):
        limit, usage, dropped = _FILES[version]
        try:
            text = (folder / limit).read_text().strip()
            if text == "max" or int(text) >= _NO_LIMIT:
                continue
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage).read_text()) - int(statistics.get(dropped, 0))
            found.append(GroupMemory(int(text) / 2**20, max(0, used) / 2**20))
        except (OSError, ValueError):
            continue
    return found


_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def processors(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> float:
    """How many processors' time the groups allow, such as 0.5; infinite where there is no limit."""
    least = inf
    for folder, version in _groups("cpu", cgroups, own):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in ("max", "-1"):
                least = min(least, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return least


def _groups(controller: str, cgroups: Path, own: Path) -> Iterator[tuple[Path, int]]:
    """The folders of this process's groups, from its own up to the root, and their version."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    paths = {name: path for _, names, path in (line for line in lines if len(line) == 3) for name in names.split(",")}
    for name, version in ((controller, 1), ("", 2)):
        mounts = [cgroups / controller, cgroups / f"{controller},cpuacct"] if version == 1 else [cgroups]
        mount = next((mount for mount in mounts if mount.is_dir()), None)
        if mount is None or (name not in paths and (version == 1 or paths)):
            continue
        parts = [part for part in paths.get(name, "").split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:depth])
            if folder.is_dir():
                yield folder, version
