"""The command line in a process of its own that the kernel ends as soon as it opens a socket to anywhere but this machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

SIGNAL = 31
"""SIGSYS: what such a process is ended with."""
_SOCKET = {"x86_64": 41, "aarch64": 198}
_SWITCHES = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY")
"""With any of these set ONNX Runtime does not report by itself."""
_FILTER = """
import ctypes, platform, struct, sys
socket, local, kill = {number}, 1, 1 << 31  # AF_UNIX: the C library asks a local daemon for names of users
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, socket), (0x20, 0, 0, 16), (0x15, 1, 0, local), (6, 0, 0, kill), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
prctl = ctypes.CDLL(None).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.byref(program), 0, 0):
    sys.exit("no seccomp")
"""


def available() -> bool:
    """Whether this kernel lets a process bind itself so; tried out."""
    if sys.platform != "linux" or platform.machine() not in _SOCKET:
        return False
    return _offline("pass", Path.cwd(), {}).returncode == 0


def offline(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`sortednet` with `home` for its user's folder and nothing that says where to keep things, or that this is a test."""
    named = {"HOME": str(home), "XDG_CACHE_HOME": "", "SORTEDNET_CACHE": ""}
    return _offline("import sortednet; sortednet.main()", home, named, *arguments)


def opens_a_socket(home: Path) -> bool:
    """That the kernel does end a process that opens one."""
    return _offline("import socket; socket.socket()", home, {}).returncode == -SIGNAL


def _offline(code: str, folder: Path, named: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _SWITCHES} | named
    command = [sys.executable, "-c", _FILTER.format(number=_SOCKET[platform.machine()]) + code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
