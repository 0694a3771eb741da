"""Limits of control groups, on trees of files as the kernel shows them."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from device_profiles import host
from device_profiles.cgroups import memory_limits, processors
from selector.adapt import memory, sensors

MB = 2**20
NONE_IN_VERSION_1 = str(2**63 - 4096)


def tree(root: Path, files: dict[str, str], own: str) -> tuple[Path, Path]:
    """The groups' folder and the file that says which are this process's."""
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (root / "own").write_text(own)
    return root / "cgroup", root / "own"


def second(folder: str, limit: str, used: int, inactive: int = 0) -> dict[str, str]:
    files = {"memory.max": limit, "memory.current": str(used * MB), "memory.stat": f"anon 1\ninactive_file {inactive * MB}"}
    return {f"{folder}{name}": text for name, text in files.items()}


def first(folder: str, limit: str, used: int, inactive: int = 0) -> dict[str, str]:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    values = (limit, str(used * MB), f"cache 1\ntotal_inactive_file {inactive * MB}")
    return {f"memory/{folder}{name}": text for name, text in zip(names, values, strict=True)}


@pytest.mark.parametrize(
    ("files", "own", "limits"),
    [
        (second("a/b/", str(512 * MB), 300, 100), "0::/a/b\n", [(512, 200)]),
        (second("a/b/", "max", 300) | second("a/", str(256 * MB), 250), "0::/a/b\n", [(256, 250)]),  # of the one above
        (second("a/b/", str(512 * MB), 1) | second("a/", str(900 * MB), 880), "0::/a/b\n", [(512, 1), (900, 880)]),
        (second("", str(64 * MB), 32), "0::/../../docker/abc\n", [(64, 32)]),  # a container's own group is the root
        (second("", str(64 * MB), 32), "0::/kubepods/pod1/abc\n", [(64, 32)]),
        (second("", "max", 32), "0::/\n", []),
        (second("", "lots", 32), "0::/\n", []),
        (first("docker/abc/", str(512 * MB), 300, 100), "4:memory:/docker/abc\n1:cpu:/docker/abc\n", [(512, 200)]),
        (first("", str(64 * MB), 32), "4:memory:/docker/abc\n", [(64, 32)]),
        (first("", NONE_IN_VERSION_1, 32), "4:memory:/\n0::/\n", []),
        (first("a/b/", NONE_IN_VERSION_1, 9) | first("a/", str(64 * MB), 32), "9:hugetlb,memory:/a/b\n0::/x\n", [(64, 32)]),
        ({}, "", []),
    ],
)
def test_limits_of_memory(tmp_path: Path, files: dict[str, str], own: str, limits: list[tuple[float, float]]) -> None:
    assert memory_limits(*tree(tmp_path, files, own)) == limits
    assert memory_limits(tmp_path / "nowhere", tmp_path / "nobody") == []


@pytest.mark.parametrize(
    ("files", "own", "count"),
    [
        ({"a/cpu.max": "50000 100000"}, "0::/a\n", 0.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, "0::/a/b\n", 1.5),
        ({"cpu.max": "200000 100000"}, "0::/docker/abc\n", 2.0),
        ({"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpu:/a\n", 0.5),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/a\n", 3.0),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpu:/a\n", inf),
        ({"cpu.max": "1 0"}, "0::/\n", inf),
    ],
)
def test_limits_of_processors(tmp_path: Path, files: dict[str, str], own: str, count: float) -> None:
    assert processors(*tree(tmp_path, files, own)) == count


@pytest.mark.parametrize(("allowed", "cores"), [(0.5, 1), (1.5, 2), (2.0, 2), (inf, 4), (64.0, 4)])
def test_cores_are_those_whose_time_is_ours(monkeypatch: pytest.MonkeyPatch, allowed: float, cores: int) -> None:
    monkeypatch.setattr(host, "processors", lambda: allowed)
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert host.physical_cores() == cores


def test_the_tightest_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = second("a/b/", str(512 * MB), 1) | second("a/", str(900 * MB), 880)
    found = memory_limits(*tree(tmp_path, files, "0::/a/b\n"))
    for module in (sensors, memory):
        monkeypatch.setattr(module, "memory_limits", lambda: found)
    assert sensors._memory_available() == 20.0
    assert memory.default_reserve_mb() == pytest.approx(0.05 * 512)
