"""Exports that are killed or find the disk full: a bundle is whole or absent."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from exporter import export, folding
from exporter.bundle import Bundle, BundleError
from exporter.bundle.atomic import built_beside
from exporter.bundle.verify import self_test
from tests.helpers.exports import calibrated, small

REPOSITORY = Path(__file__).parents[2]


EXPORT_SLOWLY = """
import sys, time, torch
from tests.helpers.exports import calibrated, small
import exporter.writer
original = exporter.writer._Writer._write_graph
def slowly(self, sub, template):
    path = original(self, sub, template)
    print(sub.id, flush=True)
    time.sleep({pause})
    return path
exporter.writer._Writer._write_graph = slowly
{before}
exporter.writer.export(calibrated(small("resnet")), sys.argv[1], overwrite=True, show_progress=False)
"""


def exporting(out: Path, *, pause: float = 0.0, before: str = "") -> subprocess.Popen[str]:
    script = EXPORT_SLOWLY.format(pause=pause, before=before)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(out)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_a_killed_export_leaves_no_bundle_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    process = exporting(tmp_path / "bundle", pause=30)
    assert process.stdout
    assert process.stdout.readline().strip()  # one graph is written
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "bundle").exists()
    assert len(list(tmp_path.iterdir())) == 1  # the partial folder of a process that could not clean up
    export(calibrated(small("resnet")), tmp_path / "bundle", show_progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_killed_export_leaves_the_bundle_that_stood_there(bundle_path: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_path, tmp_path / "bundle")
    process = exporting(tmp_path / "bundle", pause=30)
    assert process.stdout
    assert process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    self_test(Bundle(tmp_path / "bundle"))


def test_a_kill_between_the_two_renames_loses_no_bundle(bundle_path: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    shutil.copytree(bundle_path, tmp_path / f".bundle.replaced-{ended.pid}")
    with pytest.raises(ZeroDivisionError), built_beside(tmp_path / "bundle"):
        _ = 1 / 0
    self_test(Bundle(tmp_path / "bundle"))
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """The system refuses to write beyond a size, as a full disk does, in the middle of the weights."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    process = exporting(tmp_path / "bundle", before=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "BundleError" in errors
    assert "disk is full" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        with built_beside(tmp_path / "bundle"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    usage, where = shutil.disk_usage, tempfile.gettempdir()
    free = {"temporary": 0, "place": 0}

    def of(path: object) -> object:
        return usage(tmp_path)._replace(free=free["temporary" if str(path) == where else "place"])

    monkeypatch.setattr(shutil, "disk_usage", of)
    for full, said in (("place", r"the disk of temporary files, .* \(TMPDIR\), is full"), ("temporary", ": the disk is full")):
        free.update(dict.fromkeys(free, 0) | {full: 2**50})
        with pytest.raises(BundleError, match=said):
            build()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_for_onnx_runtime_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folding, "check_writable", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        folding.optimized_graph(tmp_path / "none.onnx")


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root on Linux")
def test_a_really_full_disk_leaves_nothing(tmp_path: Path, bundle_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        process = exporting(disk / "bundle")
        _, errors = process.communicate(timeout=120)
        assert "disk is full" in errors
        assert list(disk.iterdir()) == []
    finally:
        for _ in range(20):
            if subprocess.run(["umount", str(disk)], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
