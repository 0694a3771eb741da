"""Nothing is told to anybody: the base install opens no connection of its own and writes no identifier of the device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEVICE
from tests.helpers.offline import available, offline, opens_a_socket


@pytest.mark.skipif(not available(), reason="needs Linux with seccomp")
def test_no_command_opens_a_socket_or_leaves_an_identifier(copied: Path, images: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert opens_a_socket(home)  # the kernel notices
    for arguments in (
        ["verify", copied],
        ["profile", copied, "--device", "mine", "--repeats", "1", "--threads", "1"],
        ["select", copied, "--device", DEVICE, "--latency-ms", "1000"],
        ["run", copied, "--device", DEVICE, "--input", images],
    ):
        ran = offline(home, *arguments)
        assert ran.returncode == 0, (arguments, ran.returncode, ran.stderr)
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert left
    assert {name for name in left if not name.startswith(".cache/sortednet/models/")} == set()


@pytest.mark.parametrize(
    ("room", "given", "then"),
    [("selector.run.runtime", None, "1"), ("exporter.bundle.session", None, "1"), ("selector.run.runtime", "0", "0")],
)
def test_onnxruntime_is_told_before_it_is_imported(room: str, given: str | None, then: str) -> None:
    """By every room that may import it; whoever has set the switch keeps it."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            assert os.environ.get("ORT_DISABLE_TELEMETRY") == {then!r}
sys.meta_path.insert(0, Watch())
import {room}
assert "onnxruntime" in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
